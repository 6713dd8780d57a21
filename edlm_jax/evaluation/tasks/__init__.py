"""Evaluation tasks by name, for `edlm evaluate --task=NAME` and config.evaluation.tasks:

    dict(kind="tasks", split="test", size=256)          a source of prompts with one right response each, as it stands
    dict(task="humaneval", path="HumanEval.jsonl.gz")   a task's function and its parameters

A new one is a file beside this and a line here.
"""

import inspect
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from absl import logging

from edlm_jax.data.files import find_files
from edlm_jax.data.sources import check_fields, open_source
from edlm_jax.decoding import Mode
from edlm_jax.errors import InputError
from edlm_jax.evaluation.tasks.exact_match import exact_match
from edlm_jax.evaluation.tasks.humaneval import humaneval
from edlm_jax.evaluation.tasks.mbpp import mbpp
from edlm_jax.evaluation.tasks.multiple_choice import multiple_choice
from edlm_jax.evaluation.tasks.reach import reach
from edlm_jax.evaluation.tasks.reading import reading
from edlm_jax.evaluation.tasks.task import Question, Task
from edlm_jax.models import ModelSpec

TASKS: dict[str, Callable[..., Task]] = {"tasks": exact_match, "humaneval": humaneval, "mbpp": mbpp}
TASKS |= {"multiple_choice": multiple_choice, "reach": reach, "reading": reading}


def check_task(entry: Mapping[str, Any]) -> None:
    """Raises InputError for an entry of config.evaluation.tasks that cannot be read, as far as its fields tell."""
    name, fields = _split(entry)
    if name == "tasks":
        open_source(fields)
        return
    check_fields(_parameters(name).values(), fields, f"task {name}")
    for field, value in fields.items():
        if not isinstance(value, str) and not 0 < value < math.inf:
            raise InputError(f"{field} of task {name} must be positive and finite, not {value}")
    if "path" in fields:
        find_files(fields["path"], ".jsonl", compressed=True)


def reads_file(name: str) -> bool:
    """Does a task take its questions from a file?"""
    return "path" in _parameters(name)


def parse_task(text: str) -> dict[str, Any]:
    """An entry from "name" or "name:field=value,field=value": humaneval:max_new_tokens=256,seconds=5."""
    name, _, rest = text.partition(":")
    entry, known = {"task": name}, _parameters(name)
    for part in filter(None, rest.split(",")):
        field, _, value = part.partition("=")
        if field not in known:
            raise InputError(f"task {name} has no field {field!r}; it has {', '.join(known) or 'none'}")
        try:
            entry[field] = known[field].annotation(value)
        except ValueError:
            kind = known[field].annotation.__name__
            raise InputError(f"{field} of task {name} must be {kind}, not {value!r}") from None
    return entry


def load_tasks(entries: Sequence[Mapping[str, Any]], tokenizer) -> list[Task]:
    """The tasks of all entries. Those of one name and scorer are one task, whose questions share batches."""
    questions: dict[Any, tuple[Question, ...]] = defaultdict(tuple)
    for entry in entries:
        check_task(entry)
        name, fields = _split(entry)
        task = TASKS[name](tokenizer, **fields)
        questions[name, task.scorer] += task.questions
    tasks = [Task(name, asked, scorer) for (name, scorer), asked in questions.items() if asked]
    if not tasks:
        raise InputError("no tasks to evaluate: the task sources hold no document")
    return tasks


def choose_questions(
    tasks: Sequence[Task], ways: Sequence[tuple[ModelSpec, Mode]]
) -> tuple[list[Task], list[dict[str, str]]]:
    """(the tasks with the questions that can be asked every way, {"document", "reason"} of each other, said at once).

    Where none is left, an InputError says the first reason.
    """
    kept, refused = [], []
    for task in tasks:
        questions = []
        for question in task.questions:
            reasons = (task.scorer.refuse(spec, mode, question) for spec, mode in ways)
            if reason := next(filter(None, reasons), None):
                refused.append({"document": question.document, "reason": reason})
            else:
                questions.append(question)
        kept += [replace(task, questions=tuple(questions))] if questions else []
    if not kept:
        raise InputError(f"no task can be evaluated: {refused[0]['reason']}")
    for entry in refused:
        logging.warning("not evaluated: %s", entry["reason"])
    return kept, refused


def decoded_questions(tasks: Sequence[Task]) -> list[Question]:
    """Those that a model answers by decoding."""
    return [question for task in tasks if task.scorer.decodes for question in task.questions]


def need_decoded(tasks: Sequence[Task]) -> Sequence[Task]:
    """The tasks; InputError where nothing of them is decoded, so that there are no tokens to count."""
    if not decoded_questions(tasks):
        raise InputError("tokens per forward are measured, and these tasks decode nothing: add one that does")
    return tasks


def _split(entry: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """(name, the other fields); what names no task is a source of exact answers."""
    if not isinstance(entry, Mapping):
        raise InputError(f"tasks are a tuple of dicts, ({{'task': ...}},) with its comma, not {entry!r}")
    name = entry["task"] if "task" in entry else "tasks"
    _parameters(name)
    return name, {field: entry[field] for field in entry if field != "task"}


def _parameters(name: str) -> dict[str, inspect.Parameter]:
    """What a task may be told, beside the tokenizer; a source's fields are its own."""
    if not isinstance(name, str) or name not in TASKS:
        raise InputError(f"unknown task {name!r}; known tasks: {', '.join(TASKS)}")
    _, *parameters = inspect.signature(TASKS[name]).parameters.items()
    return {field: parameter for field, parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD}
