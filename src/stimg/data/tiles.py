"""Tiles of slides as a torch dataset: image, expression, neighbours and crop of each observation."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset

from stimg._core import keys, validate
from stimg._core import rng as _rng
from stimg.data.tables import table_of
from stimg.data.tile_pairs import CentredCrops, LogExpression, nearest_rows, positions
from stimg.data.tile_plan import plan_slide, tile_plan
from stimg.image.augment_tiles import TileAugmentation, augmented, map_density
from stimg.image.slide import Slide

if TYPE_CHECKING:
    from anndata import AnnData

    from stimg.data.tile_stain import StainNormaliser
    from stimg.image.spec import CropSpec

Index = "int | tuple[int, int]"


def collate(items: "Sequence[dict[str, Any]] | dict[str, Any]") -> dict[str, Any]:
    """Return one dict of tensors of items, with a first axis more; a batch is returned as it is. Crops are joined as in :func:`stimg.data.collate`."""
    if isinstance(items, dict):
        return items
    out: dict[str, Any] = {key: torch.stack([item[key] for item in items]) for key in items[0] if key != "crop"}
    if "crop" in items[0]:
        from stimg.data import crops

        out["crop"] = crops.collate([item["crop"] for item in items])
    return out


class TileDataset(Dataset):
    """Tiles of observations with what goes with them, as dicts of tensors.

    ``"image"``
        uint8 (fields, size, size, 3), white outside the slide.
    ``"row"``
        int64 (), row of the AnnData.
    ``"expression"``
        float32 (genes,), log(1 + counts per 10,000); where ``expression`` is given.
    ``"neighbours"``
        int64 (k,), rows of the nearest observations of the same library that are in the dataset too, nearest first, -1 where there are fewer.
    ``"crop"``
        A batch of one crop of the ST image around the observation, see :class:`stimg.data.Batch`; where ``crop`` is given.

    Parameters
    ----------
    data
        AnnData that :func:`stimg.pp.plan_tiles` has seen, or a SpatialData with such a table.
    rows
        Observations: a mask, or positions. None: all.
    slides
        Open slides by library. None: those the plan names are opened again.
    image
        Image of each library, as for :func:`stimg.pp.plan_tiles`; needed where it was an array.
    expression
        Genes, or True for all of ``var_names``.
    layer
        Layer with raw counts; None for ``X``.
    neighbours
        Number of neighbours.
    crop
        Window of the ST image; its channels are the genes of ``expression``, or all. Needs :func:`stimg.pp.rasterize`.
    augment
        Whether to draw stains, turns and flips, or how (:class:`stimg.image.TileAugmentation`). The crop stays as it is.
    stain
        Normaliser of the stains (:func:`stimg.data.fit_stain`), applied before.
    seed
        Where the draws of an item come from: ``(seed, epoch, row)`` and nothing else.
    key
        Name of the plan.
    table_key
        Table of a SpatialData.

    Raises
    ------
    KeyError
        Where the plan, an image, a gene or a raster is missing.
    ValueError
        Where an image is not the one of the plan, or has changed since; where counts are no counts; where rows are not usable.

    Notes
    -----
    Items do not depend on the number of workers or on how they are started: nothing but paths goes to a worker process, which opens files for
    itself. Files that can only be decoded whole (jpg, png) are decoded here, so that forked workers share the pixels; workers that are spawned
    decode them again. Augmentation follows :meth:`set_epoch`, also in workers that stay alive; an index may also be ``(epoch, index)``.

    Examples
    --------
    >>> import stimg
    >>> adata = stimg.datasets.simulate(technology="visium", shape=(8, 8), n_genes=20, image=True, rng=0)
    >>> stimg.pp.plan_tiles(adata, tile_um=56, mpp=0.5, fields=(1, 4))
    >>> tiles = stimg.data.TileDataset(adata, expression=adata.var_names[:5], neighbours=6)
    >>> {name: tuple(value.shape) for name, value in tiles[0].items()}
    {'image': (2, 112, 112, 3), 'row': (), 'expression': (5,), 'neighbours': (6,)}
    >>> loader = torch.utils.data.DataLoader(tiles, batch_size=16, collate_fn=tiles.collate)
    >>> next(iter(loader))["image"].shape
    torch.Size([16, 2, 112, 112, 3])
    """

    collate = staticmethod(collate)

    def __init__(
        self,
        data: "AnnData",
        *,
        rows: Any = None,
        slides: Mapping[str, Slide] | None = None,
        image: Any = None,
        expression: Sequence[str] | bool | None = None,
        layer: str | None = None,
        neighbours: int = 0,
        crop: "CropSpec | None" = None,
        augment: bool | TileAugmentation = False,
        stain: "StainNormaliser | None" = None,
        seed: int = 0,
        key: str = keys.TILES,
        table_key: str = "table",
    ) -> None:
        adata = table_of(data, table_key)
        plan = tile_plan(adata, key)
        library_key = str(adata.uns[keys.UNS][key]["library_key"])
        self.spec, self.rows = plan.spec, positions(rows, adata.n_obs)
        self.augment = augment if isinstance(augment, TileAugmentation) else TileAugmentation() if augment else None
        self.seed, self._epoch = _rng.as_seed(seed), torch.zeros((), dtype=torch.int64).share_memory_()
        self._centres = plan.centres[self.rows]
        validate.finite(self._centres, f"adata.obsm['{keys.tiles_key(key)}']", todo="Run `stimg.pp.plan_tiles` again.")
        which = np.full(adata.n_obs, -1, dtype=np.int64)
        self.libraries: list[str] = []
        self._slides: list[Slide] = []
        self._sides: list[list[float]] = []
        for library, members in plan.rows.items():
            if np.isin(members, self.rows).any():
                which[members] = len(self.libraries)
                self.libraries.append(library)
                slide = plan_slide(data, plan, library, slides=slides, image=image, library_key=library_key, table_key=table_key)
                self._slides.append(slide.load())
                self._sides.append([plan.side_px(library, each) for each in self.spec.fields])
        self._which = which[self.rows]
        self._stain = None if stain is None else [stain.matrix(library) for library in self.libraries]
        wanted = expression is not None and expression is not False
        genes = validate.names(expression) if wanted and expression is not True else list(adata.var_names)  # type: ignore[arg-type]
        self._expression = LogExpression(adata, genes, layer, self.rows) if wanted else None
        k = validate.whole(neighbours, "neighbours", least=0)
        self._neighbours = nearest_rows(adata, self.rows, self._which, k) if k else None
        self._crops = CentredCrops(adata, crop, genes, self.rows, layer=layer, library_key=library_key) if crop is not None else None

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch from which augmentation is drawn, for all processes that read this dataset."""
        self._epoch.fill_(validate.whole(epoch, "epoch", least=0))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item: Index) -> dict[str, Any]:  # type: ignore[valid-type]
        return {key: value if key == "crop" else value[0] for key, value in self.__getitems__([item]).items()}

    def __getitems__(self, items: "Sequence[int | tuple[int, int]]") -> dict[str, Any]:
        """Return a whole batch, which :func:`collate` leaves as it is: each tile is written to its place in it, and nothing is stacked."""
        size, fields = self.spec.size_px, len(self.spec.fields)
        epochs, at = self._resolved(items)
        image = np.empty((len(at), fields, size, size, 3), dtype=np.uint8)
        for b, index in enumerate(at):
            self._read(index, epochs[b], image[b])
        out: dict[str, Any] = {"image": torch.from_numpy(image), "row": torch.from_numpy(self.rows[at])}
        if self._expression is not None:
            out["expression"] = torch.from_numpy(self._expression(at))
        if self._neighbours is not None:
            out["neighbours"] = torch.from_numpy(self._neighbours[at])
        if self._crops is not None:
            out["crop"] = self._crops(at)
        return out

    def _resolved(self, items: "Sequence[int | tuple[int, int]]") -> tuple[list[int], list[int]]:
        epoch = int(self._epoch)
        pairs = [(epoch, int(each)) if isinstance(each, int | np.integer) else (int(each[0]), int(each[1])) for each in items]
        for _, index in pairs:
            if not 0 <= index < len(self):
                raise IndexError(f"tile {index} does not exist; there are {len(self)}.")
        return [epoch for epoch, _ in pairs], [index for _, index in pairs]

    def _read(self, index: int, epoch: int, out: np.ndarray) -> None:
        """Fill ``out``, uint8 (fields, size, size, 3), with the tile of one observation."""
        which = self._which[index]
        for f, side in enumerate(self._sides[which]):
            self._slides[which].fill(self._centres[index], side, out[f], upsample=self.spec.upsample)
        if self._stain is not None:
            out[...] = map_density(out, self._stain[which])
        if self.augment is not None:
            out[...] = augmented(out, self.augment, _rng.derive(self.seed, epoch, int(self.rows[index])))
