"""What tests/benchmarks/import_at_size.py measures at 1.5B parameters, at 0.1B: one parameter's copy on the host."""

import pytest

from tests.benchmarks.import_at_size import QWEN2_5_1_5B, in_a_process, write_checkpoint

SMALL = QWEN2_5_1_5B | dict(vocab_size=4099, hidden_size=512, num_hidden_layers=24, intermediate_size=2048)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("memory")
    assert write_checkpoint(directory / "hf", SMALL | dict(num_attention_heads=8), file_bytes=20_000_000) > 4
    return str(directory)


def test_reading_needs_the_parameters_and_a_copy_of_one(directory):
    for what, devices in (("import", 8), ("restore", 1)):
        part = in_a_process(what, devices, directory)
        assert part["devices"] == devices and part["parameters_gb"] > 0.3
        # Less what the interpreter and its libraries take, which is no small part of so small a model.
        assert part["peak_gb"] - part["of_it_before_gb"] < part["allowed_gb"], part
