"""Write the newest checkpoint of a training run, or a GGUF file, as a Hugging Face directory: config.json, safetensors,
tokenizer.

`edlm generate --model=DIR` reads it, and so does whatever reads the family's checkpoints."""

import argparse
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--workdir", metavar="DIR", help="work directory of `edlm train`")
    source.add_argument("--model", metavar="PATH", help="a model as it is: a GGUF file, a directory or a hub id")
    parser.add_argument("--out", required=True, metavar="DIR", help="directory to write; must not exist yet")
    parser.add_argument("--step", type=int, metavar="N", help="of --workdir, in place of the newest")
    parser.add_argument("--format", metavar="NAME", help="a server's layout: sdar (Qwen3), fast_dllm_v2 (Qwen2.5)")
    how = "to store (bfloat16); what adapters left as it was is no finer than the run's config.dtype"
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help=how)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Export; returns where to."""
    from edlm_jax import load_pretrained, save_pretrained
    from edlm_jax.errors import InputError
    from edlm_jax.pretrained import load_spec
    from edlm_jax.pretrained.save import check_export
    from edlm_jax.training.checkpoint import load_trained, trained_spec

    ported = args.model is not None
    if ported and args.step is not None:
        raise InputError("--step is of a --workdir; a --model has none")
    spec = load_spec(args.model) if ported else trained_spec(Path(args.workdir))[0]
    check_export(spec, args.out, dtype=args.dtype, format=args.format)
    model = load_pretrained(args.model, "float32") if ported else load_trained(args.workdir, step=args.step)
    save_pretrained(model, args.out, dtype=args.dtype, format=args.format)
    return {"workdir": args.workdir, "model": args.model, "out": args.out, "dtype": args.dtype}


def show(result: dict[str, Any], args: argparse.Namespace) -> None:
    """Print what was written."""
    print(f"wrote {result['out']} ({result['dtype']}) from {result['model'] or result['workdir']}")
