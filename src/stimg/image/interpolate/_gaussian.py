"""Gaussian-weighted means, with the bandwidth that predicts single known places best from the others."""

from collections.abc import Sequence

import numpy as np
from scipy.spatial import KDTree

from stimg.image.interpolate._arrays import Interpolated, checked, reading_order
from stimg.image.interpolate._weights import scaled_rows

BANDWIDTHS = (0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0)
"""Bandwidths among which is chosen, in pitches."""
ROWS = 4096
"""Places whose weights are in memory at a time, and most known places, evenly through the section, that are left out to choose by."""
REACH = 4.0
"""Bandwidths beyond which a weight is taken as 0, relative to that of the nearest known place."""


def gaussian(known: np.ndarray, values: np.ndarray, wanted: np.ndarray, *, bandwidths: Sequence[float] = BANDWIDTHS) -> Interpolated:
    """Return Gaussian-weighted means; one bandwidth for all genes, and each gene's variance, come from leaving single places out.

    Notes
    -----
    The bandwidth has the least squared error, relative to each gene's variance and summed over genes.
    """
    known, values, wanted = checked(known, values, wanted, least=2)
    chosen, error = best_bandwidth(known, values, bandwidths)
    out = gaussian_mean(known, values, wanted, chosen)
    return Interpolated(out, np.tile(error, (len(out), 1)))


def best_bandwidth(known: np.ndarray, values: np.ndarray, bandwidths: Sequence[float] = BANDWIDTHS) -> tuple[float, np.ndarray]:
    """Return the bandwidth with the least leave-one-out error, and this squared error of each gene, float64 (genes,)."""
    order = reading_order(known)
    left = order[np.unique(np.linspace(0, len(known) - 1, min(len(known), ROWS)).astype(np.int64))]
    variance = values.var(axis=0)
    varies = variance > 0
    errors = [((gaussian_mean(known, values, known[left], h, left) - values[left]) ** 2).mean(axis=0) for h in bandwidths]
    best = int(np.argmin([(e[varies] / variance[varies]).sum() for e in errors]))
    return float(bandwidths[best]), errors[best]


def gaussian_mean(known: np.ndarray, values: np.ndarray, wanted: np.ndarray, bandwidth: float, own: np.ndarray | None = None) -> np.ndarray:
    r"""Return means of ``values`` with weights :math:`\exp(-d^2 / 2 h^2)` (Nadaraya 1964; Watson 1964), float64 (wanted places, genes).

    Relative to the nearest place, weights below :math:`\exp(-8)` are left out, so that some weight is left, however small the bandwidth. ``own`` names
    for each wanted place the known one that must not count.
    """
    tree, out = KDTree(known), np.empty((len(wanted), values.shape[1]))
    for start in range(0, len(wanted), ROWS):
        block = wanted[start : start + ROWS]
        first = tree.query(block, k=[1 if own is None else 2])[0][:, 0]
        near = tree.query_ball_point(block, np.sqrt(first**2 + (REACH * bandwidth) ** 2))
        rows = np.repeat(np.arange(len(near)), [len(group) for group in near])
        columns = np.concatenate(near).astype(np.int64)
        if own is not None:
            other = columns != own[start : start + ROWS][rows]
            rows, columns = rows[other], columns[other]
        square = ((block[rows] - known[columns]) ** 2).sum(axis=1)
        weight = np.exp((first[rows] ** 2 - square) / (2 * bandwidth**2))
        out[start : start + ROWS] = scaled_rows(rows, columns, weight, (len(block), len(known))) @ values
    return out
