"""Tools: what a trained model says about observations, written into AnnData and SpatialData. Loads torch when a verb is called."""

from typing import TYPE_CHECKING

from stimg._core.lazy import attach

if TYPE_CHECKING:
    from stimg.tl._embed import embed
    from stimg.tl._impute_genes import impute_genes

_WHERE = {"embed": "_embed", "impute_genes": "_impute_genes"}
__getattr__, __dir__, __all__ = attach(__name__, _WHERE)
