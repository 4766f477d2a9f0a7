"""Tiny transformers in double precision: config.json and safetensors in, one layer at a time out. Numpy only.

Follows the published model definitions (Llama, Mistral, Qwen2, Qwen3, Gemma, Gemma 2), written for clarity.
Letters: T rows, H query heads, K KV heads, D head dim, M model dim, V vocabulary.
"""

import json
import math
import pathlib
import struct

import numpy as np

TYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "I32": np.int32, "I64": np.int64, "U8": np.uint8}


def read_safetensors(path):
    """name -> array (bf16 widened), and the string metadata."""
    data = pathlib.Path(path).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        raw = data[8 + length + begin : 8 + length + end]
        if entry["dtype"] == "BF16":
            array = (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32)
        else:
            array = np.frombuffer(raw, TYPES[entry["dtype"]])
        tensors[name] = array.reshape(entry["shape"])
    return tensors, metadata


def inverse_frequencies(theta, dim, scaling, context):
    """Rotary frequencies [D/2] and the factor on cos and sin."""
    inv = theta ** (-np.arange(0, dim, 2) / dim)
    kind = (scaling or {}).get("rope_type", (scaling or {}).get("type", "default"))
    if kind == "linear":
        return inv / scaling["factor"], 1.0
    if kind == "llama3":
        factor, low, high = scaling["factor"], scaling["low_freq_factor"], scaling["high_freq_factor"]
        original = scaling["original_max_position_embeddings"]
        smooth = np.clip((original * inv / (2 * math.pi) - low) / (high - low), 0.0, 1.0)
        return (1 - smooth) * inv / factor + smooth * inv, 1.0
    if kind == "yarn":
        factor, original = scaling["factor"], scaling.get("original_max_position_embeddings", context)

        def dimension(rotations):
            return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

        low = max(math.floor(dimension(scaling.get("beta_fast", 32))), 0)
        high = min(math.ceil(dimension(scaling.get("beta_slow", 1))), dim - 1)
        ramp = np.clip((np.arange(dim // 2) - low) / max(high - low, 0.001), 0.0, 1.0)
        return inv / factor * ramp + inv * (1 - ramp), scaling.get("attention_factor", 0.1 * math.log(factor) + 1.0)
    assert kind == "default", kind
    return inv, 1.0


class Model:
    def __init__(self, folder):
        folder = pathlib.Path(folder)
        c = json.loads((folder / "config.json").read_text())
        self.family = c["model_type"]
        assert self.family in ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2"), self.family
        self.gemma = self.family.startswith("gemma")
        self.num_layers, self.hidden = c["num_hidden_layers"], c["hidden_size"]
        self.heads = c["num_attention_heads"]
        self.kv_heads = c.get("num_key_value_heads", self.heads)
        self.group = self.heads // self.kv_heads
        self.dim = c.get("head_dim") or self.hidden // self.heads
        self.eps = c.get("rms_norm_eps", 1e-6)
        self.scale = 1.0 / math.sqrt(c.get("query_pre_attn_scalar", self.dim))
        self.softcap = c.get("attn_logit_softcapping") or 0.0
        self.final_softcap = c.get("final_logit_softcapping") or 0.0
        self.inv_freq, self.rope_factor = inverse_frequencies(
            c.get("rope_theta", 10000.0), self.dim, c.get("rope_scaling"), c.get("max_position_embeddings")
        )
        window = c.get("sliding_window") or 0
        if self.family in ("qwen2", "qwen3") and not c.get("use_sliding_window"):
            window = 0
        self.windows = [
            window if self.family != "gemma2" or layer % 2 == 0 else 0 for layer in range(self.num_layers)
        ]
        self.weights = {}
        for path in sorted(folder.glob("model*.safetensors")):
            tensors, _ = read_safetensors(path)
            self.weights.update({name: t.astype(np.float64) for name, t in tensors.items()})

    def weight(self, layer, name):
        return self.weights.get(f"model.layers.{layer}.{name}")

    def linear(self, layer, name, x):
        y = x @ self.weight(layer, name + ".weight").T
        bias = self.weight(layer, name + ".bias")
        return y if bias is None else y + bias

    def norm(self, x, weight):
        x = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + self.eps)
        return x * (1.0 + weight if self.gemma else weight)

    def embed(self, tokens):
        x = self.weights["model.embed_tokens.weight"][np.asarray(tokens)]
        return x * math.sqrt(self.hidden) if self.gemma else x

    def rotate(self, x, positions):
        angles = np.asarray(positions, np.float64)[:, None] * self.inv_freq
        cos, sin = np.cos(angles)[:, None] * self.rope_factor, np.sin(angles)[:, None] * self.rope_factor
        half = self.dim // 2
        a, b = x[..., :half], x[..., half:]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

    def qkv(self, layer, x, positions):
        """Rotated q [T, H, D], k and v [T, K, D] of rows x [T, M]."""
        x = self.norm(x, self.weight(layer, "input_layernorm.weight"))
        q = self.linear(layer, "self_attn.q_proj", x).reshape(-1, self.heads, self.dim)
        k = self.linear(layer, "self_attn.k_proj", x).reshape(-1, self.kv_heads, self.dim)
        v = self.linear(layer, "self_attn.v_proj", x).reshape(-1, self.kv_heads, self.dim)
        if self.family == "qwen3":
            q = self.norm(q, self.weight(layer, "self_attn.q_norm.weight"))
            k = self.norm(k, self.weight(layer, "self_attn.k_norm.weight"))
        return self.rotate(q, positions), self.rotate(k, positions), v

    def logits_of(self, layer, q, query_positions, k, row_positions):
        """Capped, masked attention logits [T, n] of one head: q [T, D], k [n, D]."""
        logits = q @ k.T * self.scale
        if self.softcap:
            logits = self.softcap * np.tanh(logits / self.softcap)
        distance = np.asarray(query_positions)[:, None] - np.asarray(row_positions)[None]
        hidden = distance < 0
        if self.windows[layer]:
            hidden |= distance >= self.windows[layer]
        return np.where(hidden, -np.inf, logits)

    def finish_layer(self, layer, x, attended):
        """x [T, M] after the layer, from the heads' outputs [T, H*D]."""
        y = self.linear(layer, "self_attn.o_proj", attended)
        if self.family == "gemma2":
            y = self.norm(y, self.weight(layer, "post_attention_layernorm.weight"))
            x = x + y
            y = self.norm(x, self.weight(layer, "pre_feedforward_layernorm.weight"))
        else:
            x = x + y
            y = self.norm(x, self.weight(layer, "post_attention_layernorm.weight"))
        gate = self.linear(layer, "mlp.gate_proj", y)
        if self.gemma:
            gate = 0.5 * gate * (1 + np.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))
        else:
            gate = gate / (1 + np.exp(-gate))
        y = self.linear(layer, "mlp.down_proj", gate * self.linear(layer, "mlp.up_proj", y))
        if self.family == "gemma2":
            y = self.norm(y, self.weight(layer, "post_feedforward_layernorm.weight"))
        return x + y

    def logits(self, x):
        x = self.norm(x, self.weights["model.norm.weight"])
        head = self.weights.get("lm_head.weight", self.weights["model.embed_tokens.weight"])
        y = x @ head.T
        return self.final_softcap * np.tanh(y / self.final_softcap) if self.final_softcap else y

    def head_projection(self, layer, head):
        """W_g [M, D]: the columns of the output projection that belong to a query head."""
        return self.weight(layer, "self_attn.o_proj.weight")[:, head * self.dim : (head + 1) * self.dim]


def softmax(x):
    most = x.max(axis=-1, keepdims=True)
    e = np.exp(x - np.where(np.isfinite(most), most, 0.0))
    total = e.sum(axis=-1, keepdims=True)
    return np.divide(e, total, out=np.zeros_like(e), where=total > 0)
