"""Spatial autocorrelation of all genes at once: Moran's I and Geary's C on sparse values, exact, with p-values."""

from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import scipy.sparse as sp
import scipy.stats

from stimg._core.rng import RngLike, as_seed, derive
from stimg._core.validate import one_of
from stimg.metrics import _spatial_kernels as kernels
from stimg.metrics._spatial_weights import SpatialWeights

__all__ = ["Autocorrelation", "SpatialWeights", "autocorrelation", "gearys_c", "morans_i"]

MODES = ("moran", "geary")
AMPLIFIED = 100.0
"""Genes with ``n mean^2`` above this many times their sum of squares are centred before they are multiplied."""
BLOCK = 64
"""Genes that are centred, and so dense, at a time."""

Weights: TypeAlias = SpatialWeights | sp.spmatrix | sp.sparray | np.ndarray


class Autocorrelation(NamedTuple):
    """Scores of all genes with their p-values, float64 (n_vars,) each; ``expected`` and ``var_norm`` are numbers.

    ``pval_norm``/``var_norm`` hold under normality, ``pval_rand``/``var_rand`` under randomisation, and the last three, None without
    permutations, come from permuted observations. A gene that is constant has NaN throughout.
    """

    score: np.ndarray
    expected: float
    var_norm: float
    pval_norm: np.ndarray
    var_rand: np.ndarray
    pval_rand: np.ndarray
    pval_z_sim: np.ndarray | None = None
    pval_sim: np.ndarray | None = None
    var_sim: np.ndarray | None = None


