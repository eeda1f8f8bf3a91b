"""Networks of ordinary images, whose features stand beside expression."""

from stimg.nn.image.efficientnet import EfficientNetLite0, installed_weights, load_installed, load_weights, prepare

__all__ = ["EfficientNetLite0", "installed_weights", "load_installed", "load_weights", "prepare"]
