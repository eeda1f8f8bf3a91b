"""Nulls and rivals for retrieval between images and expression; each returns two encoders."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import scipy.linalg

from stimg._core import keys
from stimg.bench.method import Prediction, method
from stimg.bench.protocol import Task
from stimg.bench.values import log_values
from stimg.data.ledger import recall
from stimg.metrics import ridge

if TYPE_CHECKING:
    from anndata import AnnData

KINDS = ("retrieval",)
COMPONENTS = 8
PENALTY = 0.1
"""Of canonical correlation and ridge, in units of the mean variance of the columns."""


def ridge_cca(x: np.ndarray, y: np.ndarray, n_components: int, penalty: float) -> tuple[np.ndarray, np.ndarray]:
    r"""Return the coefficients (columns of x, n) and (columns of y, n) of canonical correlation with a ridge on both sides.

    Both sides centred: the singular vectors of :math:`(X'X + \lambda_x I)^{-1/2} X'Y (Y'Y + \lambda_y I)^{-1/2}`, taken back to the columns
    (Vinod 1976, J. Econometrics 4, 147-166), each scaled by its correlation so that weak directions weigh less in a similarity.
    """
    roots = []
    for side in (x, y):
        gram = side.T @ side
        values, vectors = scipy.linalg.eigh(gram)
        unit = penalty * np.trace(gram) / len(gram)
        roots.append((vectors / np.sqrt(np.maximum(values, 0) + unit)) @ vectors.T)
    left, correlation, right = scipy.linalg.svd(roots[0] @ x.T @ y @ roots[1], full_matrices=False)
    n = min(n_components, len(correlation))
    scale = np.sqrt(correlation[:n])
    return roots[0] @ left[:, :n] * scale, roots[1] @ right[:n].T * scale


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


def _cca(task: Task, features: Callable[["AnnData"], np.ndarray]) -> Mapping[str, Callable[["AnnData"], np.ndarray]]:
    x, y, prepared = _standardised(task, features)
    left, right = ridge_cca(x, y, COMPONENTS, PENALTY)
    return {"image": lambda a: prepared(a) @ left, "expression": lambda a: _centred(np.nan_to_num(log_values(a, genes=task.genes))) @ right}


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
def coordinates_cca(task: Task, rng: np.random.Generator) -> Mapping[str, Callable[["AnnData"], np.ndarray]]:
    """Canonical correlation of row and column (and their squares) with expression; sees no pixel."""
    return _cca(task, _coordinates)


@method("colour CCA", kinds=KINDS, role="rival", needs=(keys.COLOUR,))
def colour_cca(task: Task, rng: np.random.Generator) -> Mapping[str, Callable[["AnnData"], np.ndarray]]:
    """Canonical correlation of 48 colour statistics with expression, 8 components."""
    return _cca(task, _colours)


def feature_encoders(task: Task, key: str) -> Prediction:
    """Return ridge-CCA encoders on ``obsm[key]``, for embeddings of any image encoder."""
    fitted = [seen for a in (*task.train, *task.test) for seen in recall(a, only=[key])]
    return Prediction(_cca(task, lambda a: np.asarray(a.obsm[key], dtype=np.float64)), tuple(fitted))


@method("colour ridge, retrieval", kinds=KINDS, role="rival", needs=(keys.COLOUR,))
def colour_ridge(task: Task, rng: np.random.Generator) -> Mapping[str, Callable[["AnnData"], np.ndarray]]:
    """Expression predicted from colour statistics as the image's embedding, expression itself as the other."""
    x, y, prepared = _standardised(task, _colours)
    line = ridge(x, y, penalty=PENALTY)
    return {"image": lambda a: line.predict(prepared(a)), "expression": lambda a: _centred(np.nan_to_num(log_values(a, genes=task.genes)))}
