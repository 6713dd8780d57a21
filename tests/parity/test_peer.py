"""The torch side of `edlm bench train`: it does our step, or the comparison would say nothing."""

import jax
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from configs.quickstart import get_config
from edlm_jax import load_pretrained
from edlm_jax.benchmarks import torch_peer
from edlm_jax.benchmarks.training import packed_batch
from edlm_jax.diffusion import example_keys
from edlm_jax.training.run import Run
from tests.training.tiny import make_objective

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("attention", ["sdpa", "flex_attention"])
@pytest.mark.parametrize(("pattern", "noisy_length"), [("clean_context", 0), ("semi_block", 80), ("block_causal", 0)])
def test_the_peer_has_our_loss(attention, pattern, noisy_length, tiny_ar_dir):
    objective = make_objective(pattern=pattern, block_length=8, noisy_length=noisy_length)
    model = load_pretrained(tiny_ar_dir, "float32")
    batch = packed_batch(model.spec.vocab_size, 4, 160, 8)
    noise = objective.corrupt(example_keys(jax.random.key(3), 4), batch)
    ours = objective.loss(objective.sums(model, batch, noise), objective.weights(batch, noise))
    theirs = AutoModelForCausalLM.from_pretrained(tiny_ar_dir, attn_implementation=attention, dtype=torch.float32)
    parts = torch_peer.peer_inputs(objective, batch, noise, 2, attention=attention, device="cpu")
    assert len(parts) == 2
    # FlexAttention has no backward pass on CPU, and torch 2.13's C++ for its forward does not compile for every mask.
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        losses = [torch_peer.peer_loss(theirs, *part) for part in parts]
    np.testing.assert_allclose(float(sum(losses)), float(ours), rtol=1e-5)


def test_the_peer_trains():
    c = get_config()
    c.data.update(batch_size=4, length=64)
    c.objective.noisy_length, c.optimizer.accumulation, c.optimizer.learning_rate = 32, 2, 3e-3
    found = torch_peer.time_torch_step(Run.of(c), 1, "sdpa", "cpu")
    more = torch_peer.time_torch_step(Run.of(c), 12, "sdpa", "cpu")
    assert more["loss"] < found["loss"] - 1  # the same batch again and again
    assert found["tokens_per_second"] == pytest.approx(4 * 64 / found["seconds_per_step"])


def test_what_the_peer_does_not_know():
    c = get_config()
    c.lora.rank = 4
    batch = packed_batch(512, 1, 32, 8)
    with pytest.raises(ValueError, match="no adapters"):
        torch_peer.torch_step(Run.of(c), None, batch, attention="sdpa", device="cpu")
    objective = make_objective(alignment="shifted", block_length=8)
    with pytest.raises(ValueError, match="same position"):
        torch_peer.peer_inputs(objective, batch, None, 1, attention="sdpa", device="cpu")
    found = torch_peer.in_own_process(torch_peer.time_torch_step, Run.of(c), 1, "sdpa", "cuda")
    assert found["not_measured"] == "it runs on one GPU, and 0 are here"
