"""Questions about short texts: solved by another reading of them, held out by hash, scored by what is said first."""

import re
import sys

import pytest

from edlm_jax.commands.main import main
from edlm_jax.data.split import belongs_to_test
from edlm_jax.data.tasks import READING, TaskSource
from edlm_jax.evaluation.batches import Decoded
from edlm_jax.evaluation.tasks import load_tasks
from edlm_jax.evaluation.tasks.reading import Says
from edlm_jax.evaluation.tasks.task import Way
from edlm_jax.pretrained import load_tokenizer
from tests.seeds import fresh_rng


def solve(kind: str, prompt: str) -> str:
    """The answer, by whatever stands beside what is asked for."""
    if kind in ("copy", "say"):
        return re.search('"(.*)"', prompt)[1]
    if kind == "list":
        return prompt.partition(": ")[2]
    *sentences, question = re.split(r"(?<=\.) ", prompt)
    if kind == "fact":
        place, bought = (sentence.rstrip(".").split()[-1] for sentence in sentences)
        return place if question.startswith("Where") else bought
    name = re.sub(r" (live|buy)\?$|\?$", "", question).split()[-1]
    (sentence,) = (sentence for sentence in sentences if re.search(rf"\b{name}\b", sentence))
    words = sentence.rstrip(".").split()
    return words[0] if kind == "who" else words[-1]


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_text_says_its_answer(split):
    source = TaskSource(READING, seed=int(fresh_rng().integers(2**31)), size=400, split=split)
    for asked in source:
        assert asked["response"] == solve(asked["kind"], asked["prompt"])
        assert belongs_to_test(asked["prompt"]) == (split == "test")
    assert {asked["kind"] for asked in source} == set(READING)


def test_the_first_sentence_has_to_say_it(tiny_ar_dir, monkeypatch):
    tokenizer = load_tokenizer(tiny_ar_dir)
    (task,) = load_tasks([dict(task="reading", size=len(READING))], tokenizer)
    says = [
        lambda answer: answer,
        lambda answer: f"  It is {answer.upper()}\nand so on",
        lambda answer: f"Let me see. It is {answer}",
        lambda answer: f"I see\n{answer}",
        lambda answer: "",
    ]
    texts = [says[i % len(says)](question.answer) for i, question in enumerate(task.questions)]
    rows = [Decoded([], text, 1, 0, []) for text in texts]
    monkeypatch.setattr(sys.modules[Says.__module__], "decode_questions", lambda *args, **how: rows)
    found = task.scorer.score(task.questions, Way(None, None), None, 1)
    assert [outcome.right for outcome in found] == [i % len(says) < 2 for i in range(len(rows))]


def test_the_command_needs_no_file_for_it(tiny_ar_dir, capsys):
    assert main(["evaluate", f"--model={tiny_ar_dir}", "--task=reading:size=0"]) == 2
    assert "size of task reading must be positive and finite, not 0" in capsys.readouterr().err
    assert main(["evaluate", f"--model={tiny_ar_dir}", "--task=reading", "--data=a.jsonl"]) == 2
    assert "task reading has no field 'path'" in capsys.readouterr().err
