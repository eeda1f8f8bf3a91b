"""What chance does: random fields as smooth as the expression, in its place."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from stimg.image.alignment import IDENTITY, ImageMaps, Transform

DRAWS = 199
"""Random fields; the least probability that can be told is one in ``DRAWS`` + 1."""
SHUFFLES = 39
"""Permutations of the observations that the expression has to be smoother than."""
_SEED = 0  # an examination says the same each time
_RIDGE = 1e-6
_CHUNK = 60_000  # positions looked up at once


@dataclass(frozen=True)
class Chance:
    """What random fields as smooth as the expression make of an image.

    Parameters
    ----------
    p
        Probability that such a field, which knows nothing of the image, is explained as much as the expression is where it lies.
    usual
        What the image explains of such fields, mean.
    structured
        Whether the expression is smoother than after its observations are permuted (p of 0.05 or less); where it is not, nothing can be said.
    """

    p: float
    usual: float
    structured: bool


class Fields:
    """Random fields with the spectrum of the expression over its own positions (Moran spectral randomisation).

    Parameters
    ----------
    maps
        Of the image.
    yx
        Positions in pixels of the image, (n, 2).
    values
        From :func:`stimg.image.alignment.expression_values`, (n, n_values).
    step_px
        Distance between neighbours in pixels of the image.

    Notes
    -----
    The values are written in eigenvectors of the centred matrix of Gaussian weights between positions, which order them from smooth to rough; neighbouring pairs of
    coefficients are turned by random angles and given random signs, the same ones for every value, so that smoothness and the relations between the values stay
    (Wagner and Dray, 2015, *Generating spatially constrained null models for irregularly spaced data using Moran spectral randomization methods*, with
    pairs of neighbouring eigenvalues in place of pairs at random).
    """

    def __init__(self, maps: ImageMaps, yx: np.ndarray, values: np.ndarray, *, step_px: float) -> None:
        self._maps, self._yx, self._values = maps, np.asarray(yx, dtype=np.float64), values
        self._rng = np.random.default_rng(_SEED)
        self._smoothness, self._basis = smooth_basis(self._yx, step_px)

    def association(self) -> Chance:
        """Return whether image and expression are associated where they lie."""
        (here,) = (q[0] for q in projections(self._maps, self._yx, [IDENTITY]))
        own = explained(here, self._values).mean()
        each = explained(here, flat(self.drawn(self._values))).reshape(DRAWS, -1).mean(axis=1)
        orders = [np.arange(len(self._yx)), *(self._rng.permutation(len(self._yx)) for _ in range(SHUFFLES))]
        parts = self._basis.T @ flat(self._values[np.stack(orders)]).astype(np.float32)
        smooth = (self._smoothness @ parts**2).reshape(1 + SHUFFLES, -1).sum(axis=1)
        structured = (smooth >= smooth[0]).mean() <= 0.05  # itself among them
        return Chance(float((1 + (each >= own).sum()) / (1 + DRAWS)), float(each.mean()), bool(structured))

    def best(self, transforms: Sequence[Transform]) -> np.ndarray:
        """Return by how much the best of many maps would explain more than none, were the given placement right, float64 (``DRAWS``,).

        The expression is then what the image explains of it, less what it explains of random fields, plus a random field as smooth as the rest.
        """
        (here,) = (q[0] for q in projections(self._maps, self._yx, [IDENTITY]))
        fitted = here @ (here.T @ self._values)
        rest = self.drawn(self._values - fitted)
        by_chance = explained(here, flat(rest)).reshape(DRAWS, -1).mean(axis=0)
        signal = np.clip((explained(here, self._values) - by_chance) / np.maximum(1 - by_chance, 1e-9), 0, 1)
        made = flat(_standardised(np.sqrt(signal) * _standardised(fitted, axis=0) + np.sqrt(1 - signal) * rest, axis=1))
        own = explained(here, made).reshape(DRAWS, -1).mean(axis=1)
        best = np.full(DRAWS, -np.inf)
        for some in projections(self._maps, self._yx, transforms):
            found = explained(some, made).reshape(len(some), DRAWS, -1).mean(axis=2)
            best = np.maximum(best, (found - own).max(axis=0))
        return best

    def drawn(self, values: np.ndarray) -> np.ndarray:
        """Return random fields as smooth as the values, each of mean 0 and variance 1, float32 (``DRAWS``, n, n_values)."""
        of = self._basis.T @ values.astype(np.float32)
        n, n_values = of.shape
        out = of * self._rng.choice(np.array([-1, 1], dtype=np.float32), (DRAWS, n, 1))
        for start in (0, 1):  # every other field pairs the second with the third, and so on
            pairs = slice(start, n - (n - start) % 2)
            turned = out[start::2, pairs].reshape(len(out[start::2]), -1, 2, n_values)
            angle = self._rng.uniform(0, 2 * np.pi, turned.shape[:2]).astype(np.float32)
            cos, sin = np.cos(angle)[..., None], np.sin(angle)[..., None]
            first, second = turned[:, :, 0], turned[:, :, 1]
            both = np.stack([cos * first - sin * second, sin * first + cos * second], axis=2)
            out[start::2, pairs] = both.reshape(len(both), -1, n_values)
        return _standardised(np.swapaxes((self._basis @ flat(out)).reshape(n, DRAWS, n_values), 0, 1), axis=1)


def smooth_basis(yx: np.ndarray, step_px: float) -> tuple[np.ndarray, np.ndarray]:
    """Return eigenvalues, float32 (n,), and eigenvectors, float32 (n, n), of the centred Gaussian weights between positions, the smoothest first."""
    square = (yx**2).sum(axis=1)
    distance = np.maximum(square[:, None] + square - 2 * yx @ yx.T, 0.0)
    weight = np.exp(-distance / (2 * step_px**2)).astype(np.float32)
    np.fill_diagonal(weight, 0.0)
    mean = weight.mean(axis=0)
    values, vectors = np.linalg.eigh(weight - mean - mean[:, None] + mean.mean())
    return values[::-1], vectors[:, ::-1]


def projections(maps: ImageMaps, yx: np.ndarray, transforms: Sequence[Transform]) -> Iterator[np.ndarray]:
    """Yield orthonormal bases of the image's features at mapped positions, float32 (some of the transforms, n, n_features)."""
    n_features, shape = len(maps.features), np.array(maps.tissue.shape)
    table = maps.features.reshape(n_features, -1).T.astype(np.float64)
    table = (table - table.mean(axis=0)) / np.maximum(table.std(axis=0), 1e-9)
    size = max(1, _CHUNK // len(yx))
    for start in range(0, len(transforms), size):
        index = np.floor(np.stack([transform(yx) for transform in transforms[start : start + size]]))
        found = table[np.clip(index, 0, shape - 1).astype(np.int64) @ np.array([shape[1], 1])]
        found -= found.mean(axis=1, keepdims=True)
        gram = np.swapaxes(found, 1, 2) @ found + _RIDGE * len(yx) * np.eye(n_features)
        yield np.swapaxes(np.linalg.solve(np.linalg.cholesky(gram), np.swapaxes(found, 1, 2)), 1, 2).astype(np.float32)


def explained(basis: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the share of the variance of columns (mean 0, variance 1) that lies in a basis, (..., n_columns)."""
    return ((np.swapaxes(basis, -1, -2) @ values.astype(np.float32)) ** 2).sum(axis=-2).astype(np.float64) / len(values)


def flat(fields: np.ndarray) -> np.ndarray:
    """Return fields (draws, n, n_values) as columns, (n, draws x n_values)."""
    return np.ascontiguousarray(np.swapaxes(fields, 0, 1)).reshape(fields.shape[1], -1)


def _standardised(values: np.ndarray, *, axis: int) -> np.ndarray:
    centred = values - values.mean(axis=axis, keepdims=True)
    return np.asarray(centred / np.maximum(centred.std(axis=axis, keepdims=True), 1e-9), dtype=np.float32)
