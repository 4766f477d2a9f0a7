"""What a budget saves is what the plan says: bytes of a sequence, and the process's peak memory."""

import importlib.util
import json
import random
from array import array

import pytest

from conftest import ROOT, SHARED, run_restkv

PROMPT, ANSWER = 8192, 64


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory):
    """Two layers with one KV head of 128 and room for 8k tokens, random weights; the vocabulary of stories260K."""
    source = SHARED / "data" / "models" / "stories260K"
    if not (source / "tok512.bin").is_file():
        pytest.skip(f"the vocabulary of stories260K is not in {source} (set RESTKV_SHARED_DIR)")
    spec = importlib.util.spec_from_file_location("convert_stories", ROOT / "tests" / "model" / "convert_stories.py")
    convert = importlib.util.module_from_spec(spec)
    import sys
    sys.modules["convert_stories"] = convert
    spec.loader.exec_module(convert)
    hidden, ffn, layers, heads, kv_heads, vocab = 256, 64, 2, 2, 1, 512
    dim = hidden // heads
    source_of_numbers = random.Random(5)

    def numbers(rows, cols, scale=0.06):
        return array("f", [source_of_numbers.gauss(0, scale) for _ in range(rows * cols)])

    tensors = {
        "embedding": numbers(vocab, hidden, 1.0), "q": numbers(layers * hidden, hidden),
        "k": numbers(layers * kv_heads * dim, hidden), "v": numbers(layers * kv_heads * dim, hidden),
        "o": numbers(layers * hidden, hidden), "gate": numbers(layers * ffn, hidden),
        "down": numbers(layers * hidden, ffn), "up": numbers(layers * ffn, hidden),
        "attn_norm": array("f", [1.0]) * (layers * hidden), "ffn_norm": array("f", [1.0]) * (layers * hidden),
        "final_norm": array("f", [1.0]) * hidden,
    }
    model = convert.Checkpoint(hidden, ffn, layers, heads, kv_heads, vocab, PROMPT + ANSWER, True, tensors)
    path = tmp_path_factory.mktemp("wide") / "wide.gguf"
    convert.write_gguf(model, convert.read_vocabulary(source / "tok512.bin", vocab), path)
    return path


def test_peak_memory_is_the_plans(binary, wide_model):
    plans, figures = {}, {}
    for name, flags in ("full", ["--policy", "full"]), ("budget", ["--budget", 256]):
        shape = ["--max-model-len", PROMPT + ANSWER, "--max-num-seqs", 1, *flags, "--json"]
        done = run_restkv("inspect", wide_model, *shape)
        assert done.returncode == 0, done.stderr
        plans[name] = json.loads(done.stdout)["plan"]
        done = run_restkv("bench", "latency", wide_model, "--prompt-len", PROMPT, "--output-len", ANSWER, "--rounds", 1,
                          *shape)
        assert done.returncode == 0, done.stderr
        figures[name] = json.loads(done.stdout)
        assert figures[name]["cache_bytes"] == plans[name]["sequence"], name
    # Everything else is the same for both.
    assert plans["full"]["scratch"] == plans["budget"]["scratch"]
    assert plans["full"]["workspace"] == plans["budget"]["workspace"]
    planned = plans["full"]["sequence"] - plans["budget"]["sequence"]
    measured = figures["full"]["peak_rss_bytes"] - figures["budget"]["peak_rss_bytes"]
    assert planned > 16 << 20
    assert abs(measured - planned) <= 0.1 * planned, (measured, planned)
