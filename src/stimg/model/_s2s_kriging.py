"""Ordinary kriging with noise by depth, its ranges by restricted maximum likelihood, and its leave-one-out values. Loads no torch."""

from typing import Any

import numpy as np
import scipy.sparse as sp
from scipy.spatial import KDTree
from scipy.spatial.distance import cdist

from stimg.image.interpolate import matern
from stimg.image.split import balanced_blocks

LENGTHS = (0.7, 1.0, 1.5, 2.2, 3.3, 5.0, 7.5, 11.0)
"""Ranges of the exponential covariance among which is chosen, in units of the distance between neighbours of the grid."""
NOISES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Variances of the noise of a spot of typical depth, relative to that of the field."""
WHOLE = 500
"""Most known spots that are kriged at once; above it each place is kriged from its nearest ``NEAR``."""
NEAR = 50
TOGETHER, MOST_BLOCKS = 400, 6
"""Points of a block behind the choice of range and noise, and how many blocks are looked at."""
BLOCK = 2048
"""Places whose systems of equations are in memory at a time."""


def choose(points: np.ndarray, depth: np.ndarray, values: np.ndarray, *, pooled: bool = False) -> np.ndarray:
    r"""Return range and relative noise of each column of ``values`` (n, k) by restricted maximum likelihood on a grid, (k, 2).

    The covariance is :math:`\sigma^2 (C_\ell + \tau \, \mathrm{diag}(1 / d))` with d the relative depth. Multiplied by :math:`\sqrt{d}` on both sides
    it has noise :math:`\tau I`, so that one eigendecomposition for each range serves all noises and columns. ``pooled``: one pair for all columns. More
    than ``TOGETHER`` points are taken as contiguous blocks that know nothing of each other, each with a mean and a variance of its own.
    """
    score = np.zeros((len(LENGTHS), len(NOISES), values.shape[1]))
    for block in _blocks(points):
        n, root, apart = len(block), np.sqrt(depth[block]), cdist(points[block], points[block])
        for i, length in enumerate(LENGTHS):
            found, axes = np.linalg.eigh(root[:, None] * matern(apart, length) * root[None])
            turned, one = axes.T @ (root[:, None] * values[block]), axes.T @ root
            for j, noise in enumerate(NOISES):
                precision = 1.0 / (np.maximum(found, 0) + noise)
                of_one = float((precision * one**2).sum())
                mean = (precision * one) @ turned / of_one
                square = precision @ (turned - one[:, None] * mean) ** 2
                score[i, j] -= 0.5 * ((n - 1) * np.log(np.maximum(square, 1e-30) / (n - 1)) - np.log(precision).sum() + np.log(of_one))
    if pooled:
        score = np.broadcast_to(score.mean(axis=2, keepdims=True), score.shape)
    best = score.reshape(-1, values.shape[1]).argmax(axis=0)
    return np.stack([np.asarray(LENGTHS)[best // len(NOISES)], np.asarray(NOISES)[best % len(NOISES)]], axis=1)


def _blocks(points: np.ndarray) -> list[np.ndarray]:
    """Return at most ``MOST_BLOCKS`` contiguous blocks of points, evenly among all; one where there are at most ``TOGETHER`` points."""
    if len(points) <= TOGETHER:
        return [np.arange(len(points))]
    label = balanced_blocks(points, -(-len(points) // TOGETHER))
    names = np.unique(label)
    some = names[np.unique(np.linspace(0, len(names) - 1, MOST_BLOCKS).astype(np.int64))]
    return [np.flatnonzero(label == name) for name in some]


def kriging(points: np.ndarray, depth: np.ndarray, wanted: np.ndarray, length: float, noise: float) -> tuple[Any, np.ndarray]:
    """Return the weights of ordinary kriging, (wanted, points), whose rows sum to 1, and the variance of the error relative to that of the field.

    Where there are more than ``WHOLE`` points the weights are sparse: of the nearest ``NEAR`` points alone.
    """
    if len(points) <= WHOLE:
        weight, variance = _solve(cdist(points, points)[None], (noise / depth)[None], cdist(wanted, points)[None], length)
        return weight[0], variance[0]
    tree, indices, parts, variances = KDTree(points), [], [], []
    for start in range(0, len(wanted), BLOCK):
        block = wanted[start : start + BLOCK]
        near = tree.query(block, k=NEAR)[1]
        there = points[near]
        apart = np.linalg.norm(there[:, :, None] - there[:, None], axis=-1)
        away = np.linalg.norm(there - block[:, None], axis=-1)
        weight, variance = _solve(apart, noise / depth[near], away[:, None], length)
        indices.append(near)
        parts.append(weight[:, 0])
        variances.append(variance[:, 0])
    index, data = np.concatenate(indices), np.concatenate(parts)
    rows = np.repeat(np.arange(len(wanted)), NEAR)
    return sp.csr_matrix((data.ravel(), (rows, index.ravel())), shape=(len(wanted), len(points))), np.concatenate(variances)


def _solve(apart: np.ndarray, noise: np.ndarray, away: np.ndarray, length: float) -> tuple[np.ndarray, np.ndarray]:
    """Return weights and variances of systems (s, n, n) with noise (s, n) at places whose distances to the points are (s, m, n)."""
    n_systems, n = noise.shape
    system = matern(apart, length)
    system[:, np.arange(n), np.arange(n)] += noise
    right = np.concatenate([matern(away, length), np.ones((n_systems, 1, n))], axis=1)
    solved = np.linalg.solve(system, right.swapaxes(1, 2)).swapaxes(1, 2)
    simple, one = solved[:, :-1], solved[:, -1:]
    of_one = one.sum(axis=2, keepdims=True)
    short = 1.0 - simple.sum(axis=2, keepdims=True)
    weight = simple + short / of_one * one
    variance = 1.0 - (simple * right[:, :-1]).sum(axis=2) + (short**2 / of_one)[..., 0]
    return weight, np.maximum(variance, 0.0)


def left_out(weights: Any, values: np.ndarray) -> np.ndarray:
    r"""Return what kriging says of each known spot without that spot: :math:`y_i - (y_i - (Wy)_i) / (1 - W_{ii})`."""
    own = weights.diagonal()
    return values - (values - weights @ values) / np.maximum(1.0 - own, 1e-6)[:, None]
