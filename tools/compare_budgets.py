#!/usr/bin/env python3
"""One long prompt answered with the full cache and with a budget, side by side. Standard library only.

    tools/compare_budgets.py URL [--budget 256] [--records 220] [--max-tokens 48] [--model NAME]

The prompt is a list of made-up records of several thousand tokens, the same one every time, and a question about one of
them. For each setting: the answer, what the cache took, and tokens per second.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import textwrap
import urllib.error
import urllib.request

NAMES = "Ada Boris Clara Dmitri Elena Felix Greta Hugo Irma Jonas Karin Leo Mara Nils Olga Petra Quentin Rosa Stefan Tilda".split()
PLACES = "harbour library station market bridge school bakery garden museum theatre".split()
THINGS = "a blue lamp, an old map, a jar of honey, a red bicycle, two keys, a wooden box, a silver spoon".split(", ")


def long_prompt(records: int) -> str:
    pick = random.Random(1874)
    lines = [f"Record {number}: {pick.choice(NAMES)} left {pick.choice(THINGS)} at the {pick.choice(PLACES)} "
             f"on day {pick.randint(1, 365)}." for number in range(1, records + 1)]
    lines.insert(records // 3, "The password of the archive is 48217.")
    return "\n".join(lines) + "\n\nQuestion: What is the password of the archive?\nAnswer: The password of the archive is"


def ask(base: str, body: dict) -> dict:
    request = urllib.request.Request(f"{base}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as response:
        return json.load(response)


def size_text(count: int) -> str:
    return f"{count / (1 << 20):.1f} MiB"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("--budget", type=int, default=256)
    parser.add_argument("--records", type=int, default=220)
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--model", default="", help="default: the first one the server lists")
    arguments = parser.parse_args()
    base = arguments.url.rstrip("/")
    try:
        model = arguments.model
        if not model:
            with urllib.request.urlopen(f"{base}/v1/models", timeout=10) as response:
                model = json.load(response)["data"][0]["id"]
        columns = []
        for name, cache in ("full cache", {"policy": "full"}), (f"budget {arguments.budget}", {"budget": arguments.budget}):
            answer = ask(base, {"model": model, "prompt": long_prompt(arguments.records), "max_tokens": arguments.max_tokens,
                                "temperature": 0, "cache": cache})
            usage, timings = answer["usage"], answer["timings"]
            kept = usage["cache"]
            text = " ".join(answer["choices"][0]["text"].split())
            columns.append([name, f"prompt        {usage['prompt_tokens']} tokens",
                            f"cache         {size_text(kept['bytes'])}",
                            f"entries kept  {kept['kept']} a head",
                            f"evicted       {kept['evicted']}",
                            f"answer        {timings['predicted_per_second']:.1f} tokens/s", "", *textwrap.wrap(text, 50)])
        height = max(map(len, columns))
        for row in range(height):
            print("  ".join(f"{column[row] if row < len(column) else '':<52}" for column in columns).rstrip())
    except urllib.error.HTTPError as error:
        print(f"compare_budgets: the server answered {error.code}: {error.read(2000).decode(errors='replace')}", file=sys.stderr)
        return 1
    except (OSError, ValueError, KeyError) as error:
        print(f"compare_budgets: no answer from {base}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
