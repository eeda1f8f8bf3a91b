"""Nulls and rivals for imputation within a section: weighted means of its observed values, one sparse matrix of weights for all genes."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
from scipy.spatial import Delaunay, KDTree, QhullError

from stimg._core import keys
from stimg.bench.method import Prediction, method
from stimg.bench.protocol import Hidden, Task, library_of
from stimg.data.slots import raster_libraries
from stimg.image.lattice import neighbour_pairs
from stimg.metrics import neighbour_mean, permute_labels
from stimg.metrics.nulls import TIE, k_nearest_weights

if TYPE_CHECKING:
    from anndata import AnnData

KINDS = ("imputation",)
NEIGHBOURS = 8
BANDWIDTHS = (0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0)
"""Bandwidths of the Gaussian among which is chosen, in pitches."""
ROWS = 4096
"""Places whose weights are in memory at a time, and most observed spots, evenly through the section, that are left out to choose by."""
REACH = 4.0
"""Bandwidths beyond which a weight is taken as 0, relative to that of the nearest observation."""

Weights = Callable[[np.ndarray, np.ndarray], sp.csr_matrix]
"""From the places of observed (n, 2) and of wanted values (m, 2) to weights (m, n) whose rows sum to 1."""


def places(adata: "AnnData") -> np.ndarray:
    """Return the (y, x) lattice points of a section's observations, float64 (n_obs, 2), in pitches."""
    (library,) = raster_libraries(adata).values()
    return library.spec.lattice_points(library.rc)


def weighted(task: Task, weights: Weights) -> dict[str, np.ndarray]:
    """Return the weighted means of the observed values at the hidden observations, by library."""
    return {library_of(a): weights(places(a), places(task.where[library_of(a)])) @ task.target(a) for a in task.test}


def _matrix(rows: np.ndarray, columns: np.ndarray, weight: np.ndarray, shape: tuple[int, int]) -> sp.csr_matrix:
    """Return the weights as CSR, each row that has any scaled to a sum of 1."""
    total = np.bincount(rows, weights=weight, minlength=shape[0])
    return sp.csr_matrix((weight / total[rows], (rows, columns)), shape=shape)


def nearest_weights(known: np.ndarray, wanted: np.ndarray) -> sp.csr_matrix:
    """Return weights of the nearest observed place; of equally near ones the first in reading order."""
    order = np.lexsort(known.T[::-1])
    tree = KDTree(known[order])
    near = tree.query_ball_point(wanted, tree.query(wanted)[0] * (1 + TIE))
    columns = order[[min(group) for group in near]]
    return _matrix(np.arange(len(wanted)), columns, np.ones(len(wanted)), (len(wanted), len(known)))


def linear_weights(known: np.ndarray, wanted: np.ndarray) -> sp.csr_matrix:
    """Return barycentric weights in the Delaunay triangle around each wanted place; outside the hull, the nearest.

    On a lattice four or six places lie on one circle and the triangulation is one of several; the observations are put into reading order
    before it is made, so that it does not depend on theirs.
    """
    out = nearest_weights(known, wanted)
    order = np.lexsort(known.T[::-1])
    try:
        mesh = Delaunay(known[order])
    except QhullError:  # all on one line, or fewer than three: there is no triangle
        return out
    triangle = mesh.find_simplex(wanted, tol=TIE)
    inside = np.flatnonzero(triangle >= 0)
    map_ = mesh.transform[triangle[inside]]
    two = np.einsum("ijk,ik->ij", map_[:, :2], wanted[inside] - map_[:, 2])
    share = np.maximum(np.column_stack([two, 1 - two.sum(axis=1)]), 0)
    corners = order[mesh.simplices[triangle[inside]]]
    keep = sp.diags_array((triangle < 0).astype(float))
    return sp.csr_matrix(keep @ out + _matrix(np.repeat(inside, 3), corners.ravel(), share.ravel(), out.shape))


def neighbour_weights(known: np.ndarray, wanted: np.ndarray) -> sp.csr_matrix:
    """Return equal weights of the 8 nearest; those at the eighth distance share the places that are left."""
    return k_nearest_weights(known, wanted, min(NEIGHBOURS, len(known)))


def inverse_distance_weights(known: np.ndarray, wanted: np.ndarray) -> sp.csr_matrix:
    """Return the weights of :func:`neighbour_weights` over the squared distance (Shepard 1968, Proc. ACM National Conference, 517-524)."""
    near = neighbour_weights(known, wanted).tocoo()
    square = ((wanted[near.row] - known[near.col]) ** 2).sum(axis=1)
    return _matrix(near.row, near.col, near.data / square, near.shape)


