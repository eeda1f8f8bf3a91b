"""Tiles from anywhere on the tissue of planned slides, other ones in every epoch: what an image encoder is pretrained on."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset

from stimg._core import keys, validate
from stimg._core import rng as _rng
from stimg.data.random_places import REACH, Places, pitch_of, places_around
from stimg.data.tables import table_of
from stimg.data.tile_pairs import positions
from stimg.data.tile_plan import TilePlan, plan_slide, tile_plan
from stimg.image.augment_tiles import TileAugmentation, augmented
from stimg.image.slide import Slide

if TYPE_CHECKING:
    from anndata import AnnData

LARGEST = 2 << 30
"""Bytes of reduced pictures up to which they are kept in memory."""
BLOCK = 512
"""Side of the blocks in which a picture is reduced."""
TURNS = TileAugmentation(scale=0.0, shift=0.0)
Index = "int | tuple[int, int]"


class Picture:
    """The part of a slide where tiles can lie, reduced to one µm per pixel and kept in memory.

    Parameters
    ----------
    slide
        Where it comes from.
    low, high
        (y, x) of the part, in pixels of the slide's finest level.
    step
        Pixels of that level along one of the picture.
    """

    def __init__(self, slide: Slide, low: np.ndarray, high: np.ndarray, step: float) -> None:
        self.low, self.step = np.floor(low), step
        rows, columns = (math.ceil(n / step / BLOCK) for n in high - self.low)
        self.pixels = np.empty((rows * BLOCK, columns * BLOCK, 3), dtype=np.uint8)
        block = np.empty((BLOCK, BLOCK, 3), dtype=np.uint8)
        for i in range(rows):
            for j in range(columns):
                slide.fill(self.low + (np.array([i, j]) + 0.5) * BLOCK * step, BLOCK * step, block)
                self.pixels[i * BLOCK : (i + 1) * BLOCK, j * BLOCK : (j + 1) * BLOCK] = block

    @staticmethod
    def nbytes(low: np.ndarray, high: np.ndarray, step: float) -> int:
        """Return the bytes that such a picture takes."""
        return 3 * int(np.prod([math.ceil((n + 1) / step / BLOCK) * BLOCK for n in high - low]))

    def fill(self, centre: np.ndarray, out: np.ndarray) -> None:
        """Fill ``out``, uint8 (size, size, 3), with the tile around a centre, which is moved by up to half a pixel of the picture."""
        y, x = np.floor((centre - self.low) / self.step - len(out) / 2 + 0.5).astype(int)
        out[...] = self.pixels[y : y + len(out), x : x + len(out)]


class RandomTileDataset(Dataset):
    """Tiles centred anywhere on tissue, uniformly by area, as dicts of tensors; item ``i`` is another tile in every epoch.

    ``"image"``
        uint8 (size, size, 3), white outside the slide.
    ``"library"``, ``"field"``
        int64 (), position in :attr:`libraries` and in the fields of the plan.
    ``"centre"``
        float64 (2,), (y, x) in pixels of the slide's finest level.

    Parameters
    ----------
    data
        AnnData that :func:`stimg.pp.plan_tiles` has seen, or a SpatialData with such a table.
    rows
        Observations around which there is tissue: a mask, or positions. None: all.
    avoid
        Observations whose tissue no tile may touch: those of a validation set. Their tiles are then those of a dataset with ``rows`` = ``avoid``
        and the same other arguments, and no pixel is in both.
    size_px
        Side of a tile in pixels, at the plan's µm per pixel times a field that is drawn for each tile. None: that of the plan.
    n_tiles
        Tiles of an epoch. None: as many as cover the tissue ``coverage`` times.
    coverage
        Expected number of tiles of the smallest field that cover a place in an epoch, for ``n_tiles=None``.
    reach_um
        How far tissue reaches around an observation. None: three quarters of the median distance to the next observation, at least a quarter of a tile.
    slides, image
        As for :class:`stimg.data.TileDataset`.
    in_memory
        Whether the tissue is decoded once and kept, reduced to the wanted µm per pixel. None: where that takes at most 2 GB.
    augment
        How tiles are changed; True: turned and flipped, their colours as they are.
    seed
        An item is decided by (seed, epoch, index) and nothing else, whatever the number of workers.
    key, table_key
        Name of the plan; table of a SpatialData.

    Raises
    ------
    KeyError
        Where the plan or an image is missing.
    ValueError
        Where an image is not the one of the plan, or no tissue is left.

    Examples
    --------
    >>> import stimg
    >>> adata = stimg.datasets.simulate(technology="visium", shape=(8, 8), n_genes=20, image=True, rng=0)
    >>> stimg.pp.plan_tiles(adata, tile_um=64, mpp=1.0)
    >>> tiles = stimg.data.RandomTileDataset(adata, n_tiles=100)
    >>> len(tiles), tuple(tiles[0]["image"].shape)
    (100, (64, 64, 3))
    """

    def __init__(
        self,
        data: "AnnData",
        *,
        rows: Any = None,
        avoid: Any = None,
        size_px: int | None = None,
        n_tiles: int | None = None,
        coverage: float = 4.0,
        reach_um: float | None = None,
        slides: Mapping[str, Slide] | None = None,
        image: Any = None,
        in_memory: bool | None = None,
        augment: bool | TileAugmentation = False,
        seed: int = 0,
        key: str = keys.TILES,
        table_key: str = "table",
    ) -> None:
        adata = table_of(data, table_key)
        plan = tile_plan(adata, key)
        self.spec, self.rows = plan.spec, positions(rows, adata.n_obs)
        self.size_px = plan.spec.size_px if size_px is None else validate.whole(size_px, "size_px")
        self.augment = augment if isinstance(augment, TileAugmentation) else TURNS if augment else None
        self.seed, self._epoch = _rng.as_seed(seed), torch.zeros((), dtype=torch.int64).share_memory_()
        if reach_um is not None:
            validate.positive(reach_um, "reach_um", "µm")
        avoided = np.empty(0, dtype=np.int64) if avoid is None else positions(avoid, adata.n_obs)
        found = {name: self._places(plan, name, self.rows, avoided, reach_um) for name in plan.rows}
        found = {name: places for name, places in found.items() if len(places.corners)}
        if not found:
            raise ValueError(
                f"No tissue is left for tiles of {self._largest_um:g} µm around {len(self.rows)} observations, {len(avoided)} of which are to be avoided. "
                "Pass other `rows`, smaller tiles, or a larger `reach_um`."
            )
        self.libraries, self.places = list(found), list(found.values())
        self._mpp = [float(plan.slides[name]["mpp"]) for name in found]
        areas = np.array([places.area * mpp**2 for places, mpp in zip(self.places, self._mpp, strict=True)])
        self.area_um2 = float(areas.sum())
        self._share = np.cumsum(areas) / areas.sum()
        validate.positive(coverage, "coverage")
        wanted = max(1, round(coverage * self.area_um2 / self._smallest_um**2)) if n_tiles is None else n_tiles
        self.n_tiles = validate.whole(wanted, "n_tiles")
        library_key = str(adata.uns[keys.UNS][key]["library_key"])
        own: dict[str, Any] = {"slides": slides, "image": image, "library_key": library_key, "table_key": table_key}
        self._slides = [plan_slide(data, plan, name, **own) for name in found]
        self._pictures = self._reduced(in_memory, own=slides is None)

    @property
    def in_memory(self) -> bool:
        """Whether the tissue is kept in memory, reduced, so that the slides are not read any more."""
        return self._pictures is not None

    @property
    def _smallest_um(self) -> float:
        return self.size_px * self.spec.mpp * min(self.spec.fields)

    @property
    def _largest_um(self) -> float:
        return self.size_px * self.spec.mpp * max(self.spec.fields)

    def _places(self, plan: TilePlan, name: str, rows: np.ndarray, avoided: np.ndarray, reach_um: float | None) -> Places:
        """Return the tissue of a library, without what is to be avoided."""
        members, mpp = plan.rows[name], float(plan.slides[name]["mpp"])
        mine, others = (plan.centres[members[np.isin(members, each)]] for each in (rows, avoided))
        if not len(mine):
            return Places(np.empty((0, 2)), 1.0)
        reach = max(REACH * pitch_of(plan.centres[members]), self._smallest_um / 4 / mpp) if reach_um is None else reach_um / mpp
        if not math.isfinite(reach):
            raise ValueError(f"library {name!r} has one observation, so how far its tissue reaches is not known. Pass `reach_um=`.")
        places = places_around(mine, reach)
        return places.apart_from(places_around(others, reach), self._largest_um / mpp) if len(others) else places

    def _step(self, library: int, field: float) -> float:
        """Return the pixels of the finest level along one pixel of a tile."""
        return self.spec.mpp * field / self._mpp[library]

    def _reduced(self, in_memory: bool | None, *, own: bool) -> list[list[Picture]] | None:
        parts = []
        for i, (places, slide) in enumerate(zip(self.places, self._slides, strict=True)):
            steps = [self._step(i, field) for field in self.spec.fields]
            margin = self._largest_um / self._mpp[i] / 2 + max(steps)
            low, high = places.box()
            parts.append((slide, low - margin, high + margin, steps))
        if in_memory is None:
            in_memory = sum(Picture.nbytes(low, high, step) for _, low, high, steps in parts for step in steps) <= LARGEST
        if not in_memory:
            for slide in self._slides:
                slide.load()
            return None
        out = []
        for slide, low, high, steps in parts:
            slide.level_for(min(steps), upsample=self.spec.upsample)
            out.append([Picture(slide, low, high, step) for step in steps])
            if own:
                slide.close()  # what was decoded whole is not needed any more
        return out

    def release(self) -> None:
        """Give the memory of the reduced tissue back; tiles come from the slides after that, up to half a pixel from where they lay."""
        self._pictures = None

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch whose tiles are read, for all processes that read this dataset."""
        self._epoch.fill_(validate.whole(epoch, "epoch", least=0))

    def __len__(self) -> int:
        return self.n_tiles

    def __getitem__(self, item: Index) -> dict[str, Any]:  # type: ignore[valid-type]
        if isinstance(item, int | np.integer) and not 0 <= item < len(self):
            raise IndexError(f"tile {item} does not exist; there are {len(self)} in an epoch.")
        return {key: value[0] for key, value in self.__getitems__([item]).items()}

    def __getitems__(self, items: "Sequence[int | tuple[int, int]]") -> dict[str, Any]:
        """Return a whole batch; an item is an index, or (epoch, index)."""
        epoch, n = int(self._epoch), len(items)
        image = np.empty((n, self.size_px, self.size_px, 3), dtype=np.uint8)
        library, field, centre = np.empty(n, np.int64), np.empty(n, np.int64), np.empty((n, 2))
        for b, item in enumerate(items):
            number = (epoch, int(item)) if isinstance(item, int | np.integer) else (int(item[0]), int(item[1]))
            draw = _rng.derive(self.seed, *number)
            which, f, at = self._draw(draw)
            self._fill(which, f, at, image[b])
            if self.augment is not None:
                image[b] = augmented(image[b], self.augment, draw)
            library[b], field[b], centre[b] = which, f, at
        arrays = {"image": image, "library": library, "field": field, "centre": centre}
        return {name: torch.from_numpy(values) for name, values in arrays.items()}

    def _draw(self, rng: np.random.Generator) -> tuple[int, int, np.ndarray]:
        """Return a library, a field, and a place."""
        which = min(int(np.searchsorted(self._share, rng.random(), side="right")), len(self.places) - 1)
        field = int(rng.integers(len(self.spec.fields)))
        places = self.places[which]
        return which, field, places.corners[rng.integers(len(places.corners))] + places.side * rng.random(2)

    def _fill(self, which: int, field: int, centre: np.ndarray, out: np.ndarray) -> None:
        if self._pictures is not None:
            self._pictures[which][field].fill(centre, out)
        else:
            side = self.size_px * self._step(which, self.spec.fields[field])
            self._slides[which].fill(centre, side, out, upsample=self.spec.upsample)
