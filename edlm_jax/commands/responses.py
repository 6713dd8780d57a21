"""`edlm generate --out`: prompts of a source or of a file become documents with the model's own responses."""

import argparse
import ast
import time
from pathlib import Path
from typing import Any

from edlm_jax.commands.arguments import chosen_dtype, chosen_mesh
from edlm_jax.commands.evaluate import file_source
from edlm_jax.commands.generate import counts, read_prompts, settings, with_refused
from edlm_jax.errors import InputError


def write_responses(args: argparse.Namespace) -> dict[str, Any]:
    """Decode what --out does not have yet; returns the counts."""
    from edlm_jax.decoding import Decoder, refuse_prompts
    from edlm_jax.decoding.prompts import row_seeds
    from edlm_jax.evaluation.responses import ResponseFile, encode_question, fingerprint, respond
    from edlm_jax.pretrained import Text, load_pretrained, load_spec, load_tokenizer
    from edlm_jax.pretrained.source import find_directory
    from edlm_jax.reports.progress import Progress

    spec, tokenizer = load_spec(args.model), load_tokenizer(args.model)
    questions, reasons, count = _read_questions(args)
    text, chat = Text.of(spec, tokenizer), any("messages" in question for question in questions.values())
    decoding, mesh = settings(args, spec, text, chat), chosen_mesh(args)
    sampling = {name: vars(args)[name] for name in ("max_new_tokens", "temperature", "top_k", "top_p", "seed", "chat")}
    record = dict(model=fingerprint(find_directory(args.model)), mode=str(decoding["mode"]), **sampling)
    record |= dict(stop=decoding["stop"], dtype=chosen_dtype(args))
    with ResponseFile(Path(args.out), record) as out:
        out.check_questions(questions)
        prompts: dict[int, list[int]] = {}
        for i in sorted(questions.keys() - out.done.keys()):
            try:
                prompts[i] = encode_question(questions[i], tokenizer)
            except InputError as error:
                reasons[i] = f"prompt {i}: {error}"
        places, names = list(prompts), [f"prompt {i}" for i in prompts]
        refused = refuse_prompts(spec, list(prompts.values()), names=names, **decoding)
        reasons |= {places[place]: reason for place, reason in refused.items()}
        prompts = {i: prompts[i] for i in places if i not in reasons}
        if not prompts and not out.done:
            raise InputError(f"there is nothing to answer: {reasons[min(reasons)]}")
        decoded, start = [], time.perf_counter()
        if prompts:
            decoder = Decoder(load_pretrained(args.model, dtype=chosen_dtype(args), mesh=mesh), take=True)
            seeds, start = row_seeds(args.seed, count).tolist(), time.perf_counter()
            how = dict(batch_size=args.batch_size, seeds=[seeds[i] for i in prompts], **decoding)
            with Progress(len(prompts), "prompts") as progress:
                for batch in respond(decoder, questions, prompts, out, **how):
                    decoded += batch
                    progress.done(len(decoded))
        there = len(out.done)
    cut = sum(len(row.tokens) >= args.max_new_tokens and row.tokens[-1] not in text.ends for row in decoded)
    rates = counts(decoded, time.perf_counter() - start)
    written = {"responses": there + len(decoded), "written": len(decoded), "cut": cut}
    result = {"mode": decoding["mode"].name, "out": args.out, **written, "completions": [], "streamed": False, **rates}
    return with_refused(result, [{"index": i, "reason": reasons[i]} for i in sorted(reasons)], count)


def _read_questions(args) -> tuple[dict[int, dict[str, Any]], dict[int, str], int]:
    """(what is asked, by its place, why there is nothing to ask at other places, how many places there are)."""
    from edlm_jax.data.sources import open_source
    from edlm_jax.evaluation.responses import question_of

    if args.source and (args.prompt or args.prompts_file):
        raise InputError("--source has prompts of its own: give it or --prompt and --prompts-file, not both")
    source = open_source(_source(args.source)) if args.source else [dict(prompt=p) for p in read_prompts(args)]
    questions, reasons = {}, {}
    for index in range(len(source)):
        try:
            questions[index] = question_of(source[index], args.chat)
        except InputError as error:
            where = source.locate(index) if hasattr(source, "locate") else f"document {index}"
            reasons[index] = f"{where}: {error}"
    if not questions:
        raise InputError(f"there is nothing to answer: {reasons[0]}")
    return questions, reasons, len(source)


def _source(text: str) -> dict[str, Any]:
    if not text.startswith("{"):
        return file_source("--source", text, "{'kind': ...}")
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        raise InputError(f"--source={text} is no dict such as {{'kind': 'jsonl', 'path': 'a.jsonl'}}") from None
