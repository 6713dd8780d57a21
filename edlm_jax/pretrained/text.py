"""How a model's tokens read, and which of them end what it says."""

import functools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edlm_jax.errors import InputError
from edlm_jax.files import read_json
from edlm_jax.models.spec import ModelSpec
from edlm_jax.pretrained.encode import HFTokenizer

Read = Callable[[list[int]], str]
_BEFORE = 32  # tokens of a prompt that are read with what follows: more than one character's bytes
_ANSWER = "edlm-answer"  # said in a conversation, to see what a chat template writes behind it


@dataclass(frozen=True)
class Text:
    """A tokenizer as a decoder needs it: `decoder(prompts, ends=text.ends, detokenize=text, stop=...)`."""

    tokenizer: HFTokenizer
    ends: tuple[int, ...] = ()  # the tokens that end what a model says, the tokenizer's own first
    turn_stop: str = ""  # what the chat template ends an answer by, where that is no token

    @classmethod
    def of(cls, spec: ModelSpec, tokenizer: HFTokenizer) -> "Text":
        """A model's. It ends at the tokenizer's end, at all that its files list, and where its template ends a turn."""
        closing = _closing(tokenizer)
        added = {token.content: token_id for token_id, token in tokenizer.added_tokens_decoder.items()}
        closers = [content for content in added if content and closing.startswith(content)]
        turn_ends = [added[max(closers, key=len)]] if closers else []
        listed, generation = listed_ends(json.loads(spec.hf_json)), Path(spec.source, "generation_config.json")
        if spec.source and generation.is_file():
            listed = [*listed_ends(read_json(generation), generation), *listed]
        ends = dict.fromkeys([tokenizer.eos_token_id, *listed, *turn_ends])
        return cls(tokenizer, tuple(token for token in ends if token is not None), "" if closers else closing)

    def shown(self, tokens: list[int]) -> str:
        """As a person reads them: without special tokens."""
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def whole(self, tokens: list[int]) -> str:
        """With special tokens, as a stop string may name them."""
        return str(self.tokenizer.decode(tokens, clean_up_tokenization_spaces=False))

    @functools.cached_property
    def special(self) -> frozenset[str]:
        """The tokens that are not shown."""
        return frozenset(token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special)


def read_after(read: Read, prompt: Sequence[int], tokens: Sequence[int]) -> str:
    """What tokens add to their prompt's text.

    Read alone they may lose what joins the two: tokenizers of the Metaspace kind drop a text's first space, and a
    character may have its first bytes in the prompt.
    """
    before = list(prompt[-_BEFORE:])
    texts = [read(before), read([*before, *tokens])]
    return texts[1][len(os.path.commonprefix(texts)) :]


def _closing(tokenizer) -> str:
    """What the chat template writes behind an answer, without white space around it; "" where it is not known."""
    if not tokenizer.chat_template:
        return ""
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _ANSWER}]
    try:
        _, answer, rest = tokenizer.apply_chat_template(messages, tokenize=False).rpartition(_ANSWER)
    except Exception:  # noqa: BLE001 (a template refuses by whatever exception it likes)
        return ""
    return rest.strip() if answer else ""


def listed_ends(config: Mapping[str, Any], name: str | Path = "config.json") -> list[int]:
    """The ids under `eos_token_id` of a file's JSON, which has one or a list."""
    listed = config.get("eos_token_id")
    ids = listed if isinstance(listed, list) else [] if listed is None else [listed]
    if not all(isinstance(token, int) and not isinstance(token, bool) for token in ids):
        raise InputError(f"{name}: eos_token_id must be a token's id or a list of them, not {listed!r}")
    return ids
