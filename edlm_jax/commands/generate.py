"""Complete prompts with a converted model (several tokens per forward pass) or, with --mode=ar, one token at a time.

Prompts come from --prompt, from --prompts-file (one a line; - is stdin), or from stdin when it is piped. Each is
printed with its completion, with --chat the answer alone. With --out=FILE.jsonl prompts, also those of a data --source,
become documents with the model's own responses, to be trained on; the same command goes on where one was stopped.
On a terminal a single prompt's blocks appear as they finish.
Of several prompts those that are empty, too long or hold the mask token are refused by their index (the first is 0),
the others are completed, and the exit code is 2."""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from edlm_jax.commands.arguments import add_shared, check_numbers, chosen_dtype, chosen_mesh
from edlm_jax.errors import InputError, PartlyRefusedError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    from edlm_jax.decoding.modes import add_mode_arguments  # the options are the modes' own

    add = parser.add_argument
    add_shared(parser, "model")
    add("--prompt", action="append", default=[], metavar="TEXT", help="a prompt; may be repeated")
    add("--prompts-file", metavar="FILE", help="prompts, one a line; - reads stdin")
    what = "with --out: a .jsonl or .parquet file of prompts or messages, or an entry of config.data.sources"
    add("--source", metavar="SOURCE", help=what)
    add("--out", metavar="FILE", help="write prompts with their responses to it, as JSON lines")
    add("--chat", action="store_true", help="put each prompt into the tokenizer's chat template")
    add_mode_arguments(parser)
    add("--max-new-tokens", type=int, default=128, metavar="N", help="at most this many a prompt (128)")
    add("--stop", action="append", default=[], metavar="TEXT", help="end before it; may be repeated")
    add("--batch-size", type=int, default=32, metavar="N", help="prompts decoded at a time (32)")
    add("--temperature", type=float, default=0.0, metavar="T", help="0 takes the best token (0)")
    add("--top-k", type=int, default=0, metavar="K", help="sample among the K best tokens (0: all)")
    add("--top-p", type=float, default=1.0, metavar="P", help="and the smallest set that holds P (1)")
    add("--seed", type=int, default=0, help="of the sampling (0)")
    add_shared(parser, "dtype", "tensor")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the texts and the counts."""
    check_numbers(args, "batch_size")
    if args.out:
        from edlm_jax.commands.responses import write_responses

        return write_responses(args)
    if args.source:
        raise InputError("--source is for --out=FILE, which takes its prompts with their responses")
    prompts = read_prompts(args)
    from edlm_jax.decoding import Decoder, refuse_prompts
    from edlm_jax.decoding.prompts import row_seeds
    from edlm_jax.evaluation.batches import decode_batches
    from edlm_jax.pretrained import Text, load_pretrained, load_spec, load_tokenizer
    from edlm_jax.pretrained.chat import encode_prompt
    from edlm_jax.reports.progress import Progress

    spec, tokenizer = load_spec(args.model), load_tokenizer(args.model)
    decoding, mesh = settings(args, spec, Text.of(spec, tokenizer), args.chat), chosen_mesh(args)
    tokens = [encode_prompt(tokenizer, prompt, args.chat) for prompt in prompts]
    said = [row if prompt.strip() else [] for prompt, row in zip(prompts, tokens, strict=True)]  # blank: empty
    reasons = refuse_prompts(spec, said, **decoding)
    refused = [{"index": index, "prompt": prompts[index], "reason": reason} for index, reason in reasons.items()]
    if len(prompts) == 1 and refused:
        raise InputError(refused[0]["reason"])
    kept, seeds = [i for i in range(len(prompts)) if i not in reasons], row_seeds(args.seed, len(prompts)).tolist()
    streamed = len(prompts) == 1 and sys.stdout.isatty() and not args.json
    if streamed:
        decoding["on_block"] = _Printer(decoding["detokenize"], tokens[0], args.chat)
        if not args.chat:
            print(prompts[0], end="", flush=True)
    decoded, seconds, several = [], 0.0, len(kept) > args.batch_size
    if kept:  # what can be refused has been: only now the weights are read
        decoder = Decoder(load_pretrained(args.model, dtype=chosen_dtype(args), mesh=mesh), take=True)
        how = dict(batch_size=min(args.batch_size, len(kept)), seeds=[seeds[i] for i in kept], **decoding)
        start = time.perf_counter()
        with Progress(len(kept), "prompts", live=several) as progress:
            how |= dict(on_batch=progress.done) if several else {}
            decoded = decode_batches(decoder, [tokens[i] for i in kept], **how)
        seconds = time.perf_counter() - start
    if streamed:  # with a stop string the text may go on where its last token is left out
        decoding["on_block"].show(_answer(decoded[0].text, args.chat))
    completions = [
        {"index": i, "prompt": prompts[i], "text": _answer(row.text, args.chat), "new_tokens": len(row.tokens)}
        for i, row in zip(kept, decoded, strict=True)
    ]
    result = {"mode": decoding["mode"].name, "completions": completions, "streamed": streamed}
    return with_refused(result | counts(decoded, seconds), refused, len(prompts))


def counts(decoded, seconds: float) -> dict[str, Any]:
    """Of what was decoded, and how fast, compilation included."""
    new_tokens = sum(len(row.tokens) for row in decoded)
    return {
        "new_tokens": new_tokens,
        "tokens_per_forward": new_tokens / max(sum(row.denoise_forwards for row in decoded), 1),
        "tokens_per_second": new_tokens / seconds if decoded else 0.0,
        "seconds": seconds,
    }


def with_refused(result: dict[str, Any], refused: list[dict[str, Any]], count: int) -> dict[str, Any]:
    """The result, raised where prompts were refused."""
    result["refused"] = refused
    if refused:
        indices = ", ".join(str(entry["index"]) for entry in refused)
        raise PartlyRefusedError(f"{len(refused)} of {count} prompts were refused: {indices}", result)
    return result


def show(result: dict[str, Any], args: argparse.Namespace) -> None:
    """Print each prompt with its completion, or the answer to it, then what was refused and the counts."""
    if args.out:
        cut = f", {result['cut']} of them cut at --max-new-tokens={args.max_new_tokens}" if result["cut"] else ""
        print(f"{result['responses']} responses in {args.out}, {result['written']} of them new{cut}", file=sys.stderr)
    for completion in result["completions"]:
        given = "" if args.chat else completion["prompt"]
        print("" if result["streamed"] else given + completion["text"])
        print()
        if not completion["text"].strip():
            print(f"the answer to prompt {completion['index']} is empty", file=sys.stderr)
    for entry in result["refused"]:
        print(entry["reason"], file=sys.stderr)
    print(
        f"{result['new_tokens']} tokens, {result['tokens_per_forward']:.2f} per forward, "
        f"{result['tokens_per_second']:.1f} per second (compilation included)",
        file=sys.stderr,
    )


class _Printer:
    """Prints the text of one row as far as it is whole: a character cut in half waits for its other half."""

    def __init__(self, text, prompt: list[int], chat: bool):
        self.text, self.prompt, self.chat, self.printed = text, prompt, chat, 0

    def __call__(self, tokens: list[list[int]]) -> None:
        from edlm_jax.pretrained.text import read_after

        self.show(_answer(read_after(self.text.shown, self.prompt, tokens[0]).rstrip("\ufffd"), self.chat))

    def show(self, text: str) -> None:
        """Prints what of this text is new."""
        print(text[self.printed :], end="", flush=True)
        self.printed = len(text)


def _answer(text: str, chat: bool) -> str:
    """What is said: the white space around an answer is its chat template's."""
    return text.strip() if chat else text


