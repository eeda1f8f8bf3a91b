"""``pp.set_mpp``: what one pixel measures, from everything that says so."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stimg._core import keys, provenance, validate
from stimg.pp import _check_view as views
from stimg.pp._check_sources import TRUST, Source, choose, collect, image_sources, measure
from stimg.pp._rasterize import PerLibrary, _of

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)


def set_mpp(
    data: "AnnData | SpatialData",
    *,
    mpp: PerLibrary = None,
    pitch_um: PerLibrary = None,
    image: Mapping[str, Any] | str | Path | np.ndarray | None = None,
    trust: str | None = None,
    library_key: str = keys.LIBRARY,
    row_key: str = "array_row",
    col_key: str = "array_col",
    table_key: str = "table",
    coordinate_system: str | None = None,
) -> None:
    """Write ``uns["spatial"][library]["scalefactors"]["microns_per_pixel"]`` of every library, after comparing all that states it.

    Sources, in this order: ``mpp``; the scale factors; ``bin_size_um`` or the pitch of the technology (100 µm for hexagonal arrays with indices) divided
    by the pitch measured in pixels; the fiducials of Visium; the resolution written in the image file; coordinate systems of SpatialData in µm; the
    spot diameter of Visium. Where all agree within 5 % the first is written. Every library is checked by itself, and nothing is written where one fails.

    Parameters
    ----------
    data
        AnnData, or SpatialData whose table annotates shapes.
    mpp
        µm per full-resolution pixel (SpatialData: per unit of ``coordinate_system``), for all libraries or by name.
    pitch_um
        Distance between neighbouring observations in µm, for all libraries or by name.
    image
        Full-resolution image whose file may state a resolution, by library where there are several. None: the file that the library names.
    trust
        The source to use although others differ: ``"user"`` (``mpp``), ``"metadata"``, ``"bins"``, ``"pitch"``, ``"fiducials"``, ``"image"``,
        ``"coordinate_system"`` or ``"spot_diameter"``.
    library_key
        Column of ``obs`` that names the capture area.
    row_key, col_key
        Columns of ``obs`` with the array indices.
    table_key
        SpatialData: the table.
    coordinate_system
        SpatialData: where positions are measured. What is written is µm per pixel of the annotated element itself.

    Raises
    ------
    KeyError
        Where a library or a slot is missing.
    ValueError
        Where nothing states the scale, a value is outside 0.01 to 50, or sources are more than 5 % apart and none is trusted; all are named.

    Notes
    -----
    ``uns["stimg"]["set_mpp"]`` keeps every source with its value, and which one was used.

    Examples
    --------
    >>> import numpy as np
    >>> from anndata import AnnData
    >>> import stimg.pp as pp
    >>> row, col = np.divmod(np.arange(12), 4)
    >>> adata = AnnData(np.ones((12, 2)), obs={"array_row": row, "array_col": col, "library_id": "A"})
    >>> adata.obsm["spatial"] = 290.0 * np.stack([col, row], axis=1)
    >>> pp.set_mpp(adata, pitch_um=200.0)
    >>> round(adata.uns["spatial"]["A"]["scalefactors"]["microns_per_pixel"], 3)
    0.69
    """
    if trust is not None:
        validate.one_of(trust, TRUST, "trust")
    adata, libraries = views.read(
        data, library_key=library_key, table_key=table_key, coordinate_system=coordinate_system, row_key=row_key, col_key=col_key
    )
    names = [view.name for view in libraries]
    for given, what in ((mpp, "mpp"), (pitch_um, "pitch_um"), (image, "image")):
        per_library(given, names, what)
    chosen: dict[str, tuple[Source, list[Source]]] = {}
    for view in libraries:
        for value, what in ((_of(mpp, view.name), "mpp"), (_of(pitch_um, view.name), "pitch_um")):
            if value is not None:
                validate.positive(value, what, "µm")
        found = collect(
            view,
            measure(view, adata.obs_names[view.rows]),
            mpp=_of(mpp, view.name),
            pitch_um=_of(pitch_um, view.name),
            image=image_sources(image.get(view.name) if isinstance(image, Mapping) else image, view.entry),
        )
        chosen[view.name] = choose(found, trust, f"library {view.name!r}: "), found
    space = adata.uns.setdefault("spatial", {})
    for view in libraries:
        entry = space.setdefault(view.name, {"images": {}})
        entry.setdefault("scalefactors", {})["microns_per_pixel"] = float(chosen[view.name][0].mpp * view.unit)
    provenance.record(
        adata,
        "set_mpp",
        verb="stimg.pp.set_mpp",
        used={name: source.name for name, (source, _) in chosen.items()},
        sources={name: {s.name: s.mpp for s in reversed(found)} for name, (_, found) in chosen.items()},
        words={name: {s.name: s.says for s in reversed(found)} for name, (_, found) in chosen.items()},
        trust=trust,
        library_key=library_key,
        coordinate_system={view.name: view.system for view in libraries},
        unit="µm per pixel",
    )
    for name, (source, found) in chosen.items():
        logger.info("library %s: %.4g µm per pixel from %s, %d sources", name, source.mpp, source.name, len(found))


def per_library(given: Any, names: list[str], what: str) -> None:
    """Raise where a mapping names libraries that are not there, or where one image is given for several libraries."""
    if isinstance(given, Mapping):
        unknown = sorted(set(map(str, given)) - set(names))
        if unknown:
            raise KeyError(f"{what} names {unknown}, which are no libraries (found {names}).")
    elif what == "image" and given is not None and len(names) > 1:
        raise ValueError(f"One image for {len(names)} libraries; wanted one for each. Pass `image=` as a mapping from library to image.")
