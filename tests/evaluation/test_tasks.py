"""Exact match and speed: what counts as right, and which tokens and forwards are counted."""

import json
from types import SimpleNamespace

import pytest
from tokenizers import normalizers

from edlm_jax.commands.main import main
from edlm_jax.decoding import Generation
from edlm_jax.diffusion.streams import LAYOUTS
from edlm_jax.errors import InputError
from edlm_jax.evaluation import compare
from edlm_jax.evaluation.compare import compare_accuracy
from edlm_jax.evaluation.tasks import load_tasks
from edlm_jax.evaluation.tasks.task import Way
from edlm_jax.pretrained import Text, load_tokenizer
from tests.chain import byte_tokenizer, save_tokenizer, word_tokenizer
from tests.conftest import TINY

EOS = 256


@pytest.fixture
def tokenizer(tiny_tokenizer_dir):
    return load_tokenizer(tiny_tokenizer_dir)


@pytest.fixture
def questions(tmp_path, tokenizer):
    """A task of three questions, the longest first."""
    rows = [("a much longer question ->", " yes"), ("short ->", " no"), ("medium long ->", " perhaps")]
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(json.dumps(dict(prompt=prompt, response=response)) for prompt, response in rows))
    return load_tasks([dict(kind="jsonl", path=str(path))], tokenizer)


class Oracle:
    """Stands in for a Decoder: answers from a table by prompt; row r takes r + 1 denoising and 2 commit forwards."""

    spec = SimpleNamespace(max_length=100)
    weights = SimpleNamespace(groups=2)  # as on a mesh, where prompts go in batches

    def __init__(self, tokenizer, answers):
        self.tokenizer, self.answers, self.calls = tokenizer, answers, []

    def refuse(self, prompts, **_):
        return {}

    def __call__(self, prompts, **settings):
        self.calls.append(([self.tokenizer.decode(prompt) for prompt in prompts], settings))
        rows = [self.answers[self.tokenizer.decode(prompt)] for prompt in prompts]
        return Generation(rows, rows, [row + 1 for row in range(len(rows))], [2] * len(rows))


def score(decoder, tasks, text, batch_size):
    (found,) = compare_accuracy([Way(decoder, compare.AR)], tasks, text, batch_size)
    return found


def test_an_answer_counts_when_its_text_up_to_the_end_is_exact(tokenizer, questions):
    answers = {
        "a much longer question ->": [*tokenizer.encode(" yes"), EOS],
        "short ->": [*tokenizer.encode(" no")],  # right as far as it goes: it may have run out of tokens at the end
        "medium long ->": [*tokenizer.encode(" perhaps not"), EOS],
    }
    oracle = Oracle(tokenizer, answers)
    found = score(oracle, questions, Text(tokenizer, (EOS,)), 2)
    assert found["accuracy"] == pytest.approx(2 / 3) and found["kinds"] == {"all": pytest.approx(2 / 3)}
    assert [prompts for prompts, _ in oracle.calls] == [
        ["short ->", "medium long ->"],
        ["a much longer question ->"] * 2,  # filled up to the one batch size
    ]
    assert found["new_tokens"] == sum(map(len, answers.values()))
    assert (found["denoise_forwards"], found["commit_forwards"]) == (1 + 2 + 1, 3 * 2)
    assert found["tokens_per_forward"] == pytest.approx(found["new_tokens"] / 4)
    longest = len(tokenizer.encode(" perhaps")) + 1
    assert all(settings["limit"] == longest for _, settings in oracle.calls)


def with_accents():
    """A tokenizer that composes accents, as Gemma's and Qwen's do."""
    tokenizer = byte_tokenizer("</s>")
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


@pytest.mark.parametrize(
    ("make", "prompt", "response", "read"),
    [
        (word_tokenizer, "w1 w2", "w3 42", " w3 42"),
        (word_tokenizer, "w1 w2", " 42", " 42"),
        (with_accents, "cafe\u0301", "cre\u0300me", "crème"),
        (lambda: byte_tokenizer("</s>"), "say", " <|im_end|> , .", " <|im_end|> , ."),
    ],
)
def test_the_tokens_that_training_shows_are_right(tmp_path, make, prompt, response, read):
    tokenizer = load_tokenizer(save_tokenizer(make(), tmp_path / "model", config=TINY, eos_token="</s>"))
    (tmp_path / "tasks.jsonl").write_text(json.dumps(dict(prompt=prompt, response=response)))
    tasks = load_tasks([dict(kind="jsonl", path=str(tmp_path / "tasks.jsonl"))], tokenizer)
    right, (question,) = tokenizer.encode(response, add_special_tokens=False), tasks[0].questions
    assert (question.answer, question.limit) == (read, len(right) + 1)
    ends = (tokenizer.eos_token_id, 3)
    for said, accuracy in (([*right, ends[0]], 1), ([*right, ends[1], 4], 1), (right, 1), (right[:-1], 0)):
        oracle = Oracle(tokenizer, {tokenizer.decode(question.prompt): said})
        assert score(oracle, tasks, Text(tokenizer, ends), 1)["accuracy"] == accuracy
        assert oracle.calls[0][1]["ends"] == ends


