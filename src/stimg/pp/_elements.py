"""Positions of what a SpatialData table annotates, in one coordinate system, exact for any affine transformation."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stimg.image.units import to_yx


def affine_xy(element: Any, coordinate_system: str, *, what: str) -> np.ndarray:
    """Return the 3 x 3 affine from the element's own (x, y) to those of ``coordinate_system``."""
    from spatialdata.transformations import get_transformation

    transformations = get_transformation(element, get_all=True)
    if coordinate_system not in transformations:
        raise KeyError(
            f"{what} has no transformation to {coordinate_system!r} (found {sorted(transformations)}). Pass `coordinate_system=`."
        )
    return np.asarray(transformations[coordinate_system].to_affine_matrix(("x", "y"), ("x", "y")), dtype=np.float64)


def system_of(elements: Mapping[str, Any], library: str) -> str:
    """Return the coordinate system of a library where none was asked for; ``elements`` are those it lies on, by what errors call them.

    It is one that all of them have: ``"global"``, else the only one, else the one named after the library.
    """
    from spatialdata.transformations import get_transformation

    found = {what: sorted(get_transformation(element, get_all=True)) for what, element in elements.items()}
    common = set.intersection(*map(set, found.values()))
    for name in ("global", library):
        if name in common:
            return name
    if len(common) == 1:
        return common.pop()
    raise KeyError(
        f"library {library!r} has {len(common)} coordinate systems to choose from, none of them 'global' or {library!r}: "
        f"{'; '.join(f'{what} has {names}' for what, names in found.items())}. Pass `coordinate_system=`, one that all of them have."
    )


def apply_xy(affine: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Return (x, y) mapped by a 3 x 3 affine, float64 (n, 2)."""
    return np.asarray(xy, dtype=np.float64) @ affine[:2, :2].T + affine[:2, 2]


def region_column(table: Any, *, table_key: str) -> tuple[str, str]:
    """Return (region_key, instance_key) of a table that annotates elements."""
    attrs = table.uns.get("spatialdata_attrs")
    if not attrs or attrs.get("region") is None:
        raise KeyError(
            f"sdata.tables[{table_key!r}] annotates no element (no uns['spatialdata_attrs']). Pass the table itself, `sdata.tables[{table_key!r}]`, to use "
            "its obsm['spatial']."
        )
    return str(attrs["region_key"]), str(attrs["instance_key"])


def _shapes(sdata: Any, region: str, *, table_key: str) -> Any:
    if region not in sdata.shapes:
        raise KeyError(
            f"sdata.tables[{table_key!r}] annotates {region!r}, which is no shapes element (found {sorted(sdata.shapes)}). Convert labels with "
            "`spatialdata.to_circles`, or pass the table itself to use its obsm['spatial']."
        )
    return sdata.shapes[region]


def systems(sdata: Any, table: Any, libraries: Mapping[str, np.ndarray], *, table_key: str, wanted: str | None) -> dict[str, str]:
    """Return the coordinate system of every library, given the rows of ``table`` in each: ``wanted``, or what :func:`system_of` chooses."""
    if wanted is not None:
        return dict.fromkeys(libraries, wanted)
    region_key, _ = region_column(table, table_key=table_key)
    regions = table.obs[region_key].astype(str).to_numpy()
    chosen = {}
    for library, rows in libraries.items():
        names = sorted(set(regions[rows]))
        chosen[library] = system_of({f"sdata.shapes[{n!r}]": _shapes(sdata, n, table_key=table_key) for n in names}, library)
    return chosen


def centroids(
    sdata: Any, table: Any, *, table_key: str, coordinate_system: str | Sequence[str], which: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return (y, x) of every row of ``table`` in ``coordinate_system``, and the length there of one unit of the element, float64 (n, 2) and (n,).

    The table must annotate shapes: the centres of circles, the centroids of polygons. Where the rows lie in several systems, ``which``, int (n,), says
    in which of them.
    """
    names = [coordinate_system] if isinstance(coordinate_system, str) else list(coordinate_system)
    which = np.broadcast_to(np.intp(0), table.n_obs) if which is None else which
    region_key, instance_key = region_column(table, table_key=table_key)
    regions, instances = table.obs[region_key].astype(str).to_numpy(), table.obs[instance_key].to_numpy()
    yx, unit = np.full((table.n_obs, 2), np.nan), np.ones(table.n_obs)
    for region in sorted(set(regions)):
        element = _shapes(sdata, region, table_key=table_key)
        rows = np.flatnonzero(regions == region)
        affines = {int(i): affine_xy(element, names[i], what=f"sdata.shapes[{region!r}]") for i in np.unique(which[rows])}
        if element.index.has_duplicates:
            raise ValueError(f"sdata.shapes[{region!r}] has {int(element.index.duplicated().sum())} duplicated ids; wanted unique ones.")
        position = element.index.get_indexer(instances[rows])
        missing = int((position < 0).sum())
        if missing:
            raise KeyError(
                f"{missing} of {len(rows)} instances of sdata.tables[{table_key!r}] are not in sdata.shapes[{region!r}], the first is "
                f"{instances[rows][position < 0][0]!r}. Match them with `spatialdata.join_spatialelement_table`."
            )
        centre = element.geometry.centroid
        xy = np.stack([centre.x.to_numpy(), centre.y.to_numpy()], axis=1)[position]
        for i, affine in affines.items():
            here = which[rows] == i
            yx[rows[here]] = to_yx(apply_xy(affine, xy[here]))
            unit[rows[here]] = np.sqrt(abs(np.linalg.det(affine[:2, :2])))
    return yx, unit
