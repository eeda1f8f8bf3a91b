"""From what ``tl.impute`` is asked for to functions of measured places: names, functions, models, and one on what another leaves."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.spatial import KDTree

from stimg._core import keys, validate
from stimg._core.ledger import Seen
from stimg.image.interpolate import METHODS, Interpolated, Interpolator, Measured, Method, Windowed, on_residual
from stimg.tl._impute_places import Chosen, Wanted

if TYPE_CHECKING:
    from anndata import AnnData

TOUCH = 1e-6


class Resolved(NamedTuple):
    """A method: its name, what makes its function for a library, whether it is a model, what it has seen, and whether it needs other donors."""

    name: str
    function: Callable[["Site"], Interpolator]
    model: bool
    ledger: tuple[Seen, ...]
    donors: bool


class Site(NamedTuple):
    """What a model needs beyond arrays: the table, its rows in the library, their points, the places wanted and the table they came from."""

    adata: "AnnData"
    rows: np.ndarray
    points: np.ndarray
    wanted: Wanted
    targets: Any
    genes: list[str]
    library: str
    library_key: str


def resolve(method: Any, *, n_folds: int, seed: int) -> Resolved:
    """Return the method behind a name, a function of (measured, wanted), a model with ``impute``, or a pair of these.

    Raises
    ------
    ValueError
        For an unknown name, or a tuple that is no pair.
    TypeError
        For anything else, and for a model in second place of a pair.
    """
    if isinstance(method, str):
        known: Method = METHODS[method]
        return Resolved(known.name, lambda site: known, False, (), known.donors)
    if isinstance(method, tuple):
        if len(method) != 2:
            raise ValueError(f"method has {len(method)} parts; wanted two, the second of which interpolates what the first leaves.")
        first, second = (resolve(each, n_folds=n_folds, seed=seed) for each in method)
        if second.model:
            raise TypeError(
                f"{second.name} reads counts, so it cannot interpolate what {first.name} leaves. Put it first, or pass a function of (measured, wanted) that "
                "trains a model on the values it is given."
            )
        return Resolved(
            f"{first.name}_{second.name}",
            lambda site: on_residual(first.function(site), second.function(site), n_folds=n_folds, rng=seed),
            False,
            first.ledger + second.ledger,
            first.donors or second.donors,
        )
    if isinstance(method, type):
        raise TypeError(f"method is the class {method.__name__}; wanted a trained model. Make one with your data, and call its `train`.")
    if hasattr(method, "impute"):
        return Resolved(
            type(method).__name__.lower(), lambda site: _of_model(method, site), True, tuple(getattr(method, "ledger", ())), False
        )
    if callable(method):
        name = str(getattr(method, "__name__", getattr(method, "name", type(method).__name__))).strip("<>").lower()
        return Resolved(name, lambda site: _checked(method, name), False, tuple(getattr(method, "ledger", ())), False)
    raise TypeError(
        f"method is a {type(method).__name__}; wanted one of {list(METHODS)}, a function of (measured, wanted), a model with `impute`, or a pair."
    )


def _checked(function: Interpolator, name: str) -> Interpolator:
    """Return a function of the user's whose answers are looked at; what works in windows still does."""
    if isinstance(function, Windowed):
        return replace(function, method=_checked(function.method, name))

    def ask(measured: Measured, wanted: np.ndarray) -> Interpolated:
        found, shape = function(measured, wanted), (len(wanted), measured.n_asked)
        if not isinstance(found, Interpolated):
            raise TypeError(f"method {name!r} gave a {type(found).__name__}; wanted a `stimg.image.interpolate.Interpolated`.")
        for part, array in (("values", found.values), ("variance", found.variance)):
            if array is not None and np.shape(array) != shape:
                raise ValueError(f"method {name!r} gave {part} of shape {np.shape(array)}; wanted {shape}, (places, genes asked for).")
            if array is not None:
                validate.finite(np.asarray(array), f"{part} of method {name!r}", todo="Let the method give numbers at all places.")
        return found

    return ask


