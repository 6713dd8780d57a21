"""HumanEval and MBPP files: the completion that is run, the tests that judge it."""

import gzip
import json
from dataclasses import replace

import pytest

from edlm_jax.commands.main import main
from edlm_jax.decoding.stopping import Reader
from edlm_jax.errors import InputError
from edlm_jax.evaluation import compare
from edlm_jax.evaluation.compare import check_evaluation, compare_accuracy
from edlm_jax.evaluation.tasks import TASKS, load_tasks, parse_task
from edlm_jax.evaluation.tasks.task import Way
from edlm_jax.pretrained import Text, load_tokenizer
from edlm_jax.training.config import default_config
from tests.evaluation.test_tasks import EOS, Oracle

PROMPT = 'def add(a, b):\n    """Adds."""\n'
HUMANEVAL = dict(prompt=PROMPT, test="def check(candidate):\n    assert candidate(1, 2) == 3", entry_point="add")
MBPP = dict(text="Write a function to add.", test_list=["assert add(1, 2) == 3", "assert add(2, 5) == 7"])
MBPP_PROMPT = '"""\nWrite a function to add.\nassert add(1, 2) == 3\n"""\n'
WHOLE = "def add(a, b):\n    return a + b\n"


class Reading(Oracle):
    """An oracle that reads and stops as a decoder does."""

    def __call__(self, prompts, mode, *, stop, detokenize, **settings):
        generation = super().__call__(prompts, mode=mode, **settings)
        return Reader(stop, detokenize, prompts).read(generation)


@pytest.fixture
def tokenizer(tiny_tokenizer_dir):
    return load_tokenizer(tiny_tokenizer_dir)


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def accuracy(tokenizer, tasks, prompt, said):
    decoder = Reading(tokenizer, {prompt: [*tokenizer.encode(said), EOS]})
    decoder.spec.max_length = 1000
    (found,) = compare_accuracy([Way(decoder, compare.AR)], tasks, Text(tokenizer, (EOS,)), 1)
    assert found["kinds"] == {tasks[0].name: found["accuracy"]}
    return found["accuracy"]


@pytest.mark.parametrize(
    ("said", "passed"),
    [
        ("    return a + b\n", 1),
        ("    return a + b\n\nprint(add(1))\n", 1),  # it would fail behind the stop string
        ("    return a - b\n", 0),
        ("    print('passed')\n    return 0\n", 0),
        ("    while True: pass\n", 0),
        ("    import os\n    os._exit(0)\n", 0),
        ("    return a +", 0),
    ],
)
def test_a_completed_function_passes_its_check(tokenizer, tmp_path, said, passed):
    path = write(tmp_path / "h.jsonl", HUMANEVAL)
    tasks = load_tasks([dict(task="humaneval", path=path, seconds=2, max_new_tokens=80)], tokenizer)
    assert accuracy(tokenizer, tasks, PROMPT, said) == passed


@pytest.mark.parametrize(
    ("said", "passed"),
    [
        (WHOLE, 1),
        (WHOLE + "\nassert add(1, 2) == 4\n", 1),
        ("def add(a, b):\n    return 3\n", 0),  # the first assertion is in the prompt, the second is not
        ("def plus(a, b):\n    return a + b\n", 0),
    ],
)
def test_a_function_passes_all_assertions(tokenizer, tmp_path, said, passed):
    tasks = load_tasks([dict(task="mbpp", path=write(tmp_path / "m.jsonl", MBPP))], tokenizer)
    assert tokenizer.decode(tasks[0].questions[0].prompt) == MBPP_PROMPT
    assert accuracy(tokenizer, tasks, MBPP_PROMPT, said) == passed


def test_the_sanitized_file_and_what_tests_need_first(tokenizer, tmp_path):
    tests = ["assert add(1, 2) == floor(3.5)"]
    row = dict(prompt=MBPP["text"], test_list=tests, test_imports=["from math import floor"])
    tasks = load_tasks([dict(task="mbpp", path=write(tmp_path / "s.jsonl", row))], tokenizer)
    prompt = MBPP_PROMPT.replace(MBPP["test_list"][0], tests[0])
    assert accuracy(tokenizer, tasks, prompt, WHOLE) == 1
    row = dict(text=MBPP["text"], test_list=tests, test_setup_code="floor = int")
    tasks = load_tasks([dict(task="mbpp", path=write(tmp_path / "s.jsonl", row))], tokenizer)
    assert accuracy(tokenizer, tasks, prompt, WHOLE) == 1


