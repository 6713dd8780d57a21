"""Documents become tokens and a loss mask: 1 on what is learned, 0 on what is given (prompts, other speakers).

    dict(text=str)                     1 on everything
    dict(prompt=str, response=str)     0 on the prompt, 1 on the response
    dict(messages=[dict(role=, content=), ...])     1 on what the assistant says, 0 on the rest of the chat template;
                                                    beside it tools=[...], and in a message what the template knows
    dict(tokens=[int], loss_mask=[int])             as they are (loss_mask may be left out: all 1)

The first three end with the tokenizer's end-of-sequence token, which carries loss. In text, prompt and response a
special token that is written out is that token; in messages it is text.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edlm_jax.errors import InputError
from edlm_jax.pretrained.chat import Part, learned_turns
from edlm_jax.pretrained.encode import encode_bare, encode_more, encode_text, id_limit

Document = Mapping[str, Any]
Tokens = tuple[np.ndarray, np.ndarray]  # tokens_L, loss_mask_L, both int32


def tokenize(document: Document, tokenizer) -> list[Tokens]:
    """The document's tokens and loss mask; InputError where nothing can be learned from it.

    Of a conversation whose template shows earlier turns otherwise, a pair for each turn (chat.py); of blank text none.
    """
    if "tokens" in document:
        return [_check_tokens(document, id_limit(tokenizer))]
    if "messages" in document:
        turns = learned_turns(tokenizer, document["messages"], document.get("tools"))
        return [_tokenize_turns(parts, tokenizer) for parts in turns]
    if "prompt" in document:
        prompt, response = document["prompt"], document["response"]
        if not (prompt + response).strip():
            return []
        answer = encode_more(tokenizer, response, prompt)
        return [_join([(encode_text(tokenizer, prompt), 0), (_ended(answer, tokenizer), 1)])]
    ids = encode_text(tokenizer, document["text"])
    if not document["text"].strip() or not {*ids} - {tokenizer.bos_token_id, tokenizer.eos_token_id}:
        return []
    return [_join([(_ended(ids, tokenizer), 1)])]


def _ended(ids: list[int], tokenizer) -> list[int]:
    """With the end-of-sequence token, once: a text may have it already."""
    return ids if ids and ids[-1] == tokenizer.eos_token_id else [*ids, tokenizer.eos_token_id]


def _join(parts: Sequence[tuple[list[int], int]]) -> Tokens:
    tokens_L = np.array([token for ids, _ in parts for token in ids], np.int32)
    loss_mask_L = np.repeat(np.array([loss for _, loss in parts], np.int32), [len(ids) for ids, _ in parts])
    return tokens_L, loss_mask_L


def _check_tokens(document: Document, limit: int) -> Tokens:
    tokens_L = np.asarray(document["tokens"], np.int32)
    loss_mask_L = np.asarray(document.get("loss_mask", np.ones_like(tokens_L)))
    if tokens_L.shape != loss_mask_L.shape or tokens_L.ndim != 1:
        raise InputError(f"{tokens_L.shape} tokens with a loss mask of {loss_mask_L.shape}; both must be [length]")
    if not ((loss_mask_L == 0) | (loss_mask_L == 1)).all():
        raise InputError("a loss mask holds 0 (given) and 1 (learned) only")
    # JAX would clamp a token past the end of the embedding in silence.
    if (unknown := tokens_L[(tokens_L < 0) | (tokens_L >= limit)]).size:
        raise InputError(
            f"token {unknown[0]} is outside the tokenizer's vocabulary, whose ids end at {limit - 1}; "
            "was the corpus pre-tokenised with another tokenizer?"
        )
    return tokens_L, loss_mask_L.astype(np.int32)


def _tokenize_turns(parts: Sequence[Part], tokenizer) -> Tokens:
    joined, end, before = [], tokenizer.eos_token_id, None
    for text, says in parts:
        # As the decoder meets it: no prompt knows its answer.
        ids = encode_bare(tokenizer, text) if before is None else encode_more(tokenizer, text, before)
        before = text
        # What the template writes after the end of a turn is never generated: decoding stops at the end.
        spoken = ids.index(end) + 1 if says and end in ids else len(ids) * says
        joined += [(ids[:spoken], 1), (ids[spoken:], 0)]
    # What follows the last answer teaches nothing.
    (answer, _), _ = joined[-2:]
    return _join([*joined[:-2], (_ended(answer, tokenizer), 1)])