def _of_model(model: Any, site: Site) -> Interpolator:
    """Return a function that asks a model, with the rows of the table that it may see and none of the others."""
    from anndata import AnnData

    places = np.concatenate([site.points, site.wanted.points])
    rc = np.concatenate([np.asarray(site.adata.obsm[keys.RC])[site.rows], site.wanted.rc])
    tree = KDTree(places)

    def ask(measured: Measured, wanted: np.ndarray) -> Interpolated:
        away, at = tree.query(wanted)
        off = (rc[at, 0] < 0) | (away > TOUCH)
        factor = site.targets.factor[site.library] if isinstance(site.targets, Chosen) else None
        if off.any() and factor is None:
            raise ValueError(
                f"{int(off.sum())} of {len(at)} targets are not on the lattice of library {site.library!r}, and {type(model).__name__} predicts "
                "lattice points alone. Pass targets on the lattice, or use `stimg.tl.upsample` for finer lattices."
            )
        assert measured.rows is not None
        given = site.adata[measured.rows].copy()
        parts = []
        if not off.all():
            on = at[~off]
            obs = pd.DataFrame({site.library_key: pd.Categorical([site.library] * len(on))}, index=[f"place {i}" for i in range(len(on))])
            asked = AnnData(
                None, obs=obs, obsm={keys.RC: rc[on].astype(np.int32), **_features(site, on, getattr(model, "_guide_key", None))}
            )
            parts.append((np.flatnonzero(~off), _answer(model, model.impute(given, asked, genes=site.genes), len(on), site)))
        if factor is not None and off.any():
            parts.append((np.flatnonzero(off), _on_finer_lattice(model, given, factor, wanted[off], site)))
        values = np.empty((len(at), len(site.genes)))
        variance = None if any(found.variance is None for _, found in parts) else np.empty(values.shape)
        for rows, found in parts:
            values[rows] = found.values
            if variance is not None:
                variance[rows] = found.variance
        return Interpolated(values, variance)

    return ask


def _answer(model: Any, found: Any, n: int, site: Site) -> Interpolated:
    """Return what a model gave for ``n`` places, checked."""
    values, sd = np.asarray(found[0], dtype=np.float64), None if found[1] is None else np.asarray(found[1], dtype=np.float64)
    for name, array in (("values", values), ("sd", sd)):
        if array is not None and array.shape != (n, len(site.genes)):
            raise ValueError(f"{type(model).__name__}.impute gave {name} of shape {array.shape}; wanted ({n}, {len(site.genes)}).")
    return Interpolated(values, None if sd is None else sd**2)


def _on_finer_lattice(model: Any, given: "AnnData", factor: int, points: np.ndarray, site: Site) -> Interpolated:
    """Return what a model says of points (y, x), in pitches, of the lattice ``factor`` times finer; those that ``model.places`` lists are its own."""
    places = model.places(given, factor)
    affine = np.asarray(site.adata.uns[keys.UNS][keys.RASTER][site.library]["affine"], dtype=np.float64)
    own = np.linalg.solve(affine[:, :2], (places[["y", "x"]].to_numpy(dtype=np.float64) - affine[:, 2]).T).T
    away, at = KDTree(own).query(points)
    if (away > TOUCH).any():
        raise ValueError(
            f"{type(model).__name__} does not predict {int((away > TOUCH).sum())} of {len(points)} points of the finer lattice."
        )
    found = _answer(model, model.impute(given, factor, genes=site.genes), len(places), site)
    return Interpolated(found.values[at], None if found.variance is None else found.variance[at])


def _features(site: Site, at: np.ndarray, guide: str | None) -> dict[str, np.ndarray]:
    """Return the slots of ``obsm`` that both the table and the targets have, as wide in both, at places numbered as in :func:`_of_model`."""
    out = {}
    given = site.targets.obsm if hasattr(site.targets, "obsm") else {}
    for key in given:
        if key in (keys.RC, keys.SPATIAL) or key not in site.adata.obsm:
            continue
        own, theirs = np.asarray(site.adata.obsm[key]), np.asarray(given[key])
        if own.shape[1:] == theirs.shape[1:]:
            out[key] = np.concatenate([own[site.rows], theirs[site.wanted.rows]])[at]
        elif key == guide:
            raise ValueError(
                f"obsm[{key!r}] has shape {own.shape} in data and {theirs.shape} in targets; wanted the same features. Compute both with one encoder."
            )
    return out
