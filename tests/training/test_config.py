"""What no run starts from is refused, by name."""

import json
import pickle

import pytest

from edlm_jax.errors import InputError
from edlm_jax.models.lora import TARGETS
from edlm_jax.training.checkpoint import check_workdir
from edlm_jax.training.config import default_config, differing_keys, to_json
from edlm_jax.training.run import Run

CHAIN = {"objective.noise": "chain", "objective.group": 2}
BAD = [
    ({"objective.block_length": 0}, "block_length must be positive"),
    ({"objective.block_length": 7, "data.length": 32}, "blocks of 7 do not divide config.data.length=32"),
    ({"objective.ar_weight": 1.0}, "token-causal"),
    ({"objective.ar_weight": 1.0, "objective.pattern": "block_causal"}, "token-causal"),
    ({"objective.ar_weight": -1.0}, "ar_weight must be zero or more"),
    ({"objective.diffusion_weight": 0.0}, "no loss"),
    ({"objective.pattern": "blockcausal"}, "objective.pattern='blockcausal' is unknown"),
    ({"objective.grid": "row"}, "objective.grid='row' is unknown; choose one of response, position"),
    ({"objective.alignment": "left"}, "objective.alignment='left' is unknown"),
    ({"objective.half_life": -0.1}, "half_life"),
    ({"objective.noise": "none"}, "objective.noise='none' is unknown"),
    ({"objective.noise": "complementary", "objective.pattern": "block_causal"}, "need a pattern with a clean stream"),
    ({"objective.noise": "complementary", "objective.noisy_length": 48}, "blocks of 16 x 2 views do not divide"),
    ({"objective.group": 2}, "group > 1 needs noise='chain', not 'masks'"),
    ({"objective.noise": "chain"}, "needs config.objective.group of 2 or more, not 1"),
    (CHAIN | {"objective.half_life": None}, "needs half_life > 0, not None"),
    (CHAIN | {"objective.half_life": 0.0}, "needs half_life > 0, not 0.0"),
    (CHAIN | {"objective.pattern": "block_causal"}, "noisy together need a pattern with a clean stream"),
    (CHAIN | {"objective.pattern": "causal_block"}, "noisy blocks that look both ways"),
    (CHAIN | {"objective.noisy_length": 48}, "groups of 2 blocks of 16 do not divide config.objective.noisy_length=48"),
    (CHAIN | {"objective.teacher": "x", "objective.teacher_weight": 1.0}, "clean text before each block"),
    ({"objective.random_block_lengths": (4, 6)}, "6 is not a divisor"),
    ({"objective.random_block_lengths": (4,), "objective.pattern": "bidirectional"}, "means nothing"),
    ({"dtype": "float16"}, "dtype='float16' is unknown"),
    ({"remat": "some"}, "remat='some' is unknown"),
    ({"attention_tiles": (512, 0)}, "two sizes"),
    ({"steps": 0}, "steps must be positive"),
    ({"objective.noisy_length": 24}, "blocks of 16 do not divide config.objective.noisy_length=24"),
    ({"objective.noisy_length": 32, "objective.pattern": "block_causal"}, "noisy_length means nothing"),
    ({"optimizer.schedule": "linear"}, "schedule='linear' is unknown"),
    ({"optimizer.schedule": "wsd"}, "decay_steps"),
    ({"optimizer.warmup_steps": 2000}, "longer than config.steps=1000"),
    ({"optimizer.accumulation": 3}, "not divisible by config.optimizer.accumulation=3"),
    ({"optimizer.beta2": 1.0}, "beta2"),
    ({"init.path": ""}, "config.init.path"),
    ({"optimizer.accumulation": -1}, "accumulation must be zero or more"),
    ({"seed": 2**63}, "seed must be below 2"),
    ({"optimizer.eps": 0.0}, "eps must be positive"),
    ({"data.eval_batches": 0}, "eval_batches must be positive"),
    ({"optimizer.learning_rate": float("inf")}, "learning_rate must be a number that a float32 holds, not inf"),
    ({"optimizer.weight_decay": float("nan")}, "weight_decay must be a number that a float32 holds, not nan"),
    ({"data.max_skipped": 1e39}, "max_skipped must be a number that a float32 holds, not 1e.39"),
    ({"objective.half_life": -float("inf")}, "half_life must be a number that a float32 holds, not -inf"),
    ({"objective.noise": "visited", "objective.curriculum": ((4, 9),)}, "leave out curriculum and random_block"),
    ({"objective.noise": "visited", "objective.random_block_lengths": (4,)}, "states of block_length alone"),
    ({"objective.noise": "visited", "objective.grid": "position"}, "needs grid='response': which tokens of a prompt"),
    (
        {"objective.noise": "complementary", "objective.noisy_length": 96, "objective.curriculum": ((32, 9),)},
        "blocks of 32 x 2 views do not divide config.objective.noisy_length=96",
    ),
]


