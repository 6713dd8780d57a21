"""The standard library as a corpus: a fixed order, a held-out split, files that are not UTF-8 counted."""

import ast

import pytest

from edlm_jax.data.split import belongs_to_test
from edlm_jax.data.stdlib import StdlibSource
from edlm_jax.errors import InputError


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A small library: modules of both splits, one that is not UTF-8, one empty, and directories to leave out."""
    for index in range(80):
        (tmp_path / f"module_{index:02d}.py").write_text(f"VALUE = {index}\n")
    (tmp_path / "latin.py").write_bytes("# caf\xe9\n".encode("latin-1"))
    (tmp_path / "latin_b.py").write_bytes("# \xe9t\xe9\n".encode("latin-1"))
    (tmp_path / "empty.py").write_text("\n")
    (tmp_path / "notes.txt").write_text("not Python")
    for directory in ("site-packages", "test", "package"):
        (tmp_path / directory).mkdir()
        (tmp_path / directory / "inner.py").write_text(f"WHERE = {directory!r}\n")
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    return tmp_path


def test_splits_cover_the_library_without_overlap(library):
    train, test = StdlibSource("train"), StdlibSource("test")
    texts = [[document["text"] for document in source] for source in (train, test)]
    expected = {f"VALUE = {index}\n" for index in range(80)} | {"WHERE = 'package'\n"}
    assert set(texts[0]) | set(texts[1]) == expected
    assert len(texts[0]) + len(texts[1]) == len(expected) and len(texts[1]) > 0
    assert "VALUE = 7\n" in texts[belongs_to_test("module_07.py")]


def test_the_order_is_that_of_the_paths(library):
    numbered = [document["text"] for document in StdlibSource("train")]
    values = [int(text.split()[-1]) for text in numbered if text.startswith("VALUE")]
    assert values == sorted(values)


def test_files_that_are_not_utf8_are_skipped_and_counted(library):
    skipped = {split: StdlibSource(split).skipped for split in ("train", "test")}
    assert skipped["train"] + skipped["test"] == 2
    assert skipped["test"] == belongs_to_test("latin.py") + belongs_to_test("latin_b.py")


def test_this_machines_library_is_python():
    source = StdlibSource("test")
    assert len(source) > 10
    ast.parse(source[len(source) // 2]["text"])


def test_an_empty_library_and_an_unknown_split_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    with pytest.raises(InputError, match="no Python sources"):
        StdlibSource("train")
    with pytest.raises(InputError, match="split"):
        StdlibSource("dev")
