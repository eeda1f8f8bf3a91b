"""HER2-positive breast cancer, legacy Spatial Transcriptomics (Andersson et al. 2021)."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stimg.datasets.fetch import fetch_file
from stimg.datasets.registry import FILES, libraries
from stimg.datasets.section import ImageChoice, Section, affine_scale, assemble, check_image, read_count_table, select

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)
PITCH_UM, SPOT_UM = 200.0, 100.0
LABELS = (
    "adipose tissue",
    "breast glands",
    "cancer in situ",
    "connective tissue",
    "immune infiltrate",
    "invasive cancer",
    "undetermined",
)
"""The pathologist's classes."""


def _labels(section: str, index: pd.Index, progress: bool | None) -> pd.Categorical:
    """Return the pathologist's label of each spot; the table gives unrounded array coordinates, and pixels of another frame that are not used."""
    name = f"her2st/labels/{section}"
    if name not in FILES:
        return pd.Categorical([None] * len(index), categories=list(LABELS))
    table = pd.read_csv(fetch_file(name, progress=progress), sep="\t")
    table.index = pd.MultiIndex.from_arrays([table["x"].round().astype(int), table["y"].round().astype(int)])
    if not table.index.is_unique or not set(table["label"]) <= set(LABELS):
        raise ValueError(f"{name} has repeated spots or labels other than {LABELS}. Remove the file so that it is fetched again.")
    return pd.Categorical(table["label"].reindex(index), categories=list(LABELS))


def _read(section: str, image: ImageChoice, progress: bool | None) -> Section:
    counts, names, genes = read_count_table(fetch_file(f"her2st/counts/{section}", progress=progress), delimiter="\t")
    spots = pd.read_csv(fetch_file(f"her2st/spots/{section}", progress=progress), sep="\t")
    spots = spots.set_index(spots["x"].astype(str) + "x" + spots["y"].astype(str))
    if not spots.index.is_unique:
        raise ValueError(f"her2st/spots/{section} lists a spot twice. Remove the file so that it is fetched again.")
    where = pd.Index(names).get_indexer(spots.index)
    if (where < 0).any() or len(names) > (where >= 0).sum():
        logger.info(
            "%s: dropped %d spots without counts, %d count rows without a spot", section, (where < 0).sum(), len(names) - (where >= 0).sum()
        )
    spots = spots[where >= 0]
    where = where[where >= 0]
    index = pd.MultiIndex.from_arrays([spots["x"], spots["y"]])
    clusters = pd.read_csv(fetch_file(f"her2st/clusters/{section}", progress=progress), sep="\t", usecols=["x", "y", "label"])
    clusters.index = pd.MultiIndex.from_arrays([clusters["x"], clusters["y"]])
    cluster = clusters["label"].reindex(index)
    xy = spots[["pixel_x", "pixel_y"]].to_numpy(float)
    grid = spots[["x", "y"]].to_numpy(float)
    donor = section[0]
    entry = FILES[f"her2st/image/{section}"]
    return Section(
        library=section,
        donor=donor,
        counts=counts[where],
        names=list(spots.index),
        var=pd.DataFrame(index=pd.Index(genes)),
        obs=pd.DataFrame(
            {
                "array_row": spots["y"].to_numpy(),
                "array_col": spots["x"].to_numpy(),
                "label": _labels(section, index, progress),
                "cluster": pd.Categorical([None if np.isnan(c) else f"{donor}_{int(c)}" for c in cluster]),
            }
        ),
        xy=xy,
        mpp=PITCH_UM / affine_scale(grid, xy),
        spot_um=SPOT_UM,
        image=None if image == "none" else fetch_file(entry.name, progress=progress),
        image_size=(entry.width, entry.height),
        metadata={"technology": "Spatial Transcriptomics (1k array)", "pitch_um": PITCH_UM, "source": "almaan/her2st"},
    )


def her2st(
    sections: str | Sequence[str] | None = None, *, image: ImageChoice = "none", as_sdata: bool = False, progress: bool | None = None
) -> "AnnData | SpatialData":
    """Return sections of HER2-positive breast cancer: about 300 spots a section, 15,000 genes.

    Parameters
    ----------
    sections
        ``"B1"``, ``["B1", "C1"]``, or None for all registered: B1-B6, C1-C5, D1-D6, E1-E3. The letter is the donor.
    image
        ``"none"``; ``"hires"``: the H&E image reduced to 2000 and 600 px in ``uns["spatial"]``, or as an element; ``"full"``: the whole image (about 92
        million pixels), decoded when its pixels are asked for; needs ``as_sdata=True``.
    as_sdata
        Return SpatialData: ``<section>_image``, ``<section>_spots`` (circles), ``table``; see the notes.
    progress
        Show a progress bar while downloading; by default only on a terminal.

    Returns
    -------
    Counts (float32 CSR, n_obs x n_vars) with ``obs``: ``library_id``, ``donor``, ``array_row`` and ``array_col`` (the array's own indices, rows along
    the image's y), ``label`` (the pathologist's, for B1, C1, D1 and E1; else missing), ``cluster`` (the authors' expression clusters, which are numbered
    for each donor); ``obsm["spatial"]`` (x, y) in pixels of the full-resolution image; ``uns["spatial"][section]``.

    Raises
    ------
    ValueError
        An unknown section, a damaged file, ``image="full"`` without ``as_sdata``.
    ConnectionError, OSError
        Files that are neither in the mirror nor in the cache and cannot be fetched or written.

    Notes
    -----
    Several sections share the genes that each of them lists: a gene that a section does not list was not reported, which is not a zero. Call
    the function once a section to keep all genes of each. ``microns_per_pixel`` comes from the pitch of the array (200 µm) and the spots' pixel
    positions, 0.68-0.70. Spots without counts (0-3 a section) are dropped, and their number is logged. SpatialData has the coordinate systems
    ``<section>`` (full-resolution pixels) and ``<section>_um``; with one section also ``global`` and ``um``.
    """
    check_image(image, as_sdata)
    wanted = select(sections, libraries("her2st"), "HER2ST section")
    return assemble([_read(s, image, progress) for s in wanted], image=image, as_sdata=as_sdata)
