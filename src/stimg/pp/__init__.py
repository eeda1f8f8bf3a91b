"""Preprocessing: rasters, channels, blocks and spatial statistics. Loads neither torch nor squidpy, and each verb when it is first used."""

from typing import TYPE_CHECKING

from stimg._core.lazy import attach

if TYPE_CHECKING:
    from stimg.pp._blocks import hold_out_blocks, spatial_blocks
    from stimg.pp._check_slide import check_slide
    from stimg.pp._colour_statistics import colour_statistics
    from stimg.pp._plan_tiles import plan_tiles
    from stimg.pp._rasterize import rasterize
    from stimg.pp._rasterize_points import rasterize_points
    from stimg.pp._read_embedding import read_embedding
    from stimg.pp._resample import resample
    from stimg.pp._select_genes import select_genes
    from stimg.pp._set_mpp import set_mpp
    from stimg.pp._sparsify import sparsify
    from stimg.pp._spatial_autocorr import spatial_autocorr
    from stimg.pp._spatial_context import spatial_context
    from stimg.pp._split import split

_WHERE = {
    "check_slide": "_check_slide",
    "colour_statistics": "_colour_statistics",
    "hold_out_blocks": "_blocks",
    "plan_tiles": "_plan_tiles",
    "rasterize": "_rasterize",
    "rasterize_points": "_rasterize_points",
    "read_embedding": "_read_embedding",
    "resample": "_resample",
    "select_genes": "_select_genes",
    "set_mpp": "_set_mpp",
    "sparsify": "_sparsify",
    "spatial_autocorr": "_spatial_autocorr",
    "spatial_blocks": "_blocks",
    "spatial_context": "_spatial_context",
    "split": "_split",
}
"""Verb to the module of this package that defines it."""
__getattr__, __dir__, __all__ = attach(__name__, _WHERE)
