"""Where ``tl.impute`` predicts: the empty points of a raster inside the tissue, or places that are given."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stimg._core import keys, validate
from stimg.data.slots import RasterLibrary, library_rows
from stimg.image.fill import Snapped, empty_points, inside, snap
from stimg.tl._impute_pixels import applied, inverse, to_pixels

if TYPE_CHECKING:
    from anndata import AnnData

IMPUTED, INVENTED, MEASURED = "imputed", "invented", "measured"


@dataclass(frozen=True)
class Wanted:
    """Places of one library where values are wanted.

    Parameters
    ----------
    points
        (y, x) in pitches, float64 (m, 2).
    rc
        (row, column) on the raster, int64 (m, 2); (-1, -1) beside the lattice.
    status
        ``"imputed"``: a point of the measured lattice, in the tissue; ``"invented"``: anything else.
    names
        Names of the new observations.
    rows
        Rows of the AnnData that was given, -1 where there is none.
    """

    points: np.ndarray
    rc: np.ndarray
    status: np.ndarray
    names: list[str]
    rows: np.ndarray


@dataclass(frozen=True)
class Chosen:
    """Places that another verb chooses, :func:`stimg.tl.upsample`.

    Parameters
    ----------
    find
        Returns the places of every library.
    factor
        How many times finer than the measured lattice theirs is, by library; None where it is another lattice.
    """

    find: Callable[[], dict[str, Wanted]]
    factor: Mapping[str, int | None]


@dataclass(frozen=True)
class Featured(Chosen):
    """The same for places that are rows of a ``table``, whose slots can be read as those of an AnnData that was given as targets."""

    table: Any

    @property
    def obsm(self) -> Any:
        """The slots with features of the places."""
        return self.table.obsm

    @property
    def uns(self) -> Any:
        """The records of these slots."""
        return self.table.uns

    @property
    def obs_names(self) -> Any:
        """The names of the rows."""
        return self.table.obs_names


def wanted_places(
    adata: "AnnData", targets: Any, libraries: Mapping[str, RasterLibrary], *, gap_um: float | None, library_key: str
) -> dict[str, Wanted]:
    """Return the places of every library; places that were measured are left out. See :func:`stimg.tl.impute` for ``targets``."""
    if gap_um is not None:
        validate.positive(gap_um, "max_gap_um", "µm")
    if isinstance(targets, Chosen):
        return targets.find()
    xy: dict[str, Any] = {}
    if hasattr(targets, "obsm"):
        column = validate.obs(targets, library_key, todo="Name the library of every place.")
        places = validate.obsm(targets, keys.SPATIAL, columns=2, todo="Give every place its (x, y) in full-resolution pixels.")
        xy = {name: (places[at], at) for name, at in library_rows(column).items()}
    elif isinstance(targets, Mapping):
        xy = {str(name): (_coordinates(part), None) for name, part in targets.items()}
    elif targets is not None:
        if len(libraries) != 1:
            raise ValueError(
                f"targets are coordinates, but data has {len(libraries)} libraries. Pass them by library, `{{name: coordinates}}`."
            )
        xy = {next(iter(libraries)): (_coordinates(targets), None)}
    unknown = sorted(set(xy) - set(libraries))
    if unknown:
        raise ValueError(f"targets has libraries that data has not: {unknown}; data has {sorted(libraries)}. Correct obs[{library_key!r}].")
    names = None if not hasattr(targets, "obsm") else targets.obs_names.to_numpy().astype(str)
    out = {}
    for name, library in libraries.items():
        gap = None if gap_um is None else gap_um / library.spec.pitch_um
        if targets is None:
            out[name] = _empty(library, gap)
        elif name in xy:
            places, rows = xy[name]
            yx = applied(inverse(to_pixels(adata, library)), places[:, ::-1])
            out[name] = _given(library, yx, rows, names, gap)
    if not sum(len(each.points) for each in out.values()):
        raise ValueError(
            "There is no place to predict: "
            + (
                "no lattice point inside the tissue is empty. Pass `targets=`, or a larger `max_gap_um=`."
                if targets is None
                else "a measurement stands at every one of the targets. Pass other places, or None for the empty points of the raster."
                if any(len(places) for places, _ in xy.values())
                else "targets is empty. Pass places, or None for the empty points of the raster."
            )
        )
    return out


def _coordinates(values: Any) -> np.ndarray:
    array = np.asarray(values)
    if array.ndim != 2 or array.shape[1] != 2 or array.dtype.kind not in "iuf":
        raise ValueError(
            f"targets has dtype {array.dtype} and shape {array.shape}; wanted (n, 2), (x, y) in full-resolution pixels, or an AnnData."
        )
    validate.finite(array, "targets", todo="Leave these places out.")
    return array.astype(np.float64)


def _empty(library: RasterLibrary, gap: float | None) -> Wanted:
    rc = empty_points(library.spec, library.rc, gap=gap)
    names = [f"{library.name}_imputed_{r}x{c}" for r, c in rc.tolist()]
    return Wanted(library.spec.lattice_points(rc), rc, np.full(len(rc), IMPUTED, dtype=object), names, np.full(len(rc), -1))


def _given(library: RasterLibrary, yx: np.ndarray, rows: np.ndarray | None, names: Any, gap: float | None) -> Wanted:
    found: Snapped = snap(library.spec, yx)
    on = found.rc[:, 0] >= 0
    cols = library.spec.shape[1]
    taken = on & np.isin(found.rc @ (cols, 1), np.asarray(library.rc, dtype=np.int64) @ (cols, 1))
    within = inside(library.spec, library.rc, found.points, gap=gap)
    status = np.where(on & within, IMPUTED, INVENTED).astype(object)
    called = [f"{library.name}_imputed_{i}" for i in range(len(yx))] if rows is None else names[rows].tolist()
    left = np.flatnonzero(~taken)
    return Wanted(
        found.points[left], found.rc[left], status[left], [called[i] for i in left], np.full(len(left), -1) if rows is None else rows[left]
    )
