#!/usr/bin/env python3
"""Converts a llama2.c checkpoint and its vocabulary into the two formats the engine reads (standard library only).

    convert_stories.py MODEL.bin TOKENIZER.bin OUTDIR

writes OUTDIR/<model>.gguf (F32, architecture llama, SentencePiece vocabulary) and OUTDIR/<model>/ with config.json,
generation_config.json and model.safetensors. llama2.c rotates neighbouring pairs, as GGUF's llama architecture does;
Hugging Face rotates halves, so there the rows of q and k of each head are reordered: even rows, then odd ones.
"""

from __future__ import annotations

import json
import struct
import sys
from array import array
from dataclasses import dataclass
from pathlib import Path

ROPE_THETA = 10000.0
NORM_EPS = 1e-5
UNKNOWN, BOS, EOS = 0, 1, 2
# Token types of GGUF.
NORMAL, TYPE_UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6
ALIGNMENT = 32


@dataclass
class Checkpoint:
    hidden: int
    ffn: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    vocab: int
    context: int
    tied: bool
    tensors: dict[str, array]  # llama2.c's names; those of layers are stacked [L, ...]

    @property
    def head_dim(self) -> int:
        return self.hidden // self.num_heads

    def layer(self, name: str, index: int) -> array:
        size = len(self.tensors[name]) // self.num_layers
        return self.tensors[name][index * size:(index + 1) * size]


def read_checkpoint(path: Path) -> Checkpoint:
    data = path.read_bytes()
    hidden, ffn, num_layers, num_heads, num_kv_heads, vocab, context = struct.unpack_from("<7i", data)
    tied, vocab = vocab > 0, abs(vocab)
    head_dim = hidden // num_heads
    keys = num_kv_heads * head_dim
    sizes = {
        "embedding": vocab * hidden, "attn_norm": num_layers * hidden,
        "q": num_layers * hidden * hidden, "k": num_layers * keys * hidden, "v": num_layers * keys * hidden,
        "o": num_layers * hidden * hidden, "ffn_norm": num_layers * hidden,
        "gate": num_layers * ffn * hidden, "down": num_layers * hidden * ffn, "up": num_layers * ffn * hidden,
        "final_norm": hidden, "rope_cos": context * head_dim // 2, "rope_sin": context * head_dim // 2,
    }
    if not tied:
        sizes["head"] = vocab * hidden
    if len(data) != 28 + 4 * sum(sizes.values()):
        raise SystemExit(f"{path}: {len(data)} bytes, the header asks for {28 + 4 * sum(sizes.values())}")
    tensors, offset = {}, 28
    for name, size in sizes.items():
        values = array("f")
        values.frombytes(data[offset:offset + 4 * size])
        tensors[name] = values
        offset += 4 * size
    return Checkpoint(hidden, ffn, num_layers, num_heads, num_kv_heads, vocab, context, tied, tensors)


def read_vocabulary(path: Path, size: int) -> list[tuple[bytes, float, int]]:
    """(piece, score, type) of each id, pieces as SentencePiece has them."""
    data, offset, pieces = path.read_bytes(), 4, []
    for index in range(size):
        score, length = struct.unpack_from("<fi", data, offset)
        piece = data[offset + 8:offset + 8 + length]
        offset += 8 + length
        if index == UNKNOWN:
            pieces.append((b"<unk>", score, TYPE_UNKNOWN))
        elif index in (BOS, EOS):
            pieces.append((b"<s>" if index == BOS else b"</s>", score, CONTROL))
        elif len(piece) == 6 and piece.startswith(b"<0x") and piece.endswith(b">"):
            pieces.append((piece, score, BYTE))
        else:
            pieces.append((piece.replace(b" ", "\u2581".encode()), score, NORMAL))
    return pieces


def halves(values: array, head_dim: int, cols: int) -> array:
    """Rows of each head reordered: those of the first elements of all pairs, then those of the second ones."""
    out = array("f")
    for head in range(len(values) // (head_dim * cols)):
        for row in [*range(0, head_dim, 2), *range(1, head_dim, 2)]:
            begin = (head * head_dim + row) * cols
            out.extend(values[begin:begin + cols])
    return out


def model_tensors(model: Checkpoint, names: dict[str, str], layer_prefix: str, rotate_halves: bool):
    """(name, shape, values) with the names of one format."""
    hidden, keys = model.hidden, model.num_kv_heads * model.head_dim
    yield names["embedding"], [model.vocab, hidden], model.tensors["embedding"]
    shapes = {"attn_norm": [hidden], "q": [hidden, hidden], "k": [keys, hidden], "v": [keys, hidden],
              "o": [hidden, hidden], "ffn_norm": [hidden], "gate": [model.ffn, hidden], "up": [model.ffn, hidden],
              "down": [hidden, model.ffn]}
    for index in range(model.num_layers):
        for name, shape in shapes.items():
            values = model.layer(name, index)
            if rotate_halves and name in ("q", "k"):
                values = halves(values, model.head_dim, hidden)
            yield f"{layer_prefix}{index}.{names[name]}", shape, values
    yield names["final_norm"], [hidden], model.tensors["final_norm"]
    if not model.tied:
        yield names["head"], [model.vocab, hidden], model.tensors["head"]


HF_NAMES = {"embedding": "model.embed_tokens.weight", "attn_norm": "input_layernorm.weight",
            "q": "self_attn.q_proj.weight", "k": "self_attn.k_proj.weight", "v": "self_attn.v_proj.weight",
            "o": "self_attn.o_proj.weight", "ffn_norm": "post_attention_layernorm.weight",
            "gate": "mlp.gate_proj.weight", "up": "mlp.up_proj.weight", "down": "mlp.down_proj.weight",
            "final_norm": "model.norm.weight", "head": "lm_head.weight"}
GGUF_NAMES = {"embedding": "token_embd.weight", "attn_norm": "attn_norm.weight", "q": "attn_q.weight",
              "k": "attn_k.weight", "v": "attn_v.weight", "o": "attn_output.weight", "ffn_norm": "ffn_norm.weight",
              "gate": "ffn_gate.weight", "up": "ffn_up.weight", "down": "ffn_down.weight",
              "final_norm": "output_norm.weight", "head": "output.weight"}


def write_folder(model: Checkpoint, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": model.hidden,
        "intermediate_size": model.ffn, "num_hidden_layers": model.num_layers, "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.num_kv_heads, "vocab_size": model.vocab,
        "max_position_embeddings": model.context, "rms_norm_eps": NORM_EPS, "rope_theta": ROPE_THETA,
        "rope_scaling": None, "tie_word_embeddings": model.tied, "torch_dtype": "float32", "bos_token_id": BOS,
        "eos_token_id": EOS}
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    ends = {"bos_token_id": BOS, "eos_token_id": EOS}
    (folder / "generation_config.json").write_text(json.dumps(ends), encoding="utf-8")
    header, data = {}, bytearray()
    for name, shape, values in model_tensors(model, HF_NAMES, "model.layers.", rotate_halves=True):
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + 4 * len(values)]}
        data += values.tobytes()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)


