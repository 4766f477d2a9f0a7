#!/usr/bin/env python3
"""What PyTorch does on the same card at the shapes of Llama-3.1-8B: the other columns of tools/gpu_check.sh's report.

    gpu_competitors.py kernels|decode|prefill [--seconds N]

One line of JSON for each figure, written as soon as it is there, so that a time limit costs only what is left:
  kernels  copy (read + write, GB/s) and bf16 product (TFLOP/s), which the report takes as the card's measured best; causal
           attention by SDPA with cuDNN forced and with FlashAttention, by compiled flex_attention; attention of decode rows
           over a full cache by SDPA; products of few rows by torch.mm
  decode   a Llama of random weights, one token a step: compiled layers with a static cache, the step a CUDA graph;
           transformers eager where it is installed
  prefill  first token of the same model, SDPA with cuDNN forced
What is not installed or fails is a line with "error", never silence.
"""
import json
import sys
import time

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

HEADS, KV_HEADS, DIM, HIDDEN, FFN, LAYERS, VOCAB = 32, 8, 128, 4096, 14336, 32, 128256
DEVICE, TYPE = "cuda", torch.bfloat16


def emit(bench, shape, **figures):
    print(json.dumps({"bench": bench, "shape": shape, **figures}), flush=True)


def seconds_of(work, rounds=5, least=0.03):
    """Seconds of one call: the median of rounds, after a warm-up."""
    for _ in range(2):
        work()
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    count = max(1, min(2000, int(least / max(1e-6, time.perf_counter() - start))))
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(count):
            work()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - start) / count)
    return sorted(times)[len(times) // 2]


def guarded(bench, shape, run):
    try:
        run()
    except Exception as error:  # what is not there is said, and the others go on
        emit(bench, shape, error=f"{type(error).__name__}: {str(error).splitlines()[0][:160] if str(error) else ''}")
        torch.cuda.empty_cache()


def noise(*shape):
    return torch.randn(*shape, device=DEVICE, dtype=TYPE) * 0.1


def measure_copy():
    source = noise(1 << 30)
    target = torch.empty_like(source)
    took = seconds_of(lambda: target.copy_(source))
    emit("copy", "2 GiB", us=took * 1e6, gb_s=2 * source.numel() * 2 / took * 1e-9)


def measure_product():
    n = 8192
    a, b = noise(n, n), noise(n, n)
    took = seconds_of(lambda: a @ b, least=0.2)
    emit("product", f"{n}^3", us=took * 1e6, tflop_s=2 * n**3 / took * 1e-12)


def attention_flops(rows):
    return 2 * rows * rows * HEADS * DIM


def measure_sdpa(backend, name, rows):
    q, k, v = noise(1, HEADS, rows, DIM), noise(1, KV_HEADS, rows, DIM), noise(1, KV_HEADS, rows, DIM)

    def run():
        with sdpa_kernel([backend]):
            F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    took = seconds_of(run)
    emit("prefill_attention", f"T={rows}", by=name, us=took * 1e6, tflop_s=attention_flops(rows) / took * 1e-12)


def measure_flex(rows):
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    q, k, v = noise(1, HEADS, rows, DIM), noise(1, KV_HEADS, rows, DIM), noise(1, KV_HEADS, rows, DIM)
    mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, rows, rows, device=DEVICE)
    compiled = torch.compile(flex_attention)
    took = seconds_of(lambda: compiled(q, k, v, block_mask=mask, enable_gqa=True))
    emit("prefill_attention", f"T={rows}", by="flex_attention compiled", us=took * 1e6,
         tflop_s=attention_flops(rows) / took * 1e-12)


