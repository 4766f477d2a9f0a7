#!/usr/bin/env python3
"""Streams one completion of an OpenAI-compatible server to the terminal, then its tokens per second. Standard library only.

    tools/stream_completion.py URL PROMPT [--model NAME] [--max-tokens N] [--temperature T]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import urllib.error
import urllib.request


def fail(message: str) -> int:
    print(f"\nstream_completion: {message}", file=sys.stderr)
    return 1


def main() -> int:
    parser = argparse.ArgumentParser(description="Streams one completion to the terminal.")
    parser.add_argument("url", help="for example http://127.0.0.1:8000")
    parser.add_argument("prompt")
    parser.add_argument("--model", default="", help="default: the first one the server lists")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=0.0)
    arguments = parser.parse_args()
    base = arguments.url.rstrip("/")

    try:
        model = arguments.model
        if not model:
            with urllib.request.urlopen(f"{base}/v1/models", timeout=10) as response:
                model = json.load(response)["data"][0]["id"]
        body = {"model": model, "prompt": arguments.prompt, "max_tokens": arguments.max_tokens,
                "temperature": arguments.temperature, "stream": True, "stream_options": {"include_usage": True}}
        request = urllib.request.Request(f"{base}/v1/completions", json.dumps(body).encode(),
                                         {"Content-Type": "application/json"})
        start = time.monotonic()
        first = last = 0.0
        usage = None
        print(arguments.prompt, end="", flush=True)
        with urllib.request.urlopen(request, timeout=120) as response:
            for line in response:
                if not line.startswith(b"data: ") or line.strip() == b"data: [DONE]":
                    continue
                event = json.loads(line[len(b"data: "):])
                if "error" in event:
                    return fail(event["error"]["message"])
                usage = event.get("usage") or usage
                for choice in event["choices"]:
                    if choice["text"]:
                        last = time.monotonic()
                        first = first or last
                        print(choice["text"], end="", flush=True)
        print()
    except urllib.error.HTTPError as error:
        return fail(f"the server answered {error.code}: {error.read(2000).decode(errors='replace')}")
    except (OSError, ValueError, KeyError, IndexError) as error:
        return fail(f"no completion from {base}: {error!r}")

    if usage is None:
        return fail("the answer ended without its usage")
    tokens = usage["completion_tokens"]
    speed = f", then {(tokens - 1) / (last - first):.1f} tokens/s" if tokens > 1 and last > first else ""
    print(f"[{tokens} tokens: the first after {1000 * (first - start):.0f} ms{speed}]")
    return 0


if __name__ == "__main__":
    sys.exit(main())
