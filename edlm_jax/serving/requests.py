"""What a request of OpenAI's interface asks for, read strictly: what it cannot have is refused by name.

A field that OpenAI does not know is refused, too: a misspelt option would change nothing and nobody would hear of it.
One that OpenAI knows and this server does not is taken with the value that asks for nothing, which some clients send.
Fields that change no answer (`user`, `metadata`) are passed over.
"""

import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from edlm_jax.decoding import Engine, RequestSettings
from edlm_jax.decoding.logprobs import MOST_BEST
from edlm_jax.decoding.prompts import row_seeds
from edlm_jax.errors import InputError
from edlm_jax.pretrained import Text
from edlm_jax.pretrained.chat import encode_chat
from edlm_jax.pretrained.encode import encode_text
from edlm_jax.serving.grammar import JsonGuide, guide_maker

_PASSED_OVER = (
    "user metadata store service_tier safety_identifier prompt_cache_key prompt_cache_retention parallel_tool_calls"
).split()
# Of OpenAI's fields: the values that ask for nothing, beside null.
_NOTHING: dict[str, tuple] = {"frequency_penalty": (0,), "presence_penalty": (0,), "logit_bias": ({},)}
_NOTHING_TO_COMPLETE: dict[str, tuple] = {"best_of": (1,), "echo": (False,), "suffix": ("",)}
_NOTHING_TO_SAY: dict[str, tuple] = dict.fromkeys(["audio", "prediction", "web_search_options"], ())
_NOTHING_TO_SAY |= dict.fromkeys(["functions", "tools"], ([],))
_NOTHING_TO_SAY |= dict.fromkeys(["function_call", "tool_choice"], ("none", "auto"))
_NOTHING_TO_SAY |= {"modalities": (["text"],), "reasoning_effort": ("none",), "verbosity": ("medium",)}
_READ = ("model", "n", "stop", "stream", "stream_options", "seed", "temperature", "top_p", "max_tokens", "logprobs")
_READ += ("top_k", "threshold")  # the engine's, that OpenAI has not
_MOST_CHOICES, _MOST_STOPS, _COMPLETION_TOKENS, _COMPLETION_BEST = 128, 4, 16, 5  # OpenAI's


class ApiError(Exception):
    """What is answered instead, in OpenAI's form."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None, **headers: str):
        super().__init__(message)
        kinds = {401: "authentication_error", 429: "rate_limit_error"}
        kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
        self.status, self.headers = status, {name.replace("_", "-"): value for name, value in headers.items()}
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


@dataclass(frozen=True)
class Ask:
    """What a request asks for: a row for each choice of each prompt, in the order of the answer's choices."""

    n: int  # choices of a prompt
    prompts: list[list[int]]  # of the rows
    settings: list[RequestSettings]
    stop: tuple[str, ...]
    stream: bool
    tell_usage: bool  # in the stream's last chunk; an answer in one piece always has it
    best: int | None  # log-probabilities beside each token's own; None: none at all


def read_body(raw: bytes) -> dict[str, Any]:
    """The JSON object of a request."""
    try:
        body = json.loads(raw)
        json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ApiError(400, "the body holds half a surrogate pair, which is no character") from None
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise ApiError(400, "the body must be a JSON object")
    return body


