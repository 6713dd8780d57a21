"""The peft library loads an exported adapter, and computes what noisy columns do."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from edlm_jax.attention import CleanContext
from edlm_jax.models.lora import Lora
from edlm_jax.pretrained import save_pretrained
from tests.models.test_gated import with_adapters
from tests.seeds import fresh_rng
from tests.training.tiny import random_model

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("targets", [(), ("q_proj", "o_proj", "up_proj")], ids=["all", "some"])
def test_noisy_columns_are_those_of_a_model_with_the_adapter(tmp_path, targets):
    """In a row of one block noisy columns see noisy ones alone: it is the causal forward pass of peft's model."""
    torch, transformers, peft = (pytest.importorskip(name) for name in ("torch", "transformers", "peft"))
    base, L = random_model(), 12
    model = nnx.merge(*with_adapters(base, Lora(3, 6.0, "noisy", targets)))
    save_pretrained(model, tmp_path / "drafter")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "drafter", dtype=torch.float32)
    tokens_BT = fresh_rng().integers(0, 90, (2, L))
    with torch.no_grad():
        plain = theirs(torch.tensor(tokens_BT)).logits.numpy()
        theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "drafter" / "adapter")
        adapted = theirs(torch.tensor(tokens_BT)).logits.numpy()
    row_BT = jnp.asarray(np.concatenate([tokens_BT, tokens_BT], axis=1))
    ours = model(row_BT, pattern=CleanContext(L, L, "token_causal", None, "causal"))
    np.testing.assert_allclose(ours[:, :L], adapted, atol=2e-4)
    np.testing.assert_allclose(ours[:, L:], plain, atol=2e-4)
    assert np.abs(adapted - plain).max() > 0.1
