"""`edlm serve`: what it refuses at the start, and how it ends."""

import json
import os
import signal
import socket
import subprocess
import sys

import httpx2 as httpx
import jax

from edlm_jax import pretrained
from edlm_jax.commands.main import parse
from edlm_jax.commands.serve import _load
from edlm_jax.decoding import Engine
from tests.commands.test_main import fail


def test_what_is_missing_is_said_in_a_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert fail(capsys, "serve") == "edlm: edlm serve needs uvicorn: pip install 'edlm_jax[serve]'"


def test_refusals(tiny_ar_dir, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "choose another --host or --port" in fail(capsys, "serve", f"--port={taken.getsockname()[1]}")
    for arguments, reason in [
        ("--port=70000", "choose another --host or --port"),
        ("--queue=-1", "--queue must not be negative"),
        ("--port=0 --slots=0", "slots must be positive"),
        ("--port=0 --mode=psd", "never converted"),
        ("--port=0 --model=/nowhere", "/nowhere"),
    ]:
        assert reason in fail(capsys, *f"serve --model={tiny_ar_dir} {arguments}".split())


def test_one_device_decodes_or_all_do(tiny_ar_dir, monkeypatch):
    """On accelerators, too: rows that are shared out to several are no engine's."""
    seen, load = [], pretrained.load_pretrained
    seeing = lambda path, dtype, mesh: seen.append(mesh) or load(path, dtype)  # noqa: E731
    monkeypatch.setattr(pretrained, "load_pretrained", seeing)
    monkeypatch.setattr(Engine, "warm", lambda engine: None)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    for options in ([], ["--tensor=8"]):
        _load(parse(["serve", f"--model={tiny_ar_dir}", "--dtype=float32", *options]))
    assert seen[0] is None and dict(seen[1].shape)["tensor"] == 8


def test_sigterm_drains(tiny_converted_dir):
    """The streams that it has go on to their end; then the exit code is 0, and what it served is told."""
    command = [sys.executable, "-m", "edlm_jax.commands.main", "serve", f"--model={tiny_converted_dir}", "--port=0"]
    options = ["--slots=1", "--threshold=1", "--json"]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"EDLM_API_KEY": ""})
    with subprocess.Popen([*command, *options], **pipes) as server:
        line = server.stderr.readline()
        assert line.startswith(f"serving {tiny_converted_dir} by diffusion")
        body = dict(prompt=["a", "b"], max_tokens=150, stream=True, temperature=0)  # the second waits for the slot
        events = []
        with httpx.stream("POST", line.split()[-1] + "/completions", json=body, timeout=120) as response:
            for event in filter(None, response.iter_lines()):
                if not events:
                    server.send_signal(signal.SIGTERM)
                events.append(event.removeprefix("data: "))
        out, err = server.communicate(timeout=60)
    assert server.returncode == 0, err
    assert events.pop() == "[DONE]"
    ends = [choice["finish_reason"] for event in map(json.loads, events) for choice in event["choices"]]
    assert len([end for end in ends if end]) == 2
    assert json.loads(out)["requests"] == 1 and json.loads(out)["rows"] == 2
