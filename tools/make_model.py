#!/usr/bin/env python3
"""Makes a model with random weights in a named shape, for benchmarks and long-context tests. Its answers mean nothing.

    tools/make_model.py SHAPE OUT [--type f32|f16|bf16|q8_0] [--seed N] [--context N]
    tools/make_model.py --list

OUT ending in .gguf is a GGUF file (f32, f16 or q8_0), anything else a Hugging Face folder with model.safetensors (f32, f16 or
bf16). The vocabulary has one token for each byte; the rest of its ids are fillers. Only numpy is needed; tensors are written
one by one, so that memory is that of the largest.
"""

from __future__ import annotations

import argparse
import json
import struct
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Shape:
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    context: int
    tied: bool
    theta: float = 500000.0


SHAPES = {
    "tiny": Shape(2, 64, 4, 2, 16, 128, 512, 2048, True, 10000.0),
    "tiny-64k": Shape(4, 128, 4, 2, 32, 256, 512, 65536, True, 10000.0),
    "smollm2-135m": Shape(30, 576, 9, 3, 64, 1536, 49152, 8192, True, 100000.0),
    "llama-3.2-1b": Shape(16, 2048, 32, 8, 64, 8192, 128256, 131072, True),
    "llama-3.2-3b": Shape(28, 3072, 24, 8, 128, 8192, 128256, 131072, True),
    "llama-3.1-8b": Shape(32, 4096, 32, 8, 128, 14336, 128256, 131072, False),
    "mistral-7b": Shape(32, 4096, 32, 8, 128, 14336, 32768, 32768, False, 1000000.0),
}
BOS, EOS, NUM_SPECIAL = 1, 2, 3
NORM_EPS = 1e-5
# name: (Hugging Face, GGUF); {} is the layer.
NAMES = {
    "embedding": ("model.embed_tokens.weight", "token_embd.weight"),
    "attn_norm": ("model.layers.{}.input_layernorm.weight", "blk.{}.attn_norm.weight"),
    "q": ("model.layers.{}.self_attn.q_proj.weight", "blk.{}.attn_q.weight"),
    "k": ("model.layers.{}.self_attn.k_proj.weight", "blk.{}.attn_k.weight"),
    "v": ("model.layers.{}.self_attn.v_proj.weight", "blk.{}.attn_v.weight"),
    "o": ("model.layers.{}.self_attn.o_proj.weight", "blk.{}.attn_output.weight"),
    "ffn_norm": ("model.layers.{}.post_attention_layernorm.weight", "blk.{}.ffn_norm.weight"),
    "gate": ("model.layers.{}.mlp.gate_proj.weight", "blk.{}.ffn_gate.weight"),
    "up": ("model.layers.{}.mlp.up_proj.weight", "blk.{}.ffn_up.weight"),
    "down": ("model.layers.{}.mlp.down_proj.weight", "blk.{}.ffn_down.weight"),
    "final_norm": ("model.norm.weight", "output_norm.weight"),
    "head": ("lm_head.weight", "output.weight"),
}


def tensors(shape: Shape, form: int) -> list[tuple[str, list[int]]]:
    """(name, [rows, cols] or [cols]) of every tensor; form: 0 Hugging Face, 1 GGUF."""
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    layer = {"attn_norm": [shape.hidden], "q": [queries, shape.hidden], "k": [keys, shape.hidden],
             "v": [keys, shape.hidden], "o": [shape.hidden, queries], "ffn_norm": [shape.hidden],
             "gate": [shape.ffn, shape.hidden], "up": [shape.ffn, shape.hidden], "down": [shape.hidden, shape.ffn]}
    rows = [(NAMES["embedding"][form], [shape.vocab, shape.hidden])]
    for index in range(shape.layers):
        rows += [(NAMES[name][form].format(index), dims) for name, dims in layer.items()]
    rows.append((NAMES["final_norm"][form], [shape.hidden]))
    if not shape.tied:
        rows.append((NAMES["head"][form], [shape.vocab, shape.hidden]))
    return rows


