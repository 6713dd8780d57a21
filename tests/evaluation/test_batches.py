"""Decoding a file of prompts in batches is decoding them one by one."""

from types import SimpleNamespace

import pytest

from edlm_jax.decoding import Decoder, Generation, Sampling
from edlm_jax.decoding.modes import Diffusion
from edlm_jax.decoding.prompts import row_seeds
from edlm_jax.errors import InputError
from edlm_jax.evaluation.batches import decode_batches
from edlm_jax.pretrained import load_pretrained
from edlm_jax.reports.progress import Progress, show_seconds
from tests.seeds import fresh_rng


def test_rows_come_back_in_order_and_fillers_count_for_nothing():
    lengths, batches, finished = [5, 1, 4, 2, 3], [], []

    def decoder(prompts, *, seed, answer):
        batches.append([len(prompt) for prompt in prompts])
        rows = [[answer, len(prompt), noise] for prompt, noise in zip(prompts, seed, strict=True)]
        return Generation(rows, rows, [len(prompt) for prompt in prompts], [7] * len(prompts))

    decoder.refuse = lambda prompts, **_: {}
    decoder.weights = SimpleNamespace(groups=2)  # it lies where the engine does not go
    decoded = decode_batches(
        decoder, [[0] * n for n in lengths], batch_size=2, seeds=range(5), on_batch=finished.append, answer=9
    )
    assert batches == [[1, 2], [3, 4], [5, 5]] and finished == [2, 4, 5]
    assert [row.tokens for row in decoded] == [[9, n, seed] for seed, n in enumerate(lengths)]
    assert [row.denoise_forwards for row in decoded] == lengths and {row.commit_forwards for row in decoded} == {7}


def test_the_batch_size_changes_nothing_of_what_is_sampled(tiny_converted_dir):
    decoder = Decoder(load_pretrained(tiny_converted_dir, "float32"))
    prompts = [fresh_rng().integers(0, 250, n).tolist() for n in (3, 9, 5)]
    settings = dict(mode=Diffusion(threshold=0.5), limit=7, sampling=Sampling(temperature=1.0), ends=256)
    two = decode_batches(decoder, prompts, batch_size=2, **settings)
    assert two == decode_batches(decoder, prompts, batch_size=1, **settings)
    assert [row.tokens for row in two] == decoder(prompts, seed=0, **settings).tokens
    other = decode_batches(decoder, prompts, batch_size=2, seeds=row_seeds(1, 3).tolist(), **settings)
    assert [row.tokens for row in other] != [row.tokens for row in two]
    assert row_seeds(3, 5)[:2].tolist() == row_seeds(3, 2).tolist()


def test_progress_says_what_is_left(capsys):
    clock = iter([0.0, 10.0, 60.0])
    with Progress(6, "cells", clock=lambda: next(clock)) as progress:
        progress.done(1, "seed 0")
        progress.done(6)
    assert capsys.readouterr().err.splitlines() == ["[1/6] cells: seed 0, 50 s left", "[6/6] cells"]


@pytest.mark.parametrize(("seconds", "text"), [(48.2, "48 s"), (720, "12 min"), (11520, "3.2 h")])
def test_seconds_are_shown_for_people(seconds, text):
    assert show_seconds(seconds) == text


def test_a_bad_prompt_is_named_by_its_own_index_before_the_first_batch(tiny_converted_dir):
    decoder, finished = Decoder(load_pretrained(tiny_converted_dir, "float32")), []
    prompts = [[1] * 9, [2], [3, 258], [4] * 3]
    with pytest.raises(InputError, match="prompt 2 holds the mask token 258"):
        decode_batches(decoder, prompts, batch_size=1, on_batch=finished.append, limit=4)
    assert not finished


@pytest.mark.parametrize("seed", [-1, [3, -1], [0, 2**32]])
def test_seeds_that_are_none_are_refused(seed):
    with pytest.raises(InputError, match="seed"):
        row_seeds(seed, 2)


@pytest.mark.parametrize("stop", [(), "e"])
def test_the_engine_gives_what_batches_give(tiny_converted_dir, stop):
    """More prompts than rows; the batch of all of them is the other way."""
    decoder, rng = Decoder(load_pretrained(tiny_converted_dir, "float32")), fresh_rng()
    prompts = [rng.integers(0, 250, n).tolist() for n in rng.integers(1, 30, 5)]
    read = lambda tokens: "".join(chr(97 + token % 26) for token in tokens)  # noqa: E731
    settings = dict(limit=12, sampling=Sampling(temperature=1.0), ends=256, stop=stop, detokenize=read)
    few = decode_batches(decoder, prompts, batch_size=2, **settings)
    all_at_once = decode_batches(decoder, prompts, batch_size=5, **settings)
    assert [(row.tokens, row.text) for row in few] == [(row.tokens, row.text) for row in all_at_once]
    assert stop or few == all_at_once  # a row that a text stops is stopped when somebody looks
