"""What is known of the genes of each library before a model sees a crop: means, shares, spread, principal axes."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import scipy.sparse as sp
from scipy.sparse.linalg import LinearOperator, svds

from stimg.data.library import Library

SCALE = 1e4
ROUNDS = 1000
"""Most rounds in which the scales of libraries with different panels are brought together."""


@dataclass(frozen=True)
class GeneStatistics:
    r"""Moments of the log values of libraries; L libraries, V genes of the vocabulary.

    The log value of a count y is :math:`\log(1 + 10^4 \, y f / n)`, with n the spot's total over the vocabulary's genes that the library
    measured and f the share that these genes have in the counts of the training data. For a library that measured everything this is
    log1p counts per 10,000 of the library size; for one that measured a part it is on the same scale.

    Attributes
    ----------
    mean, composition
        Mean log value and share of the counts, float32 (L, V); for genes that a library did not measure, the pooled values.
    pooled_mean, pooled_composition, spread
        Over the libraries of the training data, each counting once: mean log value, share, and standard deviation within libraries, (V,);
        1 for genes that never vary.
    coverage
        What a library's depth is divided by to be on the same scale as the others', (L,): where a library measured a part of the genes, about
        their share in all counts.
    """

    mean: np.ndarray
    composition: np.ndarray
    pooled_mean: np.ndarray
    pooled_composition: np.ndarray
    spread: np.ndarray
    coverage: np.ndarray = field(default_factory=lambda: np.ones(0, dtype=np.float32))


def _counts(library: Library, n_genes: int) -> tuple[sp.csr_matrix, np.ndarray]:
    """Return the counts of the occupied lattice points in row-major order, CSR float64 (n, V), and their library sizes (n,)."""
    rows, cols = library.spec.shape
    window = library.store.window(0, 0, rows, cols)
    occupied = np.flatnonzero(np.asarray(library.store.index).reshape(-1) >= 0)
    index = np.full(rows * cols, -1, dtype=np.int64)
    index[occupied] = np.arange(len(occupied))
    channel = library.panel[window.gene]
    kept = channel >= 0
    matrix = sp.csr_matrix(
        (window.value[kept].astype(np.float64), (index[window.pixel[kept]], channel[kept])), shape=(len(occupied), n_genes)
    )
    return matrix, library.depth_image.reshape(-1)[occupied].astype(np.float64)


def log_values(library: Library, composition: np.ndarray) -> sp.csr_matrix:
    """Return the log values of a library, CSR float64 (occupied lattice points in row-major order, V); see :class:`GeneStatistics`.

    ``composition`` (V,) is the share of each gene in the counts of the training data. A normalised layer is returned as it is.
    """
    matrix, _ = _counts(library, len(composition))
    if not library.counts:
        return matrix
    share = composition[library.panel[library.panel >= 0]].sum()
    total = np.asarray(matrix.sum(1)).ravel()
    factor = SCALE * share / np.maximum(total, 1.0)
    matrix.data = np.log1p(matrix.data * np.repeat(factor, np.diff(matrix.indptr)))
    return matrix


def _shares(libraries: Sequence[Library], n_genes: int) -> np.ndarray:
    """Return the share of every gene in each library's counts, float64 (L, V); NaN for genes that it did not measure."""
    out = np.full((len(libraries), n_genes), np.nan)
    for i, library in enumerate(libraries):
        matrix, depth = _counts(library, n_genes)
        measured = library.panel[library.panel >= 0]
        out[i, measured] = np.asarray(matrix.sum(0)).ravel()[measured] / max(depth.sum(), 1.0)
    return out


def _pool(values: np.ndarray) -> np.ndarray:
    known = np.isfinite(values)
    return np.where(known, values, 0.0).sum(0) / np.maximum(known.sum(0), 1)


def _coverage(shares: np.ndarray) -> np.ndarray:
    """Return the factor (L,) that brings each library's shares (L, V) to one scale: 1 for those that measured all genes measured by any.

    The shares of a library that measured a part of the genes sum to 1 over that part. They are scaled to the sum that the pooled shares have
    there, and pooled again, until nothing changes. Where no library measured all genes, the sum over all is the mean of the libraries' own sums.
    """
    known = np.isfinite(shares)
    full = known[:, known.any(0)].all(1)
    factor = np.where(full, 1.0, known.sum(1) / max(known.any(0).sum(), 1))
    found = np.nansum(shares, axis=1)
    for _ in range(0 if full.all() else ROUNDS):
        pooled = _pool(shares * factor[:, None])
        if not full.any():
            pooled *= found.mean() / max(pooled.sum(), 1e-12)
        covered = np.where(known, pooled, 0.0).sum(1)
        updated = np.where(full | (found <= 0), factor, covered / np.maximum(found, 1e-12))
        done = np.allclose(updated, factor, rtol=1e-10, atol=0.0)
        factor = updated
        if done:
            break
    return factor


