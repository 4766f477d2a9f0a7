"""The settings of a `cache` object with everything filled in, and the rows that every (layer, KV head) may hold: restkv.md and
architecture.md, naively."""

import math

import numpy as np

DEFAULTS = {
    "policy": "restkv", "preset": "default", "budget": 4096, "fraction": None, "allocation": None, "decode": "evict",
    "compress_at": None, "window": 32, "stride": None, "group": "rss", "kernel": None, "tau": 1.0, "normalize": False,
    "probe": None, "pin": None, "pin_head": 0, "pin_tail": 0, "scale": 2000, "alpha": 0.3, "output_projection": True,
}  # fmt: skip
SNAPKV = ("snapkv", "pyramidkv", "adakv")


def settings_of(cache, has_table):
    """The `cache` object with everything filled in."""
    s = {**DEFAULTS, **{key: value for key, value in cache.items() if value is not None}}
    paper = s["policy"] == "restkv" and s["preset"] == "paper"
    s.setdefault("sinks", 0 if paper or s["policy"] in SNAPKV else 4)
    s.setdefault("indicator", "after" if paper else "query")
    s.setdefault("reduce", "ema" if paper or s["indicator"] == "after" else "rms")
    s.setdefault("pool", "adaptive" if paper else "avg" if s["policy"] in SNAPKV else "half_forward")
    if s["allocation"] is None:
        by_policy = {"pyramidkv": "pyramid", "adakv": "ada"}
        measured = has_table and s["policy"] == "restkv" and s["preset"] == "default"
        s["allocation"] = by_policy.get(s["policy"], "calibrated" if measured else "uniform")
    return s


class Plan:
    """Budgets of one sequence: C, stride, what is protected, C_lh [L][K]."""

    def __init__(self, s, model, table, prompt_len, max_tokens):
        self.s = s
        self.budget = s["budget"]
        if s["fraction"]:
            smallest = next(c for c in range(1, s["budget"] + 1) if self.is_legal(c))
            self.budget = min(max(math.ceil(s["fraction"] * prompt_len), smallest), s["budget"])
            while self.budget < s["budget"] and not self.is_legal(self.budget):
                self.budget += 1
        self.stride = self.stride_at(self.budget)
        self.exact = s["policy"] == "full" or prompt_len + max_tokens <= self.budget
        self.c_lh = self.allocate(model, table, prompt_len)

    def stride_at(self, c):
        stride = self.s["stride"]
        if not stride:
            stride = max(1, min(64, c // 16))
            stride = min(stride, self.s["window"]) if self.s["policy"] == "h2o" else stride
        if self.s["decode"] == "grow":  # only windowed layers are cut by it
            stride = max(1, min(stride, c - self.protected(c)))
        return stride

    def recent(self, c):
        return {"tova": 1, "streamingllm": 1, "h2o": max(1, c // 2)}.get(self.s["policy"], self.s["window"])

    def sinks(self):
        return {"streamingllm": 4, "lacache": 4, "h2o": 0, "tova": 0}.get(self.s["policy"], self.s["sinks"])

    def pins(self, c):
        s = self.s
        if s["policy"] != "restkv" or s["decode"] == "grow":
            return 0
        if s["pin"] is not None:
            return s["pin"]
        if s["preset"] != "default" or s["pool"] != "half_forward" or c < 256:
            return 0
        ends = s["pin_head"] + s["pin_tail"]
        others = max(s["sinks"], s["pin_head"]) + s["pin_tail"] + s["window"] + self.stride_at(c)
        return max(0, min(c // 4, c // 2 - ends, c - others))

    def protected(self, c):
        return max(self.sinks(), self.s["pin_head"]) + self.s["pin_tail"] + self.recent(c) + self.pins(c)

    def is_legal(self, c):
        cut = 1 if self.s["decode"] == "grow" else self.stride_at(c)
        pinned = self.pins(c) + self.s["pin_head"] + self.s["pin_tail"]
        return self.protected(c) + cut <= c and pinned <= c // 2

    def allocate(self, model, table, prompt_len):
        s, c, heads = self.s, self.budget, model.kv_heads
        full = [layer for layer in range(model.num_layers) if not model.windows[layer]]
        wanted = np.full((len(full), heads), float(c))
        calibrated = not self.exact and s["allocation"] == "calibrated"
        in_table = calibrated and c <= table["budgets"][-1]
        if in_table:
            wanted = interpolate(table, c, model.num_layers, heads)[full]
        if not self.exact and s["allocation"] == "pyramid":
            free = c - s["window"]
            least = free // 20
            most = 2 * free - least
            if most >= prompt_len - s["window"]:
                most = prompt_len - s["window"]
                least = 2 * free - most
            step = int((most - least) / (len(full) - 1)) if len(full) > 1 else 0
            if prompt_len < 2 * free:  # a short prompt: all layers alike
                most, step = free, 0
            wanted = np.array([[float(max(0, s["window"] + most - i * step))] * heads for i in range(len(full))])
        floor = 0
        if not self.exact:
            fixed = self.protected(c)
            grow = s["decode"] == "grow"
            floor = fixed + 1 if grow else fixed + self.stride
            if calibrated:  # whole pages of 16
                floor = 16 * math.ceil((max(40, fixed) if grow else floor) / 16)
                floor = floor if grow else max(floor, 16 * math.floor(0.7 * c / 16))
            floor = min(floor, c)
        rows = share_out(wanted.ravel(), floor, c * wanted.size, 16 if in_table else 1).reshape(wanted.shape)
        c_lh = np.zeros((model.num_layers, heads), int)
        for i, layer in enumerate(full):
            c_lh[layer] = rows[i]
        for layer in range(model.num_layers):
            if model.windows[layer]:
                c_lh[layer] = min(c, model.windows[layer] + self.stride)
        return c_lh


def interpolate(table, c, layers, heads):
    budgets, rows = table["budgets"], np.array(table["rows"], float).reshape(-1, layers, heads)
    if c <= budgets[0]:
        return rows[0] * (c / budgets[0])
    upper = next(i for i, b in enumerate(budgets) if b >= c)
    t = (c - budgets[upper - 1]) / (budgets[upper] - budgets[upper - 1])
    return t * rows[upper] + (1 - t) * rows[upper - 1]


def share_out(wanted, floor, total, unit):
    """Floor plus whole units up to the given sum: what is above the floor is scaled, largest remainders first, ties the lower
    index."""
    units = int(total - floor * len(wanted)) // unit
    above = np.maximum(wanted - floor, 0.0)
    if above.sum() <= 0:
        above = np.ones_like(above)
    shares = above / above.sum() * units
    rows = np.floor(shares).astype(int)
    order = sorted(range(len(wanted)), key=lambda i: (-(shares[i] - rows[i]), i))
    for i in order[: int(units - rows.sum())]:
        rows[i] += 1
    return rows * unit + floor
