"""From tables to batches. Names are loaded when first used, so that ``stimg.data.slots`` costs no torch."""

from importlib import import_module
from typing import Any

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
    "channel_rule": "channels",
    "channel_rules": "channels",
    "collate": "crops",
    "libraries": "library",
    "raster_libraries": "slots",
}
"""Public name to the module of this package that defines it."""

__all__ = sorted(_NAMES)


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(import_module(f"stimg.data.{_NAMES[name]}"), name)
    raise AttributeError(f"module 'stimg.data' has no attribute {name!r}; it has {', '.join(__all__)}.")


def __dir__() -> list[str]:
    return sorted(__all__)
