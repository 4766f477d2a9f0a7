"""What the engine must do, naively and in double precision: forward pass, compression after prefill, generation under a
hard budget, for every policy. Written from restkv.md, eviction_math.md and architecture.md; numpy only, nothing of the
build. Every formula is written out over whole matrices; W_g itself is used, and rows are removed to see what is lost.

    restkv_reference.py MODEL --tokens 1,2,3 --max-tokens 200 --cache '{"policy": "snapkv", "budget": 64}'
        [--allocation FILE] [--follow FILE]

prints {"tokens": [...], "events": [{"layer", "tokens", "kept": [[positions] for each KV head]}], "followed": n, ...}.
`tokens` of an event counts the tokens whose entries were there when it was cut. With --follow, FILE holds the engine's
output in the same form: where the reference's own choice is within rounding (a row's score within 1e-4 relative of one it
was exchanged for, the two best logits within 1e-3) it takes the engine's and counts it in `followed`; every other
difference is listed in `differences`.
"""

import argparse
import json
import math
import sys

import numpy as np

from model import Model, softmax

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


# ---------------------------------------------------------------------------------------------------- scores


def over_queries(e, s):
    """Errors [Q, n] of queries that see something -> [n]."""
    if s["reduce"] == "rms":
        return np.sqrt(np.mean(e * e, axis=0))
    if s["reduce"] == "mean":
        return e.mean(axis=0)
    if s["reduce"] == "max":
        return e.max(axis=0)
    value = e[0]
    for row in e[1:]:
        value = s["alpha"] * row + (1 - s["alpha"]) * value
    return value