def read_ask(body: Mapping[str, Any], chat: bool, engine: Engine, text: Text, name: str, most: int) -> Ask:
    """What a request asks of this model, or an ApiError that says why not; `most` rows can ever be there at once."""
    body = {field: value for field, value in body.items() if value is not None}
    _check_fields(body, chat)
    if body.get("model", name) != name:
        raise ApiError(404, f"the model {body['model']!r} is not served here, {name!r} is", "model", "model_not_found")
    stop = _stop(body.get("stop", ()))
    options = _read(body, "stream_options", {}, "an object", lambda value: isinstance(value, dict))
    if unknown := set(options) - {"include_usage", "include_obfuscation"}:
        raise ApiError(400, f"stream_options has no {sorted(unknown)[0]!r}", "stream_options")
    given, n = [_messages(body)] if chat else _prompts(body), _whole(body, "n", 1, 1, _MOST_CHOICES)
    if len(given) * n > most:
        many = f"{len(given) * n} choices at once are more than ever fit here, {most}; ask for fewer"
        raise ApiError(400, many, "n" if n > 1 else "prompt")
    encode = encode_chat if chat else encode_text
    try:
        prompts = [prompt if _is_ids(prompt) else encode(text.tokenizer, prompt) for prompt in given]
    except InputError as error:  # of the chat template
        raise ApiError(400, str(error), "messages") from None
    prompts, best = [prompt for prompt in prompts for _ in range(n)], _best(body, chat, engine)
    settings = _settings(body, chat, prompts, engine, text, best is not None)
    stop = (*stop, *([text.turn_stop] if chat and text.turn_stop else []))
    return Ask(n, prompts, settings, stop, _flag(body, "stream"), _flag(options, "include_usage"), best)


def _check_fields(body: Mapping[str, Any], chat: bool) -> None:
    of_kind = ("messages", "max_completion_tokens", "response_format", "top_logprobs") if chat else ("prompt",)
    nothing = _NOTHING | (_NOTHING_TO_SAY if chat else _NOTHING_TO_COMPLETE)
    for field, value in body.items():
        if field in nothing and value not in nothing[field]:
            raise ApiError(400, f"{field} is not supported by this server; leave it out", field, "unsupported_value")
        if field not in (*_READ, *_PASSED_OVER, *of_kind, *nothing):
            raise ApiError(400, f"unrecognized request argument supplied: {field}", field, "unknown_parameter")


def _settings(body, chat: bool, prompts, engine: Engine, text: Text, logprobs: bool) -> list[RequestSettings]:
    """Of each row; where the engine would refuse one, an ApiError with its reason."""
    limits = (field for field in ("max_completion_tokens", "max_tokens") if field in body)
    limit = next((_whole(body, field, 1, 1, 2**31) for field in limits), None)
    seed = _whole(body, "seed", None, -(2**63), 2**64 - 1)
    shared: dict[str, Any] = dict(ends=text.ends, logprobs=logprobs, top_k=_whole(body, "top_k", 0, 0, 2**31 - 1))
    shared |= dict(top_p=_number(body, "top_p", 1.0, 0, 1), threshold=_number(body, "threshold", None, 0, 1))
    # OpenAI draws by default; so does this, where the mode can.
    shared |= dict(temperature=_number(body, "temperature", 0.0 if engine.mode.greedy else 1.0, 0, 2))
    guide = _guide(body, engine, text)
    seeds = row_seeds(secrets.randbits(64) if seed is None else seed % 2**64, len(prompts))
    made = []
    for prompt, row_seed in zip(prompts, seeds.tolist(), strict=True):
        own = limit or (max(engine.columns - len(prompt), 1) if chat else _COMPLETION_TOKENS)
        made.append(RequestSettings(own, row_seed, guide=guide and guide(), **shared))
        if reason := engine.refuse(prompt, made[-1]):
            named = next((field for field in ("temperature", "top_p", "threshold") if field in reason), None)
            param = ("messages" if chat else "prompt") if reason.startswith("the prompt") else named
            long = len(prompt) + own > engine.columns
            raise ApiError(400, reason, param, "context_length_exceeded" if long else None)
    return made


def _prompts(body: Mapping[str, Any]) -> list[Any]:
    """OpenAI's four forms: a text, texts, ids, lists of ids."""
    given = _required(body, "prompt")
    if isinstance(given, str) or _is_ids(given):
        given = [given]
    if not isinstance(given, list) or not given or {*map(type, given)} != {str} and not all(map(_is_ids, given)):
        raise ApiError(400, "prompt must be a text, a list of texts, a list of ids or a list of those", "prompt")
    return given


