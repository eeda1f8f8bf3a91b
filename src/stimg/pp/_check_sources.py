"""Everything that states how many µm a full-resolution pixel measures, and whether it agrees."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stimg.image.lattice import nearest_distance, staggered
from stimg.image.place import Placed, place_array, place_coordinates
from stimg.image.units import MPP_LIMITS, TOLERANCE, VISIUM_PITCH_UM, Metadata, check_mpp, differ
from stimg.pp._check_view import View

TRUST = {
    "user": "argument",
    "metadata": "metadata",
    "bins": "bins",
    "pitch": "pitch",
    "fiducials": "fiducials",
    "image": "image",
    "coordinate_system": "coordinate system",
    "spot_diameter": "spot diameter",
}
"""What a caller may trust, and what that source is called; of several that agree the first is used."""
PRECISE = 0.01
"""Relative difference of two exact sources that is worth a word."""
FIDUCIAL_UM = 105.0
"""Diameter of a fiducial of a 10x Visium slide, as ``fiducial_diameter_fullres`` and ``spot_diameter_fullres`` (65 µm) state it."""
SPOT_UM = (55.0, 65.0, 70.0)
"""Diameters that ``spot_diameter_fullres`` of Visium stands for: of the spot, and of Space Ranger's versions."""
_ANY_UM = 100.0  # a pitch that is only there to measure pixels with


@dataclass(frozen=True)
class Source:
    """One statement: its name, µm per pixel, in words, and whether it is exact (to about 0.5 %)."""

    name: str
    mpp: float
    says: str
    exact: bool = True


@dataclass(frozen=True)
class Measured:
    """What the coordinates are: lattice and pitch in pixels (None: no lattice), and what is wrong with them (empty: nothing)."""

    placed: Placed | None
    pitch_px: float | None
    problem: str = ""

    @property
    def lattice(self) -> str:
        """``"hex"``, ``"square"``, or ``"none"``."""
        return self.placed.spec.lattice if self.placed is not None else "none"


def measure(view: View, names: Sequence[Any]) -> Measured:
    """Return the lattice of a library's coordinates, from array indices where it has them; a contradiction between both is told, not raised."""
    here = np.flatnonzero(view.here)
    if not len(here):
        return Measured(None, None)
    yx, named = view.yx[here], [names[int(i)] for i in here]
    if view.indices is None:
        try:
            placed = place_coordinates(yx, names=named, metadata=Metadata(), pitch_um=_ANY_UM, collision="nearest")
        except ValueError:
            return Measured(None, nearest_distance(yx) if len(np.unique(yx, axis=0)) > 1 else None)
        return Measured(placed, _pitch(placed))
    row, col = (index[here] for index in view.indices)
    problem = ""
    for mirrored in (False, True):
        try:
            placed = place_array(
                row, col, yx, names=named, metadata=Metadata(), pitch_um=_ANY_UM, collision="nearest", allow_mirror=mirrored
            )
            return Measured(placed, _pitch(placed), problem)
        except ValueError as error:
            problem = problem or str(error)
    return Measured(None, None, problem)


def _pitch(placed: Placed) -> float | None:
    linear = np.asarray(placed.spec.affine)[:, :2]
    pitch = float(np.sqrt(abs(np.linalg.det(linear))))
    return pitch if np.isfinite(pitch) and pitch > 0 else None


def known_pitch(view: View, measured: Measured, pitch_um: float | None) -> tuple[float | None, str]:
    """Return the pitch of the technology in µm, None where nothing states it, and what does."""
    if pitch_um is not None:
        return float(pitch_um), "argument"
    if view.metadata.pitch_um is not None:
        return view.metadata.pitch_um, "bins"
    about = view.entry.get("metadata", {})
    staggered_square = measured.lattice == "square" and view.indices is not None and staggered(*view.indices)
    stated = about.get("nearest_um" if staggered_square else "pitch_um") if isinstance(about, Mapping) else None
    if stated is not None and measured.lattice != "none":
        return float(stated), "metadata"
    if measured.lattice == "hex" and view.indices is not None:
        return VISIUM_PITCH_UM, "Visium"
    return None, "nothing"


