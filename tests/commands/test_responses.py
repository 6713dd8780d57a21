"""`edlm generate --out`: own responses are documents; a job that was killed goes on; another one is refused."""

import datetime
import json
import math
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from edlm_jax import pretrained
from edlm_jax.commands.main import main
from edlm_jax.data.sources import open_source
from edlm_jax.data.tokenized import Tokenized
from edlm_jax.evaluation import responses
from edlm_jax.evaluation.responses import ResponseFile
from edlm_jax.pretrained import load_tokenizer
from tests.commands.test_generate import save_chat
from tests.commands.test_main import fail

QUICKSTART = Path(pretrained.__file__).parent / "quickstart_ar"
SOURCE = "{'kind': 'tasks', 'split': 'test', 'size': 10, 'kinds': ('sums', 'reverse')}"


def respond(out, *options, model=QUICKSTART, source=SOURCE):
    common = (f"--model={model}", "--batch-size=4", "--max-new-tokens=16", "--dtype=float32", f"--out={out}")
    return ["generate", *common, *([f"--source={source}"] if source else []), *options]


def lines(out):
    return [json.loads(line) for line in out.read_text().splitlines()]


def refuse(capsys, arguments, reason):
    capsys.readouterr()
    assert reason in fail(capsys, *arguments)


def test_responses_are_documents(tmp_path, capsys):
    out = tmp_path / "data" / "own.jsonl"
    assert main([*respond(out), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    tasks = open_source(dict(kind="tasks", split="test", size=10, kinds=("sums", "reverse")))
    asked = {line["index"]: line["prompt"] for line in lines(out)}
    assert asked == {index: task["prompt"] for index, task in enumerate(tasks)}
    # That model has learned these tasks.
    right = [line["response"] == tasks[line["index"]]["response"] for line in lines(out)]
    assert sum(right) >= 9 and all(line["ended"] and line["accepted_at"][0] == 1 for line in lines(out))
    assert (result["responses"], result["written"], result["cut"]) == (10, 10, 0)
    documents = Tokenized(dict(kind="jsonl", path=str(out)), load_tokenizer(QUICKSTART))
    assert len(documents) == 10 and all(len(documents[i]) == 1 for i in range(10))


class KilledError(Exception):
    pass


def test_a_killed_job_goes_on_behind_its_last_line(tmp_path, monkeypatch, capsys):
    whole, out = tmp_path / "whole.jsonl", tmp_path / "own.jsonl"
    sampled = ("--temperature=1", "--top-p=0.9", "--seed=3")
    assert main(respond(whole, *sampled)) == 0
    append, decode, rows = ResponseFile.append, responses.decode_each, []

    def killed(self, documents):
        if rows:
            raise KilledError
        rows.extend(documents)
        append(self, documents)

    monkeypatch.setattr(ResponseFile, "append", killed)
    assert main(respond(out, *sampled)) == 1
    assert len(lines(out)) == 4
    with out.open("a") as file:
        file.write('{"index": 4, "prom')  # as a machine that loses its power may leave it
    monkeypatch.setattr(ResponseFile, "append", append)
    seen = []
    monkeypatch.setattr(responses, "decode_each", lambda d, p, **how: seen.extend(p) or decode(d, p, **how))
    assert main(respond(out, *sampled)) == 0
    assert len(seen) == 6  # finished rows are not decoded again
    by_index = lambda path: sorted(lines(path), key=lambda line: line["index"])  # noqa: E731
    assert by_index(out) == by_index(whole)
    content = out.read_bytes()
    assert main([*respond(out, *sampled), "--json"]) == 0
    assert out.read_bytes() == content and len(seen) == 6


def test_another_job_is_refused(tmp_path, capsys):
    out, prompts, model = tmp_path / "own.jsonl", tmp_path / "prompts.txt", tmp_path / "model"
    prompts.write_text("add 3+4 ->\nadd 1+1 ->\n")
    shutil.copytree(QUICKSTART, model)
    here = dict(source=None, model=model)
    assert main(respond(out, f"--prompts-file={prompts}", **here)) == 0
    assert {line["prompt"] for line in lines(out)} == {"add 3+4 ->", "add 1+1 ->"}
    for options, reason in (
        (["--temperature=0.5"], "temperature=0.0, not 0.5"),
        (["--mode=prompt_lookup"], "mode=ar, not prompt_lookup"),
        (["--max-new-tokens=17"], "max_new_tokens=16, not 17"),
    ):
        refuse(capsys, respond(out, f"--prompts-file={prompts}", *options, **here), f"was written with {reason}")
    with ResponseFile(tmp_path / "other.jsonl", {}):
        refuse(capsys, respond(tmp_path / "other.jsonl", "--prompt=a", **here), "written with another model")
        with pytest.raises(ValueError, match="another process writes"):
            ResponseFile(tmp_path / "other.jsonl", {})
    prompts.write_text("add 3+4 ->\nadd 2+2 ->\n")
    refuse(capsys, respond(out, f"--prompts-file={prompts}", **here), "another prompt 1")
    prompts.write_text("add 3+4 ->\nadd 1+1 ->\nadd 2+2 ->\n")  # it may grow
    assert main(respond(out, f"--prompts-file={prompts}", **here)) == 0 and len(lines(out)) == 3
    (model / "chat_template.jinja").write_text("{{ messages[0].content }}")
    refuse(capsys, respond(out, f"--prompts-file={prompts}", **here), "was written with another model")
    (model / "chat_template.jinja").unlink()
    (model / "tokenizer_config.json").write_text("{}")
    refuse(capsys, respond(out, f"--prompts-file={prompts}", **here), "was written with another model")
    prompts.rename(tmp_path / "mine.jsonl")
    refuse(capsys, respond(tmp_path / "mine.jsonl", "--prompt=a", source=None), "mine.jsonl is there without")
    refuse(capsys, ["generate", f"--model={QUICKSTART}", f"--source={SOURCE}"], "--source is for --out=FILE")
    refuse(capsys, respond(tmp_path / "new.jsonl", source="stdlib"), "is neither a .txt")
    refuse(capsys, respond(tmp_path / "new.jsonl", source="old.jsonl.bak"), "is neither a .txt")
    refuse(capsys, respond(tmp_path / "new.jsonl", source="{'kind': 'stdlib'}"), "nothing to answer")
    refuse(capsys, respond(tmp_path / "new.jsonl", source="{'kind"), "is no dict")
    refuse(capsys, respond(tmp_path / "new.jsonl", "--prompt=", source=None), "nothing to answer: prompt 0 is empty")


def test_what_cannot_be_answered_is_named_and_the_rest_is(tmp_path, capsys):
    source, out = tmp_path / "asked.jsonl", tmp_path / "own.jsonl"
    rows = [dict(prompt="add 3+4 ->", response=""), dict(text="no prompt"), dict(prompt="  ", response="x")]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main([*respond(out, source=source), "--json"]) == 2
    captured = capsys.readouterr()
    refused = json.loads(captured.out)["refused"]
    assert [entry["index"] for entry in refused] == [1, 2] and "2 of 3 prompts were refused: 1, 2" in captured.err
    assert "has no prompt but text" in refused[0]["reason"] and "prompt 2 is empty" in refused[1]["reason"]
    assert [line["index"] for line in lines(out)] == [0]


def test_fields_of_messages_are_kept_or_refused_before_anything_is_decoded(tmp_path, capsys):
    out, dated, scored = tmp_path / "own.jsonl", tmp_path / "dated.parquet", tmp_path / "scored.jsonl"
    asks = lambda **field: dict(messages=[dict(role="user", content="add 3+4 ->", **field)])  # noqa: E731
    pq.write_table(pa.Table.from_pylist([asks(at=datetime.datetime(2024, 5, 17))]), dated)
    refuse(capsys, respond(out, source=dated), "its messages can't be written as JSON: Object of type date")
    assert not out.exists()
    scored.write_text(json.dumps(asks(score=math.nan)))  # as pandas writes what it does not know
    again = respond(out, "--json", source=scored)
    for written in (1, 0):
        assert main(again) == 0 and json.loads(capsys.readouterr().out)["written"] == written


def test_conversations_get_their_last_answer_anew(tmp_path, capsys):
    source, out = tmp_path / "chats.jsonl", tmp_path / "own.jsonl"
    said = [dict(role="user", content="hello"), dict(role="assistant", content="old")]
    rows = [dict(messages=said), dict(messages=[*said, dict(role="user", content="more")])]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = save_chat(tmp_path, "Hi#end\n", "#end")
    assert main([*respond(out, source=source, model=model), "--json"]) == 0
    new = dict(role="assistant", content="Hi")
    by_index = {line["index"]: line for line in lines(out)}
    accepted_at = list(range(1, 1 + len(by_index[0]["accepted_at"])))  # one token a forward
    assert by_index[0] == dict(index=0, messages=[said[0], new], ended=True, accepted_at=accepted_at)
    assert by_index[1]["messages"] == [*rows[1]["messages"], new]
    assert main([*respond(out, "--max-new-tokens=1", source=source, model=model), "--json"]) == 2
    cut = tmp_path / "cut.jsonl"
    assert main([*respond(cut, "--max-new-tokens=1", source=source, model=model), "--json"]) == 0
    assert [line["ended"] for line in lines(cut)] == [False, False]
