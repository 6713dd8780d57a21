"""What is read from the GPU compiler's dump: kernels of ours by name, with the shared memory of a block."""

from edlm_jax.benchmarks import kernels as module
from edlm_jax.benchmarks.kernels import kernels

SEQUENCE = """000: kCopy [next=001 (1)]
010: kCustomKernel [prev=009 (1) | next=011 (1)] forward_kernel grid: [32, 2, 16] threads: [128, 1, 1]  shared_memory: 82176 bytes
016: kCustomKernel [prev=015 (1)] dkv_kernel grid: [32, 2, 8] threads: [128, 2, 1]  shared_memory: 100608 bytes
017: kCustomKernel [prev=016 (1)] dkv_kernel__1 grid: [32, 2, 8] threads: [128, 2, 1]  shared_memory: 100608 bytes
018: kCustomKernel [prev=017 (1)] gemm_fusion_dot_3 grid: [1, 1, 1] threads: [64, 1, 1]  shared_memory: 768 bytes
"""  # noqa: E501


def test_kernels_of_a_dump(tmp_path, monkeypatch):
    (tmp_path / "module_0001.jit_f.thunk_sequence.txt").write_text(SEQUENCE)
    (tmp_path / "module_0001.jit_f.3.ptx").write_text(".target sm_90a\n.visible .entry dkv_kernel(\n")
    ptxas = tmp_path / "ptxas"
    ptxas.write_text(
        '#!/bin/sh\n[ "$3" = sm_90a ] || exit 1\n'
        'echo "    48 bytes stack frame, 52 bytes spill stores, 56 bytes spill loads\nUsed 255 registers, used 1" >&2\n'
    )
    ptxas.chmod(0o755)
    monkeypatch.setattr(module, "_ptxas", lambda: str(ptxas))
    dkv, forward = kernels(tmp_path)
    assert dkv == dict(
        name="dkv_kernel", calls=2, threads=256, shared_bytes=100608, registers=255, spill_bytes=52
    )
    assert forward["shared_bytes"] == 82176 and forward["registers"] is None  # its PTX is not there
    monkeypatch.setattr(module, "_ptxas", lambda: None)
    assert kernels(tmp_path)[0]["spill_bytes"] is None
