"""Floor 4: models with the scvi-tools contract. Loaded when first used."""

from typing import TYPE_CHECKING

from stimg._core.lazy import attach

if TYPE_CHECKING:
    from stimg.model.options import STMAEOptions
    from stimg.model.stmae import STMAE

_NAMES = {"STMAE": "stmae", "STMAEOptions": "options"}
__getattr__, __dir__, __all__ = attach(__name__, _NAMES)
