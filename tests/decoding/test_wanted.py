"""Columns that a mode says nobody reads: whatever they hold, tokens and forwards stay as they are."""

import dataclasses
from collections import Counter

import jax
import jax.numpy as jnp
import pytest

from edlm_jax.decoding import MODES, Decoder, generate, parse_mode
from edlm_jax.models.backend import CpuKernels
from edlm_jax.parallel import cpu
from tests.decoding.tiny import EOS, make_model, prompts
from tests.seeds import fresh_rng

pytestmark = [
    pytest.mark.skipif(not cpu.available(), reason="this installation found no C++ compiler"),
    pytest.mark.filterwarnings("ignore:.*reads next tokens from a causal stream"),
]
MORE = ["multi_block:blocks=3,opens=0.5", "prompt_lookup:lookup=1", "mars:window=5", "mars:window=7"]
MORE += ["quadratic_speculation:drafts=3,ahead=1,lookup=1"]
WIDE = [f"mars:threshold={threshold}" for threshold in (0.05, 0.2)]  # all of a block often stands
LEAVE_OUT = "mars", "multi_block", "prompt_lookup", "psd", MORE[-1]  # whose rows that go on do so


def spoiled(x, w, product=cpu.product):
    """The product with 1000 in every column that is not wanted, where nothing stands else."""
    out = product(x, w)
    if w.wanted_BT is None or x.ndim < 3:
        return out
    wanted_BT = jnp.broadcast_to(w.wanted_BT[:, -x.shape[1] :], x.shape[:2])
    return jnp.where(wanted_BT.reshape(*wanted_BT.shape, *[1] * (out.ndim - 2)), out, 1000.0)


@pytest.mark.parametrize("mode", [*MODES, *MORE, *WIDE])
def test_nobody_reads_what_is_not_wanted(mode, monkeypatch):
    rng = fresh_rng()
    model = make_model("shifted", seed=int(rng.integers(1000)))
    given = prompts(rng, [3, 11, 6])
    given += [given[0] * 4]  # what repeats itself
    threshold = {"threshold": 0.7} if hasattr(parse_mode(mode), "threshold") and mode not in WIDE else {}
    settings = dict(max_new_tokens=21, eos_id=EOS, mode=mode, **threshold)
    found = generate(Decoder(model), given, **settings)
    left_out, only = Counter(), CpuKernels.only

    def counted(self, wanted_BT, weights, mask_BTS=None):
        if mask_BTS is not None and wanted_BT.shape[1] > 1:
            rows_B = wanted_BT.any(axis=1)
            jax.debug.callback(lambda n: left_out.update(columns=int(n)), (~wanted_BT & rows_B[:, None]).sum())
        return only(self, wanted_BT, weights, mask_BTS)

    monkeypatch.setattr(cpu, "product", spoiled)
    monkeypatch.setattr(CpuKernels, "only", counted)
    jax.clear_caches()
    assert dataclasses.asdict(generate(Decoder(model), given, **settings)) == dataclasses.asdict(found)
    jax.effects_barrier()
    jax.clear_caches()
    assert left_out["columns"] or mode in WIDE or not mode.startswith(LEAVE_OUT)
