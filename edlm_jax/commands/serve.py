"""Serve a model by OpenAI's HTTP interface: /v1/completions, /v1/chat/completions and /v1/models, streamed or whole,
with /health and Prometheus' /metrics. Requests share the engine's slots, whatever each asks for.

    edlm serve --model=DIR --port=8000
    curl http://127.0.0.1:8000/v1/completions -H 'Content-Type: application/json' -d '{"prompt": "add 3+4 ->"}'

Without --model it serves the small AR model that comes along. It binds to loopback; for others give --host, and an API
key in the environment variable EDLM_API_KEY, which clients then send. SIGTERM ends it with exit code 0 once the
requests that it has are answered."""

import argparse
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from edlm_jax.commands.arguments import add_shared, chosen_dtype
from edlm_jax.errors import InputError, check_range


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    from edlm_jax.decoding.modes import add_mode_arguments  # the options are the modes' own

    what = "Hugging Face directory, GGUF file or hub id (default: the quickstart's AR model)"
    add_shared(parser, "model", required=False, help=what)
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="to bind to (127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="0: a free one (8000)")
    parser.add_argument("--slots", type=int, default=32, metavar="N", help="rows decoded at once (32)")
    parser.add_argument("--columns", type=int, default=512, metavar="N", help="of a prompt and its answer (512)")
    what = "of the caches of all rows, in pages (float32 on CPU); a row waits until there are some (enough)"
    parser.add_argument("--cache-columns", type=int, metavar="N", help=what)
    parser.add_argument("--queue", type=int, default=128, metavar="N", help="rows that may wait; then comes 429 (128)")
    add_mode_arguments(parser)
    add_shared(parser, "dtype")
    what = "share the weights out to all N devices of this machine (default: one device decodes)"
    add_shared(parser, "tensor", help=what)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Serve until a signal comes; returns what was served."""
    try:
        import uvicorn

        from edlm_jax.serving.app import make_app
    except ModuleNotFoundError as error:
        raise InputError(f"edlm serve needs {error.name}: pip install 'edlm_jax[serve]'") from None
    check_range("--queue", args.queue, 0)
    with _bind(args.host, args.port) as address:  # before the weights are read
        return _serve(args, uvicorn, make_app, address)


def _serve(args: argparse.Namespace, uvicorn, make_app, address: socket.socket) -> dict[str, int]:
    loop, name = _load(args), "quickstart_ar" if args.model is None else args.model
    key = os.environ.get("EDLM_API_KEY") or None
    host, port = address.getsockname()[:2]
    if key is None and not host.startswith("127.") and host != "::1":
        print(f"edlm: warning: {host} is not loopback and EDLM_API_KEY is not set: all may ask", file=sys.stderr)
    server = uvicorn.Server(uvicorn.Config(make_app(loop, name, key), log_config=None, access_log=False))
    loop.on_failure = lambda: setattr(server, "should_exit", True)
    where = f"[{host}]" if ":" in host else host
    print(f"serving {name} by {loop.engine.mode} at http://{where}:{port}/v1", file=sys.stderr, flush=True)
    # Uvicorn raises a signal again once it has drained: of SIGTERM nothing more comes then.
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        server.run(sockets=[address])
    finally:
        signal.signal(signal.SIGTERM, before)
    if loop.failed:
        raise RuntimeError(loop.failed)
    return loop.metrics.totals()


def show(result: dict[str, Any], args: argparse.Namespace) -> None:
    """Say what was served."""
    print("served {requests} requests, {rows} rows, {tokens} tokens".format(**result), file=sys.stderr)


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        raise InputError(f"cannot listen at {host}, port {port}: {error}; choose another --host or --port") from None


def _load(args: argparse.Namespace):
    """The engine's loop, warm."""
    import jax

    from edlm_jax import pretrained
    from edlm_jax.decoding import Decoder, Engine, check_settings
    from edlm_jax.decoding.modes import mode_of
    from edlm_jax.decoding.requests import MOST_ENDS
    from edlm_jax.parallel.mesh import decoding_mesh
    from edlm_jax.pretrained.adapter import read_lora
    from edlm_jax.pretrained.source import find_directory
    from edlm_jax.serving.loop import Loop
    from edlm_jax.serving.metrics import Metrics

    path = Path(pretrained.__file__).parent / "quickstart_ar" if args.model is None else args.model
    spec, tokenizer = pretrained.load_spec(path), pretrained.load_tokenizer(path)
    mode, text = mode_of(args, spec), pretrained.Text.of(spec, tokenizer)
    check_settings(spec, mode, limit=1, ends=text.ends)
    if len(text.ends) > MOST_ENDS:
        listed = f"{path} lists {len(text.ends)} tokens that end an answer"
        raise InputError(f"{listed}, and a server's rows may end at {MOST_ENDS}; list fewer under eos_token_id")
    count = jax.local_device_count()
    if args.tensor not in (None, count):
        raise InputError(f"--tensor must be {count}, all devices of this machine, or be left out, not {args.tensor}")
    mesh = decoding_mesh(count) if args.tensor else None
    size = dict(slots=args.slots, columns=min(args.columns, spec.max_length), cache_columns=args.cache_columns)
    dtype, lora = chosen_dtype(args), read_lora(find_directory(path, weights=False))
    Engine(Decoder.planned(spec, dtype, lora, alone=mesh is None), mode, **size)  # what it refuses, it does now
    model = pretrained.load_pretrained(path, dtype=dtype, mesh=mesh)
    engine = Engine(Decoder(model, take=True), mode, **size)
    engine.warm()
    return Loop(engine, text, Metrics(), args.queue)
