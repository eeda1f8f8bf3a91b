"""What zero pixels score under a protocol, on data of one's own."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stimg._core import keys
from stimg.bench import protocol as _protocol
from stimg.bench import sections as _sections
from stimg.bench.protocol import Protocol
from stimg.bench.report import Report
from stimg.bench.runner import run

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)
SAME_DONOR = "coordinates, same donor"
"""The null that matters where other sections of the donor train."""
IMAGES = "images"
"""Folder of the second report, on the sections that have an image."""


def audit(
    data: Any,
    *,
    protocol: str | Protocol = "her2st-strict",
    out: str | Path | None = None,
    images: bool = True,
    seeds: int | Sequence[int] = 1,
    overwrite: bool = False,
    progress: bool | None = None,
    **options: Any,
) -> dict[str, Report]:
    """Return what the nulls of a protocol score on ``data``: a constant, depth, coordinates, neighbours, and colour where there are images.

    A method that is not above these has not been shown to see anything.

    Parameters
    ----------
    data, protocol, out, seeds, overwrite, progress
        As for :func:`stimg.bench.run`. Leaks that belong to the protocol are allowed, and stamped.
    images
        Whether sections with an image (a file named in ``uns["spatial"]`` that exists, or a ``"hires"`` image) are evaluated a second time
        by themselves, with colour statistics beside the other nulls. They need two donors, or two sections of one donor, which is then
        evaluated section by section.
    **options
        As for :func:`stimg.bench.run`: ``layer``, ``library_key``, ``donor_key``, ``missing_donor``.

    Returns
    -------
    ``{"all": report}``, and ``"images": report`` where there are sections with images; written to ``out`` and ``out/images``.

    Raises
    ------
    ValueError
        For data that the protocol cannot use.
    """
    chosen = _protocol.get(protocol)
    objects = _sections.read(data)
    folder = None if out is None else Path(out)
    common: dict[str, Any] = {"seeds": seeds, "allow_leakage": True, "overwrite": overwrite, "progress": progress}
    reports = {"all": run(chosen, objects, out=folder, **common, **options)}
    if images:
        pictured = with_images(_sections.load_sections(objects, **options))
        groups = set(_sections.groups(pictured, "donor").values())
        if len(pictured) > 1:
            own = chosen if len(groups) > 1 else within_donor(chosen)
            where = None if folder is None else folder / IMAGES
            reports["images"] = run(own, pictured, out=where, features=[keys.COLOUR], **common)
    return reports


def within_donor(protocol: Protocol) -> Protocol:
    """Return the protocol with sections in place of donors, for data of one donor; it has another hash, and says so."""
    if getattr(protocol, "folds_by", None) != "donor":
        return protocol
    remark = "One donor: each section is left out while the donor's other sections train."
    nulls = (*protocol.nulls, *(() if SAME_DONOR in protocol.nulls or protocol.kind != "expression" else (SAME_DONOR,)))
    return replace(protocol, folds_by="section", level="section", remarks=(*protocol.remarks, remark), nulls=nulls)  # type: ignore[call-arg]


def with_images(found: Mapping[str, "AnnData"]) -> dict[str, "AnnData"]:
    """Return the sections that have an image, with its colour statistics in ``obsm["X_stimg_colour"]``."""
    from stimg import pp

    out = {}
    for name, adata in found.items():
        entry = adata.uns.get("spatial", {}).get(name, {})
        path = str(entry.get("metadata", {}).get("source_image_path", ""))
        if (path and Path(path).is_file()) or entry.get("images", {}).get("hires") is not None:
            pp.colour_statistics(adata)
            out[name] = adata
    logger.info("%d of %d sections have an image", len(out), len(found))
    return out
