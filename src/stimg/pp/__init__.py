"""Preprocessing: rasters, channels, blocks and spatial statistics. Loads neither torch nor squidpy."""

from stimg.pp._blocks import hold_out_blocks, spatial_blocks
from stimg.pp._rasterize import rasterize
from stimg.pp._rasterize_points import rasterize_points
from stimg.pp._resample import resample
from stimg.pp._select_genes import select_genes
from stimg.pp._spatial_autocorr import spatial_autocorr

__all__ = ["hold_out_blocks", "rasterize", "rasterize_points", "resample", "select_genes", "spatial_autocorr", "spatial_blocks"]