def settings(args, spec, text, chat: bool) -> dict[str, Any]:
    """The decoder's arguments, checked."""
    from edlm_jax.decoding import Sampling, check_settings
    from edlm_jax.decoding.modes import mode_of

    decoding = dict(
        mode=mode_of(args, spec),
        limit=args.max_new_tokens,
        sampling=Sampling(args.temperature, args.top_k, args.top_p),
        ends=text.ends,
        stop=[*args.stop, *([text.turn_stop] if chat and text.turn_stop else [])],
        detokenize=text,
    )
    check_settings(spec, seed=args.seed, **decoding)
    return decoding


def read_prompts(args: argparse.Namespace) -> list[str]:
    """Those of --prompt, then those of --prompts-file or of stdin; InputError if there are none."""
    prompts = list(args.prompt)
    if args.prompts_file or (not prompts and not sys.stdin.isatty()):
        prompts += _read_lines(args.prompts_file or "-")
    if not prompts:
        raise InputError("no prompt: give --prompt, --prompts-file or text on stdin")
    return prompts


def _read_lines(name: str) -> list[str]:
    from edlm_jax.data.files import decode  # brings numpy

    try:
        text = decode(sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes(), f"--prompts-file={name}")
    except OSError as error:
        raise InputError(f"cannot read --prompts-file={name}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"prompts in {name} are not UTF-8: byte {error.start}") from None
    lines = text.removesuffix("\n").split("\n")
    return lines if any(line.strip() for line in lines) else []  # an empty line keeps its index, an empty file has none
