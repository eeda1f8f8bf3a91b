"""Transformers in plain numpy, one observation at a time, without padding tricks."""

import numpy as np
import pytest


def _norm(x, weights, name, eps):
    centred = x - x.mean(axis=1, keepdims=True)
    spread = np.sqrt((centred**2).mean(axis=1, keepdims=True) + eps)
    return centred / spread * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def _attention(x, keys, weights, n_heads):
    width = x.shape[1] // n_heads
    q, k, v = (
        x @ w.T + b
        for w, b in zip(np.split(weights["self_attn.in_proj_weight"], 3), np.split(weights["self_attn.in_proj_bias"], 3), strict=True)
    )
    out = np.zeros_like(x)
    for head in range(n_heads):
        own = slice(head * width, (head + 1) * width)
        for i in range(len(x)):
            score = np.exp([q[i, own] @ k[j, own] / np.sqrt(width) for j in keys])
            out[i, own] = sum(s * v[j, own] for s, j in zip(score / score.sum(), keys, strict=True))
    return out @ weights["self_attn.out_proj.weight"].T + weights["self_attn.out_proj.bias"]


def _dense_layer(x, weights, *, n_heads, eps, keys=None):
    """Return one layer with normalisation after each part; positions outside ``keys`` are not attended to."""
    x = _norm(x + _attention(x, range(len(x)) if keys is None else keys, weights, n_heads), weights, "norm1", eps)
    hidden = np.maximum(x @ weights["linear1.weight"].T + weights["linear1.bias"], 0)
    return _norm(x + hidden @ weights["linear2.weight"].T + weights["linear2.bias"], weights, "norm2", eps)


@pytest.fixture(scope="session")
def dense_layer():
    return _dense_layer


@pytest.fixture(scope="session")
def dense_norm():
    return _norm


@pytest.fixture(scope="session")
def part_of():
    """Weights whose names begin with a stem, without it, as float64."""
    return lambda weights, stem: {k.removeprefix(stem): np.asarray(v, dtype=np.float64) for k, v in weights.items() if k.startswith(stem)}
