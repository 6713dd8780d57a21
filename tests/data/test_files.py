"""Files of other systems, and compressed ones, read as if they had been written here."""

import bz2
import gzip
import json

import pyarrow as pa
import pytest

from edlm_jax.commands.evaluate import choose_source
from edlm_jax.commands.generate import _read_lines
from edlm_jax.commands.main import parse
from edlm_jax.data.sources import open_source
from edlm_jax.data.stdlib import StdlibSource
from edlm_jax.errors import InputError

MARK = b"\xef\xbb\xbf"
TEXT = "one ç\ntwo\n\nthree\n"
FOREIGN = {"mark": MARK + TEXT.encode(), "crlf": TEXT.replace("\n", "\r\n").encode()}
FOREIGN["both"] = MARK + FOREIGN["crlf"]


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


PACKED = {"gz": gzip.compress, "bz2": bz2.compress, "zst": zstd}


def documents(**spec):
    source = open_source(spec)
    return [source[i] for i in range(len(source))]


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize("separator", ["", "\n", "\n\n", "\r\n\r\n"])
def test_every_reader_of_text_gives_the_same(content, separator, tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_bytes(content)
    parts = TEXT.split(separator.replace("\r\n", "\n")) if separator else [TEXT]
    wanted = [dict(text=part) for part in parts if part.strip()]
    assert documents(kind="text", path=str(tmp_path), separator=separator) == wanted
    assert _read_lines(str(tmp_path / "a.txt")) == ["one ç", "two", "", "three"]
    (tmp_path / "module.py").write_bytes(content)
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    assert StdlibSource("train")[0] == dict(text=TEXT)


def test_json_lines_of_other_systems(tmp_path):
    rows = [dict(text="one\r\ntwo"), dict(text="ç")]
    (tmp_path / "a.jsonl").write_bytes(MARK + "\r\n".join(map(json.dumps, rows)).encode() + b"\r\n")
    assert documents(kind="jsonl", path=str(tmp_path)) == rows  # what JSON spells out is the document's own


@pytest.mark.parametrize("mark, coding", [(b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be")])
def test_utf16_is_named(mark, coding, tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(mark + TEXT.encode(coding))
    for read in (lambda: documents(kind="text", path=str(path), separator="\n"), lambda: _read_lines(str(path))):
        with pytest.raises(InputError, match=r"a\.txt is UTF-16; convert it"):
            read()


@pytest.mark.parametrize("suffix", PACKED)
def test_compressed_files_are_the_files(suffix, tmp_path):
    """Between plain ones, in several members, with a mark and a document that is not UTF-8."""
    pack = PACKED[suffix]
    (tmp_path / "a.jsonl").write_text('{"text": "first"}\n')
    members = MARK + b'{"text": "second"}\n{"te', b'xt": "third"}\r\n\n{"text": "\xe4"}\n{"text": "fourth"}'
    (tmp_path / f"b.jsonl.{suffix}").write_bytes(b"".join(map(pack, members)))
    (tmp_path / f"c.jsonl.{suffix}").write_bytes(pack(b'{"text": "fifth"}\nnot JSON'))
    (tmp_path / f"other.txt.{suffix}").write_bytes(pack(TEXT.encode()))
    source = open_source(dict(kind="jsonl", path=str(tmp_path)))
    assert [source[i]["text"] for i in (4, 0, 3, 1, 2)] == ["fifth", "first", "fourth", "second", "third"]
    assert source.skipped == 1 and len(source) == 6
    assert source.locate(5) == f"{tmp_path}/c.jsonl.{suffix}:2"
    with pytest.raises(InputError, match="not JSON"):
        source[5]
    assert documents(kind="text", path=str(tmp_path)) == [dict(text=TEXT)]
    args = parse(["evaluate", "--model=m", f"--data={tmp_path}/b.jsonl.{suffix}", "--task=heldout"])
    assert choose_source(args) == dict(kind="jsonl", path=f"{tmp_path}/b.jsonl.{suffix}")


@pytest.mark.parametrize("suffix", PACKED)
def test_a_compressed_file_cut_short_is_refused(suffix, tmp_path):
    content = PACKED[suffix](b'{"text": "first"}\n' * 100)
    for kept, reason in [(content[:-1], "cannot decompress"), (b"x" + content, "cannot decompress")]:
        (tmp_path / f"a.jsonl.{suffix}").write_bytes(kept)
        with pytest.raises(InputError, match=reason) as caught:
            documents(kind="jsonl", path=str(tmp_path))
        assert f"a.jsonl.{suffix}" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "kind, suffix, name, reason",
    [
        ("jsonl", "jsonl", "b.jsonl.xz", r"b\.jsonl\.xz is packed .* unpack it, or compress it as \.gz, \.bz2, \.zst"),
        ("text", "txt", "b.txt.zip", r"b\.txt\.zip is packed"),
        ("jsonl", "jsonl", "a.jsonl.gz", r"a\.jsonl\.gz and a\.jsonl beside it would be read as two"),
        ("parquet", "parquet", "b.parquet.gz", r"b\.parquet\.gz is packed .* unpack it$"),
    ],
)
def test_nothing_in_a_directory_is_passed_over_because_it_is_packed(kind, suffix, name, reason, tmp_path):
    for file in (f"a.{suffix}", name):
        (tmp_path / file).write_text("")
    with pytest.raises(InputError, match=reason):
        open_source(dict(kind=kind, path=str(tmp_path)))


def test_an_archive_is_no_text(tmp_path):
    (tmp_path / "a.txt.tar.gz").write_bytes(gzip.compress(b"an archive"))
    with pytest.raises(InputError, match="is packed"):
        open_source(dict(kind="text", path=str(tmp_path / "*")))


def test_a_directory_that_a_link_leads_to_is_not_read_in_silence(tmp_path, caplog):
    for name in ("corpus", "elsewhere"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text(name)
    (tmp_path / "corpus" / "more").symlink_to("../elsewhere")
    assert documents(kind="text", path=str(tmp_path / "corpus")) == [dict(text="corpus")]
    assert "corpus/more leads to a directory that is not read" in caplog.text
    whole = documents(kind="text", path=str(tmp_path / "corpus" / "**" / "*.txt"))
    assert whole == [dict(text="corpus"), dict(text="elsewhere")]