def _messages(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The conversation; the text parts of a content are joined, others are refused."""
    given = _required(body, "messages")
    if not isinstance(given, list) or not given or not all(isinstance(message, dict) for message in given):
        raise ApiError(400, "messages must be a list of at least one object", "messages")
    return [{**message, "content": _content(f"messages[{number}]", message)} for number, message in enumerate(given)]


def _content(where: str, message: Mapping[str, Any]) -> str:
    if not isinstance(message.get("role"), str):
        raise ApiError(400, f"{where} needs a role, a text", f"{where}.role")
    content = message.get("content")
    for part in content if isinstance(content, list) else [{"type": "text", "text": content}]:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise ApiError(400, f"{where}.content must be a text or a list of text parts", f"{where}.content")
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _guide(body: Mapping[str, Any], engine: Engine, text: Text) -> Callable[[], JsonGuide] | None:
    """What makes the guides of a `response_format`."""
    given = body.get("response_format", {"type": "text"})
    kind = given.get("type") if isinstance(given, dict) else None
    named = given.get("json_schema") if kind == "json_schema" else {"schema": {"type": "object"}}
    schema = named.get("schema") if isinstance(named, dict) else None
    if kind not in ("text", "json_object", "json_schema") or not isinstance(schema, dict):
        wanted = "an object of type text, json_object or json_schema, the last with a json_schema that has a schema"
        raise ApiError(400, f"response_format must be {wanted}", "response_format", "invalid_value")
    if kind == "text":
        return None
    if not any(mode.guided for mode in engine.modes):
        reason = f"response_format needs a server that decodes by --mode=ar; this one decodes by {engine.mode}"
        raise ApiError(400, reason, "response_format", "unsupported_value")
    try:
        return guide_maker(text, engine.spec.vocab_size, schema)
    except InputError as error:
        raise ApiError(400, str(error), "response_format") from None


def _best(body: Mapping[str, Any], chat: bool, engine: Engine) -> int | None:
    """How many log-probabilities are wanted beside each token's own; None: none at all."""
    if not chat:
        best = _whole(body, "logprobs", None, 0, _COMPLETION_BEST)
    else:
        wanted, best = _flag(body, "logprobs"), _whole(body, "top_logprobs", 0, 0, MOST_BEST)
        if best and not wanted:
            raise ApiError(400, "top_logprobs needs logprobs, true", "top_logprobs", "invalid_value")
        best = best if wanted else None
    if best is not None and not all(mode.lossless for mode in engine.modes):
        reason = f"logprobs needs a server that decodes by ar or a lossless mode; this one decodes by {engine.mode}"
        raise ApiError(400, reason, "logprobs", "unsupported_value")
    return best


def _stop(given: Any) -> tuple[str, ...]:
    stop = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, list | tuple) else (None,)
    if len(stop) > _MOST_STOPS or not all(isinstance(text, str) and text for text in stop):
        raise ApiError(400, f"stop must be a text or a list of at most {_MOST_STOPS} texts, none empty", "stop")
    return stop


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(token) is int for token in value)


def _required(body: Mapping[str, Any], field: str) -> Any:
    if field not in body:
        raise ApiError(400, f"you must provide {field}", field, "missing_required_parameter")
    return body[field]


def _flag(body: Mapping[str, Any], field: str) -> bool:
    return _read(body, field, False, "true or false", lambda value: isinstance(value, bool))


def _number(body, field: str, default: float | None, low: float, high: float, kinds=(int, float), what="a number"):
    fits = lambda value: type(value) in kinds and low <= value <= high  # noqa: E731
    return _read(body, field, default, f"{what} from {low} to {high}", fits)


_whole = partial(_number, kinds=(int,), what="a whole number")


def _read(body: Mapping[str, Any], field: str, default: Any, wanted: str, fits: Callable[[Any], bool]) -> Any:
    if field in body and not fits(body[field]):
        raise ApiError(400, f"{field} must be {wanted}, not {json.dumps(body[field])[:100]}", field, "invalid_value")
    return body.get(field, default)
