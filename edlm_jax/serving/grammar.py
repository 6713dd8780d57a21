"""Answers that must be JSON: which tokens may come next, by llguidance; behind a whole text what ends a row alone."""

import functools
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llguidance import LLMatcher
from llguidance.hf import from_tokenizer
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

from edlm_jax.errors import InputError
from edlm_jax.pretrained import Text

_SPACE = r"\n? {0,16}"  # between JSON's tokens: without a bound, a model that likes white space writes nothing else


class JsonGuide:
    """The tokens that may follow a row's own, by a matcher that follows the row."""

    def __init__(self, matcher: Any, vocab_size: int, ends: Sequence[int]):
        self._matcher, self._mask_1W, self._taken = matcher, allocate_token_bitmask(1, vocab_size), 0
        is_end = np.isin(np.arange(32 * self._mask_1W.size), list(ends))
        self._ends_W = np.packbits(is_end, bitorder="little").view(np.int32)
        self.error: str | None = None  # why the schema cannot be followed further: the row ends

    def __call__(self, tokens: Sequence[int]) -> np.ndarray:
        """int32[W]: a bit for each id, the lowest first, of those that may come behind all the row's new tokens."""
        self._matcher.consume_tokens(list(tokens[self._taken :]))
        self._taken = len(tokens)
        if not self._matcher.is_error():
            fill_next_token_bitmask(self._matcher, self._mask_1W)
        if self._matcher.is_error():
            self.error = f"the schema cannot be followed further: {_line(self._matcher.get_error())}"
            self._mask_1W[0] = self._ends_W
        elif not self._matcher.is_accepting():
            self._mask_1W[0] &= ~self._ends_W  # an end may read as text, too: here it would cut the answer
        return self._mask_1W[0].copy()


def guide_maker(text: Text, vocab_size: int, schema: Any) -> Callable[[], JsonGuide]:
    """What makes a guide for each row whose text must match a JSON schema; InputError says why there can be none."""
    try:
        grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides={"whitespace_pattern": _SPACE})
    except ValueError as error:  # numbers that JSON has not, brackets in brackets
        raise InputError(f"the schema cannot be followed: {_line(error)}") from None
    matcher = LLMatcher(_tokenizer(text, vocab_size), grammar, log_level=0)
    if matcher.is_error():
        raise InputError(f"the schema cannot be followed: {_line(matcher.get_error())}")
    make = lambda: JsonGuide(matcher.deep_copy(), vocab_size, text.ends)  # noqa: E731
    (first := make())([])
    if first.error:  # of a schema of itself alone, say: no text begins it
        raise InputError(first.error)
    return make


@functools.lru_cache(maxsize=8)
def _tokenizer(text: Text, vocab_size: int):
    if not text.ends:
        raise InputError("answers by a schema need a tokenizer with an end token")
    try:
        return from_tokenizer(text.tokenizer, n_vocab=vocab_size, eos_token=list(text.ends))
    except Exception as error:  # what its parser raises of a tokenizer that it does not know
        raise InputError(f"no schema can be followed in this tokenizer: {_line(error)}") from None


def _line(error: Any) -> str:
    """One line, without the parser's state, which llguidance writes behind some errors."""
    return " ".join(str(error).partition("<state>")[0].split())
