"""From tables to batches. Names are loaded when first used, so that ``stimg.data.slots`` costs no torch."""

from stimg._core.lazy import attach

_NAMES = {
    "BagDataset": "bags",
    "Bags": "bags",
    "Batch": "crops",
    "CropDataModule": "module",
    "CropDataset": "crops",
    "CropReader": "crops",
    "CropSampler": "crops",
    "CropView": "channels",
    "InferenceDataset": "inference",
    "Library": "library",
    "PairDataModule": "pairs",
    "PairDataset": "pairs",
    "PairSampler": "pairs",
    "RandomTileDataset": "random_tiles",
    "RandomTileModule": "random_tile_module",
    "RandomTileSampler": "random_tile_module",
    "RasterLibrary": "slots",
    "SplitManifest": "manifest",
    "StainNormaliser": "tile_stain",
    "TileDataset": "tiles",
    "TilePlan": "tile_plan",
    "bags_of": "bags",
    "channel_rule": "channels",
    "channel_rules": "channels",
    "collate": "crops",
    "fit_stain": "tile_stain",
    "libraries": "library",
    "near_duplicates": "duplicates",
    "raster_libraries": "slots",
    "slide_of": "slides",
}
"""Public name to the module of this package that defines it."""
__getattr__, __dir__, __all__ = attach(__name__, _NAMES)
