"""Image similarity of rasters, SSIM and PSNR, over tissue alone and with a stated range of the data."""

import numpy as np
from scipy.ndimage import uniform_filter

from stimg._core.validate import whole

K1, K2 = 0.01, 0.03
"""The two constants of SSIM, relative to the range of the data, as in Wang et al. (2004)."""
AT_ONCE = 2**20
"""Pixels of all genes that are filtered at a time."""


def ssim(
    truth: np.ndarray,
    predicted: np.ndarray,
    *,
    data_range: float | np.ndarray,
    mask: np.ndarray | None = None,
    window: int = 7,
    score: np.ndarray | None = None,
) -> float | np.ndarray:
    r"""Return the mean structural similarity: a float for rasters (y, x), float64 (n_genes,) for stacks (n_genes, y, x).

    .. math:: \mathrm{SSIM} = \frac{(2 \mu_x \mu_y + C_1)(2 \sigma_{xy} + C_2)}{(\mu_x^2 + \mu_y^2 + C_1)(\sigma_x^2 + \sigma_y^2 + C_2)},
        \quad C_k = (K_k R)^2, \quad K = (0.01, 0.03)

    The means and the covariance of a pixel are those of the pixels of its window that lie under the mask, all with the same weight.

    Parameters
    ----------
    truth, predicted
        (y, x) or (n_genes, y, x), in the same unit. What lies outside the mask is never read and may be NaN.
    data_range
        R, above zero, in the unit of the data: one number, or one per gene. Take it from what a method may see (observed or training
        spots) and use it for all methods: the score grows with it.
    mask
        bool (y, x), the pixels that exist (tissue). Without it, all.
    window
        Side of the square window in pixels, odd. At the border of the raster or of the mask the window is cut, not filled.
    score
        bool (y, x), the pixels of the mask whose SSIM is averaged, for instance the held-out spots; all of the mask by default.

    Raises
    ------
    ValueError
        For shapes that differ, a range that is not above zero, a window that is even or larger than the raster, a mask or score without
        a pixel, a score outside the mask, and values under the mask that are not finite.
    TypeError
        For a mask or score that is not bool.

    Notes
    -----
    Identical images score exactly 1. Pixels of the mask outside ``score`` are in the windows of their neighbours: where a prediction
    repeats observed values there, pass the held-out pixels as ``mask``. A window with one pixel has no variance, so its score is that of
    the means alone. Departures from Wang et al. (2004), IEEE TIP 13, 600-612, equation 13: a flat window instead of a Gaussian one of
    11 × 11, which does not fit the rasters of small arrays. Inside the raster and without a mask the values are those of
    ``skimage.metrics.structural_similarity(..., use_sample_covariance=False)``, whose average leaves a border of half a window out.

    Examples
    --------
    >>> truth = np.add.outer(np.arange(8.0), np.arange(8.0))
    >>> ssim(truth, truth, data_range=14.0)
    1.0
    >>> round(ssim(truth, np.full((8, 8), truth.mean()), data_range=14.0), 3)
    0.035
    """
    a, b, ranges, inside = _checked(truth, predicted, data_range, mask)
    window = whole(window, "window")
    if window % 2 == 0 or window > min(inside.shape):
        raise ValueError(f"window={window} on a raster of {inside.shape}; wanted an odd number of pixels that fits. Pass a smaller window.")
    where = inside if score is None else _pixels(score, inside.shape, "score")
    if (where & ~inside).any():
        raise ValueError(f"score has {int((where & ~inside).sum())} pixels outside the mask; wanted a part of it. Use `score & mask`.")
    share = uniform_filter(inside.astype(np.float64), window, mode="constant")[where]

    def local_mean(values: np.ndarray) -> np.ndarray:
        return _under(uniform_filter(values, window, mode="constant", axes=(1, 2)), where) / share

    out = np.empty(len(a))
    at_once = max(1, AT_ONCE // inside.size)
    for start in range(0, len(a), at_once):
        part = slice(start, start + at_once)
        (x, x_mean), (y, y_mean) = _centred(a[part], inside), _centred(b[part], inside)
        mx, my = local_mean(x), local_mean(y)
        vx, vy, vxy = local_mean(x * x) - mx * mx, local_mean(y * y) - my * my, local_mean(x * y) - mx * my
        mx, my, c1, c2 = mx + x_mean, my + y_mean, (K1 * ranges[part, None]) ** 2, (K2 * ranges[part, None]) ** 2
        out[part] = np.mean((2 * mx * my + c1) * (2 * vxy + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2)), axis=1)
    return float(out[0]) if np.ndim(truth) == 2 else out


