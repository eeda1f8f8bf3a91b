"""Kriging of a few axes of expression instead of single genes: what the genes share is measured many times over, their noise is not."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.linalg import eigh

from stimg._core import validate
from stimg.image.interpolate._arrays import Interpolated, checked
from stimg.image.interpolate._kriging import kriging

AXES = 20


class Axes(NamedTuple):
    """Axes of expression: ``mean``, ``scale`` (genes,) and ``loadings`` (axes, genes), orthonormal rows in units of ``scale``."""

    mean: np.ndarray
    scale: np.ndarray
    loadings: np.ndarray


def count_noise(values: np.ndarray, depth: np.ndarray, *, per: float = 1e4) -> np.ndarray:
    r"""Return the standard deviation that counting alone gives log(1 + counts per ``per``) of each gene at the mean depth, float64 (genes,).

    .. math:: \mathrm{sd}^2 = \frac{m \, \mathrm{per} / \bar n}{(1 + m)^2}, \quad m = \overline{e^y - 1}

    the delta method for Poisson counts; genes that are (almost) never seen get that of a single count in the whole section.
    """
    rate = np.maximum(np.expm1(values).mean(axis=0), per / (np.mean(depth) * max(len(values), 1)))
    return np.sqrt(rate * per / np.mean(depth)) / (1 + rate)


def principal_axes(values: np.ndarray, n: int = AXES, *, weights: np.ndarray | None = None, scale: np.ndarray | None = None) -> Axes:
    """Return the first ``n`` principal axes of ``values`` (observations, genes), each observation counting by ``weights``, each gene over ``scale``.

    At most one less than the number of observations. The smaller of the two squared matrices is decomposed.
    """
    values = np.asarray(values, dtype=np.float64)
    n = min(validate.whole(n, "n"), max(len(values) - 1, 1), values.shape[1])
    weight = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=np.float64)
    weight = weight / weight.sum()
    scale = np.ones(values.shape[1]) if scale is None else np.asarray(scale, dtype=np.float64)
    mean = weight @ values
    rows = (values - mean) / scale * np.sqrt(weight)[:, None]
    if values.shape[1] <= len(values):
        found = eigh(rows.T @ rows, subset_by_index=[values.shape[1] - n, values.shape[1] - 1])[1].T[::-1]
    else:
        square, left = eigh(rows @ rows.T, subset_by_index=[len(rows) - n, len(rows) - 1])
        usable = square[::-1] > 1e-12 * max(float(square[-1]), np.finfo(float).tiny)
        found = (
            ((left[:, ::-1][:, usable].T @ rows) / np.sqrt(square[::-1][usable])[:, None]) if usable.any() else np.zeros((0, len(scale)))
        )
    return Axes(mean, scale, np.ascontiguousarray(found))


def axes_of_sections(sections: Sequence[tuple[np.ndarray, np.ndarray]], n: int = AXES) -> np.ndarray:
    """Return the first ``n`` axes along which values differ within sections, float64 (n, genes), orthonormal: a basis from other donors.

    Parameters
    ----------
    sections
        For each section the values (observations, genes), 0 for genes that it does not list, and the depth (observations,), by which observations count.
    n
        Number of axes.
    """
    genes = sections[0][0].shape[1]
    rows = np.concatenate(
        [(v - (d / d.sum()) @ v) * np.sqrt(d / d.mean())[:, None] for v, d in ((v, np.asarray(d, dtype=np.float64)) for v, d in sections)]
    )
    n = min(validate.whole(n, "n"), *rows.shape)
    if genes <= len(rows):
        return np.ascontiguousarray(eigh(rows.T @ rows, subset_by_index=[genes - n, genes - 1])[1].T[::-1])
    return np.linalg.svd(rows, full_matrices=False)[2][:n]


def factor_kriging(
    known: np.ndarray,
    values: np.ndarray,
    wanted: np.ndarray,
    *,
    axes: Axes,
    columns: np.ndarray | None = None,
    noise: np.ndarray | None = None,
    **options: Any,
) -> Interpolated:
    r"""Return the axes' scores kriged (:func:`kriging`) and turned back into genes.

    .. math:: \hat y_g(s) = m_g + c_g \sum_k v_{kg} \hat z_k(s), \quad
        \mathrm{var} = c_g^2 \sum_k v_{kg}^2 \, \mathrm{var}_k(s) + r_g

    with the scores :math:`z_{ik} = \sum_g v_{kg} (y_{ig} - m_g) / c_g` and the mean square :math:`r_g` of what the axes leave at the known places.

    Parameters
    ----------
    known, values, wanted, noise, options
        As for :func:`kriging`; ``values`` has the genes of the axes.
    axes
        The axes: :func:`principal_axes` of ``values``, or those of other donors (their loadings with the mean of this section).
    columns
        Positions of the genes that are asked for; default: all.
    """
    known, values, wanted = checked(known, values, wanted)
    if axes.loadings.shape[1] != values.shape[1]:
        raise ValueError(f"The axes have {axes.loadings.shape[1]} genes and values {values.shape[1]}; wanted the same genes in both.")
    columns = np.arange(values.shape[1]) if columns is None else np.asarray(columns, dtype=np.int64)
    loadings = axes.loadings[:, columns] * axes.scale[columns]
    scores = ((values - axes.mean) / axes.scale) @ axes.loadings.T
    rest = ((values[:, columns] - axes.mean[columns] - scores @ loadings) ** 2).mean(axis=0)
    if not len(loadings):
        shape = (len(wanted), len(columns))
        return Interpolated(np.broadcast_to(axes.mean[columns], shape).copy(), np.broadcast_to(rest, shape).copy())
    found = kriging(known, scores, wanted, noise=noise, **options)
    assert found.variance is not None
    return Interpolated(axes.mean[columns] + found.values @ loadings, found.variance @ loadings**2 + rest)
