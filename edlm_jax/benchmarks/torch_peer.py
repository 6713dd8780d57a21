"""The conversion step as torch and transformers do it: the same streams, noise, mask and loss, and AdamW.

`edlm bench train` times it with FlexAttention, compiled, where torch and a GPU are; tests/benchmarks/train_step.py with
SDPA and the whole mask on CPU. The peer knows the diffusion loss at the same position; noise is drawn before it starts.
"""

import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from importlib.util import find_spec
from typing import Any

import jax
import numpy as np

from edlm_jax.attention import Pattern
from edlm_jax.benchmarks.attention import packed_row, whole_mask
from edlm_jax.benchmarks.training import packed_batch
from edlm_jax.diffusion import Batch, Corruption, example_keys
from edlm_jax.errors import InputError
from edlm_jax.models.spec import ModelSpec
from edlm_jax.training.initial import planned_spec
from edlm_jax.training.objective import Objective
from edlm_jax.training.run import Run

with suppress(ModuleNotFoundError):  # whoever measures asks `in_own_process`, which says so
    import torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention
    from torch.nn.functional import cross_entropy, pad
    from transformers import AutoConfig, AutoModelForCausalLM

_WARM_UP = 3


def in_own_process(function: Callable, *args) -> dict[str, Any]:
    """What `time_torch_step` or `flex_attention_time` finds on the one GPU, or why it found nothing.

    The process gives its memory back when it ends. Call this before jax has taken the GPU's.
    """
    if find_spec("torch") is None:
        return {"not_measured": "torch is not installed"}
    if torch.cuda.device_count() != 1:
        return {"not_measured": f"it runs on one GPU, and {torch.cuda.device_count()} are here"}
    try:
        how = dict(initializer=jax.config.update, initargs=("jax_platforms", "cpu"))  # the GPU is torch's
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), **how) as process:
            return process.submit(function, *args).result()
    except Exception as error:  # noqa: BLE001 (out of memory, a compiler that is missing: ours still counts)
        return {"not_measured": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}


def time_torch_step(run: Run, steps: int, attention: str, device: str) -> dict[str, Any]:
    """Median seconds of `steps` steps, and what follows from them."""
    spec = planned_spec(run.start)
    batch = packed_batch(spec.vocab_size, run.data.batch_size, run.data.length, run.data.block_length)
    step = torch_step(run, spec, batch, attention=attention, device=device)
    median, loss = _median_seconds(step, steps)
    rate = run.data.batch_size * run.data.length / median
    found = dict(seconds_per_step=median, tokens_per_second=rate, micro_batches=_micro_batches(run), loss=loss)
    return found | dict(attention=attention, torch=torch.__version__)


def flex_attention_time(run: Run, repeats: int, device: str) -> dict[str, Any]:
    """The median of `repeats` calls, forward and backward, on what `time_attention` times."""
    spec = planned_spec(run.start)
    pattern, segments_BT, copies_BM = packed_row(run, spec)
    mask, T = _block_mask(pattern, segments_BT, copies_BM, device), segments_BT.shape[1]
    kind = dict(device=device, dtype=getattr(torch, run.start.dtype), requires_grad=True)
    counts = (spec.num_heads, spec.num_kv_heads, spec.num_kv_heads)
    arrays = [torch.randn(1, heads, T, spec.head_dim, **kind) for heads in counts]
    attention = torch.compile(flex_attention) if device == "cuda" else flex_attention

    def call() -> None:
        attention(*arrays, block_mask=mask, enable_gqa=spec.num_heads > spec.num_kv_heads).sum().backward()
        if device == "cuda":
            torch.cuda.synchronize()

    return dict(milliseconds=1e3 * _median_seconds(call, repeats)[0], torch=torch.__version__)


def _median_seconds(call: Callable, repeats: int) -> tuple[float, Any]:
    """(the median of so many calls, after some that warm up; what the last one gave)."""
    seconds = []
    for _ in range(_WARM_UP + repeats):
        start = time.perf_counter()
        found = call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[_WARM_UP:]), found


