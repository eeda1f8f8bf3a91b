"""Axes of expression that sections of many donors share, and a regression of them on image features."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import scipy.sparse as sp

from stimg.metrics import separate_ridge
from stimg.model._head_maps import MOST_JUDGED, gene_chunks, most_variable, within
from stimg.model._head_reference import Groups, Reference

LEAST = 1e-12
"""Smallest standard deviation of a latent in units of the largest."""


@dataclass(frozen=True)
class SharedAxes:
    r"""What expression varies along in every donor: how genes follow the depth of an observation, and principal axes of what is left.

    With y the log values of an observation less the mean of its section and d its log depth less that mean, the latents are

    .. math:: z_0 = d, \qquad z = V' (y_J - s_J d)

    where s is the least-squares slope of each gene on d, mean over donors, V the leading eigenvectors of :math:`\sum_{k} C_k / \mathrm{tr}\, C_k`, and
    :math:`C_k` the covariance of :math:`y_J - s_J d` in donor k, for the genes J that vary most. Every donor weighs the same, however many
    sections it has. ``loadings`` lead back, :math:`\hat y = L' z`: row 0 are the slopes, the others V' on J, and least squares with the same weights on
    all other genes.

    Parameters
    ----------
    judged
        Columns of the genes J, int64 (j,).
    slope
        Their slopes on log depth, float64 (j,).
    axes
        V, float64 (j, k).
    loadings
        L, float32 (1 + k, genes).
    """

    judged: np.ndarray
    slope: np.ndarray
    axes: np.ndarray
    loadings: np.ndarray

    @classmethod
    def fit(cls, ref: Reference, n_axes: int, *, centre: bool) -> "SharedAxes":
        """Return the axes of all observations of ``ref``; at most ``n_axes``, fewer where there are fewer genes.

        Raises
        ------
        ValueError
            Where no gene varies.
        """
        member = ref.section if ref.donor is None else ref.donor
        donors = [np.flatnonzero(member == name) for name in np.unique(member)]
        depth = _middled(ref.depth[:, None], ref.section, centre=centre)[:, 0]
        square = [max(float(depth[rows] @ depth[rows]), np.finfo(float).tiny) for rows in donors]

        def slopes(dense: np.ndarray) -> np.ndarray:
            return np.mean([dense[rows].T @ depth[rows] / s for rows, s in zip(donors, square, strict=True)], axis=0)

        judged = most_variable(ref.values, MOST_JUDGED)
        y = _middled(ref.values[:, judged].toarray().astype(np.float64), ref.section, centre=centre)
        slope = slopes(y)
        y -= depth[:, None] * slope
        traces = np.array([np.einsum("ij,ij->", y[rows], y[rows]) for rows in donors])
        if not traces.sum() > 0:
            raise ValueError("the log values of the reference do not vary; wanted genes with counts that differ between observations.")
        weights = np.divide(1.0, traces, out=np.zeros(len(traces)), where=traces > 0)
        pooled = np.zeros((len(judged), len(judged)))
        for rows, weight in zip(donors, weights, strict=True):
            pooled += weight * (y[rows].T @ y[rows])
        axes = _leading(pooled, n_axes)
        scores = y @ axes
        own = sum(weight * (scores[rows].T @ scores[rows]) for rows, weight in zip(donors, weights, strict=True))
        loadings = np.zeros((1 + axes.shape[1], ref.values.shape[1]), dtype=np.float32)
        for part in gene_chunks(ref.values.shape[1]):
            dense = _middled(ref.values[:, part].toarray().astype(np.float64), ref.section, centre=centre)
            loadings[0, part] = slopes(dense)
            dense -= depth[:, None] * loadings[0, part].astype(np.float64)
            cross = sum(weight * (scores[rows].T @ dense[rows]) for rows, weight in zip(donors, weights, strict=True))
            if axes.shape[1]:
                loadings[1:, part] = scipy.linalg.solve(own, cross, assume_a="pos")
        return cls(judged, slope, axes, loadings)

    def latents(self, values: sp.csr_matrix, depth: np.ndarray, section: np.ndarray, *, centre: bool) -> np.ndarray:
        """Return depth and scores of observations, float64 (n, 1 + k); ``values`` are the log values of the genes J, ``depth`` log depths."""
        d = _middled(depth[:, None], section, centre=centre)
        y = _middled(values.toarray().astype(np.float64), section, centre=centre)
        return np.hstack([d, (y - d * self.slope) @ self.axes])


def _leading(pooled: np.ndarray, n_axes: int) -> np.ndarray:
    """Return the eigenvectors (genes, k) of the largest eigenvalues, the largest first; those of eigenvalue 0 are left out."""
    n = len(pooled)
    if n_axes == 0:
        return np.zeros((n, 0))
    size, vectors = scipy.linalg.eigh(pooled, subset_by_index=[max(n - n_axes, 0), n - 1])
    return vectors[:, size > LEAST * max(size[-1], 1.0)][:, ::-1]


def _middled(values: np.ndarray, section: np.ndarray, *, centre: bool) -> np.ndarray:
    """Return ``values`` less the mean of their section, or of all rows."""
    return within(values, section, centre=True) if centre else values - values.mean(axis=0)


@dataclass(frozen=True)
class AxesMap:
    r"""A regression of the latents of :class:`SharedAxes` on features, and back to genes: :math:`\hat y = \bar y + L' (g \odot (B' x + b))`.

    Each latent has a ridge penalty of its own, and a gain g, the slope of truth on prediction where groups are left out in turn, 0 at least: one that
    the image does not tell is left out of the sum.

    Parameters
    ----------
    axes
        The latents.
    coefficients, intercept
        B, float32 (columns, 1 + k), and b, float32 (1 + k,).
    mean
        Mean log values of the reference, float32 (genes,).
    penalty, gain
        Of each latent, float64 (1 + k,).
    agreement
        Correlation of each latent with its prediction, within sections, where groups are left out in turn; 0 at least, float64 (1 + k,).
    spread
        Standard deviation of predicted and of true latents, float64 (2, 1 + k).
    """

    axes: SharedAxes
    coefficients: np.ndarray
    intercept: np.ndarray
    mean: np.ndarray
    penalty: np.ndarray
    gain: np.ndarray
    agreement: np.ndarray
    spread: np.ndarray

    @classmethod
    def fit(cls, x: np.ndarray, ref: Reference, groups: Groups, axes: SharedAxes, *, centre: bool, n_components: int | None) -> "AxesMap":
        """Return the regression on ``x`` (n, columns), centred already where ``centre`` is True."""
        z = axes.latents(ref.values[:, axes.judged], ref.depth, ref.section, centre=centre)
        found = separate_ridge(x, z, group=groups.label, section=ref.section, n_components=n_components)
        truth = _middled(z, ref.section, centre=True)
        guess = _middled(found.held_out, ref.section, centre=True)
        both, squares = np.maximum((guess * truth).sum(axis=0), 0.0), (guess**2).sum(axis=0)
        varies = (squares > 0) & (truth.std(axis=0) > 0)
        gain = np.divide(both, squares, out=np.zeros(len(squares)), where=varies)
        agreement = np.divide(both, np.sqrt(squares * (truth**2).sum(axis=0)), out=np.zeros(len(squares)), where=varies)
        spread = np.stack([found.linear.predict(x).std(axis=0), z.std(axis=0)])
        mean = np.asarray(ref.values.mean(axis=0), dtype=np.float32).ravel()
        return cls(
            axes,
            found.linear.coefficients.astype(np.float32),
            found.linear.intercept.astype(np.float32),
            mean,
            found.penalty,
            gain,
            agreement,
            spread,
        )

    def prepare(self, x: np.ndarray) -> np.ndarray:
        """Return the predicted latents of features (n, columns), float64 (n, 1 + k), before the gain."""
        return np.asarray(x @ self.coefficients.astype(np.float64) + self.intercept)

    def values(self, prepared: np.ndarray, genes: slice | np.ndarray) -> np.ndarray:
        """Return the predictions of some genes, float32 (n, genes)."""
        return ((prepared * self.gain) @ self.axes.loadings[:, genes].astype(np.float64) + self.mean[genes]).astype(np.float32)

    def joint(self, latents: np.ndarray, *, predicted: bool) -> np.ndarray:
        """Return latents in the space where image and expression meet, float32 (n, 1 + k): of unit variance, times their agreement."""
        spread = self.spread[0 if predicted else 1]
        unit = np.divide(1.0, spread, out=np.zeros_like(spread), where=spread > LEAST * max(float(spread.max()), 1e-300))
        return (latents * unit * self.agreement).astype(np.float32)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what is saved; :meth:`from_arrays` is the inverse."""
        own = {name: getattr(self, name) for name in ("coefficients", "intercept", "mean", "penalty", "gain", "agreement", "spread")}
        return {**own, **{f"axes.{name}": getattr(self.axes, name) for name in ("judged", "slope", "axes", "loadings")}}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "AxesMap":
        """Return the map of :meth:`arrays`."""
        own = {name: each for name, each in arrays.items() if not name.startswith("axes.")}
        return cls(SharedAxes(**{name.removeprefix("axes."): each for name, each in arrays.items() if name.startswith("axes.")}), **own)