def removal_errors(a, v, w, s):
    """e_tj = a/(1-a) ||W (o_t - v_j)||^tau for attention a [Q, n]; the heavy row by removing it."""
    o = a @ v
    projected_o, projected_v = o @ w.T, v @ w.T
    distance = np.linalg.norm(projected_o[:, None] - projected_v[None], axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        e = a / (1 - a) * distance ** s["tau"]
    for t, j in zip(*np.nonzero(a > 0.5)):
        others = np.arange(len(v)) != j
        mass = a[t, others].sum()
        if mass == 0:
            e[t, j] = np.inf
            continue
        without = a[t, others] @ v[others] / mass
        e[t, j] = a[t, j] * mass ** (s["tau"] - 1) * np.linalg.norm((v[j] - without) @ w.T) ** s["tau"]
    return e / np.linalg.norm(projected_o, axis=-1)[:, None] if s["normalize"] else e


def group_of(errors, kind):
    errors = np.array(errors)
    if kind == "rss":
        return np.sqrt((errors**2).sum(axis=0))
    return errors.max(axis=0) if kind == "max" else errors.mean(axis=0)


def hash_of(layer, head, position):
    mask = (1 << 64) - 1
    x = ((layer << 48) ^ (head << 32) ^ position) & mask
    x = (x + 0x9E3779B97F4A7C15) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    x ^= x >> 31
    return (x >> 40) / 2.0**24


def forward_max(x, kernel):
    return np.array([x[max(0, j - kernel + 1) : j + 1].max() for j in range(len(x))])


def pooled(x, kind, kernel, window, drift, scale):
    """Centred pools over the rows before the window; the window's rows are copied."""
    out, m = x.copy(), max(0, len(x) - window)
    reach, shift = kernel // 2, 0
    if kind == "adaptive":
        kernel = max(kernel, 2 * int(abs(drift) // scale) + 1)
        shift = math.floor(drift / scale) + (0 if drift > 0 else 1)
        reach = kernel // 2
    for j in range(m):
        rows = range(j + shift - reach, j + shift - reach + kernel)
        if kind == "adaptive":
            out[j] = np.mean([x[min(max(i, 0), m - 1)] for i in rows])
        elif kind == "avg":
            out[j] = sum(x[i] for i in rows if 0 <= i < m) / kernel
        else:
            out[j] = max(x[i] for i in rows if 0 <= i < m)
    return out


def ranks_of(scores, protected, dead):
    """0-based ranks: protected rows first, then by score, ties newer; dead rows last."""

    def key(j):
        place = 0 if dead[j] else 2 if protected[j] else 1
        score = scores[j] if np.isfinite(scores[j]) else np.inf
        return (place, score if place == 1 else 0.0, j)

    order = sorted(range(len(scores)), key=key, reverse=True)
    ranks = np.empty(len(order), int)
    ranks[order] = np.arange(len(order))
    return ranks


def order_of(arrays, protected, dead):
    """Rows stay by ascending min over i of m * rank_i + i."""
    m = len(arrays)
    return np.min([m * ranks_of(x, protected, dead) + i for i, x in enumerate(arrays)], axis=0)


# ---------------------------------------------------------------------------------------------------- sequences


class Head:
    """Entries of one (layer, KV head)."""

    def __init__(self):
        self.k, self.v, self.pos, self.sums = [], [], [], []
        self.pins = set()
        self.is_cut = False

    def keep(self, rows):
        for name in ("k", "v", "pos", "sums"):
            values = getattr(self, name)
            setattr(self, name, [values[i] for i in rows])


class Sequence:
    def __init__(self, model, prompt, max_tokens, cache, table=None, follow=None):
        self.model, self.prompt, self.max_tokens = model, prompt, max_tokens
        self.s = settings_of(cache, table is not None)
        self.plan = Plan(self.s, model, table, len(prompt), max_tokens)
        self.c_lh = self.plan.c_lh.copy()
        self.heads = [[Head() for _ in range(model.kv_heads)] for _ in range(model.num_layers)]
        self.queries = [[] for _ in range(model.num_layers)]  # (position, q [H, D]): the ring
        self.last_event = [0] * model.num_layers  # tokens at the last event (h2o)
        self.events, self.differences = [], []
        self.follow, self.followed, self.selections = follow, 0, 0
        self.followed_events = {}
        self.follows_events = bool(follow) and "events" in follow
        if self.follows_events:
            self.followed_events = {(e["layer"], e["tokens"]): e["kept"] for e in follow["events"]}

    # -------------------------------------------------------------------------------------------- forward

    def prefill(self, tokens, probe):
        """All prompt rows through the full cache; then each layer is cut. Returns the logits of every prompt row."""
        model, n = self.model, len(tokens)
        positions = np.arange(n + len(probe))
        x = model.embed(list(tokens) + list(probe))
        for layer in range(model.num_layers):
            q, k, v = model.qkv(layer, x, positions)
            attended = np.zeros((len(x), model.heads, model.dim))
            for h in range(model.heads):
                kv = h // model.group
                a = softmax(model.logits_of(layer, q[:, h], positions, k[:, kv], positions))
                attended[:, h] = a @ v[:, kv]
                if self.s["policy"] == "h2o":
                    sums = a[:n, :n].sum(axis=0) / model.group
                    if h % model.group == 0:
                        self.heads[layer][kv].sums = list(sums)
                    else:
                        self.heads[layer][kv].sums = list(np.array(self.heads[layer][kv].sums) + sums)
            for kv, head in enumerate(self.heads[layer]):
                head.k, head.v, head.pos = list(k[:n, kv]), list(v[:n, kv]), list(range(n))
                head.sums = head.sums or [0.0] * n
            self.queries[layer] = [(p, q[p]) for p in range(max(0, n - self.s["window"]), n)]
            self.last_event[layer] = n
            self.cut_layer(layer, n, [(int(p), q[p]) for p in positions[n:]], is_prefill=True)
            x = model.finish_layer(layer, x, attended.reshape(len(x), -1))
        return model.logits(x[:n])

    def step(self, token, position):
        """One token through the decode path; its logits [V]."""
        model = self.model
        x = model.embed([token])
        for layer in range(model.num_layers):
            q, k, v = model.qkv(layer, x, [position])
            attended = np.zeros((model.heads, model.dim))
            for kv, head in enumerate(self.heads[layer]):
                head.k.append(k[0, kv])
                head.v.append(v[0, kv])
                head.pos.append(position)
                head.sums.append(0.0)
                keys, values = np.array(head.k), np.array(head.v)
                for h in range(kv * model.group, (kv + 1) * model.group):
                    a = softmax(model.logits_of(layer, q[:, h], [position], keys, head.pos))
                    attended[h] = (a @ values)[0]
            self.queries[layer] = (self.queries[layer] + [(position, q[0])])[-self.s["window"] :]
            self.cut_layer(layer, position + 1, [], is_prefill=False)
            x = model.finish_layer(layer, x, attended.reshape(1, -1))
        return model.logits(x)[0]

    def run(self):
        compress_at = self.s["compress_at"]
        first = len(self.prompt) if not compress_at or compress_at >= len(self.prompt) else compress_at
        probe = self.s["probe"] if isinstance(self.s["probe"], list) else []
        self.prompt_logits = self.prefill(self.prompt[:first], probe)
        logits = self.prompt_logits[-1]
        for position in range(first, len(self.prompt)):
            logits = self.step(self.prompt[position], position)
        tokens = []
        while len(tokens) < self.max_tokens:
            tokens.append(self.choose(logits, len(tokens)))
            if len(tokens) < self.max_tokens:
                logits = self.step(tokens[-1], len(self.prompt) + len(tokens) - 1)
        return {
            "tokens": tokens,
            "events": self.events,
            "followed": self.followed,
            "selections": self.selections,
            "differences": self.differences,
            "c_lh": self.c_lh.tolist(),
        }

    def choose(self, logits, index):
        best = int(np.argmax(logits))
        if self.follow and index < len(self.follow["tokens"]) and self.follow["tokens"][index] != best:
            theirs = self.follow["tokens"][index]
            if logits[best] - logits[theirs] <= 1e-3:
                self.followed += 1
                return theirs
            self.differences.append(f"token {index}: {best}, engine {theirs}, gap {logits[best] - logits[theirs]:.3g}")
        self.selections += 1
        return best

    # -------------------------------------------------------------------------------------------- eviction

    def cut_layer(self, layer, tokens, probe, is_prefill):
        plan, s, window = self.plan, self.s, self.model.windows[layer]
        if s["policy"] == "full" or plan.exact or (s["decode"] == "grow" and not is_prefill):
            return
        heads, c_lh = self.heads[layer], self.c_lh[layer]
        grow = s["decode"] == "grow"
        due = [len(h.pos) > c if grow else len(h.pos) >= c for h, c in zip(heads, c_lh)]
        if not any(due):
            return
        if window and plan.budget >= window + plan.stride:  # only rows outside the window go: no selection
            for head, c, d in zip(heads, c_lh, due):
                if d:
                    self.drop_oldest(head, layer, c)
            return
        stagger = layer * plan.stride // self.model.num_layers

        def target(head, c):
            return c if grow else c - plan.stride + (0 if head.is_cut else stagger)

        arrays, drift_of = self.score_layer(layer, due, probe, is_prefill, target)
        protect = [self.protected_rows(head, layer, tokens) for head in heads]
        if s["allocation"] == "ada" and is_prefill and not window:
            self.c_lh[layer] = c_lh = self.share(arrays, protect, [plan.budget] * len(heads))
        theirs = self.followed_events.get((layer, tokens))
        kept_of_layer = []
        for kv, head in enumerate(heads):
            n = len(head.pos)
            if not due[kv]:
                kept_of_layer.append(list(head.pos))
                continue
            keep = min(n, target(head, c_lh[kv]))
            order = order_of(arrays[kv], *protect[kv])
            kept = sorted(int(j) for j in np.argsort(order, kind="stable")[:keep])
            self.selections += 1
            if theirs is not None:
                kept = self.follow_rows(layer, tokens, kv, kept, arrays[kv], theirs[kv])
            pins = plan.pins(plan.budget)
            if is_prefill and not window and pins and keep < n:
                m = len(arrays[kv])
                new = [j for j in kept if not protect[kv][0][j] and order[j] % m != 0]
                head.pins = {head.pos[j] for j in sorted(new, key=lambda j: order[j])[:pins]}
            if s["policy"] == "h2o":
                head.sums = list(arrays[kv][0])
            head.keep(kept)
            head.is_cut = True
            assert len(head.pos) <= c_lh[kv] and all(a < b for a, b in zip(head.pos, head.pos[1:]))
            kept_of_layer.append(list(head.pos))
        self.last_event[layer] = tokens
        self.events.append({"layer": layer, "tokens": tokens, "kept": [[int(p) for p in k] for k in kept_of_layer]})
        if self.follows_events and theirs is None:
            self.differences.append(f"layer {layer}, {tokens} tokens: the engine cut nothing")

    def drop_oldest(self, head, layer, c):
        stagger = layer * self.plan.stride // self.model.num_layers
        keep = c - self.plan.stride + (0 if head.is_cut else stagger)
        head.keep(range(len(head.pos) - keep, len(head.pos)))
        head.is_cut = True

    def protected_rows(self, head, layer, tokens):
        s, n, window = self.s, len(head.pos), self.model.windows[layer]
        ends = (len(self.prompt) - s["pin_tail"], len(self.prompt)) if s["pin_tail"] else (0, 0)
        recent = self.plan.recent(self.plan.budget)
        protected, dead = [], []
        for j, p in enumerate(head.pos):
            first = 0 if window else max(self.plan.sinks(), s["pin_head"])
            is_end = not window and ends[0] <= p < ends[1]
            protected.append(p < first or is_end or p in head.pins or j >= n - recent)
            dead.append(bool(window) and p <= tokens - window)
        return protected, dead

    def share(self, arrays, protect, budgets):
        """Heads share the sum of the budgets by the first scores; ties the lower head, then newer rows."""
        plan = self.plan
        cut = 1 if self.s["decode"] == "grow" else plan.stride
        floor = min(plan.budget, max(math.ceil(0.2 * plan.budget), plan.protected(plan.budget) + cut))
        shares, candidates = [], []
        for kv, (scores, (protected, dead)) in enumerate(zip(arrays, protect)):
            ranks = ranks_of(scores[0], protected, dead)
            mandatory = min(len(ranks), max(floor, sum(p and not d for p, d in zip(protected, dead))))
            shares.append(mandatory)
            for j in range(len(ranks)):
                if ranks[j] >= mandatory:
                    score = scores[0][j] if np.isfinite(scores[0][j]) else np.inf
                    candidates.append((-score, kv, -j))
        for _, kv, _ in sorted(candidates)[: max(0, sum(budgets) - sum(shares))]:
            shares[kv] += 1
        return np.array(shares)

    def follow_rows(self, layer, tokens, kv, kept, arrays, theirs):
        head = self.heads[layer][kv]
        index = {p: j for j, p in enumerate(head.pos)}
        rows = sorted(index[p] for p in theirs if p in index)
        if rows == kept:
            return kept
        mine, other = set(kept) - set(rows), set(rows) - set(kept)

        def close(a, b):
            return any(abs(x[a] - x[b]) <= 1e-4 * max(abs(x[a]), abs(x[b])) for x in arrays)

        is_close = len(rows) == len(theirs) == len(kept) and all(any(close(a, b) for b in other) for a in mine)
        if is_close and all(any(close(a, b) for a in mine) for b in other):
            self.followed += 1
            return rows
        self.differences.append(
            f"layer {layer}, head {kv}, {tokens} tokens: only here {[head.pos[j] for j in sorted(mine)]}, "
            f"only there {[head.pos[j] for j in sorted(other)]}, {len(kept)} and {len(theirs)} rows"
        )
        return kept

    def score_layer(self, layer, due, probe, is_prefill, target):
        """The score arrays of every KV head, best first is kept; and nothing else."""
        s, model, plan = self.s, self.model, self.plan
        policy, heads, arrays = s["policy"], self.heads[layer], []
        ring = self.queries[layer]
        if policy == "tova":
            ring = ring[-1:]
        if policy == "h2o":
            ring = [] if is_prefill else [r for r in ring if r[0] >= self.last_event[layer]]
        for kv, head in enumerate(heads):
            n = len(head.pos)
            if policy == "streamingllm":
                arrays.append([np.array(head.pos, float)])
            elif policy == "random":
                arrays.append([np.array([hash_of(layer, kv, p) for p in head.pos])])
            elif policy == "lacache":
                arrays.append([self.ladder(layer, n)])
            elif policy in ("tova", "h2o") + SNAPKV:
                total = np.array(head.sums) if policy == "h2o" else np.zeros(n)
                for a in self.attention(layer, kv, ring):
                    total = total + a.sum(axis=0) / model.group
                arrays.append([total])
            else:
                arrays.append([self.indicator(layer, kv, ring, s)])
        if policy == "tova":
            mean = np.mean([a[0] for a in arrays], axis=0)
            arrays = [[mean] for _ in arrays]
        if not is_prefill or not (policy == "restkv" or policy in SNAPKV):
            return arrays, None
        for kv, head in enumerate(heads):
            raw, recent = arrays[kv][0], plan.recent(plan.budget)
            kernel = s["kernel"]
            if s["pool"] in ("forward", "half_forward"):
                free = plan.budget - s["sinks"] - s["window"]
                kernel = kernel or min(7 if plan.budget < 128 else 13, max(1, free // 4))
                best = forward_max(raw, kernel)
                arrays[kv] = [raw, best] if s["pool"] == "half_forward" else [best]
            elif s["pool"] != "none":
                kernel = kernel or 5
                drift = 0.0
                if s["pool"] == "adaptive":
                    top = max(1, target(head, self.c_lh[layer][kv]) - recent)
                    drift = self.drift(layer, kv, ring, top)
                arrays[kv] = [pooled(raw, s["pool"], kernel, recent, drift, s["scale"])]
            else:
                kernel = kernel or 5
            if probe and policy == "restkv":
                errors = self.indicator(layer, kv, probe, {**s, "indicator": "query", "reduce": "max"})
                arrays[kv].append(forward_max(errors, kernel))
        return arrays, None

    def attention(self, layer, kv, queries):
        """A [Q, n] of each query head of the group over the head's rows."""
        model, head = self.model, self.heads[layer][kv]
        if not queries:
            return []
        positions, keys = [p for p, _ in queries], np.array(head.k)
        return [
            softmax(model.logits_of(layer, np.array([q[h] for _, q in queries]), positions, keys, head.pos))
            for h in range(kv * model.group, (kv + 1) * model.group)
        ]

    def indicator(self, layer, kv, queries, s):
        model, values = self.model, np.array(self.heads[layer][kv].v)
        errors = []
        for g, a in enumerate(self.attention(layer, kv, queries)):
            w = model.head_projection(layer, kv * model.group + g) if s["output_projection"] else np.eye(model.dim)
            a = a[a.sum(axis=1) > 0]  # queries that see nothing are skipped
            if s["indicator"] == "query":
                errors.append(over_queries(removal_errors(a, values, w, s), s))
                continue
            scored = max(0, len(values) - s["window"])
            mean = over_queries(a[:, :scored], s)
            o = mean @ values[:scored]
            with np.errstate(divide="ignore", invalid="ignore"):
                e = mean / (1 - mean) * np.linalg.norm((o - values[:scored]) @ w.T, axis=-1) ** s["tau"]
            errors.append(np.concatenate([e, np.zeros(len(values) - scored)]))
        return group_of(errors, s["group"])

    def drift(self, layer, kv, queries, top):
        """Mean index of the `top` rows of A: earlier half of the queries minus later half, mean over the group."""
        half, total = len(queries) // 2, 0.0
        attention = self.attention(layer, kv, queries)
        for a in attention:
            index = [np.mean(sorted(range(len(row)), key=lambda j: (row[j], j), reverse=True)[:top]) for row in a]
            total += np.mean(index[:half]) - np.mean(index[-half:]) if half else 0.0
        return total / len(attention)

    def ladder(self, layer, n):
        """lacache: the rows between the first and the newest in equal ranges; a layer's own range, then newer rows."""
        layers = self.model.num_layers
        span = min(16, max(1, layers // 2))
        ranges = -(-layers // span)
        first, last = self.plan.sinks(), n - self.plan.recent(self.plan.budget)
        scores = np.full(n, 2.0 * n)
        for j in range(first, last):
            i = (j - first) * ranges // (last - first)
            begin = min(i * span, layers - span)
            own = begin <= layer < begin + span
            scores[j] = (n if own else 0) + j - first
        return scores


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--tokens", required=True, help="ids of the prompt, comma separated, or @FILE with a JSON list")
    parser.add_argument("--max-tokens", type=int, default=200)
    parser.add_argument("--cache", default="{}", help="the `cache` object as JSON")
    parser.add_argument("--allocation", help="allocation file (budgets, rows)")
    parser.add_argument("--follow", help="the engine's output to compare with")
    args = parser.parse_args()

    def load(path):
        with open(path) as file:
            return json.load(file)

    tokens = load(args.tokens[1:]) if args.tokens.startswith("@") else [int(t) for t in args.tokens.split(",")]
    table = load(args.allocation) if args.allocation else None
    follow = load(args.follow) if args.follow else None
    sequence = Sequence(Model(args.model), tokens, args.max_tokens, json.loads(args.cache), table, follow)
    result = sequence.run()
    json.dump(result, sys.stdout)
    print()
    return 1 if result["differences"] or result["followed"] > 0.01 * max(1, result["selections"]) else 0


if __name__ == "__main__":
    sys.exit(main())