def gene_statistics(libraries: Sequence[Library], n_genes: int, *, like: GeneStatistics | None = None) -> GeneStatistics:
    """Return the statistics of ``libraries`` over a vocabulary of ``n_genes`` names.

    With ``like``, what is pooled is taken from there: the statistics of new libraries for a model that was trained on others.
    """
    shares = _shares(libraries, n_genes)
    if like is None:
        coverage = _coverage(shares)
        pooled = _pool(shares * coverage[:, None])
    else:
        pooled = like.pooled_composition.astype(np.float64)
        found, covered = np.nansum(shares, axis=1), np.where(np.isfinite(shares), pooled, 0.0).sum(1)
        coverage = np.where(found > 0, covered / np.maximum(found, 1e-12), 1.0)
    shares = shares * coverage[:, None]
    mean = np.full((len(libraries), n_genes), np.nan)
    square, weight = np.zeros(n_genes), np.zeros(n_genes)
    for i, library in enumerate(libraries):
        values = log_values(library, pooled)
        measured = library.panel[library.panel >= 0]
        n = values.shape[0]
        first = np.asarray(values.sum(0)).ravel()[measured] / n
        second = np.asarray(values.multiply(values).sum(0)).ravel()[measured] / n
        mean[i, measured] = first
        square[measured] += n * np.maximum(second - first**2, 0.0)
        weight[measured] += n
    if like is None:
        pooled_mean = _pool(mean)
        spread = np.where(square > 1e-12 * weight, np.sqrt(square / np.maximum(weight, 1.0)), 1.0)
    else:
        pooled_mean, spread = like.pooled_mean, like.spread
    return GeneStatistics(
        np.where(np.isfinite(mean), mean, pooled_mean).astype(np.float32),
        np.where(np.isfinite(shares), shares, pooled).astype(np.float32),
        np.asarray(pooled_mean, dtype=np.float32),
        np.asarray(pooled, dtype=np.float32),
        np.asarray(spread, dtype=np.float32),
        coverage.astype(np.float32),
    )


def principal_axes(libraries: Sequence[Library], statistics: GeneStatistics, n_axes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return principal axes of the log values centred within each library, and how much of each is signal.

    Returns
    -------
    axes
        Orthonormal, float32 (V, k), k at most ``n_axes``; the largest entry of each is positive.
    shrinkage
        Factor by which a score is multiplied to predict values it was not computed from, float32 (k,) in [0.02, 1]: ``1 - noise / variance``,
        with the mean variance of the axes left out taken as noise, times ``variance / (variance + mean variance of the k axes)``, a ridge
        penalty of one. The second factor is what leaving out whole donors asks for (``benchmarks/panel_completion.py``): minor axes carry
        over from donor to donor less well than their variance says.

    Notes
    -----
    Libraries that did not measure a gene count as being at its mean. Nothing is densified: centring is done inside the matrix products.
    """
    n_genes = statistics.mean.shape[1]
    blocks = [log_values(library, statistics.pooled_composition.astype(np.float64)) for library in libraries]
    stacked = sp.vstack(blocks).tocsr()
    means = statistics.mean.astype(np.float64).copy()
    for i, library in enumerate(libraries):
        unmeasured = np.ones(n_genes, dtype=bool)
        unmeasured[library.panel[library.panel >= 0]] = False
        means[i, unmeasured] = 0.0
    which = np.repeat(np.arange(len(blocks)), [b.shape[0] for b in blocks])
    transposed = stacked.T.tocsr()
    k = int(min(n_axes, min(stacked.shape) - 1))
    if k < 1:
        raise ValueError(
            f"{stacked.shape[0]} observations x {stacked.shape[1]} genes have no principal axes. Take more of them, or init='random'."
        )

    def multiply(v: np.ndarray) -> np.ndarray:
        return stacked @ np.ravel(v) - (means @ np.ravel(v))[which]

    def adjoint(u: np.ndarray) -> np.ndarray:
        return transposed @ np.ravel(u) - means.T @ np.bincount(which, weights=np.ravel(u), minlength=len(blocks))

    operator = LinearOperator(stacked.shape, matvec=multiply, rmatvec=adjoint, dtype=np.float64)
    start = np.random.default_rng(0).standard_normal(min(stacked.shape))
    _, singular, vt = svds(operator, k=k, v0=start, solver="arpack")
    order = np.argsort(-singular)
    singular, vt = singular[order], vt[order]
    vt = vt * np.sign(vt[np.arange(k), np.abs(vt).argmax(1)])[:, None]
    variance = singular**2 / len(which)
    total = float(np.square(stacked.data).sum() - sum(b.shape[0] * (m**2).sum() for b, m in zip(blocks, means, strict=True))) / len(which)
    noise = max(total - variance.sum(), 0.0) / max(n_genes - k, 1)
    signal = 1.0 - noise / np.maximum(variance, 1e-12)
    shrinkage = np.clip(signal * variance / np.maximum(variance + variance.mean(), 1e-12), 0.02, 1.0)
    return vt.T.astype(np.float32), shrinkage.astype(np.float32)
