"""The forms of OpenAI's answers: whole ones, the chunks of streams, and what they count."""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from edlm_jax.decoding import Generation
from edlm_jax.serving.loop import Row


@dataclass(frozen=True)
class Form:
    """Of one answer; all of its chunks have its id and time."""

    chat: bool
    model: str
    number: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, texts: Sequence[str], ends: Sequence[str], usage: dict[str, Any]) -> dict[str, Any]:
        """An answer in one piece."""
        said = [{"message": {"role": "assistant", "content": text}} if self.chat else {"text": text} for text in texts]
        choices = [self._choice(index, end, said[index]) for index, end in enumerate(ends)]
        return self._object("chat.completion" if self.chat else "text_completion", choices) | {"usage": usage}

    def begin(self, index: int) -> dict[str, Any]:
        """The chunk that a choice of a conversation begins with."""
        return self._chunk([self._choice(index, None, {"delta": {"role": "assistant", "content": ""}})])

    def piece(self, index: int, text: str, end: str | None) -> dict[str, Any]:
        """A chunk with what is new of a choice."""
        said = {"delta": {"content": text} if text else {}} if self.chat else {"text": text}
        return self._chunk([self._choice(index, end, said)])

    def counted(self, usage: dict[str, Any]) -> dict[str, Any]:
        """The chunk that ends a stream which is asked for its usage."""
        return self._chunk([]) | {"usage": usage}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return self._object("chat.completion.chunk" if self.chat else "text_completion", choices)

    def _object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        name = ("chatcmpl-" if self.chat else "cmpl-") + self.number
        return {"id": name, "object": kind, "created": self.created, "model": self.model, "choices": choices}

    def _choice(self, index: int, end: str | None, said: dict[str, Any]) -> dict[str, Any]:
        return {"index": index, **said, "logprobs": None, "finish_reason": end}


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
