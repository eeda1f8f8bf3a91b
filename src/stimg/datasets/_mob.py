"""Mouse olfactory bulb on the staggered 2,000-spot array of Spatial Transcriptomics (example data of STUtility)."""

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

NEAREST_UM = 141.0
"""Distance of neighbouring spots on the staggered array, as STUtility states it for its platform "2k"."""
SPOT_UM = 100.0


def _read(section: str, image: ImageChoice, tissue_only: bool, progress: bool | None) -> Section:
    counts, names, genes = read_count_table(fetch_file(f"mob/counts/{section}", progress=progress), delimiter="\t")
    spots = pd.read_csv(fetch_file(f"mob/spots/{section}", progress=progress), sep="\t")
    scale = affine_scale(spots[["x", "y"]].to_numpy(float), spots[["pixel_x", "pixel_y"]].to_numpy(float))
    spots = spots.set_index(spots["x"].astype(str) + "x" + spots["y"].astype(str))
    if tissue_only:
        spots = spots[spots["selected"] == 1]
    where = pd.Index(names).get_indexer(spots.index)
    spots = spots[where >= 0]
    ids = pd.Index(genes)
    entry = FILES[f"mob/image/{section}"]
    return Section(
        library=f"MOB{section}",
        donor="mob",
        counts=counts[where[where >= 0]],
        names=list(spots.index),
        var=pd.DataFrame({"gene_ids": genes}, index=ids.str.replace(r"\.\d+$", "", regex=True)),
        obs=pd.DataFrame(
            {"array_row": spots["y"].to_numpy(), "array_col": spots["x"].to_numpy(), "in_tissue": spots["selected"].to_numpy().astype(bool)}
        ),
        xy=spots[["pixel_x", "pixel_y"]].to_numpy(float),
        mpp=NEAREST_UM / (np.sqrt(2) * scale),
        spot_um=SPOT_UM,
        image=None if image == "none" else fetch_file(entry.name, progress=progress),
        image_size=(entry.width, entry.height),
        metadata={
            "technology": "Spatial Transcriptomics (2k array, staggered)",
            "nearest_um": NEAREST_UM,
            "source": "jbergenstrahle/STUtility",
        },
    )


def mob(
    sections: str | int | Sequence[str | int] | None = None,
    *,
    tissue_only: bool = True,
    image: ImageChoice = "none",
    as_sdata: bool = False,
    progress: bool | None = None,
) -> "AnnData | SpatialData":
    """Return sections of mouse olfactory bulb: about 400 spots under tissue, 1,000 genes named by their Ensembl identifiers.

    Parameters
    ----------
    sections
        ``1``, ``2``, or None for both; the libraries are called ``MOB1`` and ``MOB2``.
    tissue_only
        Leave out the spots beside the tissue (``obs["in_tissue"]`` tells them apart otherwise).
    image, as_sdata, progress
        As for :func:`stimg.datasets.her2st`; the published image has 1905 x 1905 pixels.

    Returns
    -------
    Counts (float32 CSR) with ``library_id``, ``donor`` (both sections bear one donor, as the source does not tell them apart), ``array_row``,
    ``array_col`` (row + column is even, as on Visium arrays), ``var["gene_ids"]`` (with version), ``obsm["spatial"]``, ``uns["spatial"]``.

    Raises
    ------
    ValueError
        An unknown section, a damaged file, ``image="full"`` without ``as_sdata``.
    ConnectionError, OSError
        Files that are not at hand and cannot be fetched or written.

    Notes
    -----
    ``microns_per_pixel`` is inferred: neighbours are taken to be 141 µm apart, the distance that STUtility states for this array. The image is not
    isotropic (the array's steps are 21.6 px along x and 24.1 px along y), so one number cannot hold for both axes; it is their geometric mean.
    """
    check_image(image, as_sdata)
    names = None if sections is None else [str(sections)] if isinstance(sections, (str, int)) else [str(s) for s in sections]
    wanted = select(names, libraries("mob"), "MOB section")
    return assemble([_read(s, image, tissue_only, progress) for s in wanted], image=image, as_sdata=as_sdata)
