"""Tools: what a trained model says about observations, written into AnnData and SpatialData. Loads torch when a verb is called."""

from stimg.tl._embed import embed
from stimg.tl._impute_genes import impute_genes

__all__ = ["embed", "impute_genes"]
