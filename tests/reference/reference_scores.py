"""What rows are worth, and in which order they stay: eviction_math.md, every formula over whole matrices, in double precision."""

import math

import numpy as np


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
