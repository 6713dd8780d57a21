"""The forms of OpenAI's answers: whole ones, the chunks of streams, and what they count."""

import functools
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from edlm_jax.decoding import Generation
from edlm_jax.decoding.stopping import PART
from edlm_jax.pretrained import Text
from edlm_jax.pretrained.text import read_after
from edlm_jax.serving.loop import Piece, Row

_BYTES = 4  # of a character, the most
_NEVER = -9999.0  # OpenAI's, of what a schema forbids: JSON has no infinity


@dataclass(frozen=True)
class Form:
    """Of one answer; all of its chunks have its id and time."""

    chat: bool
    model: str
    text: Text
    best: int | None  # log-probabilities beside each token's own; None: none at all
    number: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, pieces: Sequence[Piece], usage: dict[str, Any]) -> dict[str, Any]:
        """An answer in one piece, of one for each choice."""
        messages = [{"message": {"role": "assistant", "content": piece.text}} for piece in pieces]
        choices = [self._choice(index, *said) for index, said in enumerate(zip(messages, pieces, strict=True))]
        return self._object(choices, "chat.completion") | {"usage": usage}

    def begin(self, index: int) -> dict[str, Any]:
        """The chunk that a choice of a conversation begins with."""
        return self._object([self._choice(index, {"delta": {"role": "assistant", "content": ""}})])

    def piece(self, index: int, piece: Piece) -> dict[str, Any]:
        """A chunk with what is new of a choice."""
        return self._object([self._choice(index, {"delta": {"content": piece.text} if piece.text else {}}, piece)])

    def counted(self, usage: dict[str, Any]) -> dict[str, Any]:
        """The chunk that ends a stream which is asked for its usage."""
        return self._object([]) | {"usage": usage}

    def _object(self, choices: list[dict[str, Any]], kind: str = "chat.completion.chunk") -> dict[str, Any]:
        name, kind = (f"chatcmpl-{self.number}", kind) if self.chat else (f"cmpl-{self.number}", "text_completion")
        return {"id": name, "object": kind, "created": self.created, "model": self.model, "choices": choices}

    def _choice(self, index: int, said: dict[str, Any], piece: Piece | None = None) -> dict[str, Any]:
        """`said` is the form of a conversation; a completion has the text alone."""
        said = {"text": piece.text} if piece and not self.chat else said
        logprobs = None if self.best is None or piece is None else self._logprobs(piece, self.best)
        return {"index": index, **said, "logprobs": logprobs, "finish_reason": piece and piece.finished}

    def _logprobs(self, piece: Piece, best: int) -> dict[str, Any]:
        """Of all tokens that are counted, an end too."""
        columns = [
            [(_token_text(self.text, token), max(value, _NEVER)) for token, value in column[: best + 1]]
            for column in piece.logprobs
        ]
        if self.chat:
            as_bytes = lambda text: None if PART in text else list(text.encode())  # noqa: E731
            told = [[{"token": t, "logprob": v, "bytes": as_bytes(t)} for t, v in column] for column in columns]
            return {"content": [own | {"top_logprobs": others} for own, *others in told], "refusal": None}
        tokens, values = [column[0][0] for column in columns], [column[0][1] for column in columns]
        return {
            "tokens": tokens,
            "token_logprobs": values,
            "top_logprobs": [dict(reversed(column)) for column in columns] if best else None,
            "text_offset": _offsets(self.text, [column[0][0] for column in piece.logprobs], piece.begin),
        }


@functools.lru_cache(maxsize=2**16)
def _token_text(text: Text, token: int) -> str:
    """Of a token inside a text: at its beginning some tokenizers drop a space."""
    return read_after(text.whole, [token], [token])


def _offsets(text: Text, tokens: Sequence[int], begin: int) -> list[int]:
    """Where each token begins in the answer's text; one inside a character, where that does."""
    offsets, part, said = [], [], ""
    for token in tokens:
        offsets.append(begin + len(said.rstrip(PART)))
        part.append(token)
        said = read_after(text.shown, part, part)
        if not said.endswith(PART) or len(part) == _BYTES:
            begin, part, said = begin + len(said), [], ""
    return offsets


def usage(rows: Sequence[Row], n: int) -> dict[str, Any]:
    """OpenAI's counts, and the forwards that the rows took; a prompt's `n` rows lie together."""
    total = Generation.joined([row.result for row in rows])
    prompt_tokens, tokens = sum(len(row.prompt) for row in rows[::n]), sum(map(len, total.tokens))
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": tokens,
        "total_tokens": prompt_tokens + tokens,
        "denoise_forwards": total.denoise_forwards,
        "commit_forwards": total.commit_forwards,
        "tokens_per_forward": total.tokens_per_forward,
    }
