"""Texts as vectors: hidden states averaged over tokens, and how well a docstring finds its function's body by them."""

import ast
import functools
import textwrap
import warnings
from collections import Counter
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from edlm_jax.attention import PLAIN, BlockCausal, Pattern
from edlm_jax.data.stdlib import StdlibSource
from edlm_jax.decoding.prompts import bucket
from edlm_jax.errors import InputError
from edlm_jax.models.spec import ModelSpec
from edlm_jax.models.transformer import Transformer
from edlm_jax.pretrained.encode import encode_text

_SHORTEST = 32  # columns of the smallest row; rows double from here, so that mixed lengths compile few programs
_MOST = 256  # tokens that are read of a text, as far as the model goes
_LEAST_WORDS, _LEAST_LINES = 5, 3  # of a docstring, of a body


def attentions(spec: ModelSpec, block_length: int | None = None) -> dict[str, Pattern]:
    """The ways to read a text, by name: block-causal where there is a block length to read it by."""
    C = block_length or (spec.conversion.block_length if spec.conversion else None)
    return {name: make(C) for name, make in PLAIN.items() if C or make is not BlockCausal}


def embed(model: Transformer, rows: Sequence[Sequence[int]], *, pattern: Pattern, batch_size: int = 32) -> np.ndarray:
    """float32[texts, D]: the mean over a text's tokens of what the head would read; warns of texts that are cut."""
    if not all(rows):
        raise InputError("a text without tokens has no embedding")
    longest = min(_MOST, model.spec.max_length)
    if cut := sum(len(row) > longest for row in rows):
        warnings.warn(f"{cut} of {len(rows)} texts are read up to their first {longest} tokens", stacklevel=2)
    rows = [row[:longest] for row in rows]
    graphdef, state = nnx.split(model)
    vectors = np.zeros((len(rows), model.spec.width), np.float32)
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        T = bucket(len(rows[chosen[-1]]), _SHORTEST)
        T += -T % getattr(pattern, "block_length", 1)
        tokens_BT, real_BT = np.zeros((2, batch_size, T), np.int32)
        for place, index in enumerate(chosen):
            tokens_BT[place, : len(rows[index])], real_BT[place, : len(rows[index])] = rows[index], 1
        vectors[chosen] = _mean_hidden(graphdef, state, tokens_BT, real_BT, pattern)[: len(chosen)]
    return vectors


@functools.partial(jax.jit, static_argnames=("graphdef", "pattern"))
def _mean_hidden(graphdef, state, tokens_BT, real_BT, pattern):
    x_BTD = nnx.merge(graphdef, state).hidden(tokens_BT, pattern=pattern, segment_ids_BT=real_BT)
    x_BTD = jnp.where(real_BT[:, :, None] > 0, x_BTD.astype(jnp.float32), 0.0)
    return x_BTD.sum(axis=1) / jnp.maximum(real_BT.sum(axis=1, keepdims=True), 1)


def retrieval(model: Transformer, tokenizer, pairs: Sequence[tuple[str, str]], *, pattern: Pattern) -> dict[str, float]:
    """{"mean_reciprocal_rank", "recall_at_1", "recall_at_10"} of each first text's own second text, by cosine."""
    encode = lambda texts: [encode_text(tokenizer, text) for text in texts]  # noqa: E731
    queries_QD, texts_QD = (normalise(embed(model, encode(side), pattern=pattern)) for side in zip(*pairs, strict=True))
    scores_QQ = queries_QD @ texts_QD.T
    if not np.isfinite(scores_QQ).all():
        raise InputError("the model's hidden states are not finite: there is nothing to compare")
    rank_Q = (scores_QQ >= np.diag(scores_QQ)[:, None]).sum(axis=1)  # its own is one of them; ties count against it
    recalls = {f"recall_at_{count}": float((rank_Q <= count).mean()) for count in (1, 10)}
    return {"mean_reciprocal_rank": float((1 / rank_Q).mean())} | recalls


def normalise(vectors_BD: np.ndarray) -> np.ndarray:
    """Of length one, so that products are cosines."""
    return vectors_BD / np.maximum(np.linalg.norm(vectors_BD, axis=-1, keepdims=True), 1e-9)


def documented_functions(count: int) -> list[tuple[str, str]]:
    """(docstring, body without it) of functions of held-out standard library files, spread over all of them.

    The line with the function's name is in neither. Of a docstring that occurs twice the last body counts; bodies that
    occur twice are left out.
    """
    found = dict(pair for document in StdlibSource("test") for pair in _documented(document["text"]))
    bodies = Counter(found.values())
    pairs = [(docstring, body) for docstring, body in found.items() if bodies[body] == 1]
    if len(pairs) < count:
        raise InputError(f"the held-out standard library has {len(pairs)} documented functions; ask for no more")
    return [pairs[index * len(pairs) // count] for index in range(count)]


def _documented(text: str):
    try:
        tree = ast.parse(text)
    except SyntaxError:  # of another version
        return
    lines = text.split("\n")
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and len(node.body) > 1:
            docstring, body = ast.get_docstring(node) or "", lines[node.body[1].lineno - 1 : node.end_lineno]
            if len(docstring.split()) >= _LEAST_WORDS and len(body) >= _LEAST_LINES:
                yield docstring, textwrap.dedent("\n".join(body)).strip()
