"""Cubic interpolation on triangles."""

import numpy as np
from scipy.interpolate import CloughTocher2DInterpolator
from scipy.spatial import Delaunay, QhullError

from stimg.image.interpolate._arrays import Interpolated, checked, reading_order
from stimg.image.interpolate._weights import nearest_weights

TOLERANCE, ITERATIONS = 1e-8, 1000
"""Of the gradients, which are found by iteration."""


def cubic(known: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> Interpolated:
    """Return piecewise cubic, once differentiable interpolation on Delaunay triangles; outside the hull of the known places, the nearest.

    Notes
    -----
    Clough and Tocher (1965), with the gradients of least curvature (Nielson 1983, Rocky Mountain J. Math. 13, 265-279; Renka and Cline 1984,
    ibid. 14, 223-238), as scipy has them. Genes are interpolated one by one; where there are more genes than known places, the weights of the
    places are computed once instead, in which the result is linear. Known places on one lattice point are averaged first.
    """
    known, values, wanted = checked(known, values, wanted)
    order = reading_order(known)
    places, member, count = np.unique(known[order], axis=0, return_inverse=True, return_counts=True)
    mean = np.zeros((len(places), values.shape[1]))
    np.add.at(mean, member.ravel(), values[order])
    mean /= count[:, None]
    out = nearest_weights(places, wanted) @ mean
    try:
        mesh = Delaunay(places)
    except (QhullError, ValueError):  # all on one line, or fewer than three
        return Interpolated(out)
    many = values.shape[1] > len(places)
    found = CloughTocher2DInterpolator(mesh, np.eye(len(places)) if many else mean, tol=TOLERANCE, maxiter=ITERATIONS)(wanted)
    inside = np.isfinite(found).all(axis=1)
    out[inside] = found[inside] @ mean if many else found[inside]
    return Interpolated(out)