def gaussian_mean(known: np.ndarray, values: np.ndarray, wanted: np.ndarray, bandwidth: float, own: np.ndarray | None = None) -> np.ndarray:
    r"""Return means of ``values`` with weights :math:`\exp(-d^2 / 2 h^2)` (Nadaraya 1964; Watson 1964), float64 (wanted places, genes).

    Relative to the nearest place, weights below :math:`\exp(-8)` are left out, so that some weight is left, however small the bandwidth. ``own`` names
    for each wanted place the observed one that must not count.
    """
    tree, out = KDTree(known), np.empty((len(wanted), values.shape[1]))
    for start in range(0, len(wanted), ROWS):
        block = wanted[start : start + ROWS]
        first = tree.query(block, k=[1 if own is None else 2])[0][:, 0]
        near = tree.query_ball_point(block, np.sqrt(first**2 + (REACH * bandwidth) ** 2))
        rows = np.repeat(np.arange(len(near)), [len(group) for group in near])
        columns = np.concatenate(near).astype(np.int64)
        if own is not None:
            other = columns != own[start : start + ROWS][rows]
            rows, columns = rows[other], columns[other]
        square = ((block[rows] - known[columns]) ** 2).sum(axis=1)
        weight = np.exp((first[rows] ** 2 - square) / (2 * bandwidth**2))
        out[start : start + ROWS] = _matrix(rows, columns, weight, (len(block), len(known))) @ values
    return out


@method("section mean", kinds=KINDS, role="null")
def section_mean(task: Task, rng: np.random.Generator) -> Mapping[str, Any]:
    """Mean of the observed spots: r is 0 by definition; its interval is their standard deviation."""
    out = {}
    for a in task.test:
        values, shape = task.target(a), (task.where[library_of(a)].n_obs, 1)
        out[library_of(a)] = {"mean": np.tile(values.mean(axis=0), shape), "sd": np.tile(values.std(axis=0), shape)}
    return out


@method("nearest", kinds=KINDS, role="rival")
def nearest(task: Task, rng: np.random.Generator) -> Mapping[str, np.ndarray]:
    """Value of the nearest observed spot; of equally near ones the first in reading order."""
    return weighted(task, nearest_weights)


@method("linear", kinds=KINDS, role="rival")
def linear(task: Task, rng: np.random.Generator) -> Mapping[str, np.ndarray]:
    """Linear interpolation in Delaunay triangles of the observed spots; outside their hull, the nearest."""
    return weighted(task, linear_weights)


@method("k-NN 8", kinds=KINDS, role="rival")
def k_nearest(task: Task, rng: np.random.Generator) -> Mapping[str, np.ndarray]:
    """Mean of the 8 nearest observed spots; those at the eighth distance share the places that are left."""
    return weighted(task, neighbour_weights)


@method("inverse distance 8", kinds=KINDS, role="rival")
def inverse_distance(task: Task, rng: np.random.Generator) -> Mapping[str, np.ndarray]:
    """Mean of the 8 nearest observed spots, weighted by the inverse of the squared distance."""
    return weighted(task, inverse_distance_weights)


@method("Gaussian", kinds=KINDS, role="rival")
def gaussian(task: Task, rng: np.random.Generator) -> Prediction:
    """Gaussian-weighted mean of the observed spots; one bandwidth for all genes and the interval come from leaving single observed spots out."""
    out, chosen = {}, {}
    for a in task.test:
        name, values, known = library_of(a), task.target(a), places(a)
        order = np.lexsort(known.T[::-1])
        left = order[np.unique(np.linspace(0, len(known) - 1, min(len(known), ROWS)).astype(np.int64))]
        variance = values.var(axis=0)
        varies = variance > 0
        errors = [((gaussian_mean(known, values, known[left], h, left) - values[left]) ** 2).mean(axis=0) for h in BANDWIDTHS]
        best = int(np.argmin([(e[varies] / variance[varies]).sum() for e in errors]))
        chosen[name] = BANDWIDTHS[best]
        predicted = gaussian_mean(known, values, places(task.where[name]), BANDWIDTHS[best])
        out[name] = {"mean": predicted, "sd": np.tile(np.sqrt(errors[best]), (len(predicted), 1))}
    return Prediction(out, notes={"bandwidth in pitches": chosen})


@method("true neighbours", kinds=KINDS, role="audit")
def true_neighbours(task: Task, rng: np.random.Generator, hidden: Hidden) -> Mapping[str, np.ndarray]:
    """Mean of the true values of each hidden spot's neighbours on the lattice, hidden ones included: how smooth the truth is."""
    out = {}
    for a in task.test:
        name = library_of(a)
        (library,) = raster_libraries(a).values()
        rc = np.concatenate([library.rc, task.where[name].obsm[keys.RC]])
        pairs = neighbour_pairs(library.spec, rc, diagonal=library.spec.lattice == "square")
        out[name] = neighbour_mean(np.concatenate([task.target(a), hidden.truth[name]]), pairs)[a.n_obs :]
    return out


@method("hidden values permuted", kinds=("imputation", "completion"), role="audit", seeded=True)
def permuted(task: Task, rng: np.random.Generator, hidden: Hidden) -> Mapping[str, np.ndarray]:
    """Truth of the section in random order: chance."""
    return {name: permute_labels(np.nan_to_num(hidden.truth[name]), rng=rng) for name in task.asked()}
