"""The server over real sockets: answers are the decoder's own, whoever comes, breaks off or writes nonsense."""

import contextlib
import json
import random
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2 as httpx
import pytest
import uvicorn

from edlm_jax.decoding import Sampling, parse_mode
from edlm_jax.pretrained.chat import encode_chat
from edlm_jax.pretrained.encode import encode_text
from edlm_jax.serving.answers import Form
from edlm_jax.serving.app import make_app
from edlm_jax.serving.loop import Piece
from tests.compilations import compiled
from tests.seeds import fresh_rng
from tests.serving.served import COLUMNS, ENDS, NAME, QUEUE, SLOTS, make_decoder, make_loop, make_text

KEY, MODE = "a key with ü", parse_mode("diffusion:threshold=0.5")
PROMPTS = ["add 3", "to 17"]  # of one length: the decoder compiles for each


@pytest.fixture(scope="module")
def decoder():
    return make_decoder()


@pytest.fixture(scope="module")
def loop(decoder):
    loop = make_loop(decoder, MODE)
    loop.engine.warm()
    return loop


@contextlib.contextmanager
def serving(loop):
    """The address of a server in a thread of its own."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(make_app(loop, NAME, KEY), log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, kwargs=dict(sockets=[listening]))
    thread.start()
    try:
        yield listening.getsockname()
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def address(loop):
    with serving(loop) as address:
        yield address


@pytest.fixture(scope="module")
def client(address):
    with connected(address) as client:
        yield client


def connected(address):
    headers = {"authorization": f"Bearer {KEY}".encode()}
    return httpx.Client(base_url="http://{}:{}".format(*address), headers=headers, timeout=60)


def alone(decoder, body, chat, prompt):
    """The texts of a request by the decoder, without a server."""
    text, n = make_text(), body.get("n", 1)
    encoded = encode_chat(text.tokenizer, prompt) if chat else encode_text(text.tokenizer, prompt)
    limit = body.get("max_tokens", COLUMNS - len(encoded) if chat else 16)
    how = dict(limit=limit, sampling=Sampling(body["temperature"]), seed=body["seed"], ends=ENDS, detokenize=text)
    result = decoder([encoded] * n, MODE, stop=body.get("stop", ()), **how)
    ended = [len(row) < limit or row[-1] in ENDS for row in result.tokens]
    return [shown.strip() if chat else shown for shown in result.texts], ["stop" if end else "length" for end in ended]


def draw(rng):
    """(body, chat, prompt)."""
    chat, words = bool(rng.random() < 0.3), PROMPTS[rng.integers(2)]
    body = dict(seed=int(rng.integers(2**40)), n=int(rng.integers(1, 3)), temperature=0.7)
    body["stop"] = [chr(letter) for letter in rng.integers(97, 123, 2)]
    if rng.random() < 0.5:
        body["max_tokens"] = 9  # the decoder compiles for each limit
    said = [{"role": "user", "content": words}]
    return body | ({"messages": said} if chat else {"prompt": words}), chat, said if chat else words


def post(client, body, chat):
    return client.post("/v1/chat/completions" if chat else "/v1/completions", json=body)


def read_events(client, body, chat):
    """A stream's chunks."""
    path = "/v1/chat/completions" if chat else "/v1/completions"
    asked = body | {"stream": True, "stream_options": {"include_usage": True}}
    with client.stream("POST", path, json=asked) as response:
        assert response.status_code == 200 and response.headers["content-type"].startswith("text/event-stream")
        events = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert events.pop() == "[DONE]"
    return [json.loads(event) for event in events]


def read_stream(client, body, chat):
    """(texts, ends, usage) of a stream's choices."""
    texts, ends, usage = [""] * body.get("n", 1), [None] * body.get("n", 1), None
    for event in read_events(client, body, chat):
        usage = event["usage"] or usage
        for choice in event["choices"]:
            said = choice["delta"].get("content", "") if chat else choice["text"]
            assert ends[choice["index"]] is None, "text behind an end"
            texts[choice["index"]] += said
            ends[choice["index"]] = choice["finish_reason"]
    return texts, ends, usage


def test_answers_are_the_decoders(client, decoder):
    """Whole and streamed, many at once, sampled, with stop strings: each equals the same request alone."""
    rng = fresh_rng()
    drawn = [draw(rng) for _ in range(8)]
    expected = [alone(decoder, *asked) for asked in drawn]

    def both(asked):
        body, chat, _ = asked
        while (whole := post(client, body, chat)).status_code == 429:
            assert int(whole.headers["retry-after"]) >= 1
            time.sleep(0.05)
        return whole.json()

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(both, drawn))
    for (body, chat, _), answer, (texts, ends) in zip(drawn, answers, expected, strict=True):
        said = [choice["message"]["content"] if chat else choice["text"] for choice in answer["choices"]]
        assert said == texts and [choice["finish_reason"] for choice in answer["choices"]] == ends
        assert answer["model"] == NAME and answer["object"] == ("chat.completion" if chat else "text_completion")
        usage = answer["usage"]
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        assert usage["tokens_per_forward"] == usage["completion_tokens"] / usage["denoise_forwards"]
        *streamed, counted = read_stream(client, body, chat)
        assert streamed == [texts, ends]
        assert all(counted[name] == usage[name] for name in usage if name.endswith("_tokens"))


