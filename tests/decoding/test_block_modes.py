"""PSD, DMax and editing against their definitions in plain Python: the same tokens from the same forwards."""

import dataclasses

import numpy as np
import pytest

from edlm_jax.decoding import Decoder, generate
from edlm_jax.decoding.modes import Edit
from edlm_jax.errors import InputError
from tests.decoding import dense
from tests.decoding.oracle import PrefilledBlocks
from tests.decoding.tiny import EOS, MASK, make_model, prompts
from tests.seeds import fresh_rng

C, LIMIT = 4, 11


class Oracle:
    """One row: settled tokens, the current block, and what a forward proposes for it."""

    def __init__(self, weights, prompt, given, prefill, shifted):
        self.weights, self.prompt, self.given, self.prefill, self.shifted = weights, prompt, given, prefill, shifted
        self.tokens, self.at, self.forwards, self.edits = list(prompt), [], 0, 0
        self.block, self.block_at = ([*given] + [MASK] * C)[:C], [0] * C

    def propose(self, embed=None):
        """(tokens, confidences) of the block's positions."""
        row = self.tokens + self.block
        mask_TT = PrefilledBlocks(len(self.prompt), C, self.prefill).dense(len(row), len(row))
        inputs = row if embed is None else embed(row)
        p_TV = dense.probabilities(dense.predict(self.weights, inputs, mask_TT, MASK))
        first = len(self.tokens) - self.shifted
        return p_TV[first : first + C].argmax(-1).tolist(), p_TV[first : first + C].max(-1).tolist()

    def masked(self):
        return [i for i in range(C) if self.block[i] == MASK]

    def put(self, i, token):
        self.block_at[i] = self.forwards if self.block[i] != token else self.block_at[i]
        self.block[i] = token

    def result(self):
        """The new tokens and their forwards, if the row has ended: at an EOS or the limit with no mask before it."""
        new = (self.tokens + self.block)[len(self.prompt) + len(self.given) :][:LIMIT]
        settled = new[: new.index(MASK)] if MASK in new else new
        if EOS in settled:
            settled = settled[: settled.index(EOS) + 1]
        elif len(settled) < LIMIT:
            return None
        return settled, (self.at + self.block_at)[len(self.given) :][: len(settled)], self.forwards

    def up_to_end(self):
        """The block's positions up to the first one that would end the row."""
        first = len(self.tokens) - len(self.prompt) - len(self.given)
        ends = [i for i in range(C) if first + i == LIMIT - 1 or (first + i >= 0 and self.block[i] == EOS)]
        return range(ends[0] + 1 if ends else C)

    def finish_block(self):
        self.tokens, self.at = self.tokens + self.block, self.at + self.block_at
        self.block, self.block_at = [MASK] * C, [0] * C


def psd(row, threshold, depth):
    while True:
        row.forwards += 1
        tokens, p = row.propose()
        while True:
            best = max(row.masked(), key=lambda i: (p[i], -i), default=None)
            for i in row.masked():
                if i == best or (p[i] >= threshold and threshold < 1):
                    row.put(i, tokens[i])
            if (result := row.result()) is not None:
                return result
            if not row.masked():
                break
            row.forwards += 1
            guesses = [(i, tokens[i]) for i in sorted(row.masked(), key=lambda i: (-p[i], i))[:depth]]
            tokens, p = row.propose()
            for i, token in guesses:
                if tokens[i] != token:
                    break
                row.put(i, token)
                tokens, p = row.propose()
        row.finish_block()


def dmax(row, threshold, sure=0.9):
    E = np.array(row.weights.embedding_VD, np.float64)
    fixed = len(row.given)
    while True:
        p, changed = {}, True
        for step in range(C):
            row.forwards += 1
            tokens, confidence = row.propose(lambda ids, p=p: soft(E, ids, len(row.tokens), p))
            before, run = list(row.block), True
            for i in range(fixed, C):
                first = row.masked()[:1] == [i]
                if before[i] == MASK:
                    run = run and (first and i == before.index(MASK) or (confidence[i] >= threshold and threshold < 1))
                if before[i] != MASK or run:
                    row.put(i, tokens[i])
                    p[i] = confidence[i]
            counts = row.up_to_end()
            changed = any(before[i] != row.block[i] for i in counts)
            unsure = min(confidence[i] for i in counts if i >= fixed) < sure
            if MASK not in [row.block[i] for i in counts] and (not changed or not unsure or step == C - 1):
                break
        if (result := row.result()) is not None:
            return result
        row.finish_block()
        fixed = 0


def edit(row, threshold, edit, looks):
    fixed = len(row.given)
    while True:
        looked, over = 0, False
        while not over or row.masked():
            row.forwards += 1
            complete, before, edited = not row.masked() or row.result() is not None, list(row.block), False
            tokens, p = row.propose()
            best = max(row.masked(), key=lambda i: (p[i], -i), default=None)
            for i in range(fixed, C):
                if before[i] == MASK and (i == best or (p[i] >= threshold and threshold < 1)):
                    row.put(i, tokens[i])
                elif before[i] not in (MASK, tokens[i]) and p[i] > edit:
                    row.put(i, tokens[i])
                    edited = True
            row.edits += edited
            looked = looked + 1 if complete else 0
            over = looked >= looks or (complete and not edited)
            if over and (result := row.result()) is not None:
                return result
        row.finish_block()
        fixed = 0


def soft(E, ids, start, p):
    rows = E[ids]
    for i, q in p.items():
        token, mask = E[ids[start + i]], E[MASK]
        mixed = q * token + (1 - q) * mask
        rows[start + i] = mixed / np.linalg.norm(mixed) * (q * np.linalg.norm(token) + (1 - q) * np.linalg.norm(mask))
    return rows


