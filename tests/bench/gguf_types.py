#!/usr/bin/env python3
"""Single-row and tiled products of every GGUF weight type beside Q4_1, in turns, as docs/measurements/gguf-types-<date>.md.

Usage: gguf_types.py [--bench build/release/bin/kernel_bench] [--targets avx3,avx2] [--rounds 9] [--threads N] [--out FILE]

A round runs `matmul` of kernel_bench for each type, in an order drawn anew, with Q4_1 right before or behind it: one row of
x times weights of 64 MiB (1,536 x 768 for each layer); three rounds also 512 rows times one such weight. The table has
medians over the rounds, and of the ratios of the pairs, with their 95 % bootstrap interval.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
# name -> (number of the type in kernel_bench's arguments, bits of a weight)
TYPES = {"F32": (0, 32.0), "Q4_1": (6, 5.0), "Q4_0": (5, 4.5), "Q8_0": (9, 8.5), "Q5_0": (7, 5.5), "Q5_1": (8, 6.0), "Q2_K": (10, 2.625),
         "Q3_K": (11, 3.4375), "Q4_K": (12, 4.5), "Q5_K": (13, 5.5), "Q6_K": (14, 6.5625), "IQ4_NL": (15, 4.5),
         "IQ4_XS": (16, 4.25)}
BASE = "Q4_1"
# Counted in the code of kernels/cpu for AVX-512: operations on 512 bits (narrower ones as their share) for 16 weights, without a block's scales.
OPERATIONS = {"Q4_1": 4.0, "Q4_0": 3.5, "IQ4_NL": 3.5, "IQ4_XS": 3.5, "Q5_0": 5.25, "Q5_1": 5.25, "Q2_K": 3.75, "Q3_K": 4.75, "Q4_K": 3.75,
              "Q5_K": 5.1, "Q6_K": 5.3}
LIMITS = [
    "## What limits a row alone", "",
    "Operations on vectors, not memory (F32 reads far more bytes a second). Zen 4 does two operations of 512 bits a cycle, of "
    "them one multiply-add or product and one look-up or widening. Every weight needs a multiply-add into the sum and a look-up, or a "
    "conversion and a product; the rest brings its code into a lane. Scales of the blocks of 256 come on top, 0.2 to 0.6 operations "
    "for 16 weights.", "",
    "| type | operations for 16 weights | those that Q4_1's GB/s would leave |", "|---|---|---|",
    *(f"| {name} | {count:g} | {OPERATIONS['Q4_1'] * TYPES[name][1] / TYPES['Q4_1'][1]:.2f} |" for name, count in OPERATIONS.items()), "",
    "Q2_K and Q3_K cannot reach 1.0 with f32 activations and exact values: a scale serves 16 weights, so the multiply-add, the "
    "look-up and its table (or the conversion and the product) are 3 operations before any code is in a lane. "
    "Types of five bits need their codes put together from two places as bytes, then a widening, a conversion, a product and a "
    "multiply-add each. IQ4_XS does what IQ4_NL does for a weight, which reads 4.25 bits in place of 4.5, and has its scales to take "
    "apart.", ""]


def measure(bench: str, target: str, rows: int, name: str) -> float:
    """1e9 products of a weight and a value of x a second."""
    number = TYPES[name][0]
    run = subprocess.run(
        [bench, f"--benchmark_filter=^matmul/T:{rows}/N:1536/C:768/type:{number}/", "--benchmark_min_time=0.05",
         "--benchmark_format=json"], capture_output=True, text=True, check=True,
        env={**os.environ, "RESTKV_CPU_TARGET": target})
    (result,) = json.loads(run.stdout)["benchmarks"]
    if result["label"] != name:
        sys.exit(f"gguf_types: type {number} of {bench} is {result['label']}, not {name}")
    return result["GFLOP/s"] / 2


def interval(values: list[float]) -> tuple[float, float]:
    """95 % bootstrap interval of the median."""
    draw = random.Random(1)
    medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(4000))
    return medians[99], medians[3899]


def processor() -> str:
    fields = {}
    for line in pathlib.Path("/proc/cpuinfo").read_text(encoding="utf8").splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    return f"{fields.get('model name')} (family {fields.get('cpu family')}, model {fields.get('model')})"


def table(bench: str, target: str, rounds: int) -> list[str]:
    pairs = {name: [] for name in TYPES}  # of the type and of Q4_1
    tiled = {name: [] for name in TYPES}
    order = list(TYPES)
    shuffle = random.Random(1).shuffle
    for number in range(rounds):
        shuffle(order)
        for name in order:
            if name == BASE:
                pairs[name].append((measure(bench, target, 1, name),) * 2)
            elif number % 2:
                pairs[name].append((measure(bench, target, 1, name), measure(bench, target, 1, BASE)))
            else:
                pairs[name].append((measure(bench, target, 1, BASE), measure(bench, target, 1, name))[::-1])
            if number < 3:
                tiled[name].append(measure(bench, target, 512, name))
    lines = [f"## {target}", "",
             "| type | bits | GB/s | Gweights/s | GB/s over Q4_1 | interval | Gweights/s over Q4_1 | that Q4_1's GB/s would take "
             "| 512 rows, GFLOP/s |", "|---|---|---|---|---|---|---|---|---|"]
    for name, (_, bits) in TYPES.items():
        ratios = [rate / base for rate, base in pairs[name]]
        share = bits / TYPES[BASE][1]
        low, high = interval(ratios)
        rate = statistics.median(rate for rate, _ in pairs[name])
        lines.append(f"| {name} | {bits:g} | {rate * bits / 8:.1f} | {rate:.1f} | {statistics.median(ratios) * share:.2f} "
                     f"| {low * share:.2f} to {high * share:.2f} | {statistics.median(ratios):.2f} | {1 / share:.2f} "
                     f"| {statistics.median(tiled[name]) * 2:.0f} |")
    return lines + [""]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", default=str(ROOT / "build/release/bin/kernel_bench"))
    parser.add_argument("--targets", default="avx3,avx2")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=pathlib.Path)
    options = parser.parse_args()
    commit = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True,
                            check=True).stdout.strip()
    os.environ["RESTKV_BENCH_THREADS"] = str(options.threads)
    before = os.getloadavg()[0]
    tables = [line for target in options.targets.split(",") for line in table(options.bench, target, options.rounds)]
    today = datetime.date.today().isoformat()
    lines = [f"# Products of the GGUF types, {today}", "",
             f"`tests/bench/gguf_types.py --rounds {options.rounds} --targets {options.targets} --threads {options.threads}`", "",
             f"- Processor: {processor()}, {os.cpu_count()} logical processors, {options.threads} used; load average before "
             f"{before:.1f}, after {os.getloadavg()[0]:.1f}.",
             f"- restkv: commit {commit}.",
             f"- One row of x, weights from memory; medians of {options.rounds} rounds, medians of the ratios to a Q4_1 measured right "
             "before or behind, with their 95 % bootstrap interval. The last column: 512 rows, weights dequantised a tile at a time.",
             "- F32's GB/s is what memory gives, its GFLOP/s with 512 rows what the multiply-add units give.", "",
             *tables, *LIMITS]
    text = "\n".join(lines).rstrip() + "\n"
    if options.out:
        options.out.write_text(text, encoding="utf8")
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