def test_nothing_compiles_and_no_slot_is_lost(client, decoder, address, loop):
    """Disconnects at any moment, broken JSON and over-long prompts among requests that are answered."""
    rng, dice = fresh_rng(), random.Random(int(fresh_rng().integers(2**32)))
    body = dict(prompt=PROMPTS[0], max_tokens=40, temperature=0.7, seed=1, stop=[])
    (text,), _ = alone(decoder, body, False, PROMPTS[0])
    compiled.clear()

    def nonsense(number):
        kind = number % 5
        if kind == 0:  # asks and goes away
            raw = json.dumps(body | {"stream": dice.random() < 0.5, "n": dice.randint(1, 2)}).encode()
            head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
            head += f"Content-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n"
            with socket.create_connection(address) as raw_socket:
                raw_socket.sendall(head.encode() + raw)
                time.sleep(dice.uniform(0, 0.05))
            return True
        if kind == 1:
            return post(client, body | {"prompt": "a" * 99}, False).status_code == 400
        if kind == 2:
            how = dict(content=b"{", headers={"content-type": "application/json"})
            return client.post("/v1/completions", **how).status_code == 400
        if kind == 3:  # lengths that nobody has asked for yet
            how = dict(prompt="a" * dice.randint(1, 50), max_tokens=dice.randint(1, 14), top_p=dice.uniform(0.1, 1))
            return post(client, how, False).status_code in (200, 429)
        answer = post(client, body, False)
        return answer.status_code == 429 or answer.json()["choices"][0]["text"] == text

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(nonsense, rng.permutation(60).tolist()))
    end = time.monotonic() + 20
    while (loop._live or loop._waiting) and time.monotonic() < end:
        time.sleep(0.01)
    assert loop.engine.free == SLOTS and not loop._waiting
    assert not compiled
    counts = client.get("/metrics").text
    assert "edlm_rows_live 0.0" in counts and 'edlm_rows_total{end="cancelled"}' in counts
    assert "edlm_cache_columns_used 0.0" in counts


@pytest.mark.filterwarnings("ignore:.*reads next tokens")
def test_log_probabilities(decoder):
    """In OpenAI's forms, whole and streamed: of each token that is counted, greedily the best one's."""
    how, said = dict(max_tokens=12, temperature=0), [{"role": "user", "content": "a"}]
    with serving(make_loop(decoder, parse_mode("prompt_lookup"))) as address, connected(address) as client:
        told, pieces, count = ask_both(client, how | dict(prompt=PROMPTS[0], logprobs=2), False)
        assert [len(told[name]) for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")] == [count] * 4
        bests = [max(best.values()) for best in told["top_logprobs"]]
        assert told["token_logprobs"] == bests and max(bests) < 0 == told["text_offset"][0]
        for name in ("tokens", "token_logprobs", "top_logprobs"):
            assert [value for piece in pieces for value in piece[name]] == told[name]
        told, pieces, count = ask_both(client, how | dict(messages=said, logprobs=True, top_logprobs=3), True)
        assert len(told["content"]) == count
        for entry in told["content"]:
            assert len(best := entry["top_logprobs"]) == 3 and best[0].items() < entry.items()
        assert [entry for piece in pieces for entry in piece["content"]] == told["content"]


def ask_both(client, body, chat):
    """(log-probabilities of the whole answer, of the stream's chunks, tokens)."""
    answer, events = post(client, body, chat).json(), read_events(client, body, chat)
    chunks = [choice["logprobs"] for event in events for choice in event["choices"] if choice["logprobs"]]
    return answer["choices"][0]["logprobs"], chunks, answer["usage"]["completion_tokens"]


def test_text_offsets_count_characters():
    """Of a token that is part of one, where it begins; what is not shown takes no place."""
    text, answer = make_text(), "aé bü€\U0001f642c"
    characters = [index for index, character in enumerate(answer) for _ in character.encode()]
    ids = text.tokenizer.encode(answer, add_special_tokens=False)
    assert len(ids) == len(characters)
    columns = [[(token, -1.0)] for token in [*ids[:3], ENDS[0], *ids[3:]]]
    told = Form(False, NAME, text, 0).piece(0, Piece(answer, begin=5, logprobs=columns))["choices"][0]["logprobs"]
    expected = [*characters[:3], characters[3], *characters[3:]]
    assert told["text_offset"] == [5 + index for index in expected]


def test_a_full_queue_is_429(client, loop):
    """More choices than fit now come later, more than ever fit never."""
    body = dict(prompt=PROMPTS[0], max_tokens=40, temperature=1, n=SLOTS + QUEUE)
    assert len(post(client, body, False).json()["choices"]) == SLOTS + QUEUE
    never = post(client, body | {"n": SLOTS + QUEUE + 1}, False)
    assert never.status_code == 400 and never.json()["error"]["param"] == "n"
    with ThreadPoolExecutor(3) as pool:
        statuses = [answer.status_code for answer in pool.map(lambda _: post(client, body, False), range(3))]
    assert 200 in statuses and 429 in statuses


@pytest.mark.parametrize(
    ("how", "status"),
    [
        (dict(method="GET", url="/v1/completions"), 405),
        (dict(method="GET", url="/v1/nothing"), 404),
        (dict(method="GET", url="/v1/models/other"), 404),
        (dict(method="POST", url="/v1/completions", content=b"{}"), 415),
        (dict(method="POST", url="/v1/completions", json={"prompt": "a" * 2**21}), 413),
        (dict(method="POST", url="/v1/completions", json={}), 400),
        (dict(method="POST", url="/v1/completions", json={}, headers={"authorization": "Bearer other"}), 401),
        (dict(method="GET", url="/v1/models", headers={"authorization": ""}), 401),
    ],
)
def test_errors_have_openais_form(client, how, status):
    answer = client.request(**how)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_models_and_health(client):
    (model,) = client.get("/v1/models").json()["data"]
    assert model["id"] == NAME and client.get(f"/v1/models/{NAME}").json() == model
    assert httpx.get(str(client.base_url) + "/health").json() == {"status": "ok"}
