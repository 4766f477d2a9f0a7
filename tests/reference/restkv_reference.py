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
from reference_budget import Plan, SNAPKV, settings_of
from reference_scores import forward_max, group_of, hash_of, order_of, over_queries, pooled, ranks_of, removal_errors


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
