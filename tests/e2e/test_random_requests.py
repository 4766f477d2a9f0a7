"""Random requests, most of them legal, many at once, on tiny models of families with and without windowed layers.

Whatever the settings: the server lives, answers 200 or 400, holds no head above its budget, gives a greedy or seeded request
the same answer beside others and alone, and owns no page when all have ended. The golden model cases have no tokenizer; one
whose tokens are single bytes is written beside links to their files.
"""

from __future__ import annotations

import collections
import json
import os
import random
import socket
import threading
import time
from pathlib import Path

import pytest

from conftest import SHARED, Server

CASES = Path(os.environ.get("RESTKV_GOLDEN_MODELS_DIR", SHARED / "golden" / "models"))
CONTEXT = 512
NUM_CLIENTS = 6
POLICIES = ["restkv"] * 3 + ["full", "snapkv", "streamingllm", "h2o", "tova", "pyramidkv", "adakv", "lacache", "random"]

# field of `cache`: how often it is given, and what as
CACHE_FIELDS = {
    "policy": (0.9, POLICIES),
    "budget": (0.8, [1, 8, 16, 17, 24, 31, 32, 33, 48, 64, 100, 128, 200, 511, 512, 600]),
    "window": (0.6, [1, 2, 3, 4, 8, 16, 32]),
    "sinks": (0.5, [0, 1, 2, 4, 8, 20]),
    "stride": (0.5, [1, 2, 3, 5, 8, 16, 17, 64, 500]),
    "fraction": (0.3, [1e-6, 0.01, 0.1, 0.3, 0.5, 0.9, 1.0]),
    "allocation": (0.3, ["uniform", "pyramid", "ada", "calibrated"]),
    "decode": (0.3, ["evict", "grow"]),
    "preset": (0.1, ["paper", "default"]),
    "group": (0.3, ["rss", "max", "mean"]),
    "indicator": (0.3, ["query", "after"]),
    "reduce": (0.3, ["rms", "max", "ema", "mean"]),
    "pool": (0.3, ["none", "avg", "max", "forward", "half_forward", "adaptive"]),
    "kernel": (0.2, [1, 2, 3, 5, 7, 21, 255]),
    "tau": (0.2, [0.01, 0.5, 1, 2, 10]),
    "normalize": (0.2, [True, False]),
    "pin": (0.3, [0, 1, 2, 4, 8, 30, 500]),
    "pin_head": (0.2, [0, 1, 4, 13, 300]),
    "pin_tail": (0.2, [0, 1, 4, 13, 300]),
    "scale": (0.1, [1, 2, 5]),
    "alpha": (0.1, [0.1, 0.9, 1.0]),
    "output_projection": (0.1, [True, False]),
    "compress_at": (0.3, [1, 2, 5, 16, 17, 30, 50, 100, 200, 400]),
    "probe": (0.2, ["none", [5, 6, 7], [5] * 40, "abc"]),
    "trace": (0.2, [True, "bins"]),
}


def fields_of(table: dict, r: random.Random) -> dict:
    return {name: r.choice(values) for name, (chance, values) in table.items() if r.random() < chance}


