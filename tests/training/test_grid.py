"""Wherever blocks are counted from, training shows a model what decoding will: packed rows against plain forwards."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from edlm_jax.data.packing import Grid
from edlm_jax.diffusion import Corruption
from edlm_jax.models.spec import GRIDS
from edlm_jax.training.initial import read_spec
from edlm_jax.training.run import Run
from edlm_jax.training.train import Batches
from tests.data.test_packing import make_document, pack, unpack
from tests.decoding import oracle
from tests.decoding.tiny import EOS, MASK, make_model
from tests.seeds import fresh_rng
from tests.training.tiny import make_objective

C = 4


@pytest.mark.parametrize("alignment", ["same_position", "shifted"])
@pytest.mark.parametrize("grid", GRIDS)
def test_training_shows_blocks_as_decoding_does(grid, alignment):
    seed = int(fresh_rng().integers(2**31))
    rng, model = np.random.default_rng(seed), make_model(alignment, seed=seed % 1000)
    documents = [make_document(p, r, 10) for p, r in ((5, 9), (8, 6), (3, 7), (0, 10))]
    (row,) = pack(documents, Grid(64, C, EOS, grid))
    masked_L = (rng.random(64) < 0.5) & (row["loss_mask"] > 0)
    batch = {name: value[None] for name, value in row.items()}
    noisy_L = np.where(masked_L, MASK, row["tokens"])
    corruption = Corruption(noisy_L[None], masked_L[None], np.ones((1, 64), np.float32))
    objective = make_objective(alignment=alignment, block_length=C)
    logits_LV, predicted_L = _predict(objective, model, batch, corruption)
    plain, checked = nnx.merge(*nnx.split(model)), 0
    plain.spec = dataclasses.replace(model.spec, conversion=None)
    for column, tokens, loss_mask, _ in unpack(row):
        prompt = int(np.argmax(loss_mask > 0))
        origin = prompt if grid == "response" else 0
        for start in range(origin % C - C if origin % C else 0, len(tokens), C):
            first, end = max(start, 0), start + C
            seen = [*tokens[:first].tolist(), *noisy_L[column + first : column + end].tolist()]
            expected_TV = oracle.forward(plain, seen, oracle.PrefilledBlocks(origin, C, "block_causal"))
            for i in np.flatnonzero(predicted_L[column + first : column + end]) + first:
                expected_V = expected_TV[i - (alignment == "shifted")]
                np.testing.assert_allclose(logits_LV[column + i], expected_V, atol=2e-3, err_msg=f"seed {seed}, {i}")
                checked += 1
    assert checked == predicted_L.sum() > 5


def test_a_run_packs_and_exports_by_its_grid(config):
    config.objective.grid = "position"
    run = Run.of(config)
    spec, tokenizer = read_spec(run.start)
    batches = Batches(run.data, spec, tokenizer, run.make_mesh())
    assert spec.conversion.grid == "position" and batches.held_out
    for batch in (next(batches.train), *batches.held_out):
        begins = (batch["positions"] == 0) & (batch["segment_ids"] > 0)
        assert begins.sum() > 3 and not (np.nonzero(begins)[1] % C).any(), "padding before a prompt"


def _predict(objective, model, batch, corruption):
    """(logits, which of them carry loss) of the only row of a batch."""
    graphdef, state = nnx.split(model)

    @jax.jit
    def run(state, batch, corruption):
        model = nnx.merge(graphdef, state)
        streams = objective.streams(batch, corruption)
        x_1LD = streams.aligned(objective.hidden(model, batch, corruption))
        return model.logits(x_1LD)[0], streams.predicted(corruption.masked_BM)[0]

    return [np.asarray(x) for x in run(state, batch, corruption)]
