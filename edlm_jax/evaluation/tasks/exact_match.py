"""Prompts with one right response each, of any source of documents that has them: generated (data/tasks.py), or files.

The right text is read from the tokens that training would show, for a tokenizer may write a response in another way: it
may put a space before it or compose its accents.
"""

import contextlib
from collections.abc import Sequence

from edlm_jax.data.documents import Document
from edlm_jax.data.tokenized import Tokenized
from edlm_jax.errors import InputError
from edlm_jax.evaluation.tasks.task import ExactMatch, Question, Task
from edlm_jax.pretrained.text import Text, read_after


def exact_match(tokenizer, **source) -> Task:
    """The prompts of a source, as in config.data.sources."""
    documents, text, questions = Tokenized(source, tokenizer), Text(tokenizer), []
    for index, tokens in enumerate(documents):
        if not tokens:
            continue  # of no use: counted and named
        document = documents.source[index]
        if "prompt" not in document:
            raise InputError(f"a task needs a prompt and a response; {source} has {', '.join(document)}")
        ((tokens_L, loss_mask_L),) = tokens  # prompt and answer split as in training
        prompt, answer = (tokens_L[loss_mask_L == learned].tolist() for learned in (0, 1))
        expected, kind = read_after(text.whole, prompt, answer[:-1]), document.get("kind", "all")
        questions.append(Question(prompt, expected, len(answer), kind, documents.locate(index)))
    return Task("tasks", tuple(questions), ExactMatch())


def has_prompts(source: Sequence[Document]) -> bool:
    """Are a source's documents, as far as its first readable one tells, prompts with responses?"""
    for index in range(len(source)):
        with contextlib.suppress(InputError):  # who reads it all will count and name it
            return "prompt" in source[index]
    return False
