"""What requests ask for, and what is refused, by which status, naming which field."""

import json
import math

import pytest

from edlm_jax.decoding import Engine, parse_mode
from edlm_jax.decoding.prompts import row_seeds
from edlm_jax.pretrained.chat import encode_chat
from edlm_jax.serving.requests import ApiError, read_ask, read_body
from tests.seeds import fresh_rng
from tests.serving.served import COLUMNS, ENDS, NAME, make_decoder, make_text

MOST = 6  # rows at once


@pytest.fixture(scope="module")
def engine():
    return Engine(make_decoder(), slots=2, columns=COLUMNS)


def ask(engine, body, chat=False):
    return read_ask(read_body(json.dumps(body).encode()), chat, engine, make_text(), NAME, MOST)


def test_rows_are_those_of_the_decoder(engine):
    """A request's rows have the seeds that a call of the decoder with these prompts has."""
    rng = fresh_rng()
    seed, n = int(rng.integers(2**62)), int(rng.integers(1, 4))
    prompts = [[1, 2, 3], [250, 4]]
    asked = ask(engine, dict(prompt=prompts, n=n, seed=seed, max_tokens=5, top_p=0.5, top_k=7, stop="x", model=NAME))
    assert asked.prompts == [prompt for prompt in prompts for _ in range(n)]
    assert [settings.seed for settings in asked.settings] == row_seeds(seed, 2 * n).tolist()
    (settings, *_) = asked.settings
    assert (settings.limit, settings.temperature, settings.top_p, settings.top_k) == (5, 1, 0.5, 7)
    assert (settings.ends, settings.threshold, asked.stop) == (ENDS, None, ("x",))
    assert not asked.stream and not asked.tell_usage
    other = ask(engine, dict(prompt=prompts, n=n))
    assert other.settings[0].seed != ask(engine, dict(prompt=prompts, n=n)).settings[0].seed


def test_limits(engine):
    """OpenAI's 16 tokens of a completion, all that fit of an answer; both names of the limit."""
    messages = [{"role": "system", "content": "a"}, {"role": "user", "content": [{"type": "text", "text": "bc"}]}]
    (prompt,) = (asked := ask(engine, dict(messages=messages), True)).prompts
    flat = [messages[0], {"role": "user", "content": "bc"}]
    assert prompt == encode_chat(make_text().tokenizer, flat) and asked.settings[0].limit == COLUMNS - len(prompt)
    assert ask(engine, dict(prompt="abc")).settings[0].limit == 16
    for field in ("max_tokens", "max_completion_tokens"):
        assert ask(engine, dict(messages=messages, **{field: 2}), True).settings[0].limit == 2


def test_what_asks_for_nothing_is_taken(engine):
    """Clients send their defaults, and null for what they leave out."""
    nothing = dict(frequency_penalty=0, presence_penalty=0.0, logit_bias={}, user="me", seed=None, stop=None, n=1)
    ask(engine, dict(prompt="a", echo=False, best_of=1, suffix=None, logprobs=None, **nothing))
    said = dict(tools=[], tool_choice="auto", response_format={"type": "text"}, metadata={"a": "b"})
    said |= dict(logprobs=False, top_logprobs=0)
    ask(engine, dict(messages=[{"role": "user", "content": "a"}], **said, **nothing), True)
    greedy = Engine(make_decoder(), parse_mode("psd"), slots=1, columns=COLUMNS)
    assert ask(greedy, dict(prompt="a")).settings[0].temperature == 0


