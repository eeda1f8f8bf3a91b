"""What the network starts from: kriging of principal components, and of each gene by itself, with noise by depth. Loads no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import scipy.sparse as sp
from scipy.spatial import KDTree

from stimg.model._s2s_kriging import choose, kriging, left_out

TIED = 9
"""Equally near spots among which the first is taken as the nearest; a lattice has at most 8 at one small distance."""
POOLED = 400
"""Genes, evenly among all, that choose the range and noise with which each gene is kriged by itself."""
EXACT = 400
"""Rows or columns up to which components are computed exactly."""
FACTS = ("log mean", "noise", "explained by components", "explained by kriged components", "explained by all")
"""Of each gene, from the known spots alone: log counts per 10,000; part of the variance that counting adds; R² of the components of ``SCALES[-1]``, and
leave-one-out R² of the same kriged, and of the mean of all kriged maps."""
SCALES = ("plain", "spread", "noise")
"""What values are divided by before components are taken: nothing, the spread of each gene, or the deviation that counting adds."""
TENTH = 10.0
"""What maps that are not standardised are divided by."""
N_MAPS = 3


@dataclass(frozen=True)
class Base:
    """Maps of all genes of a window from its known spots, as factors; n known spots, m places, G genes.

    Attributes
    ----------
    mean, spread
        What is taken from the known values, and what they are divided by, (G,).
    level
        The weighted mean of the known values in these units, (G,): what components are about.
    loadings, scores
        Several sets of components, (k, G) each, and their kriged scores, (m, k) each; none without kriging.
    weights
        Of the known spots at each place, (m, n): kriging of each gene by itself, or the nearest spot.
    variance
        Variance of kriging relative to that of the field, (m,): how far the nearest data are.
    facts
        What is known of each gene, float32 (G, 5): see :data:`FACTS`.
    depth
        Relative depth of the known spots, (n,).
    """

    mean: np.ndarray
    spread: np.ndarray
    level: np.ndarray
    loadings: tuple[np.ndarray, ...]
    scores: tuple[np.ndarray, ...]
    weights: Any
    variance: np.ndarray
    facts: np.ndarray
    depth: np.ndarray

    def units(self, values: np.ndarray, genes: np.ndarray) -> np.ndarray:
        """Return values (spots, len(genes)) about the mean in units of the spread, float32 (len(genes), spots)."""
        return ((values - self.mean[genes]) / self.spread[genes]).T.astype(np.float32)

    def maps(self, known: np.ndarray, genes: np.ndarray) -> np.ndarray:
        """Return the maps of ``genes`` from :meth:`units`, float32 (len(genes), 3, m): what the cascade starts from, and less that two others.

        It starts from the mean of all kriged maps, of every set of components and of the gene by itself. The others are the last set of components,
        and the gene by itself.
        """
        own = self.alone(known)
        if not self.loadings:
            return np.stack([own, np.zeros_like(own), np.zeros_like(own)], axis=1)
        pairs = zip(self.scores, self.loadings, strict=True)
        sets = [(t @ (p[:, genes] / self.spread[genes]) + self.level[genes]).T.astype(np.float32) for t, p in pairs]
        start = (sum(sets) + own) / (len(sets) + 1)
        return np.stack([start, sets[len(SCALES) - 1] - start, own - start], axis=1)

    def alone(self, known: np.ndarray) -> np.ndarray:
        """Return the maps of known values (g, n) by ``weights`` alone, float32 (g, m)."""
        return np.ascontiguousarray((self.weights @ known.T).T, dtype=np.float32)


def noise_variance(mean_counts: np.ndarray) -> np.ndarray:
    r"""Return the variance that counting adds to log(1 + counts per 10,000) of a spot with 10,000 counts: :math:`c / (1 + c)^2`, c the mean, by the delta method."""
    return mean_counts / (1.0 + mean_counts) ** 2


def relative_depth(counts: np.ndarray, typical: float | None = None) -> np.ndarray:
    """Return counts relative to ``typical`` (None: their median), between 0.05 and 20."""
    counts = np.maximum(np.asarray(counts, dtype=np.float64), 1.0)
    return np.clip(counts / (np.median(counts) if typical is None else typical), 0.05, 20.0)


def fit(
    points: np.ndarray,
    values: np.ndarray,
    counts: np.ndarray,
    wanted: np.ndarray,
    *,
    kind: str = "kriging",
    n_components: int = 20,
    count_aware: bool = True,
    standardise: bool = True,
    axes: np.ndarray | None = None,
) -> Base:
    """Return maps at ``wanted`` (m, 2) of ``values`` (n, G) known at ``points`` (n, 2).

    Parameters
    ----------
    points, wanted
        Places in units of the distance between neighbours.
    values
        Log1p counts per 10,000.
    counts
        Counts of each spot, (n,): its noise variance is proportional to their inverse.
    kind
        ``"kriging"``, ``"nearest"`` or ``"none"``.
    n_components
        Most components; at most a third of the known spots.
    count_aware
        Whether depth is heeded; otherwise all spots are equally noisy.
    standardise
        Whether maps are about the mean and in units of the spread, or divided by 10.
    axes
        Components that other sections share, (k, G), as one more set; None: there are none.
    """
    typical = float(np.median(np.maximum(counts, 1.0)))
    depth = relative_depth(counts) if count_aware else np.ones(len(points))
    share = depth / depth.sum()
    n_genes = values.shape[1]
    average = share @ values
    centred = values - average
    total = share @ centred**2
    deviation = np.where(total > 1e-12, np.sqrt(np.maximum(total, 1e-12)), 1.0)
    mean, spread = (average, deviation) if standardise else (np.zeros(n_genes), np.full(n_genes, TENTH))
    level = (average - mean) / spread
    cp10k = share @ np.expm1(values)
    noise = noise_variance(cp10k) * 1e4 / typical
    facts = np.zeros((n_genes, len(FACTS)), dtype=np.float32)
    facts[:, 0], facts[:, 1] = 0.3 * np.log(cp10k + 0.1), np.minimum(noise / deviation**2, 2.0)
    n, m = len(points), len(wanted)
    if kind != "kriging":
        apart, near = KDTree(points).query(wanted, k=min(TIED, n))
        first = np.where(apart <= apart[:, :1] * (1 + 1e-9), near, n).min(axis=1)
        weights = sp.csr_matrix((np.full(m, float(kind == "nearest")), (np.arange(m), first)), shape=(m, n))
        return Base(mean, spread, level, (), (), weights, 1.0 - np.exp(-apart[:, 0]), facts, depth)

    def explained(predicted: np.ndarray) -> np.ndarray:
        return np.clip(1.0 - share @ (centred - predicted) ** 2 / deviation**2, -0.5, 1.0)

    everywhere = np.concatenate([wanted, points])
    by = {"plain": np.ones(n_genes), "spread": deviation, "noise": np.sqrt(np.maximum(noise, 1e-6))}
    root, k = np.sqrt(depth), min(n_components, max(1, n // 3))
    sets = [components(centred / by[scale], root, k) for scale in SCALES]
    sets = [(loadings * by[scale], scores) for scale, (loadings, scores) in zip(SCALES, sets, strict=True)]
    if axes is not None:
        sets.append((axes, projected(centred / by["noise"], axes / by["noise"])))
    every = np.concatenate([scores for _, scores in sets], axis=1)
    kriged, again, variance = _kriged(points, depth, everywhere, every, choose(points, depth, every))
    ends = np.cumsum([0] + [scores.shape[1] for _, scores in sets])
    parts = [slice(a, b) for a, b in pairwise(ends)]
    some = np.unique(np.linspace(0, n_genes - 1, POOLED).astype(np.int64))
    (pair,) = np.unique(choose(points, depth, (centred / deviation)[:, some], pooled=True), axis=0)
    weights, _ = kriging(points, depth, everywhere, *pair)
    out = [again[:, part] @ loadings for part, (loadings, _) in zip(parts, sets, strict=True)]
    last = len(SCALES) - 1
    facts[:, 2], facts[:, 3] = explained(sets[last][1] @ sets[last][0]), explained(out[last])
    facts[:, 4] = explained((sum(out) + left_out(weights[m:], centred)) / (len(out) + 1))
    maps = tuple(loadings for loadings, _ in sets), tuple(kriged[:, part] for part in parts)
    return Base(mean, spread, level, *maps, weights[:m], variance, facts, depth)


def _kriged(
    points: np.ndarray, depth: np.ndarray, everywhere: np.ndarray, scores: np.ndarray, pairs: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return ``scores`` kriged at the places before the points in ``everywhere``, left out at the points, and the variance of the first column."""
    m = len(everywhere) - len(points)
    kriged, again, variance = np.empty((m, len(pairs))), np.empty_like(scores), np.ones(m)
    for pair in np.unique(pairs, axis=0):
        these = np.flatnonzero((pairs == pair).all(axis=1))
        weights, found = kriging(points, depth, everywhere, *pair)
        kriged[:, these] = weights[:m] @ scores[:, these]
        again[:, these] = left_out(weights[m:], scores[:, these])
        if 0 in these:
            variance = found[:m]
    return kriged, again, variance


