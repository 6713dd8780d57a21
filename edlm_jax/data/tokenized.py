"""A source's documents as tokens: one that cannot be used is left out, counted and named, and too many are an error."""

from collections.abc import Mapping, Sequence
from typing import Any

from edlm_jax.data.counts import MAX_SKIPPED, Tally
from edlm_jax.data.documents import Tokens, tokenize
from edlm_jax.data.sources import open_source
from edlm_jax.errors import InputError

BLANK = "blank"  # documents without text; the formats in which most corpora are kept have them


class Tokenized(Sequence):
    """Random access to what each document of an entry of config.data.sources becomes: none, one or more."""

    def __init__(self, spec: Mapping[str, Any], tokenizer, max_skipped: float = MAX_SKIPPED):
        self.source, self.tokenizer = open_source(spec), tokenizer
        name, unread = spec["path"] if "path" in spec else spec["kind"], getattr(self.source, "skipped", 0)
        self.tally = Tally(name, len(self.source), max_skipped, unread)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> list[Tokens]:
        try:
            tokens = tokenize(self.source[index], self.tokenizer)
        except InputError as error:
            self.tally.skip(index, f"{self.locate(index)}: {error}")
            return []
        if not tokens:
            self.tally.count(BLANK, index)
        return tokens

    def locate(self, index: int) -> str:
        """Where a document stands, for messages."""
        located = hasattr(self.source, "locate")
        return self.source.locate(index) if located else f"document {index} of {self.tally.name}"
