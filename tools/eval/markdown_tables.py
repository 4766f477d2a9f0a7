#!/usr/bin/env python3
"""The JSON of `restkv eval fidelity|passkey --json` as the Markdown tables of docs/measurements.

    tools/eval/markdown_tables.py rows.json...
"""

from __future__ import annotations

import json
import sys


def ratio(row: dict, base: str, interval: str, wins: str) -> str:
    if row[base] is None:
        return "-"
    low, high = row[interval]
    return f"{row[base]:.2f} [{low:.2f}, {high:.2f}] {row[wins]}/{row['n']}"


def fidelity(run: dict) -> None:
    print(f"Prompt {run['prompt_len']}, {run['continue_len']} tokens scored, n = {run['texts']} texts, equal {run['equal']}.\n")
    print("| mode | C | policy | C used | KiB | KL | KL p95 | top-1 | dNLL | KL to `paper` (wins) | KL to snapkv (wins) |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for row in run["rows"]:
        print(f"| {row['mode']} | {row['budget']} | {row['variant']} | {row['budget_used']} | {row['bytes'] / 1024:.0f} "
              f"| {row['kl_mean']:.4f} | {row['kl_p95']:.3f} | {row['top1']:.3f} | {row['dnll']:+.4f} "
              f"| {ratio(row, 'ratio_paper', 'ci', 'wins_paper')} | {ratio(row, 'ratio_snapkv', 'ci_snapkv', 'wins_snapkv')} |")


def passkey(run: dict) -> None:
    budgets = sorted({row["budget"] for row in run["rows"] if row["budget"]})
    print(f"Prompt {run['prompt_len']}, equal {run['equal']}; keys found of n.\n")
    print("| question | digits | policy | " + " | ".join(f"C = {budget}" for budget in budgets) + " |")
    print("|---|---|---|" + "---|" * len(budgets))
    lines: dict[tuple, dict] = {}
    for row in run["rows"]:
        cells = lines.setdefault((row["mode"], row["digits"], row["variant"]), {})
        for budget in [row["budget"]] if row["budget"] else budgets:
            cells[budget] = f"{row['found']} of {row['n']}"
    for (mode, digits, variant), cells in lines.items():
        print(f"| {mode} | {digits} | {variant} | " + " | ".join(cells.get(budget, "-") for budget in budgets) + " |")


def main() -> int:
    if len(sys.argv) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    for path in sys.argv[1:]:
        with open(path, encoding="utf-8") as file:
            run, _ = json.JSONDecoder().raw_decode(file.read())
        {"fidelity": fidelity, "passkey": passkey}[run["eval"]](run)
        print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
