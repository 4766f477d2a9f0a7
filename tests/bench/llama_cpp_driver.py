#!/usr/bin/env python3
"""One measurement of llama.cpp in a process of its own, through its low-level decode call; prints one JSON object.

    llama_cpp_driver.py latency MODEL PROMPT_LEN OUTPUT_LEN THREADS    one warm-up and one measured round
    llama_cpp_driver.py nll MODEL TOKENS_FILE THREADS                  mean negative log likelihood of a JSON list of ids

Run by compare_llama_cpp.py with the Python of its environment. What is timed is what `restkv bench latency` times: ttft
from handing over the prompt to having picked the first token (greedy), then each further token.
"""

from __future__ import annotations

import ctypes
import json
import re
import statistics
import sys
import time
from pathlib import Path

import llama_cpp
import numpy


def fail(message: str) -> None:
    sys.exit(f"llama_cpp_driver: {message}")


class Session:
    """A loaded model and a context of `length` tokens."""

    def __init__(self, path: str, length: int, threads: int) -> None:
        self._quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)  # kept: C holds a pointer to it
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        start = time.perf_counter()
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        if not self.model:
            fail(f"llama.cpp cannot load {path}")
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = length
        options.n_batch = length  # a prompt is one call; n_ubatch, its default of 512, is what is computed at once
        options.n_threads = options.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, options)
        if not self.context:
            fail("llama.cpp cannot make a context")
        self.load_ms = 1000 * (time.perf_counter() - start)

    def clear(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)

    def decode(self, tokens: list[int]) -> None:
        array = (llama_cpp.llama_token * len(tokens))(*tokens)
        if llama_cpp.llama_decode(self.context, llama_cpp.llama_batch_get_one(array, len(tokens))) != 0:
            fail("llama_decode failed")

    def logits(self, row: int) -> numpy.ndarray:
        """[V] of one row of the last call whose logits were asked for; -1 is the last one. A view."""
        return numpy.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(self.context, row), (self.vocab_size,))

    def greedy(self) -> int:
        return int(self.logits(-1).argmax())


def run_latency(session: Session, prompt: list[int], output_len: int) -> dict[str, float]:
    session.clear()
    start = time.perf_counter()
    session.decode(prompt)
    token = session.greedy()
    times = [time.perf_counter()]
    while len(times) < output_len:
        session.decode([token])
        token = session.greedy()
        times.append(time.perf_counter())
    gaps = [1000 * (b - a) for a, b in zip(times, times[1:])]
    ttft_ms = 1000 * (times[0] - start)
    return {"ttft_ms": ttft_ms, "itl_ms": statistics.median(gaps), "prefill_tok_s": 1000 * len(prompt) / ttft_ms,
            "decode_tok_s": len(gaps) / (times[-1] - times[0])}


def run_nll(session: Session, tokens: list[int]) -> float:
    """Mean over positions 1.. of -log p(token | tokens before it), in f64."""
    session.clear()
    total = 0.0
    rows = 256
    batch = llama_cpp.llama_batch_init(rows, 0, 1)
    for first in range(0, len(tokens), rows):
        piece = tokens[first:first + rows]
        batch.n_tokens = len(piece)
        for i, token in enumerate(piece):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, first + i, 1, 1
            batch.seq_id[i][0] = 0
        if llama_cpp.llama_decode(session.context, batch) != 0:
            fail("llama_decode failed")
        for i in range(len(piece)):
            if first + i + 1 < len(tokens):
                row = session.logits(i).astype(numpy.float64)
                peak = row.max()
                total += peak + numpy.log(numpy.exp(row - peak).sum()) - row[tokens[first + i + 1]]
    llama_cpp.llama_batch_free(batch)
    return total / (len(tokens) - 1)


def peak_rss_bytes() -> int:
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text(encoding="ascii")).group(1)) * 1024


def main(arguments: list[str]) -> None:
    if arguments[0] == "latency":
        path, prompt_len, output_len, threads = arguments[1], *map(int, arguments[2:5])
        session = Session(path, prompt_len + output_len, threads)
        # Any ids will do: no time here depends on which they are.
        prompt = [(7919 * i) % 40_000 + 100 for i in range(prompt_len)]
        run_latency(session, prompt, output_len)
        figures = run_latency(session, prompt, output_len)
        figures |= {"peak_rss_bytes": peak_rss_bytes(), "load_ms": session.load_ms}
    else:
        tokens = json.loads(Path(arguments[2]).read_text(encoding="ascii"))
        figures = {"nll": run_nll(Session(arguments[1], len(tokens), int(arguments[3])), tokens)}
    print(json.dumps(figures | {"version": llama_cpp.__version__}))


if __name__ == "__main__":
    main(sys.argv[1:])
