"""One batch on every mesh: the same corruption bit by bit, the same loss, the same gradients."""

import functools
import itertools
import math

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType

from edlm_jax.diffusion import example_keys
from edlm_jax.errors import InputError
from edlm_jax.parallel.mesh import to_global
from edlm_jax.parallel.sharding import MESH_AXES, param_shardings
from edlm_jax.training.config import default_config
from edlm_jax.training.run import Run
from tests.seeds import fresh_rng
from tests.training.tiny import make_objective, random_batch, random_model

B, L, C = 8, 32, 2
CLEAN = make_objective(block_length=C)
JOINT = make_objective(block_length=C, pattern="semi_block", ar_weight=1.0, diffusion_weight=0.3)
VIEWS = make_objective(block_length=C, noisy_length=48)
SHIFTED = make_objective(block_length=C, alignment="shifted")
GROUPS = make_objective(block_length=C, alignment="shifted", noise="chain", group=4)
DEALT_GROUPS = make_objective(block_length=C, noise="chain", group=4, noisy_length=48)
ONE_STREAM = make_objective(block_length=C, alignment="shifted", pattern="block_causal")
MESHES_OF_8 = [shape for shape in itertools.product((1, 2, 4, 8), repeat=4) if math.prod(shape) == 8]
SMALLER = [(1, 1, 1, 2), (2, 1, 1, 2)]
SOME = [(1, 2, 2, 2), (2, 1, 1, 4)]


@pytest.fixture(scope="module")
def measure():
    """(objective, layers, mesh or None) -> (corruption, loss, gradients) of one batch of two packed documents a row."""
    models = {layers: nnx.split(random_model(num_hidden_layers=layers)) for layers in (1, 2)}
    key = jax.random.key(fresh_rng().integers(1 << 30))
    batch = random_batch(B, L, documents=(14, 15), pad_left=2)

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def run(objective, graphdef, params, batch):
        corruption = objective.corrupt(example_keys(key, B), batch)

        def loss(params):
            sums = objective.sums(nnx.merge(graphdef, params), batch, corruption)
            return objective.loss(sums, objective.weights(batch, corruption))

        return corruption, *jax.value_and_grad(loss)(params)

    @functools.cache
    def on(objective, layers, shape):
        graphdef, params = models[layers][0], nnx.to_pure_dict(models[layers][1])
        if shape is None:
            return jax.device_get(run(objective, graphdef, params, batch))
        mesh = jax.make_mesh(shape, MESH_AXES, axis_types=(AxisType.Auto,) * 4)
        with jax.set_mesh(mesh):
            placed = jax.device_put(params, param_shardings(mesh, params)), to_global(batch, mesh, range(B), B)
            return jax.device_get(run(objective, graphdef, *placed))

    return on


def check(ours, reference):
    jax.tree.map(np.testing.assert_array_equal, ours[0], reference[0])
    np.testing.assert_allclose(ours[1], reference[1], rtol=1e-5)
    for (path, a), b in zip(jax.tree.leaves_with_path(ours[2]), jax.tree.leaves(reference[2]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * np.abs(b).max(), err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("shape", MESHES_OF_8 + SMALLER, ids=str)
def test_clean_context_is_the_same_on_every_mesh(measure, shape):
    check(measure(CLEAN, 1, shape), measure(CLEAN, 1, None))


@pytest.mark.parametrize("shape", SOME, ids=str)
@pytest.mark.parametrize(
    "objective",
    [CLEAN, JOINT, VIEWS, SHIFTED, ONE_STREAM, GROUPS, DEALT_GROUPS],
    ids=["clean", "joint", "views", "shifted", "one stream", "groups", "dealt groups"],
)
def test_every_objective_is_the_same_on_a_mesh(measure, objective, shape):
    check(measure(objective, 2, shape), measure(objective, 2, None))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (dict(length=36), "config.data.length=36 is not whole blocks of 4 on each of config.mesh.context=2 devices"),
        (dict(length=32, noisy_length=36), "config.objective.noisy_length=36 .*: choose a multiple of 8"),
    ],
)
def test_what_whole_blocks_do_not_divide_is_refused(change, reason):
    c = default_config()
    c.init.path = "somewhere"
    c.data.length, c.objective.block_length = change["length"], 4
    c.objective.noisy_length = change.get("noisy_length", 0)
    c.mesh.update(fsdp=1, context=2)
    with pytest.raises(InputError, match=reason):
        Run.of(c).make_mesh(jax.devices()[:2])


def test_the_8b_step_traces_with_rows_split_in_two():
    """At the paper's size, abstractly; nothing in it has scores of a whole row."""
    from configs.efficient_dlm_8b import get_config
    from edlm_jax.training.fitting import lower_step
    from edlm_jax.training.initial import planned_spec

    c = get_config()
    c.data.batch_size, c.optimizer.accumulation, c.remat = 8, 2, "full"
    c.mesh.update(data=1, fsdp=4, context=2)
    run = Run.of(c)
    text = lower_step(run, planned_spec(run.start), run.make_mesh()).as_text()
    assert "128x256x" in text and f"{2 * c.data.length}x{2 * c.data.length}x" not in text
