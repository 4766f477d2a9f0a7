#!/usr/bin/env python3
"""restkv beside llama.cpp on the demo model: the same file, machine and threads, in turns. A benchmark, not a test.

    tests/bench/compare_llama_cpp.py [--rounds 9] [--threads 2] [--essay FILE] [--out FILE]

Each round is a process of its own with one warm-up; the order within a pair changes from round to round. Printed are
both medians, the median of the ratios pair by pair and its 95 % bootstrap interval, whether the mean negative log
likelihood over 2,000 tokens of an essay agrees within 0.5 %, and start, memory and the cost of a streamed token. The
table goes to docs/measurements/cpu-<date>.md. llama.cpp comes from PyPI (llama-cpp-python), compiled for this processor
in ${XDG_CACHE_HOME:-~/.cache}/restkv/bench-venv.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import random
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "restkv"
MODEL = CACHE / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
VENV = CACHE / "bench-venv"
DRIVER = Path(__file__).resolve().with_name("llama_cpp_driver.py")
PACKAGES = ["llama-cpp-python==0.3.36", "numpy==2.4.6"]

# Name -> prompt length, answer length, the figure, the ratio that is the goal.
CASES = {
    "prefill 512": (512, 2, "prefill_tok_s", 2.0),
    "prefill 2,048": (2048, 65, "prefill_tok_s", 2.0),
    "decode after 128": (128, 65, "decode_tok_s", 1.15),
    "decode after 2,048": (2048, 65, "decode_tok_s", 1.5),
}
NLL_TOKENS = 2000
NLL_BOUND = 0.005


def fail(message: str) -> None:
    sys.exit(f"compare_llama_cpp: {message}")


def run_json(command: list) -> dict:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False,
                          stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        fail(f"{shlex.join(map(str, command))} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


def output_of(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT).stdout.strip()


def make_venv() -> Path:
    """The Python that has llama.cpp; builds it the first time, which takes minutes."""
    python = VENV / "bin" / "python"
    stamp = VENV / "packages"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == "\n".join(PACKAGES):
        return python
    print(f"building {PACKAGES[0]} in {VENV} (once; some minutes)", flush=True)
    subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
    # -march=native is its default. The multimodal part is not needed.
    environment = os.environ | {"CMAKE_ARGS": "-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF",
                                "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count())}
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-binary",
                    "llama-cpp-python", *PACKAGES], check=True, env=environment)
    stamp.write_text("\n".join(PACKAGES), encoding="utf-8")
    return python


class Contestants:
    def __init__(self, binary: Path, python: Path, threads: int) -> None:
        self.binary, self.python, self.threads = binary, python, threads

    def restkv(self, prompt_len: int, output_len: int) -> dict:
        return run_json([self.binary, "bench", "latency", "demo", "--prompt-len", prompt_len, "--output-len", output_len,
                         "--threads", self.threads, "--rounds", 1, "--json"])

    def llama(self, prompt_len: int, output_len: int) -> dict:
        return run_json([self.python, DRIVER, "latency", MODEL, prompt_len, output_len, self.threads])

    def pair(self, prompt_len: int, output_len: int, is_restkv_first: bool) -> tuple[dict, dict]:
        if is_restkv_first:
            ours = self.restkv(prompt_len, output_len)
            return ours, self.llama(prompt_len, output_len)
        theirs = self.llama(prompt_len, output_len)
        return self.restkv(prompt_len, output_len), theirs


def bootstrap(ratios: list[float]) -> tuple[float, float]:
    """95 % interval of the median, 10,000 resamples."""
    draw = random.Random(1)
    medians = sorted(statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(10_000))
    return medians[249], medians[9750]


def measure_speed(contestants: Contestants, rounds: int) -> tuple[dict[str, list], list[tuple[dict, dict]]]:
    """Case -> pairs (restkv, llama.cpp) of its figure; and the raw pairs of the longest shape."""
    shapes = sorted({case[:2] for case in CASES.values()})
    figures: dict[str, list] = {name: [] for name in CASES}
    longest = []
    for number in range(rounds):
        for shape in shapes:
            ours, theirs = contestants.pair(*shape, is_restkv_first=number % 2 == 0)
            for name, (prompt_len, output_len, key, _) in CASES.items():
                if (prompt_len, output_len) == shape:
                    figures[name].append((ours[key], theirs[key]))
            if shape == max(shapes):
                longest.append((ours, theirs))
        print(f"round {number + 1} of {rounds}: " + ", ".join(
            f"{name} {pairs[-1][0]:.1f} / {pairs[-1][1]:.1f}" for name, pairs in figures.items()), flush=True)
    return figures, longest


def measure_crowded(contestants: Contestants, rounds: int) -> list[tuple[dict, dict]]:
    """Decode after 128 tokens while another process uses one core all the time."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            pairs = [contestants.pair(128, 17, is_restkv_first=number % 2 == 0) for number in range(rounds)]
        finally:
            busy.kill()
    return [(ours["decode_tok_s"], theirs["decode_tok_s"]) for ours, theirs in pairs]


