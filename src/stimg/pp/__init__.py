"""Preprocessing: rasters, channels, blocks and spatial statistics. Loads neither torch nor squidpy, and each verb when it is first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stimg.pp._blocks import hold_out_blocks, spatial_blocks
    from stimg.pp._rasterize import rasterize
    from stimg.pp._rasterize_points import rasterize_points
    from stimg.pp._resample import resample
    from stimg.pp._select_genes import select_genes
    from stimg.pp._spatial_autocorr import spatial_autocorr

_WHERE = {
    "hold_out_blocks": "_blocks",
    "rasterize": "_rasterize",
    "rasterize_points": "_rasterize_points",
    "resample": "_resample",
    "select_genes": "_select_genes",
    "spatial_autocorr": "_spatial_autocorr",
    "spatial_blocks": "_blocks",
}
"""Verb to the module of this package that defines it."""
__all__ = ["hold_out_blocks", "rasterize", "rasterize_points", "resample", "select_genes", "spatial_autocorr", "spatial_blocks"]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(f"stimg.pp.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'stimg.pp' has no attribute {name!r}; it has {', '.join(__all__)}.")


def __dir__() -> list[str]:
    return sorted(__all__)
