#!/usr/bin/env python3
"""Seeds of the model file fuzz targets: one or two small valid files for each format.

    model_seeds.py TARGET OUTDIR
"""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

SIZES = {"hidden_size": 8, "intermediate_size": 6, "num_hidden_layers": 2, "num_attention_heads": 2,
         "num_key_value_heads": 1, "vocab_size": 4, "head_dim": 4, "max_position_embeddings": 64}


def config(architecture: str, **fields) -> bytes:
    return json.dumps({"architectures": [architecture], "eos_token_id": 2, **SIZES, **fields}).encode()


def model_configs() -> dict[str, bytes]:
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
              "original_max_position_embeddings": 64}
    local = {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
             "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
    generation = b"\x1e" + json.dumps({"eos_token_id": [2, 3], "temperature": 0.6, "top_k": 5}).encode()
    return {
        "llama": config("LlamaForCausalLM", rope_scaling=llama3, hidden_act="silu") + generation,
        "yarn": config("LlamaForCausalLM", rope_scaling={"type": "yarn", "factor": 4.0, "beta_fast": 8.0}),
        "mistral": config("MistralForCausalLM", sliding_window=16),
        "gemma2": config("Gemma2ForCausalLM", attn_logit_softcapping=50.0, query_pre_attn_scalar=4),
        "gemma3": config("Gemma3ForCausalLM", rope_parameters=local,
                         layer_types=["sliding_attention", "full_attention"], sliding_window=8),
        "wrapped": json.dumps({"architectures": ["Gemma3ForConditionalGeneration"], "text_config": SIZES}).encode(),
        "qwen2": config("Qwen2ForCausalLM", use_sliding_window=True, max_window_layers=1, sliding_window=4),
        "quantized": config("Qwen3ForCausalLM", quantization_config={"quant_method": "fp8"}),
    }


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def gguf(architecture: bytes) -> bytes:
    keys = [text(b"general.architecture") + struct.pack("<I", 8) + text(architecture)]
    for name, value in ((b"block_count", 2), (b"embedding_length", 8), (b"feed_forward_length", 6),
                        (b"context_length", 64), (b"attention.head_count", 2), (b"attention.head_count_kv", 1),
                        (b"attention.key_length", 4), (b"attention.sliding_window", 4)):
        keys.append(text(architecture + b"." + name) + struct.pack("<II", 4, value))
    keys.append(text(architecture + b".attention.layer_norm_rms_epsilon") + struct.pack("<If", 6, 1e-5))
    keys.append(text(b"tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 2) + text(b"a") + text(b"</s>"))
    keys.append(text(b"tokenizer.ggml.token_type") + struct.pack("<IIQ2i", 9, 5, 2, 1, 3))
    tensors = [text(b"token_embd.weight") + struct.pack("<IQQIQ", 2, 8, 4, 0, 0),
               text(b"rope_freqs.weight") + struct.pack("<IQIQ", 1, 2, 0, 128),
               text(b"blk.0.attn_q.weight") + struct.pack("<IQQIQ", 2, 32, 1, 2, 160)]
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(keys)) + b"".join(keys) + b"".join(tensors)
    head += b"\0" * (-len(head) % 32)
    return head + b"\0" * 128 + struct.pack("<2f", 1.0, 2.0) + b"\0" * 24 + b"\1" * 18


def safetensors() -> bytes:
    header = json.dumps({"__metadata__": {"format": "pt"},
                         "a": {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]},
                         "b": {"dtype": "BF16", "shape": [3], "data_offsets": [8, 14]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(14)


SEEDS = {
    "gguf_fuzz": lambda: {name: gguf(name.encode()) for name in ("llama", "gemma2", "gemma3", "qwen2")},
    "json_fuzz": model_configs,
    "model_config_fuzz": model_configs,
    "safetensors_fuzz": lambda: {"two": safetensors()},
}


def main() -> None:
    target, out = sys.argv[1], Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    for name, data in SEEDS[target]().items():
        (out / f"seed_{name}").write_bytes(data)


if __name__ == "__main__":
    main()
