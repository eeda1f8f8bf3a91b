"""Laying one library on its raster: arrays in, a checked RasterSpec and (row, column) out. Knows no tables."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from stimg.image import lattice as lat
from stimg.image.spec import RasterSpec
from stimg.image.units import (
    LEAST_PITCH_PER_DIAMETER,
    LEAST_PITCH_PER_DIAMETER_VISIUM,
    VISIUM_PITCH_UM,
    Metadata,
    Scale,
    check_extent,
    resolve_scale,
)

MAX_RMS = 0.25
"""Largest root-mean-square distance to the lattice, in pitches; coordinates without a lattice have 0.41, hand-aligned legacy arrays 0.09."""
MAX_RESIDUAL = 1.0
"""Largest distance of one observation to its lattice point, in pitches."""
MAX_STRETCH = 1.4
"""Largest ratio of the two axes of the fitted map; a hexagonal array read as a square one has 1.73."""
LEAST_CHECKERBOARD = 8
"""Observations from which a constant parity of row + column is taken for a checkerboard and not for chance."""


@dataclass(frozen=True)
class Placed:
    """A library on its raster: the spec, and (row, column) of every observation, int32 (n, 2), (-1, -1) where it is not on it."""

    spec: RasterSpec
    rc: np.ndarray
    scale: Scale


def place_array(
    array_row: np.ndarray,
    array_col: np.ndarray,
    yx: np.ndarray | None,
    *,
    names: Sequence[Any],
    metadata: Metadata,
    lattice: str = "auto",
    pitch_um: float | None = None,
    mpp: float | None = None,
    collision: str = "error",
    allow_mirror: bool = False,
    where: str = "",
) -> Placed:
    """Return a library placed by its array indices, its coordinates checked against them.

    Parameters
    ----------
    array_row, array_col
        Array indices, int (n,); a hexagonal array counts columns in half steps.
    yx
        (y, x) in full-resolution pixels, (n, 2), or None where there are no coordinates; ``spec.affine`` then maps to pixels of ``mpp`` (default 1:
        to µm), with raster (0, 0) at the origin.
    names
        Barcodes, for error messages.
    metadata, pitch_um, mpp
        Everything that states the scale; see :func:`stimg.image.units.resolve_scale`.
    lattice
        ``"square"``, ``"hex"``, or ``"auto"``: square, unless row + column has one parity; then the one of hexagonal and checkerboard that the
        coordinates stretch less, and hexagonal where they cannot tell.
    collision
        ``"error"``, ``"nearest"`` or ``"sum"``.
    allow_mirror
        Accept coordinates that mirror the array.
    where
        Beginning of the error messages.
    """
    kind, indices = _array_kind(array_row, array_col, yx, lattice)
    is_hex = kind == "hex"
    spec = RasterSpec(
        lattice="hex" if is_hex else "square",
        shape=_shape(indices.rc),
        pitch_um=1.0,
        hex_parity=indices.parity,
        origin=indices.origin,
        source="bins" if metadata.pitch_um is not None and not is_hex else "array",
        collision=collision,
    )
    default = VISIUM_PITCH_UM if is_hex else None
    rc = indices.rc
    if yx is None:
        if metadata.mpp is None and mpp is None:
            mpp = 1.0
        scale = resolve_scale(None, metadata, mpp=mpp, pitch_um=pitch_um, pitch_default=default, where=where)
        rc, _ = _collide(spec, rc, None, collision, names, where)
        step = scale.pitch_um / scale.mpp
        return _finish(spec, rc, ((step, 0.0, 0.0), (0.0, step, 0.0)), 0.0, scale)
    rc, keep = _collide(spec, rc, yx, collision, names, where)
    affine, full = lat.fit_affine(spec.lattice_points(rc[keep]), yx[keep])
    if np.isnan(affine).any():  # one observation: position from the coordinates, scale from what is stated
        scale = resolve_scale(None, metadata, mpp=mpp, pitch_um=pitch_um, pitch_default=default, where=where)
        check_extent(yx, metadata, pitch_px=None, confirmed=True, where=where)
        step = scale.pitch_um / scale.mpp
        affine[:, :2] = np.eye(2) * step
        affine[:, 2] = yx[keep].mean(axis=0) - spec.lattice_points(rc[keep]).mean(axis=0) * step
        return _finish(spec, rc, affine, _far(spec, rc, yx, affine).max(initial=0.0) * scale.mpp, scale)
    pitch_px = float(np.sqrt(abs(np.linalg.det(affine[:, :2]))))
    if full:
        _check_fit(spec, kind, indices, rc, yx, affine, pitch_px, names, allow_mirror, where)
    scale = resolve_scale(pitch_px, metadata, mpp=mpp, pitch_um=pitch_um, pitch_default=default, where=where)
    least = LEAST_PITCH_PER_DIAMETER_VISIUM if is_hex and pitch_um is None else LEAST_PITCH_PER_DIAMETER
    confirmed = scale.mpp_source != "pitch" and (scale.pitch_source != "measured" or is_hex)
    check_extent(yx, metadata, pitch_px=pitch_px, least=least, confirmed=confirmed, where=where)
    return _finish(spec, rc, affine, _far(spec, rc, yx, affine).max(initial=0.0) * scale.mpp, scale)


def place_coordinates(
    yx: np.ndarray,
    *,
    names: Sequence[Any],
    metadata: Metadata,
    lattice: str = "auto",
    pitch_um: float | None = None,
    mpp: float | None = None,
    collision: str = "error",
    where: str = "",
) -> Placed:
    """Return a library placed on the lattice found from its coordinates alone; parameters as in :func:`place_array`.

    The pitch of Visium is not assumed here: ``pitch_um`` or µm per pixel must be stated.
    """
    try:
        found = lat.find_lattice(yx, lattice=lattice)
    except ValueError as err:
        raise ValueError(f"{where}{err}") from err
    spec = RasterSpec(found.lattice, _shape(found.rc), 1.0, hex_parity=found.parity, source="coordinates", collision=collision)
    rc, keep = _collide(spec, found.rc, yx, collision, names, where)
    affine, _ = lat.fit_affine(spec.lattice_points(rc[keep]), yx[keep])
    pitch_px = float(np.sqrt(abs(np.linalg.det(affine[:, :2]))))
    far = _far(spec, rc, yx, affine)
    rms = float(np.sqrt((far**2).mean())) / pitch_px
    if rms > MAX_RMS:
        raise ValueError(
            f"{where}the coordinates do not lie on one lattice: the best {found.lattice} one has a pitch of {pitch_px:.4g} px and a root-mean-square "
            f"distance of {rms:.2f} pitches (wanted {MAX_RMS} or less). For cells pass `source='cells'` with `pixel_um=`; split joined "
            "sections with obs['library_id']."
        )
    scale = resolve_scale(pitch_px, metadata, mpp=mpp, pitch_um=pitch_um, where=where)
    check_extent(yx, metadata, pitch_px=pitch_px, confirmed=scale.mpp_source != "pitch" and scale.pitch_source != "measured", where=where)
    return _finish(spec, rc, affine, far.max() * scale.mpp, scale)


def place_cells(
    yx: np.ndarray,
    *,
    pixel_um: float,
    names: Sequence[Any],
    metadata: Metadata,
    mpp: float | None = None,
    collision: str = "error",
    where: str = "",
) -> Placed:
    """Return irregular observations binned on an upright square raster of ``pixel_um``, its bin edges at multiples of ``pixel_um``.

    ``spec.origin`` is the (row, column) of the bin that became raster (0, 0), counted from the coordinates' origin. Other parameters as in
    :func:`place_array`.
    """
    metadata = replace(metadata, pitch_um=None, spot_diameter_px=None)  # these speak of the bins or spots, not of the pixels asked for
    scale = resolve_scale(None, metadata, mpp=mpp, pitch_um=pixel_um, where=where)
    check_extent(yx, metadata, pitch_px=None, where=where)
    _check_cells(yx, scale.mpp, where)
    step = pixel_um / scale.mpp
    bins = np.floor(yx / step).astype(np.int64)
    first = bins.min(axis=0)
    affine = np.array([[step, 0.0, (first[0] + 0.5) * step], [0.0, step, (first[1] + 0.5) * step]])
    spec = RasterSpec(
        "square",
        _shape(bins - first),
        pixel_um,
        origin=(int(first[0]), int(first[1])),
        source="cells",
        collision=collision,
        affine=_tuple(affine),
    )
    rc, _ = _collide(spec, bins - first, yx, collision, names, where, affine)
    return _finish(spec, rc, affine, _far(spec, rc, yx, affine).max(initial=0.0) * scale.mpp, scale)


def _check_cells(yx: np.ndarray, mpp: float, where: str) -> None:
    if len(yx) < 100:
        return
    near = lat.nearest_distance(yx) * mpp
    if not 1.0 <= near <= 1000.0:
        raise ValueError(
            f"{where}the median distance between nearest cells is {near:.3g} µm at {mpp:.4g} µm per pixel; wanted 1 .. 1000. The coordinates are "
            "not in pixels of that size: pass `mpp=1` where they are in µm."
        )


def _array_kind(array_row: np.ndarray, array_col: np.ndarray, yx: np.ndarray | None, lattice: str) -> tuple[str, lat.Indices]:
    """Return ``"square"``, ``"hex"`` or ``"diagonal"`` and the indices."""
    if lattice == "square":
        return "square", lat.square_indices(array_row, array_col)
    if lattice == "hex":
        return "hex", lat.hex_indices(array_row, array_col)
    if len(array_row) == 1 or not lat.staggered(array_row, array_col):
        return "square", lat.square_indices(array_row, array_col)
    stretch = {}
    half_steps = {"hex": (lat.HEX_ROW_STEP, 0.5), "diagonal": (1.0, 1.0)}
    for kind, step in half_steps.items():
        affine, full = lat.fit_affine(np.stack([array_row, array_col], axis=1) * step, yx) if yx is not None else (np.eye(2, 3), False)
        stretch[kind] = _stretch(affine) if full else 1.0
    if stretch["hex"] <= stretch["diagonal"]:
        return "hex", lat.hex_indices(array_row, array_col)
    if len(array_row) < LEAST_CHECKERBOARD:
        return "square", lat.square_indices(array_row, array_col)
    return "diagonal", lat.diagonal_indices(array_row, array_col)


def _check_fit(
    spec: RasterSpec,
    kind: str,
    indices: lat.Indices,
    rc: np.ndarray,
    yx: np.ndarray,
    affine: np.ndarray,
    pitch_px: float,
    names: Sequence[Any],
    allow_mirror: bool,
    where: str,
) -> None:
    """Raise a ValueError where coordinates and array indices contradict each other."""
    on = np.flatnonzero(rc[:, 0] >= 0)
    far = _far(spec, rc, yx, affine)
    rms = float(np.sqrt((far**2).mean()))
    stretch = _stretch(affine)
    name = "checkerboard" if kind == "diagonal" else spec.lattice
    if len(on) > 3 and (rms > MAX_RMS * pitch_px or far.max() > MAX_RESIDUAL * pitch_px):
        worst = int(np.argmax(far))
        raise ValueError(
            f"{where}the coordinates do not lie on the {name} lattice of the array indices: root-mean-square distance {rms / pitch_px:.2f} pitches (wanted "
            f"{MAX_RMS} or less), largest {far[worst] / pitch_px:.2f} (wanted {MAX_RESIDUAL:g} or less) at {str(names[on[worst]])!r}; pitch "
            f"{pitch_px:.4g} px."
            + (
                _mixed(yx[on])
                or " Check that obs rows and obsm['spatial'] are in the same order, that one library is one section, and `lattice=`."
            )
        )
    linear = affine[:, :2]
    if np.linalg.det(linear) < 0 and not allow_mirror:
        along = np.abs(linear)
        transposed = along[0, 1] * along[1, 0] > along[0, 0] * along[1, 1]
        raise ValueError(
            f"{where}array indices and coordinates have opposite handedness: one row down moves (y, x) by ({linear[0, 0]:.4g}, {linear[1, 0]:.4g}) px, one "
            f"column right by ({linear[0, 1]:.4g}, {linear[1, 1]:.4g}) px (determinant {np.linalg.det(linear):.4g}). "
            + (
                "x and y are swapped: obsm['spatial'] must be (x, y), that is (column, row), and obs['array_row'] counts along y."
                if transposed
                else "One axis is mirrored."
            )
            + " Correct the coordinates or the indices, or pass `allow_mirror=True` where the image really is mirrored."
        )
    if stretch > MAX_STRETCH:
        raise ValueError(
            f"{where}the coordinates stretch the {name} lattice of the array indices by a factor of {stretch:.2f} between its axes (wanted {MAX_STRETCH} or "
            f"less; a hexagonal array read as a square one has 1.73). Pass another `lattice=`, or check the column names: obs['array_row'] and "
            "obs['array_col'] may be swapped."
        )


def _mixed(yx: np.ndarray) -> str:
    """Return a sentence where two kinds of lattice are joined in one library, else nothing."""
    square, hexagonal = lat.count_kinds(yx) if len(yx) > 3 else (0, 0)
    if not lat.mixed(square, hexagonal):
        return ""
    return (
        f" {square} observations have square and {hexagonal} hexagonal neighbourhoods: two kinds of lattice in one library. Split them with "
        "obs['library_id']."
    )


def _stretch(affine: np.ndarray) -> float:
    values = np.linalg.svd(affine[:, :2], compute_uv=False)
    return float(values[0] / max(values[1], 1e-300))


def _collide(
    spec: RasterSpec,
    rc: np.ndarray,
    yx: np.ndarray | None,
    collision: str,
    names: Sequence[Any],
    where: str,
    affine: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return (row, column) with (-1, -1) for observations that gave way, and the observations to fit, by the collision rule."""
    code = rc[:, 0] * spec.shape[1] + rc[:, 1]
    everyone = np.arange(len(rc))
    order = np.argsort(code, kind="stable")
    same = code[order][1:] == code[order][:-1]
    if not same.any() or collision == "sum":
        return rc, everyone
    if collision == "error":
        second = int(order[1:][same].min())
        first = int(np.flatnonzero(code == code[second])[0])
        apart = "" if yx is None else f", {np.hypot(*(yx[first] - yx[second])):.4g} px apart"
        if yx is not None and (yx[first] == yx[second]).all():
            apart = " with equal coordinates (duplicate spots)"
        raise ValueError(
            f"{where}{int(same.sum())} of {len(rc)} observations fall on an occupied lattice point, the first are {str(names[first])!r} and "
            f"{str(names[second])!r} at row {rc[first, 0]}, column {rc[first, 1]}{apart}. Pass "
            "`collision='nearest'` (keep the one nearest to the centre), `collision='sum'` (add them up), or correct the positions"
            f"{', or pass a smaller `pixel_um`' if spec.source == 'cells' else ''}."
            + (_mixed(yx) if yx is not None and spec.source != "cells" else "")
        )
    distance = np.zeros(len(rc))
    if yx is not None:
        if affine is None:
            affine, _ = lat.fit_affine(spec.lattice_points(rc), yx)
        if not np.isnan(affine).any():
            distance = np.hypot(*(spec.lattice_points(rc) @ affine[:, :2].T + affine[:, 2] - yx).T)
    order = np.lexsort((everyone, distance, code))
    lost = order[1:][code[order][1:] == code[order][:-1]]
    rc = rc.copy()
    rc[lost] = -1
    return rc, np.flatnonzero(rc[:, 0] >= 0)


def _far(spec: RasterSpec, rc: np.ndarray, yx: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Return the distance in pixels of the observations on the raster to the centres of their lattice points."""
    on = rc[:, 0] >= 0
    return np.hypot(*(spec.lattice_points(rc[on]) @ affine[:, :2].T + affine[:, 2] - yx[on]).T)


def _shape(rc: np.ndarray) -> tuple[int, int]:
    top = rc.max(axis=0) + 1
    return int(top[0]), int(top[1])


def _tuple(affine: Any) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    (a, b, c), (d, e, f) = np.asarray(affine, dtype=np.float64).tolist()
    return (a, b, c), (d, e, f)


def _finish(spec: RasterSpec, rc: np.ndarray, affine: Any, residual_um: float, scale: Scale) -> Placed:
    spec = replace(spec, affine=_tuple(affine), residual_um=float(residual_um), mpp=scale.mpp, pitch_um=scale.pitch_um)
    return Placed(spec, rc.astype(np.int32), scale)
