"""One layer of the decoder, as a spec's switches say it: pre-norm attention and gated FFN; also of two streams.

Shapes as in transformer.py; the arrays of a layer are a dictionary by the names of its parameters.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from edlm_jax.attention import Attend, InPieces
from edlm_jax.models.lora import ADAPTERS, fuse_adapters, low_rank, without_adapters
from edlm_jax.models.product import project, rounded
from edlm_jax.models.rope import rotate
from edlm_jax.models.spec import ACTIVATIONS, ModelSpec
from edlm_jax.parallel import cpu
from edlm_jax.parallel.sharding import constrain, letters

_QKV, _GATE_UP = ("q_DNH", "k_DKH", "v_DKH"), ("gate_DF", "up_DF")  # matrices that share their input


def layer_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter of one layer; what a family lacks is absent."""
    names = ["attention_norm_D", "q_DNH", "k_DKH", "v_DKH", "o_NHD", "mlp_norm_D", "gate_DF", "up_DF", "down_FD"]
    names += ["q_bias_NH", "k_bias_KH", "v_bias_KH"] * spec.qkv_bias
    names += ["o_bias_D"] * spec.o_bias
    names += ["q_norm_H", "k_norm_H"] * spec.qk_norm
    names += ["attention_out_norm_D", "mlp_out_norm_D"] * spec.branch_norms
    names += ["gate_bias_F", "up_bias_F", "down_bias_D"] * spec.mlp_bias
    sizes = spec.sizes
    return {name: tuple(sizes[letter] for letter in letters(name)) for name in names}


def layer_forward(spec: ModelSpec, p: dict, x_BTD, rotary, attention, read=lambda x_BT: x_BT):
    """One pre-norm layer; `attention(q_BTNH, k_BSKH, v_BSKH) -> out_BTNH` decides who looks at whom.

    Only the columns that somebody will `read(x_BT)` are queries and come out; the others are keys and values. Matrices
    that share their input may be fused (`fuse_projections`).
    """
    x_BTD = read(x_BTD) + _attention_branch(spec, p, x_BTD, rotary, attention, read)
    gate_BTF, up_BTF = _gate_and_up(p, norm(spec, x_BTD, p["mlp_norm_D"]))
    h_BTF = ACTIVATIONS[spec.activation](gate_BTF) * up_BTF
    if spec.branch_norms:
        return x_BTD + norm(spec, _product(p, "down_FD", h_BTF), p["mlp_out_norm_D"])
    return _product(p, "down_FD", h_BTF, onto=x_BTD)


def two_streams(
    spec: ModelSpec, row: InPieces, rotary: tuple | None, plans: tuple[Attend, Attend], checkpointed: Callable
) -> Callable:
    """`body((noisy_BMD, clean_BLD), layer)` of a scan; adapters act on noisy columns alone (Uno, arXiv 2609.04010).

    The clean stream goes through by itself, without adapters: bit for bit as an AR model's rows do. Of it nothing is
    kept for a backward pass but the keys and values that noisy columns read, and no gradient comes back to it.
    `plans`: of noisy queries to the keys of the row, and of the clean stream to itself. `checkpointed` wraps what a
    backward pass computes again.
    """
    rotary_noisy, rotary_clean = zip(*map(row.split, rotary), strict=True) if rotary else (None, None)

    @checkpointed
    def noisy_layer(noisy_BMD, layer, k_BLKH, v_BLKH):
        attention = lambda q, k, v: plans[0](q, row.join(k, k_BLKH), row.join(v, v_BLKH))  # noqa: E731
        return constrain(layer_forward(spec, layer, noisy_BMD, rotary_noisy, attention), "BL_")

    def body(streams, layer):
        noisy_BMD, clean_BLD = streams[0], jax.lax.stop_gradient(streams[1])
        seen = []

        def attention(q_BLNH, k_BLKH, v_BLKH):
            seen.extend(map(jax.lax.stop_gradient, (k_BLKH, v_BLKH)))
            return plans[1](q_BLNH, k_BLKH, v_BLKH)

        own = jax.lax.stop_gradient(without_adapters(layer))
        clean_BLD = constrain(layer_forward(spec, own, clean_BLD, rotary_clean, attention), "BL_")
        return (noisy_layer(noisy_BMD, layer, *seen), clean_BLD), None

    return body


def _attention_branch(spec, p, x_BTD, rotary, attention, read):
    q_BTNH, k_BSKH, v_BSKH = _queries_keys_values(spec, p, norm(spec, x_BTD, p["attention_norm_D"]), read)
    if spec.qk_norm:
        q_BTNH = norm(spec, q_BTNH, p["q_norm_H"])
        k_BSKH = norm(spec, k_BSKH, p["k_norm_H"])
    if spec.query_scale != 1:
        q_BTNH = q_BTNH * spec.query_scale
    if rotary:
        q_rotary = [read(table_BTR) for table_BTR in rotary]
        q_BTNH, k_BSKH = rotate(q_BTNH, *q_rotary), rotate(k_BSKH, *rotary)
    out_BTD = _product(p, "o_NHD", attention(q_BTNH, k_BSKH, v_BSKH), summed=2)
    return norm(spec, out_BTD, p["attention_out_norm_D"]) if spec.branch_norms else out_BTD


