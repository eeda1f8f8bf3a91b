"""Ordinary kriging of many genes at once, with noise that may differ from place to place."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.linalg import eigh
from scipy.spatial.distance import cdist

from stimg._core import validate
from stimg.image.interpolate._arrays import Interpolated, checked, reading_order

RANGES = (0.7, 1.4, 2.8, 5.6, 11.0, 22.0)
"""Ranges of the covariance among which is chosen, in pitches."""
NOISE = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.87, 0.92, 0.95, 0.97, 0.985, 1.0)
"""Shares of the variance that are noise, among which is chosen; 1: there is no pattern in space."""
SMOOTHNESS = (0.5, 1.5, 2.5)
SHARING = ("averaged", "pooled", "none")
ROUNDS = 50
"""Of the iteration for the weights that all genes share."""
SMALL = 1e-12
"""Variance, relative to the squared values, below which a gene is constant; and weight below which a candidate is left out."""
FEWEST = 4
GENES = 1024
"""Genes whose intermediate values are in memory at a time."""


class _Candidate(NamedTuple):
    """One range: eigenvalues and eigenvectors of the whitened correlation, and values and ones in their terms."""

    range_: float
    eigenvalues: np.ndarray
    vectors: np.ndarray
    values: np.ndarray
    ones: np.ndarray


def matern(distance: np.ndarray, range_: float, smoothness: float = 0.5) -> np.ndarray:
    r"""Return the Matern correlation at ``distance``, of any shape; ``smoothness`` is 0.5 (exponential), 1.5 or 2.5.

    .. math:: e^{-d / l}, \quad (1 + a) e^{-a}, \; a = \sqrt 3 d / l, \quad (1 + b + b^2 / 3) e^{-b}, \; b = \sqrt 5 d / l

    (Matern 1960, Spatial Variation; Rasmussen and Williams 2006, Gaussian Processes for Machine Learning, equations 4.14 to 4.17).
    """
    validate.one_of(smoothness, SMOOTHNESS, "smoothness")
    scaled = np.sqrt(2 * smoothness) * np.asarray(distance, dtype=np.float64) / range_
    falling = np.exp(-scaled)
    if smoothness == 0.5:
        return falling
    return falling * (1 + scaled + (scaled**2 / 3 if smoothness == 2.5 else 0.0))


def kriging(
    known: np.ndarray,
    values: np.ndarray,
    wanted: np.ndarray,
    *,
    noise: np.ndarray | None = None,
    smoothness: float = 0.5,
    sharing: str = "averaged",
    ranges: Sequence[float] = RANGES,
    shares: Sequence[float] = NOISE,
) -> Interpolated:
    r"""Return the best linear unbiased prediction of every gene, and its variance.

    .. math:: y_i = \mu + z(s_i) + \varepsilon_i, \quad \mathrm{cov}(y) = \sigma^2 \big( (1 - \nu) R_l + \nu D \big)

    Each gene has its own mean :math:`\mu` and variance :math:`\sigma^2`; R is the Matern correlation with range l, D the diagonal of ``noise``.

    Parameters
    ----------
    known, wanted
        Places, (n, 2) and (m, 2), in pitches.
    values
        (n, genes).
    noise
        (n,), variance of the noise of each known place, in any unit: it is divided by its median. Counts at a place with half the
        depth have about twice the noise: pass ``1 / depth``. Default: the same everywhere.
    smoothness
        0.5, 1.5 or 2.5.
    sharing
        Range and share of noise, which are chosen from ``ranges`` and ``shares`` by restricted likelihood: ``"pooled"``, one pair for all genes, with
        the largest sum of log likelihoods; ``"none"``, each gene its own best pair; ``"averaged"``, each gene the mean of the predictions
        of all pairs, weighted by its likelihood times how often pairs are right among all genes.
    ranges, shares
        Candidates; ranges in pitches.

    Returns
    -------
    Values and variance; the variance is that of a measurement with the median noise, and with ``"averaged"`` the mean over pairs without the spread
    between them.

    Raises
    ------
    ValueError
        For fewer than 4 known places, noise that is not positive, candidates out of range, or an unknown name.

    Notes
    -----
    Restricted likelihood after Patterson and Thompson (1971), Biometrika 58, 545-554; the shared weights are the maximum likelihood estimate
    of the frequencies of a mixture (Laird 1978, JASA 73, 805-811), by iteration. One eigendecomposition a range serves all genes and all
    shares, so the time grows with n³ and n² genes, the memory with n² and n genes: see :func:`in_windows` for many places. Places may repeat.
    """
    known, values, wanted = checked(known, values, wanted, least=FEWEST)
    validate.one_of(sharing, SHARING, "sharing")
    half = _half(noise, len(known))
    lengths, nu = _candidates(ranges, shares)
    order = reading_order(known)  # so that rounding does not depend on the order of the observations
    known, values, half = known[order], values[order], half[order]
    middle = values.mean(axis=0)
    constant = ((values - middle) ** 2).mean(axis=0) <= SMALL * np.maximum((values**2).mean(axis=0), SMALL)
    distance = cdist(known, known)
    parts = [_candidate(distance, length, smoothness, half, values - middle) for length in lengths]
    likelihood = np.stack([_log_likelihood(part, nu) for part in parts])
    likelihood[..., constant] = 0.0
    weights = _weights(likelihood, sharing)
    out, variance = _predict(parts, nu, weights, known, wanted, smoothness, half)
    out[:, constant], variance[:, constant] = 0.0, 0.0
    return Interpolated(out + middle, variance)


def _half(noise: np.ndarray | None, n: int) -> np.ndarray:
    """Return 1 / sqrt(noise), noise being scaled to a median of 1: a few places with next to no counts do not set the scale."""
    if noise is None:
        return np.ones(n)
    found = np.asarray(noise, dtype=np.float64)
    if found.shape != (n,) or not (np.isfinite(found) & (found > 0)).all():
        raise ValueError(
            f"noise has shape {found.shape}, smallest value {found.min(initial=np.inf):g}; wanted ({n},) positive, finite numbers."
        )
    return 1.0 / np.sqrt(found / np.median(found))


def _candidates(ranges: Sequence[float], shares: Sequence[float]) -> tuple[list[float], np.ndarray]:
    lengths, nu = [float(r) for r in ranges], np.asarray(shares, dtype=np.float64)
    if not lengths or not all(np.isfinite(r) and r > 0 for r in lengths):
        raise ValueError(f"ranges={tuple(ranges)}; wanted at least one, all of them positive, in pitches.")
    if nu.ndim != 1 or not len(nu) or not ((nu > 0) & (nu <= 1)).all():
        raise ValueError(f"shares={tuple(shares)}; wanted at least one, all of them above 0 and at most 1.")
    return lengths, nu


def _candidate(distance: np.ndarray, range_: float, smoothness: float, half: np.ndarray, values: np.ndarray) -> _Candidate:
    correlation = matern(distance, range_, smoothness) * half[:, None] * half
    eigenvalues, vectors = eigh(correlation, overwrite_a=True, check_finite=False)
    return _Candidate(range_, np.maximum(eigenvalues, 0.0), vectors, vectors.T @ (half[:, None] * values), vectors.T @ half)


def _log_likelihood(part: _Candidate, nu: np.ndarray) -> np.ndarray:
    """Return the restricted log likelihood at the best variance, less what is the same for all candidates, (shares, genes)."""
    n = len(part.ones)
    spread = (1 - nu)[:, None] * part.eigenvalues + nu[:, None]
    ones = (part.ones**2 / spread).sum(axis=1)
    cross = (part.ones / spread) @ part.values
    square = np.concatenate(
        [(1 / spread) @ part.values[:, i : i + GENES] ** 2 for i in range(0, max(part.values.shape[1], 1), GENES)], axis=1
    )
    residual = np.maximum(square - cross**2 / ones[:, None], np.finfo(float).tiny)
    return -0.5 * ((n - 1) * np.log(residual / (n - 1)) + (np.log(spread).sum(axis=1) + np.log(ones))[:, None])


def _weights(likelihood: np.ndarray, sharing: str) -> np.ndarray:
    """Return the weight of each candidate (ranges, shares) for each gene, summing to 1 over candidates."""
    flat = likelihood.reshape(-1, likelihood.shape[2])
    out = np.zeros_like(flat)
    if sharing == "pooled":
        out[int(np.argmax(flat.sum(axis=1)))] = 1.0
    elif sharing == "none":
        out[flat.argmax(axis=0), np.arange(flat.shape[1])] = 1.0
    else:
        relative = np.exp(flat - flat.max(axis=0))
        prior = np.full(len(flat), 1.0 / len(flat))
        for _ in range(ROUNDS):
            out = relative * prior[:, None]
            out /= out.sum(axis=0)
            prior = out.mean(axis=1)
    return out.reshape(likelihood.shape)


def _predict(
    parts: Sequence[_Candidate],
    nu: np.ndarray,
    weights: np.ndarray,
    known: np.ndarray,
    wanted: np.ndarray,
    smoothness: float,
    half: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    n, genes = parts[0].values.shape
    out, variance = np.zeros((len(wanted), genes)), np.zeros((len(wanted), genes))
    distance = cdist(wanted, known)
    for part, weight in zip(parts, weights, strict=True):
        used = np.flatnonzero(weight.max(axis=1, initial=0.0) > SMALL)
        if not len(used):
            continue
        towards = (matern(distance, part.range_, smoothness) * half) @ part.vectors
        inner, total = np.zeros((n, genes)), np.zeros(genes)
        for k in used:
            spread = (1 - nu[k]) * part.eigenvalues + nu[k]
            ones = float((part.ones**2 / spread).sum())
            mean = ((part.ones / spread) @ part.values) / ones
            rest = part.values - part.ones[:, None] * mean
            inner += (weight[k] * (1 - nu[k]) / spread[:, None]) * rest
            total += weight[k] * mean
            sigma = (rest**2 / spread[:, None]).sum(axis=0) / (n - 1)
            reach = (1 - nu[k]) * towards
            gap = 1 - (reach / spread) @ part.ones
            factor = np.maximum((1 - nu[k]) - (reach**2 / spread).sum(axis=1) + gap**2 / ones, 0.0) + nu[k]
            variance += factor[:, None] * (weight[k] * sigma)
        out += towards @ inner + total
    return out, variance
