"""Floor 1: the image of one library, without tables: lattices, units, sparse raster stores and their windows."""

from stimg.image.augment_tiles import TileAugmentation
from stimg.image.blend import Blend, taper, tile_windows
from stimg.image.buffers import DenseBuffer, Workspace
from stimg.image.lattice import find_lattice, neighbour_pairs, neighbours, odd_r_from_array
from stimg.image.perceptual import hamming, image_hash
from stimg.image.request import SparseWindow, SparseWindows
from stimg.image.slide import Level, Slide, open_slide
from stimg.image.spec import CropSpec, RasterSpec, TileSpec
from stimg.image.store import RasterStore

__all__ = [
    "Blend",
    "CropSpec",
    "DenseBuffer",
    "Level",
    "RasterSpec",
    "RasterStore",
    "Slide",
    "SparseWindow",
    "SparseWindows",
    "TileAugmentation",
    "TileSpec",
    "Workspace",
    "find_lattice",
    "hamming",
    "image_hash",
    "neighbour_pairs",
    "neighbours",
    "odd_r_from_array",
    "open_slide",
    "taper",
    "tile_windows",
]
