"""A thousand requests to `edlm serve`, nonsense and disconnects among them, and a SIGTERM with streams in flight.

    python -m tests.benchmarks.serving [--requests 1000] [--json docs/benchmarks/serving_xeon.json]

Each answer is compared with the decoder's own text for that request alone. Counted: answers that differ, slots that
stay taken, programs compiled after the first pass over the prompts, memory of the server as it goes on, and streams
that SIGTERM cut.
"""

import argparse
import json
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2 as httpx

from configs.quickstart import AR_MODEL
from edlm_jax.decoding import Decoder, Sampling
from edlm_jax.decoding.prompts import row_seeds
from edlm_jax.evaluation.batches import decode_batches
from edlm_jax.evaluation.tasks import load_tasks
from edlm_jax.pretrained import Text, load_pretrained, load_tokenizer
from edlm_jax.reports.report import describe_machine

LIMITS, TEMPERATURES = (8, 48), (0.0, 0.8)
HEAD = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n"


def expected_texts(model_dir: str, count: int) -> list[tuple[dict, str]]:
    """(body, the text of it by the decoder) of requests that are all different."""
    model, tokenizer = load_pretrained(model_dir, dtype="float32"), load_tokenizer(model_dir)
    decoder, text, found = Decoder(model), Text.of(model.spec, tokenizer), []
    (task,) = load_tasks([{"kind": "tasks", "split": "test", "size": count}], tokenizer)
    prompts = [question.prompt for question in task.questions]
    for offset, (limit, temperature) in enumerate([(a, b) for a in LIMITS for b in TEMPERATURES]):
        some = prompts[offset::4]
        seeds = [int(row_seeds(index, 1)[0]) for index in range(len(some))]
        how = dict(limit=limit, sampling=Sampling(temperature), ends=text.ends, detokenize=text)
        rows = decode_batches(decoder, some, batch_size=len(some), seeds=seeds, **how)
        for index, (prompt, row) in enumerate(zip(some, rows, strict=True)):
            body = dict(prompt=prompt, max_tokens=limit, temperature=temperature, seed=index)
            found.append((body, row.text))
    return found


class Client:
    """Asks the server and counts what came."""

    def __init__(self, url: str, known: list[tuple[dict, str]]):
        self.url, self.known, self.seen = url, known, []  # "right", "wrong", "refused", "full" or "left", as they come
        self.http = httpx.Client(base_url=url, timeout=120, limits=httpx.Limits(max_connections=200))

    def ask(self, number: int) -> None:
        """One request of the mixture; its number decides which."""
        dice = random.Random(number)
        body, text = dice.choice(self.known)
        kind = dice.random()
        if kind < 0.1:
            self._leave(body | {"stream": dice.random() < 0.5, "n": dice.randint(1, 3)}, dice.uniform(0, 0.2))
        elif kind < 0.25:
            bad = dice.choice([{"prompt": [1] * 9999}, {"temprature": 1}, {"max_tokens": -1}, {"model": "other"}])
            self._count("refused", self.http.post("/v1/completions", json=body | bad).status_code in (400, 404))
        elif kind < 0.3:
            how = dict(content=b'{"prompt": ', headers={"content-type": "application/json"})
            self._count("refused", self.http.post("/v1/completions", **how).status_code == 400)
        else:
            self._whole(body, text) if dice.random() < 0.5 else self.stream(body, text)

    def _whole(self, body: dict, text: str) -> None:
        while (answer := self.http.post("/v1/completions", json=body)).status_code == 429:
            self.seen.append("full")
            time.sleep(0.2)
        self._count("right", answer.status_code == 200 and answer.json()["choices"][0]["text"] == text)

    def stream(self, body: dict, text: str) -> None:
        """Asks for a stream; it must end with [DONE]."""
        while True:
            with self.http.stream("POST", "/v1/completions", json=body | {"stream": True}) as answer:
                if answer.status_code != 429:
                    events = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
                    break
            self.seen.append("full")
            time.sleep(0.2)
        said = "".join(json.loads(event)["choices"][0]["text"] for event in events[:-1])
        self._count("right", events[-1:] == ["[DONE]"] and said == text)

    def _leave(self, body: dict, seconds: float) -> None:
        host, port = self.url.removeprefix("http://").split(":")
        raw = json.dumps(body).encode()
        with socket.create_connection((host, int(port))) as open_socket:
            open_socket.sendall(HEAD.format(len(raw)).encode() + raw)
            time.sleep(seconds)
        self.seen.append("left")

    def _count(self, what: str, fits: bool) -> None:
        self.seen.append(what if fits else "wrong")

    def metric(self, name: str) -> float:
        """A number of /metrics."""
        return float(re.search(rf"^{re.escape(name)} (\S+)$", self.http.get("/metrics").text, re.MULTILINE)[1])


def main() -> None:
    """Serve, ask, and stop it; `--json` also writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=AR_MODEL, help="directory (the quickstart's AR model)")
    parser.add_argument("--requests", type=int, default=1000, help="(1000)")
    parser.add_argument("--concurrency", type=int, default=16, help="requests at once (16)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result here")
    args = parser.parse_args()
    known = expected_texts(args.model, 64)
    command = [sys.executable, "-m", "edlm_jax.commands.main", "serve", f"--model={args.model}", "--port=0", "--json"]
    options = ["--dtype=float32", "--slots=8", "--columns=256", "--queue=8"]
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        client = Client(server.stderr.readline().split()[-1].removesuffix("/v1"), known)
        with ThreadPoolExecutor(args.concurrency) as pool:
            list(pool.map(lambda asked: client.stream(*asked), known))
            client.seen.clear()
            compiled, memory, begun = client.metric("edlm_compilations_total"), [], time.perf_counter()
            for part in range(4):
                numbers = range(part * args.requests // 4, (part + 1) * args.requests // 4)
                list(pool.map(client.ask, numbers))
                memory.append(client.metric("process_resident_memory_bytes") / 2**20)
            seconds = time.perf_counter() - begun
            time.sleep(1)
            left = client.metric("edlm_rows_live"), client.metric("edlm_rows_waiting")
            compiled = client.metric("edlm_compilations_total") - compiled
            counts, tokens = Counter(client.seen), client.metric("edlm_tokens_total")
            client.seen.clear()
            last = [pool.submit(client.stream, *max(known, key=lambda asked: len(asked[1]))) for _ in range(8)]
            time.sleep(0.1)
            server.send_signal(signal.SIGTERM)
            cut = sum(one.exception() is not None for one in last) + client.seen.count("wrong")
        out, err = server.communicate(timeout=60)
    result = dict(
        requests=args.requests,
        concurrency=args.concurrency,
        answers={what: counts[what] for what in ("right", "wrong", "refused", "full", "left")},
        cut_by_sigterm=cut,
        exit_code=server.returncode,
        slots_left=left[0],
        waiting_left=left[1],
        compiled_after_warm_up=compiled,
        memory_MiB=memory,
        seconds=seconds,
        tokens=tokens,
        served=json.loads(out),
        stderr=err,
        **describe_machine(),
        command=" ".join(["python -m tests.benchmarks.serving", *sys.argv[1:]]),
    )
    print(json.dumps(result, indent=2))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