def values_of(name: str, dims: list[int], seed: int) -> np.ndarray:
    """The same values whatever the format: a function of the seed, the order of the tensor's name and its shape."""
    random = np.random.default_rng([seed, *name.encode()])
    if len(dims) == 1:
        return 1.0 + 0.05 * random.standard_normal(dims, dtype=np.float32)
    scale = 1.0 if "embed" in name or "embd" in name else 1.0 / np.sqrt(dims[-1])
    values = random.standard_normal(dims, dtype=np.float32)
    values *= np.float32(scale)
    return values


def encoded(values: np.ndarray, kind: str) -> bytes:
    if kind == "f32":
        return values.astype("<f4").tobytes()
    if kind == "f16":
        return values.astype("<f2").tobytes()
    if kind == "bf16":  # round to nearest, ties to even
        bits = np.ascontiguousarray(values, dtype="<f4").view("<u4")
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()
    blocks = values.reshape(-1, 32)  # q8_0: an f16 scale and 32 signed bytes
    scale = np.abs(blocks).max(axis=1) / 127.0
    inverse = np.divide(1.0, scale, out=np.zeros_like(scale), where=scale > 0)
    out = np.empty(len(blocks), dtype=np.dtype([("d", "<f2"), ("q", "i1", 32)]))
    out["d"] = scale
    out["q"] = np.rint(blocks * inverse[:, None])
    return out.tobytes()


def byte_alphabet() -> list[str]:
    """The character that stands for each byte in byte-level BPE files."""
    shown = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters, extra = {byte: chr(byte) for byte in shown}, 0
    for byte in range(256):
        if byte not in letters:
            letters[byte] = chr(256 + extra)
            extra += 1
    return [letters[byte] for byte in range(256)]


def write_folder(shape: Shape, folder: Path, kind: str, seed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
              "hidden_size": shape.hidden, "intermediate_size": shape.ffn, "num_hidden_layers": shape.layers,
              "num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads, "head_dim": shape.head_dim,
              "vocab_size": shape.vocab, "max_position_embeddings": shape.context, "rms_norm_eps": NORM_EPS,
              "rope_theta": shape.theta, "rope_scaling": None, "tie_word_embeddings": shape.tied,
              "torch_dtype": {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}[kind], "bos_token_id": BOS,
              "eos_token_id": EOS}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    special = ["<unk>", "<s>", "</s>"]
    vocab = {text: index for index, text in enumerate([*special, *byte_alphabet()])}
    vocab |= {f"<filler {index}>": index for index in range(len(vocab), shape.vocab)}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [{"id": index, "content": text, "single_word": False, "lstrip": False, "rstrip": False,
                          "normalized": False, "special": True} for index, text in enumerate(special)],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None, "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "unk_token": None, "fuse_unk": False, "byte_fallback": False, "vocab": vocab,
                  "merges": []}}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    rows, header, offset = tensors(shape, 0), {}, 0
    size = {"f32": 4, "f16": 2, "bf16": 2}[kind]
    for name, dims in rows:
        count = int(np.prod(dims)) * size
        header[name] = {"dtype": kind.upper(), "shape": dims, "data_offsets": [offset, offset + count]}
        offset += count
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, dims in rows:
            file.write(encoded(values_of(name, dims, seed), kind))


