#!/usr/bin/env python3
"""Writes grafana/dashboards/restkv.json: one line a panel here, boxes and ids are counted. A test keeps the file current.

    docker/make_dashboard.py [--check]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

FILE = Path(__file__).resolve().parent / "grafana" / "dashboards" / "restkv.json"
# The prefix that compose.yaml and k8s/ set, so that vLLM's dashboards fit too; what vLLM does not have is always restkv_.
PREFIX, OWN = "vllm:", ("kv_entries_evicted_total", "kv_evictions_total", "kv_eviction_seconds_total", "kv_kept_ratio", "kv_nan_rows_total", "kv_pages", "responses_total")
SELECT = '{instance=~"$instance",model_name=~"$model"}'
BY = "instance, model_name"


def metric(name: str, more: str = "") -> str:
    return ("restkv_" if name in OWN else PREFIX) + name + SELECT[:-1] + ("," + more if more else "") + "}"


def rate(name: str, by: str = BY) -> str:
    return f"sum by ({by}) (rate({metric(name)}[$__rate_interval]))"


def quantiles(name: str) -> list:
    return [(f"histogram_quantile({q}, sum by (le) (rate({metric(name + '_bucket')}[$__rate_interval])))", f"p{int(q * 100)}") for q in (0.5, 0.95, 0.99)]


# (row title, [(panel title, unit, [(expression, legend)])])
ROWS = [
    ("Load", [
        ("Sequences that run and wait", "short", [(f"sum by ({BY}) ({metric('num_requests_running')})", "run {{instance}}"),
                                                  (f"sum by ({BY}) ({metric('num_requests_waiting')})", "wait {{instance}}")]),
        ("Sequences that ended", "reqps", [(rate("request_success_total", "finished_reason"), "{{finished_reason}}")]),
        ("Answers by code", "reqps", [(rate("responses_total", "code") + " > 0", "{{code}}")]),
        ("Tokens generated", "tokens/s", [(rate("generation_tokens_total"), "{{instance}}")]),
        ("Prompt tokens computed", "tokens/s", [(rate("prompt_tokens_total"), "{{instance}}")]),
    ]),
    ("Latency", [
        ("Time to first token", "s", quantiles("time_to_first_token_seconds")),
        ("Between two tokens", "s", quantiles("inter_token_latency_seconds")),
        ("In the queue", "s", quantiles("request_queue_time_seconds")),
        ("Whole requests", "s", quantiles("e2e_request_latency_seconds")),
    ]),
    ("Cache", [
        ("Pages in use", "percentunit", [(f"max by ({BY}) ({metric('kv_cache_usage_perc')})", "{{instance}}")]),
        ("Pages by state", "short", [(f"sum by (state) ({metric('kv_pages')})", "{{state}}")]),
        ("Entries evicted, by policy", "entries/s", [(rate("kv_entries_evicted_total", "policy") + " > 0", "{{policy}}")]),
        ("Cuts", "cuts/s", [(rate("kv_evictions_total"), "{{instance}}")]),
        ("Entries evicted for each generated token", "short",
         [(f"sum(rate({metric('kv_entries_evicted_total')}[$__rate_interval])) / "
           f"sum(rate({metric('generation_tokens_total')}[$__rate_interval]))", "entries")]),
        ("Entries that sequences held when they ended", "percentunit", [(f"avg by ({BY}) ({metric('kv_kept_ratio')})", "{{instance}}")]),
        ("Time spent on eviction", "percentunit", [(rate("kv_eviction_seconds_total", "phase"), "{{phase}}")]),
        ("Prompt tokens read from the prefix cache", "percentunit",
         [(f"sum(rate({metric('prefix_cache_hits_total')}[$__rate_interval])) / "
           f"sum(rate({metric('prefix_cache_queries_total')}[$__rate_interval]))", "hits")]),
        ("Scores that are not finite", "short", [(f"sum by ({BY}) (increase({metric('kv_nan_rows_total')}[$__rate_interval]))", "{{instance}}")]),
    ]),
]


def panel(number: int, title: str, unit: str, targets: list, x: int, y: int) -> dict:
    return {
        "id": number, "type": "timeseries", "title": title, "datasource": {"type": "prometheus", "uid": "prometheus"},
        "gridPos": {"h": 8, "w": 12, "x": x, "y": y},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0, "custom": {"lineWidth": 1, "fillOpacity": 10, "showPoints": "never"}},
                        "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi", "sort": "desc"}},
        "targets": [{"refId": chr(ord("A") + i), "expr": expression, "legendFormat": legend, "range": True}
                    for i, (expression, legend) in enumerate(targets)],
    }


def variable(name: str, label: str) -> dict:
    query = f"label_values({PREFIX}num_requests_running, {label})"
    return {"name": name, "type": "query", "datasource": {"type": "prometheus", "uid": "prometheus"}, "definition": query,
            "query": {"query": query, "refId": name}, "refresh": 2, "multi": True, "includeAll": True, "allValue": ".*",
            "current": {"text": "All", "value": "$__all"}, "sort": 1}


def dashboard() -> dict:
    panels, number, y = [], 1, 0
    for title, row in ROWS:
        panels.append({"id": number, "type": "row", "title": title, "collapsed": False, "panels": [],
                       "gridPos": {"h": 1, "w": 24, "x": 0, "y": y}})
        number, y = number + 1, y + 1
        for i, (name, unit, targets) in enumerate(row):
            panels.append(panel(number, name, unit, targets, 12 * (i % 2), y + 8 * (i // 2)))
            number += 1
        y += 8 * ((len(row) + 1) // 2)
    return {"uid": "restkv", "title": "RestKV", "tags": ["restkv"], "schemaVersion": 39, "version": 1, "editable": True,
            "refresh": "10s", "time": {"from": "now-30m", "to": "now"}, "templating": {"list": [variable("instance", "instance"),
                                                                                            variable("model", "model_name")]},
            "panels": panels}


def main(arguments: list[str]) -> int:
    text = json.dumps(dashboard(), indent=2) + "\n"
    if arguments == ["--check"]:
        return 0 if FILE.read_text(encoding="utf-8") == text else f"{FILE.name} is not what make_dashboard.py writes"
    FILE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
