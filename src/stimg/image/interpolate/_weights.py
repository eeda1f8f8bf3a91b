"""Interpolators that are one sparse matrix of weights for all genes: nearest, linear, mean of the k nearest, inverse distance."""

import numpy as np
import scipy.sparse as sp
from scipy.spatial import Delaunay, KDTree, QhullError

from stimg._core import validate
from stimg.image.interpolate._arrays import Interpolated, checked, reading_order

TIE = 1e-9
"""Relative difference below which two distances are equal."""
ROWS = 4096
"""Places whose weights are looked up at a time."""
NEIGHBOURS = 8


def nearest(known: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> Interpolated:
    """Return the values of the nearest known place; of equally near ones the first in reading order."""
    known, values, wanted = checked(known, values, wanted)
    return Interpolated(nearest_weights(known, wanted) @ values)


def linear(known: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> Interpolated:
    """Return linear interpolation in Delaunay triangles of the known places; outside their hull, the nearest."""
    known, values, wanted = checked(known, values, wanted)
    return Interpolated(linear_weights(known, wanted) @ values)


def k_nearest(known: np.ndarray, values: np.ndarray, wanted: np.ndarray, *, k: int = NEIGHBOURS) -> Interpolated:
    """Return the mean of the ``k`` nearest known places; those at the k-th distance share the places that are left."""
    known, values, wanted = checked(known, values, wanted)
    return Interpolated(k_nearest_weights(known, wanted, min(validate.whole(k, "k"), len(known))) @ values)


def inverse_distance(known: np.ndarray, values: np.ndarray, wanted: np.ndarray, *, k: int = NEIGHBOURS, power: float = 2.0) -> Interpolated:
    """Return the mean of the ``k`` nearest known places, weighted by distance to the power of ``-power`` (Shepard 1968, ACM '68, 517-524).

    A wanted place on a known one gets its value.
    """
    known, values, wanted = checked(known, values, wanted)
    validate.positive(power, "power")
    return Interpolated(inverse_distance_weights(known, wanted, k=validate.whole(k, "k"), power=power) @ values)


def scaled_rows(rows: np.ndarray, columns: np.ndarray, weight: np.ndarray, shape: tuple[int, int]) -> sp.csr_matrix:
    """Return the weights as CSR, each row that has any scaled to a sum of 1."""
    total = np.bincount(rows, weights=weight, minlength=shape[0])
    return sp.csr_matrix((weight / total[rows], (rows, columns)), shape=shape)


def nearest_weights(known: np.ndarray, wanted: np.ndarray) -> sp.csr_matrix:
    """Return weights (wanted, known) of the nearest known place; of equally near ones the first in reading order."""
    order = reading_order(known)
    tree = KDTree(known[order])
    near = tree.query_ball_point(wanted, tree.query(wanted)[0] * (1 + TIE))
    columns = order[np.array([min(group) for group in near], dtype=np.int64)]
    return scaled_rows(np.arange(len(wanted)), columns, np.ones(len(wanted)), (len(wanted), len(known)))


def linear_weights(known: np.ndarray, wanted: np.ndarray) -> sp.csr_matrix:
    """Return barycentric weights in the Delaunay triangle around each wanted place; outside the hull, the nearest.

    On a lattice four or six places lie on one circle and the triangulation is one of several; the known places are put into reading order
    before it is made, so that it does not depend on theirs.
    """
    out = nearest_weights(known, wanted)
    order = reading_order(known)
    try:
        mesh = Delaunay(known[order])
    except (QhullError, ValueError):  # all on one line, or fewer than three: there is no triangle
        return out
    triangle = mesh.find_simplex(wanted, tol=TIE)
    inside = np.flatnonzero(triangle >= 0)
    map_ = mesh.transform[triangle[inside]]
    two = np.einsum("ijk,ik->ij", map_[:, :2], wanted[inside] - map_[:, 2])
    share = np.maximum(np.column_stack([two, 1 - two.sum(axis=1)]), 0)
    corners = order[mesh.simplices[triangle[inside]]]
    keep = sp.diags_array((triangle < 0).astype(float))
    return sp.csr_matrix(keep @ out + scaled_rows(np.repeat(inside, 3), corners.ravel(), share.ravel(), out.shape))


def k_nearest_weights(known: np.ndarray, wanted: np.ndarray, k: int) -> sp.csr_matrix:
    """Return weights (wanted, known) whose rows sum to 1: the ``k`` nearest, those at the k-th distance sharing the places that are left.

    ``k`` is at most the number of known places; places may have any number of dimensions.
    """
    tree, n = KDTree(known), len(known)
    rows, columns, weights = [], [], []
    for start in range(0, len(wanted), ROWS):
        left, ask = np.arange(start, min(start + ROWS, len(wanted))), min(k + 16, n)
        while len(left):
            distance, index = tree.query(wanted[left], k=np.arange(1, ask + 1))
            limit = distance[:, k - 1 : k]
            tied = np.abs(distance - limit) <= TIE * limit
            done = np.ones(len(left), bool) if ask == n else ~tied[:, -1]
            nearer = (distance < limit) & ~tied
            places = k - nearer.sum(axis=1, keepdims=True)
            weight = (nearer + tied * places / np.maximum(tied.sum(axis=1, keepdims=True), 1)) / k
            weight[~done] = 0
            row, column = np.nonzero(weight)
            rows.append(left[row])
            columns.append(index[row, column])
            weights.append(weight[row, column])
            left, ask = left[~done], min(2 * ask, n)
    none = np.zeros(0, dtype=np.int64)
    parts = (np.concatenate([none, *weights]), (np.concatenate([none, *rows]), np.concatenate([none, *columns])))
    return sp.csr_matrix(parts, shape=(len(wanted), n))


def inverse_distance_weights(known: np.ndarray, wanted: np.ndarray, *, k: int = NEIGHBOURS, power: float = 2.0) -> sp.csr_matrix:
    """Return the weights of :func:`k_nearest_weights` over the distance to the power of ``power``; all on the places at distance 0, if any."""
    near = k_nearest_weights(known, wanted, min(k, len(known))).tocoo()
    distance = np.sqrt(((wanted[near.row] - known[near.col]) ** 2).sum(axis=1))
    first = np.full(len(wanted), np.inf)
    np.minimum.at(first, near.row, distance)
    here = first[near.row] == 0
    weight = near.data * np.where(here, distance == 0, (first[near.row] / np.where(distance > 0, distance, 1.0)) ** power)
    return scaled_rows(near.row, near.col, weight, near.shape)