def make(changes=()):
    c = default_config()
    c.init.path = "somewhere"
    c.update_from_flattened_dict(dict(changes))
    return c


def conversion(changes=()):
    return Run.of(make(changes)).start.conversion


@pytest.mark.parametrize("changes, reason", BAD)
def test_refuses(changes, reason):
    with pytest.raises(InputError, match=reason):
        Run.of(make(changes))


@pytest.mark.parametrize("half_life", [None, 0.0, 1, float("inf")])
def test_accepts(half_life):
    assert Run.of(make({"objective.half_life": half_life})).numbers.half_life == (half_life or 0)
    both = Run.of(make({"objective.pattern": "semi_block", "objective.ar_weight": 1.0})).objective
    assert [term.name for term in both.terms] == ["ar", "diffusion"]
    assert Run.of(make({"objective.random_block_lengths": (4, 8, 16)})).block_lengths.choices == (4, 8, 16)


def test_adapters_are_the_same_however_their_targets_are_written():
    lora = lambda *names: Run.of(make({"lora.rank": 4, "lora.targets": names})).start.lora  # noqa: E731
    assert lora("v_proj", "q_proj", "q_proj").targets == ("q_proj", "v_proj")
    assert lora(*reversed(TARGETS)) == lora()


def test_refuses_types_and_names_that_the_lock_does_not_see():
    for changes, reason in [
        (lambda c: c.update({"optimiser": 1}), "unknown field config.optimiser"),
        (lambda c: c.data.update({"lenght": 1}), "unknown field config.data.lenght"),
        (lambda c: c.optimizer.__delitem__("eps"), "config.optimizer.eps is missing"),
        (lambda c: c.update({"seed": True}), "config.seed must be int, not bool"),
    ]:
        c = make()
        changes(c)
        with pytest.raises(InputError, match=reason):
            Run.of(c)
    c = make()
    with pytest.raises(TypeError):
        c.steps = 1.5


def test_prefill_follows_the_pattern():
    prefills = {p: conversion({"objective.pattern": p}).prefill for p in ("clean_context", "semi_block")}
    assert prefills == dict(clean_context="block_causal", semi_block="causal")
    assert conversion({"objective.prefill": "bidirectional"}).prefill == "bidirectional"
    assert conversion({"objective.pattern": "causal"}) is None


def test_rows_are_of_whole_blocks_and_ar_has_none():
    lengths = {p: Run.of(make({"objective.pattern": p})).data.block_length for p in ("causal", "clean_context")}
    assert lengths == dict(causal=1, clean_context=16)


def test_the_grid_goes_along():
    assert conversion().grid == "response"
    assert conversion({"objective.grid": "position"}).grid == "position"


def test_a_run_goes_to_another_process():
    """The torch peer has one of its own; infinity, lists and sources are what a config may hold."""
    c = make({"objective.half_life": float("inf"), "optimizer.schedule": "wsd", "optimizer.decay_steps": 9})
    c.data.sources, c.objective.random_block_lengths = [dict(kind="tasks")], [2, 4]
    run = Run.of(c)
    assert pickle.loads(pickle.dumps(run)) == run


def test_an_older_run_stood_at_the_defaults_of_the_fields_it_did_not_know(tmp_path):
    stored = json.loads(to_json(make()))
    del stored["objective"]["grid"], stored["evaluation"]
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    (tmp_path / "config.json").write_text(json.dumps(stored))
    check_workdir(tmp_path, to_json(make()))
    with pytest.raises(InputError, match=r"another config \(objective.grid differ\)"):
        check_workdir(tmp_path, to_json(make({"objective.grid": "position"})))


def test_differing_keys_are_those_that_change_a_run():
    ours, theirs = make().to_dict(), make().to_dict()
    assert differing_keys(ours, theirs) == []
    theirs["steps"], theirs["checkpoint"] = 5, {}
    theirs["seed"], theirs["optimizer"]["eps"], theirs["data"]["old"] = 5, 1e-6, 1
    assert differing_keys(ours, theirs) == ["data.old", "optimizer.eps", "seed"]
