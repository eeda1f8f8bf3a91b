"""Features of measured observations and of the places between them, for ``tl.impute``."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from stimg._core import validate
from stimg.data.slots import RasterLibrary
from stimg.image.interpolate import Guide
from stimg.tl._impute_places import Wanted

if TYPE_CHECKING:
    from anndata import AnnData


def guides(
    adata: "AnnData", targets: Any, key: str, libraries: Mapping[str, RasterLibrary], wanted: Mapping[str, Wanted]
) -> dict[str, Guide]:
    """Return the features ``obsm[key]`` of the measured and the wanted places of every library."""
    if not hasattr(targets, "obsm"):
        raise ValueError(
            f"guide={key!r} needs the features of the places too, and targets is no AnnData. Pass an AnnData with obsm[{key!r}], such as the table that "
            "`tl.impute` gave before, after `pp.plan_tiles` and `tl.embed_image`."
        )
    own, theirs = _features(adata, key, "data"), _features(targets, key, "targets")
    if own.shape[1] != theirs.shape[1]:
        raise ValueError(
            f"obsm[{key!r}] has {own.shape[1]} columns in data and {theirs.shape[1]} in targets; wanted the same features. Compute both with one encoder."
        )
    out = {}
    for name, places in wanted.items():
        library = libraries[name]
        points = np.concatenate([library.spec.lattice_points(library.rc), places.points])
        features = np.concatenate([own[library.rows], theirs[places.rows]])
        validate.finite(features, f"obsm[{key!r}] of library {name!r}", todo="Leave these places out, or compute their features.")
        out[name] = Guide(points, features)
    return out


def _features(adata: "AnnData", key: str, what: str) -> np.ndarray:
    array = np.asarray(validate.slot(adata.obsm, "obsm", key, todo=f"Compute it for the observations of {what}."))
    if array.ndim != 2 or array.dtype.kind not in "iuf":
        raise TypeError(
            f"obsm[{key!r}] of {what} has dtype {array.dtype} and shape {array.shape}; wanted a matrix of numbers, one row an observation."
        )
    return array.astype(np.float64)
