"""Ordinary kriging of many genes at once, with noise that may differ from place to place."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
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
GUIDED = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of the pattern that follow features instead of distance, among which is chosen."""
ROUNDS = 50
"""Of the iteration for the weights that all genes share."""
SMALL = 1e-12
"""Variance, relative to the squared values, below which a gene is constant; and weight below which a candidate is left out."""
FEWEST = 4
GENES = 1024
"""Genes whose intermediate values are in memory at a time."""


class _Spectrum(NamedTuple):
    """One covariance: its range, the share of features in it, eigenvalues and eigenvectors when whitened, and ones in their terms."""

    range_: float
    guided: float
    eigenvalues: np.ndarray
    vectors: np.ndarray
    ones: np.ndarray


class _Fit(NamedTuple):
    """What values say of one covariance: values in terms of its eigenvectors (n, genes); log likelihood, mean and variance, (shares, genes) each."""

    values: np.ndarray
    likelihood: np.ndarray
    mean: np.ndarray
    sigma: np.ndarray


class _Alike(NamedTuple):
    """How alike the features of places are: of known ones (n, n), of wanted and known ones (m, n), and of each wanted one with itself (m,)."""

    known: np.ndarray
    wanted: np.ndarray
    itself: np.ndarray


_SHARED: ContextVar[dict[tuple, list[_Spectrum]] | None] = ContextVar("spectra", default=None)


