"""Adapters of noisy columns alone: the clean stream is the AR model, the noisy one is what a mask of columns gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from edlm_jax.attention import Causal, CleanContext
from edlm_jax.models import layer, lora
from edlm_jax.models.cache import DecodingWeights, Rotary, forward_cached, prefill
from edlm_jax.models.lora import Lora, combine, partition
from edlm_jax.models.transformer import Transformer
from tests.seeds import fresh_rng
from tests.training.tiny import random_model

B, L, C, M = 2, 15, 5, 20
PATTERN = CleanContext(L, C, "token_causal", M, "causal")
MODELS = {"qwen3": {}, "biases, many layers": dict(attention_bias=True, num_hidden_layers=5)}
TARGETS = {"all": (), "some": ("v_proj", "o_proj", "up_proj")}


def with_adapters(model, how: Lora):
    """The model with random adapters."""
    graphdef, shapes = nnx.split(nnx.eval_shape(lambda: Transformer(model.spec, rngs=nnx.Rngs(0), lora=how)))
    rng, base = fresh_rng(), nnx.to_pure_dict(nnx.state(model, nnx.Param))
    layers = nnx.to_pure_dict(shapes)["layers"]
    names = sorted(set(layers) - set(base["layers"]))
    drawn = {name: jnp.asarray(rng.normal(0, 0.2, layers[name].shape), jnp.float32) for name in names}
    return graphdef, base | {"layers": base["layers"] | drawn}


@pytest.fixture
def inputs():
    rng = fresh_rng()
    firsts_BN = np.stack([rng.permutation(4) % 3 * C for _ in range(B)])
    copies_BM = (firsts_BN[:, :, None] + np.arange(C)).reshape(B, M)
    clean_BL = rng.integers(0, 90, (B, L))
    take = lambda x_BL: np.concatenate([np.take_along_axis(x_BL, copies_BM, 1), x_BL], 1)  # noqa: E731
    segments_BL = np.tile([1] * 7 + [2] * 6 + [0] * 2, (B, 1))
    inputs = dict(
        tokens_BT=np.concatenate([rng.integers(0, 90, (B, M)), clean_BL], 1),
        positions_BT=take(np.tile(np.arange(L), (B, 1))),
        segment_ids_BT=take(segments_BL),
        copies_BM=copies_BM,
    )
    return jax.tree.map(jnp.asarray, inputs)


def by_mask(p, matrix, x_BTI):
    """Of a model with adapters everywhere: what they add is multiplied by a mask of columns."""
    added = lora.low_rank(p, matrix, x_BTI)
    if lora.ADAPTERS[matrix][0] not in p:
        return added
    return added * (jnp.arange(x_BTI.shape[1]) < M).reshape(1, -1, *(1,) * (added.ndim - 2))


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("targets", TARGETS)
def test_streams_and_gradients_are_those_of_a_mask_over_columns(inputs, family, targets, monkeypatch):
    model, how = random_model(**MODELS[family]), Lora(3, 12.0, "noisy", TARGETS[targets])
    graphdef, params = with_adapters(model, how)
    trained, frozen = partition(params, how)
    rng = fresh_rng()
    weigh_BTD = jnp.asarray(rng.normal(size=(B, M + L, 32)), jnp.float32)

    def loss(trained, graphdef, remat):
        x_BTD = nnx.merge(graphdef, combine(trained, frozen)).hidden(pattern=PATTERN, remat=remat, **inputs)
        return (x_BTD * weigh_BTD).sum(), x_BTD

    run = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=(1, 2))
    (_, ours_BTD), ours = run(trained, graphdef, "full" if targets == "all" else "none")
    monkeypatch.setattr(layer, "low_rank", by_mask)
    everywhere, _ = with_adapters(model, Lora(3, 12.0, "all", TARGETS[targets]))
    (_, theirs_BTD), theirs = run(trained, everywhere, "none")
    np.testing.assert_allclose(ours_BTD, theirs_BTD, atol=1e-4)
    for (path, a), b in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3 * np.abs(b).max(), err_msg=str(path))


@pytest.mark.parametrize("family", MODELS)
def test_the_clean_stream_is_the_ar_model_and_leaves_nothing_behind(inputs, family):
    model, how = random_model(**MODELS[family]), Lora(3, 12.0, "noisy")
    graphdef, params = with_adapters(model, how)
    trained, frozen = partition(params, how)
    assert set(trained) == {"layers"} and set(trained["layers"]) == lora.ADAPTER_NAMES
    alone = {name: x[:, M:] for name, x in inputs.items() if name != "copies_BM"}
    expected = model.hidden(pattern=Causal(), **alone)
    run = lambda trained: nnx.merge(graphdef, combine(trained, frozen)).hidden(pattern=PATTERN, **inputs)  # noqa: E731
    x_BTD, backward = jax.vjp(run, trained)
    np.testing.assert_array_equal(x_BTD[:, M:], expected)
    assert np.abs(x_BTD[:, :M] - model.hidden(pattern=PATTERN, **inputs)[:, :M]).max() > 0.1
    np.testing.assert_array_equal(nnx.merge(graphdef, params).hidden(pattern=Causal(), **alone), expected)
    spec = model.spec
    clean = [x.shape for x in jax.tree.leaves(backward) if L in x.shape and x.dtype == jnp.float32]
    wide = [shape for shape in clean if not {spec.width, spec.ffn_width, spec.num_heads}.isdisjoint(shape)]
    assert len(wide) <= 1 and np.prod(wide) <= B * L * spec.width, wide  # of no layer, at most what is returned
    zero = backward(jnp.zeros_like(x_BTD).at[:, M:].set(1.0))
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(zero))


def test_drafts_of_a_call_see_what_noisy_columns_saw_in_training():
    """[prefix | known] verified, then [known | drafts]: the last columns alone are adapted."""
    how = Lora(3, 12.0, "noisy")
    graphdef, params = with_adapters(random_model(), how)
    model, rng = nnx.merge(graphdef, params), fresh_rng()
    clean_BL, noisy_BC = rng.integers(0, 90, (B, L)), rng.integers(0, 90, (B, C))
    row_BT = np.concatenate([np.tile(noisy_BC, (1, 3)), clean_BL], 1)
    x_BTD = model.hidden(jnp.asarray(row_BT), pattern=CleanContext(L, C, "token_causal", None, "causal"))
    weights, rotary, S = DecodingWeights.of(model), Rotary.of(model.spec, L), 2 * C
    known_BP = jnp.asarray(clean_BL[:, :S])
    kept = dict(keep=S - 1, length=L)
    at = lambda start, stop: rotary.at(jnp.arange(start, stop)[None])  # noqa: E731
    _, cache = prefill(weights, known_BP[:, :-1], at(0, S - 1), Causal(), jnp.ones((B, S - 1), int), **kept)
    call_BT = jnp.concatenate([known_BP[:, -1:], jnp.asarray(noisy_BC)], 1)
    mask_BTS = np.broadcast_to(np.arange(L) <= S - 1 + np.arange(C + 1)[:, None], (B, C + 1, L))
    ours_BTD, _ = forward_cached(weights, cache, call_BT, at(S - 1, S + C), S - 1, jnp.asarray(mask_BTS), drafts=C)
    np.testing.assert_allclose(ours_BTD[:, 1:], x_BTD[:, S : S + C], atol=1e-4)
    np.testing.assert_allclose(ours_BTD[:, 0], x_BTD[:, L + S - 1], atol=1e-4)
    closed_BTD, _ = forward_cached(weights, cache, call_BT[:, :1], at(S - 1, S), S - 1, jnp.asarray(mask_BTS[:, :1]))
    if type(weights.backend).__name__ == "CpuKernels":
        np.testing.assert_array_equal(closed_BTD[:, 0], ours_BTD[:, 0])


