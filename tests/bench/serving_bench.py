#!/usr/bin/env python3
"""A running server under load, by `restkv bench serve`. A benchmark, not a test.

    tests/bench/serving_bench.py [--clients 1,2,4,8,16,32] [--requests-per-client 3] [--threads 2] [--rounds 5]
                                 [--parts throughput,long,scheduler] [--out FILE]

1. Throughput of the demo model at so many clients, restkv beside `python -m llama_cpp.server` with the same file and threads, one
   after the other at each number of clients (llama-cpp-python with its extra `server` in
   ${XDG_CACHE_HOME:-~/.cache}/restkv/bench-venv; compare_llama_cpp.py makes the environment).
2. Inter-token times of 16 streams on `tiny-64k` (tools/make_model.py) alone, and beside prompts of 32,000 tokens.
3. The scheduler alone (scheduler_bench).
Prints Markdown, or writes it to --out.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import http.client
import json
import os
import platform
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(os.environ.get("RESTKV_BINARY", ROOT / "build" / "release" / "bin" / "restkv"))
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "restkv"
MODEL = CACHE / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
PYTHON = CACHE / "bench-venv" / "bin" / "python"
PROMPT, OUTPUT = 128, 64
LONG_PROMPT = 32000


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def get(port: int, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


@contextlib.contextmanager
def server(command: list, port: int):
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([str(word) for word in command], stdout=log, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + 120
            while True:
                with contextlib.suppress(OSError):
                    if get(port, "/v1/models") == 200:
                        break
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    sys.exit(f"serving_bench: {command[0]} does not serve:\n{log.read()[-2000:].decode(errors='replace')}")
                time.sleep(0.1)
            yield
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def bench(port: int, *flags) -> dict:
    command = [BIN, "bench", "serve", f"http://127.0.0.1:{port}", "--json", *flags]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"serving_bench: bench serve ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


def throughput(clients: list[int], per_client: int, threads: int) -> list[str]:
    if not MODEL.is_file():
        return [f"Throughput: skipped, there is no {MODEL} (tools/get_demo_model.sh)", ""]
    has_llama = PYTHON.is_file() and subprocess.run([PYTHON, "-c", "import llama_cpp.server.app"], capture_output=True,
                                                    check=False).returncode == 0
    lines = [f"Output tokens a second, prompts of about {PROMPT} words, answers of {OUTPUT} tokens, closed loop:", "",
             "| clients | restkv tok/s | llama_cpp.server tok/s | ratio | restkv ttft ms, p99 | llama_cpp ttft ms, p99 |",
             "|---|---|---|---|---|---|"]
    if not has_llama:
        lines.insert(0, f"(llama_cpp.server: skipped, not in {PYTHON.parent.parent})")
    commands = {"restkv": lambda port: [BIN, "serve", MODEL, "--port", port, "--threads", threads, "--max-model-len", 4096]}
    if has_llama:
        commands["llama"] = lambda port: [PYTHON, "-m", "llama_cpp.server", "--model", MODEL, "--port", port, "--n_threads",
                                          threads, "--n_threads_batch", threads, "--n_ctx", 4096, "--n_batch", 512,
                                          "--interrupt_requests", "false"]
    results: dict[str, dict[int, dict]] = {name: {} for name in commands}
    for name, command in commands.items():
        port = free_port()
        with server(command(port), port):
            bench(port, "--num-prompts", 1, "--prompt-len", PROMPT, "--output-len", 8)  # reads the weights
            for count in clients:
                results[name][count] = bench(port, "--num-prompts", per_client * count, "--max-concurrency", count,
                                             "--prompt-len", PROMPT, "--output-len", OUTPUT, "--bench-seed", count)
    for count in clients:
        ours = results["restkv"][count]
        row = f"| {count} | {ours['output_throughput']:.1f} "
        if has_llama:
            theirs = results["llama"][count]
            row += (f"| {theirs['output_throughput']:.1f} | {ours['output_throughput'] / theirs['output_throughput']:.2f} "
                    f"| {ours['median_ttft_ms']:.0f}, {ours['p99_ttft_ms']:.0f} "
                    f"| {theirs['median_ttft_ms']:.0f}, {theirs['p99_ttft_ms']:.0f} |")
        else:
            row += f"| | | {ours['median_ttft_ms']:.0f}, {ours['p99_ttft_ms']:.0f} | |"
        lines.append(row)
    return [*lines, ""]


def send_long_prompts(port: int, stop: threading.Event, times: list[float]) -> None:
    number = 0
    while not stop.is_set():
        number += 1
        body = json.dumps({"prompt": [3 + (i * 7 + number + len(times)) % 256 for i in range(LONG_PROMPT)], "max_tokens": 1})
        start = time.monotonic()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        text = response.read()
        if response.status != 200:
            sys.exit(f"serving_bench: the long prompt: {response.status} {text[:300]}")
        connection.close()
        times.append(time.monotonic() - start)


def long_prompt_beside_decodes(threads: int, rounds: int) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "tiny-64k"
        subprocess.run([sys.executable, ROOT / "tools" / "make_model.py", "tiny-64k", model, "--type", "f32"], check=True)
        port = free_port()
        command = [BIN, "serve", model, "--port", port, "--threads", threads, "--policy", "restkv", "--budget", 2048]
        streams = ["--num-prompts", 16, "--max-concurrency", 16, "--prompt-len", 64, "--output-len", 1500]
        alone, beside, times = [], [], []
        with server(command, port):
            bench(port, *streams)
            for number in range(rounds):
                alone.append(bench(port, *streams, "--bench-seed", 2 * number + 2))
                stop = threading.Event()
                thread = threading.Thread(target=send_long_prompts, args=(port, stop, times))
                thread.start()
                time.sleep(0.3)
                beside.append(bench(port, *streams, "--bench-seed", 2 * number + 3))
                stop.set()
                thread.join()
    ratios = [b["p99_itl_ms"] / a["p99_itl_ms"] for a, b in zip(alone, beside)]

    def median(runs: list[dict], key: str) -> float:
        return statistics.median(run[key] for run in runs)

    return [f"16 streams on tiny-64k, alone and beside prompts of {LONG_PROMPT:,} tokens, one after the other; medians of {rounds} "
            "rounds in turns:", "",
            "| | median itl ms | p99 itl ms |", "|---|---|---|",
            f"| alone | {median(alone, 'median_itl_ms'):.2f} | {median(alone, 'p99_itl_ms'):.2f} |",
            f"| beside long prompts ({len(times)} of them, {sum(times) / len(times):.1f} s each) "
            f"| {median(beside, 'median_itl_ms'):.2f} | {median(beside, 'p99_itl_ms'):.2f} |", "",
            f"Ratio of the 99th percentiles: {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f} (goal: at most 2).",
            ""]


def machine() -> str:
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    name = re.search(r"model name\s*: (.*)", info)
    return f"{os.cpu_count()} cores, {name.group(1) if name else platform.machine()}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", default="1,2,4,8,16,32")
    parser.add_argument("--requests-per-client", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--parts", default="throughput,long,scheduler", help="which of the three")
    parser.add_argument("--rounds", type=int, default=5, help="of the second part")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True,
                            check=False).stdout.strip()
    lines = [f"# Serving under load, {datetime.date.today()}", "",
             f"{machine()}, commit {commit}. Command: `tests/bench/serving_bench.py --clients {arguments.clients} "
             f"--requests-per-client {arguments.requests_per_client} --threads {arguments.threads}`", ""]
    parts = arguments.parts.split(",")
    if "throughput" in parts:
        lines += throughput([int(word) for word in arguments.clients.split(",")], arguments.requests_per_client,
                            arguments.threads)
    if "long" in parts:
        lines += long_prompt_beside_decodes(arguments.threads, arguments.rounds)
    if "scheduler" in parts:
        scheduler = subprocess.run([BIN.parent / "scheduler_bench"], capture_output=True, text=True, check=False)
        lines += ["The scheduler alone (`scheduler_bench`; goal: at most 100 us a step, flat in the prompt's length):", "",
                  scheduler.stdout if scheduler.returncode == 0 else "skipped: scheduler_bench is not built\n"]
    text = "\n".join(lines)
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")
    else:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
