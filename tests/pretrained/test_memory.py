"""What tests/benchmarks/import_at_size.py measures at 1.5B parameters, at 76M: copies of a few at most."""

import pytest

from tests.benchmarks.import_at_size import QWEN2_5_1_5B, in_a_process, write_checkpoint

# Nine parameters of one size: one to three of them (read, decoded, handed to the device) are far from all nine. Each is
# above the 32 MB up to which malloc keeps what was freed.
SMALL = QWEN2_5_1_5B | dict(
    vocab_size=8191,
    hidden_size=1024,
    intermediate_size=1024,
    num_hidden_layers=8,
    num_attention_heads=8,
    num_key_value_heads=8,
    tie_word_embeddings=False,
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("memory")
    assert write_checkpoint(directory / "hf", SMALL, file_bytes=20_000_000) > 4
    return str(directory)


def test_reading_needs_little_beside_the_parameters(directory):
    for what, devices in (("import", 8), ("restore", 1)):
        part = in_a_process(what, devices, directory)
        assert part["devices"] == devices and part["parameters_gb"] > 8.9 * part["largest_gb"]
        # Less what the interpreter and its libraries take, which is no small part of so small a model.
        assert part["peak_gb"] - part["of_it_before_gb"] < part["allowed_gb"], part