def test_files_may_be_packed_and_tasks_of_one_scorer_share_batches(tokenizer, tmp_path):
    with gzip.open(tmp_path / "h.jsonl.gz", "wt") as file:
        file.write(json.dumps(HUMANEVAL))
    entry = dict(task="humaneval", path=str(tmp_path / "h.jsonl.gz"))
    mbpp = dict(task="mbpp", path=write(tmp_path / "m.jsonl", MBPP))
    tasks = load_tasks([entry, mbpp, entry, entry | dict(seconds=3.0)], tokenizer)
    assert [(task.name, len(task.questions)) for task in tasks] == [("humaneval", 2), ("mbpp", 1), ("humaneval", 1)]
    assert tasks[0] == replace(tasks[2], scorer=tasks[0].scorer, questions=2 * tasks[2].questions)


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (dict(task="arithmetic"), "unknown task 'arithmetic'; known tasks: tasks, humaneval, mbpp"),
        (dict(task=["mbpp"]), "unknown task .*mbpp"),
        (dict(task="humaneval"), "task humaneval needs path"),
        (dict(task="humaneval", path="nowhere.jsonl"), "no file at nowhere.jsonl"),
        (dict(task="humaneval", path="{file}", second=3), "task humaneval has no field 'second'; it has path,"),
        (dict(task="humaneval", path="{file}", seconds=0), "seconds of task humaneval must be positive"),
        (dict(task="humaneval", path="{file}", seconds=float("inf")), "must be positive and finite, not inf"),
        (dict(task="humaneval", path="{file}", seconds=float("nan")), "must be positive and finite, not nan"),
        (dict(task="mbpp", path="{file}", max_new_tokens="9"), "max_new_tokens of task mbpp must be int, not '9'"),
        ("humaneval", "tasks are a tuple of dicts"),
    ],
)
def test_entries_of_a_config_are_refused_before_training(tmp_path, entry, reason):
    path = write(tmp_path / "h.jsonl", HUMANEVAL)
    c = default_config()
    if isinstance(entry, dict) and entry.get("path") == "{file}":
        entry["path"] = path
    c.evaluation.tasks = (entry,)
    with pytest.raises(InputError, match=reason):
        check_evaluation(c)
    c.evaluation.tasks = (dict(task="humaneval", path=path, seconds=3), dict(kind="tasks", split="test", size=2))
    check_evaluation(c)


@pytest.mark.parametrize(
    ("task", "row", "reason"),
    [
        ("humaneval", dict(prompt="x"), "h.jsonl:1 has no field 'test' but 'prompt'"),
        ("humaneval", HUMANEVAL | dict(test=3), "test of .*h.jsonl:1 must be str, not int"),
        ("mbpp", dict(text="x", test_list=[]), "test_list of .*h.jsonl:1 must be assertions"),
        ("mbpp", [1], "h.jsonl:1: list, not a JSON object"),
    ],
)
def test_bad_rows_are_named(tokenizer, tmp_path, task, row, reason):
    with pytest.raises(InputError, match=reason):
        load_tasks([dict(task=task, path=write(tmp_path / "h.jsonl", row))], tokenizer)


def test_a_task_is_told_more_in_its_text():
    assert parse_task("humaneval:seconds=5,max_new_tokens=64") == dict(task="humaneval", seconds=5, max_new_tokens=64)
    for text, reason in (
        ("humaneval:depth=3", "no field 'depth'; it has path, max_new_tokens, seconds"),
        ("humaneval:seconds=x", "seconds of task humaneval must be float, not 'x'"),
        ("tasks:size=3", "task tasks has no field 'size'; it has none"),
        ("everything", "unknown task 'everything'; known tasks: " + ", ".join(TASKS)),
    ):
        with pytest.raises(InputError, match=reason):
            parse_task(text)


def test_the_command_runs_what_a_model_writes(tiny_converted_dir, tmp_path, capsys):
    data = write(tmp_path / "h.jsonl", HUMANEVAL, HUMANEVAL | dict(prompt="x" * 600))
    command = ["evaluate", f"--model={tiny_converted_dir}", "--dtype=float32", "--thresholds=1", "--batch-size=1"]
    command += ["--timed-prompts=1", "--json"]
    assert main([*command, "--task=humaneval:max_new_tokens=8", f"--data={data}"]) == 2
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert result["diffusion"][0]["accuracy"] == 0 and result["diffusion"][0]["kinds"] == {"humaneval": 0}
    assert result["diffusion"][0]["tokens_per_second"] > 0
    assert [entry["document"] for entry in result["refused"]] == [f"{data}:2"]
    assert main([*command, "--task=humaneval"]) == 2
    assert "--task=humaneval needs --data=FILE" in capsys.readouterr().err
