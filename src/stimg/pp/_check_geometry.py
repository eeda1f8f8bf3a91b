"""Checks of a library's scale, coordinates, array and extent, which need no expression."""

from collections.abc import Sequence
from dataclasses import replace

from stimg.image.units import LEAST_PITCH_PER_DIAMETER, LEAST_PITCH_PER_DIAMETER_VISIUM, TOLERANCE, check_extent
from stimg.pp._check_image import Picture
from stimg.pp._check_rows import Row, percent
from stimg.pp._check_sources import PRECISE, Measured, Source, apart, hint, listed
from stimg.pp._check_view import View


def check_scale(sources: Sequence[Source], trust: Source | None, unit: str) -> Row:
    """Return the row about the sources of the scale."""
    wanted = f"two sources or more within {percent(PRECISE)}"
    if not sources:
        return Row("scale", "fail", "nothing states the scale", wanted, "Run `stimg.pp.set_mpp` with `mpp=` or `pitch_um=`.")
    found = f"µm per {unit}: {listed(sources)}"
    if len(sources) == 1:
        return Row(
            "scale",
            "warn",
            f"{found}; nothing confirms it, an error in it cannot be seen",
            wanted,
            "State the pitch: pass `pitch_um=`, or `mpp=`.",
        )
    if apart(sources) > TOLERANCE:
        if trust is not None:
            return Row(
                "scale", "warn", f"{found}; up to {apart(sources):.1%} apart, {trust.name} is trusted", wanted, "Correct the others."
            )
        todo = f"Correct the wrong one, or run `stimg.pp.set_mpp` with `trust=`.{hint(sources)}"
        return Row("scale", "fail", f"{found}; up to {apart(sources):.1%} apart", wanted, todo)
    exact = apart(sources, exact=True)
    if exact > PRECISE:
        return Row(
            "scale",
            "warn",
            f"{found}; exact ones are {exact:.1%} apart",
            wanted,
            "Find out which is wrong: sizes in µm are off by as much.",
        )
    return Row("scale", "pass", f"{found}; {apart(sources):.1%} apart", wanted)


def check_coordinates(view: View) -> Row:
    """Return the row about missing coordinates."""
    wanted = "a finite (x, y) for every observation"
    if not view.positioned:
        return Row("coordinates", "fail", "adata.obsm['spatial'] is missing", wanted, "Give (x, y) in full-resolution pixels.")
    missing = int((~view.here).sum())
    if missing:
        status, todo = ("fail", "Remove the observations without a position, or give it.")
        return Row("coordinates", status, f"{missing} of {len(view.rows)} have NaN or infinite coordinates", wanted, todo)
    return Row("coordinates", "pass", f"{len(view.rows)} finite", wanted)


def check_array(view: View, measured: Measured) -> Row:
    """Return the row about array indices and coordinates."""
    wanted = "array indices and coordinates that agree, neither swapped nor mirrored"
    if view.indices is None:
        return Row("array", "skip", "no array indices", wanted, "Keep obs['array_row'] and obs['array_col'] of the reader.")
    if not view.here.any():
        return Row("array", "skip", "no coordinates", wanted, "Give coordinates.")
    if measured.problem:
        found, _, todo = measured.problem.partition(". ")
        return Row("array", "fail", found, wanted, todo or "Correct the coordinates or the indices.")
    return Row("array", "pass", f"{measured.lattice} lattice, {len(view.rows)} observations", wanted)


def check_size(view: View, measured: Measured, picture: Picture | str, sources: Sequence[Source]) -> Row:
    """Return the row about the extent of the coordinates against the spot diameter and the image."""
    wanted = "a pitch above the spot diameter, observations inside the image"
    yx = view.yx[view.here]
    metadata = view.metadata
    if isinstance(picture, Picture) and view.system is None:
        metadata = replace(metadata, image_size=picture.size)
    if not len(yx):
        return Row("extent", "skip", "no coordinates", wanted, "Give coordinates.")
    if metadata.image_size is None and not (metadata.spot_diameter_px and measured.placed is not None):
        return Row("extent", "skip", "neither an image nor a spot diameter", wanted, "Read the section with its scale factors.")
    visium = measured.lattice == "hex" and view.indices is not None
    confirmed = len(sources) > 1 and apart(sources) <= TOLERANCE
    pitch = measured.pitch_px if measured.placed is not None else None
    least = LEAST_PITCH_PER_DIAMETER_VISIUM if visium else LEAST_PITCH_PER_DIAMETER
    try:
        check_extent(yx, metadata, pitch_px=pitch, least=least, confirmed=confirmed)
    except ValueError as error:
        found, _, todo = str(error).partition(". ")
        return Row("extent", "fail", found, wanted, todo or "Give coordinates in full-resolution pixels of this image.")
    told = []
    if pitch and metadata.spot_diameter_px:
        told.append(f"pitch {pitch / metadata.spot_diameter_px:.3g} spot diameters")
    if metadata.image_size is not None:
        told.append(f"all inside {metadata.image_size[1]:.0f} x {metadata.image_size[0]:.0f} px")
    return Row("extent", "pass", "; ".join(told) or "nothing to compare", wanted)
