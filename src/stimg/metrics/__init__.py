"""Pure functions on arrays: scores, and the statistics behind them. Loads neither torch nor scanpy, and each module when it is first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stimg.metrics.spatial import Autocorrelation, SpatialWeights, autocorrelation, gearys_c, morans_i

_NAMES = {
    "Autocorrelation": "spatial",
    "SpatialWeights": "spatial",
    "autocorrelation": "spatial",
    "gearys_c": "spatial",
    "morans_i": "spatial",
}
"""Public name to the module of this package that defines it."""
__all__ = ["Autocorrelation", "SpatialWeights", "autocorrelation", "gearys_c", "morans_i"]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(import_module(f"stimg.metrics.{_NAMES[name]}"), name)
    raise AttributeError(f"module 'stimg.metrics' has no attribute {name!r}; it has {', '.join(__all__)}.")


def __dir__() -> list[str]:
    return sorted(__all__)
