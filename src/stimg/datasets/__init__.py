"""Public data sets, fetched when asked for and verified, and simulated slides.

Files are looked for in the folder of ``$STIMG_DATA_MIRROR``, then among earlier downloads (``$STIMG_DATA_DIR``, or the user's cache folder), then at their
public address.
"""

from stimg.datasets.dlpfc import dlpfc
from stimg.datasets.fetch import fetch_file
from stimg.datasets.genes import gene_list
from stimg.datasets.her2st import her2st
from stimg.datasets.mob import mob
from stimg.datasets.registry import listing as list
from stimg.datasets.simulate import CountOptions, DonorOptions, GeneOptions, ImageOptions, TissueOptions, Truth, simulate
from stimg.datasets.stahl import stahl

__all__ = [
    "CountOptions",
    "DonorOptions",
    "GeneOptions",
    "ImageOptions",
    "TissueOptions",
    "Truth",
    "dlpfc",
    "fetch_file",
    "gene_list",
    "her2st",
    "list",
    "mob",
    "simulate",
    "stahl",
]
