"""What ``stimg.tl.impute`` wrote and the truth beside it, as arrays: which values were measured, which predicted, and which of these can be checked."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from scipy.spatial import KDTree

from stimg._core import keys, validate
from stimg.data.slots import RasterLibrary, raster_libraries
from stimg.data.tables import table_of

STATUSES = ("measured", "imputed", "invented")
MEASURED, IMPUTED, INVENTED = range(3)
VERBS = ("stimg.tl.impute", "stimg.tl.upsample")
UNIT = "log1p_cp10k"
AT = 0.1
"""Distance in pitches within which a place of the truth is that of a prediction."""
TODO = "Pass what `stimg.tl.impute` returned; in a SpatialData it is the table `<table_key>_imputed`."


@dataclass(frozen=True)
class Hidden:
    """Hidden observations that were predicted: their rows in the table of predictions and in the truth, and how many hidden ones there are in all."""

    rows: np.ndarray
    truth: np.ndarray
    total: int

    @property
    def count(self) -> str:
        """How many were predicted, in words: "72", or "70 of 72"."""
        return f"{len(self.rows):,}" if len(self.rows) == self.total else f"{len(self.rows):,} of {self.total:,}"


def status_of(adata: Any) -> np.ndarray:
    """Return 0 (measured), 1 (imputed) or 2 (invented) for every observation, int (n_obs,)."""
    column = validate.obs(adata, keys.STATUS, todo=TODO).astype(str).to_numpy()
    unknown = sorted(set(column) - set(STATUSES))
    if unknown:
        raise ValueError(f"adata.obs[{keys.STATUS!r}] has {unknown}; wanted {list(STATUSES)}. {TODO}")
    return np.select([column == name for name in STATUSES], range(3))


def layer_of(adata: Any, key: str | None) -> str:
    """Return the layer with the predictions: the one asked for, or the only one that is recorded as such."""
    if key is not None:
        validate.slot(adata.layers, "layers", key, todo="Pass `key=`, a layer that `stimg.tl.impute` wrote.")
        return key
    records = adata.uns.get(keys.UNS, {})
    found = [str(name) for name in adata.layers if name is not None and records.get(name, {}).get("verb") in VERBS]
    if not found:
        raise KeyError(
            f"No layer is recorded as written by `stimg.tl.impute` (layers: {[k for k in adata.layers if k is not None]}). {TODO}"
        )
    if len(found) > 1:
        raise ValueError(f"{len(found)} layers hold predictions: {found}; wanted one. Name it with `key=`.")
    return found[0]


def hidden_of(adata: Any, truth: Any, status: np.ndarray, *, key: str, libraries: Sequence[str], library_key: str) -> Hidden:
    """Return which hidden observations of ``libraries`` were predicted, found by their places.

    Raises
    ------
    ValueError
        Where the predictions are in another unit than that of the truth, none of the truth was predicted, or a part of it was measured.
    """
    unit = str(adata.uns.get(keys.UNS, {}).get(key, {}).get("unit", UNIT))
    if unit != UNIT:
        raise ValueError(f"adata.layers[{key!r}] is recorded in {unit}; wanted {UNIT}, the unit of the truth. Leave out `truth=`.")
    filled, true = raster_libraries(adata, library_key), raster_libraries(truth, library_key)
    rows, found, total, clash = [], [], 0, 0
    for name in libraries:
        if name not in true or not len(true[name].rows):
            continue
        here, places = _places(adata, filled[name], library_key)
        wanted = true[name].spec.centres_px(true[name].rc)
        away, at = KDTree(places).query(_lattice(filled[name], wanted))
        close = away <= AT
        clash += int((close & (status[here[at]] == MEASURED)).sum())
        total += len(wanted)
        rows.append(here[at[close]])
        found.append(true[name].rows[close])
    if not sum(map(len, rows)):
        raise ValueError(
            f"None of the {truth.n_obs} observations of truth is at a place that was predicted, in the libraries {list(libraries)}. Pass the second object of "
            "`stimg.pp.sparsify`, and the first to `stimg.tl.impute`, with `targets=truth`."
        )
    if clash:
        raise ValueError(
            f"{clash} of the {total} observations of truth stand where the table has a measurement; wanted hidden ones alone, as measured values are copied "
            "through. Pass the second object of `stimg.pp.sparsify`."
        )
    return Hidden(np.concatenate(rows), np.concatenate(found), total)


def true_values(truth: Any, genes: Sequence[str], layer: str | None) -> np.ndarray:
    """Return log(1 + counts per 10,000 of all counts) of ``genes``, float64 (n_obs, genes), from raw counts."""
    counts = validate.counts(truth, layer)
    columns = validate.genes(genes, truth.var_names, what="genes", todo="Pass `genes=` that the truth lists.")
    depth = np.asarray(counts.sum(axis=1), dtype=np.float64).reshape(-1, 1)
    return np.log1p(1e4 * counts[:, columns].toarray() / np.maximum(depth, 1.0))


def values_of(adata: Any, key: str, columns: np.ndarray) -> np.ndarray:
    """Return columns of a layer, float64 (n_obs, columns)."""
    found = adata.layers[key][:, columns]
    return np.asarray(found.toarray() if sp.issparse(found) else found, dtype=np.float64)


def points_um(adata: Any, library: RasterLibrary, rows: np.ndarray) -> np.ndarray:
    """Return (y, x) in µm in the frame of the raster, of observations that may lie beside the lattice, float64 (n, 2)."""
    xy = validate.obsm(adata, keys.SPATIAL, columns=2, todo=TODO)[rows]
    return _lattice(library, xy[:, ::-1]) * library.spec.pitch_um


def off_lattice(adata: Any, library: str, library_key: str) -> np.ndarray:
    """Return the rows of a library's observations that are on no lattice point."""
    mine = adata.obs[library_key].astype(str).to_numpy() == library
    return np.flatnonzero(mine & (np.asarray(adata.obsm[keys.RC])[:, 0] < 0))


def truth_table(truth: Any, table_key: str) -> Any:
    """Return the table of a truth; a TypeError says what was wanted."""
    if isinstance(truth, tuple):
        raise TypeError(
            f"truth is a {type(truth).__name__} of {len(truth)}; wanted one object. Pass the second of what `stimg.pp.sparsify` returned."
        )
    return table_of(truth, table_key)


def _places(adata: Any, library: RasterLibrary, library_key: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of a library and their (y, x) in pitches, also of those beside the lattice."""
    beside = off_lattice(adata, library.name, library_key)
    on = library.spec.lattice_points(library.rc)
    if not len(beside):
        return library.rows, on
    return np.concatenate([library.rows, beside]), np.concatenate([on, points_um(adata, library, beside) / library.spec.pitch_um])


def _lattice(library: RasterLibrary, yx: np.ndarray) -> np.ndarray:
    """Return (y, x) in pitches of (y, x) in full-resolution pixels."""
    affine = np.asarray(library.spec.affine)
    return np.linalg.solve(affine[:, :2], (np.asarray(yx, dtype=np.float64) - affine[:, 2]).T).T
