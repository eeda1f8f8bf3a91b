"""Nulls and rivals for retrieval between images and expression; each returns two encoders."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import scipy.linalg

from stimg._core import keys
from stimg.bench.method import Prediction, method
from stimg.bench.methods.expression import held_out
from stimg.bench.protocol import Task, library_of
from stimg.bench.values import log_values
from stimg.data.ledger import recall
from stimg.metrics import retrieve, ridge

if TYPE_CHECKING:
    from anndata import AnnData

KINDS = ("retrieval",)
COMPONENTS = 8
PENALTY = 0.1
"""Of ridge, in units of the mean variance of the columns."""
PENALTIES = (0.1, 1.0, 10.0, 100.0)
"""Of each side of canonical correlation, in the same unit; a pair is chosen by leaving out training donors, for a wide embedding needs a larger one."""


class _Side:
    """One side of the pairs (n, columns) on its principal axes, after one eigendecomposition in the smaller of the two dimensions."""

    def __init__(self, values: np.ndarray) -> None:
        n, p = values.shape
        squares, vectors = scipy.linalg.eigh(values.T @ values if p <= n else values @ values.T)
        kept = squares >= 1e-12 * squares[-1]
        self.squares, vectors = np.maximum(squares[kept], 0), vectors[:, kept]
        self.axes = vectors if p <= n else values.T @ (vectors / np.sqrt(np.maximum(self.squares, np.finfo(float).tiny)))
        self.scores = values @ self.axes
        self.unit = max(self.squares.sum() / p, np.finfo(float).tiny)

    def weights(self, penalty: float) -> np.ndarray:
        return 1.0 / np.sqrt(self.squares + penalty * self.unit)


def _correlated(x: _Side, y: _Side, cross: np.ndarray, n_components: int, penalties: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    w_x, w_y = x.weights(penalties[0]), y.weights(penalties[1])
    left, correlation, right = scipy.linalg.svd(w_x[:, None] * cross * w_y, full_matrices=False)
    n = min(n_components, len(correlation))
    scale = np.sqrt(correlation[:n])
    return x.axes @ (w_x[:, None] * left[:, :n] * scale), y.axes @ (w_y[:, None] * right[:n].T * scale)


def ridge_cca(x: np.ndarray, y: np.ndarray, n_components: int, penalties: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    r"""Return the coefficients (columns of x, n) and (columns of y, n) of canonical correlation with a ridge on each side.

    Both sides centred: the singular vectors of :math:`(X'X + \lambda_x I)^{-1/2} X'Y (Y'Y + \lambda_y I)^{-1/2}`, taken back to the columns
    (Vinod 1976, J. Econometrics 4, 147-166), each scaled by its correlation so that weak directions weigh less in a similarity.
    """
    sides = _Side(x), _Side(y)
    return _correlated(*sides, sides[0].scores.T @ sides[1].scores, n_components, penalties)


def _chosen(x: np.ndarray, y: np.ndarray, group: np.ndarray, section: np.ndarray) -> tuple[float, float]:
    """Return the two penalties with the lowest mean log rank when each group in turn is left out; equal ones go to the larger."""
    grid = [(p, q) for p in reversed(PENALTIES) for q in reversed(PENALTIES)]
    ranks = np.zeros(len(grid))
    for name in np.unique(group):
        held = group == name
        sides = _Side(x[~held]), _Side(y[~held])
        cross = sides[0].scores.T @ sides[1].scores
        for i, penalties in enumerate(grid):
            left, right = _correlated(*sides, cross, COMPONENTS, penalties)
            for one in np.unique(section[held]):
                rows = held & (section == one)
                image, expression = x[rows] @ left, y[rows] @ right
                found = retrieve(image, expression), retrieve(expression, image)
                ranks[i] += sum(np.log(f.rank / f.gallery).mean() for f in found) / len(np.unique(section[held]))
    return grid[int(np.argmin(ranks))]


def _standardised(
    task: Task, features: Callable[["AnnData"], np.ndarray]
) -> tuple[np.ndarray, np.ndarray, Callable[["AnnData"], np.ndarray]]:
    """Return training features and values, centred within each section, and the function that does the same to a section's features."""
    x = [features(a) for a in task.train]
    scale = np.concatenate([each - each.mean(axis=0) for each in x]).std(axis=0)
    scale[scale == 0] = 1.0

    def prepared(adata: "AnnData") -> np.ndarray:
        found = features(adata)
        return (found - found.mean(axis=0)) / scale

    y = np.concatenate([_centred(task.target(a)) for a in task.train])
    return np.concatenate([prepared(a) for a in task.train]), y, prepared


def _centred(values: np.ndarray) -> np.ndarray:
    return values - values.mean(axis=0)


def _cca(task: Task, features: Callable[["AnnData"], np.ndarray], fitted: tuple = ()) -> Prediction:
    x, y, prepared = _standardised(task, features)
    section = np.concatenate([[library_of(a)] * a.n_obs for a in task.train])
    penalties = _chosen(x, y, held_out(task), section)
    left, right = ridge_cca(x, y, COMPONENTS, penalties)
    encoders = {
        "image": lambda a: prepared(a) @ left,
        "expression": lambda a: _centred(np.nan_to_num(log_values(a, genes=task.genes))) @ right,
    }
    return Prediction(encoders, fitted, {"penalties": list(penalties)})


def _coordinates(adata: "AnnData") -> np.ndarray:
    """Return row and column with their squares and product, so that a middle can differ from all edges."""
    rc = np.asarray(adata.obsm[keys.RC], dtype=np.float64)
    return np.column_stack([rc, rc**2, rc[:, :1] * rc[:, 1:]])


def _colours(adata: "AnnData") -> np.ndarray:
    return np.asarray(adata.obsm[keys.COLOUR], dtype=np.float64)


@method("random encoders", kinds=KINDS, role="null", seeded=True)
def random_encoders(task: Task, rng: np.random.Generator) -> Mapping[str, Callable[["AnnData"], np.ndarray]]:
    """Random embeddings on both sides: chance."""
    return dict.fromkeys(("image", "expression"), lambda a: rng.standard_normal((a.n_obs, 16)).astype(np.float32))


@method("coordinates CCA", kinds=KINDS, role="null")
def coordinates_cca(task: Task, rng: np.random.Generator) -> Prediction:
    """Canonical correlation of row and column (and their squares) with expression; sees no pixel."""
    return _cca(task, _coordinates)


@method("colour CCA", kinds=KINDS, role="rival", needs=(keys.COLOUR,))
def colour_cca(task: Task, rng: np.random.Generator) -> Prediction:
    """Canonical correlation of 48 colour statistics with expression, 8 components."""
    return _cca(task, _colours)


def feature_encoders(task: Task, key: str) -> Prediction:
    """Return ridge-CCA encoders on ``obsm[key]``, for embeddings of any image encoder."""
    fitted = [seen for a in (*task.train, *task.test) for seen in recall(a, only=[key])]
    return _cca(task, lambda a: np.asarray(a.obsm[key], dtype=np.float64), tuple(fitted))


@method("colour ridge, retrieval", kinds=KINDS, role="rival", needs=(keys.COLOUR,))
def colour_ridge(task: Task, rng: np.random.Generator) -> Mapping[str, Callable[["AnnData"], np.ndarray]]:
    """Expression predicted from colour statistics as the image's embedding, expression itself as the other."""
    x, y, prepared = _standardised(task, _colours)
    line = ridge(x, y, penalty=PENALTY)
    return {"image": lambda a: line.predict(prepared(a)), "expression": lambda a: _centred(np.nan_to_num(log_values(a, genes=task.genes)))}
