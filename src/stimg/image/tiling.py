"""Grids of squares over an image, and the share of each that a mask covers."""

import numpy as np


def grid_centres(size: tuple[int, int], side: float, step: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the (y, x) centres of squares that cover an image, float64 (n, 2), row by row, and their (row, column), int64 (n, 2).

    The first square lies in the upper left corner; along each axis there are as few as reach the other end, and the last may hang over it.

    Examples
    --------
    >>> centres, index = grid_centres((100, 250), side=100, step=100)
    >>> centres.tolist(), index.tolist()
    ([[50.0, 50.0], [50.0, 150.0], [50.0, 250.0]], [[0, 0], [0, 1], [0, 2]])
    """
    rows, columns = (max(int(np.ceil((length - side) / step - 1e-9)), 0) + 1 for length in size)
    index = np.stack(np.divmod(np.arange(rows * columns), columns), axis=1)
    return index * float(step) + side / 2, index


def mask_share(mask: np.ndarray, corners: np.ndarray, side: float) -> np.ndarray:
    """Return the share of squares that a mask covers, float64 (n,), exact for any fraction of a pixel; outside the mask there is nothing.

    ``mask`` is bool (y, x), whose pixel ``i`` covers ``i`` to ``i + 1``; ``corners`` (n, 2) are the upper left (y, x) of the squares.
    """
    total = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1))
    np.cumsum(np.cumsum(mask, axis=0, dtype=np.float64), axis=1, out=total[1:, 1:])
    low, high = np.asarray(corners, dtype=np.float64), np.asarray(corners, dtype=np.float64) + side

    def area(yx: np.ndarray) -> np.ndarray:
        """Masked area above and left of points: bilinear between the sums at whole pixels, because the mask is constant within a pixel."""
        at = np.clip(yx, 0, mask.shape)
        whole = np.minimum(at.astype(np.int64), np.array(mask.shape) - 1)
        (y, x), (fy, fx) = whole.T, (at - whole).T
        upper = (1 - fx) * total[y, x] + fx * total[y, x + 1]
        return (1 - fy) * upper + fy * ((1 - fx) * total[y + 1, x] + fx * total[y + 1, x + 1])

    mixed = [np.stack([a[:, 0], b[:, 1]], axis=1) for a, b in ((high, high), (low, high), (high, low), (low, low))]
    inside = area(mixed[0]) - area(mixed[1]) - area(mixed[2]) + area(mixed[3])
    return np.clip(inside / side**2, 0, 1)