def psnr(truth: np.ndarray, predicted: np.ndarray, *, data_range: float | np.ndarray, mask: np.ndarray | None = None) -> float | np.ndarray:
    r"""Return the peak signal-to-noise ratio in dB: a float for rasters (y, x), float64 (n_genes,) for stacks (n_genes, y, x).

    .. math:: \mathrm{PSNR} = 10 \log_{10} \frac{R^2}{\mathrm{mean}_{\mathrm{mask}} (x - y)^2}

    Arguments and errors are those of :func:`ssim`; the mean is over the pixels under ``mask``. Identical images have a ratio of inf.

    Examples
    --------
    >>> round(psnr(np.zeros((4, 4)), np.full((4, 4), 0.1), data_range=1.0), 6)
    20.0
    """
    a, b, ranges, inside = _checked(truth, predicted, data_range, mask)
    error = np.array([np.mean(np.subtract(x[inside], y[inside], dtype=np.float64) ** 2) for x, y in zip(a, b, strict=True)])
    with np.errstate(divide="ignore"):  # no error at all is inf, as documented
        out = 10.0 * np.log10(ranges**2 / error)
    return float(out[0]) if np.ndim(truth) == 2 else out


def _centred(rasters: np.ndarray, inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return rasters (n, y, x) less their means under the mask, 0 outside, and these means (n, 1): local variances then lose no digits to an offset."""
    values = _under(rasters, inside)
    mean = values.mean(axis=1, keepdims=True)
    out = np.zeros(rasters.shape)
    out[:, inside] = values - mean
    return out, mean


def _under(rasters: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the pixels under the mask, float64 (n, pixels), in memory raster by raster: sums are then the same for one raster and for many."""
    return np.ascontiguousarray(rasters[:, mask], dtype=np.float64)


def _pixels(mask: np.ndarray, shape: tuple[int, ...], name: str) -> np.ndarray:
    mask = np.asarray(mask)
    if mask.dtype != bool:
        raise TypeError(f"{name} has dtype {mask.dtype}; wanted bool, True for the pixels that count.")
    if mask.shape != shape:
        raise ValueError(f"{name} has shape {mask.shape}; wanted that of the raster, {shape}.")
    if not mask.any():
        raise ValueError(f"{name} has no pixel; the score is undefined. Leave this raster out.")
    return mask


def _checked(
    truth: np.ndarray, predicted: np.ndarray, data_range: float | np.ndarray, mask: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return both as stacks (n_genes, y, x), the range of each gene, and the mask."""
    a, b = np.asarray(truth), np.asarray(predicted)
    if a.shape != b.shape or a.ndim not in (2, 3) or a.size == 0:
        raise ValueError(f"truth has shape {a.shape} and predicted {b.shape}; wanted the same, (y, x) or (genes, y, x), and not empty.")
    for name, array in (("truth", a), ("predicted", b)):
        if array.dtype.kind not in "biuf":
            raise TypeError(f"{name} has dtype {array.dtype}; wanted real numbers.")
    a, b = a.reshape(-1, *a.shape[-2:]), b.reshape(-1, *b.shape[-2:])
    ranges = np.asarray(data_range, dtype=np.float64)
    if ranges.shape not in ((), (len(a),)):
        raise ValueError(f"data_range has shape {ranges.shape}; wanted one number or one for each of the {len(a)} genes.")
    if not (np.isfinite(ranges) & (ranges > 0)).all():
        raise ValueError(f"data_range={data_range} is not above zero throughout; wanted the range of the data. Leave constant genes out.")
    inside = np.ones(a.shape[1:], dtype=bool) if mask is None else _pixels(mask, a.shape[1:], "mask")
    for name, stack in (("truth", a), ("predicted", b)):
        bad = sum(int((~np.isfinite(raster[inside])).sum()) for raster in stack)
        if bad:
            raise ValueError(f"{name} has {bad} NaN or infinite values under the mask; wanted finite ones. Repair them or mask them.")
    return a, b, np.broadcast_to(ranges, len(a)), inside
