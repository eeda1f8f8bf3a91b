"""Preprocessing: rasters, channels, blocks and spatial statistics. Loads neither torch nor squidpy, and each verb when it is first used."""

from typing import TYPE_CHECKING

from stimg._core.lazy import attach

if TYPE_CHECKING:
    from stimg.pp._blocks import hold_out_blocks, spatial_blocks
    from stimg.pp._colour_statistics import colour_statistics
    from stimg.pp._rasterize import rasterize
    from stimg.pp._rasterize_points import rasterize_points
    from stimg.pp._resample import resample
    from stimg.pp._select_genes import select_genes
    from stimg.pp._spatial_autocorr import spatial_autocorr
    from stimg.pp._split import split

_WHERE = {
    "colour_statistics": "_colour_statistics",
    "hold_out_blocks": "_blocks",
    "rasterize": "_rasterize",
    "rasterize_points": "_rasterize_points",
    "resample": "_resample",
    "select_genes": "_select_genes",
    "spatial_autocorr": "_spatial_autocorr",
    "spatial_blocks": "_blocks",
    "split": "_split",
}
"""Verb to the module of this package that defines it."""
__getattr__, __dir__, __all__ = attach(__name__, _WHERE)