def collect(
    view: View, measured: Measured, *, mpp: float | None = None, pitch_um: float | None = None, image: Mapping[str, float] | None = None
) -> list[Source]:
    """Return every statement of µm per full-resolution pixel (SpatialData: per unit of the coordinate system), the most direct one first.

    Parameters
    ----------
    view, measured
        The library, and the lattice of its coordinates.
    mpp, pitch_um
        What the caller says.
    image
        What the image file says, by what says it.
    """
    where, out = f"library {view.name!r}: ", []
    if mpp is not None:
        out.append(Source("argument", check_mpp(mpp, where=where), f"mpp={mpp:.6g}"))
    factors = view.entry.get("scalefactors", {})
    if view.metadata.mpp is not None:
        value = check_mpp(view.metadata.mpp, name="scalefactors['microns_per_pixel']", where=where)
        out.append(Source("metadata", value, "scalefactors['microns_per_pixel']"))
    known, by = known_pitch(view, measured, pitch_um)
    if known is not None and measured.pitch_px and measured.lattice != "none":
        exact = measured.placed is not None and len(measured.placed.rc) >= 30
        words = f"a pitch of {measured.pitch_px:.4g} px is {known:g} µm ({by})"
        out.append(Source("bins" if by == "bins" else "pitch", known / measured.pitch_px, words, exact))
    visium = measured.lattice == "hex" and view.indices is not None and known == VISIUM_PITCH_UM
    fiducial = factors.get("fiducial_diameter_fullres") if isinstance(factors, Mapping) else None
    if visium and fiducial:
        out.append(
            Source(
                "fiducials", FIDUCIAL_UM / (float(fiducial) * view.unit), f"fiducials of {float(fiducial):.4g} px are {FIDUCIAL_UM:g} µm"
            )
        )
    for name, value in (image or {}).items():
        if MPP_LIMITS[0] <= value <= MPP_LIMITS[1]:
            out.append(Source("image", float(value), f"{name} of the image file"))
    for name, value in view.stated.items():
        out.append(Source("coordinate system", value, f"coordinate system {name!r}"))
    spot = view.metadata.spot_diameter_px
    if visium and spot:
        among = [s.mpp for s in out] or [SPOT_UM[1] / spot]
        size = min(SPOT_UM, key=lambda um: abs(np.log(um / spot / among[0])))
        out.append(Source("spot diameter", size / spot, f"a spot diameter of {spot:.4g} px is {size:g} µm", exact=False))
    return out


def apart(sources: Sequence[Source], *, exact: bool = False) -> float:
    """Return by how much the largest statement exceeds the smallest, relative to it; of exact sources alone, or of all."""
    values = [s.mpp for s in sources if s.exact or not exact]
    return max(values) / min(values) - 1 if values else 0.0


def listed(sources: Sequence[Source]) -> str:
    """Return the statements in words."""
    return "; ".join(f"{s.name} {s.mpp:.4g} ({s.says})" for s in sources)


def choose(sources: Sequence[Source], trust: str | None, where: str) -> Source:
    """Return the source to use; a ValueError names all of them where they differ and none is trusted.

    Raises
    ------
    ValueError
        Where nothing states the scale, the trusted source says nothing, or two sources differ by more than 5 %.
    """
    if not sources:
        raise ValueError(
            f"{where}nothing states the scale: neither scalefactors['microns_per_pixel'], nor a known pitch, nor the image file. Pass `mpp=` (µm per "
            "full-resolution pixel; 1 for coordinates in µm) or `pitch_um=` (distance between neighbouring observations in µm)."
        )
    if trust is not None:
        for source in sources:
            if source.name == TRUST[trust]:
                return source
        raise ValueError(f"{where}trust={trust!r}, but it says nothing. Found: {listed(sources)}. Trust one of these, or pass `mpp=`.")
    if any(differ(a.mpp, b.mpp) for a in sources for b in sources):
        raise ValueError(
            f"{where}sources of the scale are up to {apart(sources):.0%} apart (wanted {TOLERANCE:.0%} or less), in µm per pixel: {listed(sources)}."
            f"{hint(sources)} Correct the wrong one, or pass `trust=` ({', '.join(repr(t) for t in TRUST if any(s.name == TRUST[t] for s in sources))})."
        )
    return sources[0]


def hint(sources: Sequence[Source]) -> str:
    """Return the likely cause of a disagreement, with a blank before it, or nothing."""
    pitch = next((s.mpp for s in sources if s.name in ("pitch", "bins")), None)
    if pitch is not None and not differ(pitch, 1.0) and any(differ(s.mpp, 1.0) for s in sources):
        return " The coordinates look like µm, not pixels."
    return ""


def image_sources(image: Any, entry: Mapping[str, Any]) -> dict[str, float]:
    """Return µm per full-resolution pixel by the file of the image: the one given, else the one that the library names, where it exists."""
    from stimg.image.slide import open_slide

    about = entry.get("metadata", {})
    if image is not None:
        return {k: v for k, v in open_slide(image).mpp_sources.items() if k != "argument"}
    path = Path(str(about.get("source_image_path", ""))) if isinstance(about, Mapping) else Path()
    if not path.is_file():
        return {}
    scale = float(about.get("source_image_scale", 1.0))
    return {name: value * scale for name, value in open_slide(path).mpp_sources.items()}
