"""Networks of ordinary images, whose features stand beside expression."""

from stimg.nn.image.efficientnet import EfficientNetLite0, StageStatistics, installed_weights, load_installed, load_weights, prepare
from stimg.nn.image.encoder import ImageEncoder, load_image_encoder
from stimg.nn.image.mae import MAEFeatures, MAEModule

__all__ = [
    "EfficientNetLite0",
    "ImageEncoder",
    "MAEFeatures",
    "MAEModule",
    "StageStatistics",
    "installed_weights",
    "load_image_encoder",
    "load_installed",
    "load_weights",
    "prepare",
]