def gguf_string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


class Metadata:
    """The key-value part of a GGUF file."""

    def __init__(self) -> None:
        self.count, self.data = 0, bytearray()

    def _add(self, key: str, type_id: int, payload: bytes) -> None:
        self.count += 1
        self.data += gguf_string(key.encode()) + struct.pack("<I", type_id) + payload

    def u32(self, key: str, value: int) -> None:
        self._add(key, 4, struct.pack("<I", value))

    def f32(self, key: str, value: float) -> None:
        self._add(key, 6, struct.pack("<f", value))

    def flag(self, key: str, value: bool) -> None:
        self._add(key, 7, struct.pack("<B", value))

    def text(self, key: str, value: str) -> None:
        self._add(key, 8, gguf_string(value.encode()))

    def array(self, key: str, type_id: int, items: list[bytes]) -> None:
        self._add(key, 9, struct.pack("<IQ", type_id, len(items)) + b"".join(items))


def write_gguf(model: Checkpoint, pieces: list[tuple[bytes, float, int]], path: Path) -> None:
    meta = Metadata()
    meta.text("general.architecture", "llama")
    meta.text("general.name", path.stem)
    meta.u32("llama.block_count", model.num_layers)
    meta.u32("llama.context_length", model.context)
    meta.u32("llama.embedding_length", model.hidden)
    meta.u32("llama.feed_forward_length", model.ffn)
    meta.u32("llama.attention.head_count", model.num_heads)
    meta.u32("llama.attention.head_count_kv", model.num_kv_heads)
    meta.u32("llama.rope.dimension_count", model.head_dim)
    meta.f32("llama.rope.freq_base", ROPE_THETA)
    meta.f32("llama.attention.layer_norm_rms_epsilon", NORM_EPS)
    meta.u32("llama.vocab_size", model.vocab)
    meta.text("tokenizer.ggml.model", "llama")
    meta.array("tokenizer.ggml.tokens", 8, [gguf_string(piece) for piece, _, _ in pieces])
    meta.array("tokenizer.ggml.scores", 6, [struct.pack("<f", score) for _, score, _ in pieces])
    meta.array("tokenizer.ggml.token_type", 5, [struct.pack("<i", kind) for _, _, kind in pieces])
    meta.u32("tokenizer.ggml.bos_token_id", BOS)
    meta.u32("tokenizer.ggml.eos_token_id", EOS)
    meta.u32("tokenizer.ggml.unknown_token_id", UNKNOWN)
    meta.flag("tokenizer.ggml.add_bos_token", True)
    meta.flag("tokenizer.ggml.add_eos_token", False)
    meta.flag("tokenizer.ggml.add_space_prefix", True)

    infos, data, count = bytearray(), bytearray(), 0
    for name, shape, values in model_tensors(model, GGUF_NAMES, "blk.", rotate_halves=False):
        data += b"\0" * (-len(data) % ALIGNMENT)
        sizes = b"".join(struct.pack("<Q", size) for size in reversed(shape))
        infos += gguf_string(name.encode()) + struct.pack("<I", len(shape)) + sizes + struct.pack("<IQ", 0, len(data))
        data += values.tobytes()
        count += 1
    head = struct.pack("<4sIQQ", b"GGUF", 3, count, meta.count) + meta.data + infos
    head += b"\0" * (-len(head) % ALIGNMENT)
    path.write_bytes(head + data)


def main() -> None:
    if len(sys.argv) != 4:
        raise SystemExit(__doc__)
    model_path, vocabulary_path, out = map(Path, sys.argv[1:])
    model = read_checkpoint(model_path)
    pieces = read_vocabulary(vocabulary_path, model.vocab)
    write_folder(model, out / model_path.stem)
    write_gguf(model, pieces, out / f"{model_path.stem}.gguf")


if __name__ == "__main__":
    main()