def measure_decode_attention(batch, kv_len):
    q = noise(batch, HEADS, 1, DIM)
    bytes_of_layer = 2 * batch * KV_HEADS * kv_len * DIM * 2
    layers = max(1, min(64, (512 << 20) // bytes_of_layer))
    caches = [(noise(batch, KV_HEADS, kv_len, DIM), noise(batch, KV_HEADS, kv_len, DIM)) for _ in range(layers)]
    turn = iter(range(1 << 60))
    took = seconds_of(lambda: F.scaled_dot_product_attention(q, *caches[next(turn) % layers], enable_gqa=True))
    emit("decode_attention", f"b={batch} kv={kv_len}", by="torch SDPA", us=took * 1e6,
         gb_s=bytes_of_layer / took * 1e-9)


def measure_mm(name, rows, num, cols):
    layers = max(1, (512 << 20) // (num * cols * 2))
    weights, x = [noise(num, cols) for _ in range(layers)], noise(rows, cols)
    turn = iter(range(1 << 60))
    took = seconds_of(lambda: F.linear(x, weights[next(turn) % layers]))
    emit("matmul", f"{name} T={rows}", by="torch", us=took * 1e6,
         gb_s=2 * (num * cols + rows * (num + cols)) / took * 1e-9, tflop_s=2 * rows * num * cols / took * 1e-12)


def kernels(has_time):
    guarded("copy", "2 GiB", measure_copy)
    guarded("product", "8192^3", measure_product)
    for rows in (4096, 8192, 16384, 32768):
        for backend, name in ((SDPBackend.CUDNN_ATTENTION, "torch SDPA, cuDNN"),
                              (SDPBackend.FLASH_ATTENTION, "torch SDPA, flash")):
            if has_time():
                guarded("prefill_attention", f"T={rows}", lambda: measure_sdpa(backend, name, rows))
    for batch in (1, 8, 32, 64):
        for kv_len in (1024, 4096, 32768):
            if has_time():
                guarded("decode_attention", f"b={batch} kv={kv_len}", lambda: measure_decode_attention(batch, kv_len))
    products = {"qkv": ((HEADS + 2 * KV_HEADS) * DIM, HIDDEN), "o": (HIDDEN, HEADS * DIM), "gate_up": (2 * FFN, HIDDEN),
                "down": (HIDDEN, FFN), "head": (VOCAB, HIDDEN)}
    for rows in (1, 2, 4, 8, 32, 64, 256, 2048):
        for name, (num, cols) in products.items():
            if has_time() and not (name == "head" and rows > 64):
                guarded("matmul", f"{name} T={rows}", lambda: measure_mm(name, rows, num, cols))
    for rows in (4096, 8192, 16384, 32768):
        if has_time():
            guarded("prefill_attention", f"T={rows}", lambda: measure_flex(rows))


class Layer(torch.nn.Module):
    """One layer of the model; the cache [2, b, K, N, D] belongs to it and never changes its size."""

    def __init__(self, batch, room):
        super().__init__()
        self.norm1 = torch.nn.RMSNorm(HIDDEN, eps=1e-5)
        self.norm2 = torch.nn.RMSNorm(HIDDEN, eps=1e-5)
        self.qkv = torch.nn.Linear(HIDDEN, (HEADS + 2 * KV_HEADS) * DIM, bias=False)
        self.o = torch.nn.Linear(HEADS * DIM, HIDDEN, bias=False)
        self.gate_up = torch.nn.Linear(HIDDEN, 2 * FFN, bias=False)
        self.down = torch.nn.Linear(FFN, HIDDEN, bias=False)
        self.register_buffer("cache", torch.zeros(2, batch, KV_HEADS, room, DIM))

    def forward(self, x, position, cos, sin, mask):
        batch, rows, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).split([HEADS * DIM, KV_HEADS * DIM, KV_HEADS * DIM], dim=-1)
        q, k, v = (t.view(batch, rows, -1, DIM).transpose(1, 2) for t in (q, k, v))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if mask is None:
            attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        else:
            self.cache[0].index_copy_(2, position, k)
            self.cache[1].index_copy_(2, position, v)
            attended = F.scaled_dot_product_attention(q, self.cache[0], self.cache[1], attn_mask=mask, enable_gqa=True)
        x = x + self.o(attended.transpose(1, 2).reshape(batch, rows, -1))
        gate, up = self.gate_up(self.norm2(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


def rotate(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Model(torch.nn.Module):
    def __init__(self, batch, room):
        super().__init__()
        self.room = room
        self.embedding = torch.nn.Embedding(VOCAB, HIDDEN)
        self.layers = torch.nn.ModuleList(Layer(batch, room) for _ in range(LAYERS))
        self.norm = torch.nn.RMSNorm(HIDDEN, eps=1e-5)
        self.head = torch.nn.Linear(HIDDEN, VOCAB, bias=False)
        self.register_buffer("frequencies", 500000.0 ** (-torch.arange(0, DIM, 2) / DIM))

    def forward(self, ids, position, is_prefill: bool):
        angles = position[:, None].float() * self.frequencies[None].float()
        cos, sin = angles.cos().to(TYPE), angles.sin().to(TYPE)
        mask = None if is_prefill else (torch.arange(self.room, device=ids.device)[None] <= position[:, None])
        x = self.embedding(ids)
        for layer in self.layers:
            x = layer(x, position, cos, sin, mask)
        return self.head(self.norm(x[:, -1:])).argmax(-1)


def make_model(batch, room):
    with torch.device(DEVICE):
        torch.set_default_dtype(TYPE)
        model = Model(batch, room)
        torch.set_default_dtype(torch.float32)
    return model.requires_grad_(False)


def measure_compiled(batch, kv_len):
    """One token: every layer through torch.compile (its code is compiled once for all of them), the whole step a CUDA graph."""
    model = make_model(batch, kv_len + 128)
    for layer in model.layers:
        layer.compile(fullgraph=True)
    ids = torch.zeros(batch, 1, dtype=torch.long, device=DEVICE)
    position = torch.full((1,), kv_len, dtype=torch.long, device=DEVICE)
    with torch.inference_mode():
        def step():
            ids.copy_(model(ids, position, False))
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        took = seconds_of(graph.replay, least=0.3)
    read = sum(p.numel() for p in model.layers.parameters()) + model.head.weight.numel() \
        + batch * kv_len * 2 * LAYERS * KV_HEADS * DIM
    emit("decode", f"b={batch} prompt={kv_len} full", by="torch, compiled layers, static cache, CUDA graph", itl_ms=took * 1e3,
         tok_s=batch / took, gb_s=2 * read / took * 1e-9)


def measure_transformers(batch, kv_len):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(hidden_size=HIDDEN, intermediate_size=FFN, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
                         num_key_value_heads=KV_HEADS, vocab_size=VOCAB, rope_theta=500000.0,
                         max_position_embeddings=131072, torch_dtype=TYPE)
    torch.set_default_dtype(TYPE)
    with torch.device(DEVICE):
        model = LlamaForCausalLM(config).eval()
    torch.set_default_dtype(torch.float32)
    ids = torch.randint(0, VOCAB, (batch, kv_len), device=DEVICE)
    with torch.inference_mode():
        start = time.perf_counter()
        out = model(ids, use_cache=True, logits_to_keep=1)
        torch.cuda.synchronize()
        emit("prefill", f"b={batch} prompt={kv_len} full", by="transformers", ttft_ms=(time.perf_counter() - start) * 1e3)
        cache, token = out.past_key_values, out.logits[:, -1:].argmax(-1)
        times = []
        for _ in range(40):
            start = time.perf_counter()
            out = model(token, past_key_values=cache, use_cache=True)
            cache, token = out.past_key_values, out.logits[:, -1:].argmax(-1)
            torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
    took = sorted(times)[len(times) // 2]
    emit("decode", f"b={batch} prompt={kv_len} full", by="transformers eager", itl_ms=took * 1e3, tok_s=batch / took)


def decode(has_time):
    runs = [(measure_compiled, 1, 4096), (measure_transformers, 1, 4096), (measure_compiled, 8, 2048),
            (measure_compiled, 32, 2048), (measure_compiled, 1, 32768), (measure_transformers, 8, 2048)]
    for measure, batch, kv_len in runs:
        if has_time():
            guarded("decode", f"b={batch} prompt={kv_len} full", lambda: measure(batch, kv_len))
            torch.cuda.empty_cache()


def prefill(has_time):
    model = make_model(1, 16)
    for rows in (4096, 8192, 32768):
        def run():
            ids = torch.zeros(1, rows, dtype=torch.long, device=DEVICE)
            position = torch.arange(rows, device=DEVICE)
            with torch.inference_mode(), sdpa_kernel([SDPBackend.CUDNN_ATTENTION]):
                took = seconds_of(lambda: model(ids, position, True), rounds=3)
            emit("prefill", f"b=1 prompt={rows} full", by="torch eager, SDPA cuDNN", ttft_ms=took * 1e3, prefill_tok_s=rows / took)
        if has_time():
            guarded("prefill", f"b=1 prompt={rows} full", run)


def main():
    stages = {"kernels": kernels, "decode": decode, "prefill": prefill}
    if len(sys.argv) < 2 or sys.argv[1] not in stages:
        sys.exit(__doc__)
    seconds = float(sys.argv[sys.argv.index("--seconds") + 1]) if "--seconds" in sys.argv else 240
    end = time.monotonic() + seconds
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    emit("versions", "", torch=torch.__version__, cuda=torch.version.cuda, cudnn=torch.backends.cudnn.version(),
         card=torch.cuda.get_device_name())
    stages[sys.argv[1]](lambda: time.monotonic() < end)


if __name__ == "__main__":
    main()
