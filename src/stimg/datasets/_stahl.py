"""Human breast cancer, four neighbouring layers, legacy Spatial Transcriptomics (Ståhl et al. 2016)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stimg.datasets.fetch import fetch_file
from stimg.datasets.registry import libraries
from stimg.datasets.section import Section, assemble, read_count_table, select

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

PITCH_UM, SPOT_UM = 200.0, 100.0


def _read(layer: str, progress: bool | None) -> Section:
    counts, names, genes = read_count_table(fetch_file(f"stahl/counts/{layer}", progress=progress), delimiter=",")
    grid = pd.read_csv(fetch_file(f"stahl/spots/{layer}", progress=progress), header=None).to_numpy(float)
    if grid.shape != (len(names), 2):
        raise ValueError(
            f"stahl/spots/{layer} has shape {grid.shape}, expected ({len(names)}, 2). Remove the file so that it is fetched again."
        )
    index = np.rint(grid).astype(int)
    return Section(
        library=f"layer{layer}",
        donor="stahl_bc",
        counts=counts,
        names=[f"{x}x{y}" for x, y in index],
        var=pd.DataFrame(index=pd.Index(genes)),
        obs=pd.DataFrame({"array_row": index[:, 1], "array_col": index[:, 0]}),
        xy=grid * PITCH_UM,
        mpp=1.0,
        spot_um=SPOT_UM,
        metadata={"technology": "Spatial Transcriptomics (1k array)", "pitch_um": PITCH_UM, "source": "raphael-group/paste"},
    )


def stahl(
    layers: str | int | Sequence[str | int] | None = None, *, as_sdata: bool = False, progress: bool | None = None
) -> "AnnData | SpatialData":
    """Return layers of one breast tumour: about 250 spots and 7,500 genes a layer, no image.

    Parameters
    ----------
    layers
        ``1`` to ``4``, several of them, or None for all; the libraries are called ``layer1`` to ``layer4``.
    as_sdata, progress
        As for :func:`stimg.datasets.her2st`.

    Returns
    -------
    Counts (float32 CSR) with ``library_id``, ``donor`` (one for all layers), ``array_row``, ``array_col`` (rounded array coordinates);
    ``obsm["spatial"]`` in micrometres on the array (``microns_per_pixel`` is 1), as no image is published here. Several layers share the genes
    that each of them lists.

    Raises
    ------
    ValueError
        An unknown layer or a damaged file.
    ConnectionError, OSError
        Files that are not at hand and cannot be fetched or written.
    """
    names = None if layers is None else [str(layers)] if isinstance(layers, (str, int)) else [str(s) for s in layers]
    wanted = select(names, libraries("stahl"), "Ståhl layer")
    return assemble([_read(s, progress) for s in wanted], image="none", as_sdata=as_sdata)