def _queries_keys_values(spec, p, h_BTD, read):
    if "qkv_DKMH" not in p:
        return _product(p, "q_DNH", read(h_BTD)), _product(p, "k_DKH", h_BTD), _product(p, "v_DKH", h_BTD)
    qkv_BTKMH = _product(p, "qkv_DKMH", h_BTD)
    q_BTNH = read(qkv_BTKMH)[..., :-2, :].reshape(h_BTD.shape[0], -1, spec.num_heads, spec.head_dim)
    return q_BTNH, qkv_BTKMH[..., -2, :], qkv_BTKMH[..., -1, :]


def _gate_and_up(p, h_BTD):
    if "gate_up_DPF" not in p:
        return _product(p, "gate_DF", h_BTD), _product(p, "up_DF", h_BTD)
    gate_up_BTPF = _product(p, "gate_up_DPF", h_BTD)
    return gate_up_BTPF[..., 0, :], gate_up_BTPF[..., 1, :]


def fuse_projections(p: dict) -> dict:
    """The same layer with one matrix for q, k and v and one for gate and up: fewer, larger products to decode with.

    M = N / K + 2: each key head's queries, its keys, its values; both matrices shard as their parts do.
    """

    def grouped(q, k, v):
        return jnp.concatenate([q.reshape(*k.shape[:-1], -1, k.shape[-1]), k[..., None, :], v[..., None, :]], axis=-2)

    paired = lambda gate, up: jnp.stack([gate, up], axis=-2)  # noqa: E731
    parts, fused = set(), {}
    for matrices, name, join in ((_QKV, "qkv_DKMH", grouped), (_GATE_UP, "gate_up_DPF", paired)):
        biases = [_bias(matrix) for matrix in matrices]
        fused |= {name: join(*(p[matrix] for matrix in matrices))} | fuse_adapters(p, matrices, name, join)
        fused |= {_bias(name): join(*(p[bias] for bias in biases))} if biases[0] in p else {}
        parts |= {*matrices, *biases, *(adapter for matrix in matrices for adapter in ADAPTERS[matrix])}
    return fused | {name: value for name, value in p.items() if name not in parts}


def scaled_embedding(spec: ModelSpec, x_BTD):
    """Embeddings as the first layer reads them; the scale is rounded to their dtype, as in transformers."""
    return x_BTD if spec.embedding_scale == 1 else x_BTD * jnp.asarray(spec.embedding_scale, x_BTD.dtype)


def norm(spec: ModelSpec, x, scale):
    """The family's norm over the last axis."""
    return rms_norm(x, scale, spec.norm_eps, spec.centered_norms)


def rms_norm(x, scale, eps: float, centered: bool = False):
    """Root-mean-square norm over the last axis: float32 inside, rounded before the scale, as transformers does.

    A centered one multiplies by 1 + scale and is rounded after that alone.
    """
    if isinstance(scale, cpu.Scale):  # decoding's, on a machine that has a norm of its own
        return cpu.rms_norm(x, cpu.Scale(1 + scale.values) if centered else scale, eps)
    x32 = x.astype(jnp.float32)
    normed = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)
    scale = jnp.expand_dims(rounded(scale, x.dtype), range(x.ndim - 1))
    if centered:
        return (normed * (1 + scale)).astype(x.dtype)
    return (normed.astype(x.dtype).astype(jnp.float32) * scale).astype(x.dtype)


def _product(p, matrix, x_BTI, summed=1, onto=None):
    """x W, added to what it comes `onto`, then the adapter's part and the bias, as far as there are any."""
    y_BTO = project(x_BTI, p[matrix], summed=summed)
    y_BTO = y_BTO if onto is None else onto + y_BTO
    return _with_bias(y_BTO, p.get(_bias(matrix, summed)), low_rank(p, matrix, x_BTI))


def _bias(matrix: str, summed: int = 1) -> str:
    """The name that a matrix's bias has if there is one: q_bias_NH of q_DNH."""
    stem, _, axes = matrix.rpartition("_")
    return f"{stem}_bias_{axes[summed:]}"


def _with_bias(y_BTO, bias, also=0):
    """y + (also + bias), where there is one."""
    if bias is None:
        return y_BTO + also
    return (y_BTO.astype(jnp.float32) + (also + rounded(bias, y_BTO.dtype)[None, None])).astype(y_BTO.dtype)
