"""µm per pixel from what a slide file says of itself."""

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from typing import Any

from stimg.image.units import MPP_LIMITS, differ

_APERIO = re.compile(r"(?:^|\|)\s*MPP\s*=\s*([0-9.eE+-]+)")
_OME_UM = {"m": 1e6, "cm": 1e4, "mm": 1e3, "µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3, "pm": 1e-6, "Å": 1e-4}
_RESOLUTION_UM = {2: 25_400.0, 3: 10_000.0, 4: 1_000.0, 5: 1.0}
"""µm of the units of the resolution tags: inch, centimetre, and the millimetre and micrometre that some writers use. 1 is "no unit"."""


def believed(sources: Mapping[str, tuple[float, float]], name: str) -> dict[str, float]:
    """Return µm per pixel by source, of (y, x) values; those outside what a microscope gives are left out, such as 72 dots per inch.

    Raises
    ------
    ValueError
        Where y and x differ by more than 5 %: pixels that are no squares.
    """
    out = {}
    for source, (y, x) in sources.items():
        if not all(MPP_LIMITS[0] <= each <= MPP_LIMITS[1] for each in (y, x)):
            continue
        if differ(y, x):
            raise ValueError(
                f"{name}: {source} says {x:.4g} x {y:.4g} µm per pixel (x, y), which are no squares. Resample it to square pixels."
            )
        out[source] = (y + x) / 2
    return out


def tiff_mpp(file: Any, series: Any) -> dict[str, float]:
    """Return µm per pixel of the finest level of a ``tifffile.TiffFile`` by what states it: Aperio's description, OME-XML, resolution tags."""
    page, found = series.levels[0].keyframe, {}
    aperio = _APERIO.search(page.description or "") if "Aperio" in (page.description or "") else None
    if aperio:
        found["Aperio description"] = _both(aperio.group(1))
    if file.is_ome:
        found["OME-XML"] = _ome(file.ome_metadata or "", [each is series for each in file.series].index(True))
    tags = page.tags
    unit = int(tags["ResolutionUnit"].value) if "ResolutionUnit" in tags else 2
    if unit in _RESOLUTION_UM and "XResolution" in tags and "YResolution" in tags and "ResolutionUnit" in tags:
        y, x = (_ratio(tags[name].value) for name in ("YResolution", "XResolution"))
        if y > 0 and x > 0:
            found["resolution tags"] = (_RESOLUTION_UM[unit] / y, _RESOLUTION_UM[unit] / x)
    return believed({source: value for source, value in found.items() if value is not None}, str(file.filehandle.path))


def _both(text: str) -> tuple[float, float] | None:
    try:
        return float(text), float(text)
    except ValueError:
        return None


def _ratio(value: Any) -> float:
    top, bottom = value if isinstance(value, tuple) else (value, 1)
    return float(top) / float(bottom) if bottom else 0.0


def _ome(text: str, index: int) -> tuple[float, float] | None:
    """Return (y, x) µm per pixel of an image of OME-XML, None where it says nothing."""
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError:
        return None
    pixels = [each for each in root.iter() if each.tag.rsplit("}", 1)[-1] == "Pixels"]
    if not pixels:
        return None
    chosen = pixels[index] if index < len(pixels) else pixels[0]
    values = []
    for axis in "YX":
        unit = _OME_UM.get(chosen.get(f"PhysicalSize{axis}Unit", "µm"))
        size = chosen.get(f"PhysicalSize{axis}") or chosen.get("PhysicalSizeX")
        parsed = _both(size) if size else None
        if unit is None or parsed is None:
            return None
        values.append(parsed[0] * unit)
    return values[0], values[1]
