"""The TPU's and the GPU's compiler on a small model: it fits, and what must not be in the program is not.

Needs libtpu, and jax[cuda13] for the second.
"""

import math

import pytest
from ml_collections import ConfigDict

from edlm_jax.training.config import default_config
from edlm_jax.training.initial import planned_spec
from edlm_jax.training.run import Run

SHAPE = dict(
    architectures=["Qwen3ForCausalLM"],
    model_type="qwen3",
    vocab_size=3001,
    hidden_size=256,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=128,
    intermediate_size=384,
    max_position_embeddings=4096,
    rms_norm_eps=1e-6,
    rope_theta=10000.0,
    hidden_act="silu",
    tie_word_embeddings=False,
)


def small_run(tiles=(128, 128)) -> Run:
    c = default_config()
    c.init.path = "nobody/has-this"  # never looked for: the shape is here
    c.init.hf_config = ConfigDict(SHAPE)
    c.init.mask_token_id = 5
    c.objective.block_length = 32
    c.data.update(batch_size=8, length=1024)
    c.optimizer.accumulation = 0
    c.attention_tiles = tiles
    c.remat = "full"
    return Run.of(c)


def test_the_spec_is_that_of_the_config():
    spec = planned_spec(small_run().start)
    assert (spec.width, spec.vocab_size) == (256, 3001)
    assert (spec.conversion.mask_token_id, spec.conversion.block_length) == (5, 32)


def test_a_small_step_and_its_decoder_on_four_chips():
    pytest.importorskip("libtpu")
    from edlm_jax.benchmarks.aot import compile_report

    report = compile_report(small_run(), "v5e:2x2", 1)
    step, decoder = report["train_step"], report["decoder"]
    assert report["fits"] and step["micro_batches"] == 1 and report["mesh"]["fsdp"] == 4
    assert step["attention_tiles"]["over_ideal"] <= 1.15
    assert step["collectives"]["all-gather"]["bytes"] > 0 and decoder["collectives"]["all-reduce"]["count"] > 0
    check_widest(step)
    weights = 3001 * 256 * 2 + 2 * (256 * 128 * 12 + 3 * 256 * 384)
    assert 12 * weights / 4 < step["argument_bytes"] < 12.5 * weights / 4  # float32 parameters and moments, split


def check_widest(step):
    for shape in step["widest_arrays"]:  # these would be among them
        assert sum(size == 2 * 1024 for size in shape) < 2  # scores or a mask of two streams
        assert not (3001 in shape and math.prod(shape) >= 1024 * 3001)  # logits of a row


@pytest.mark.parametrize(("topology", "hosts"), [("rtx4090:1", 1), ("h100:2", 2)])
def test_a_small_step_and_its_decoder_on_gpus(topology, hosts):
    pytest.importorskip("jax_cuda13_plugin")
    from edlm_jax.benchmarks.aot import compile_report

    report = compile_report(small_run(tiles=()), topology, hosts=hosts)
    step = report["train_step"]
    assert report["fits"] and (report["hosts"], report["devices"]) == (hosts, hosts * int(topology[-1]))
    assert [kernel["name"] for kernel in step["kernels"]] == ["dkv_kernel", "dq_kernel", "forward_kernel"]
    for kernel in step["kernels"]:
        assert 0 < kernel["shared_bytes"] <= step["shared_limit"]
        assert kernel["registers"] > 0 and kernel["spill_bytes"] <= 64
    assert ("reduce-scatter" in step["collectives"]) == (report["devices"] > 1)
    if report["devices"] == 1:  # gathered weights are wide, too
        check_widest(step)
