"""Heavy and optional packages are imported when used, through one function that says what to install."""

from importlib import import_module
from types import ModuleType


def need(module: str, *, extra: str | None = None, purpose: str = "") -> ModuleType:
    """Import and return ``module``; the ImportError names the extra of stimg that brings it, and a broken pair of torch and torchvision."""
    what = f" ({purpose})" if purpose else ""
    how = f"pip install 'stimg[{extra}]'" if extra else f"pip install {module.split('.')[0]}"
    try:
        return import_module(module)
    except ImportError as err:
        raise ImportError(f"{module} is needed{what} but could not be imported: {err}. Run `{how}`.") from err
    except RuntimeError as err:
        if "torchvision::nms" not in str(err):
            raise
        raise ImportError(
            f"{module} is needed{what} but the installed torchvision does not match the installed torch ({err}). "
            "Install both from the same channel (both CPU builds or both CUDA builds)."
        ) from err
