#!/usr/bin/env python3
"""The converter's two outputs are the same model: both, read back and computed in plain Python with their own kind of
rotation, continue with the same words, and these are a story's. Exits 77 where the model is absent.

    convert_stories_test.py SHARED_DIR
"""

from __future__ import annotations

import json
import math
import struct
import subprocess
import sys
import tempfile
from array import array
from pathlib import Path

SKIPPED = 77
TOKENS = 12
HEADS, KV_HEADS, HEAD_DIM, LAYERS = 8, 4, 8, 5


def read_safetensors(path: Path) -> dict[str, array]:
    data = path.read_bytes()
    (size,) = struct.unpack_from("<Q", data)
    tensors = {}
    for name, entry in json.loads(data[8:8 + size]).items():
        begin, end = entry["data_offsets"]
        tensors[name] = array("f", data[8 + size + begin:8 + size + end])
    return tensors


def read_gguf(path: Path) -> tuple[dict[str, array], list[bytes]]:
    """Tensors and tokens. Knows just the value types that the converter writes."""
    data, at = path.read_bytes(), 24
    num_tensors, num_keys = struct.unpack_from("<QQ", data, 8)

    def take(form: str):
        nonlocal at
        (value,) = struct.unpack_from("<" + form, data, at)
        at += struct.calcsize(form)
        return value

    def text() -> bytes:
        nonlocal at
        size = take("Q")
        at += size
        return data[at - size:at]

    readers = {4: lambda: take("I"), 5: lambda: take("i"), 6: lambda: take("f"), 7: lambda: take("B"), 8: text}
    values = {}
    for _ in range(num_keys):
        key, kind = text(), take("I")
        if kind == 9:
            element, count = take("I"), take("Q")
            values[key] = [readers[element]() for _ in range(count)]
        else:
            values[key] = readers[kind]()
    infos = []
    for _ in range(num_tensors):
        name = text().decode()
        sizes = [take("Q") for _ in range(take("I"))]
        kind, offset = take("I"), take("Q")
        assert kind == 0
        infos.append((name, math.prod(sizes), offset))
    base = (at + 31) // 32 * 32
    tensors = {name: array("f", data[base + offset:base + offset + 4 * size]) for name, size, offset in infos}
    return tensors, values[b"tokenizer.ggml.tokens"]


def product(weight: array, x: list[float]) -> list[float]:
    cols = len(x)
    return [sum(map(float.__mul__, weight[r:r + cols], x)) for r in range(0, len(weight), cols)]


def norm(x: list[float], weight: array) -> list[float]:
    scale = 1 / math.sqrt(sum(v * v for v in x) / len(x) + 1e-5)
    return [v * scale * w for v, w in zip(x, weight)]


def rotate(x: list[float], position: int, interleaved: bool) -> list[float]:
    out, half = list(x), HEAD_DIM // 2
    for head in range(0, len(x), HEAD_DIM):
        for i in range(half):
            a, b = (head + 2 * i, head + 2 * i + 1) if interleaved else (head + i, head + half + i)
            angle = position * 10000.0 ** (-2 * i / HEAD_DIM)
            out[a] = x[a] * math.cos(angle) - x[b] * math.sin(angle)
            out[b] = x[a] * math.sin(angle) + x[b] * math.cos(angle)
    return out


def greedy(weights: dict[str, array], names: dict[str, str], interleaved: bool) -> tuple[list[int], list[float]]:
    """TOKENS ids after the start token, and the last logits."""
    embedding, tokens, logits = weights[names["embedding"]], [1], []
    hidden = len(weights[names["final_norm"]])
    cache = [([], []) for _ in range(LAYERS)]
    for position in range(TOKENS):
        x = list(embedding[tokens[-1] * hidden:(tokens[-1] + 1) * hidden])
        for layer, (keys, values) in enumerate(cache):
            w = {name: weights[names["layer"].format(layer) + names[name]] for name in
                 ("attn_norm", "q", "k", "v", "o", "ffn_norm", "gate", "up", "down")}
            h = norm(x, w["attn_norm"])
            q = rotate(product(w["q"], h), position, interleaved)
            keys.append(rotate(product(w["k"], h), position, interleaved))
            values.append(product(w["v"], h))
            attended = []
            for head in range(HEADS):
                begin = head // (HEADS // KV_HEADS) * HEAD_DIM
                mine = q[head * HEAD_DIM:(head + 1) * HEAD_DIM]
                scores = [sum(map(float.__mul__, mine, k[begin:begin + HEAD_DIM])) / math.sqrt(HEAD_DIM) for k in keys]
                weight = [math.exp(s - max(scores)) for s in scores]
                attended += [sum(p * v[begin + d] for p, v in zip(weight, values)) / sum(weight)
                             for d in range(HEAD_DIM)]
            x = list(map(float.__add__, x, product(w["o"], attended)))
            h = norm(x, w["ffn_norm"])
            gated = [g / (1 + math.exp(-g)) * u for g, u in zip(product(w["gate"], h), product(w["up"], h))]
            x = list(map(float.__add__, x, product(w["down"], gated)))
        logits = product(embedding, norm(x, weights[names["final_norm"]]))
        tokens.append(max(range(len(logits)), key=logits.__getitem__))
    return tokens[1:], logits


def main() -> None:
    source = Path(sys.argv[1]) / "data" / "models" / "stories260K"
    if not source.is_dir():
        print("skipped: stories260K is not in the shared folder")
        sys.exit(SKIPPED)
    sys.path.insert(0, str(Path(__file__).parent))
    import convert_stories  # pylint: disable=import-outside-toplevel

    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, convert_stories.__file__, source / "stories260K.bin", source / "tok512.bin",
                        folder], check=True)
        hf = read_safetensors(Path(folder) / "stories260K" / "model.safetensors")
        gguf, pieces = read_gguf(Path(folder) / "stories260K.gguf")
    ids, logits = greedy(hf, convert_stories.HF_NAMES | {"layer": "model.layers.{}."}, interleaved=False)
    twin_ids, twin_logits = greedy(gguf, convert_stories.GGUF_NAMES | {"layer": "blk.{}."}, interleaved=True)
    text = b"".join(pieces[i] for i in ids).decode().replace("\u2581", " ")
    print(f"{text!r}, largest difference {max(abs(a - b) for a, b in zip(logits, twin_logits)):.1e}")
    assert ids == twin_ids, (ids, twin_ids)
    assert max(abs(a - b) for a, b in zip(logits, twin_logits)) < 1e-9
    assert text.startswith(" Once upon a time"), text
    # With the other rotation the file is another model: the test above can fail.
    assert greedy(gguf, convert_stories.GGUF_NAMES | {"layer": "blk.{}."}, interleaved=False)[0] != ids


if __name__ == "__main__":
    main()