def gguf_text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def gguf_metadata(shape: Shape, name: str) -> tuple[int, bytes]:
    """(number of keys, their bytes)"""
    u32, f32, flag, string = 4, 6, 7, 8
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    kinds = [2, 3, 3, *[6] * 256]
    pieces += [f"<filler {index}>" for index in range(len(pieces), shape.vocab)]
    kinds += [1] * (shape.vocab - len(kinds))

    def array(kind: int, items: list[bytes]) -> bytes:
        return struct.pack("<IQ", kind, len(items)) + b"".join(items)

    keys = [
        ("general.architecture", string, gguf_text("llama")), ("general.name", string, gguf_text(name)),
        ("llama.block_count", u32, shape.layers), ("llama.context_length", u32, shape.context),
        ("llama.embedding_length", u32, shape.hidden), ("llama.feed_forward_length", u32, shape.ffn),
        ("llama.attention.head_count", u32, shape.heads), ("llama.attention.head_count_kv", u32, shape.kv_heads),
        ("llama.attention.key_length", u32, shape.head_dim), ("llama.attention.value_length", u32, shape.head_dim),
        ("llama.rope.dimension_count", u32, shape.head_dim), ("llama.rope.freq_base", f32, shape.theta),
        ("llama.attention.layer_norm_rms_epsilon", f32, NORM_EPS), ("llama.vocab_size", u32, shape.vocab),
        ("tokenizer.ggml.model", string, gguf_text("llama")),
        ("tokenizer.ggml.tokens", 9, array(string, [gguf_text(piece) for piece in pieces])),
        ("tokenizer.ggml.scores", 9, array(f32, [struct.pack("<f", 0.0)] * shape.vocab)),
        ("tokenizer.ggml.token_type", 9, array(5, [struct.pack("<i", kind) for kind in kinds])),
        ("tokenizer.ggml.bos_token_id", u32, BOS), ("tokenizer.ggml.eos_token_id", u32, EOS),
        ("tokenizer.ggml.unknown_token_id", u32, 0), ("tokenizer.ggml.add_bos_token", flag, True),
    ]
    packing = {u32: "<I", f32: "<f", flag: "<B"}
    out = b""
    for key, kind, value in keys:
        data = value if isinstance(value, bytes) else struct.pack(packing[kind], value)
        out += gguf_text(key) + struct.pack("<I", kind) + data
    return len(keys), out


def write_gguf(shape: Shape, path: Path, kind: str, seed: int) -> None:
    alignment, rows = 32, tensors(shape, 1)
    type_id = {"f32": 0, "f16": 1, "q8_0": 8}

    def kind_of(dims: list[int]) -> str:
        return "f32" if len(dims) == 1 else kind

    def size_of(dims: list[int]) -> int:
        count = int(np.prod(dims))
        return {"f32": 4 * count, "f16": 2 * count, "q8_0": count // 32 * 34}[kind_of(dims)]

    num_keys, metadata = gguf_metadata(shape, path.stem)
    infos, offset = b"", 0
    for name, dims in rows:
        infos += gguf_text(name) + struct.pack("<I", len(dims)) + b"".join(struct.pack("<Q", d) for d in reversed(dims))
        infos += struct.pack("<IQ", type_id[kind_of(dims)], offset)
        offset += size_of(dims) + -size_of(dims) % alignment
    head = b"GGUF" + struct.pack("<IQQ", 3, len(rows), num_keys) + metadata + infos
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(head + b"\0" * (-len(head) % alignment))
        for name, dims in rows:
            file.write(encoded(values_of(name, dims, seed), kind_of(dims)))
            file.write(b"\0" * (-size_of(dims) % alignment))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", nargs="?", choices=sorted(SHAPES))
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("--type", dest="kind", choices=["f32", "f16", "bf16", "q8_0"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--context", type=int, help="another context length")
    parser.add_argument("--list", action="store_true", help="the shapes")
    arguments = parser.parse_args()
    if arguments.list:
        for name, shape in SHAPES.items():
            count = sum(int(np.prod(dims)) for _, dims in tensors(shape, 0))
            print(f"{name:14} {count / 1e6:9.1f}M parameters, {shape.layers} layers, hidden {shape.hidden}, "
                  f"{shape.heads} heads, {shape.kv_heads} KV heads of {shape.head_dim}, context {shape.context}")
        return 0
    if arguments.shape is None or arguments.out is None:
        parser.error("SHAPE and OUT are needed (--list shows the shapes)")
    if arguments.seed < 0 or (arguments.context is not None and arguments.context < 1):
        parser.error("--seed must be at least 0, --context at least 1")
    is_gguf = arguments.out.suffix == ".gguf"
    kind = arguments.kind or ("f16" if is_gguf else "bf16")
    if kind == ("bf16" if is_gguf else "q8_0"):
        parser.error(f"--type {kind} does not go with {arguments.out.suffix or 'a folder'}")
    shape = SHAPES[arguments.shape]
    if arguments.context:
        shape = replace(shape, context=arguments.context)
    (write_gguf if is_gguf else write_folder)(shape, arguments.out, kind, arguments.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