def torch_step(run: Run, spec: ModelSpec, batch: Batch, *, attention: str, device: str) -> Callable[[], float]:
    """A function that does one AdamW step on `batch` and returns its loss; weights are random.

    Args:
      attention: transformers' name, "sdpa" (the whole mask) or "flex_attention" (tiles that nothing sees are skipped).
      device: "cpu" or "cuda"; on the latter everything is compiled.
    """
    if run.start.lora:
        raise InputError("the peer trains all weights: it knows no adapters")
    objective = run.objective.of_model(spec)
    noise = objective.corrupt(example_keys(jax.random.key(0), len(batch["tokens"])), batch)
    config = AutoConfig.for_model(**json.loads(spec.hf_json))
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention, trust_remote_code=False)
    model = model.float().to(device).train()
    if run.remat != "none":
        model.gradient_checkpointing_enable()
    o = run.optimizer
    settings = dict(lr=o.learning_rate, betas=(o.beta1, o.beta2), eps=o.eps, weight_decay=o.weight_decay)
    optimizer = torch.optim.AdamW(model.parameters(), fused=device == "cuda", **settings)
    parts = peer_inputs(objective, batch, noise, _micro_batches(run), attention=attention, device=device)
    loss_of = torch.compile(peer_loss) if device == "cuda" else peer_loss

    def step() -> float:
        total = 0.0
        for part in parts:
            with torch.autocast(device, torch.bfloat16, enabled=run.start.dtype == "bfloat16"):
                loss = loss_of(model, *part)
            loss.backward()
            total = total + loss.detach()
        if o.clip_norm > 0:
            torch.nn.utils.clip_grad_norm_(model.parameters(), o.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(total)

    return step


def _micro_batches(run: Run) -> int:
    """The config's; where that is 0, one row at a time, as nothing says how many fit."""
    return run.optimizer.accumulation or run.data.batch_size


def peer_inputs(
    objective: Objective, batch: Batch, noise: Corruption, count: int, *, attention: str, device: str
) -> list[tuple]:
    """For each of `count` micro-batches what `peer_loss` takes beside the model, on the device."""
    if objective.layout.shifted or [term.name for term in objective.terms] != ["diffusion"]:
        raise InputError("the peer knows the diffusion loss at the same position alone")
    columns = objective.streams(batch, noise).inputs
    tokens_BT, positions_BT, segments_BT = (columns[f"{name}_BT"] for name in ("tokens", "positions", "segment_ids"))
    targets_BM, masked_BM = np.asarray(noise.copied(batch["tokens"])), np.asarray(noise.masked_BM)
    weights_BM = masked_BM / np.asarray(noise.noise_level_BM) / masked_BM.sum()
    pattern = objective.layout.pattern(batch["tokens"].shape[1])
    parts = []
    for rows in np.split(np.arange(len(tokens_BT)), count):
        copies_BM = None if noise.copies_BM is None else noise.copies_BM[rows]
        if attention == "flex_attention":
            mask = _block_mask(pattern, segments_BT[rows], copies_BM, device)
        else:
            mask = _tensor(whole_mask(pattern, segments_BT[rows], copies_BM), device)[:, None]
        ids, positions, targets = (_tensor(x[rows], device).long() for x in (tokens_BT, positions_BT, targets_BM))
        weights = _tensor(weights_BM[rows], device).float()
        parts.append((dict(input_ids=ids, position_ids=positions), mask, targets, weights))
    return parts


def peer_loss(model, inputs, mask, targets_BM, weights_BM):
    """The sum of a micro-batch's weighted losses; the head runs on the noisy stream alone."""
    hidden_BTD = model.model(**inputs, attention_mask=mask, use_cache=False).last_hidden_state
    logits_BMV = model.lm_head(hidden_BTD[:, : targets_BM.shape[1]])
    ce = cross_entropy(logits_BMV.flatten(0, 1).float(), targets_BM.flatten(), reduction="none")
    return (ce * weights_BM.flatten()).sum()


def _tensor(array, device: str):
    """An array of numpy or jax as torch's, on the device."""
    return torch.from_numpy(np.array(array)).to(device)


def _block_mask(pattern: Pattern, segments_BT, copies_BM, device: str):
    """FlexAttention's form of `whole_mask`."""
    B, T = segments_BT.shape
    segments_BT = _tensor(segments_BT, device)
    copies_BT = None if copies_BM is None else pad(_tensor(copies_BM, device), (0, T - copies_BM.shape[1]))

    def seen(b, h, q, k):
        chosen = {} if copies_BT is None else dict(copies=copies_BT[b, q])
        return pattern.allowed(q, k, **chosen) & (segments_BT[b, q] == segments_BT[b, k])

    return create_block_mask(seen, B, None, T, T, device=device)
