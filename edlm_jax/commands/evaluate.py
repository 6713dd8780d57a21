"""Measure a model.

  a task    accuracy, tokens per forward and tokens/s at batch 1; a converted model at each threshold
  heldout   nats per token: next-token loss of an AR model, the diffusion bound of a converted one
  retrieval how often a docstring finds its function's body, by mean-pooled hidden states, under each attention

Tasks: `tasks` are prompts with one right response, generated or of --data; `humaneval` and `mbpp` run the programs that
the model writes, as you and in no sandbox, against the tests of --data; `multiple_choice` compares likelihoods;
`reach` moves a simulated arm; `reading` asks a chat model what short texts say, 300 questions or reading:size=N.

With --baseline, the AR model stands beside the converted one in the same engine. With --sweep, tasks are decoded at
every threshold in blocks of every length: sweep.json and sweep.png show accuracy against tokens per forward and
tokens/s."""

import argparse
import sys
from pathlib import Path
from typing import Any

from edlm_jax.commands.arguments import add_shared, check_numbers, chosen_dtype, chosen_mesh, read_numbers
from edlm_jax.errors import InputError, PartlyRefusedError

MEASURES = ("heldout", "retrieval")  # beside tasks
GENERATED = ("tasks", "stdlib")  # held-out splits of sources that need no file
KIND_OF_SUFFIX = {".txt": "text", ".jsonl": "jsonl", ".parquet": "parquet"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    from edlm_jax.evaluation.tasks import TASKS

    add = parser.add_argument
    add_shared(parser, "model")
    names = "{" + ",".join([*TASKS, *MEASURES]) + "}"
    what = "what to measure; a task of a file may be told more: humaneval:max_new_tokens=256,seconds=5 (tasks)"
    add("--task", default="tasks", metavar=names, help=what)
    add("--baseline", metavar="DIR", help="AR model to compare with")
    what = f"{', '.join(GENERATED)} (the defaults of tasks and heldout), or a file ({', '.join(KIND_OF_SUFFIX)})"
    add("--data", metavar="SOURCE", help=f"{what}; tasks need prompt and response columns")
    add("--count", type=int, default=256, metavar="N", help="generated tasks, or functions (256)")
    add("--rows", type=int, metavar="N", help="of --task=heldout, of up to 512 tokens each (512)")
    add("--thresholds", default="1,0.9,0.8", metavar="P,P", help="of a converted model (1,0.9,0.8)")
    add("--sweep", action="store_true", help="measure thresholds x block lengths")
    add("--block-lengths", metavar="C,C", help="of a sweep (half, once and twice the model's own)")
    add("--out", default="sweep", metavar="DIR", help="where a sweep writes its two files (sweep)")
    add("--batch-size", type=int, default=32, metavar="N", help="rows decoded at a time (32)")
    add("--timed-prompts", type=int, default=8, metavar="N", help="prompts timed at batch 1 (8)")
    add_shared(parser, "dtype", "tensor", "markdown")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the parts of a report that were measured."""
    args.thresholds = read_numbers(args, "thresholds", float, 0, 1)
    check_numbers(args, "count", "batch_size", "timed_prompts", "rows")
    if args.rows and args.task != "heldout":
        raise InputError(f"--rows is for --task=heldout; --task={args.task} takes --count")
    source, out = choose_source(args), Path(args.out)
    if args.block_lengths and not args.sweep:
        raise InputError("--block-lengths is for --sweep; without it the model's own block length is measured")
    if args.sweep and args.task in MEASURES:
        raise InputError("--sweep measures task accuracy; use it with --task=tasks")
    if args.sweep and out.exists() and not out.is_dir():
        raise InputError(f"--out={out} is not a directory")
    args.block_lengths = read_numbers(args, "block_lengths", int) if args.block_lengths else []
    from edlm_jax.pretrained import Text, load_pretrained
    from edlm_jax.reports.report import describe_machine, write_report

    paths, specs = _choose_models(args)
    text = Text.of(next(reversed(specs.values())), load_common_tokenizer(args.model, specs.get("ar"), args.baseline))
    prepare = {"heldout": _heldout, "retrieval": _retrieval}.get(args.task, _tasks)
    measure, refused, on_all = prepare(args, specs, source, text)  # what can be refused is, before a weight is read
    if args.tensor is not None and not on_all:
        raise InputError(f"--tensor is for heldout and what is decoded; --task={args.task} runs on one device")
    dtype, mesh = chosen_dtype(args), chosen_mesh(args) if on_all else None
    models = {mode: load_pretrained(path, dtype=dtype, mesh=mesh) for mode, path in paths.items()}
    result = {"model": args.model, "dtype": dtype, **measure(models), "refused": refused, **describe_machine()}
    if args.sweep:
        from edlm_jax.reports.picture import plot_sweep

        write_report(result, out / "sweep.json")
        plot_sweep(result, out / "sweep.png")
        print(f"sweep: {out}/sweep.json, {out}/sweep.png", file=sys.stderr)
    return whole(result)


def show(result: dict[str, Any], args: argparse.Namespace) -> None:
    """Print the tables."""
    from edlm_jax.reports.report import print_report

    print_report(result, markdown=args.markdown)


def whole(result: dict[str, Any]) -> dict[str, Any]:
    """The result, if nothing was refused; else a PartlyRefusedError with it, which names what was."""
    if not result["refused"]:
        return result
    documents = ", ".join(entry["document"] for entry in result["refused"])
    raise PartlyRefusedError(f"{len(result['refused'])} tasks were refused, the others measured: {documents}", result)


def load_common_tokenizer(model: str, baseline_spec, baseline: str | None):
    """The tokenizer of a model, whose tokens its baseline, if there is one, has to know, too."""
    from edlm_jax.pretrained import load_tokenizer
    from edlm_jax.pretrained.encode import id_limit

    tokenizer = load_tokenizer(model)
    if baseline and baseline_spec.vocab_size < id_limit(tokenizer):
        raise InputError(
            f"{baseline} embeds {baseline_spec.vocab_size} tokens, less than {model}'s tokenizer has: it is not the AR "
            "model that this one was made from"
        )
    return tokenizer


def _choose_models(args) -> tuple[dict[str, str], dict[str, Any]]:
    """(the directory, the spec) of what is measured, by mode; the model itself comes last."""
    from edlm_jax.pretrained import load_spec

    spec = load_spec(args.model)
    why = "was never converted" if spec.conversion is None else "has adapters that draft, its text is the AR model's"
    for option in ("baseline", "sweep"):
        if vars(args)[option] and not spec.diffuses:
            raise InputError(f"{args.model} {why}; --{option} is for a converted model")
    if not spec.diffuses:
        return {"ar": args.model}, {"ar": spec}
    if not args.baseline:
        return {"diffusion": args.model}, {"diffusion": spec}
    return {"ar": args.baseline, "diffusion": args.model}, {"ar": load_spec(args.baseline), "diffusion": spec}


# --- Each: what is checked and read before the models are, then (what measures, those refused, on all devices?) ---


def _tasks(args, specs, source, text):
    from edlm_jax.decoding import Decoder
    from edlm_jax.evaluation.compare import AR, compare, modes_at
    from edlm_jax.evaluation.tasks import choose_questions, decoded_questions, load_tasks, need_decoded
    from edlm_jax.evaluation.tasks.task import Way

    tasks = load_tasks([source], text.tokenizer)
    spec, side = specs.get("diffusion"), lambda mode: "ar" if mode == AR else "diffusion"
    if args.sweep:
        own = spec.conversion.block_length
        args.block_lengths = args.block_lengths or sorted({max(own // 2, 1), own, 2 * own})
        if (longest := max(args.block_lengths)) > spec.max_length:
            raise InputError(f"--block-lengths: {longest} is longer than the model's {spec.max_length}")
        tasks = need_decoded(tasks)
    modes = [AR] if "ar" in specs else []
    modes += modes_at(spec.conversion.layout, args.thresholds, args.block_lengths or [None]) if spec else []
    tasks, refused = choose_questions(tasks, [(specs[side(mode)], mode) for mode in modes])
    decodes = bool(decoded_questions(tasks))
    if args.sweep:  # what cannot be written to is told before hours of measuring
        Path(args.out).mkdir(parents=True, exist_ok=True)

    def measure(models):
        decoders = {name: Decoder(model, take=decodes) for name, model in models.items()}
        ways = [Way(decoders[side(mode)], mode, models[side(mode)]) for mode in modes]
        found = compare(ways, tasks, text, batch_size=args.batch_size, timed_prompts=args.timed_prompts)
        if args.sweep:
            found["sweep"] = found.pop("diffusion")
        return found

    return measure, refused, decodes


def _heldout(args, specs, source, text):
    from edlm_jax.data.sources import open_source
    from edlm_jax.diffusion.streams import AUTOREGRESSIVE
    from edlm_jax.evaluation.heldout import ROWS, heldout_data, heldout_loss, heldout_rows

    open_source(source)
    spec = next(reversed(specs.values()))
    data = heldout_rows(spec, source, batch_size=args.batch_size, rows=args.rows or ROWS)
    layouts = {"ar": AUTOREGRESSIVE, "diffusion": spec.conversion and spec.conversion.layout}

    def measure(models):
        tokenizer, mask_id = text.tokenizer, spec.conversion.mask_token_id if spec.conversion else None
        losses = {mode: heldout_loss(model, data, tokenizer, layouts[mode]) for mode, model in models.items()}
        return {"heldout_loss": losses, "heldout_data": heldout_data(data, tokenizer, mask_id)}

    return measure, [], True


def _retrieval(args, specs, source, text):
    from edlm_jax.evaluation.embedding import attentions, documented_functions, retrieval

    pairs, ways = documented_functions(args.count), {mode: attentions(spec) for mode, spec in specs.items()}

    def measure(models):
        found: dict[str, dict] = {mode: {} for mode in models}
        for mode, model in models.items():
            for name, way in ways[mode].items():
                found[mode][name] = retrieval(model, text.tokenizer, pairs, pattern=way)
        return {"retrieval": found}

    return measure, [], False


def choose_source(args: argparse.Namespace) -> dict[str, Any]:
    """The data source, as an entry of config.data.sources; of a task, as one of config.evaluation.tasks."""
    if args.task == "retrieval" and args.data:
        raise InputError("--data is not for --task=retrieval, which reads the standard library")
    if args.task not in ("tasks", *MEASURES):
        from edlm_jax.evaluation.tasks import TASKS, parse_task, reads_file

        name = args.task.partition(":")[0]
        if name not in TASKS:
            raise InputError(f"--task={args.task} is unknown; choose one of {', '.join([*TASKS, *MEASURES])}")
        entry = parse_task(args.task) | ({"path": args.data} if args.data else {})
        if reads_file(name) and "path" not in entry:
            raise InputError(f"--task={args.task} needs --data=FILE, its JSON lines")
        return entry
    name = args.data or ("tasks" if args.task == "tasks" else "stdlib")
    if name in GENERATED:
        return {"kind": name, "split": "test"} | ({"size": args.count} if name == "tasks" else {})
    return file_source("--data", name, " nor ".join(GENERATED))


def file_source(option: str, path: str, others: str) -> dict[str, str]:
    """The data source that a file is by its name, compressed or not; refuses another name, which is none of others."""
    from edlm_jax.data.files import COMPRESSED

    bare = Path(path).with_suffix("") if Path(path).suffix in COMPRESSED else Path(path)
    if bare.suffix not in KIND_OF_SUFFIX:
        raise InputError(f"{option}={path} is neither a {', '.join(KIND_OF_SUFFIX)} file nor {others}")
    return {"kind": KIND_OF_SUFFIX[bare.suffix], "path": path}
