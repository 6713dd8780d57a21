"""A family whose layers differ is converted as any other: trained, exported as its own kind, decoded in blocks."""

import json

import numpy as np

from edlm_jax import generate, load_pretrained, save_pretrained
from edlm_jax.training.checkpoint import load_trained
from edlm_jax.training.metrics import step_flops
from edlm_jax.training.run import Run
from edlm_jax.training.train import train
from tests.training.conftest import make_config
from tests.training.tiny import MASK_ID, make_objective, random_model

GEMMA3 = dict(
    architectures=["Gemma3ForCausalLM"],
    model_type="gemma3_text",
    num_hidden_layers=5,
    sliding_window=6,
    sliding_window_pattern=3,
    query_pre_attn_scalar=8,
)


def test_gemma_is_converted(corpus, tmp_path):
    save_pretrained(random_model(source=str(corpus), **GEMMA3), tmp_path / "ar")
    c = make_config(corpus, tmp_path / "ar")
    c.lora.rank = 2
    train(Run.of(c), tmp_path / "run")
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite([line["loss"] for line in metrics if "loss" in line]).all()
    trained = load_trained(tmp_path / "run")
    save_pretrained(trained, tmp_path / "out")
    model = load_pretrained(tmp_path / "out", "float32")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["model_type"] == "gemma3_text" and config["sliding_window_pattern"] == 3
    assert model.spec.conversion.mask_token_id == MASK_ID and model.spec.kinds == trained.spec.kinds
    result = generate(model, [[3, 4, 5], [6]], max_new_tokens=9, threshold=0.5)
    assert [len(tokens) for tokens in result.tokens] == [9, 9] and MASK_ID not in sum(result.tokens, [])


def test_flops_count_what_windows_show():
    whole, near = random_model(**GEMMA3 | {"sliding_window": 256}), random_model(**GEMMA3)
    objective = make_objective()
    saved = step_flops(whole.spec, objective, 2, 32) - step_flops(near.spec, objective, 2, 32)
    pattern = objective.layout.pattern(32)
    pairs = pattern.dense(64, 64).sum() - pattern.within(6).dense(64, 64).sum()
    assert saved == 12 * 2 * 4 * near.spec.num_heads * near.spec.head_dim * pairs  # four of five layers slide
