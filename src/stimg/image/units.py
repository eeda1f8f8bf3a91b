"""Scale and axes: the only place that turns (x, y) into (y, x), pixels into µm, and that decides what one pixel measures."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from stimg._core.validate import number

MPP_LIMITS = (0.01, 50.0)
"""Smallest and largest µm per pixel that is believed."""
TOLERANCE = 0.05
"""Largest relative difference between two sources of one scale."""
VISIUM_PITCH_UM = 100.0
"""Distance between the centres of neighbouring spots of a 10x Visium array."""
LEAST_PITCH_PER_DIAMETER = 0.8
"""Spots do not overlap: a pitch below this many spot diameters means that the two are in different units."""
LEAST_PITCH_PER_DIAMETER_VISIUM = 1.2
"""The same for Visium, whose ``spot_diameter_fullres`` (65 to 70 µm, by version) gives 1.43 to 1.54."""


def to_yx(xy: np.ndarray) -> np.ndarray:
    """Return (x, y) coordinates, as ``obsm["spatial"]`` has them, as (y, x), float64 (n, 2)."""
    xy = np.asarray(xy, dtype=np.float64)
    if xy.ndim != 2 or xy.shape[1] != 2:
        raise ValueError(f"coordinates have shape {xy.shape}; wanted (n, 2): x and y of every observation.")
    return np.ascontiguousarray(xy[:, ::-1])


def to_xy(yx: np.ndarray) -> np.ndarray:
    """Return (y, x) coordinates as (x, y), float64 (n, 2); the inverse of :func:`to_yx`."""
    return to_yx(yx)


def px_to_um(px: Any, mpp: float) -> Any:
    """Return lengths in pixels as µm."""
    return np.asarray(px, dtype=np.float64) * check_mpp(mpp)


def um_to_px(um: Any, mpp: float) -> Any:
    """Return lengths in µm as pixels."""
    return np.asarray(um, dtype=np.float64) / check_mpp(mpp)


def check_mpp(mpp: float, *, name: str = "mpp", where: str = "") -> float:
    """Return ``mpp`` as float; a ValueError states the value where it is outside ``MPP_LIMITS``."""
    value = float(mpp)
    if not (np.isfinite(value) and MPP_LIMITS[0] <= value <= MPP_LIMITS[1]):
        raise ValueError(
            f"{where}{name} is {value:.6g} µm per pixel; wanted {MPP_LIMITS[0]} .. {MPP_LIMITS[1]}. Check the unit of the coordinates "
            "(full-resolution pixels; pass `mpp=1` for coordinates in µm) and the value in the scale factors."
        )
    return value


@dataclass(frozen=True)
class Metadata:
    """What a library's scale factors and image say, each None where they say nothing.

    Parameters
    ----------
    mpp
        ``microns_per_pixel``.
    pitch_um
        ``bin_size_um`` of binned data.
    spot_diameter_px
        ``spot_diameter_fullres``.
    hires_scale, lowres_scale
        Pixels of the reduced image per full-resolution pixel.
    image_size
        (height, width) of the full-resolution image, from the size of a reduced image.
    """

    mpp: float | None = None
    pitch_um: float | None = None
    spot_diameter_px: float | None = None
    hires_scale: float | None = None
    lowres_scale: float | None = None
    image_size: tuple[float, float] | None = None

    @classmethod
    def from_uns(cls, entry: Mapping[str, Any] | None) -> "Metadata":
        """Return the metadata of ``uns["spatial"][library]``, also where it or its ``"scalefactors"`` is missing."""
        if not isinstance(entry, Mapping):
            return cls()
        factors = entry.get("scalefactors", {})
        images = entry.get("images", {})
        scales = {name: _number(factors, f"tissue_{name}_scalef") for name in ("hires", "lowres")}
        size = None
        for name, scale in scales.items():
            shape: tuple[int, ...] = np.shape(images[name]) if name in images else ()
            if scale and len(shape) >= 2:
                size = (shape[0] / scale, shape[1] / scale)
                break
        return cls(
            mpp=_number(factors, "microns_per_pixel"),
            pitch_um=_number(factors, "bin_size_um"),
            spot_diameter_px=_number(factors, "spot_diameter_fullres"),
            hires_scale=scales["hires"],
            lowres_scale=scales["lowres"],
            image_size=size,
        )


def _number(mapping: Mapping[str, Any], key: str) -> float | None:
    value = mapping.get(key)
    if value is None or (isinstance(value, str) and value in ("", "none")):
        return None
    number = float(np.asarray(value).reshape(-1)[0])
    if not (np.isfinite(number) and number > 0):
        raise ValueError(f"scalefactors[{key!r}] is {value!r}; wanted a positive number. Correct it, or remove it.")
    return number


@dataclass(frozen=True)
class Scale:
    """The resolved scale of one library: µm per pixel, pitch in µm, and where each came from."""

    mpp: float
    pitch_um: float
    mpp_source: str
    pitch_source: str


def differ(a: float, b: float) -> bool:
    """Return whether two positive numbers differ by more than ``TOLERANCE``, relative to the smaller."""
    return abs(a - b) > TOLERANCE * min(a, b)


def _cause(wrong: float, right: float, computed_mpp: float, metadata: Metadata) -> str:
    """Return what explains that coordinates appear ``wrong / right`` times too coarse."""
    ratio = wrong / right
    if not differ(computed_mpp, 1.0):
        return " The coordinates look like µm, not pixels: pass `mpp=1`, or divide them by the µm per pixel."
    for name, scale in (("hires", metadata.hires_scale), ("lowres", metadata.lowres_scale)):
        if scale and not differ(ratio * scale, 1.0):
            return (
                f" The coordinates look like pixels of the {name} image: divide them by tissue_{name}_scalef = {scale:.6g} to get "
                "full-resolution pixels."
            )
    return " Check that the coordinates are full-resolution pixels, and correct the wrong one of the two."


def resolve_scale(
    pitch_px: float | None,
    metadata: Metadata = Metadata(),
    *,
    mpp: float | None = None,
    pitch_um: float | None = None,
    pitch_default: float | None = None,
    where: str = "",
) -> Scale:
    """Return the scale of a library from everything that states it; sources that differ by more than 5 % are an error.

    µm per pixel comes from ``mpp``, else the metadata, else a known pitch divided by ``pitch_px``. The pitch comes from ``pitch_um``, else
    the metadata, else ``pitch_px`` times µm per pixel, else ``pitch_default``.

    Parameters
    ----------
    pitch_px
        Measured pitch in pixels, or None where it cannot be measured (no coordinates, or one observation).
    metadata
        What the library's scale factors say.
    mpp, pitch_um
        What the caller says.
    pitch_default
        Pitch of the technology in µm, used to find and to check µm per pixel.
    where
        Beginning of the error messages.

    Raises
    ------
    ValueError
        Where nothing states the scale, where µm per pixel is outside ``MPP_LIMITS``, or where two sources differ.
    """
    for value, name in ((mpp, f"{where}mpp"), (pitch_um, f"{where}pitch_um")):
        if value is not None:
            number(value, name, "µm")
    stated_mpp, mpp_source = (mpp, "argument") if mpp is not None else (metadata.mpp, "metadata")
    stated_pitch, pitch_source = (pitch_um, "argument") if pitch_um is not None else (metadata.pitch_um, "metadata")
    if stated_mpp is not None:
        stated_mpp = check_mpp(stated_mpp, name="mpp" if mpp is not None else "scalefactors['microns_per_pixel']", where=where)
    if stated_pitch is not None and not (np.isfinite(stated_pitch) and stated_pitch > 0):
        raise ValueError(
            f"{where}pitch_um={stated_pitch!r} is not a positive number of µm. Pass the distance between neighbouring observations, or leave it out."
        )
    if mpp is not None and metadata.mpp is not None and differ(mpp, metadata.mpp):
        raise ValueError(
            f"{where}mpp={mpp:.6g} was passed, but scalefactors['microns_per_pixel'] is {metadata.mpp:.6g} (more than "
            f"{TOLERANCE:.0%} apart). Correct the wrong one."
        )
    if pitch_um is not None and metadata.pitch_um is not None and differ(pitch_um, metadata.pitch_um):
        raise ValueError(
            f"{where}pitch_um={pitch_um:.6g} was passed, but scalefactors['bin_size_um'] is {metadata.pitch_um:.6g} (more than "
            f"{TOLERANCE:.0%} apart). Correct the wrong one."
        )
    known_pitch = stated_pitch if stated_pitch is not None else pitch_default
    if stated_mpp is None and known_pitch is None:
        raise ValueError(
            f"{where}nothing states the scale: neither scalefactors['microns_per_pixel'] nor a known pitch. Pass `mpp=` (µm per "
            "full-resolution pixel; 1 for coordinates in µm) or `pitch_um=` (distance between neighbouring observations in µm)."
        )
    if pitch_px is None:
        if known_pitch is None:
            raise ValueError(
                f"{where}the pitch cannot be measured here. Pass `pitch_um=`, the distance between neighbouring observations in µm."
            )
        if stated_mpp is None:
            raise ValueError(f"{where}µm per pixel cannot be measured here. Pass `mpp=` (1 for coordinates in µm).")
        return Scale(stated_mpp, known_pitch, mpp_source, pitch_source if stated_pitch is not None else "technology")
    if known_pitch is not None:
        computed = known_pitch / pitch_px
        if stated_mpp is not None and differ(computed, stated_mpp):
            origin = "the argument" if mpp_source == "argument" else "scalefactors['microns_per_pixel']"
            raise ValueError(
                f"{where}the measured pitch of {pitch_px:.6g} px is {known_pitch:.6g} µm at {computed:.4g} µm per pixel, but {origin} says "
                f"{stated_mpp:.4g} (a pitch of {pitch_px * stated_mpp:.4g} µm)."
                + _cause(computed, stated_mpp, computed, metadata)
                + (" Pass `pitch_um=` where the array's pitch is not that of Visium." if stated_pitch is None else "")
            )
        if stated_mpp is None:
            hint = " (about 1: array indices, not pixels?)" if not differ(pitch_px, 1.0) else ""
            found = check_mpp(
                computed, name=f"the measured pitch of {pitch_px:.6g} px{hint} against {known_pitch:.6g} µm: mpp", where=where
            )
            return Scale(found, known_pitch, "pitch", pitch_source if stated_pitch is not None else "technology")
    assert stated_mpp is not None  # for the type checker: one of the two is known
    if stated_pitch is not None:
        return Scale(stated_mpp, stated_pitch, mpp_source, pitch_source)
    return Scale(stated_mpp, pitch_px * stated_mpp, mpp_source, "measured")


def check_extent(
    yx: np.ndarray,
    metadata: Metadata,
    *,
    pitch_px: float | None,
    least: float = LEAST_PITCH_PER_DIAMETER,
    confirmed: bool = False,
    where: str = "",
) -> None:
    """Raise a ValueError where coordinates do not fit the spot diameter or the image of their library.

    Parameters
    ----------
    yx
        (y, x) in full-resolution pixels, (n, 2).
    metadata
        What the library's scale factors and image say.
    pitch_px
        Pitch of the lattice in pixels, None for cells and for single spots.
    least
        Smallest believable pitch in spot diameters.
    confirmed
        Whether two independent sources of the scale agree, so that a small extent alone proves nothing.
    where
        Beginning of the error messages.
    """
    diameter = metadata.spot_diameter_px
    if diameter and pitch_px is not None and pitch_px < least * diameter:
        raise ValueError(
            f"{where}the pitch is {pitch_px:.4g} px, {pitch_px / diameter:.3g} of scalefactors['spot_diameter_fullres'] = {diameter:.4g} "
            f"(wanted {least:g} or more), so the coordinates are not full-resolution pixels.{_reduced(metadata)}"
        )
    if metadata.image_size is None or not len(yx):
        return
    height, width = metadata.image_size
    margin = max(pitch_px or 0.0, 0.02 * max(height, width))
    low, high = yx.min(axis=0), yx.max(axis=0)
    outside = int(((yx < -margin) | (yx > np.array([height, width]) + margin)).any(axis=1).sum())
    if outside:
        swapped = high[0] <= width + margin and high[1] <= height + margin and low.min() >= -margin
        raise ValueError(
            f"{where}{outside} of {len(yx)} observations lie outside the image of {width:.0f} x {height:.0f} px (x up to {high[1]:.0f}, "
            f"y up to {high[0]:.0f})."
            + (
                " With x and y swapped all lie inside: obsm['spatial'] must be (x, y), that is (column, row)."
                if swapped
                else " The coordinates, or the scale factor of the image, are not of this image's full resolution."
            )
        )
    if diameter or confirmed or not metadata.hires_scale or metadata.hires_scale > 0.5:
        return
    small = np.array([height, width]) * metadata.hires_scale
    if (high <= small).all() and (high - low > 0.5 * small).any():
        raise ValueError(
            f"{where}x up to {high[1]:.0f} and y up to {high[0]:.0f} fill the hires image of {small[1]:.0f} x {small[0]:.0f} px and not the "
            f"full-resolution one of {width:.0f} x {height:.0f} px.{_reduced(metadata)} If they are right, pass `mpp=` and `pitch_um=` to confirm."
        )


def _reduced(metadata: Metadata) -> str:
    if metadata.hires_scale:
        return (
            f" If they are pixels of the hires image, divide them by tissue_hires_scalef = {metadata.hires_scale:.6g}; if they are µm, divide "
            "them by the µm per pixel."
        )
    return " Give the coordinates in full-resolution pixels."
