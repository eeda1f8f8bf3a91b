"""Which genes become the channels of one crop: the rules, on arrays alone.

A rule is a function ``(view, n, rng) -> columns`` that picks ``n`` of the columns ``view.genes`` of a library's store. It is called only where
a library measures more than ``n`` genes of the vocabulary; otherwise all of them are channels. To add one, decorate it with
:func:`channel_rule`; that is the only file to edit.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import scipy.sparse as sp
from numba import njit

from stimg._core.registry import Registry
from stimg.image.store import SparseWindow

TARGET = 1e4
"""Total to which a spot's counts are scaled before log1p."""
FLOOR = 1e-10
"""Smallest weight of a gene in the weighted draw."""
_TABLE = 8


@dataclass
class CropView:
    """What a rule may look at: which columns can be chosen, and the values of the window, which are read only when asked for.

    Parameters
    ----------
    genes
        Columns of the store that can become channels, int64, in the order of the vocabulary.
    n_vars
        Number of columns of the store.
    row
        Row of the store's table at each pixel, integer (height * width,), -1 where there is no observation.
    depth
        Total counts of every pixel, float32 (height * width,).
    read
        Reads the non-zero values of the window, for all columns, sorted by gene.
    spots
        The same values as CSR (rows of the table, columns of the store), where the library keeps them and no two observations share a pixel.
    counts
        Whether the values are raw counts.
    """

    genes: np.ndarray
    n_vars: int
    row: np.ndarray
    depth: np.ndarray
    read: Callable[[], SparseWindow]
    spots: sp.csr_matrix | None = None
    counts: bool = True

    @cached_property
    def hits(self) -> SparseWindow:
        """The non-zero values: pixel ``y * width + x``, column of the store, value; sorted by column."""
        return self.read()

    @cached_property
    def variance(self) -> np.ndarray:
        """Variance of every column of the store over the observations of the crop, float64 (n_vars,).

        Counts are scaled to 10,000 per spot and log1p-transformed first; other values are taken as they are. Pixels without an observation
        do not count, observations without a hit count as zero. The variance is that of the population: divided by the number of observations.
        """
        n_seen = int(np.count_nonzero(self.row >= 0))
        if n_seen == 0:
            return np.zeros(self.n_vars)
        scale, table = _scales(self.depth, self.counts)
        if self.spots is not None:
            moments = _moments_of_spots(
                self.spots.indptr, self.spots.indices, self.spots.data, self.row, self.n_vars, scale, table, self.counts
            )
        else:
            moments = _moments_of_hits(*self.hits, self.n_vars, scale, table, self.counts)
        mean = moments[:, 0] / n_seen
        return np.maximum(moments[:, 1] / n_seen - mean * mean, 0.0)


