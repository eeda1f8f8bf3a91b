"""Public data sets, fetched when asked for and verified, and simulated slides.

Files are looked for in the folder of ``$STIMG_DATA_MIRROR``, then among earlier downloads (``$STIMG_DATA_DIR``, or the user's cache folder), then at their
public address.
"""

from typing import TYPE_CHECKING

from stimg._core.lazy import attach

if TYPE_CHECKING:
    from stimg.datasets._dlpfc import dlpfc
    from stimg.datasets._her2st import her2st
    from stimg.datasets._mob import mob
    from stimg.datasets._simulate import CountOptions, DonorOptions, GeneOptions, ImageOptions, TissueOptions, Truth, simulate
    from stimg.datasets._simulate_cohort import simulate_cohort
    from stimg.datasets._stahl import stahl
    from stimg.datasets.fetch import fetch_file
    from stimg.datasets.genes import gene_list
    from stimg.datasets.registry import listing as list

_NAMES = {
    "CountOptions": "_simulate",
    "DonorOptions": "_simulate",
    "GeneOptions": "_simulate",
    "ImageOptions": "_simulate",
    "TissueOptions": "_simulate",
    "Truth": "_simulate",
    "dlpfc": "_dlpfc",
    "fetch_file": "fetch",
    "gene_list": "genes",
    "her2st": "_her2st",
    "list": "registry:listing",
    "mob": "_mob",
    "simulate": "_simulate",
    "simulate_cohort": "_simulate_cohort",
    "stahl": "_stahl",
}
"""Public name to the module of this package that defines it."""
__getattr__, __dir__, __all__ = attach(__name__, _NAMES)
