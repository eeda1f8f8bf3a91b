"""Pictures of what the other verbs wrote. Importing this module does not import matplotlib; calling a function does."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stimg.pl._crops import crops
    from stimg.pl._embedding import embedding_map
    from stimg.pl._history import history
    from stimg.pl._raster import raster
    from stimg.pl._reconstruction import reconstruction

_WHERE = {"crops": "_crops", "embedding_map": "_embedding", "history": "_history", "raster": "_raster", "reconstruction": "_reconstruction"}
__all__ = ["crops", "embedding_map", "history", "raster", "reconstruction"]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(f"stimg.pl.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'stimg.pl' has no attribute {name!r}; it has {', '.join(__all__)}.")


def __dir__() -> list[str]:
    return sorted(__all__)
