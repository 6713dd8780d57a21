"""Multiple choice by likelihood: the choice that is the likeliest a token, exact for AR, by the bound for diffusion."""

import dataclasses
import json

import numpy as np
import pytest

from edlm_jax.commands.main import main
from edlm_jax.decoding import Decoder
from edlm_jax.decoding.modes import Autoregressive, Diffusion
from edlm_jax.errors import InputError
from edlm_jax.evaluation.compare import compare_accuracy, compare_speed
from edlm_jax.evaluation.likelihood import log_likelihood
from edlm_jax.evaluation.tasks import choose_questions, load_tasks, need_decoded
from edlm_jax.evaluation.tasks.task import Way
from edlm_jax.pretrained import Text, load_pretrained, load_tokenizer

ROWS = [
    dict(question="What do bees make?", choices=["honey", "milk and wool"], answer=0),
    dict(question="2 + 2?", choices=["5", "4", "22"], answer="4"),
    dict(question="Which is red?", choices=["blood", "grass", "the sky at noon"], answer=2),
]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def converted(tiny_converted_dir):
    return load_pretrained(tiny_converted_dir, "float32"), load_tokenizer(tiny_converted_dir)


def test_the_likeliest_choice_a_token_is_the_answer(converted, tmp_path):
    model, tokenizer = converted
    entry = dict(task="multiple_choice", path=write(tmp_path / "q.jsonl", ROWS), num_samples=2)
    (task,) = load_tasks([entry], tokenizer)
    pairs, right = [], []
    for row in ROWS:
        prompt = f"Question: {row['question']}\nAnswer:"
        pairs += [(tokenizer.encode(prompt), tokenizer.encode(f" {choice}")) for choice in row["choices"]]
        right.append(row["choices"].index(row["answer"]) if isinstance(row["answer"], str) else row["answer"])
    ways = [Way(Decoder(model), mode, model) for mode in (Autoregressive(), Diffusion(), Diffusion(threshold=0.5))]
    found = compare_accuracy(ways, [task], Text(tokenizer), 1)
    for mode, entry in zip(("ar", "diffusion"), found, strict=False):
        scores = log_likelihood(model, pairs, mode=mode, num_samples=2)
        means = [score.log_likelihood / len(new) for score, (_, new) in zip(scores, pairs, strict=True)]
        best = [int(np.argmax(part)) for part in np.split(np.array(means), np.cumsum([2, 3]))]
        assert entry == dict(accuracy=np.mean(np.array(best) == right), kinds=dict(multiple_choice=entry["accuracy"]))
    assert found[2] == found[1]
    assert compare_speed(ways, [task], Text(tokenizer), 2) == [{}] * 3
    with pytest.raises(InputError, match="decode nothing"):
        need_decoded([task])


def test_every_answer_can_be_the_right_one(converted, tmp_path):
    """Whichever choice a model takes: told that it is right, all are; told that another one is, none."""
    model, tokenizer = converted
    way = Way(Decoder(model), Autoregressive(), model)
    for row in ROWS:
        rows = [row | dict(answer=index) for index in range(len(row["choices"]))]
        (task,) = load_tasks([dict(task="multiple_choice", path=write(tmp_path / "q.jsonl", rows))], tokenizer)
        assert sum(outcome.right for outcome in task.scorer.score(task.questions, way, Text(tokenizer), 1)) == 1


def test_what_has_no_room_is_named_and_a_model_without_a_bound_refused(converted, tmp_path):
    model, tokenizer = converted
    rows = [ROWS[0], ROWS[0] | dict(question="x" * 500)]
    tasks = load_tasks([dict(task="multiple_choice", path=write(tmp_path / "q.jsonl", rows))], tokenizer)
    kept, refused = choose_questions(tasks, [(model.spec, Diffusion())])
    assert len(kept[0].questions) == 1 and refused[0]["document"].endswith("q.jsonl:2")
    spec = dataclasses.replace(model.spec, conversion=dataclasses.replace(model.spec.conversion, pattern="semi_block"))
    choose_questions(tasks, [(spec, Autoregressive())])
    with pytest.raises(InputError, match="block-causal context"):
        choose_questions(tasks, [(spec, Diffusion())])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (dict(answer=3), "answer of .*q.jsonl:1 must be the index of a choice, 0 to 1, or its text"),
        (dict(answer=True), "answer of .*q.jsonl:1 must be int or str, not bool"),
        (dict(answer="wax"), "must be the index"),
        (dict(choices=["honey"]), "choices of .*q.jsonl:1 must be texts, two or more"),
        (dict(choices=["honey", ""]), "choices of"),
    ],
)
def test_bad_rows_are_named(converted, tmp_path, change, reason):
    path = write(tmp_path / "q.jsonl", [ROWS[0] | change])
    with pytest.raises(InputError, match=reason):
        load_tasks([dict(task="multiple_choice", path=path)], converted[1])


def test_the_command_prints_accuracies_alone(tiny_converted_dir, tiny_ar_dir, tmp_path, capsys):
    path = write(tmp_path / "q.jsonl", ROWS[:1])
    command = ["evaluate", f"--model={tiny_converted_dir}", f"--baseline={tiny_ar_dir}", "--dtype=float32"]
    command += [f"--data={path}", "--thresholds=1,0.5"]
    assert main([*command, "--task=multiple_choice:num_samples=2", "--markdown"]) == 0
    printed = capsys.readouterr().out
    assert "| decoding | accuracy | of AR |\n" in printed and "| multiple_choice |" in printed
    assert main([*command, "--task=multiple_choice", "--sweep", f"--out={tmp_path}"]) == 2
    assert "decode nothing" in capsys.readouterr().err
