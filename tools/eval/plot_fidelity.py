#!/usr/bin/env python3
"""Plots the JSON of `restkv eval fidelity --json`: mean KL against the bytes of one sequence's cache, a panel for each mode.

    restkv eval fidelity demo --texts DIR --json > rows.json
    tools/eval/plot_fidelity.py rows.json plot.png          needs matplotlib
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict

try:
    import matplotlib
except ImportError:
    sys.exit("plot_fidelity: needs matplotlib (pip install matplotlib)")
matplotlib.use("Agg")
from matplotlib import pyplot


def main() -> int:
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    with open(sys.argv[1], encoding="utf-8") as file:
        run = json.load(file)
    curves: dict[str, dict[str, list[tuple[float, float, int]]]] = defaultdict(lambda: defaultdict(list))
    for row in run["rows"]:
        if row["policy"] != "full":
            curves[row["mode"]][row["variant"]].append((row["bytes"] / 1024, row["kl_mean"], row["budget"]))
    if not curves:
        sys.exit("plot_fidelity: no rows of a policy that evicts")
    figure, panels = pyplot.subplots(1, len(curves), figsize=(5.5 * len(curves), 4.5), squeeze=False, sharey=True)
    for panel, (mode, variants) in zip(panels[0], curves.items()):
        for variant, points in variants.items():
            points.sort()
            panel.plot([p[0] for p in points], [p[1] for p in points], marker="o", label=variant)
        for kib, kl, budget in sorted(next(iter(variants.values()))):
            panel.annotate(f"C={budget}", (kib, kl), textcoords="offset points", xytext=(4, 6), fontsize=8)
        panel.set_title(f"{mode}, prompt {run['prompt_len']}, n = {run['texts']}")
        panel.set_xlabel("KiB of cache, pages, rings and tables")
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.grid(True, which="both", alpha=0.3)
    panels[0][0].set_ylabel("KL to the full cache, nats a token")
    panels[0][-1].legend(fontsize=8)
    figure.suptitle(run.get("model", ""))
    figure.tight_layout()
    figure.savefig(sys.argv[2], dpi=130)
    return 0


if __name__ == "__main__":
    sys.exit(main())
