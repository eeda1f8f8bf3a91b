"""Tools: what a trained model says about observations, written into AnnData and SpatialData. Loads torch when a verb is called."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stimg.tl._embed import embed
    from stimg.tl._impute_genes import impute_genes

_WHERE = {"embed": "_embed", "impute_genes": "_impute_genes"}
__all__ = ["embed", "impute_genes"]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(f"stimg.tl.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'stimg.tl' has no attribute {name!r}; it has {', '.join(__all__)}.")


def __dir__() -> list[str]:
    return sorted(__all__)