COMPLETIONS = [
    (dict(prompt="a", temprature=0), 400, "temprature"),
    (dict(prompt="a", messages=[]), 400, "messages"),
    (dict(), 400, "prompt"),
    (dict(prompt=[]), 400, "prompt"),
    (dict(prompt=""), 400, "prompt"),
    (dict(prompt={"a": 1}), 400, "prompt"),
    (dict(prompt=[1, "a"]), 400, "prompt"),
    (dict(prompt=[True]), 400, "prompt"),
    (dict(prompt=[[1], []]), 400, "prompt"),
    (dict(prompt=[259]), 400, "prompt"),
    (dict(prompt=[258]), 400, "prompt"),
    (dict(prompt=[-1]), 400, "prompt"),
    (dict(prompt="a" * 60), 400, "prompt"),
    (dict(prompt="a", max_tokens=64), 400, "prompt"),
    (dict(prompt="a", max_tokens=0), 400, "max_tokens"),
    (dict(prompt="a", max_tokens=2.0), 400, "max_tokens"),
    (dict(prompt="a", max_completion_tokens=2), 400, "max_completion_tokens"),
    (dict(prompt="a", n=0), 400, "n"),
    (dict(prompt="a", n=True), 400, "n"),
    (dict(prompt="a", n=129), 400, "n"),
    (dict(prompt="a", n=MOST + 1), 400, "n"),
    (dict(prompt=["a", "b"], n=MOST // 2 + 1), 400, "n"),
    (dict(prompt=["a"] * (MOST + 1)), 400, "prompt"),
    (dict(prompt="a", temperature="hot"), 400, "temperature"),
    (dict(prompt="a", temperature=2.1), 400, "temperature"),
    (dict(prompt="a", temperature=math.nan), 400, "temperature"),
    (dict(prompt="a", top_p=0), 400, "top_p"),
    (dict(prompt="a", top_p=1.5), 400, "top_p"),
    (dict(prompt="a", top_k=-1), 400, "top_k"),
    (dict(prompt="a", threshold=2), 400, "threshold"),
    (dict(prompt="a", seed="7"), 400, "seed"),
    (dict(prompt="a", stop=""), 400, "stop"),
    (dict(prompt="a", stop=["a", 1]), 400, "stop"),
    (dict(prompt="a", stop=list("abcde")), 400, "stop"),
    (dict(prompt="a", stream="yes"), 400, "stream"),
    (dict(prompt="a", stream_options=[]), 400, "stream_options"),
    (dict(prompt="a", stream_options={"all": True}), 400, "stream_options"),
    (dict(prompt="a", logprobs=0), 400, "logprobs"),
    (dict(prompt="a", logprobs=6), 400, "logprobs"),
    (dict(prompt="a", logprobs=True), 400, "logprobs"),
    (dict(prompt="a", top_logprobs=2), 400, "top_logprobs"),
    (dict(prompt="a", echo=True), 400, "echo"),
    (dict(prompt="a", best_of=2), 400, "best_of"),
    (dict(prompt="a", frequency_penalty=0.5), 400, "frequency_penalty"),
    (dict(prompt="a", logit_bias={"5": -100}), 400, "logit_bias"),
    (dict(prompt="a", model="gpt-4"), 404, "model"),
    (dict(prompt="a", model=7), 404, "model"),
]
USER = {"role": "user", "content": "a"}
CHATS = [
    (dict(prompt="a"), 400, "prompt"),
    (dict(messages="a"), 400, "messages"),
    (dict(messages=[]), 400, "messages"),
    (dict(messages=["a"]), 400, "messages"),
    (dict(messages=[USER, {"content": "a"}]), 400, "messages[1].role"),
    (dict(messages=[{"role": "user"}]), 400, "messages[0].content"),
    (dict(messages=[{"role": "user", "content": [{"type": "image_url"}]}]), 400, "messages[0].content"),
    (dict(messages=[{"role": "user", "content": "a" * 64}]), 400, "messages"),
    (dict(messages=[USER], tools=[{"type": "function"}]), 400, "tools"),
    (dict(messages=[USER], logprobs=True), 400, "logprobs"),  # not by diffusion
    (dict(messages=[USER], logprobs=2), 400, "logprobs"),
    (dict(messages=[USER], logprobs=True, top_logprobs=21), 400, "top_logprobs"),
    (dict(messages=[USER], top_logprobs=2), 400, "top_logprobs"),
    (dict(messages=[USER], response_format={"type": "grammar"}), 400, "response_format"),
    (dict(messages=[USER], response_format={"type": "json_schema"}), 400, "response_format"),
    (dict(messages=[USER], response_format={"type": "json_object"}), 400, "response_format"),  # not by diffusion
]


@pytest.mark.parametrize("chat", [False, True])
def test_what_cannot_be_is_refused_by_name(engine, chat):
    for body, status, param in CHATS if chat else COMPLETIONS:
        with pytest.raises(ApiError) as refused:
            ask(engine, body, chat)
        error = refused.value.body["error"]
        assert (refused.value.status, error["param"]) == (status, param), (body, error)
        assert error["type"] == "invalid_request_error" and error["message"] and "\n" not in error["message"]


@pytest.mark.parametrize("raw", [b"", b"{", b"[1]", b"\xff{}", b'{"prompt": "\\ud800"}', b"[" * 100_000, b"9" * 9999])
def test_what_is_no_json_object(raw):
    with pytest.raises(ApiError) as refused:
        read_body(raw)
    assert refused.value.status == 400


def test_what_a_mode_cannot_do_is_refused_by_name():
    for mode, how in [("psd", dict(temperature=1)), ("diffusion:rule=fixed:2", dict(threshold=0.5))]:
        with pytest.raises(ApiError) as refused:
            ask(Engine(make_decoder(), parse_mode(mode), slots=1, columns=COLUMNS), dict(prompt="a", **how))
        assert [refused.value.body["error"]["param"]] == list(how)


def test_more_prompts_than_fit_are_not_encoded(engine, monkeypatch):
    monkeypatch.setattr("edlm_jax.serving.requests.encode_text", None)
    with pytest.raises(ApiError, match="more than ever fit"):
        ask(engine, dict(prompt=["a"] * (MOST + 1)))


def test_a_template_that_refuses_is_the_clients_error(engine):
    text = make_text()
    text.tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(ApiError, match="roles must alternate") as refused:
        read_ask({"messages": [USER]}, True, engine, text, NAME, MOST)
    assert refused.value.status == 400 and refused.value.body["error"]["param"] == "messages"


def test_brackets_in_brackets_are_the_clients_error(engine):
    """As many as JSON is read with, and more than anything that follows can."""
    nested = "[" * 800 + "]" * 800
    raw = json.dumps(dict(messages=[dict(role="user", content="a", extra=None)])).replace("null", nested).encode()
    with pytest.raises(ApiError, match="too many brackets in brackets") as caught:
        read_ask(read_body(raw), True, engine, make_text(), NAME, MOST)
    assert caught.value.status == 400
