"""Floor 4: models with the scvi-tools contract. Loaded when first used."""

from typing import TYPE_CHECKING

from stimg._core.lazy import attach

if TYPE_CHECKING:
    from stimg.model.clip_options import ImageGeneCLIPOptions
    from stimg.model.expression_head import ExpressionHead
    from stimg.model.gene_encoders import GeneEncoder
    from stimg.model.head_options import ExpressionHeadOptions
    from stimg.model.image_gene_clip import ImageGeneCLIP
    from stimg.model.image_mae import ImageMAE
    from stimg.model.mae_options import ImageMAEOptions
    from stimg.model.options import STMAEOptions
    from stimg.model.s2s import S2SImputer
    from stimg.model.s2s_options import S2SImputerOptions
    from stimg.model.slide_classifier import SlideClassifier
    from stimg.model.slide_options import SlideClassifierOptions
    from stimg.model.stmae import STMAE

_NAMES = {
    "ExpressionHead": "expression_head",
    "ExpressionHeadOptions": "head_options",
    "GeneEncoder": "gene_encoders",
    "ImageGeneCLIP": "image_gene_clip",
    "ImageGeneCLIPOptions": "clip_options",
    "ImageMAE": "image_mae",
    "ImageMAEOptions": "mae_options",
    "S2SImputer": "s2s",
    "S2SImputerOptions": "s2s_options",
    "STMAE": "stmae",
    "STMAEOptions": "options",
    "SlideClassifier": "slide_classifier",
    "SlideClassifierOptions": "slide_options",
}
__getattr__, __dir__, __all__ = attach(__name__, _NAMES)
