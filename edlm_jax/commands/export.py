"""Write the newest checkpoint of a training run as a Hugging Face directory: config.json, safetensors, tokenizer.

`edlm generate --model=DIR` reads it, and so does whatever reads the family's checkpoints."""

import argparse
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--workdir", required=True, metavar="DIR", help="work directory of `edlm train`")
    parser.add_argument("--out", required=True, metavar="DIR", help="directory to write; must not exist yet")
    parser.add_argument("--step", type=int, metavar="N", help="take this step's checkpoint in place of the newest")
    parser.add_argument("--format", metavar="NAME", help="a server's layout: sdar (Qwen3), fast_dllm_v2 (Qwen2.5)")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="to store (bfloat16)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Export; returns where to."""
    from edlm_jax import save_pretrained
    from edlm_jax.pretrained.save import check_export
    from edlm_jax.training.checkpoint import load_trained, trained_spec

    spec, _ = trained_spec(Path(args.workdir))
    check_export(spec, args.out, dtype=args.dtype, format=args.format)
    model = load_trained(args.workdir, step=args.step)
    save_pretrained(model, args.out, dtype=args.dtype, format=args.format)
    return {"workdir": args.workdir, "out": args.out, "dtype": args.dtype}


def show(result: dict[str, Any], args: argparse.Namespace) -> None:
    """Print what was written."""
    print(f"wrote {result['out']} ({result['dtype']}) from {result['workdir']}")
