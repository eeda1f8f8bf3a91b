"""Smoothing on a graph of the known and the wanted places."""

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp
from scipy.sparse.linalg import splu

from stimg._core import validate
from stimg.image.interpolate._arrays import Interpolated, checked, reading_order
from stimg.image.interpolate._weights import k_nearest_weights

STRENGTHS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Strengths of smoothing among which is chosen."""
NEIGHBOURS = 6
LEFT_OUT = 512
"""Most known places, evenly through the section, that are left out to choose by."""
ANCHOR = 1e-6
"""Weight that draws every place to the mean, so that places that no known one reaches have a value."""
SMALL = 1e-9
"""Least share of a known place that is not its own, in leaving it out."""


def laplacian(
    known: np.ndarray,
    values: np.ndarray,
    wanted: np.ndarray,
    *,
    strengths: Sequence[float] = STRENGTHS,
    k: int = NEIGHBOURS,
    noise: np.ndarray | None = None,
) -> Interpolated:
    r"""Return the smoothest values on a graph that stay near the known ones; the strength, and each gene's variance, by leaving single places out.

    .. math:: \min_f \sum_{i\;\mathrm{known}} w_i (y_i - f_i)^2 + \alpha \, f^\top L f, \quad L = \mathrm{diag}(A 1) - A

    Parameters
    ----------
    known, values, wanted
        As for :func:`kriging`.
    strengths
        Candidates for :math:`\alpha`; the one with the least squared error, relative to each gene's variance, is taken for all genes.
    k
        Neighbours of each known or wanted place; those at the k-th distance share the places that are left.
    noise
        (n,), variance of the noise of each known place, whose inverse is w; default: the same everywhere.

    Notes
    -----
    Leaving out is exact, ``(y - f)_i / (1 - w_i H_ii)`` with H the inverse of the system (Golub, Heath and Wahba 1979, Technometrics 21, 215-223). The
    matrix is sparse, so time and memory grow little faster than the number of places. The graph has the wanted places too: a value depends a
    little on which others are asked for.
    """
    known, values, wanted = checked(known, values, wanted, least=3)
    k = validate.whole(k, "k")
    n, places = len(known), np.concatenate([known, wanted])
    graph = adjacency(places, min(k, len(places) - 1))
    weight = np.ones(n) if noise is None else np.median(noise) / np.asarray(noise, dtype=np.float64)
    middle, variance = values.mean(axis=0), values.var(axis=0)
    varies = variance > 0
    system = sp.diags_array(np.asarray(graph.sum(axis=1)).ravel()) - graph
    pull = np.concatenate([weight, np.zeros(len(wanted))]) + ANCHOR
    order = reading_order(known)
    left = order[np.unique(np.linspace(0, n - 1, min(n, LEFT_OUT)).astype(np.int64))]
    unit = np.zeros((len(places), len(left)))
    unit[left, np.arange(len(left))] = 1.0
    target = np.zeros((len(places), values.shape[1]))
    target[:n] = weight[:, None] * (values - middle)
    best: tuple[float, np.ndarray, np.ndarray] | None = None
    for alpha in strengths:
        validate.positive(alpha, "strengths")
        solve = splu(sp.csc_matrix(sp.diags_array(pull) + alpha * system)).solve
        found, reach = solve(target), solve(unit)[left, np.arange(len(left))]
        gap = (values[left] - middle - found[left]) / np.maximum(1 - weight[left] * reach, SMALL)[:, None]
        error = (gap**2).mean(axis=0)
        loss = float((error[varies] / variance[varies]).sum())
        if best is None or loss < best[0]:
            best = loss, found[n:], error
    if best is None:
        raise ValueError("strengths is empty; wanted at least one.")
    return Interpolated(best[1] + middle, np.tile(best[2], (len(wanted), 1)))


def adjacency(places: np.ndarray, k: int) -> sp.csr_matrix:
    """Return symmetric weights (n, n) between places: how far each is among the other's ``k`` nearest, itself left out."""
    near = k_nearest_weights(places, places, min(k + 1, len(places))).tocoo()
    other = near.row != near.col
    one = sp.csr_matrix((near.data[other], (near.row[other], near.col[other])), shape=near.shape) * (k + 1)
    return sp.csr_matrix((one + one.T) / 2)
