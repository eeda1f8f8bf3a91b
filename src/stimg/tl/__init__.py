"""Tools: what a trained model says about observations, written into AnnData and SpatialData. Loads torch when a verb is called."""

from typing import TYPE_CHECKING

from stimg._core.lazy import attach

if TYPE_CHECKING:
    from stimg.tl._align import align
    from stimg.tl._classify_slides import classify_slides
    from stimg.tl._embed import embed
    from stimg.tl._embed_genes import embed_genes
    from stimg.tl._embed_image import embed_image
    from stimg.tl._impute import impute
    from stimg.tl._impute_genes import impute_genes
    from stimg.tl._predict_expression import predict_expression
    from stimg.tl._retrieve import retrieve
    from stimg.tl._upsample import upsample

_WHERE = {
    "align": "_align",
    "classify_slides": "_classify_slides",
    "embed": "_embed",
    "embed_genes": "_embed_genes",
    "embed_image": "_embed_image",
    "impute": "_impute",
    "impute_genes": "_impute_genes",
    "predict_expression": "_predict_expression",
    "retrieve": "_retrieve",
    "upsample": "_upsample",
}
__getattr__, __dir__, __all__ = attach(__name__, _WHERE)
