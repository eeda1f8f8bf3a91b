"""The record that every writer leaves in ``uns["stimg"][key]``: plain values, so that h5ad and zarr can hold it."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from stimg._core import keys


def plain(value: Any) -> Any:
    """Return ``value`` as something anndata can write: numbers, strings, arrays and dicts of them; None becomes "none"."""
    if value is None:
        return "none"
    if isinstance(value, (bool, int, float, str, np.ndarray)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        items = sorted(value) if isinstance(value, (set, frozenset)) else list(value)
        return np.asarray([plain(v) for v in items]) if items else np.asarray([], dtype=np.float64)
    return str(value)


def record(adata: Any, key: str, **fields: Any) -> None:
    """Write ``fields`` and the version of stimg into ``adata.uns["stimg"][key]``, replacing what stood there."""
    import stimg

    space = adata.uns.setdefault(keys.UNS, {})
    space[key] = {"version": stimg.__version__, **{name: plain(value) for name, value in fields.items()}}
