"""Overlapping windows: where they lie on a raster, and how what was computed in them becomes one value per observation."""

import numpy as np
from numba import njit
from numpy.typing import DTypeLike

TAPERS = ("uniform", "triangle", "centre")


def tile_windows(shape: tuple[int, int], size: tuple[int, int], overlap: int | tuple[int, int] = 0) -> np.ndarray:
    """Return the top left corners (row, col) of windows that cover a raster, int64 (n, 2), row by row.

    Parameters
    ----------
    shape
        (rows, columns) of the raster.
    size
        (rows, columns) of the window.
    overlap
        Lattice steps by which neighbouring windows overlap at least, one number or (y, x). The last window of a row or column is moved back
        to end at the raster's edge, so it may overlap more. Only where the raster is smaller than the window does the window hang over it,
        by the same amount on both sides (one step less before it where the difference is odd).
    """
    steps = (overlap, overlap) if isinstance(overlap, (int, np.integer)) else overlap
    starts = []
    for axis, name in enumerate(("rows", "columns")):
        n, length, shared = int(shape[axis]), int(size[axis]), int(steps[axis])
        if n < 1 or length < 1:
            raise ValueError(f"shape={shape} and size={size} must both be at least 1 in {name}.")
        if not 0 <= shared < length:
            raise ValueError(f"overlap={overlap} is outside 0 .. {length - 1}; wanted less than the window's {length} {name}.")
        if n <= length:
            starts.append(np.array([-((length - n) // 2)], dtype=np.int64))
            continue
        last = n - length
        found = np.arange(0, last + 1, length - shared, dtype=np.int64)
        starts.append(found if found[-1] == last else np.append(found, last))
    top, left = np.meshgrid(*starts, indexing="ij")
    return np.stack([top.ravel(), left.ravel()], axis=1)


def taper(size: tuple[int, int], kind: str = "triangle") -> np.ndarray:
    """Return the weight of every pixel of a window, float64 (height, width).

    ``"uniform"`` is 1 everywhere. ``"triangle"`` falls linearly from the middle towards zero just outside the window, the product of
    ``1 - |2 (i + 1/2) / n - 1|`` along both axes, so that no pixel has weight zero. ``"centre"`` is 1 at pixel ``(height // 2, width // 2)``
    and 0 elsewhere: for windows that were placed about one observation.
    """
    if kind not in TAPERS:
        raise ValueError(f"taper {kind!r} is not known; wanted one of {TAPERS}.")
    if kind == "uniform":
        return np.ones(size)
    if kind == "centre":
        weight = np.zeros(size)
        weight[size[0] // 2, size[1] // 2] = 1.0
        return weight
    along = [(n - np.abs(2 * np.arange(n) + 1 - n)) / n for n in size]
    return along[0][:, None] * along[1][None, :]


@njit(cache=True, nogil=True)
def _add(mean: np.ndarray, total: np.ndarray, obs: np.ndarray, values: np.ndarray, weight: np.ndarray) -> int:  # pragma: no cover
    # A running weighted mean: a value that was seen once, or always the same, comes back unchanged.
    for b in range(obs.shape[0]):
        for p in range(obs.shape[1]):
            row = obs[b, p]
            w = weight[b, p]
            if row < 0 or w == 0.0:
                continue
            if row >= mean.shape[0]:
                return row
            total[row] += w
            share = w / total[row]
            for d in range(mean.shape[1]):
                mean[row, d] += share * (values[b, p, d] - mean[row, d])
    return -1


class Blend:
    """The weighted mean per observation of what overlapping windows say about it; memory is n_obs x dim and one weight each.

    Parameters
    ----------
    n_obs
        Number of observations: one more than the largest row that will be added.
    dim
        Number of values of an observation.
    dtype
        float32 or float64, of the accumulated means.

    Notes
    -----
    After windows ``k`` with weights ``w_k`` and values ``x_k``, an observation's value is ``sum_k w_k x_k / sum_k w_k``.
    """

    def __init__(self, n_obs: int, dim: int, *, dtype: DTypeLike = np.float32) -> None:
        if n_obs < 1 or dim < 1:
            raise ValueError(f"n_obs={n_obs} and dim={dim} must be at least 1.")
        self.mean = np.zeros((n_obs, dim), dtype=dtype)
        self.weight = np.zeros(n_obs, dtype=np.float64)

    def add(self, obs: np.ndarray, values: np.ndarray, weight: np.ndarray | None = None) -> None:
        """Add windows.

        Parameters
        ----------
        obs
            Row of the observation at each pixel, integer (B, H, W) or any (B, ...); -1 where there is none.
        values
            Values of each pixel, ``(*obs.shape, dim)``.
        weight
            Non-negative weights, of the shape of ``obs`` or of one window; 1 where None.
        """
        obs, values = np.asarray(obs), np.asarray(values)
        if values.shape != (*obs.shape, self.mean.shape[1]):
            raise ValueError(
                f"values has shape {values.shape}; wanted {(*obs.shape, self.mean.shape[1])}, the shape of obs and {self.mean.shape[1]} values."
            )
        weights = np.ones(obs.shape[1:]) if weight is None else np.asarray(weight, dtype=np.float64)
        if not np.isfinite(weights).all() or (weights < 0).any():
            raise ValueError("weight has negative, NaN or infinite values; wanted numbers of at least 0.")
        weights = np.ascontiguousarray(np.broadcast_to(weights, obs.shape)).reshape(len(obs), -1)
        flat = np.ascontiguousarray(obs, dtype=np.int64).reshape(len(obs), -1)
        bad = _add(self.mean, self.weight, flat, np.ascontiguousarray(values).reshape(*flat.shape, -1), weights)
        if bad >= 0:
            raise ValueError(f"obs holds row {bad}, but there are {len(self.weight)} observations.")

    def result(self, rows: np.ndarray | None = None, *, at: np.ndarray | None = None) -> np.ndarray:
        """Return the values of the observations ``rows`` (all where None), (len(rows), dim).

        Parameters
        ----------
        rows
            Rows to return; with None the accumulated array itself, without a copy.
        at
            The row where the value of each of ``rows`` was added, where that is another one: observations that share a lattice point.

        Raises
        ------
        ValueError
            Where an observation was covered by no window.
        """
        source = rows if at is None else at
        covered = self.weight > 0 if source is None else self.weight[source] > 0
        if not covered.all():
            missing = np.flatnonzero(~covered) if rows is None else np.asarray(rows)[~covered]
            raise ValueError(
                f"{len(missing)} of {len(covered)} observations were covered by no window, the first is row {int(missing[0])}. "
                "Place windows over all of them (`stimg.image.tile_windows`), or pass the `rows` that were covered."
            )
        return self.mean if source is None else self.mean[source]
