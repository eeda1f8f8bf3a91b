"""Principal axes of expression: the gene encoder that needs no training."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from scipy import linalg
from scipy.sparse.linalg import LinearOperator, svds

EXACT = 2000
"""Up to so many observations or genes the axes are those of an eigendecomposition; above, of Lanczos iterations, which are for few of many axes."""


@dataclass(frozen=True)
class PCAMap:
    """Log values less their means, over their spreads where these are used, on orthonormal axes.

    Parameters
    ----------
    mean, scale
        float64 (genes,); the scale is 1 everywhere, or the spread of the training observations (infinite for a gene that does not vary).
    axes
        float64 (genes, n), columns of length 1.
    share
        float64 (n,), share of the variance along each axis.
    """

    mean: np.ndarray
    scale: np.ndarray
    axes: np.ndarray
    share: np.ndarray

    def __call__(self, values: sp.csr_matrix) -> np.ndarray:
        """Return the scores of log values (n_obs, genes), float32 (n_obs, n)."""
        weights = self.axes / self.scale[:, None]
        return np.asarray(values @ weights - self.mean @ weights, dtype=np.float32)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what :meth:`restore` needs."""
        return {"mean": self.mean, "scale": self.scale, "axes": self.axes, "share": self.share}

    @classmethod
    def restore(cls, arrays: Mapping[str, Any]) -> "PCAMap":
        """Return the map of :meth:`arrays`."""
        return cls(*(np.asarray(arrays[name], dtype=np.float64) for name in ("mean", "scale", "axes", "share")))


def fit_pca(values: sp.csr_matrix, n: int, *, scale: bool, rng: np.random.Generator, fewer: bool = False) -> PCAMap:
    """Return the first ``n`` principal axes of log values (n_obs, genes).

    Parameters
    ----------
    values
        float64; never made dense.
    n
        Number of axes.
    scale
        Whether every gene has the variance 1.
    rng
        Start of the iterations; to rounding it does not matter.
    fewer
        Whether fewer axes may be returned where the observations span fewer directions.

    Raises
    ------
    ValueError
        Where the observations span fewer directions, or none.

    Notes
    -----
    The sign of an axis is such that its largest weight is positive.
    """
    rows, genes = values.shape
    mean = np.asarray(values.mean(axis=0)).ravel()
    variance = np.maximum(np.asarray(values.multiply(values).mean(axis=0)).ravel() - mean**2, 0.0)
    spread = np.sqrt(variance)
    divisor = np.where(spread > 1e-9, spread, np.inf) if scale else np.ones(genes)
    part = sp.csr_matrix(values @ sp.diags_array(1.0 / divisor))
    centre = mean / divisor
    total = float(rows * np.sum(variance / divisor**2))
    if min(rows, genes) <= EXACT or 2 * n > min(rows, genes):
        squares, axes = _exact(part, centre, n)
    else:
        squares, axes = _iterated(part, centre, n, rng)
    rank = int((squares > 1e-10 * max(total, 1e-300)).sum())
    if fewer and rank:
        n, squares, axes = min(n, rank), squares[:rank], axes[:, :rank]
    if rank < n:
        raise ValueError(
            f"the {rows} training observations span {rank} directions of {genes} genes; wanted n_features={n}. Ask for fewer, or fit on more observations."
        )
    strongest = axes[np.abs(axes).argmax(axis=0), np.arange(n)]
    return PCAMap(mean, divisor, axes * np.where(strongest < 0, -1.0, 1.0), squares / total)


def _exact(part: sp.csr_matrix, centre: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return squared singular values and axes by the smaller of the two matrices of products."""
    rows, genes = part.shape
    if genes <= rows:
        products = (part.T @ part).toarray() - rows * np.outer(centre, centre)
        squares, axes = linalg.eigh(products, subset_by_index=[genes - n, genes - 1])
        return np.maximum(squares[::-1], 0.0), axes[:, ::-1]
    cross = part @ centre
    products = (part @ part.T).toarray() - cross[:, None] - cross[None] + centre @ centre
    squares, left = linalg.eigh(products, subset_by_index=[rows - n, rows - 1])
    squares, left = np.maximum(squares[::-1], 0.0), left[:, ::-1]
    axes = part.T @ left - np.outer(centre, left.sum(axis=0))
    length = np.linalg.norm(axes, axis=0)
    return squares, axes / np.where(length > 0, length, 1.0)


def _iterated(part: sp.csr_matrix, centre: np.ndarray, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return the same by Lanczos iterations on the centred matrix, which is never formed."""
    rows, genes = part.shape

    def forward(x: np.ndarray) -> np.ndarray:
        return part @ x - centre @ x

    def back(y: np.ndarray) -> np.ndarray:
        return part.T @ y - np.multiply.outer(centre, y.sum(axis=0))

    operator = LinearOperator((rows, genes), matvec=forward, rmatvec=back, matmat=forward, rmatmat=back, dtype=np.float64)
    _, singular, axes = svds(operator, k=n, v0=rng.standard_normal(min(rows, genes)))
    order = np.argsort(-singular)
    return singular[order] ** 2, axes[order].T
