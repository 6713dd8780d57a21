"""Embeddings against the plain mean of hidden states; retrieval by hand; the benchmark's adapter."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers.processors import TemplateProcessing

from edlm_jax.attention import Bidirectional, Causal
from edlm_jax.commands.main import main
from edlm_jax.errors import InputError
from edlm_jax.evaluation import embedding
from edlm_jax.evaluation.embedding import attentions, documented_functions, embed, retrieval
from edlm_jax.evaluation.mteb import Encoder
from edlm_jax.pretrained import load_pretrained, load_tokenizer
from tests.data.conftest import END, make_tokenizer


def test_an_embedding_is_the_mean_of_the_texts_own_hidden_states(tiny_converted_dir):
    model = load_pretrained(tiny_converted_dir, "float32")
    rows = [[5, 9, 7], list(range(40)), [8]]
    for pattern in attentions(model.spec).values():
        vectors = embed(model, rows, pattern=pattern, batch_size=2)
        for row, vector in zip(rows, vectors, strict=True):
            alone_TD = model.hidden(jnp.asarray([row]), pattern=pattern)[0]
            np.testing.assert_allclose(vector, alone_TD.mean(axis=0), atol=1e-5)
    assert list(attentions(model.spec)) == ["causal", "block_causal", "bidirectional"]
    with pytest.warns(UserWarning, match="1 of 2 texts are read up to their first 256 tokens"):
        vectors = embed(model, [[3] * 256, [3] * 257], pattern=Causal())
    np.testing.assert_array_equal(*vectors)
    with pytest.raises(InputError, match="without tokens"):
        embed(model, [[1], []], pattern=Causal())


def test_functions_are_documented_and_their_lines_hidden():
    pairs = documented_functions(40)
    assert len(set(pairs)) == 40 and pairs == documented_functions(40)
    for docstring, body in pairs:
        assert docstring not in body and len(docstring.split()) >= 5 and body.count("\n") >= 2
    text = '@decorated\ndef name(x):\n    """One two three four five."""\n    y = 1\n    z = 2\n    return x\n'
    assert list(embedding._documented(text)) == [("One two three four five.", "y = 1\nz = 2\nreturn x")]
    with pytest.raises(InputError, match="ask for no more"):
        documented_functions(10**6)


def test_ranks(tiny_ar_dir, monkeypatch):
    vectors = {0: [1.0, 0.0], 1: [0.0, 1.0], 2: [2.0, 1.0], 3: [5.0, 1.0]}  # queries 0 and 1; their texts 2 and 3
    monkeypatch.setattr(embedding, "embed", lambda model, rows, pattern: np.array([vectors[row] for row in rows]))
    monkeypatch.setattr(embedding, "encode_text", lambda tokenizer, text: int(text))
    found = retrieval(None, None, [("0", "2"), ("1", "3")], pattern=Causal())
    assert found == dict(mean_reciprocal_rank=0.5, recall_at_1=0.0, recall_at_10=1.0)
    vectors[2] = vectors[3]  # texts that are alike find nothing
    assert retrieval(None, None, [("0", "2"), ("1", "3")], pattern=Causal())["recall_at_1"] == 0
    vectors[0] = [np.nan, 0.0]
    with pytest.raises(InputError, match="not finite"):
        retrieval(None, None, [("0", "2"), ("1", "3")], pattern=Causal())


def test_the_command_measures_both_models(tiny_converted_dir, tiny_ar_dir, capsys):
    argv = ["evaluate", "--task=retrieval", f"--model={tiny_converted_dir}", f"--baseline={tiny_ar_dir}", "--count=3"]
    assert main([*argv, "--dtype=float32", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["retrieval"]
    assert list(found["ar"]) == ["causal", "bidirectional"]
    assert found["diffusion"]["block_causal"]["recall_at_10"] == 1  # of three
    assert found["ar"]["causal"] == found["diffusion"]["causal"]  # the same weights
    assert main([*argv, "--data=stdlib"]) == 2


def test_the_benchmarks_encoder(tiny_converted_dir):
    encoder = Encoder(tiny_converted_dir, dtype="float32")
    texts = ["one text", "", "another"]
    vectors = encoder.encode(texts)
    assert vectors.shape == (3, 32) and np.isfinite(vectors).all()
    np.testing.assert_array_equal(encoder.encode([{"text": texts[:2]}, {"text": texts[2:]}], batch_size=32), vectors)
    tokenizer, model = load_tokenizer(tiny_converted_dir), load_pretrained(tiny_converted_dir, "float32")
    own = embed(model, [tokenizer.encode("another")], pattern=Bidirectional())
    np.testing.assert_allclose(own[0], vectors[2], atol=1e-5)
    with pytest.raises(InputError, match="attention 'sideways'"):
        Encoder(tiny_converted_dir, attention="sideways")


def test_texts_are_read_as_in_training(tiny_converted_dir, monkeypatch):
    encoder, rows = Encoder(tiny_converted_dir, dtype="float32"), []
    monkeypatch.setattr("edlm_jax.evaluation.mteb.embed", lambda model, texts, **_: rows.extend(texts))
    encoder._tokenizer = make_tokenizer(bos_token="<|im_start|>", eos_token=END)
    start, end = encoder._tokenizer.bos_token_id, encoder._tokenizer.eos_token_id
    special = [("<|im_start|>", start), (END, end)]
    added = TemplateProcessing(single=f"<|im_start|> $A {END}", special_tokens=special)
    encoder._tokenizer.backend_tokenizer.post_processor = added
    encoder.encode(["a", "<|im_start|>a", ""])
    assert rows == [[start, *encoder._tokenizer.encode("a", add_special_tokens=False)]] * 2 + [[start]]
