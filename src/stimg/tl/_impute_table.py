"""The result of ``tl.impute`` as a table, alone or in a SpatialData."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stimg._core import keys
from stimg.data.slots import RasterLibrary
from stimg.tl._impute_pixels import SAME_AFFINE, applied, inverse, to_pixels
from stimg.tl._impute_places import MEASURED, Wanted

if TYPE_CHECKING:
    from anndata import AnnData

STATUSES = ("measured", "imputed", "invented")
ARRAY = ("array_row", "array_col")
RADIUS = 0.25
"""Radius of the circles of a SpatialData, in pitches."""


def table(
    adata: "AnnData", genes: np.ndarray, libraries: Mapping[str, RasterLibrary], wanted: Mapping[str, Wanted], *, library_key: str
) -> "AnnData":
    """Return a table of the measured observations, then the places wanted, library by library, without values."""
    from anndata import AnnData

    names = [name for each in wanted.values() for name in each.names]
    twice = pd.Index([*adata.obs_names, *names])
    if twice.has_duplicates:
        found = twice[twice.duplicated()]
        raise ValueError(
            f"{len(found)} names stand twice among the observations and the targets, such as {found[0]!r}. Rename them, or pass coordinates as `targets`."
        )
    attrs = adata.uns.get("spatialdata_attrs", {})
    old = adata.obs.drop(columns=[attrs[k] for k in ("region_key", "instance_key") if k in attrs])
    parts = [old, *(_rows(old, libraries[name], each, library_key) for name, each in wanted.items())]
    obs = pd.concat(parts)
    obs[library_key] = pd.Categorical(obs[library_key].astype(str))
    status = np.concatenate([np.full(adata.n_obs, MEASURED, dtype=object), *(each.status for each in wanted.values())])
    obs[keys.STATUS] = pd.Categorical(status, categories=list(STATUSES))
    xy = [np.asarray(adata.obsm[keys.SPATIAL], dtype=np.float64)] if keys.SPATIAL in adata.obsm else []
    for name, each in wanted.items():
        units = applied(np.asarray(libraries[name].spec.affine), each.points)
        xy.append(applied(to_pixels(adata, libraries[name]), units)[:, ::-1])
    rc = np.concatenate([np.asarray(adata.obsm[keys.RC]), *(each.rc for each in wanted.values())]).astype(np.int32)
    uns: dict[str, Any] = {"spatial": deepcopy(adata.uns["spatial"])} if "spatial" in adata.uns else {}
    space = adata.uns[keys.UNS]
    uns[keys.UNS] = {k: deepcopy(space[k]) for k in (keys.RASTER, "rasterize") if k in space}
    out = AnnData(None, obs=obs, var=adata.var.iloc[genes].copy(), obsm={keys.RC: rc}, uns=uns)
    if keys.SPATIAL in adata.obsm:
        out.obsm[keys.SPATIAL] = np.concatenate(xy)
    return out


def _rows(obs: pd.DataFrame, library: RasterLibrary, wanted: Wanted, library_key: str) -> pd.DataFrame:
    """Return rows of ``obs`` for new observations: what is constant in the library, array indices on the lattice, and missing values."""
    out = obs.iloc[:0].reindex(wanted.names)
    mine = obs.iloc[library.rows]
    for column in obs.columns:
        values = mine[column].unique()
        if column == library_key or len(values) == 1:
            out[column] = pd.Series([values[0]] * len(out), index=out.index).astype(obs[column].dtype)
    if set(ARRAY) <= set(obs.columns):
        design = np.column_stack([library.spec.lattice_points(library.rc), np.ones(len(library.rc))])
        index = mine[list(ARRAY)].to_numpy(dtype=np.float64)
        slope, _, rank, _ = np.linalg.lstsq(design, index, rcond=None)
        if rank == 3 and np.abs(design @ slope - index).max() < 0.01:  # the indices are those of this lattice
            found = np.rint(np.column_stack([wanted.points, np.ones(len(wanted.points))]) @ slope)
            found[wanted.rc[:, 0] < 0] = np.nan
            out[list(ARRAY)] = found
    return out


def add_to_spatialdata(sdata: Any, name: str, result: "AnnData", libraries: Mapping[str, RasterLibrary], *, library_key: str) -> None:
    """Add ``tables[name]`` and for each library the circles ``<library>_<name>`` that it annotates, placed in the coordinate system of its raster."""
    from spatialdata.models import ShapesModel, TableModel

    systems = result.uns[keys.UNS].get("rasterize", {}).get("coordinate_system", "none")
    library, rc = result.obs[library_key].astype(str).to_numpy(), np.asarray(result.obsm[keys.RC])
    shapes, regions = {}, []
    for each, found in libraries.items():
        rows = np.flatnonzero(library == each)
        on = rows[rc[rows, 0] >= 0]
        pixels = to_pixels(result, replace(found, rows=on, rc=rc[on]))
        shapes[f"{each}_{name}"] = ShapesModel.parse(
            np.asarray(result.obsm[keys.SPATIAL])[rows],
            geometry=0,
            radius=RADIUS * found.spec.pitch_um / found.spec.mpp * float(np.sqrt(abs(np.linalg.det(pixels[:, :2])))),
            index=result.obs_names[rows],
            transformations={systems.get(each, "global") if isinstance(systems, Mapping) else "global": _back(pixels)},
        )
        regions.append(f"{each}_{name}")
    made = result.copy()
    made.obs["region"] = pd.Categorical([f"{each}_{name}" for each in library])
    made.obs["spot_id"] = made.obs_names.to_numpy()
    parsed = TableModel.parse(made, region=regions, region_key="region", instance_key="spot_id")
    for key, element in shapes.items():
        sdata.shapes[key] = element
    sdata.tables[name] = parsed


def _back(pixels: np.ndarray) -> Any:
    """Return the transformation of shapes from pixels to the units that ``pixels`` comes from."""
    from spatialdata.transformations import Affine, Identity

    if np.array_equal(pixels, SAME_AFFINE):
        return Identity()
    there = inverse(pixels)
    matrix = np.eye(3)
    matrix[:2, :2], matrix[:2, 2] = there[::-1, 1::-1], there[::-1, 2]
    return Affine(matrix, input_axes=("x", "y"), output_axes=("x", "y"))
