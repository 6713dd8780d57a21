"""A GGUF file through the commands: exported as it is, trained from, and what is trained exported."""

import pytest

pytest.importorskip("gguf")

from edlm_jax.commands.main import main  # noqa: E402
from edlm_jax.pretrained import load_spec, load_tokenizer  # noqa: E402
from edlm_jax.pretrained.encode import encode_text  # noqa: E402
from tests.commands.conftest import CONFIG  # noqa: E402
from tests.pretrained.test_gguf_tokenizer import byte_level, metadata_of, texts, write  # noqa: E402


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A small Qwen3 with a tokenizer."""
    return write(tmp_path_factory.mktemp("gguf"), metadata_of(byte_level("qwen2"), "qwen2"))


def test_export_writes_the_file_as_a_directory(file, tmp_path, capsys):
    assert main(["export", f"--model={file}", f"--out={tmp_path / 'out'}", "--dtype=float32"]) == 0
    assert f"from {file}" in capsys.readouterr().out
    assert load_spec(tmp_path / "out").width == load_spec(file).width
    assert main(["generate", f"--model={tmp_path / 'out'}", "--prompt=a b", "--max-new-tokens=4"]) == 0
    from_directory = capsys.readouterr().out
    assert main(["generate", f"--model={file}", "--prompt=a b", "--max-new-tokens=4"]) == 0
    assert capsys.readouterr().out == from_directory


def test_a_run_that_starts_from_a_file_exports_a_directory(file, tmp_path, capsys):
    config, workdir, out = tmp_path / "tiny.py", tmp_path / "run", tmp_path / "out"
    config.write_text(CONFIG.format(ar_dir=str(file)))
    assert main(["train", f"--config={config}", f"--workdir={workdir}", "--config.steps=1"]) == 0
    assert main(["export", f"--workdir={workdir}", f"--out={out}"]) == 0
    found, exported = load_tokenizer(file), load_tokenizer(out)
    assert load_spec(out).conversion.mask_token_id == found.convert_tokens_to_ids("<|fim_pad|>")
    assert all(encode_text(found, text) == encode_text(exported, text) for text in texts(20))