Rule: TypeAlias = Callable[[CropView, int, np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class ChannelRule:
    """A rule by name; ``draws`` is False where it takes every gene that it may take."""

    name: str
    choose: Rule
    draws: bool = True


channel_rules: Registry[ChannelRule] = Registry("channel rule")


def channel_rule(name: str, *, draws: bool = True) -> Callable[[Rule], Rule]:
    """Return a decorator that registers a function as the channel rule ``name``."""

    def add(function: Rule) -> Rule:
        channel_rules.add(name, ChannelRule(name, function, draws))
        return function

    return add


def _scales(depth: np.ndarray, counts: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the factor of each pixel and log1p of its first multiples, since most counts are 1 or 2."""
    if not counts:
        return np.ones(1), np.zeros((1, 1))
    deep = depth.astype(np.float64)
    scale = np.divide(TARGET, deep, out=np.zeros(len(deep)), where=deep > 0)
    return scale, np.log1p(np.arange(_TABLE) * scale[:, None])


@njit(cache=True, nogil=True)
def _moments_of_hits(
    pixel: np.ndarray, gene: np.ndarray, value: np.ndarray, n_vars: int, scale: np.ndarray, table: np.ndarray, counts: bool
) -> np.ndarray:  # pragma: no cover
    """Return the sum and the sum of squares of every column, float64 (n_vars, 2)."""
    out = np.zeros((n_vars, 2))
    for i in range(gene.shape[0]):
        raw = value[i]
        x = float(raw)
        if counts:
            k = np.int64(raw)
            if k == raw and 0 <= k < _TABLE:
                x = table[pixel[i], k]
            else:
                x = np.log1p(x * scale[pixel[i]])
        out[gene[i], 0] += x
        out[gene[i], 1] += x * x
    return out


@njit(cache=True, nogil=True)
def _moments_of_spots(
    indptr: np.ndarray,
    indices: np.ndarray,
    data: np.ndarray,
    row: np.ndarray,
    n_vars: int,
    scale: np.ndarray,
    table: np.ndarray,
    counts: bool,
) -> np.ndarray:  # pragma: no cover
    """Return the same as :func:`_moments_of_hits`, in the same order of addition, from the rows of the pixels."""
    out = np.zeros((n_vars, 2))
    for p in range(row.shape[0]):
        if row[p] < 0:
            continue
        for i in range(indptr[row[p]], indptr[row[p] + 1]):
            raw = data[i]
            x = float(raw)
            if counts:
                k = np.int64(raw)
                if k == raw and 0 <= k < _TABLE:
                    x = table[p, k]
                else:
                    x = np.log1p(x * scale[p])
            out[indices[i], 0] += x
            out[indices[i], 1] += x * x
    return out


@channel_rule("weighted")
def weighted(view: CropView, n: int, rng: np.random.Generator) -> np.ndarray:
    """Return ``n`` columns drawn without replacement with probability proportional to their variance in the crop.

    The rule of Zhu et al. 2026 (arXiv:2603.13432): algorithm A-Res of Efraimidis and Spirakis (2006) with weights ``v = max(variance, 1e-10)``
    keeps the ``n`` largest keys ``u ** (1 / v)``. The keys are compared as ``log(u) / v``, because the power underflows for small ``v``;
    ``-log(u)`` is drawn directly as a standard exponential variate.
    """
    v = np.maximum(view.variance[view.genes], FLOOR)
    waiting = rng.standard_exponential(len(v)) / v
    return view.genes[np.argpartition(waiting, n - 1)[:n]]


@channel_rule("variance")
def variance(view: CropView, n: int, rng: np.random.Generator) -> np.ndarray:
    """Return the ``n`` columns with the largest variance in the crop; of equal ones, those first in the vocabulary."""
    return view.genes[np.argsort(-view.variance[view.genes], kind="stable")[:n]]


@channel_rule("uniform")
def uniform(view: CropView, n: int, rng: np.random.Generator) -> np.ndarray:
    """Return ``n`` columns drawn without replacement, each with the same probability."""
    return rng.choice(view.genes, size=n, replace=False, shuffle=False)


@channel_rule("all", draws=False)
def everything(view: CropView, n: int, rng: np.random.Generator) -> np.ndarray:
    """Return every column that can become a channel."""
    return view.genes


@channel_rule("fixed", draws=False)
def fixed(view: CropView, n: int, rng: np.random.Generator) -> np.ndarray:
    """Return the columns of the list given to the dataset, which are then the only ones that can become channels."""
    return view.genes


@njit(cache=True, nogil=True)
def pack(
    pixel: np.ndarray, value: np.ndarray, start: np.ndarray, stop: np.ndarray, ids: np.ndarray, place: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # pragma: no cover
    """Return (pixel int64, channel int64, value float32) of the chosen genes, sorted by pixel, then channel.

    Gene ``j`` has its hits at ``start[j]:stop[j]`` of ``pixel`` and ``value`` and becomes channel ``ids[j]`` (ascending); pixel ``p`` moves to ``place[p]``.
    """
    at = np.zeros(place.shape[0] + 1, dtype=np.int64)
    for j in range(start.shape[0]):
        for i in range(start[j], stop[j]):
            at[place[pixel[i]] + 1] += 1
    for p in range(place.shape[0]):
        at[p + 1] += at[p]
    n = at[place.shape[0]]
    out_pixel = np.empty(n, dtype=np.int64)
    out_channel = np.empty(n, dtype=np.int64)
    out_value = np.empty(n, dtype=np.float32)
    for j in range(start.shape[0]):
        for i in range(start[j], stop[j]):
            p = place[pixel[i]]
            k = at[p]
            out_pixel[k] = p
            out_channel[k] = ids[j]
            out_value[k] = value[i]
            at[p] = k + 1
    return out_pixel, out_channel, out_value


@njit(cache=True, nogil=True)
def pack_spots(
    indptr: np.ndarray, indices: np.ndarray, data: np.ndarray, row: np.ndarray, moved: np.ndarray, ids: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # pragma: no cover
    """Return the same as :func:`pack` from the rows of the pixels, where the columns stand in the order of the vocabulary.

    New pixel ``q`` is old pixel ``moved[q]``; column ``g`` becomes channel ``ids[g]``, -1 for one that is not chosen.
    """
    n = 0
    for p in range(row.shape[0]):
        if row[p] >= 0:
            for i in range(indptr[row[p]], indptr[row[p] + 1]):
                n += ids[indices[i]] >= 0
    out_pixel = np.empty(n, dtype=np.int64)
    out_channel = np.empty(n, dtype=np.int64)
    out_value = np.empty(n, dtype=np.float32)
    k = 0
    for q in range(moved.shape[0]):
        r = row[moved[q]]
        if r < 0:
            continue
        for i in range(indptr[r], indptr[r + 1]):
            channel = ids[indices[i]]
            if channel >= 0:
                out_pixel[k] = q
                out_channel[k] = channel
                out_value[k] = data[i]
                k += 1
    return out_pixel, out_channel, out_value