def test_generated_tasks_keep_their_kind_and_the_prompt_that_training_shows(tokenizer):
    sources = [dict(kind="tasks", kinds=("sort", "sums"), split="test", seed=seed, size=6) for seed in (5, 6)]
    (task,) = load_tasks(sources, tokenizer)  # two sources, one task: its questions share batches
    assert [question.kind for question in task.questions] == ["sort", "sums"] * 6
    assert all(tokenizer.decode(question.prompt).startswith(("sort ", "add ")) for question in task.questions)
    assert all(question.limit == len(tokenizer.encode(question.answer)) + 1 for question in task.questions)


def test_sources_without_answers_are_refused(tmp_path, tokenizer):
    (tmp_path / "prose.txt").write_text("no question here")
    with pytest.raises(InputError, match="a prompt and a response"):
        load_tasks([dict(kind="text", path=str(tmp_path / "prose.txt"))], tokenizer)


@pytest.mark.parametrize(("pattern", "name"), [("clean_context", "diffusion"), ("causal_block", "mars")])
def test_results_are_sorted_by_mode(pattern, name):
    decodings = [compare.AR, *compare.modes_at(LAYOUTS[pattern], [1.0, 0.5])]
    results = compare.results_by_mode(decodings, [dict(a=1), dict(a=2), dict(a=3)], [dict(b=4), dict(b=5), dict(b=6)])
    assert results == {
        "ar": dict(a=1, b=4),
        "diffusion": [dict(mode=name, threshold=t, a=a, b=a + 3) for t, a in ((1.0, 2), (0.5, 3))],
    }


def write_tasks(path, rows):
    path.write_text("\n".join(json.dumps(dict(prompt=prompt, response=response)) for prompt, response in rows))
    return path


GOOD = [("sort b a ->", " a b"), ("p" * 480, " x"), ("add 3+4 ->", " more than a prompt of 480 has room for")]
BAD = {1: ("q" * 600, " x"), 3: ("say <|fim_pad|>", " y"), 4: ("", " z"), 6: ("r", "s" * 600)}


@pytest.mark.parametrize("how", [[], ["--sweep", "--block-lengths=4"]])
def test_bad_tasks_are_named_by_their_document_and_the_others_measured(
    tiny_converted_dir, tmp_path, capsys, caplog, how
):
    good, rows = iter(GOOD), dict(BAD)
    mixed = write_tasks(tmp_path / "mixed.jsonl", [rows.get(place) or next(good) for place in range(7)])
    command = ["evaluate", f"--model={tiny_converted_dir}", "--dtype=float32", "--thresholds=1", "--batch-size=2"]
    command += ["--json", "--timed-prompts=1", f"--out={tmp_path}", *how]
    assert main([*command, f"--data={mixed}"]) == 2
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    names = [f"{mixed}:{place + 1}" for place in BAD]
    assert [entry["document"] for entry in result["refused"]] == names
    assert captured.err.endswith(f"edlm: 4 tasks were refused, the others measured: {', '.join(names)}\n")
    for entry, name, what in zip(
        result["refused"], names, ("is too long: 600", "holds the mask", "is empty", "601 new ones exceed"), strict=True
    ):
        assert entry["reason"].startswith(f"the prompt of {name} ") and what in entry["reason"]
        assert f"not evaluated: {entry['reason']}" in caplog.text
    assert main([*command, f"--data={write_tasks(tmp_path / 'good.jsonl', GOOD)}"]) == 0
    alone = json.loads(capsys.readouterr().out)
    part, speed = "sweep" if how else "diffusion", "tokens_per_second"
    found, expected = ([{k: v for k, v in e.items() if k != speed} for e in r[part]] for r in (result, alone))
    assert found == expected and alone["refused"] == []


def test_a_diagnosis_names_them_too(tiny_converted_dir, tmp_path, capsys):
    data = write_tasks(tmp_path / "mixed.jsonl", [GOOD[0], BAD[3]])
    command = ["diagnose", f"--model={tiny_converted_dir}", f"--data={data}", f"--out={tmp_path / 'out'}", "--draws=0"]
    assert main([*command, "--batch-size=1"]) == 2
    assert f"1 tasks were refused, the others measured: {data}:2" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "diagnosis.json").read_text())["decode_order"]


def test_a_prompt_without_room_for_the_longest_answer_is_decoded_to_its_own(tokenizer, questions):
    (task,) = questions
    oracle = Oracle(tokenizer, {tokenizer.decode(q.prompt): [*tokenizer.encode(q.answer), EOS] for q in task.questions})
    oracle.spec = SimpleNamespace(max_length=len(task.questions[0].prompt) + len(" yes") + 1)
    assert score(oracle, questions, Text(tokenizer, (EOS,)), 2)["accuracy"] == 1
    limits = {prompts[0]: settings["limit"] for prompts, settings in oracle.calls}
    assert limits == {"short ->": len(" perhaps") + 1, "a much longer question ->": len(" yes") + 1}
