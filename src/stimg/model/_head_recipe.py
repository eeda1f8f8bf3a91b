"""How image features were made, so that a head refuses features that only look the same."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stimg._core import keys

if TYPE_CHECKING:
    from anndata import AnnData

WORDS = ("encoder", "weights", "weights_hash")
NUMBERS = ("tile_um", "mpp", "fields", "windows_um", "n_features", "rings")
NEAR = 1e-3
"""Relative difference up to which two sizes are the same."""


def recipe_of(adata: "AnnData", features: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return, for each slot of ``obsm``, what its record says of how it was made; an empty dict where there is no record."""
    out = {}
    for key in features:
        record = adata.uns.get(keys.UNS, {}).get(key, {})
        record = record if isinstance(record, Mapping) else {}
        known: dict[str, Any] = {name: str(record[name]) for name in ("verb", *WORDS) if name in record and str(record[name]) != "none"}
        known |= {name: np.asarray(record[name], dtype=np.float64).ravel().tolist() for name in NUMBERS if name in record}
        out[key] = known
    return out


def check_recipe(adata: "AnnData", recipe: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise a ValueError where the record of a slot contradicts that of the features that the head was fitted on."""
    for key, found in recipe_of(adata, list(recipe)).items():
        wanted = recipe[key]
        for name in ("encoder", "weights_hash", *NUMBERS):
            if name not in found or name not in wanted or _same(found[name], wanted[name]):
                continue
            raise ValueError(
                f"adata.obsm[{key!r}] was made with {name}={_text(found[name])}; the head was fitted on features made with {name}={_text(wanted[name])}. "
                "Compute the features as for the reference, or fit a head on a reference with these."
            )


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, str) or isinstance(b, str):
        return str(a) == str(b)
    return len(a) == len(b) and bool(np.allclose(a, b, rtol=NEAR, atol=0.0))


def _text(value: Any) -> str:
    if isinstance(value, str):
        return repr(value)
    return f"{value[0]:g}" if len(value) == 1 else str([float(f"{v:g}") for v in value])
