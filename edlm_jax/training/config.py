"""The training config: every field once, its default, what values it may have, and when two configs are one run."""

import json
import math
from collections.abc import Iterable, Iterator
from operator import attrgetter
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict, config_dict

from edlm_jax.diffusion.registry import NOISES, TERMS
from edlm_jax.diffusion.streams import ALIGNMENTS, LAYOUTS
from edlm_jax.errors import InputError
from edlm_jax.models.lora import TARGETS
from edlm_jax.models.spec import ADAPTED, GRIDS, PREFILLS
from edlm_jax.models.transformer import REMAT_POLICIES
from edlm_jax.pretrained.mask_token import STARTS
from edlm_jax.training.optimizer import SCHEDULES

CHOICES = {
    "dtype": ("bfloat16", "float32"),
    "remat": (*REMAT_POLICIES, "auto"),
    "init.mask_embedding": STARTS,
    "init.adapters": ("new", "keep"),
    "lora.columns": ADAPTED,
    "objective.grid": GRIDS,
    "objective.pattern": tuple(LAYOUTS),
    "objective.noise": tuple(NOISES),
    "objective.alignment": ALIGNMENTS,
    "objective.prefill": ("auto", *PREFILLS),
    "optimizer.schedule": tuple(SCHEDULES),
}
_POSITIVE = ("steps", "log_every", "checkpoint.keep_last", "data.batch_size", "data.length", "data.shards")
_POSITIVE += ("data.eval_batches", "objective.block_length", "optimizer.learning_rate", "optimizer.eps", "lora.alpha")
_NOT_NEGATIVE = ("seed", "eval_every", "checkpoint.every", "checkpoint.keep_every", "objective.noisy_length")
_NOT_NEGATIVE += ("objective.anneal_steps", *(f"objective.{name}_weight" for name in TERMS), "optimizer.weight_decay")
_NOT_NEGATIVE += ("optimizer.final_learning_rate", "optimizer.warmup_steps", "optimizer.decay_steps", "lora.rank")
_NOT_NEGATIVE += ("optimizer.clip_norm", "optimizer.accumulation", "data.max_skipped")
_LARGEST = float(np.finfo(np.float32).max)
_TYPES = {float: (int, float), tuple: (tuple, list)}  # of values, by the type of the default
# A run may be continued with other values of these: none of them changes what a step computes from its state and batch,
# except `steps`, which is how a run is made longer.
RESUMABLE = ("steps", "log_every", "eval_every", "checkpoint", "mesh", "remat", "attention_tiles", "evaluation")
RESUMABLE += ("data.max_skipped",)


