"""The HTTP side: OpenAI's completions, chat completions and models, health, and metrics."""

import asyncio
import contextlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from edlm_jax.serving.answers import Form, usage
from edlm_jax.serving.loop import Loop, Piece, Row
from edlm_jax.serving.requests import ApiError, Ask, read_ask, read_body

_BODY = 2**21  # bytes of a request: more than any prompt that fits
_BODY_SECONDS = 30  # that a client may take to send it
Pieces = AsyncIterator[tuple[int, Piece]]


def make_app(loop: Loop, name: str, key: str | None = None) -> Starlette:
    """The application of a model; its life begins and ends the loop's.

    `name` is what requests may name as their model, `key` what clients must send as their bearer token; None: nothing.
    """
    model = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "edlm_jax"}

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [model]})

    async def one_model(request: Request) -> Response:
        asked = request.path_params["name"]
        if asked != name:
            raise ApiError(404, f"the model {asked!r} is not served here, {name!r} is", "model", "model_not_found")
        return JSONResponse(model)

    async def health(request: Request) -> Response:
        return JSONResponse({"status": loop.failed or "ok"}, 503 if loop.failed else 200)

    async def metrics(request: Request) -> Response:
        return Response(generate_latest(loop.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @contextlib.asynccontextmanager
    async def life(app: Starlette):
        loop.start()
        yield
        await run_in_threadpool(loop.close)

    complete = partial(_answer, loop=loop, name=name)
    routes = [
        ("/v1/models", models, "GET"),
        ("/v1/models/{name:path}", one_model, "GET"),
        ("/v1/completions", partial(complete, chat=False), "POST"),
        ("/v1/chat/completions", partial(complete, chat=True), "POST"),
    ]
    guarded = [Route(path, _guarded(endpoint, path, loop, key), methods=[how]) for path, endpoint, how in routes]
    open_to_all = [Route("/health", health), Route("/metrics", metrics)]
    handlers: dict[Any, Any] = {HTTPException: _refused, Exception: _failed}
    return Starlette(routes=[*guarded, *open_to_all], exception_handlers=handlers, lifespan=life)


def _guarded(endpoint: Callable[[Request], Awaitable[Response]], path: str, loop: Loop, key: str | None):
    """The endpoint for those who have the key; its errors in OpenAI's form, its answers counted."""

    async def answer(request: Request) -> Response:
        try:
            sent = request.headers.get("authorization", "").encode("latin-1")
            if key is not None and not hmac.compare_digest(sent, b"Bearer " + key.encode()):
                raise ApiError(401, "the API key is missing or wrong", code="invalid_api_key")
            response = await endpoint(request)
        except ApiError as error:
            response = JSONResponse(error.body, error.status, error.headers)
        except ClientDisconnect:
            response = Response(status_code=499)  # nobody reads it; counted as nginx does
        loop.metrics.requests.labels(path, response.status_code).inc()
        return response

    return answer


async def _refused(request: Request, error: HTTPException) -> Response:
    """No such path or method."""
    message = f"{request.method} {request.url.path}: {error.detail}"
    return JSONResponse(ApiError(error.status_code, message).body, error.status_code, error.headers)


async def _failed(request: Request, error: Exception) -> Response:
    """A mistake of ours; what it was is in the log."""
    return JSONResponse(ApiError(500, "the server failed; its log says why").body, 500)


async def _answer(request: Request, loop: Loop, name: str, chat: bool) -> Response:
    body = await _read(request)
    ask = await run_in_threadpool(read_ask, body, chat, loop.engine, loop.text, name, loop.most)
    pieces: asyncio.Queue[tuple[int, Piece] | None] = asyncio.Queue()
    here = asyncio.get_running_loop()
    tell = lambda index, piece: here.call_soon_threadsafe(pieces.put_nowait, (index, piece))  # noqa: E731
    rows = [
        Row(prompt, settings, ask.stop, ask.stream, chat, partial(tell, index))
        for index, (prompt, settings) in enumerate(zip(ask.prompts, ask.settings, strict=True))
    ]
    loop.submit(rows)
    form, told = Form(chat, name, loop.text, ask.best), _pieces(request.receive, loop, rows, pieces)
    if ask.stream:
        how = dict(media_type="text/event-stream", headers={"cache-control": "no-cache"})
        return _Stream(_events(told, form, ask, rows), **how)
    async with contextlib.aclosing(told):
        whole = {index: piece async for index, piece in told}
    return JSONResponse(form.whole([whole[index] for index in range(len(rows))], usage(rows, ask.n)))


async def _read(request: Request) -> dict[str, Any]:
    """The body. A page in a browser cannot send this type to another origin without being asked first."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ApiError(415, "the content-type must be application/json")
    raw = b""
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for part in request.stream():
                raw += part
                if len(raw) > _BODY:
                    raise ApiError(413, f"the body is longer than {_BODY} bytes")
    except TimeoutError:
        raise ApiError(408, f"the body did not come in {_BODY_SECONDS} s") from None
    return read_body(raw)


async def _pieces(receive: Receive, loop: Loop, rows: list[Row], pieces: asyncio.Queue) -> Pieces:
    """What the rows tell until all have ended. Whoever stops reading or is disconnected frees their slots."""

    async def watch():
        while (await receive())["type"] != "http.disconnect":
            pass
        pieces.put_nowait(None)

    watcher, left = asyncio.create_task(watch()), len(rows)
    try:
        while left:
            told = await pieces.get()
            if told is None:
                raise ClientDisconnect
            if told[1].finished == "failed":
                raise ApiError(500, str(told[1].error))
            left -= told[1].finished is not None
            yield told
    finally:
        watcher.cancel()
        if left:
            loop.cancel(rows)


class _Stream(StreamingResponse):
    """Sends its events; to a client that has gone nothing more."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with contextlib.suppress(ClientDisconnect):
            async with contextlib.aclosing(self.body_iterator):
                await self.stream_response(send)


async def _events(told: Pieces, form: Form, ask: Ask, rows: list[Row]) -> AsyncIterator[str]:
    """Server-sent events: chunks as their text is settled, the counts where they are asked for, then [DONE]."""
    event = lambda said: f"data: {json.dumps(said)}\n\n"  # noqa: E731 (ASCII: some split lines at U+2028)
    uncounted = {"usage": None} if ask.tell_usage else {}
    try:
        async with contextlib.aclosing(told):
            for index in range(len(rows) if form.chat else 0):
                yield event(form.begin(index) | uncounted)
            async for index, piece in told:
                yield event(form.piece(index, piece) | uncounted)
        if ask.tell_usage:
            yield event(form.counted(usage(rows, ask.n)))
        yield "data: [DONE]\n\n"
    except ApiError as error:
        yield event(error.body)
