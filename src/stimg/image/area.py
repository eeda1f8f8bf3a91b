"""Reducing a window of pixels by exact area: every delivered pixel is the mean colour of the square of the slide that it covers."""

import numpy as np
from numba import njit


def area_mean(image: np.ndarray, top: float, left: float, step: float, out: np.ndarray) -> None:
    """Fill ``out``, uint8 (n, m, 3), with the mean of ``image``, uint8 (h, w, 3), over squares of ``step`` pixels from (top, left) on.

    Pixel ``i`` of ``image`` covers ``i`` to ``i + 1``; the squares have to lie in the image. Means are rounded half up, in float32.

    Examples
    --------
    >>> import numpy as np
    >>> image = np.repeat(np.array([[0, 100, 200]], np.uint8), 3, axis=0)[..., None].repeat(3, axis=2)
    >>> out = np.empty((1, 1, 3), np.uint8)
    >>> area_mean(image, 0.5, 0.5, 2.0, out)  # half of the first column, all of the second, half of the third
    >>> out[0, 0].tolist()
    [100, 100, 100]
    """
    flat = image.reshape(len(image), -1)  # a view, for windows of a larger image too
    _reduce(flat, top, left, step, out.reshape(len(out), -1))


@njit(cache=True, nogil=True)
def _spans(start: float, step: float, n: int, length: int, first: np.ndarray, taps: np.ndarray, share: np.ndarray) -> None:
    """Fill the first source pixel of each of ``n`` steps, how many it covers, and the share of the step that each of these has."""
    for i in range(n):
        low, high = start + i * step, start + (i + 1) * step
        a = min(max(int(np.floor(low)), 0), length - 1)
        b = min(max(int(np.ceil(high)) - 1, a), length - 1)
        first[i], taps[i] = a, b - a + 1
        total = 0.0
        for k in range(a, b + 1):
            covered = max(min(high, k + 1.0) - max(low, float(k)), 0.0)
            share[i, k - a] = covered
            total += covered
        for k in range(b - a + 1):
            share[i, k] = share[i, k] / total if total > 0 else 1.0 / (b - a + 1)


@njit(cache=True, nogil=True, fastmath=True)
def _reduce(flat: np.ndarray, top: float, left: float, step: float, out: np.ndarray) -> None:
    """Rows of interleaved colours are reduced to one line, which runs at the speed of memory, then the line along its columns."""
    n, across, m, last = out.shape[0], out.shape[1] // 3, flat.shape[1], flat.shape[0] - 1
    room = int(np.ceil(step)) + 4  # shares beyond a step's own pixels are zero
    y0, ty, wy = np.empty(n, np.int64), np.empty(n, np.int64), np.zeros((n, room), np.float32)
    x0, tx, wx = np.empty(across, np.int64), np.empty(across, np.int64), np.zeros((across, room), np.float32)
    _spans(top, step, n, flat.shape[0], y0, ty, wy)
    _spans(left, step, across, m // 3, x0, tx, wx)
    line, colours, most = np.zeros(m + 3 * room, np.float32), np.empty(3 * across, np.float32), tx.max()
    half = np.float32(0.5)  # so that cutting off rounds
    for i in range(n):
        y = y0[i]
        first, second, third = flat[y], flat[min(y + 1, last)], flat[min(y + 2, last)]
        a, b, c = wy[i, 0], wy[i, 1], wy[i, 2]
        for k in range(m):
            line[k] = half + a * np.float32(first[k]) + b * np.float32(second[k]) + c * np.float32(third[k])
        for q in range(3, ty[i], 2):
            first, second = flat[y + q], flat[min(y + q + 1, last)]
            a, b = wy[i, q], wy[i, q + 1]
            for k in range(m):
                line[k] += a * np.float32(first[k]) + b * np.float32(second[k])
        if most <= 3:  # steps of up to two pixels: without an inner loop
            for j in range(across):
                k = 3 * x0[j]
                a, b, c = wx[j, 0], wx[j, 1], wx[j, 2]
                colours[3 * j] = a * line[k] + b * line[k + 3] + c * line[k + 6]
                colours[3 * j + 1] = a * line[k + 1] + b * line[k + 4] + c * line[k + 7]
                colours[3 * j + 2] = a * line[k + 2] + b * line[k + 5] + c * line[k + 8]
        else:
            for j in range(across):
                k = 3 * x0[j]
                red, green, blue = np.float32(0), np.float32(0), np.float32(0)
                for t in range(most):
                    a = wx[j, t]
                    red += a * line[k]
                    green += a * line[k + 1]
                    blue += a * line[k + 2]
                    k += 3
                colours[3 * j], colours[3 * j + 1], colours[3 * j + 2] = red, green, blue
        for k in range(3 * across):
            out[i, k] = np.uint8(min(colours[k], np.float32(255)))