SETTINGS = [
    ("psd", dict(threshold=0.5, draft_depth=3), "same_position", "block_causal", "response"),
    ("psd", dict(threshold=0.95, draft_depth=2), "shifted", "causal", "position"),
    ("dmax", dict(threshold=0.3), "same_position", "block_causal", "response"),
    ("dmax", dict(threshold=0.1, commit="separate"), "shifted", "bidirectional", "position"),
    ("dmax:threshold=0.2,sure=0.5", dict(threshold=0.2, sure=0.5), "same_position", "block_causal", "position"),
]


@pytest.mark.parametrize(("mode", "settings", "alignment", "prefill", "grid"), SETTINGS)
def test_modes_equal_their_oracles(mode, settings, alignment, prefill, grid):
    rng, shifted = fresh_rng(), alignment == "shifted"
    model = make_model(alignment, prefill, seed=int(rng.integers(1000)))
    model.spec = dataclasses.replace(model.spec, conversion=dataclasses.replace(model.spec.conversion, grid=grid))
    decoder = Decoder(model)
    for _ in range(3):
        given, own = prompts(rng, [5, 8, 13]), {} if ":" in mode else settings
        result = generate(decoder, given, max_new_tokens=LIMIT, eos_id=EOS, mode=mode, **own)
        for row, prompt in enumerate(given):
            cut = len(prompt) // C * C if grid == "position" else len(prompt)
            oracle = Oracle(decoder.weights, prompt[:cut], prompt[cut:], prefill, shifted)
            if mode == "psd":
                tokens, at, forwards = psd(oracle, settings["threshold"], settings["draft_depth"])
            else:
                tokens, at, forwards = dmax(oracle, settings["threshold"], settings.get("sure", 0.9))
            assert result.tokens[row] == tokens
            assert (result.row_denoise_forwards[row], result.accepted_at[row]) == (forwards, at)
            blocks = -(-(len(prompt) - cut + len(tokens)) // C)
            assert result.row_commit_forwards[row] == (blocks - 1 if "commit" in settings else 0)


EDITS = [
    (dict(threshold=0.6, edit=0.3), "same_position", "block_causal", "position"),
    (dict(threshold=0.4, edit=0.5, looks=0), "shifted", "causal", "response"),
    (dict(threshold=1.0, edit=0.2, looks=3), "same_position", "bidirectional", "response"),
]


@pytest.mark.parametrize(("options", "alignment", "prefill", "grid"), EDITS)
def test_edits_equal_their_oracle(options, alignment, prefill, grid):
    rng, edits = fresh_rng(), 0
    model = make_model(alignment, prefill, seed=int(rng.integers(1000)))
    model.spec = dataclasses.replace(model.spec, conversion=dataclasses.replace(model.spec.conversion, grid=grid))
    decoder = Decoder(model)
    for _ in range(3):
        given = prompts(rng, [5, 8, 13])
        result = generate(decoder, given, max_new_tokens=LIMIT, eos_id=EOS, mode=Edit(**options))
        for row, prompt in enumerate(given):
            cut = len(prompt) // C * C if grid == "position" else len(prompt)
            oracle = Oracle(decoder.weights, prompt[:cut], prompt[cut:], prefill, alignment == "shifted")
            tokens, at, forwards = edit(oracle, **dict(looks=1) | options)
            assert result.tokens[row] == tokens
            assert (result.row_denoise_forwards[row], result.accepted_at[row]) == (forwards, at)
            edits += oracle.edits
    assert edits > 0


def test_without_edits_and_looks_it_is_diffusion():
    decoder, given = Decoder(make_model()), prompts(fresh_rng(), [3, 9])
    settings = dict(max_new_tokens=LIMIT, eos_id=EOS)
    diffusion = generate(decoder, given, threshold=0.4, **settings)
    assert generate(decoder, given, mode="edit:threshold=0.4,edit=1,looks=0", **settings) == diffusion


def test_psd_without_drafts_is_diffusion_and_drafts_save_forwards():
    rng = fresh_rng()
    model = make_model()
    model.layers.o_NHD[...] = model.layers.o_NHD[...] * 0.02  # little is said of one position at another: drafts stand
    decoder, given = Decoder(model), prompts(rng, [3, 9])
    settings = dict(max_new_tokens=10, threshold=1.0)
    diffusion = generate(decoder, given, **settings)
    assert generate(decoder, given, mode="psd", draft_depth=0, **settings) == diffusion
    drafted = generate(decoder, given, mode="psd", draft_depth=3, **settings)
    assert drafted.denoise_forwards < diffusion.denoise_forwards


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (dict(mode="psd", temperature=1.0), "is greedy"),
        (dict(mode="dmax", temperature=1.0), "is greedy"),
        (dict(mode="psd", commit="separate"), "psd has no commit"),
        (dict(mode="psd", draft_depth=-1), "draft_depth must not be negative"),
        (dict(mode="dmax:sure=2"), r"sure must lie in \[0, 1\]"),
        (dict(mode="edit:edit=-1"), r"edit must lie in \[0, 1\]"),
        (dict(mode="edit:looks=-1"), "looks must not be negative"),
        (dict(mode="dmax", rule="fixed:2"), "dmax has no rule"),
    ],
)
def test_what_a_mode_cannot_do_is_refused(settings, reason):
    with pytest.raises(InputError, match=reason):
        generate(make_model(), [[1, 2]], max_new_tokens=4, **settings)
