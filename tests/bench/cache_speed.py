#!/usr/bin/env python3
"""Speed of decode under a budget, beside the full cache, in one run of one server.

    tests/bench/cache_speed.py [--model demo] [--rounds 9] [--threads 2] [--out FILE]

Starts the server and streams answers of 512 tokens, rounds interleaved:
  full256     behind a prompt of 256 tokens with everything kept
  evict256    behind 4,096 tokens with budget 256
  full4k      behind 4,096 tokens with everything kept (three rounds: the prefill to compare with, and what is saved)
  evict1024   behind 4,096 tokens with budget 1,024 (three rounds)
then eight prompts of 256 tokens at once, in turns with everything kept and with budget 256, timed from when the last of them has
its first token on: what the client on the same cores does to the 99th percentile is in both. The same eight with no server and no
HTTP (`restkv bench throughput`) show what the engine itself does. Times are those between two events of a stream. The share of
eviction is the time that the engine counts for it (kv_eviction_seconds_total), over the time of the phase.

    tests/bench/cache_speed.py --share 3 [--baseline OTHER_BINARY]

measures only the share of eviction in decode, at C = 256 and 1,024 behind 1,536 and 4,096 tokens: rounds of this binary and of the
other in turns, a server each. Standard library only.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import re
import selectors
import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BINARY = Path(os.environ.get("RESTKV_BINARY", ROOT / "build" / "release" / "bin" / "restkv"))


class Server:
    def __init__(self, model: str, threads: int, binary: Path = BINARY) -> None:
        self.process = subprocess.Popen(
            [binary, "serve", model, "--port", "0", "--threads", str(threads), "--max-model-len", "5120"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for line in self.process.stdout:
            match = re.search(r"Listening on http://([\d.]+):(\d+)", line)
            if match:
                self.host, self.port = match.group(1), int(match.group(2))
                break
        else:
            raise SystemExit("the server did not start")
        threading.Thread(target=self.process.stdout.read, daemon=True).start()
        self.model = json.loads(self.get("/v1/models"))["data"][0]["id"]

    def get(self, path: str) -> str:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=60)
        connection.request("GET", path)
        return connection.getresponse().read().decode()

    def eviction_seconds(self, phase: str) -> float:
        return float(re.search(rf'kv_eviction_seconds_total{{.*phase="{phase}"}} (\S+)', self.get("/metrics")).group(1))

    def stream(self, prompt: list[int], cache: dict, max_tokens: int) -> dict:
        """Seconds to the first token and between tokens, and usage."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=600)
        body = {"model": self.model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True,
                "stream": True, "stream_options": {"include_usage": True}, "logprobs": 0, "cache": cache}
        start = time.perf_counter()
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise SystemExit(f"the server answered {response.status}: {response.read().decode()}")
        times, last = [], {}
        for line in response:
            if line.startswith(b"data: {"):
                now = time.perf_counter()
                event = json.loads(line[6:])
                last = {**last, **{key: event[key] for key in ("usage", "timings") if event.get(key)}}
                for choice in event["choices"]:
                    tokens = len((choice.get("logprobs") or {}).get("tokens") or [])
                    times += [now] * tokens
        gaps = [b - a for a, b in zip(times, times[1:])]
        return {"ttft": times[0] - start, "gaps": gaps, "total": times[-1] - times[0], **last}


def interval(values: list[float]) -> tuple[float, float]:
    """95 % bootstrap interval of the median."""
    source = random.Random(1)
    medians = sorted(statistics.median(source.choices(values, k=len(values))) for _ in range(2000))
    return medians[50], medians[1949]


