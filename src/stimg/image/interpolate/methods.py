"""The methods by name: each a function of measured places, with its choices made."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from stimg._core.registry import Registry
from stimg.image.interpolate import _weights as weights
from stimg.image.interpolate._arrays import Interpolated
from stimg.image.interpolate._compose import mean_of
from stimg.image.interpolate._cubic import cubic
from stimg.image.interpolate._factors import Axes, count_noise, factor_kriging, principal_axes
from stimg.image.interpolate._gaussian import gaussian
from stimg.image.interpolate._kriging import kriging
from stimg.image.interpolate._laplacian import laplacian
from stimg.image.interpolate._measured import Interpolator, Measured
from stimg.image.interpolate._windows import Part, in_parts, in_windows

BEST = "ensemble"
"""The method that is best on hidden observations of HER2ST without other donors."""


@dataclass(frozen=True)
class Method:
    """A named method.

    Parameters
    ----------
    name
        As it is asked for.
    function
        From measured places and wanted ones to values.
    what
        One line.
    donors
        Whether it needs axes of expression from other donors.
    guided
        Whether it reads the guide, features of the places.
    """

    name: str
    function: Interpolator
    what: str
    donors: bool = False
    guided: bool = False

    def __call__(self, measured: Measured, wanted: np.ndarray) -> Interpolated:
        """Return the values at the wanted places; a ValueError where axes from other donors are wanted and not there, and for a guide that is not read."""
        self._check(measured)
        return self.function(measured, wanted)

    def parts(self, measured: Measured, wanted: np.ndarray) -> Iterator[Part]:
        """Yield values at wanted places, by window where the method works in windows."""
        self._check(measured)
        yield from in_parts(self.function, measured, wanted)

    def _check(self, measured: Measured) -> None:
        if self.donors and measured.loadings is None:
            raise ValueError(f"method {self.name!r} needs sections of other donors. Pass them (`reference=`), or take {BEST!r}.")
        if measured.guide is not None and not self.guided:
            able = [name for name in METHODS if METHODS[name].guided]
            raise ValueError(f"method {self.name!r} reads no features of places. Leave the guide out, or take one of {able}.")


METHODS: Registry[Method] = Registry("method of imputation")
"""Methods by name; another one joins with ``METHODS.add(name, Method(name, function, "what it does"))``."""


def _add(name: str, *, donors: bool = False, krigs: bool = False) -> Callable[[Interpolator], Interpolator]:
    def add(function: Interpolator) -> Interpolator:
        what = (function.__doc__ or "").strip().split("\n")[0]
        METHODS.add(name, Method(name, in_windows(function) if krigs else function, what, donors, guided=krigs))
        return function

    return add


@_add("mean")
def _mean(measured: Measured, wanted: np.ndarray) -> Interpolated:
    """Mean of all measured places, with their variance."""
    shape = (len(wanted), 1)
    return Interpolated(np.tile(measured.asked.mean(axis=0), shape), np.tile(measured.asked.var(axis=0), shape))


@_add("nearest")
def _nearest(measured: Measured, wanted: np.ndarray) -> Interpolated:
    """Nearest measured place."""
    return weights.nearest(measured.places, measured.asked, wanted)


@_add("linear")
def _linear(measured: Measured, wanted: np.ndarray) -> Interpolated:
    """Linear interpolation in Delaunay triangles; outside their hull, the nearest."""
    return weights.linear(measured.places, measured.asked, wanted)


@_add("cubic")
def _cubic(measured: Measured, wanted: np.ndarray) -> Interpolated:
    """Piecewise cubic interpolation in Delaunay triangles; outside their hull, the nearest."""
    return cubic(measured.places, measured.asked, wanted)


@_add("k_nearest")
def _k_nearest(measured: Measured, wanted: np.ndarray) -> Interpolated:
    """Mean of the 8 nearest measured places."""
    return weights.k_nearest(measured.places, measured.asked, wanted)


@_add("inverse_distance")
def _inverse_distance(measured: Measured, wanted: np.ndarray) -> Interpolated:
    """Mean of the 8 nearest measured places, weighted by the inverse of the squared distance."""
    return weights.inverse_distance(measured.places, measured.asked, wanted)


@_add("gaussian")
def _gaussian(measured: Measured, wanted: np.ndarray) -> Interpolated:
    """Gaussian-weighted mean, the bandwidth from leaving single places out."""
    return gaussian(measured.places, measured.asked, wanted)


@_add("laplacian")
def _laplacian(measured: Measured, wanted: np.ndarray) -> Interpolated:
    """Smoothest values on a graph of the places, the strength from leaving single places out."""
    return laplacian(measured.places, measured.asked, wanted)


@_add("kriging", krigs=True)
def _kriging(measured: Measured, wanted: np.ndarray) -> Interpolated:
    """Kriging of each gene; range and noise averaged over candidates by likelihood, with what all genes say of them."""
    return kriging(measured.places, measured.asked, wanted, features=measured.features(wanted))


@_add("kriging_pooled", krigs=True)
def _kriging_pooled(measured: Measured, wanted: np.ndarray) -> Interpolated:
    """Kriging of each gene with one range and share of noise for all (Matern 3/2)."""
    return kriging(measured.places, measured.asked, wanted, features=measured.features(wanted), sharing="pooled", smoothness=1.5)


@_add("kriging_per_gene", krigs=True)
def _kriging_per_gene(measured: Measured, wanted: np.ndarray) -> Interpolated:
    """Kriging of each gene with its own range and share of noise (Matern 3/2)."""
    return kriging(measured.places, measured.asked, wanted, features=measured.features(wanted), sharing="none", smoothness=1.5)


@_add("kriging_by_depth", krigs=True)
def _kriging_by_depth(measured: Measured, wanted: np.ndarray) -> Interpolated:
    """Kriging of each gene, the noise of a place inverse to its counts."""
    return kriging(measured.places, measured.asked, wanted, features=measured.features(wanted), noise=measured.noise)


@_add("pca_kriging", krigs=True)
def _pca_kriging(measured: Measured, wanted: np.ndarray) -> Interpolated:
    """Kriging of 20 principal components of the genes asked for, each with its own range and noise (Matern 3/2)."""
    values = measured.asked
    return factor_kriging(
        measured.places, values, wanted, features=measured.features(wanted), axes=principal_axes(values), sharing="none", smoothness=1.5
    )


@_add("pca_kriging_by_depth", krigs=True)
def _pca_kriging_by_depth(measured: Measured, wanted: np.ndarray) -> Interpolated:
    """Kriging of 20 principal components of all genes given, places counting by their counts, noise inverse to them."""
    axes = principal_axes(measured.values, weights=measured.depth)
    return factor_kriging(
        measured.places,
        measured.values,
        wanted,
        features=measured.features(wanted),
        axes=axes,
        columns=measured.columns,
        noise=measured.noise,
    )


@_add("factor_kriging", krigs=True)
def _factor_kriging(measured: Measured, wanted: np.ndarray) -> Interpolated:
    """Kriging of 20 factors of the genes asked for, in units of their counting noise, the noise of a place inverse to its counts."""
    values, scale = measured.asked, None
    if measured.logs and measured.depth is not None:
        scale = count_noise(values, measured.depth)
    axes = principal_axes(values, weights=measured.depth, scale=scale)
    return factor_kriging(measured.places, values, wanted, features=measured.features(wanted), axes=axes, noise=measured.noise)


@_add("donor_kriging", donors=True, krigs=True)
def _donor_kriging(measured: Measured, wanted: np.ndarray) -> Interpolated:
    """Kriging of 20 axes of expression that were found in other donors, the noise of a place inverse to its counts."""
    assert measured.loadings is not None
    weight = np.ones(len(measured.values)) if measured.depth is None else measured.depth
    axes = Axes(weight @ measured.values / weight.sum(), np.ones(measured.values.shape[1]), measured.loadings)
    return factor_kriging(
        measured.places,
        measured.values,
        wanted,
        features=measured.features(wanted),
        axes=axes,
        columns=measured.columns,
        noise=measured.noise,
    )


@_add("depth_ensemble", donors=True, krigs=True)
def _depth_ensemble(measured: Measured, wanted: np.ndarray) -> Interpolated:
    """Mean of three depth-weighted krigings: own principal components, axes of other donors, single genes."""
    return mean_of([_pca_kriging_by_depth, _donor_kriging, _kriging_by_depth])(measured, wanted)


@_add("ensemble", krigs=True)
def _ensemble(measured: Measured, wanted: np.ndarray) -> Interpolated:
    """Mean of three krigings: principal components of all genes given, factors of the genes asked for, single genes."""
    return mean_of([_pca_kriging_by_depth, _factor_kriging, _kriging])(measured, wanted)


@_add("donor_ensemble", donors=True, krigs=True)
def _donor_ensemble(measured: Measured, wanted: np.ndarray) -> Interpolated:
    """Mean of the three krigings of ``ensemble`` and that of axes of other donors."""
    return mean_of([_pca_kriging_by_depth, _factor_kriging, _kriging, _donor_kriging])(measured, wanted)