class _Scorer:
    """The scores of one matrix of values on one set of weights, for any order of the observations."""

    def __init__(self, values: np.ndarray | sp.spmatrix | sp.sparray, weights: Weights, mode: str) -> None:
        one_of(mode, MODES, "mode")
        self.mode = mode
        self.values = _checked(values)
        self.weights = w = _as_weights(weights, self.values.shape[0])
        if self.values.shape[0] != w.n_rows:
            raise ValueError(f"The values have {self.values.shape[0]} observations and the weights {w.n_rows}; wanted the same number.")
        if w.n < 2 or w.s0 == 0:
            raise ValueError(
                f"{w.n} observations with weights that sum to {w.s0:g}: there are no neighbours. Check the raster or the graph."
            )
        self.n_vars = self.values.shape[1]
        self.constant = np.zeros(self.n_vars, dtype=bool)
        self.hard = np.arange(self.n_vars)
        self.mean, self.squares = np.zeros(self.n_vars), np.zeros(self.n_vars)
        self.tight: Any = self.values
        self.raw: np.ndarray | None = None
        if sp.issparse(self.values):
            raw = self._sums(w.rows)
            self.mean = raw[:, 0] / w.n
            self.squares = raw[:, 1] - raw[:, 0] * self.mean
            self.constant = raw[:, 1] == 0
            self.hard = np.flatnonzero(~self.constant & ~(raw[:, 0] * self.mean <= AMPLIFIED * self.squares))
            self.raw = raw
            self.tight = sp.csc_matrix(self.values[:, self.hard]) if len(self.hard) else self.values[:, :0]

    def _sums(self, row_of: np.ndarray) -> np.ndarray:
        w, x = self.weights, self.values
        power = 1 if self.mode == "moran" else 2
        kernels.start_threads()
        return kernels.sums(x.indptr, x.indices, x.data, row_of, w.first, w.partner, w.weight, w.degree, self.n_vars, power)

    def _centred(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (genes, their centred values (n, <= 64)) of the genes whose sums would cancel, or of all genes of a dense array."""
        for start in range(0, len(self.hard), BLOCK):
            genes = self.hard[start : start + BLOCK]
            block = self.tight[:, start : start + BLOCK]
            dense = (block.toarray() if sp.issparse(block) else np.asarray(block))[self.weights.rows].astype(np.float64)
            self.constant[genes] = dense.min(axis=0) == dense.max(axis=0)
            dense -= dense.mean(axis=0)
            yield genes, dense - dense.mean(axis=0)

    def scores(self, order: np.ndarray | None = None) -> np.ndarray:
        """Return the score of every gene where site ``i`` holds the values of site ``order[i]``."""
        w = self.weights
        numerator, squares = np.zeros(self.n_vars), self.squares.copy()
        if sp.issparse(self.values):
            raw = self.raw if order is None and self.raw is not None else self._sums(w.rows if order is None else w.rows[order])
            if self.mode == "moran":
                numerator = raw[:, 3] - self.mean * raw[:, 2] + self.mean**2 * w.s0
            else:
                numerator = raw[:, 2] - 2.0 * raw[:, 3]
        if len(self.hard):
            upper = w.upper()
            for genes, z in self._centred():
                z = z if order is None else z[order]
                squares[genes] = np.einsum("ij,ij->j", z, z)
                cross = np.einsum("ij,ij->j", z, upper @ z)
                numerator[genes] = cross if self.mode == "moran" else w.degree @ (z * z) - 2.0 * cross
        factor = w.n / w.s0 if self.mode == "moran" else (w.n - 1) / (2.0 * w.s0)
        out = np.full(self.n_vars, np.nan)
        np.divide(factor * numerator, squares, out=out, where=~self.constant)
        return out

    def kurtosis(self) -> np.ndarray:
        """Return ``n sum z^4 / (sum z^2)^2`` per gene."""
        fourth, squares = np.zeros(self.n_vars), self.squares.copy()
        if sp.issparse(self.values):
            x = self.values
            kernels.start_threads()
            fourth = kernels.fourth_moment(x.indptr, x.indices, x.data, self.weights.rows, self.mean)
        for genes, z in self._centred():
            fourth[genes], squares[genes] = (z**4).sum(axis=0), (z**2).sum(axis=0)
        out = np.full(self.n_vars, np.nan)
        np.divide(self.weights.n * fourth, squares**2, out=out, where=~self.constant)
        return out


def _checked(values: Any) -> Any:
    """Return finite values as canonical CSR of a numeric dtype that the compiled loops know, or as a dense (n, n_vars) array."""
    matrix: Any = sp.csr_matrix(values) if sp.issparse(values) else np.asarray(values)
    if not sp.issparse(matrix):
        matrix = matrix[:, None] if matrix.ndim == 1 else matrix
        if matrix.ndim != 2:
            raise ValueError(f"The values have shape {matrix.shape}; wanted (observations, genes) or (observations,).")
        data = matrix
    else:
        if not matrix.has_canonical_format:
            matrix = matrix.copy()
            matrix.sum_duplicates()
        data = matrix.data
    if data.dtype.kind not in "biuf":
        raise TypeError(f"The values have dtype {data.dtype}; wanted real numbers.")
    if data.dtype.kind == "f" and not np.isfinite(data).all():
        raise ValueError(
            f"The values have {int((~np.isfinite(data)).sum())} NaN or infinite entries; wanted finite ones. Remove or repair them."
        )
    if data.dtype.itemsize <= 2 or data.dtype.itemsize > 8:
        matrix = matrix.astype(np.float64 if data.dtype.itemsize > 8 else np.float32)
    return matrix


def _as_weights(weights: Weights, n: int) -> SpatialWeights:
    if isinstance(weights, SpatialWeights):
        return weights
    return SpatialWeights.from_graph(weights) if sp.issparse(weights) else SpatialWeights.from_pairs(np.asarray(weights), n)


def morans_i(values: np.ndarray | sp.spmatrix | sp.sparray, weights: Weights) -> np.ndarray:
    r"""Return Moran's I of every gene, float64 (n_vars,).

    .. math:: I = \frac{n}{S_0} \frac{\sum_{ij} w_{ij} (x_i - \bar x)(x_j - \bar x)}{\sum_i (x_i - \bar x)^2}

    Parameters
    ----------
    values
        (n_obs, n_vars): CSR is read as it is, never densified; CSC costs a transposition; a dense array or a vector is centred in blocks.
    weights
        :class:`SpatialWeights`, a sparse graph (n_obs × n_obs), or pairs of neighbours (n_pairs, 2) with binary weights.

    Raises
    ------
    ValueError
        For values that are not finite, numbers of observations that differ, or no neighbours at all.

    Notes
    -----
    The numerator is expanded to :math:`x'Wx - \bar x \sum_i d_i x_i + \bar x^2 S_0` with :math:`d` the row plus the column sums of W, so
    that the cost follows the stored values. Where the expansion would lose digits (:math:`n \bar x^2` above a hundred times the sum of
    squares, hence more than 99 % of the values not zero) the gene is centred first. Sums are float64, exact for counts. A gene with one
    value throughout has no I: NaN, as in scanpy. Source: Moran (1950), Biometrika 37, 17-23.

    Examples
    --------
    >>> import numpy as np
    >>> from stimg.image.spec import RasterSpec
    >>> rc = np.stack(np.meshgrid(range(4), range(4), indexing="ij"), axis=-1).reshape(-1, 2)
    >>> stripes, checkers = rc[:, 0] >= 2, rc.sum(axis=1) % 2
    >>> weights = SpatialWeights.from_raster(RasterSpec("square", (4, 4), pitch_um=100.0), rc)
    >>> morans_i(np.stack([stripes, checkers], axis=1), weights).round(3).tolist()
    [0.667, -1.0]
    """
    return _Scorer(values, weights, "moran").scores()


def gearys_c(values: np.ndarray | sp.spmatrix | sp.sparray, weights: Weights) -> np.ndarray:
    r"""Return Geary's C of every gene, float64 (n_vars,).

    .. math:: C = \frac{n - 1}{2 S_0} \frac{\sum_{ij} w_{ij} (x_i - x_j)^2}{\sum_i (x_i - \bar x)^2}

    Arguments, errors and the treatment of rounding are those of :func:`morans_i`. Source: Geary (1954), The Incorporated Statistician 5,
    115-145.
    """
    return _Scorer(values, weights, "geary").scores()


def _variances(w: SpatialWeights, mode: str, kurtosis: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the variances under normality and under randomisation (Cliff and Ord 1981, Spatial Processes, chapters 1 and 2)."""
    n, s0, s1, s2, k = float(w.n), w.s0, w.s1, w.s2, kurtosis
    random = np.full(len(k), np.nan)
    if mode == "moran":
        normal = (n * n * s1 - n * s2 + 3 * s0 * s0) / ((n * n - 1) * s0 * s0) - 1 / (n - 1) ** 2
        if n > 3:
            top = n * ((n * n - 3 * n + 3) * s1 - n * s2 + 3 * s0 * s0) - k * ((n * n - n) * s1 - 2 * n * s2 + 6 * s0 * s0)
            random = top / ((n - 1) * (n - 2) * (n - 3) * s0 * s0) - 1 / (n - 1) ** 2
    else:
        normal = ((2 * s1 + s2) * (n - 1) - 4 * s0 * s0) / (2 * (n + 1) * s0 * s0)
        if n > 3:
            top = (n - 1) * s1 * (n * n - 3 * n + 3 - (n - 1) * k) + s0 * s0 * (n * n - 3 - (n - 1) ** 2 * k)
            top = top - (n - 1) * s2 * (n * n + 3 * n - 6 - (n * n - n + 2) * k) / 4
            random = top / (n * (n - 2) * (n - 3) * s0 * s0)
    return normal, random


def _tail(score: np.ndarray, expected: np.ndarray | float, variance: np.ndarray | float, *, two_tailed: bool) -> np.ndarray:
    """Return the normal tail beyond ``score``, on the side where it lies; twice that where ``two_tailed``."""
    with np.errstate(divide="ignore", invalid="ignore"):
        z = (score - expected) / np.sqrt(variance)
    return scipy.stats.norm.sf(np.abs(z)) * (2.0 if two_tailed else 1.0)


def autocorrelation(
    values: np.ndarray | sp.spmatrix | sp.sparray,
    weights: Weights,
    *,
    mode: str = "moran",
    n_perms: int | None = None,
    two_tailed: bool = False,
    groups: np.ndarray | None = None,
    rng: RngLike = 0,
) -> Autocorrelation:
    """Return the scores of every gene with analytic p-values and, with ``n_perms``, permutation p-values.

    Parameters
    ----------
    values, weights
        As in :func:`morans_i`.
    mode
        ``"moran"`` or ``"geary"``.
    n_perms
        Number of permutations. All genes are permuted together: one permutation costs as much as the scores themselves.
    two_tailed
        Double the analytic p-values; as in squidpy, the default is the tail on whose side the score lies.
    groups
        (n_obs,), a label per observation, for instance its library: observations are permuted within their group alone.
    rng
        Seed; the same seed gives the same p-values whatever the number of threads.

    Notes
    -----
    ``pval_sim`` is ``(1 + the smaller tail) / (1 + n_perms)`` and ``pval_z_sim`` the normal tail with mean and variance of the permuted
    scores, as in squidpy. Here the values of all observations are permuted over the sites (Cliff and Ord); squidpy 1.8 permutes the rows
    of the weights but not their columns, a null distribution with another variance.
    """
    if n_perms is not None and n_perms < 1:
        raise ValueError(f"n_perms={n_perms} is not a number of permutations; wanted at least 1, or None for none.")
    scorer = _Scorer(values, weights, mode)
    w = scorer.weights
    score = scorer.scores()
    expected = -1.0 / (w.n - 1) if mode == "moran" else 1.0
    var_norm, var_rand = _variances(w, mode, scorer.kurtosis())
    norm = np.full(len(score), var_norm)
    pval_norm = _tail(score, expected, norm, two_tailed=two_tailed)
    pval_rand = _tail(score, expected, var_rand, two_tailed=two_tailed)
    out = Autocorrelation(score, expected, var_norm, pval_norm, var_rand, pval_rand)
    if n_perms is None:
        return out
    members = _members(groups, w)
    seed = as_seed(rng)
    above, mean, spread = np.zeros(len(score)), np.zeros(len(score)), np.zeros(len(score))
    for k in range(n_perms):
        generator = derive(seed, k)
        order = np.arange(w.n)
        for sites in members:
            order[sites] = generator.permutation(sites)
        drawn = scorer.scores(order)
        above += drawn >= score
        step = drawn - mean
        mean += step / (k + 1)
        spread += step * (drawn - mean)
    var_sim = spread / n_perms
    pval_sim = np.where(np.isnan(score), np.nan, (np.minimum(above, n_perms - above) + 1) / (n_perms + 1))
    return out._replace(pval_z_sim=_tail(score, mean, var_sim, two_tailed=False), pval_sim=pval_sim, var_sim=var_sim)


def _members(groups: np.ndarray | None, w: SpatialWeights) -> list[np.ndarray]:
    if groups is None:
        return [np.arange(w.n)]
    groups = np.asarray(groups)
    if groups.shape != (w.n_rows,):
        raise ValueError(f"groups has shape {groups.shape}; wanted one label for each of the {w.n_rows} observations.")
    codes = np.unique(groups[w.rows], return_inverse=True)[1]
    return [np.flatnonzero(codes == code) for code in range(codes.max() + 1)]
