#!/usr/bin/env python3
"""Markdown tables from the lines of JSON that the benches of tools/gpu_check.sh wrote, ours beside the competitors'.

    gpu_report.py RESTKV.jsonl [COMPETITORS.jsonl]

Every figure stands with its share of what the same run measured for a copy (GB/s) or a product (TFLOP/s), where there is such a
figure. Lines that a time limit cut off are left out; so is what only one side has, but for its own column.
"""
import json
import pathlib
import sys


def read(path):
    rows = []
    for line in pathlib.Path(path).read_text().splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and "bench" in row:
            rows.append(row)
    return rows


def name_of(row):
    """The setting a row was measured at, the same words for both sides."""
    if "shape" in row:
        return row["shape"]
    budget = f" C={row['budget']}" if row.get("budget") else " full"
    return f"b={row['b']} prompt={row['prompt']}{budget}"


def share(value, best):
    return f" ({100 * value / best:.0f} %)" if best else ""


def cell(row, copy, product):
    if "error" in row:
        return f"failed: {row['error']}"
    parts = []
    if "us" in row:
        parts.append(f"{row['us']:.1f} us")
    for key, unit in (("ttft_ms", "ms first token"), ("itl_ms", "ms a token"), ("itl_p99_ms", "ms p99"),
                      ("tok_s", "tok/s"), ("requests_s", "requests/s"), ("prefill_tok_s", "prompt tok/s"),
                      ("eviction_prefill_ms", "ms to enqueue eviction"), ("ttft_p50_ms", "ms first token p50"),
                      ("ttft_p99_ms", "ms first token p99")):
        if row.get(key):
            parts.append(f"{row[key]:.4g} {unit}")
    if row.get("gb_s"):
        parts.append(f"{row['gb_s']:.0f} GB/s{share(row['gb_s'], copy)}")
    if row.get("tflop_s", 0) >= 1:
        parts.append(f"{row['tflop_s']:.0f} TFLOP/s{share(row['tflop_s'], product)}")
    return ", ".join(parts)


def tables(ours, others):
    best = {row["bench"]: row for row in others if row["bench"] in ("copy", "product") and "error" not in row}
    copy = best.get("copy", {}).get("gb_s")
    product = best.get("product", {}).get("tflop_s")
    lines = []
    for row in others:
        if row["bench"] == "versions":
            lines.append("PyTorch " + ", ".join(f"{k} {v}" for k, v in row.items() if k not in ("bench", "shape")) + ".")
    if best:
        lines.append("Measured in this run, and what the shares in brackets are of: "
                     + ", ".join(cell(row, None, None) + f" ({name})" for name, row in best.items()) + ".")
    benches = []
    for row in ours + others:
        if row["bench"] not in benches + ["copy", "product", "versions"]:
            benches.append(row["bench"])
    for bench in benches:
        mine = {name_of(row): row for row in ours if row["bench"] == bench}
        theirs = [row for row in others if row["bench"] == bench]
        by = list(dict.fromkeys(row.get("by", "torch") for row in theirs))
        names = list(mine) + [n for n in dict.fromkeys(name_of(row) for row in theirs) if n not in mine]
        lines += ["", f"**{bench}**", "", "| | restkv |" + "".join(f" {b} |" for b in by), "|---|---|" + "---|" * len(by)]
        for name in names:
            cells = [cell(mine[name], copy, product) if name in mine else ""]
            for column in by:
                found = [row for row in theirs if row.get("by", "torch") == column and name_of(row) == name]
                cells.append(cell(found[-1], copy, product) if found else "")
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    print(tables(read(sys.argv[1]), read(sys.argv[2]) if len(sys.argv) == 3 else []))


if __name__ == "__main__":
    main()
