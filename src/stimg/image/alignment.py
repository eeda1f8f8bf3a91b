"""Do positions fit an image? What the image says at each pixel, what expression says at each position, and how well they agree when moved."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from scipy.ndimage import gaussian_filter

from stimg._core import validate
from stimg.image.colour import OPTICAL_DENSITY
from stimg.image.slide_source import check_pixels

SCALES = (0.2, 0.5)
"""Standard deviations, in steps between neighbours, of the Gaussian windows in which the image is described."""
N_COMPONENTS = 4
"""Principal components of expression that are compared with the image, beside the depth."""
N_GENES = 500
"""Most variable genes from which the components are computed."""
SIDE_BLOCKS = 4
"""Contiguous blocks along each side of a section; each is left out in turn for a standard error."""
BACKGROUND_GAP = 1.5
"""Distance of two classes of pixels, in the natural log of colour times contrast, from which one of them is called background."""
_LEAST_COLOUR, _LEAST_CONTRAST = 0.02, 0.003  # about the noise of an empty slide, so that its logarithm does not count
_RIDGE = 1e-6
_CHUNK = 40_000  # positions looked up at once


@dataclass(frozen=True)
class ImageMaps:
    """What an image says at each of its pixels.

    Parameters
    ----------
    features
        float32 (n_features, y, x): optical density of red, green and blue, and log standard deviation of the density, at each scale.
    tissue
        bool (y, x); all True where the image has no background.
    gap
        Distance between tissue and background; below ``BACKGROUND_GAP`` the image shows one of them only.
    """

    features: np.ndarray
    tissue: np.ndarray
    gap: float

    @property
    def has_background(self) -> bool:
        """Whether a part of the image is not tissue."""
        return self.gap >= BACKGROUND_GAP


@dataclass(frozen=True)
class Transform:
    """An affine map of (y, x): ``matrix`` (2, 2), ``offset`` (2,), and what it is called."""

    name: str
    matrix: np.ndarray
    offset: np.ndarray

    def __call__(self, yx: np.ndarray) -> np.ndarray:
        """Return the mapped positions, float64 (n, 2)."""
        return np.asarray(yx, dtype=np.float64) @ self.matrix.T + self.offset

    @classmethod
    def about(cls, name: str, centre: np.ndarray, matrix: np.ndarray) -> "Transform":
        """Return the map that applies ``matrix`` about a fixed point (y, x)."""
        return cls(name, matrix, np.asarray(centre) - matrix @ np.asarray(centre))

    def moved(self, name: str, by: np.ndarray) -> "Transform":
        """Return this map followed by a shift (y, x)."""
        return Transform(name, self.matrix, self.offset + by)


IDENTITY = Transform("as it is", np.eye(2), np.zeros(2))


@dataclass(frozen=True)
class Agreement:
    """How well positions fit an image under each of n maps.

    Parameters
    ----------
    coverage
        Share of the positions on tissue, float64 (n,).
    explained
        Share of the variance that the image explains, mean over the values, float64 (n,).
    without
        The same with one block of positions left out, float64 (n, blocks).
    """

    coverage: np.ndarray
    explained: np.ndarray
    without: np.ndarray

    def margin(self, a: int, b: int) -> tuple[float, float]:
        """Return how much more is explained under map ``a`` than under map ``b``, and the jackknife standard error of that difference."""
        return lead(self, a, self, b)


def lead(one: Agreement, a: int, two: Agreement, b: int) -> tuple[float, float]:
    """Return how much more map ``a`` of one image explains than map ``b`` of another does of the same values, and its jackknife standard error."""
    each = one.without[a] - two.without[b]
    n = len(each)
    return float(one.explained[a] - two.explained[b]), float(np.sqrt((n - 1) / n * ((each - each.mean()) ** 2).sum()))


def image_maps(image: np.ndarray, *, step_px: float) -> ImageMaps:
    """Return maps of optical density, contrast and tissue of an H&E image.

    Parameters
    ----------
    image
        uint8 (y, x, 3), reduced to some hundred pixels a side: the time follows the number of pixels.
    step_px
        Distance between neighbouring observations in its pixels; windows follow it.

    Raises
    ------
    TypeError
        For an image that is not uint8.
    ValueError
        For an image that is not (y, x, 3), or a step that is not positive.

    Notes
    -----
    Tissue is more coloured than its background and has more contrast: Otsu's threshold of the sum of both logarithms. Marks such as
    fiducials have contrast alone, hence a second, lower threshold of the colour.
    """
    image = np.asarray(image)
    check_pixels(image, "The image")
    validate.positive(step_px, "step_px", "pixels")
    density = OPTICAL_DENSITY[image].astype(np.float32)
    features = [m for scale in SCALES for m in _described(density, max(scale * step_px, 0.7))]
    # tissue is as large as it is, whatever the step
    red, green, blue, contrast = _described(density, float(np.clip(step_px / 4, max(image.shape[:2]) / 300, max(image.shape[:2]) / 100)))
    colour = np.log(np.maximum.reduce([red, green, blue]) - np.minimum.reduce([red, green, blue]) + _LEAST_COLOUR)
    both = colour + contrast
    tissue = both > _otsu(both)
    gap = float(np.median(both[tissue]) - np.median(both[~tissue])) if tissue.any() and not tissue.all() else 0.0
    if gap < BACKGROUND_GAP:
        return ImageMaps(np.stack(features), np.ones(tissue.shape, dtype=bool), gap)
    cut = _otsu(colour)
    tissue &= colour > (cut + float(np.median(colour[colour <= cut]))) / 2
    return ImageMaps(np.stack(features), tissue, gap)


def _described(density: np.ndarray, sigma: float) -> list[np.ndarray]:
    """Return smooth density of three channels, and log standard deviation of their mean, in Gaussian windows."""
    grey = density.mean(axis=2)
    mean = gaussian_filter(grey, sigma)
    spread = np.sqrt(np.maximum(gaussian_filter(grey * grey, sigma) - mean * mean, 0.0))
    return [*(gaussian_filter(density[..., c], sigma) for c in range(3)), np.log(spread + _LEAST_CONTRAST)]


def _otsu(values: np.ndarray) -> float:
    from skimage.filters import threshold_otsu

    return float(threshold_otsu(values)) if np.ptp(values) > 0 else float(values.flat[0])


def expression_values(counts: sp.csr_matrix, *, n_components: int = N_COMPONENTS, n_genes: int = N_GENES) -> np.ndarray:
    """Return log depth and the first principal components of log expression, each of mean 0 and variance 1, float64 (n, 1 + n_components).

    Parameters
    ----------
    counts
        Raw counts, (n, n_vars); scaled to 10,000 an observation for the components.
    n_components
        Number of components, fewer where there are fewer genes or observations.
    n_genes
        Genes of largest variance from which they are computed.
    """
    counts = sp.csr_matrix(counts, dtype=np.float64)
    depth = np.asarray(counts.sum(axis=1)).ravel()
    scaled = sp.csr_matrix(sp.diags_array(1e4 / np.maximum(depth, 1.0)) @ counts)
    scaled.data = np.log1p(scaled.data)
    mean = np.asarray(scaled.mean(axis=0)).ravel()
    variance = np.asarray(scaled.multiply(scaled).mean(axis=0)).ravel() - mean**2
    top = np.sort(np.argsort(-variance, kind="stable")[:n_genes])
    dense = scaled[:, top].toarray() - mean[top]
    _, vectors = np.linalg.eigh(dense.T @ dense)
    values = np.column_stack([np.log1p(depth), dense @ vectors[:, ::-1][:, : min(n_components, len(dense) - 1)]])
    values = values[:, values.std(axis=0) > 1e-9]
    return (values - values.mean(axis=0)) / values.std(axis=0)


def blocks(yx: np.ndarray, side: int = SIDE_BLOCKS) -> np.ndarray:
    """Return the block of each position, int64 (n,): ``side`` strips along y with equally many positions, each cut likewise along x."""
    out = np.empty(len(yx), dtype=np.int64)
    for i, strip in enumerate(np.array_split(np.argsort(yx[:, 0], kind="stable"), side)):
        for j, part in enumerate(np.array_split(strip[np.argsort(yx[strip, 1], kind="stable")], side)):
            out[part] = side * i + j
    return out


def agreement(maps: ImageMaps, yx: np.ndarray, values: np.ndarray, transforms: Sequence[Transform]) -> Agreement:
    r"""Return coverage and explained variance of positions on an image under each of several maps of them.

    Explained variance is :math:`R^2` of the least-squares fit of each value to the image's features at the mapped positions.

    Parameters
    ----------
    maps
        From :func:`image_maps`.
    yx
        (y, x) in pixels of the image, (n, 2); pixel ``i`` covers ``i`` to ``i + 1``.
    values
        Mean 0 and variance 1, (n, n_values): from :func:`expression_values`.
    transforms
        Maps to compare.

    Raises
    ------
    ValueError
        Where there are fewer observations than numbers to fit.

    Notes
    -----
    Outside the image the nearest pixel's features are taken, and no tissue. The number of fitted numbers is the same for every map, so that
    what is explained by chance drops out of a comparison.
    """
    n_features, shape = len(maps.features), np.array(maps.tissue.shape)
    least = 2 * (n_features + 1) + SIDE_BLOCKS**2
    if len(yx) < least:
        raise ValueError(f"{len(yx)} observations; wanted {least} or more to compare them with an image.")
    n_blocks = SIDE_BLOCKS**2
    order = np.argsort(blocks(yx), kind="stable")
    size = np.bincount(blocks(yx), minlength=n_blocks)
    place = np.zeros((n_blocks, size.max()), dtype=np.int64)  # blocks differ by one or two observations: the rest is weighted 0
    real = np.arange(size.max()) < size[:, None]
    place[real] = order
    weight, place = real.ravel().astype(np.float64), place.ravel()
    flat = maps.features.reshape(n_features, -1).T.astype(np.float64)
    flat = (flat - flat.mean(axis=0)) / np.maximum(flat.std(axis=0), 1e-9)
    tissue, k, ordered = maps.tissue.ravel(), 1 + n_features, np.asarray(yx, dtype=np.float64)[place]
    chunk = max(1, _CHUNK // len(place))
    coverage, explained = np.empty(len(transforms)), np.empty(len(transforms))
    without = np.empty((len(transforms), n_blocks))
    for start in range(0, len(transforms), chunk):
        some = transforms[start : start + chunk]
        here = slice(start, start + len(some))
        index = np.floor(np.stack([transform(ordered) for transform in some]))
        inside = ((index >= 0) & (index < shape)).all(axis=2)
        at = np.clip(index, 0, shape - 1).astype(np.int64) @ np.array([shape[1], 1])
        coverage[here] = (tissue[at] & inside) @ weight / len(yx)
        table = np.empty((len(some), len(place), k + values.shape[1]))
        table[..., 0], table[..., 1:k], table[..., k:] = 1.0, flat[at], values[place]
        table *= weight[:, None]
        table = table.reshape(len(some), n_blocks, -1, table.shape[2])
        grams = np.swapaxes(table, 2, 3) @ table
        total = grams.sum(axis=1, keepdims=True)
        found = _explained(np.concatenate([total, total - grams], axis=1), k)
        explained[here], without[here] = found[:, 0], found[:, 1:]
    return Agreement(coverage, explained, without)


def _explained(grams: np.ndarray, k: int) -> np.ndarray:
    """Return mean R² of the columns from ``k`` on, given those before (the first holds ones), from Gram matrices (..., p, p)."""
    own = grams[..., :k, :k] + _RIDGE * np.eye(k) * grams[..., :1, :1]
    cross, square = grams[..., :k, k:], np.diagonal(grams[..., k:, k:], axis1=-2, axis2=-1)
    fitted = (cross * np.linalg.solve(own, cross)).sum(axis=-2)
    mean = grams[..., 0, k:] ** 2 / grams[..., :1, 0]
    return ((fitted - mean) / np.maximum(square - mean, 1e-12)).mean(axis=-1)


def orientations(shape: tuple[int, int]) -> dict[str, Transform]:
    """Return the seven other ways to lay positions on an image of (y, x) pixels, by name: those of a square, about the image's own corners.

    ``"swap"`` exchanges y and x; the turns are those of the positions, counter-clockwise on the screen.
    """
    height, width = (float(n) for n in shape)
    swap = np.array([[0.0, 1.0], [1.0, 0.0]])
    over_y, over_x = np.diag([-1.0, 1.0]), np.diag([1.0, -1.0])
    return {
        "swap": Transform("swap", swap, np.zeros(2)),
        "anti-swap": Transform("anti-swap", -swap, np.array([height, width])),
        "flip y": Transform("flip y", over_y, np.array([height, 0.0])),
        "flip x": Transform("flip x", over_x, np.array([0.0, width])),
        "turn 180": Transform("turn 180", -np.eye(2), np.array([height, width])),
        "turn 90": Transform("turn 90", over_y @ swap, np.array([height, 0.0])),
        "turn 270": Transform("turn 270", over_x @ swap, np.array([0.0, width])),
    }