def quantile(values: list[float], q: float) -> float:
    return sorted(values)[min(len(values) - 1, int(q * len(values)))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output-len", type=int, default=512)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--share", type=int, metavar="ROUNDS")
    parser.add_argument("--baseline", type=Path)
    arguments = parser.parse_args()
    if arguments.share:
        report = measure_share(arguments)
        if arguments.out:
            arguments.out.write_text(json.dumps(report, indent=1) + "\n")
        return 0
    server = Server(arguments.model, arguments.threads)
    try:
        report = measure(server, arguments)
    finally:
        server.process.terminate()
        server.process.wait()
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def batch_gaps(server: Server, prompts: list[list[int]], cache: dict) -> list[float]:
    """Times between tokens of prompts that are sent at once, from when each has its first token. One thread that only counts
    events, so that the client takes next to nothing of the two cores."""
    waiting = selectors.DefaultSelector()
    times: list[list[float]] = [[] for _ in prompts]
    for number, ids in enumerate(prompts):
        body = json.dumps({"model": server.model, "prompt": ids, "max_tokens": 256, "temperature": 0, "ignore_eos": True,
                           "stream": True, "cache": cache})
        one = socket.create_connection((server.host, server.port))
        one.sendall((f"POST /v1/completions HTTP/1.1\r\nHost: {server.host}\r\nContent-Type: application/json\r\n"
                     f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n{body}").encode())
        waiting.register(one, selectors.EVENT_READ, number)
    while waiting.get_map():
        for key, _ in waiting.select():
            data, now = key.fileobj.recv(65536), time.perf_counter()
            times[key.data] += [now] * data.count(b"data: {")
            if not data:
                waiting.unregister(key.fileobj)
                key.fileobj.close()
    if any(len(stream) < 200 for stream in times):
        raise SystemExit(f"streams of {[len(stream) for stream in times]} events, about 256 were expected")
    all_started = max(stream[0] for stream in times)
    return [b - a for stream in times for a, b in zip(stream, stream[1:]) if a > all_started and b > a]


def bench(binary: Path, verb: str, arguments: argparse.Namespace, **flags: object) -> dict:
    """What `restkv bench VERB --json` prints."""
    command = [binary, "bench", verb, arguments.model, "--threads", str(arguments.threads), "--json"]
    for name, value in flags.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def eight_at_once(binary: Path, arguments: argparse.Namespace, **cache: object) -> dict:
    found = bench(binary, "throughput", arguments, num_prompts=8, prompt_len=256, output_len=256, max_num_seqs=8, **cache)
    return {"itl_p50_ms": found["decode_itl_ms"], "itl_p99_ms": found["decode_itl_p99_ms"],
            "p99_over_p50": found["decode_itl_p99_ms"] / found["decode_itl_ms"]}


def median_of(rounds: list[dict]) -> dict:
    return {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}


def measure_share(arguments: argparse.Namespace) -> dict:
    binaries = {"this": BINARY, **({"baseline": arguments.baseline} if arguments.baseline else {})}
    servers = {which: Server(arguments.model, arguments.threads, binary) for which, binary in binaries.items()}
    rounds: dict[str, list[dict]] = {}
    try:
        prompt = prompt_maker(servers["this"])
        for server in servers.values():
            server.stream(prompt(256, 0), {"policy": "restkv", "budget": 128}, 64)  # warm up, projections
        for number in range(arguments.share):
            for budget, prompt_len in ((256, 1536), (1024, 4096)):
                if budget == 1024 and number % 3 > 0:
                    continue
                for which, server in servers.items():
                    result = timed_stream(server, prompt(prompt_len, 97 * number + budget // 8), {"budget": budget},
                                          arguments.output_len)
                    found = {"eviction_of_decode": result["eviction_decode"] / result["total"],
                             "eviction_ms_a_token": 1000 * result["eviction_decode"] / len(result["gaps"]),
                             "itl_ms": 1000 * statistics.median(result["gaps"])}
                    rounds.setdefault(f"{which}, budget {budget}", []).append(found)
                    print(f"round {number + 1}: {which}, budget {budget}: {found}", flush=True)
    finally:
        for server in servers.values():
            server.process.terminate()
            server.process.wait()
    report = {name: {**median_of(values), "rounds": values} for name, values in rounds.items()}
    print(json.dumps({name: median_of(values) for name, values in rounds.items()}, indent=1))
    return report


def prompt_maker(server: Server):
    text = (ROOT / "README.md").read_text() + (ROOT / "CONTRIBUTING.md").read_text() + (ROOT / "engine/README.md").read_text()
    connection = http.client.HTTPConnection(server.host, server.port, timeout=60)
    connection.request("POST", "/tokenize", json.dumps({"content": text}), {"Content-Type": "application/json"})
    ids = json.loads(connection.getresponse().read())["tokens"]

    def prompt(length: int, first: int) -> list[int]:
        return [ids[(first + i) % len(ids)] for i in range(length)]

    return prompt


def timed_stream(server: Server, prompt: list[int], cache: dict, max_tokens: int) -> dict:
    """A stream, and what eviction took of it by the engine's counters."""
    before = {phase: server.eviction_seconds(phase) for phase in ("prefill", "decode")}
    result = server.stream(prompt, cache, max_tokens)
    time.sleep(0.05)  # the engine publishes its counters once a turn
    for phase in before:
        result[f"eviction_{phase}"] = server.eviction_seconds(phase) - before[phase]
    return result


def measure(server: Server, arguments: argparse.Namespace) -> dict:
    prompt = prompt_maker(server)
    full, output_len = {"policy": "full"}, arguments.output_len
    cases = {"full256": (256, full), "evict256": (4096, {"policy": "restkv", "budget": 256}), "full4k": (4096, full),
             "evict1024": (4096, {"policy": "restkv", "budget": 1024})}
    first_of = {"full256": 0, "evict256": 0, "full4k": 13, "evict1024": 29}  # no prompt begins like another: no cached prefix
    server.stream(prompt(256, 0), {"policy": "restkv", "budget": 128}, 64)  # warm up, projections
    rounds: dict[str, list[dict]] = {name: [] for name in cases}
    for number in range(arguments.rounds):
        for name, (length, cache) in cases.items():
            if name in ("full4k", "evict1024") and number >= 3:
                continue
            result = timed_stream(server, prompt(length, 97 * number + first_of[name]), cache,
                                  output_len if name != "full4k" else 64)
            rounds[name].append(result)
            print(f"round {number + 1} {name}: ttft {result['ttft']:.2f} s, {len(result['gaps']) / result['total']:.1f} tok/s, "
                  f"eviction {100 * result['eviction_decode'] / result['total']:.1f} % of decode, "
                  f"{100 * result['eviction_prefill'] / result['ttft']:.2f} % of prefill", flush=True)

    report: dict = {"rounds": arguments.rounds, "threads": arguments.threads, "output_len": output_len}
    for name, results in rounds.items():
        report[name] = {
            "ttft_ms": 1000 * statistics.median(r["ttft"] for r in results),
            "itl_p50_ms": 1000 * statistics.median(statistics.median(r["gaps"]) for r in results),
            "itl_mean_ms": 1000 * statistics.median(statistics.mean(r["gaps"]) for r in results),
            "eviction_of_decode": statistics.median(r["eviction_decode"] / r["total"] for r in results),
            "eviction_of_prefill": statistics.median(r["eviction_prefill"] / r["ttft"] for r in results),
            "cache_bytes": results[-1]["usage"]["cache"]["bytes"]}
    pairs = list(zip(rounds["evict256"], rounds["full256"]))
    for key, of in (("median_step", lambda r: statistics.median(r["gaps"])), ("all_steps", lambda r: statistics.mean(r["gaps"]))):
        ratios = [of(a) / of(b) for a, b in pairs]
        report[f"ratio_{key}"] = {"median": statistics.median(ratios), "interval": interval(ratios)}

    gaps: dict[str, list[float]] = {"full": [], "restkv": []}
    for _ in range(3):
        gaps["full"] += batch_gaps(server, [prompt(256, 31 * i) for i in range(8)], full)
        gaps["restkv"] += batch_gaps(server, [prompt(256, 31 * i) for i in range(8)], {"policy": "restkv", "budget": 256})
    for name, values in gaps.items():
        p50, p99 = quantile(values, 0.5), quantile(values, 0.99)
        report[f"batch8_{name}"] = {"itl_p50_ms": 1000 * p50, "itl_p99_ms": 1000 * p99, "p99_over_p50": p99 / p50}
    engine_alone: dict[str, list[dict]] = {"full": [], "restkv": []}
    for _ in range(3):
        engine_alone["full"].append(eight_at_once(BINARY, arguments, policy="full"))
        engine_alone["restkv"].append(eight_at_once(BINARY, arguments, budget=256))
    for name, values in engine_alone.items():
        report[f"batch8_{name}_engine_alone"] = median_of(values)
    print(json.dumps(report, indent=1))
    return report


if __name__ == "__main__":
    sys.exit(main())
