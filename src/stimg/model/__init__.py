"""Floor 4: models with the scvi-tools contract. Loaded when first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stimg.model.options import STMAEOptions
    from stimg.model.stmae import STMAE

_NAMES = {"STMAE": "stmae", "STMAEOptions": "options"}
__all__ = ["STMAE", "STMAEOptions"]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(import_module(f"stimg.model.{_NAMES[name]}"), name)
    raise AttributeError(f"module 'stimg.model' has no attribute {name!r}; it has {', '.join(__all__)}.")


def __dir__() -> list[str]:
    return sorted(__all__)
