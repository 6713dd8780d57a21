"""Each parameter's gradient of a step in bfloat16 against float32: sums over tokens, micro-batches and devices lose none.

Activations are rounded to 8 bits everywhere, which leaves about a hundredth of each gradient in doubt; what is summed
in bfloat16 loses more, up to nearly all of what a token that occurs everywhere has to say.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType

from edlm_jax.models.lora import Lora, combine, partition
from edlm_jax.models.spec import ModelSpec
from edlm_jax.models.transformer import Transformer
from edlm_jax.parallel.mesh import to_global
from edlm_jax.parallel.sharding import MESH_AXES, param_shardings
from edlm_jax.training.config import default_config
from edlm_jax.training.objective import Objective
from edlm_jax.training.optimizer import make_optimizer
from edlm_jax.training.step import TrainState, make_train_step
from tests.training.tiny import HF_CONFIG, MASK_ID

BOUND = 0.04  # of the error's norm over the gradient's, in each parameter of each layer
TOKEN = 7  # half of all positions have it
FAMILIES = {
    "qwen2": HF_CONFIG | dict(architectures=["Qwen2ForCausalLM"], model_type="qwen2", tie_word_embeddings=False),
    "qwen3": HF_CONFIG,
    "scanned": HF_CONFIG | dict(num_hidden_layers=5),  # fewer layers are written out
}
AR = Objective("causal", "shifted", 1, None, MASK_ID, ar_weight=1.0, diffusion_weight=0.0)
JOINT = Objective("semi_block", "shifted", 8, 0.1, MASK_ID, ar_weight=1.0, diffusion_weight=1.0)
CLEAN = dataclasses.replace(JOINT, pattern="clean_context", alignment="same_position", ar_weight=0.0)


@dataclasses.dataclass(frozen=True)
class Case:
    """A model, what it learns from, and how its batch is computed."""

    objective: Objective
    family: str
    rows: int = 16
    length: int = 128
    accumulation: int = 1
    mesh: tuple[int, ...] | None = None
    lora: Lora | None = None

    @property
    def reference(self) -> "Case":
        """Its float32 gradient, computed at once on one device."""
        return dataclasses.replace(self, accumulation=1, mesh=None)


CASES = {
    "long rows": Case(AR, "qwen2", rows=4, length=1024),
    "joint": Case(JOINT, "scanned"),
    "joint, accumulated": Case(JOINT, "scanned", accumulation=4),
    "joint, fsdp": Case(JOINT, "scanned", mesh=(1, 8, 1, 1)),
    "joint, every axis": Case(JOINT, "scanned", mesh=(1, 2, 2, 2)),
    "joint, slices": Case(JOINT, "scanned", accumulation=2, mesh=(2, 2, 1, 2)),
    "adapters": Case(CLEAN, "qwen3", lora=Lora(4, 32.0)),
    "adapters, accumulated": Case(CLEAN, "qwen3", lora=Lora(4, 32.0), accumulation=4, mesh=(1, 2, 1, 1)),
}


def draw_params(graph_of, rng):
    """Matrices that keep the size of what they multiply, scales near one, and what is frozen as bfloat16 can hold it."""

    def draw(path, x):
        name = path[-1].key
        mean, width = (1, 0.2) if "norm" in name else (0, 0.2 if "bias" in name else 1)
        inputs = x.shape[-2] if name.rsplit("_", 1)[1][0] not in "VR" and "bias" not in name and "norm" not in name else 1
        return jnp.asarray(rng.normal(mean, width / math.sqrt(inputs), x.shape), jnp.float32)

    params = jax.tree_util.tree_map_with_path(draw, nnx.to_pure_dict(nnx.split(graph_of)[1]))
    trained, frozen = partition(params)
    return combine(trained, jax.tree.map(lambda x: x.astype(jnp.bfloat16), frozen))


def gradients(of: Case, dtype: str) -> dict:
    """Of one step, as AdamW's first moment remembers them."""
    rng = np.random.default_rng(20)
    spec = ModelSpec.from_hf(FAMILIES[of.family] | dict(max_position_embeddings=1024))
    model = nnx.eval_shape(lambda: Transformer(spec, rngs=nnx.Rngs(0), dtype=dtype, lora=of.lora))
    params, shape = draw_params(model, rng), (of.rows, of.length)
    params = jax.tree.map(lambda x: x if x.dtype == jnp.float32 else x.astype(dtype), params)
    tokens = np.where(rng.random(shape) < 0.5, TOKEN, rng.integers(0, 90, shape)).astype(np.int32)
    positions = np.tile(np.arange(of.length, dtype=np.int32), (of.rows, 1))
    batch = dict(tokens=tokens, positions=positions, segment_ids=np.ones_like(tokens), loss_mask=np.ones_like(tokens))
    c = default_config()
    c.optimizer.update(accumulation=of.accumulation, clip_norm=0.0)
    mesh = jax.make_mesh(
        of.mesh or (1, 1, 1, 1), MESH_AXES, axis_types=(AxisType.Auto,) * 4, devices=jax.devices()[: math.prod(of.mesh or (1,))]
    )
    with jax.set_mesh(mesh):
        state = TrainState(jnp.int32(0), params, make_optimizer(c).init(partition(params)[0]))
        state = jax.device_put(state, param_shardings(mesh, state))
        shardings = jax.tree.map(lambda x: x.sharding, state)
        step = make_train_step(c, nnx.split(model)[0], of.objective, shardings)
        batch = to_global(batch, mesh, range(of.rows), of.rows)
        state, _ = step(state, batch, block_length=of.objective.block_length)
        return jax.device_get(optax.tree.get(state.opt_state, "mu"))


@pytest.fixture(scope="module")
def reference():
    kept = {}

    def of(case: Case) -> dict:
        if case.reference not in kept:
            kept[case.reference] = gradients(case.reference, "float32")
        return kept[case.reference]

    return of


def distance(ours, theirs) -> float:
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


@pytest.mark.parametrize("name", CASES)
def test_every_gradient_is_that_of_float32(name, reference):
    ours, theirs = gradients(CASES[name], "bfloat16"), reference(CASES[name])
    errors = {}
    for (path, a), b in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        parameter = jax.tree_util.keystr(path)
        assert a.dtype == b.dtype == np.float32, parameter
        layered = "layers" in parameter
        errors |= {f"{parameter} {i}": distance(x, y) for i, (x, y) in enumerate(zip(a, b, strict=True))} if layered else {}
        errors |= {} if layered else {parameter: distance(a, b)}
    both = (x["embedding_VD"] for x in (ours, theirs))
    rows = [TOKEN, MASK_ID] if CASES[name].objective.diffusion_weight else [TOKEN]
    errors |= {f"the embedding of {row}": distance(a[row], b[row]) for a, b in [tuple(both)] for row in rows}
    print(sorted(errors.items(), key=lambda e: -e[1])[:6])
    assert not {name: error for name, error in errors.items() if error > BOUND}
