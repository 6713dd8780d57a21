"""A model that costs nothing to make: a 2-layer Qwen3 shape with weights from numpy: no initialiser compiles."""

import jax
import numpy as np
from flax import nnx

from edlm_jax.models.spec import ModelSpec
from edlm_jax.models.transformer import Transformer
from edlm_jax.training.config import default_config
from edlm_jax.training.initial import planned_spec
from edlm_jax.training.objective import Objective
from edlm_jax.training.run import Run
from tests.seeds import fresh_rng

MASK_ID = 92
HF_CONFIG = dict(
    architectures=["Qwen3ForCausalLM"],
    model_type="qwen3",
    vocab_size=97,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    intermediate_size=48,
    rms_norm_eps=1e-6,
    rope_theta=10000.0,
    max_position_embeddings=256,
    hidden_act="silu",
    tie_word_embeddings=True,
)


def random_model(source: str = "", **changes) -> Transformer:
    """HF_CONFIG with changes; the matrices are large enough that every path through the model matters."""
    spec = ModelSpec.from_hf(HF_CONFIG | changes, source=source)
    graphdef, state = nnx.split(nnx.eval_shape(lambda: Transformer(spec, rngs=nnx.Rngs(0))))
    rng = fresh_rng()
    draw = lambda x: jax.numpy.asarray(rng.normal(0, 0.2, x.shape), x.dtype)  # noqa: E731
    return nnx.merge(graphdef, jax.tree.map(draw, nnx.to_pure_dict(state)))


def random_batch(rows: int, length: int, *, documents: tuple[int, ...], pad_left: int = 0) -> dict[str, np.ndarray]:
    """Rows of packed documents of these lengths, the rest padding; the first document has `pad_left` pads before it."""
    rng = fresh_rng()
    segments_L = np.concatenate([np.zeros(pad_left), *(np.full(n, i + 1) for i, n in enumerate(documents))])
    segments_L = np.pad(segments_L, (0, length - len(segments_L))).astype(np.int32)
    positions_L = np.concatenate([np.zeros(pad_left), *(np.arange(n) for n in documents)])
    positions_L = np.pad(positions_L, (0, length - len(positions_L))).astype(np.int32)
    loss_mask_BL = (rng.random((rows, length)) < 0.8) & (segments_L > 0)[None]
    return dict(
        tokens=rng.integers(0, 90, (rows, length)).astype(np.int32),
        segment_ids=np.tile(segments_L, (rows, 1)),
        positions=np.tile(positions_L, (rows, 1)),
        loss_mask=loss_mask_BL.astype(np.int32),
    )


def make_objective(**changes) -> Objective:
    """Clean context in blocks of 4, with these fields of config.objective changed."""
    c = default_config()
    c.init.update(hf_config=HF_CONFIG, mask_token_id=MASK_ID)
    with c.ignore_type():
        c.objective.update({"block_length": 4} | changes)
    c.data.length = 8 * c.objective.block_length * c.objective.group  # which is no part of it
    run = Run.of(c)
    return run.objective.of_model(planned_spec(run.start))
