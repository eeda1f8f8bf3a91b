"""Pixels of planned tiles, read for a picture."""

from typing import Any

import numpy as np

from stimg._core import keys
from stimg.data.tables import table_of
from stimg.data.tile_plan import plan_slide, tile_plan
from stimg.image.slide import Slide

MOST_PX = 128
"""Pixels a side that a picture shows of a tile."""


def has_tiles(adata: Any, tiles_key: str = keys.TILES) -> bool:
    """Return whether tiles of ``adata`` are planned."""
    return keys.tiles_key(tiles_key) in adata.obsm and tiles_key in adata.uns.get(keys.UNS, {})


class TileReader:
    """The first field of the tiles of an object, uint8 (side, side, 3): ``reader(row)``. Slides are opened when they are needed."""

    def __init__(self, data: Any, tiles_key: str = keys.TILES, table_key: str = "table") -> None:
        self.data, self.adata, self.table_key = data, table_of(data, table_key), table_key
        self.plan = tile_plan(self.adata, tiles_key)
        self.library_key = str(self.adata.uns[keys.UNS][tiles_key]["library_key"])
        self.slides: dict[str, Slide] = {}

    def __call__(self, row: int) -> np.ndarray:
        library = str(self.adata.obs[self.library_key].iloc[row])
        if library not in self.slides:
            self.slides[library] = plan_slide(self.data, self.plan, library, library_key=self.library_key, table_key=self.table_key)
        side = self.plan.side_px(library, self.plan.spec.fields[0])
        size = min(self.plan.spec.size_px, MOST_PX)
        return self.slides[library].tile(self.plan.centres[row], side, size, upsample=True)[0]