def noise_scale(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the deviation that counting adds to each gene of a spot with the median of ``counts``, (G,)."""
    share = relative_depth(counts)
    cp10k = share @ np.expm1(values) / share.sum()
    return np.sqrt(np.maximum(noise_variance(cp10k) * 1e4 / float(np.median(np.maximum(counts, 1.0))), 1e-6))


def shared_axes(tables: Sequence[tuple[np.ndarray, np.ndarray]], k: int) -> np.ndarray:
    """Return components (k, G) of several sections, given as values (n, G) and counts (n,): of each about its own mean, in units of its noise."""
    scaled, roots, scales = [], [], []
    for values, counts in tables:
        depth = relative_depth(counts)
        scale = noise_scale(values, counts)
        scaled.append((values - depth @ values / depth.sum()) / scale)
        roots.append(np.sqrt(depth))
        scales.append(scale)
    return components(np.concatenate(scaled), np.concatenate(roots), k)[0] * np.exp(np.mean(np.log(scales), axis=0))


def projected(scaled: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """Return scores (n, k) by least squares of ``scaled`` (n, G) on ``axes`` (k, G)."""
    return np.linalg.lstsq(axes.T, scaled.T, rcond=None)[0].T


def components(centred: np.ndarray, root: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return loadings (k, G) and scores (n, k) of ``centred`` (n, G) whose rows count by the square of ``root``.

    Of large tables by subspace iteration from a fixed start (Halko et al. 2011), to within what noise leaves of the components.
    """
    scaled = root[:, None] * centred
    if min(scaled.shape) <= EXACT:
        loadings = np.linalg.svd(scaled, full_matrices=False)[2][:k]
    else:
        basis = np.random.default_rng(0).normal(size=(scaled.shape[1], k + 10))
        for _ in range(6):
            basis = np.linalg.qr(scaled.T @ (scaled @ basis))[0]
        loadings = np.linalg.svd(scaled @ basis, full_matrices=False)[2][:k] @ basis.T
    return loadings, centred @ loadings.T