def random_request(r: random.Random, vocabulary: int, prefixes: list[list[int]]) -> dict:
    length = r.choice([1, 120, r.randint(1, 120), r.randint(1, 9), 300, 380])
    tokens = [r.randrange(vocabulary) for _ in range(length)]
    if r.random() < 0.6:  # a beginning that others have, too
        shared = r.choice(prefixes)[: min(length, r.choice([16, 17, 32, 64, 100, 200, 300]))]
        tokens[: len(shared)] = shared
    max_tokens = r.choice([0, 1, 2, 8, 30, 60, 120])
    other_fields = {
        "n": (0.2, [2, 3, 5]),
        "logprobs": (0.2, [0, 1, 5, 20]),
        "echo": (0.1, [True]),
        "prompt_logprobs": (0.1, [0, 2]),
        "seed": (0.2, [1, 2, 3]),
        "top_k": (0.1, [1, 5, 0, -1, 1000]),
        "top_p": (0.1, [0.01, 0.5, 1.0]),
        "min_p": (0.1, [0, 0.5, 1.0]),
        "min_tokens": (0.1, [0, 1, max_tokens]),
        "stop": (0.1, ["a", ["b", "zz"], "~"]),
        "stop_token_ids": (0.1, [[r.randrange(vocabulary)]]),
        "repetition_penalty": (0.1, [0.01, 0.5, 1.3, 100]),
        "presence_penalty": (0.1, [-2, 2]),
        "logit_bias": (0.1, [{str(r.randrange(vocabulary)): value} for value in (-100, 5, 100)]),
        "allowed_token_ids": (0.1, [[r.randrange(vocabulary) for _ in range(count)] for count in (1, 2, 10)]),
        "cache_salt": (0.1, ["a", "b"]),
        "priority": (0.1, [-1, 0, 1]),
    }
    body = {
        "prompt": tokens if r.random() < 0.9 else [tokens, tokens[: (length + 1) // 2]],
        "max_tokens": max_tokens,
        "temperature": r.choice([0, 0, 0, 0.7, 1.5]),
        "ignore_eos": r.random() < 0.8,
        **fields_of(other_fields, r),
    }
    if r.random() < 0.9:
        body["cache"] = fields_of(CACHE_FIELDS, r)
    return body


def model_folder(case: str, folder: Path) -> tuple[Path, int]:
    source = CASES / case
    if not (source / "config.json").is_file():
        pytest.skip(f"there is no model case {source} (set RESTKV_GOLDEN_MODELS_DIR)")
    vocabulary = json.loads((source / "config.json").read_text())["vocab_size"]
    model = folder / case
    model.mkdir()
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        (model / name).symlink_to((source / name).resolve())
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    tokens = [chr(byte) for byte in printable][:vocabulary]
    (model / "tokenizer.json").write_text(json.dumps({
        "version": "1.0", "added_tokens": [], "normalizer": None, "post_processor": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "vocab": {token: i for i, token in enumerate(tokens)}, "merges": []},
    }))
    return model, vocabulary


def shown(choices: list[dict]) -> list[tuple]:
    return [(choice["text"], choice["finish_reason"], (choice["logprobs"] or {}).get("text_offset")) for choice in choices]


def streamed(server: Server, body: dict) -> list[tuple]:
    """The same of a stream's chunks, put together."""
    choices: dict[int, dict] = {}
    for event in server.stream(**body):
        for chunk in event["choices"]:
            choice = choices.setdefault(chunk["index"], {"text": "", "finish_reason": None, "logprobs": None})
            assert choice["finish_reason"] is None, (body, chunk)
            choice["text"] += chunk["text"]
            choice["finish_reason"] = chunk["finish_reason"]
            if chunk["logprobs"]:
                choice["logprobs"] = choice["logprobs"] or {"text_offset": []}
                choice["logprobs"]["text_offset"] += chunk["logprobs"]["text_offset"]
    return shown([choices[index] for index in sorted(choices)])


class Run:
    """Clients that send random requests to one server for a while, and what came of it."""

    def __init__(self, server: Server, vocabulary: int, seed: int, seconds: float) -> None:
        self.server, self.vocabulary, self.seed = server, vocabulary, seed
        self.end = time.monotonic() + seconds
        r = random.Random(seed)
        self.prefixes = [[r.randrange(vocabulary) for _ in range(400)] for _ in range(3)]
        self.in_flight: dict[int, dict] = {}
        self.statuses: collections.Counter = collections.Counter()
        self.faults: list = []
        self.repeatable: list[tuple[dict, list]] = []
        clients = [threading.Thread(target=self.client, args=(i,)) for i in range(NUM_CLIENTS)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()

    def client(self, number: int) -> None:
        r = random.Random(self.seed * 100 + number)
        while time.monotonic() < self.end and self.server.process.poll() is None:
            body = random_request(r, self.vocabulary, self.prefixes)
            self.in_flight[number] = body
            try:
                if r.random() < 0.15:
                    self.leave_early(body, r)
                else:
                    self.ask(body)
            except OSError as error:
                self.faults.append((repr(error), body))

    def leave_early(self, body: dict, r: random.Random) -> None:
        data = json.dumps({**body, "stream": True}).encode()
        with socket.create_connection(("127.0.0.1", self.server.port), timeout=20) as connection:
            connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                               b"Content-Length: %d\r\n\r\n" % len(data) + data)
            time.sleep(r.random() * 0.02)
            if r.random() < 0.7:
                connection.recv(r.choice([10, 500, 3000]))

    def ask(self, body: dict) -> None:
        status, _, answer = self.server.request("POST", "/v1/completions", body)
        self.statuses[status] += 1
        if status not in (200, 400):
            self.faults.append((status, answer[:300], body))
        if status != 200:
            return
        result = json.loads(answer)
        used, asked = result["usage"]["cache"], body.get("cache", {})
        # Only a uniform allocation gives every head the same budget.
        has_one_budget = (used["policy"] not in ("full", "pyramidkv", "adakv")
                          and asked.get("allocation", "uniform") == "uniform")
        is_hard = asked.get("decode") != "grow"
        if (has_one_budget and is_hard and used["kept_max"] > used["budget"]) or used["evicted"] < used["events"]:
            self.faults.append((used, body))
        if body["temperature"] == 0 or "seed" in body:
            self.repeatable.append((body, shown(result["choices"])))


def check(tmp_path: Path, case: str, flags: tuple, seed: int, seconds: float) -> None:
    model, vocabulary = model_folder(case, tmp_path)
    server = Server(model, tmp_path / "log", "--threads", 1, "--no-grpc", "--max-model-len", CONTEXT, "--allow-trace",
                    *flags)
    try:
        run = Run(server, vocabulary, seed, seconds)
        assert server.process.poll() is None, (server.output()[-600:], run.in_flight)
        assert not run.faults, run.faults[:3]
        assert run.statuses[200] > run.statuses[400] / 4, run.statuses
        # Alone, the prefix cache in another state, as a stream: the same.
        random.Random(seed).shuffle(run.repeatable)
        until = time.monotonic() + seconds / 3
        for i, (body, answer) in enumerate(run.repeatable):
            if time.monotonic() > until:
                break
            again = streamed(server, body) if i % 2 else shown(server.post_json("/v1/completions", body)["choices"])
            assert again == answer, body
        server.wait_until_idle()
        owned = [line for line in server.request("GET", "/metrics")[2].decode().splitlines()
                 if line.startswith("restkv_kv_pages{") and 'state="owned"' in line]
        assert len(owned) == 1 and owned[0].endswith(" 0"), owned
        assert server.stop() == 0
    finally:
        server.kill()


@pytest.mark.parametrize("case", ["mistral_v01_swa", "gemma3", "qwen3"])
def test_random_requests(binary, tmp_path, case):
    check(tmp_path, case, (), seed=len(case), seconds=4)


FLAGS = [(), ("--max-num-seqs", 3, "--max-num-batched-tokens", 16, "--prefix-fraction", 0.9),
         ("--cache-dtype", "f16", "--max-num-batched-tokens", 64, "--memory-fraction", 0.01),
         ("--budget", 64, "--policy", "snapkv", "--scheduling-policy", "priority", "--prefix-fraction", 0)]


@pytest.mark.slow
@pytest.mark.parametrize("flags", FLAGS, ids=["default", "small steps", "f16", "snapkv"])
@pytest.mark.parametrize("case", ["mistral_v01_swa", "gemma2", "gemma3", "qwen3", "gemma1_mqa", "llama3_gqa"])
def test_random_requests_for_longer(binary, tmp_path, case, flags):
    check(tmp_path, case, flags, seed=int(time.time()), seconds=20)
