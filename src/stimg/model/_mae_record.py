"""What an image encoder has seen."""

from typing import TYPE_CHECKING

import numpy as np

from stimg._core.ledger import Seen
from stimg.data.ledger import ids
from stimg.image.perceptual import CELLS, image_hash
from stimg.image.slide import Slide

if TYPE_CHECKING:
    from anndata import AnnData

    from stimg.model.image_mae import ImageMAE

THUMBNAIL_PX = 2000
"""Longest side of the reduced image that is hashed: that of the images in ``uns["spatial"]``."""


def hashes_of(slide: Slide, adata: "AnnData", library: str) -> list[int]:
    """Return perceptual hashes of a slide: of its reduced image, and of the one kept in ``uns["spatial"]``."""
    found = []
    kept = adata.uns.get("spatial", {}).get(library, {}).get("images", {}).get("hires")
    for picture in (slide.thumbnail(THUMBNAIL_PX)[0], *([] if kept is None else [np.asarray(kept)[..., :3]])):
        pixels = np.round(255 * np.clip(picture, 0, 1)).astype(np.uint8) if picture.dtype.kind == "f" else picture
        if min(pixels.shape[:2]) > CELLS:
            found.append(int(image_hash(pixels)))
    return found


def seen(model: "ImageMAE", rows: np.ndarray, images: list[int]) -> Seen:
    """Return the record of the observations around which tissue was read: by name, because no count was."""
    adata, own = model.adata, model.ledger[-1]
    part = adata.obs.iloc[np.flatnonzero(rows)]

    def names(key: str | None) -> tuple[str, ...]:
        return tuple(part[key].dropna().astype(str).unique()) if key is not None and key in part else ()

    return Seen(
        own.who,
        own.kind,
        ids=ids(adata, library_key=model._library_key)[rows],
        images=np.asarray(images, dtype=np.uint64),
        libraries=names(model._library_key),
        donors=names(model._donor_key),
    )