def default_config() -> ConfigDict:
    """The defaults that every configs/*.py starts from."""
    c = ConfigDict()
    c.seed = 0  # of the random initialisation, the order of the data and the noise
    c.dtype = "bfloat16"  # of the computation; what is trained, gradients and moments are always float32
    c.remat = "none"  # what the backward pass computes again: none | dots | save_attention | full; auto = what must be
    c.attention_tiles = ()  # (queries, keys) that attention computes at once; () = the backend's own
    c.steps = 1000  # optimizer steps in all
    c.log_every = 10  # steps between lines of metrics.jsonl
    c.eval_every = 0  # steps between held-out losses; 0 = only at the end
    c.init = config_dict.create(
        path="",  # HF directory or hub id to start from; "" = random weights of init.hf_config
        hf_config=ConfigDict(),  # a config.json as a dict; beside a path its shape, known without downloading it
        mask_token_id=-1,  # -1 = chosen by tokenizer family
        mask_embedding="keep",  # how the mask token's embedding starts: keep | mean | noise
        adapters="new",  # how those of noisy columns start; keep = as they lie beside init.path: a longer training
    )
    c.lora = config_dict.create(  # adapters on the matrices of attention and FFN, which then stay as they are
        rank=0,  # 0 = full training
        alpha=32.0,  # weighs them by alpha / rank; not published for Efficient-DLM
        columns="all",  # that they act on; noisy = the clean stream stays the AR model: nothing else is trained
        targets=(),  # the matrices, of q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj; () = all
    )
    c.objective = config_dict.create(
        pattern="clean_context",  # causal (= AR) | bidirectional | block_causal | clean_context | semi_block | ...
        alignment="same_position",  # logit i predicts token i; shifted = token i + 1 (AR always is)
        block_length=16,  # C; also the grid on which packed documents start
        grid="response",  # blocks are counted from the response's start, or from "position" 0, as servers do
        noisy_length=0,  # columns of the noisy stream, dealt to the blocks that carry loss; 0 = each block once
        random_block_lengths=(),  # one of these is drawn per step; each divides block_length; () = always block_length
        curriculum=(),  # (block length, steps) of each stage before block_length; each divides the row
        noise="masks",  # complementary = each block twice, the second copy hides what the first one shows
        group=1,  # of noise="chain": blocks that are noisy together, as several are in flight (mode multi_block)
        anneal_steps=0,  # of pattern="bidirectional": attention grows from causal meanwhile; forms all scores
        states="",  # of noise="visited": a file that `edlm generate --out` wrote
        teacher="",  # of teacher_weight: a model that was converted in smaller blocks, and stays as it is
        half_life=0.1,  # lambda of the position-weighted mask; inf = uniform in a block; None = one uniform t per row
        prefill="auto",  # written into the export: how a prompt attends to itself; auto = as trained
        # ar_weight: of the AR loss on a token-causal clean stream alone (the successor uses 1.0 with 0.3 of the next);
        # diffusion_weight: of the diffusion loss; and so on, by diffusion/registry.py.
        **{f"{name}_weight": term.default for name, term in TERMS.items()},
    )
    c.data = config_dict.create(
        batch_size=8,  # rows of the global batch
        length=512,  # L, tokens of a row
        tokenizer="",  # directory of the tokenizer; "" = init.path
        sources=(),  # dict(kind=..., path=..., weight=...) each
        eval_sources=(),  # the held-out set, the same way; () = no held-out loss
        eval_batches=16,  # at most this many batches of it
        shards=1,  # streams that make a batch; with many processes as many of them, else each tokenises all documents
        packing="first_fit",
        shuffle=True,
        max_skipped=0.01,  # share of a source's documents that may be of no use (odd lines); more are an error
    )
    c.optimizer = config_dict.create(
        learning_rate=1e-5,  # the peak
        final_learning_rate=3e-6,  # that the step after the last would have; unused by "constant"
        schedule="cosine",  # cosine | wsd (warm-up, stable, linear decay) | constant
        warmup_steps=0,  # linear
        decay_steps=0,  # of wsd: the last steps, of which the first still has the peak
        beta1=0.9,
        beta2=0.95,
        eps=1e-8,
        weight_decay=0.1,  # on matrices: not on norms, biases and the embedding
        clip_norm=1.0,  # of the global gradient; 0 = off
        accumulation=1,  # micro-batches of a step; 0 = the fewest that fit into memory (fitting.py)
    )
    c.checkpoint = config_dict.create(
        every=1000,  # steps; the last step is always saved; 0 = only the last
        keep_last=2,
        keep_every=0,  # keep those at multiples of this for ever; 0 = none
    )
    c.evaluation = config_dict.create(  # what `edlm convert` measures afterwards; training does not read it
        tasks=(),  # dict(task=NAME, path=...), or held-out sources of prompts with one right response each
        thresholds=(1.0, 0.9, 0.8),  # of the converted model's decoding; 1.0 = one token per forward
        batch_size=32,  # rows decoded at a time for the accuracy
        timed_prompts=8,  # prompts whose tokens/s are measured, one at a time
    )
    c.mesh = config_dict.create(data=1, fsdp=-1, tensor=1, context=1)  # devices per axis; -1 = what is left
    # data=0 is one for each TPU slice: between slices the network is slow, and `data` alone crosses it.
    return c


def validate(c: ConfigDict) -> None:
    """Raises InputError for a field that there is not, or a value that no run should start from."""
    _check_fields(c, default_config(), "")
    for path, choices in CHOICES.items():
        if (value := attrgetter(path)(c)) not in choices:
            raise InputError(f"config.{path}={value!r} is unknown; choose one of {', '.join(choices)}")
    for path in (*_POSITIVE, *_NOT_NEGATIVE):
        value = attrgetter(path)(c)
        least = "positive" if path in _POSITIVE else "zero or more"
        if value < 0 or (value == 0 and path in _POSITIVE):
            raise InputError(f"config.{path} must be {least}, not {value}")
    if not c.init.path and not c.init.hf_config:
        raise InputError("set config.init.path (a checkpoint) or config.init.hf_config (random weights)")
    refuse(_refusals(c), "config.")


def refuse(rows: Iterable[tuple[Any, str]], what: str) -> None:
    """Raises InputError for the first of (is it so?, why that is wrong); later rows may build on earlier ones."""
    for wrong, reason in rows:
        if wrong:
            raise InputError(what + reason)


