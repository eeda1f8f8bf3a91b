"""From what ``tl.impute`` is asked for to functions of measured places: names, functions, models, and one on what another leaves."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.spatial import KDTree

from stimg._core import keys
from stimg._core.ledger import Seen
from stimg.image.interpolate import METHODS, Interpolated, Interpolator, Measured, Method, on_residual
from stimg.tl._impute_places import Wanted

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
    if hasattr(method, "impute"):
        return Resolved(
            type(method).__name__.lower(), lambda site: _of_model(method, site), True, tuple(getattr(method, "ledger", ())), False
        )
    if callable(method):
        name = str(getattr(method, "__name__", getattr(method, "name", type(method).__name__))).strip("<>").lower()
        return Resolved(name, lambda site: method, False, tuple(getattr(method, "ledger", ())), False)
    raise TypeError(
        f"method is a {type(method).__name__}; wanted one of {list(METHODS)}, a function of (measured, wanted), a model with `impute`, or a pair."
    )


def _of_model(model: Any, site: Site) -> Interpolator:
    """Return a function that asks a model, with the rows of the table that it may see and none of the others."""
    from anndata import AnnData

    places = np.concatenate([site.points, site.wanted.points])
    rc = np.concatenate([np.asarray(site.adata.obsm[keys.RC])[site.rows], site.wanted.rc])
    tree = KDTree(places)

    def ask(measured: Measured, wanted: np.ndarray) -> Interpolated:
        away, at = tree.query(wanted)
        if (rc[at, 0] < 0).any() or (away > TOUCH).any():
            raise ValueError(
                f"{int((rc[at, 0] < 0).sum())} of {len(at)} targets are not on the lattice of library {site.library!r}, and {type(model).__name__} predicts "
                "lattice points alone. Pass targets on the lattice, or use its own `impute` for finer lattices."
            )
        assert measured.rows is not None
        obs = pd.DataFrame({site.library_key: pd.Categorical([site.library] * len(at))}, index=[f"place {i}" for i in range(len(at))])
        asked = AnnData(None, obs=obs, obsm={keys.RC: rc[at].astype(np.int32), **_features(site, at)})
        found = model.impute(site.adata[measured.rows].copy(), asked, genes=site.genes)
        values, sd = np.asarray(found[0], dtype=np.float64), None if found[1] is None else np.asarray(found[1], dtype=np.float64)
        for name, array in (("values", values), ("sd", sd)):
            if array is not None and array.shape != (len(at), len(site.genes)):
                raise ValueError(
                    f"{type(model).__name__}.impute gave {name} of shape {array.shape}; wanted ({len(at)}, {len(site.genes)})."
                )
        return Interpolated(values, None if sd is None else sd**2)

    return ask


def _features(site: Site, at: np.ndarray) -> dict[str, np.ndarray]:
    """Return the slots of ``obsm`` that both the table and the targets have, at places numbered as in :func:`_of_model`."""
    out = {}
    given = site.targets.obsm if hasattr(site.targets, "obsm") else {}
    for key in given:
        if key in (keys.RC, keys.SPATIAL) or key not in site.adata.obsm:
            continue
        both = np.concatenate([np.asarray(site.adata.obsm[key])[site.rows], np.asarray(given[key])[site.wanted.rows]])
        out[key] = both[at]
    return out
