"""``pp.check_slide``: whether a slide is what it says it is."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stimg._core import keys, provenance, validate
from stimg.pp import _check_geometry as geometry
from stimg.pp import _check_placement as placement
from stimg.pp import _check_table as tables
from stimg.pp import _check_view as views
from stimg.pp._check_image import Picture, picture, reduce
from stimg.pp._check_rows import STATUS, Row, as_frame
from stimg.pp._check_search import KINDS
from stimg.pp._check_sources import TRUST, Source, choose, collect, image_sources, known_pitch, measure
from stimg.pp._rasterize import PerLibrary, _of
from stimg.pp._set_mpp import per_library

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)
SMALL_UM = 40.0
"""Pitch below which observations count as small."""
DRAWN_PX, DRAWN_SPOTS = 600, 20_000
"""Pixels of the longer side of the image, and observations, that are kept for :func:`stimg.pl.check_slide`."""


def check_slide(
    data: "AnnData | SpatialData",
    *,
    image: Mapping[str, Any] | str | Path | np.ndarray | None = None,
    image_key: str | Mapping[str, str] | None = None,
    mpp: PerLibrary = None,
    pitch_um: PerLibrary = None,
    trust: str | None = None,
    layer: str | None = None,
    library_key: str = keys.LIBRARY,
    row_key: str = "array_row",
    col_key: str = "array_col",
    table_key: str = "table",
    coordinate_system: str | None = None,
    key_added: str = keys.CHECK_SLIDE,
) -> pd.DataFrame:
    """Return a table of what was found in each library (library, check, status, found, wanted, todo), and write it with a sketch of the slide.

    ``status`` is ``"pass"``, ``"warn"``, ``"fail"``, or ``"skip"`` where the data cannot tell. Positions and counts are never changed.

    Parameters
    ----------
    data
        AnnData with ``obsm["spatial"]`` in full-resolution pixels, or SpatialData whose table annotates shapes.
    image
        H&E image in full resolution, a path or uint8 (y, x, 3), by library where there are several. None: the reduced image in ``uns["spatial"]``, else
        the file that the library names; of SpatialData the image in the library's coordinate system.
    image_key
        Which of the object's images: a name in ``uns["spatial"][library]["images"]``, or an element; for all libraries or by name.
    mpp, pitch_um
        What you know of the scale: µm per full-resolution pixel, distance between neighbouring observations in µm; for all libraries or by name.
    trust
        A source of the scale that is right although others differ, as in :func:`stimg.pp.set_mpp`.
    layer
        Layer with raw counts; ``adata.X`` where None.
    library_key
        Column of ``obs`` that names the capture area.
    row_key, col_key
        Columns of ``obs`` with the array indices.
    table_key
        SpatialData: the table.
    coordinate_system
        SpatialData: where shapes and image are compared.
    key_added
        ``uns["stimg"][key_added]`` holds the table and what :func:`stimg.pl.check_slide` draws.

    Returns
    -------
    One row for each library and check: scale, extent, coordinates, array, tissue, axis swap, flip, rotation, shift, coordinate scale, section, counts, panel,
    control probes, observations, depth.

    Raises
    ------
    KeyError
        Where a slot, layer, library or image is missing that was asked for.
    TypeError, ValueError
        For options and images that cannot be used, coordinates that are no (x, y), scale factors that are no positive numbers, and array indices that
        are no whole numbers. All else that is wrong with the data is told in the table, not raised.

    Notes
    -----
    Geometry: depth and four principal components of log expression are regressed on the colour and contrast of the image under each observation. A
    placement explains a part of their variance. About 3,400 others are tried: swapped, mirrored, turned, moved by up to eight steps, scaled, and scaled
    by the factors of known mistakes. One that explains more by 1.75 standard errors (jackknife over 16 blocks) fails the slide. The concepts page
    "Slide doctor" says which mistakes this finds on which data, and which it cannot.

    Examples
    --------
    >>> import stimg
    >>> adata = stimg.datasets.simulate(technology="st", shape=(12, 12), n_genes=60, image=True, mpp=2.0, rng=0)
    >>> table = stimg.pp.check_slide(adata, pitch_um=200.0)
    >>> sorted(table["status"].unique())
    ['pass', 'skip']
    >>> adata.obsm["spatial"] = adata.obsm["spatial"][:, ::-1].copy()
    >>> table = stimg.pp.check_slide(adata, pitch_um=200.0)
    >>> table.loc[table["status"] == "fail", "check"].tolist()
    ['array', 'axis swap']
    """
    if trust is not None:
        validate.one_of(trust, TRUST, "trust")
    adata, libraries = views.read(
        data, library_key=library_key, table_key=table_key, coordinate_system=coordinate_system, row_key=row_key, col_key=col_key
    )
    names = [view.name for view in libraries]
    for given, what in ((mpp, "mpp"), (pitch_um, "pitch_um"), (image, "image"), (image_key, "image_key")):
        per_library(given, names, what)
    for value, what in ((mpp, "mpp"), (pitch_um, "pitch_um")):
        for each in value.values() if isinstance(value, Mapping) else [value] if value is not None else []:
            validate.positive(each, what, "µm")
    panel = tables.check_panel(adata)
    examined = {
        view.name: _examine(
            data, adata, view, panel,
            image=image, image_key=image_key, mpp=_of(mpp, view.name), pitch_um=_of(pitch_um, view.name), trust=trust, layer=layer,
        )
        for view in libraries
    }  # fmt: skip
    rows = {name: each.rows for name, each in examined.items()}
    for name, row in placement.exchanged([e.compared for e in examined.values() if e.compared is not None]).items():
        rows[name] = [row if r.check == "section" and (row.status == "fail" or r.status == "pass") else r for r in rows[name]]
    table = as_frame(rows, library_key)
    provenance.record(
        adata,
        key_added,
        verb="stimg.pp.check_slide",
        library_key=library_key,
        layer=layer,
        trust=trust,
        coordinate_system={view.name: view.system for view in libraries},
        libraries={name: each.sketch for name, each in examined.items()},
    )
    adata.uns[keys.UNS][key_added]["table"] = table
    counted = table["status"].value_counts()
    logger.info("check_slide: %d libraries, %s", len(libraries), ", ".join(f"{counted.get(s, 0)} {s}" for s in STATUS))
    return table.copy()


@dataclass(frozen=True)
class _Examined:
    """The rows of one library, what was compared with its image, and what is drawn of it."""

    rows: list[Row]
    compared: placement.Compared | None
    sketch: dict[str, Any]


def _examine(
    data: Any,
    adata: Any,
    view: views.View,
    panel: Row,
    *,
    image: Any,
    image_key: Any,
    mpp: float | None,
    pitch_um: float | None,
    trust: str | None,
    layer: str | None,
) -> _Examined:
    measured = measure(view, adata.obs_names[view.rows])
    from_file = image_sources(image.get(view.name) if isinstance(image, Mapping) else image, view.entry)
    sources = collect(view, measured, mpp=mpp, pitch_um=pitch_um, image=from_file)
    trusted = next((s for s in sources if trust is not None and s.name == TRUST[trust]), None)
    if trust is not None and trusted is None:
        choose(sources, trust, f"library {view.name!r}: ")
    scale = trusted or (sources[0] if sources else None)
    mpp_here = scale.mpp if scale is not None else None
    pitch, _ = known_pitch(view, measured, pitch_um)
    if pitch is None and mpp_here is not None and measured.pitch_px is not None:
        pitch = measured.pitch_px * mpp_here
    small = measured.placed is None or (pitch is not None and pitch < SMALL_UM)
    counts, values, whole = tables.check_counts(adata, view.rows, layer)
    depth = np.zeros(len(view.rows)) if values is None else np.asarray(values.sum(axis=1)).ravel()
    flagged = placement.in_tissue(adata.obs, view.rows)
    here = picture(data, view, image=image, image_key=image_key, pitch_px=measured.pitch_px)
    rows = [
        geometry.check_scale(sources, trusted, "pixel" if view.system is None else f"unit of {view.system!r}"),
        geometry.check_size(view, measured, here, sources),
        geometry.check_coordinates(view),
        geometry.check_array(view, measured),
    ]
    genes = None if values is None else values[:, np.flatnonzero(~tables.controls(adata))]
    evidence = placement.evidence(view, measured, here, genes, (depth > 0) & (True if flagged is None else flagged), small=small)
    compared = None
    if isinstance(evidence, placement.Evidence) and isinstance(here, Picture):
        compared = placement.Compared(view, here, evidence)
        rows += placement.check_placement(compared, depth, sources, flagged)
    else:
        rows += [Row(check, "skip", str(evidence), "an image and counts to compare") for check in ("tissue", *KINDS, "section")]
    rows += [
        counts,
        panel,
        tables.check_controls(adata, values),
        tables.check_observations(adata, view.rows, view.yx, values if whole else None),
        tables.check_depth(adata, values, whole, small=small),
    ]
    return _Examined(rows, compared, _sketch(view, here, depth, scale))


def _sketch(view: views.View, here: Picture | str, depth: np.ndarray, scale: Source | None) -> dict[str, Any]:
    """Return what :func:`stimg.pl.check_slide` draws: a small image, positions on it, depth, and µm per pixel of it (0 where unknown)."""
    chosen = np.flatnonzero(view.here)
    if len(chosen) > DRAWN_SPOTS:
        chosen = chosen[np.linspace(0, len(chosen) - 1, DRAWN_SPOTS).astype(np.int64)]
    mpp = scale.mpp if scale is not None else 0.0
    if isinstance(here, str):
        return {
            "xy": view.yx[chosen, ::-1].astype(np.float32),
            "depth": depth[chosen].astype(np.float32),
            "mpp": mpp,
            "n_obs": len(view.rows),
        }
    pixels, (along_y, along_x) = reduce(here.pixels, min(DRAWN_PX, max(here.pixels.shape[:2])), here.pixels.shape[:2])
    yx = here.place(view.yx[chosen]) * np.array([along_y, along_x])
    return {
        "image": pixels,
        "image_name": here.name,
        "xy": yx[:, ::-1].astype(np.float32),
        "depth": depth[chosen].astype(np.float32),
        "mpp": mpp / (here.scale * float(np.sqrt(along_y * along_x))),
        "n_obs": len(view.rows),
    }
