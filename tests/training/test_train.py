from edlm_jax.training.train import train


def test_smoke(config, tmp_path):
    print(train(config, tmp_path))
    print((tmp_path / "metrics.jsonl").read_text())
