"""The finer lattices of ``tl.upsample``, and their points in the tissue."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.spatial import KDTree

from stimg._core import validate
from stimg.data.slots import RasterLibrary, raster_libraries
from stimg.image.fill import empty_points
from stimg.image.finer import pixels, refined, within
from stimg.image.spec import HEX_ROW_STEP, RasterSpec
from stimg.image.units import differ
from stimg.tl._impute_places import IMPUTED, INVENTED, Wanted

WHOLE = 1e-6
"""How far pitch / pixel may be from a whole number to be one, relative to it."""
PLACES = 2e7
"""Most places of a finer lattice that are in memory at a time."""
TOUCH = 1e-6


@dataclass(frozen=True)
class Lattice:
    """What the lattice of one library is to be.

    Parameters
    ----------
    factor
        How many times finer than the measured one it is, None for another lattice.
    spec
        The raster, None for square pixels of ``pixel_um`` that are yet to be laid.
    pixel_um
        Its pitch in µm.
    rows
        Row of the table that was given as the grid, by raster point (row x columns + column); others are left out. None: all points.
    names
        Names of these rows.
    """

    factor: int | None
    spec: RasterSpec | None
    pixel_um: float
    rows: Mapping[int, int] | None = None
    names: Any = None


@dataclass(frozen=True)
class Finer:
    """The places of one library on its finer lattice.

    Parameters
    ----------
    spec
        The finer raster.
    measured
        (row, column) on it of the library's observations, int64 (n, 2); (-1, -1) where they are on none of its points.
    wanted
        The other points in the tissue.
    rc
        (row, column) of these on the finer raster, int64 (m, 2).
    """

    spec: RasterSpec
    measured: np.ndarray
    wanted: Wanted
    rc: np.ndarray


def lattices(libraries: Mapping[str, RasterLibrary], *, factor: Any, pixel_um: Any, grid: Any, library_key: str) -> dict[str, Lattice]:
    """Return the lattice that is asked for, by library. See :func:`stimg.tl.upsample` for the arguments, one of which has to be given."""
    given = [name for name, value in (("factor", factor), ("pixel_um", pixel_um), ("grid", grid)) if value is not None]
    if len(given) != 1:
        raise ValueError(
            f"{' and '.join(given) or 'nothing'} given; wanted one of `factor=`, `pixel_um=` and `grid=`, which say how fine the lattice is."
        )
    if factor is not None:
        times = validate.whole(factor, "factor")
        if times == 1:
            raise ValueError(
                "factor=1 is the measured lattice; wanted 2 or more. `stimg.tl.impute` fills the gaps of the measured lattice."
            )
        return {name: Lattice(times, None, each.spec.pitch_um / times) for name, each in libraries.items()}
    if pixel_um is not None:
        validate.positive(pixel_um, "pixel_um", "µm")
        return {name: _of_pixels(each.spec, float(pixel_um), name) for name, each in libraries.items()}
    specs, rows = _specs(grid, libraries, library_key)
    names = grid.obs_names if rows else None
    return {
        name: Lattice(None, _checked(specs[name], each.spec, name), specs[name].pitch_um, rows.get(name), names)
        for name, each in libraries.items()
    }


def _of_pixels(spec: RasterSpec, pixel_um: float, name: str) -> Lattice:
    times = spec.pitch_um / pixel_um
    if times < 1 - WHOLE:
        raise ValueError(
            f"pixel_um={pixel_um:g} is coarser than the pitch of library {name!r}, {spec.pitch_um:g} µm; wanted less. `stimg.pp.resample` makes larger pixels."
        )
    whole = round(times)
    if spec.lattice == "square" and whole > 1 and abs(times - whole) <= WHOLE * times:
        return Lattice(whole, None, spec.pitch_um / whole)
    return Lattice(None, None, pixel_um)


def _specs(
    grid: Any, libraries: Mapping[str, RasterLibrary], library_key: str
) -> tuple[Mapping[str, RasterSpec], dict[str, Mapping[int, int]]]:
    """Return the rasters of a grid by library, and the rows of a table by raster point."""
    todo = "Pass a RasterSpec, one by library, or a rasterised AnnData with these libraries."
    specs: Mapping[str, Any]
    rows: dict[str, Mapping[int, int]] = {}
    if isinstance(grid, RasterSpec):
        if len(libraries) != 1:
            raise ValueError(f"grid is one RasterSpec, but data has {len(libraries)} libraries. Pass them by library, `{{name: spec}}`.")
        specs = {next(iter(libraries)): grid}
    elif hasattr(grid, "obsm"):
        found = raster_libraries(grid, library_key)
        specs = {name: each.spec for name, each in found.items()}
        for name, each in found.items():
            flat = each.rc.astype(np.int64) @ (each.spec.shape[1], 1)
            rows[name] = dict(zip(flat[::-1].tolist(), each.rows[::-1].tolist(), strict=True))  # of several on one point, the first
    elif isinstance(grid, Mapping):
        specs = grid
    else:
        raise TypeError(f"grid is a {type(grid).__name__}. {todo}")
    wrong = sorted(str(name) for name, spec in specs.items() if not isinstance(spec, RasterSpec))
    if wrong:
        raise TypeError(f"grid has no RasterSpec for {wrong}. {todo}")
    if set(specs) != set(libraries):
        raise ValueError(f"grid has the libraries {sorted(specs)}, data has {sorted(libraries)}; wanted the same. {todo}")
    return specs, rows


def _checked(spec: RasterSpec, measured: RasterSpec, name: str) -> RasterSpec:
    linear = np.asarray(spec.affine)[:, :2]
    pitch = float(np.sqrt(abs(np.linalg.det(linear)))) * spec.mpp
    if differ(spec.mpp, measured.mpp) or differ(max(pitch, 1e-12), spec.pitch_um):
        raise ValueError(
            f"The grid of library {name!r} says {spec.pitch_um:g} µm, and its map {pitch:g} µm at {spec.mpp:g} µm per pixel; the data has "
            f"{measured.mpp:g} µm per pixel. Give `affine` in full-resolution pixels of the data and `mpp` as there."
        )
    return spec


def finer_places(
    library: RasterLibrary, lattice: Lattice, *, gap_um: float | None, n_genes: int, most: float, covered: KDTree | None = None
) -> Finer:
    """Return the places of a library on the lattice asked for.

    Parameters
    ----------
    library, lattice
        The library, and what is asked for.
    gap_um
        Widest gap that counts as tissue, in µm; None as for :func:`stimg.tl.impute`.
    n_genes, most
        Genes to predict, and most values.
    covered
        Places off the measured lattice that a model predicts, (y, x) in full-resolution pixels; others are left out. None: all.
    """
    spec = library.spec
    tissue = np.zeros(spec.shape, dtype=bool)
    tissue[library.rc[:, 0], library.rc[:, 1]] = True
    empty = empty_points(spec, library.rc, gap=None if gap_um is None else gap_um / spec.pitch_um)
    _check_size(spec, lattice, len(empty) + int(tissue.sum()), n_genes, most)
    tissue[empty[:, 0], empty[:, 1]] = True
    if lattice.spec is not None:
        target = lattice.spec
    elif lattice.factor is not None:
        target = refined(spec, lattice.factor)
    else:
        target = pixels(spec, library.rc, lattice.pixel_um)
    found = within(spec, tissue, target)
    flat = found.on @ (spec.shape[1], 1)
    known = library.rc.astype(np.int64) @ (spec.shape[1], 1)
    at = dict(zip(flat[found.on[:, 0] >= 0].tolist(), np.flatnonzero(found.on[:, 0] >= 0).tolist(), strict=True))
    which = np.array([at.get(each, -1) for each in known.tolist()], dtype=np.int64)
    measured = np.where(which[:, None] >= 0, found.rc[which] if len(found.rc) else -1, -1)
    left = np.ones(len(found.rc), dtype=bool)
    left[which[which >= 0]] = False
    if covered is not None:
        away = covered.query(target.centres_px(found.rc))[0] * spec.mpp / spec.pitch_um
        left &= (found.on[:, 0] >= 0) | (away <= TOUCH)
    rows = np.full(len(found.rc), -1, dtype=np.int64)
    if lattice.rows is not None:
        rows[:] = [lattice.rows.get(each, -1) for each in (found.rc @ (target.shape[1], 1)).tolist()]
        left &= rows >= 0
    rc, points, on = (part[left] for part in found)
    if lattice.names is not None:
        names = lattice.names[rows[left]].astype(str).tolist()
    else:
        label = f"x{lattice.factor}" if lattice.factor is not None else f"{lattice.pixel_um:g}um"
        names = [f"{library.name}_{label}_{r}x{c}" for r, c in rc.tolist()]
    status = np.where(on[:, 0] >= 0, IMPUTED, INVENTED).astype(object)
    return Finer(target, measured, Wanted(points, on, status, names, rows[left]), rc)


def _check_size(spec: RasterSpec, lattice: Lattice, tissue: int, n_genes: int, most: float) -> None:
    """Refuse a lattice that has too many points in the tissue or around it, before any is made."""
    other = (
        spec.lattice if lattice.spec is None and lattice.factor is not None else "square" if lattice.spec is None else lattice.spec.lattice
    )
    cell = {"square": 1.0, "hex": HEX_ROW_STEP}
    places = tissue * cell[spec.lattice] * spec.pitch_um**2 / (cell[other] * lattice.pixel_um**2)
    if places > PLACES or places * n_genes > most:
        raise ValueError(
            f"The finer lattice has about {places:.2g} points in the tissue, {places * n_genes:.2g} values of {n_genes} genes; {PLACES:.2g} points and {most:.2g} "
            "values fit at a time. Pass a smaller `factor=`, a larger `pixel_um=`, or fewer `genes=`."
        )
