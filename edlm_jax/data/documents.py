"""Documents become tokens and a loss mask: 1 on what is learned, 0 on what is given (prompts, other speakers).

    dict(text=str)                     1 on everything
    dict(prompt=str, response=str)     0 on the prompt, 1 on the response
    dict(messages=[dict(role=, content=), ...])     1 on what the assistant says, 0 on the rest of the chat template
    dict(tokens=[int], loss_mask=[int])             as they are (loss_mask may be left out: all 1)

The first three end with the tokenizer's end-of-sequence token, which carries loss.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from edlm_jax.errors import InputError

Document = Mapping[str, Any]
Tokens = tuple[np.ndarray, np.ndarray]  # tokens_L, loss_mask_L, both int32


def tokenize(document: Document, tokenizer) -> Tokens:
    """The document's tokens and loss mask, with the end-of-sequence token where the document has to bring its own."""
    if "tokens" in document:
        return _check_tokens(document, len(tokenizer))
    if "messages" in document:
        return _tokenize_messages(document["messages"], tokenizer)
    if "prompt" in document:
        prompt = _without_end(tokenizer.encode(document["prompt"]), tokenizer)
        response = tokenizer.encode(document["response"], add_special_tokens=False) + [tokenizer.eos_token_id]
        return _join([(prompt, 0), (response, 1)])
    return _join([(_without_end(tokenizer.encode(document["text"]), tokenizer) + [tokenizer.eos_token_id], 1)])


def _without_end(ids: list[int], tokenizer) -> list[int]:
    """Some tokenizers close every text by themselves; the end is ours to place."""
    return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids


def _join(parts: list[tuple[list[int], int]]) -> Tokens:
    tokens_L = np.array([token for ids, _ in parts for token in ids], np.int32)
    loss_mask_L = np.repeat(np.array([loss for _, loss in parts], np.int32), [len(ids) for ids, _ in parts])
    return tokens_L, loss_mask_L


def _check_tokens(document: Document, vocab_size: int) -> Tokens:
    tokens_L = np.asarray(document["tokens"], np.int32)
    loss_mask_L = np.asarray(document.get("loss_mask", np.ones_like(tokens_L)))
    if tokens_L.shape != loss_mask_L.shape or tokens_L.ndim != 1:
        raise InputError(f"{tokens_L.shape} tokens with a loss mask of {loss_mask_L.shape}; both must be [length]")
    if not ((loss_mask_L == 0) | (loss_mask_L == 1)).all():
        raise InputError("a loss mask holds 0 (given) and 1 (learned) only")
    # JAX would clamp a token past the end of the embedding in silence.
    if tokens_L.size and not 0 <= tokens_L.min() <= tokens_L.max() < vocab_size:
        raise InputError(
            f"token {tokens_L.max()} is outside the tokenizer's vocabulary of {vocab_size}; "
            "was the corpus pre-tokenised with another tokenizer?"
        )
    return tokens_L, loss_mask_L.astype(np.int32)


def _tokenize_messages(messages: list[dict[str, str]], tokenizer) -> Tokens:
    """Each part on its own, as the decoder meets it: a prompt is tokenised without knowing its answer."""
    parts = []
    for text, loss in render_messages(messages, tokenizer):
        ids = tokenizer.encode(text, add_special_tokens=False)
        if not loss:
            parts.append((ids, 0))
            continue
        # What the template writes after the end of a turn is never generated: decoding stops at the end.
        spoken = ids.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in ids else len(ids)
        parts += [(ids[:spoken], 1), (ids[spoken:], 0)]
    last_answer, _ = parts[-2]
    if tokenizer.eos_token_id not in last_answer:
        parts[-1] = ([tokenizer.eos_token_id], 1)
    else:
        parts.pop()
    return _join(parts)


def render_messages(messages: list[dict[str, str]], tokenizer) -> list[tuple[str, int]]:
    """The chat template's rendering cut into (text, loss) parts; the parts joined are the whole rendering.

    <|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n   Hello<|im_end|>\\n   <|im_start|>user ...
    0                                                        1                    0
    """
    if not tokenizer.chat_template:
        raise InputError("messages need a tokenizer with a chat template, and this one has none")
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    parts, done = [], 0
    for start, end in _assistant_spans(messages, tokenizer, whole):
        parts += [(whole[done:start], 0), (whole[start:end], 1)]
        done = end
    if not parts:
        raise InputError("a conversation without an assistant message has nothing to learn")
    return parts  # what follows the last answer teaches nothing


def _assistant_spans(messages: list[dict[str, str]], tokenizer, whole: str) -> Iterator[tuple[int, int]]:
    """(start, end) in the whole rendering of each assistant message, found by rendering ever longer beginnings."""
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = tokenizer.apply_chat_template(messages[:turn], tokenize=False, add_generation_prompt=True)
        answered = tokenizer.apply_chat_template(messages[: turn + 1], tokenize=False)
        if not (answered.startswith(prompt) and whole.startswith(answered)):
            raise InputError(
                f"the chat template rewrites earlier text when message {turn} is added, so the loss mask is unknown; "
                "use a template whose beginnings stay as they are, or prompt and response columns"
            )
        yield len(prompt), len(answered)