@contextmanager
def shared_spectra() -> Iterator[None]:
    """Share decompositions between the krigings within it that have the same known places, noise and features; the last ones are kept until it ends."""
    token = _SHARED.set({})
    try:
        yield
    finally:
        _SHARED.reset(token)


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
    features: tuple[np.ndarray, np.ndarray] | None = None,
    smoothness: float = 0.5,
    sharing: str = "averaged",
    ranges: Sequence[float] = RANGES,
    shares: Sequence[float] = NOISE,
) -> Interpolated:
    r"""Return the best linear unbiased prediction of every gene, and its variance.

    .. math:: y_i = \mu + z(s_i) + \varepsilon_i, \quad \mathrm{cov}(y) = \sigma^2 \big( (1 - \nu) R_l + \nu D \big)

    Each gene has its own mean :math:`\mu` and variance :math:`\sigma^2`; R is the Matern correlation with range l, D the diagonal of ``noise``. With ``features``
    R becomes :math:`(1 - w) R_l + w F`, F being the inner products of the features: a ridge regression on them and kriging, fitted as one.

    Parameters
    ----------
    known, wanted
        Places, (n, 2) and (m, 2), in pitches.
    values
        (n, genes).
    noise
        (n,), variance of the noise of each known place, in any unit: it is divided by its median. Counts at a place with half the
        depth have about twice the noise: pass ``1 / depth``. Default: the same everywhere.
    features
        Of the known and of the wanted places, (n, d) and (m, d), such as embeddings of the H&E image around them. Each is centred and divided by its spread at the
        known places; w is chosen as the range is.
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
        For fewer than 4 known places, noise that is not positive, features that do not fit or are not finite, candidates out of range, or an unknown name.

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
    alike = None
    pairs = [(length, 0.0) for length in lengths]
    if features is not None:
        alike = _alike(features, order, len(wanted))
        pairs = [(length, w) for w in GUIDED for length in (lengths if w < 1 else lengths[:1])]
    spectra = _spectra(known, alike, pairs, smoothness, half)
    fits = [_fit(spectrum, nu, half[:, None] * (values - middle)) for spectrum in spectra]
    likelihood = np.stack([fit.likelihood for fit in fits])
    likelihood[..., constant] = 0.0
    weights = _weights(likelihood, sharing)
    out, variance = _predict(spectra, fits, nu, weights, cdist(wanted, known), alike, smoothness, half)
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


def _alike(features: tuple[np.ndarray, np.ndarray], order: np.ndarray, n_wanted: int) -> _Alike:
    """Return the inner products of the features in units of their spread at the known places, there 1 on average; ``order`` is that of the known places."""
    known, wanted = (np.asarray(a, dtype=np.float64) for a in features)
    if known.ndim != 2 or wanted.ndim != 2 or (len(known), len(wanted)) != (len(order), n_wanted) or known.shape[1] != wanted.shape[1]:
        raise ValueError(
            f"features have shapes {known.shape} and {wanted.shape}; wanted ({len(order)}, d) and ({n_wanted}, d), of the known and the wanted places."
        )
    for name, each in (("known", known), ("wanted", wanted)):
        validate.finite(each, f"features of the {name} places", todo="Leave these places or features out.")
    known = known[order]
    mean, spread = known.mean(axis=0), known.std(axis=0)
    varies = spread > SMALL * np.maximum(np.abs(mean), 1.0)
    known, wanted = ((each[:, varies] - mean[varies]) / spread[varies] for each in (known, wanted))
    size = max(float((known**2).sum(axis=1).mean()), SMALL)
    return _Alike(known @ known.T / size, wanted @ known.T / size, (wanted**2).sum(axis=1) / size)


def _mixed(near: np.ndarray, alike: np.ndarray | None, guided: float) -> np.ndarray:
    return near if alike is None else (1 - guided) * near + guided * alike


def _spectra(
    known: np.ndarray, alike: _Alike | None, pairs: Sequence[tuple[float, float]], smoothness: float, half: np.ndarray
) -> list[_Spectrum]:
    """Return the decomposition of the covariance of each pair of a range and a share of features, from :func:`shared_spectra` where it is there."""
    shared = _SHARED.get()
    key = (known.tobytes(), half.tobytes(), smoothness, *pairs, None if alike is None else alike.known.tobytes())
    if shared is not None and key in shared:
        return shared[key]
    distance, out = cdist(known, known), []
    for range_, guided in pairs:
        near = _mixed(matern(distance, range_, smoothness), None if alike is None else alike.known, guided)
        eigenvalues, vectors = eigh(near * half[:, None] * half, overwrite_a=True, check_finite=False)
        out.append(_Spectrum(range_, guided, np.maximum(eigenvalues, 0.0), vectors, vectors.T @ half))
    if shared is not None:
        shared.clear()
        shared[key] = out
    return out


def _fit(spectrum: _Spectrum, nu: np.ndarray, values: np.ndarray) -> _Fit:
    """Return what whitened values say of a covariance and each share of noise; of the restricted log likelihood what differs between candidates."""
    n, terms = len(values), spectrum.vectors.T @ values
    spread = (1 - nu)[:, None] * spectrum.eigenvalues + nu[:, None]
    ones = (spectrum.ones**2 / spread).sum(axis=1)[:, None]
    mean = (spectrum.ones / spread) @ terms / ones
    square = np.concatenate([(1 / spread) @ terms[:, i : i + GENES] ** 2 for i in range(0, max(terms.shape[1], 1), GENES)], axis=1)
    sigma = np.maximum(square - mean**2 * ones, np.finfo(float).tiny) / (n - 1)
    likelihood = -0.5 * ((n - 1) * np.log(sigma) + np.log(spread).sum(axis=1)[:, None] + np.log(ones))
    return _Fit(terms, likelihood, mean, sigma)


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
    spectra: Sequence[_Spectrum],
    fits: Sequence[_Fit],
    nu: np.ndarray,
    weights: np.ndarray,
    distance: np.ndarray,
    alike: _Alike | None,
    smoothness: float,
    half: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the weighted mean over candidates of predictions and of variances, (wanted, genes) each: all are sums over eigenvectors, shares at a time."""
    genes = weights.shape[2]
    out, variance = np.zeros((len(distance), genes)), np.zeros((len(distance), genes))
    for spectrum, fit, weight in zip(spectra, fits, weights, strict=True):
        used = np.flatnonzero(weight.max(axis=1, initial=0.0) > SMALL)
        if not len(used):
            continue
        share, pattern = weight[used], 1 - nu[used]
        towards = _mixed(matern(distance, spectrum.range_, smoothness), None if alike is None else alike.wanted, spectrum.guided)
        towards = (towards * half) @ spectrum.vectors
        itself = np.ones(len(distance)) if alike is None else (1 - spectrum.guided) + spectrum.guided * alike.itself
        inverse = 1 / (pattern[:, None] * spectrum.eigenvalues + nu[used][:, None])
        ones, mean = (spectrum.ones**2 * inverse).sum(axis=1), share * fit.mean[used]
        pull = (pattern[:, None] * inverse).T
        inner = fit.values * (pull @ share) - spectrum.ones[:, None] * (pull @ mean)
        gap = 1 - pattern * (towards @ (spectrum.ones * inverse).T)
        left = np.maximum(itself[:, None] * pattern - pattern**2 * (towards**2 @ inverse.T) + gap**2 / ones, 0.0) + nu[used]
        out += towards @ inner + mean.sum(axis=0)
        variance += left @ (share * fit.sigma[used])
    return out, variance
