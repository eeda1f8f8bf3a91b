"""Encoders as cards: width, size, µm per pixel, normalisation, licence, gating and citation of each. Loads neither torch nor weights."""

from typing import TYPE_CHECKING

from stimg._core.lazy import attach

if TYPE_CHECKING:
    from stimg.zoo._listing import get_card as get
    from stimg.zoo._listing import list_cards as list
    from stimg.zoo.card import GeneCard, ImageCard
    from stimg.zoo.gene import GENE
    from stimg.zoo.image import IMAGE

_WHERE = {
    "GENE": "gene",
    "GeneCard": "card",
    "IMAGE": "image",
    "ImageCard": "card",
    "get": "_listing:get_card",
    "list": "_listing:list_cards",
}
"""Public name to the module of this package that defines it; the registries come from the modules that fill them."""
__getattr__, __dir__, __all__ = attach(__name__, _WHERE)