def _refusals(c: ConfigDict) -> Iterator[tuple[Any, str]]:
    """Of one field beside another."""
    o, p, lora, tiles = c.objective, c.optimizer, c.lora, c.attention_tiles
    yield c.seed >= 2**63, f"seed must be below 2**63, not {c.seed}"
    sizes = len(tiles) == 2 and all(isinstance(size, int) and size > 0 for size in tiles)
    yield tiles and not sizes, f"attention_tiles must be two sizes (queries, keys), or (), not {tuple(tiles)}"
    rows, count = c.data.batch_size, p.accumulation
    yield rows % max(count, 1), f"data.batch_size={rows} is not divisible by config.optimizer.accumulation={count}"

    steps = p.warmup_steps + (p.decay_steps if p.schedule == "wsd" else 0)
    yield steps > c.steps, f"optimizer: warm-up and decay are longer than config.steps={c.steps}"
    yield p.schedule == "wsd" and p.decay_steps < 1, "optimizer.schedule='wsd' needs decay_steps of at least 1"
    for name in ("beta1", "beta2"):
        yield not 0 <= p[name] < 1, f"optimizer.{name} must be in [0, 1), not {p[name]}"

    noisy, clean = lora.columns == "noisy", [name for name, layout in LAYOUTS.items() if layout.two_streams]
    yield lora.rank and not c.init.path, "lora.rank > 0 needs config.init.path: random weights have nothing to adapt"
    for name in lora.targets:
        yield name not in TARGETS, f"lora.targets: {name!r} is unknown; choose among {', '.join(TARGETS)}"
    merged = c.init.adapters == "keep" and not noisy
    yield merged, "init.adapters='keep' needs config.lora.columns='noisy': others are merged"
    yield noisy and not lora.rank, "lora.columns='noisy' needs config.lora.rank > 0: adapters are all that is trained"
    lack = f"a clean stream beside the noisy one, which pattern={o.pattern!r} has not; choose one of {', '.join(clean)}"
    yield noisy and o.pattern not in clean, f"lora.columns='noisy' needs {lack}"
    moved = noisy and c.init.mask_embedding != "keep"
    yield moved, "lora.columns='noisy' leaves embeddings as they are: set init.mask_embedding='keep'"

    visited, other_lengths = o.noise == "visited", "curriculum and random_block_lengths"
    yield o.states and not visited, f"objective.states is read under noise='visited' alone, not {o.noise!r}"
    several = visited and (o.curriculum or o.random_block_lengths)
    yield several, f"objective.noise='visited' has states of block_length alone: leave out {other_lengths}"
    lack = "which tokens of a prompt a first block began with is not in the file of responses"
    yield visited and o.grid != "response", f"objective.noise='visited' needs grid='response': {lack}"
    yield o.group != 1 and o.noise != "chain", f"objective.group > 1 needs noise='chain', not {o.noise!r}"
    annealed = o.anneal_steps and o.pattern != "bidirectional"
    yield annealed, f"objective.anneal_steps > 0 needs pattern='bidirectional', not {o.pattern!r}"

    chain, silent = o.teacher and o.noise == "chain", o.teacher and not LAYOUTS[o.pattern].noisy
    yield chain, "objective.teacher reads clean text before each block, which noise='chain' has not"
    yield silent, f"objective.teacher speaks of noise, and pattern={o.pattern!r} has none"
    unequal = bool(o.teacher) != bool(o.teacher_weight)
    yield unequal, "objective.teacher and teacher_weight > 0 need each other: set both or neither"


def to_json(c: ConfigDict) -> str:
    """The resolved config as it is written to the work directory."""
    return json.dumps(c.to_dict(), indent=2, default=list)


def differing_keys(ours: dict, stored: dict) -> list[str]:
    """Dotted names of the fields, but those of RESUMABLE, in which a config and an older run's differ, both from JSON.

    What did not exist yet when that run wrote it was as its default is, by which it ran.
    """
    defaults = json.loads(to_json(default_config()))
    ours, stored, defaults = (flatten_dict(config, sep=".") for config in (ours, stored, defaults))
    stored = defaults | stored
    names = sorted(name for name in {*ours, *stored} if ours.get(name) != stored.get(name))
    return [name for name in names if not any(f"{name}.".startswith(f"{group}.") for group in RESUMABLE)]


def _check_fields(c: ConfigDict, defaults: ConfigDict, path: str) -> None:
    """Same fields, same types: an int may stand for a float, None or inf for half_life."""
    unknown, missing = sorted(set(c) - set(defaults)), sorted(set(defaults) - set(c))
    if unknown or missing:
        what = f"unknown field config.{path}{unknown[0]}" if unknown else f"config.{path}{missing[0]} is missing"
        raise InputError(f"{what}; the fields are {', '.join(sorted(defaults))}")
    for name, default in defaults.items():
        value, where, types = c[name], f"config.{path}{name}", _TYPES.get(type(default), type(default))
        if where == "config.init.hf_config" or (where == "config.objective.half_life" and value in (None, math.inf)):
            continue
        if isinstance(default, ConfigDict):
            if not isinstance(value, ConfigDict):
                raise InputError(f"{where} must be a group of fields, not {value!r}")
            _check_fields(value, default, f"{path}{name}.")
        elif isinstance(value, bool) != isinstance(default, bool) or not isinstance(value, types):
            raise InputError(f"{where} must be {type(default).__name__}, not {type(value).__name__} ({value!r})")
        elif isinstance(default, float) and not abs(value) <= _LARGEST:
            raise InputError(f"{where} must be a number that a float32 holds, not {str(value)[:40]}")
