"""Values at places where nothing was measured, from those of the same section: pure functions on arrays, all genes at once.

Places are (y, x) in pitches. Every function returns :class:`Interpolated`: values and, where it has one, a variance.
"""

from stimg.image.interpolate._arrays import Interpolated
from stimg.image.interpolate._compose import Trust, cross_fitted, mean_of, on_residual, trust
from stimg.image.interpolate._counts import LogCounts
from stimg.image.interpolate._cubic import cubic
from stimg.image.interpolate._factors import Axes, axes_of_sections, count_noise, factor_kriging, principal_axes
from stimg.image.interpolate._gaussian import best_bandwidth, gaussian
from stimg.image.interpolate._kriging import kriging, matern, shared_spectra
from stimg.image.interpolate._laplacian import laplacian
from stimg.image.interpolate._measured import Guide, Interpolator, Measured
from stimg.image.interpolate._weights import inverse_distance, k_nearest, k_nearest_weights, linear, nearest
from stimg.image.interpolate._windows import Part, Windowed, in_parts, in_windows, windowed
from stimg.image.interpolate.methods import BEST, METHODS, Method

__all__ = [
    "BEST",
    "METHODS",
    "Axes",
    "Guide",
    "Interpolated",
    "Interpolator",
    "LogCounts",
    "Measured",
    "Method",
    "Part",
    "Trust",
    "Windowed",
    "axes_of_sections",
    "best_bandwidth",
    "count_noise",
    "cross_fitted",
    "cubic",
    "factor_kriging",
    "gaussian",
    "in_parts",
    "in_windows",
    "inverse_distance",
    "k_nearest",
    "k_nearest_weights",
    "kriging",
    "laplacian",
    "linear",
    "matern",
    "mean_of",
    "nearest",
    "on_residual",
    "principal_axes",
    "shared_spectra",
    "trust",
    "windowed",
]