def read_nll(contestants: Contestants, essay: Path, folder: Path) -> tuple[float, float, int]:
    ids = run_json([contestants.binary, "tokenize", "demo", "--file", essay, "--json"])["tokens"][:NLL_TOKENS]
    tokens_file, logits_file = folder / "tokens.json", folder / "logits.safetensors"
    tokens_file.write_text(json.dumps(ids), encoding="ascii")
    subprocess.run([contestants.binary, "logits", "demo", "--tokens", ",".join(map(str, ids)), "--out", logits_file,
                    "--threads", str(contestants.threads)], check=True)
    program = ("import json, struct, sys, numpy\n"
               "tokens = json.load(open(sys.argv[1]))\n"
               "data = numpy.memmap(sys.argv[2], mode='r')\n"
               "(length,) = struct.unpack('<Q', data[:8].tobytes())\n"
               "shape = json.loads(data[8:8 + length].tobytes())['logits']['shape']\n"
               "logits = data[8 + length:].view('<f4').reshape(shape)\n"
               "total = 0.0\n"
               "for row, token in zip(logits[:-1], tokens[1:]):\n"
               "    row = row.astype(numpy.float64)\n"
               "    peak = row.max()\n"
               "    total += peak + numpy.log(numpy.exp(row - peak).sum()) - row[token]\n"
               "print(json.dumps({'nll': total / (len(tokens) - 1)}))\n")
    ours = run_json([contestants.python, "-c", program, tokens_file, logits_file])["nll"]
    theirs = run_json([contestants.python, DRIVER, "nll", MODEL, tokens_file, contestants.threads])["nll"]
    return ours, theirs, len(ids)


class Server:
    """`restkv serve MODEL` with the time until /health answers 200."""

    def __init__(self, binary: Path, model: str, log: Path, *flags: str) -> None:
        start = time.perf_counter()
        with log.open("wb") as output:
            self.process = subprocess.Popen([binary, "serve", model, "--port", "0", *flags], stdin=subprocess.DEVNULL,
                                            stdout=output, stderr=subprocess.STDOUT)
        self.url = ""
        while True:
            match = re.search(r"Listening on (http:[0-9.:/]+)", log.read_text(encoding="utf-8", errors="replace"))
            if match:
                self.url = match.group(1)
                try:
                    if urllib.request.urlopen(self.url + "/health", timeout=1).status == 200:
                        break
                except OSError:
                    pass
            if self.process.poll() is not None or time.perf_counter() - start > 60:
                self.process.kill()
                fail(f"restkv serve did not start:\n{log.read_text(encoding='utf-8', errors='replace')[-1000:]}")
            time.sleep(0.002)
        self.ready_ms = 1000 * (time.perf_counter() - start)

    def thread_seconds(self) -> list[float]:
        """Time on a processor of each thread so far, the largest first."""
        threads = Path(f"/proc/{self.process.pid}/task").iterdir()
        return sorted((int((thread / "schedstat").read_text(encoding="ascii").split()[0]) / 1e9 for thread in threads),
                      reverse=True)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


def measure_start(binary: Path, folder: Path, times: int = 5) -> float:
    ready = []
    for number in range(times):
        server = Server(binary, "demo", folder / f"start-{number}.log")
        ready.append(server.ready_ms)
        server.stop()
    return statistics.median(ready)


