"""Spatial transcriptomics as images: raster, crop, channel, learn.

Importing this package loads neither torch nor scvi-tools: every submodule is loaded when it is first used.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stimg import bench, data, datasets, image, metrics, model, nn, pl, plan, pp, tl, zoo
    from stimg._core.settings import settings

try:
    __version__ = version("stimg")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"

_SUBMODULES = ("bench", "data", "datasets", "image", "metrics", "model", "nn", "pl", "plan", "pp", "tl", "zoo")
__all__ = ["__version__", "bench", "data", "datasets", "image", "metrics", "model", "nn", "pl", "plan", "pp", "settings", "tl", "zoo"]


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return import_module(f"stimg.{name}")
    if name == "settings":
        return import_module("stimg._core.settings").settings
    raise AttributeError(f"module 'stimg' has no attribute {name!r}; it has {', '.join(__all__)}.")


def __dir__() -> list[str]:
    return sorted(__all__)
