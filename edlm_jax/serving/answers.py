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
        said = lambda text: {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}  # noqa: E731
        choices = [self._choice(index, said(piece.text), piece) for index, piece in enumerate(pieces)]
        return self._object("chat.completion" if self.chat else "text_completion", choices) | {"usage": usage}

    def begin(self, index: int) -> dict[str, Any]:
        """The chunk that a choice of a conversation begins with."""
        return self._chunk([self._choice(index, {"delta": {"role": "assistant", "content": ""}})])

    def piece(self, index: int, piece: Piece) -> dict[str, Any]:
        """A chunk with what is new of a choice."""
        text = piece.text
        said = {"delta": {"content": text} if text else {}} if self.chat else {"text": text}
        return self._chunk([self._choice(index, said, piece)])

    def counted(self, usage: dict[str, Any]) -> dict[str, Any]:
        """The chunk that ends a stream which is asked for its usage."""
        return self._chunk([]) | {"usage": usage}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return self._object("chat.completion.chunk" if self.chat else "text_completion", choices)

    def _object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        name = ("chatcmpl-" if self.chat else "cmpl-") + self.number
        return {"id": name, "object": kind, "created": self.created, "model": self.model, "choices": choices}

    def _choice(self, index: int, said: dict[str, Any], piece: Piece | None = None) -> dict[str, Any]:
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
    results: list[Generation] = [row.result for row in rows]
    prompt_tokens = sum(len(row.prompt) for row in rows[::n])
    tokens = sum(len(result.tokens[0]) for result in results)
    denoise_forwards = sum(result.denoise_forwards for result in results)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": tokens,
        "total_tokens": prompt_tokens + tokens,
        "denoise_forwards": denoise_forwards,
        "commit_forwards": sum(result.commit_forwards for result in results),
        "tokens_per_forward": tokens / max(denoise_forwards, 1),
    }