def measure_streaming(binary: Path, folder: Path) -> float:
    """Microseconds of processor time per streamed token outside of the engine: with one compute thread, that is all
    threads but the busiest."""
    server = Server(binary, "demo", folder / "stream.log", "--threads", "1")
    tokens = 512
    body = {"model": json.load(urllib.request.urlopen(server.url + "/v1/models"))["data"][0]["id"], "stream": True,
            "prompt": "Once upon a time", "max_tokens": tokens, "ignore_eos": True, "temperature": 0}

    def stream() -> None:
        request = urllib.request.Request(server.url + "/v1/completions", json.dumps(body).encode(),
                                         {"Content-Type": "application/json"})
        for _ in urllib.request.urlopen(request):
            pass

    stream()
    before = sum(server.thread_seconds()[1:])
    stream()
    after = sum(server.thread_seconds()[1:])
    server.stop()
    return 1e6 * (after - before) / tokens


def processor_name() -> str:
    info = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    field = {key: re.search(rf"^{key}\s*:\s*(.*)$", info, re.MULTILINE) for key in ("model name", "cpu family", "model")}
    flags = re.search(r"^flags\s*:\s*(.*)$", info, re.MULTILINE)
    levels = [level for level in ("avx2", "fma", "avx512f", "amx_bf16") if flags and level in flags.group(1).split()]
    text = {key: match.group(1) if match else "?" for key, match in field.items()}
    return (f"{text['model name']} (family {text['cpu family']}, model {text['model']}; {' '.join(levels)}), "
            f"{os.cpu_count()} logical processors")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--essay", type=Path, help="plain text of at least 2,000 tokens")
    parser.add_argument("--out", type=Path, help="default: docs/measurements/cpu-<date>.md")
    parser.add_argument("--note", default="", help="a line about the machine's state for the report")
    arguments = parser.parse_args()
    if arguments.rounds < 9:
        print("fewer than 9 rounds: a try, not a measurement", file=sys.stderr)

    binary = Path(os.environ.get("RESTKV_BINARY", ROOT / "build" / "release" / "bin" / "restkv"))
    if not binary.is_file():
        fail(f"{binary} is not built: cmake --preset release && cmake --build build/release --target restkv")
    if not MODEL.is_file():
        fail("the demo model is absent: tools/get_demo_model.sh")
    if arguments.essay is None:
        shared = Path(os.environ.get("RESTKV_SHARED_DIR", ROOT.parent / "shared")) / "data" / "essays"
        arguments.essay = next((path for path in sorted(shared.glob("*.txt")) if path.stat().st_size > 16_000), None)
    contestants = Contestants(binary, make_venv(), arguments.threads)
    load_before = os.getloadavg()

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        nll = None
        if arguments.essay is not None:
            nll = read_nll(contestants, arguments.essay, folder)
            print(f"mean NLL: restkv {nll[0]:.5f}, llama.cpp {nll[1]:.5f}", flush=True)
        ready_ms = measure_start(binary, folder)
        stream_us = measure_streaming(binary, folder)
    figures, longest = measure_speed(contestants, arguments.rounds)
    crowded = measure_crowded(contestants, max(3, arguments.rounds // 3))

    lines = []
    date = datetime.date.today().isoformat()
    commit = output_of("git", "rev-parse", "--short=12", "HEAD")
    changed = output_of("git", "status", "--porcelain", "--untracked-files=no", "--", "kernels", "engine", "server",
                        "CMakeLists.txt")
    # What the commit does not hold cannot be measured again.
    commit += " with uncommitted changes" if changed else ""
    options = "".join(f" --{key} {getattr(arguments, key)}" for key in ("rounds", "threads"))
    lines += [f"# restkv and llama.cpp on a CPU, {date}", "",
              f"`tests/bench/compare_llama_cpp.py{options}`", "",
              f"- Model: SmolLM2-135M-Instruct, Q4_1, {MODEL.stat().st_size:,} bytes; {arguments.threads} threads each; one "
              "sequence; f32 activations and cache in restkv, llama.cpp with its defaults.",
              f"- Processor: {processor_name()}; load average before {load_before[0]:.1f} / {load_before[1]:.1f}, "
              f"after {os.getloadavg()[0]:.1f}.",
              f"- restkv: commit {commit}; {output_of(str(binary), 'version').splitlines()[0]}.",
              f"- llama.cpp: llama-cpp-python {longest[0][1]['version']}, compiled here for this processor; "
              f"kernel {os.uname().release}; Python {sys.version.split()[0]}."]
    if arguments.note:
        lines.append(f"- {arguments.note}")
    lines += ["", f"Medians of {arguments.rounds} rounds in turns, tokens per second; the ratio is the median of the pairs' "
              "ratios with its 95 % bootstrap interval.", "",
              "| what | restkv | llama.cpp | ratio | interval | goal | reached |", "|---|---|---|---|---|---|---|"]
    for name, pairs in figures.items():
        ratios = [ours / theirs for ours, theirs in pairs]
        low, high = bootstrap(ratios)
        ratio, goal = statistics.median(ratios), CASES[name][3]
        lines.append(f"| {name} | {statistics.median(p[0] for p in pairs):.1f} | {statistics.median(p[1] for p in pairs):.1f} "
                     f"| {ratio:.2f} | {low:.2f} to {high:.2f} | {goal} | {'yes' if ratio >= goal else 'no'} |")
    alone = statistics.median(pair[0] for pair in figures["decode after 128"])
    alone_theirs = statistics.median(pair[1] for pair in figures["decode after 128"])
    beside, beside_theirs = (statistics.median(pair[i] for pair in crowded) for i in (0, 1))
    weights = MODEL.stat().st_size
    rss, rss_theirs = (statistics.median(pair[i]["peak_rss_bytes"] for pair in longest) for i in (0, 1))
    mib = 1 << 20

    def row(what: str, ours: str, theirs: str, goal: str, is_reached: bool) -> str:
        return f"| {what} | {ours} | {theirs} | {goal} | {'yes' if is_reached else 'no'} |"

    lines += ["", "| what | restkv | llama.cpp | goal | reached |", "|---|---|---|---|---|"]
    lines.append(row("decode after 128 beside a busy process, tok/s (share of that alone)",
                     f"{beside:.1f} ({beside / alone:.2f})", f"{beside_theirs:.1f} ({beside_theirs / alone_theirs:.2f})",
                     "0.5 of that alone", beside >= 0.5 * alone))
    lines.append(row("peak resident memory at 2,048 + 65 tokens, MiB (beyond the weights)",
                     f"{rss / mib:.0f} ({(rss - weights) / mib:.0f})", f"{rss_theirs / mib:.0f} ({(rss_theirs - weights) / mib:.0f})",
                     "weights + 150 MiB", rss <= weights + 150 * mib))
    load_theirs = statistics.median(pair[1]["load_ms"] for pair in longest)
    lines.append(row("start to ready (`serve`, warm page cache; llama.cpp: load and context alone), ms", f"{ready_ms:.0f}",
                     f"{load_theirs:.0f}", "1,000", ready_ms <= 1000))
    lines.append(row("processor time of a streamed token beside the engine, us", f"{stream_us:.1f}", "-", "20",
                     stream_us <= 20))
    agrees = True
    if nll is None:
        lines.append("| mean NLL of an essay | not run: no text (--essay FILE) | - | within 0.5 % | no |")
    else:
        difference = nll[0] / nll[1] - 1
        agrees = abs(difference) <= NLL_BOUND
        lines.append(row(f"mean NLL over {nll[2]:,} tokens of {arguments.essay.name} ({100 * difference:+.3f} %)",
                         f"{nll[0]:.5f}", f"{nll[1]:.5f}", "within 0.5 %", agrees))
    report = "\n".join(lines) + "\n"
    print("\n" + report)
    out = arguments.out or ROOT / "docs" / "measurements" / f"cpu-{date}.md"
    out.write_text(report, encoding="utf-8")
    print(f"written to {out}")
    if not agrees:
        print("compare_llama_cpp: the two disagree about the text: one of them computes something else", file=sys.stderr)
    return 0 if agrees else 1


if __name__ == "__main__":
    sys.exit(main())
