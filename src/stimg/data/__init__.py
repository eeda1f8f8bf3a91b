"""From tables to batches. Names are loaded when first used, so that ``stimg.data.slots`` costs no torch."""

from stimg._core.lazy import attach

_NAMES = {
    "Batch": "crops",
    "CropDataModule": "module",
    "CropDataset": "crops",
    "CropReader": "crops",
    "CropSampler": "crops",
    "CropView": "channels",
    "InferenceDataset": "inference",
    "Library": "library",
    "RasterLibrary": "slots",
    "SplitManifest": "manifest",
    "channel_rule": "channels",
    "channel_rules": "channels",
    "collate": "crops",
    "libraries": "library",
    "near_duplicates": "duplicates",
    "raster_libraries": "slots",
}
"""Public name to the module of this package that defines it."""
__getattr__, __dir__, __all__ = attach(__name__, _NAMES)
