"""Compile a config's training step and decoder for TPUs or GPUs that are not here, and say what they would need.

Memory, collectives, attention tiles and kernels are the compiler's own; nothing runs. Needs the compiler (pip install
'edlm_jax[tpu]' or 'edlm_jax[cuda]') and no device. Exit code 1: it does not fit."""

import argparse
import os
from typing import Any

from edlm_jax.benchmarks.gpus import GPUS
from edlm_jax.commands.arguments import add_shared
from edlm_jax.commands.config import load_run
from edlm_jax.errors import check_range


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_shared(parser, "config")
    what = f"TPU chips, for example v5e:4x4 or v5p:4x4x4, or the GPUs of a machine: {', '.join(GPUS)}, as in h100:8"
    parser.add_argument("--topology", required=True, metavar="NAME", help=what)
    parser.add_argument("--num_slices", type=int, default=1, metavar="N", help="of TPUs: so many, over a network (1)")
    parser.add_argument("--hosts", type=int, default=1, metavar="N", help="of GPUs: so many machines (1)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Compile; returns the report."""
    check_range("--num_slices", args.num_slices)
    check_range("--hosts", args.hosts)
    os.environ["JAX_PLATFORMS"] = "cpu"  # nothing runs: a device that is here stays free for others
    run = load_run(args.config, args.overrides)
    from edlm_jax.benchmarks.aot import compile_report
    from edlm_jax.reports.report import describe_machine

    several = [f"--{name}={vars(args)[name]}" for name in ("num_slices", "hosts") if vars(args)[name] > 1]
    command = ["edlm compile", f"--config={args.config}", f"--topology={args.topology}", *several, *args.overrides]
    report = compile_report(run, args.topology, args.num_slices, args.hosts)
    return dict(command=" ".join(command), **report, **describe_machine())


def show(result: dict[str, Any], args: argparse.Namespace) -> None:
    """Print what fits where."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in result["mesh"].items() if size > 1)
    memory = result["memory_per_device"]
    print(f"{result['chips']} chips, {result['devices']} devices ({result['device_kind']}) as {mesh}")
    for name in ("train_step", "decoder"):
        if name in result:
            print(f"\n{name.replace('_', ' ')}")
            _show_program(result[name], memory)
    print(f"\n{'fits' if result['fits'] else 'DOES NOT FIT'}")


def exit_code(result: dict[str, Any]) -> int:
    """1 where it does not fit."""
    return int(not result["fits"])


def _show_program(program: dict[str, Any], memory: int) -> None:
    if "reason" in program:
        print(f"  {program['reason']}")
        return
    gib = lambda size: f"{size / 2**30:.2f} GiB"  # noqa: E731
    print(f"  memory of a device     {gib(program['peak_bytes'])} at the peak, of {gib(memory)}")
    print(f"    arguments            {gib(program['argument_bytes'])}")
    print(f"    temporaries          {gib(program['temporary_bytes'])}")
    for kind, found in program["collectives"].items():
        print(f"  {kind:22} {found['count']} of {gib(found['bytes'])} in all")
    for name in ("at_best", "denoise_at_best"):
        if bound := program.get(name):
            times = ", ".join(f"{part} {bound[f'{part}_ms']:.3g}" for part in ("products", "memory", "links"))
            what = "a step" if name == "at_best" else "a denoising forward"
            ends = f"{bound['bound_by']} bind, MFU {bound['mfu_at_best']:.2f}"
            print(f"  at best (a bound)      {what}: {times} ms; {ends}")
    if "model_flops" in program:
        print(f"  model FLOPs            {program['model_flops']:.3e}, {program['flops_per_device']:.3e} a device")
        print(f"  micro-batches          {program['micro_batches']}, remat {program['remat']}")
    if tiles := program.get("attention_tiles"):
        print(
            f"  attention tiles        {tiles['visited']} of {tiles['total']} ({tiles['queries']} x {tiles['keys']}), "
            f"{tiles['over_ideal']:.2f} times the fewest possible"
        )
    for kernel in program.get("kernels", ()):
        shared = f"{kernel['shared_bytes']} of {program['shared_limit']} bytes of shared memory"
        taken = f"{kernel['registers']} registers, {kernel['spill_bytes']} bytes spilled a thread"
        print(f"  {kernel['name']:22} {shared}, {taken if kernel['registers'] else 'registers unknown without ptxas'}")
    tracing, compiling = program["trace_seconds"], program["compile_seconds"]
    print(f"  seconds                {tracing:.0f} to trace, {compiling:.0f} to compile")
