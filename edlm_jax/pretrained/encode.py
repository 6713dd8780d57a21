"""How text becomes ids: training, prompts, the harness and embeddings all read it here, and so alike.

A special token that is written out in a text is that token, so that rendered conversations can be trained on and
prompted with. Where it must not be, because it is a quotation in what somebody says (chat.py), `quote` marks it.
"""

import functools
import json
import re
import secrets
from typing import TYPE_CHECKING, TypeAlias

from tokenizers import AddedToken, Tokenizer

from edlm_jax.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
HFTokenizer: TypeAlias = "PreTrainedTokenizerBase"  # of transformers, which is slow to import

# No characters, by Unicode's word: they mean something only here.
QUOTED = "\ufdd0"  # after the first character of a special token: it is plain text
RENDERED = "\ufdd1"  # before a text: a chat template wrote it (for those who pass texts on and do not know)
# Of a special token, in a tokenizer that knows the special tokens by no other name: nobody can say one.
_ALIAS = f"\ufdd2{secrets.token_hex(8)}.{{}}\ufdd2"


def encode_text(tokenizer: HFTokenizer, text: str) -> list[int]:
    """The ids of a text from its beginning, with what the tokenizer puts before one (BOS), once.

    What it puts behind one is never there: an end is placed by whoever knows that the text ends.
    """
    start, ids = _start(tokenizer), encode_bare(tokenizer, text)
    return ids if ids[: len(start)] == start else [*start, *ids]


def encode_more(tokenizer: HFTokenizer, text: str, before: str) -> list[int]:
    """The ids of what follows a text that was encoded on its own, without the space that some begin a text with."""
    if _begins_with_space(tokenizer):
        for other in (before, "\n"):  # the second where the two would be joined into one token
            head, both = encode_bare(tokenizer, other), encode_bare(tokenizer, other + text)
            if both[: len(head)] == head:
                return both[len(head) :]
    return encode_bare(tokenizer, text)


def encode_bare(tokenizer: HFTokenizer, text: str) -> list[int]:
    """The ids of a text with nothing before it: a chat template writes its start token itself, or wants none."""
    return _encode_quoting(tokenizer, text) if QUOTED in text else tokenizer.encode(text, add_special_tokens=False)


def begin_id(tokenizer: HFTokenizer) -> int:
    """What stands before a text that is scored from its beginning: the start token, or the end of another document."""
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return token
    raise InputError("the tokenizer has neither a start nor an end token: nothing can stand before a text")


@functools.lru_cache(maxsize=8)
def id_limit(tokenizer: HFTokenizer) -> int:
    """One more than the largest id. There may be fewer tokens than that: ids have holes."""
    return 1 + max(tokenizer.get_vocab().values())


def quote(tokenizer: HFTokenizer, text: str) -> str:
    """The text with every special token in it marked as plain text."""
    return _special(tokenizer).sub(lambda found: found[0][0] + QUOTED + found[0][1:], text)


def unquote(text: str) -> str:
    """The text without marks."""
    return text.replace(QUOTED, "")


@functools.lru_cache(maxsize=8)
def _start(tokenizer) -> list[int]:
    """What the tokenizer puts before a text."""
    plain, whole = tokenizer.encode("x", add_special_tokens=False), tokenizer.encode("x")
    places = (place for place in range(len(whole)) if plain and whole[place : place + len(plain)] == plain)
    end = len(whole) - (whole[-1:] == [tokenizer.eos_token_id])
    return whole[: next(places, end)]


@functools.lru_cache(maxsize=8)
def _begins_with_space(tokenizer) -> bool:
    """Does a text get a space before it, which one that follows other text must not get? (Llama 2, Mistral)"""
    alone, behind = (tokenizer.encode(text, add_special_tokens=False) for text in ("x", "\nx"))
    return behind[len(behind) - len(alone) :] != alone


def _encode_quoting(tokenizer, text: str) -> list[int]:
    """Ids of a text with marks: special tokens that are not marked go by their aliases, what is left is plain."""
    twin, alias_of, id_of = _aliased(tokenizer)
    aliased = unquote(_special(tokenizer).sub(lambda found: alias_of[found[0]], text))
    return [id_of.get(token, token) for token in twin.encode(aliased, add_special_tokens=False).ids]


@functools.lru_cache(maxsize=8)
def _special(tokenizer) -> re.Pattern:
    """Finds special tokens, the longest first."""
    tokens = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    longest_first = sorted((token for token in tokens if len(token) > 1), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


@functools.lru_cache(maxsize=8)
def _aliased(tokenizer):
    """(a tokenizer that knows special tokens by aliases alone, alias of each token, id of each of its added tokens).

    It cuts and joins plain text as the first does, also beside special tokens, whatever their spelling.
    """
    if not tokenizer.is_fast:
        raise InputError("a message quotes a special token, and this tokenizer, without a tokenizer.json, reads none")
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    special = [token for token in spec["added_tokens"] if token["special"] and len(token["content"]) > 1]
    spec["added_tokens"] = [token for token in spec["added_tokens"] if token not in special]
    alias_of = {token["content"]: _ALIAS.format(token["id"]) for token in special}
    model, rename = spec["model"], lambda name: alias_of.get(name, name)
    if isinstance(model["vocab"], dict):
        model["vocab"] = {rename(name): token_id for name, token_id in model["vocab"].items()}
    else:  # of pieces with their scores
        model["vocab"] = [[rename(name), score] for name, score in model["vocab"]]
    if isinstance(model.get("unk_token"), str):
        model["unk_token"] = rename(model["unk_token"])
    twin = Tokenizer.from_str(json.dumps(spec | dict(post_processor=None, truncation=None, padding=None)))
    for token in special:
        how = {flag: token[flag] for flag in ("single_word", "lstrip", "rstrip")}
        twin.add_special_tokens([AddedToken(alias_of[token["content"]], normalized=False, special=True, **how)])
    id_of = {twin.token_to_id(rename(token["content"])): token["id"] for token in [*special, *spec["added_tokens"]]}
    return twin, alias_of, id_of
