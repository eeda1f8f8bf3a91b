"""Stain normalisation of tiles, fitted by squidpy on training tiles alone. Loads no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from stimg._core import keys, validate
from stimg._core import rng as _rng
from stimg._core.ledger import Seen
from stimg._core.optional import need
from stimg.data.ledger import seen_of
from stimg.data.tile_plan import TilePlan, plan_slide, tile_plan
from stimg.image.augment_tiles import map_density
from stimg.image.colour import OPTICAL_DENSITY
from stimg.image.slide import Slide

if TYPE_CHECKING:
    from anndata import AnnData

METHODS = ("macenko", "vahadane")
TISSUE = 0.15
"""Optical density, the mean of the three colours, from which a pixel is tissue."""
_PIXELS = 1024


@dataclass(frozen=True)
class StainNormaliser:
    """Brings the stains of each slide to the colours of the training slides; :func:`fit_stain` makes one.

    Parameters
    ----------
    method
        How stains were found: ``"macenko"`` or ``"vahadane"``.
    target
        Colours of haematoxylin, eosin and residual as columns, in optical density, 3 x 3: those of the training tiles.
    sources
        The same of each library.
    seen
        What the target was fitted on.
    """

    method: str
    target: np.ndarray
    sources: Mapping[str, np.ndarray]
    seen: tuple[Seen, ...] = field(default=(), repr=False)

    @property
    def ledger(self) -> tuple[Seen, ...]:
        """The records of what the target has seen, for :func:`stimg.bench.check_leakage`."""
        return self.seen

    def matrix(self, library: str) -> np.ndarray:
        """Return the 3 x 3 map of optical densities of a library's tiles."""
        if library not in self.sources:
            raise KeyError(
                f"the stain normaliser knows no library {library!r} (found {sorted(self.sources)}). Fit it on an object that has it."
            )
        return self.target @ np.linalg.pinv(self.sources[library])

    def apply(self, tiles: np.ndarray, library: str) -> np.ndarray:
        """Return tiles of a library, uint8 (..., 3), in the colours of the target; white stays white."""
        return map_density(tiles, self.matrix(library))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; :meth:`from_dict` is the inverse."""
        return {
            "method": self.method,
            "target": np.asarray(self.target),
            "sources": {name: np.asarray(each) for name, each in self.sources.items()},
            "seen": {str(i): each.to_dict() for i, each in enumerate(self.seen)},
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "StainNormaliser":
        """Return the normaliser of :meth:`to_dict`'s values."""
        sources = {str(name): np.asarray(each, dtype=np.float64) for name, each in values["sources"].items()}
        seen = tuple(Seen.from_dict(values["seen"][i]) for i in sorted(values["seen"], key=int))
        return cls(str(values["method"]), np.asarray(values["target"], dtype=np.float64), sources, seen)


def fit_stain(
    adata: "AnnData",
    *,
    rows: Any,
    method: str = "macenko",
    slides: Mapping[str, Slide] | None = None,
    image: Any = None,
    n_tiles: int = 200,
    key: str = keys.TILES,
    rng: _rng.RngLike = 0,
) -> StainNormaliser:
    """Return a normaliser whose target is fitted on the tiles of training observations, by ``squidpy.experimental.im.fit_stain_reference``.

    Parameters
    ----------
    adata
        Observations with planned tiles (:func:`stimg.pp.plan_tiles`).
    rows
        Training observations: a mask, or positions.
    method
        ``"macenko"`` or ``"vahadane"``.
    slides, image
        Where the tiles are read from; see :class:`stimg.data.TileDataset`.
    n_tiles
        Tiles that are drawn for the target, and for each library, at most.
    key
        Name of the plan.
    rng
        Seed of that draw.

    Raises
    ------
    ImportError
        Where this squidpy has no ``fit_stain_reference``.
    ValueError
        For no training observation, or tiles without tissue or without two stains.

    Notes
    -----
    A tile's densities are unmixed with the stains of its own library, and mixed again with those of the target: the colours of the stains
    change, their amounts stay. The stains of a library are fitted on its training tiles, or where it has none on its own tiles: as on any new
    slide, no other data are looked at. The ledger holds the observations of the target.

    Examples
    --------
    >>> import stimg
    >>> from stimg.data import fit_stain
    >>> adata = stimg.datasets.simulate(technology="visium", shape=(8, 8), n_genes=20, image=True, rng=0)
    >>> stimg.pp.plan_tiles(adata, tile_um=56, mpp=0.5)
    >>> stain = fit_stain(adata, rows=adata.obs["array_row"] < 4, n_tiles=20)
    >>> len(stain.ledger[0]), stain.target.shape
    (32, (3, 3))
    """
    validate.one_of(method, METHODS, "method")
    validate.whole(n_tiles, "n_tiles")
    plan, generator = tile_plan(adata, key), _rng.as_generator(rng)
    library_key = str(adata.uns[keys.UNS][key]["library_key"])
    mask = np.zeros(adata.n_obs, dtype=bool)
    mask[np.asarray(rows)] = True
    if not mask.any():
        raise ValueError("rows names no observation; wanted the training observations.")
    pixels: dict[str, np.ndarray] = {}
    for library, members in plan.rows.items():
        own = members[mask[members]] if mask[members].any() else members
        chosen = generator.permutation(own)[:n_tiles]
        slide = plan_slide(adata, plan, library, slides=slides, image=image, library_key=library_key)
        pixels[library] = _drawn(slide, plan, library, chosen, generator)
    training = [library for library, members in plan.rows.items() if mask[members].any()]
    share = max(1, n_tiles // len(training))
    target = _stains(np.concatenate([pixels[library][:share] for library in training]), method, "the training tiles")
    sources = {library: _stains(each, method, f"library {library!r}") for library, each in pixels.items()}
    seen = seen_of(adata, who=f"{method} stains", kind="stain target", rows=np.flatnonzero(mask), genes=(), library_key=library_key)
    return StainNormaliser(method, target, sources, (seen,))


def _drawn(slide: Slide, plan: TilePlan, library: str, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return 1024 pixels of each tile, uint8 (tiles, 1024, 3)."""
    spec, out = plan.spec, np.empty((len(rows), _PIXELS, 3), dtype=np.uint8)
    side = plan.side_px(library, spec.fields[0])
    for i, row in enumerate(rows):
        tile, _ = slide.tile(plan.centres[row], side, spec.size_px, upsample=spec.upsample)
        out[i] = tile.reshape(-1, 3)[rng.integers(spec.size_px**2, size=_PIXELS)]
    return out


def _stains(pixels: np.ndarray, method: str, what: str) -> np.ndarray:
    """Return the stain matrix, 3 x 3, that squidpy finds in pixels (n, m, 3)."""
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel, Labels2DModel

    im = need("squidpy.experimental.im", purpose="stain normalisation")
    if not hasattr(im, "fit_stain_reference"):
        raise ImportError("squidpy.experimental.im has no fit_stain_reference in this version. Run `pip install 'squidpy>=1.8.2'`.")
    tissue = OPTICAL_DENSITY[pixels].mean(axis=-1) > TISSUE
    if tissue.sum() < _PIXELS:
        raise ValueError(
            f"{what} show tissue in {int(tissue.sum())} of {tissue.size} pixels; wanted at least {_PIXELS}. Choose observations on tissue."
        )
    image = Image2DModel.parse(np.ascontiguousarray(np.moveaxis(pixels, -1, 0)), dims=("c", "y", "x"), c_coords=["r", "g", "b"])
    labels = Labels2DModel.parse(tissue.astype(np.int32), dims=("y", "x"))
    sdata = SpatialData(images={"tiles": image}, labels={"tiles_tissue": labels})
    try:
        found = im.fit_stain_reference(sdata, "tiles", method=method, tissue_mask_key="tiles_tissue")
    except RuntimeError as err:  # squidpy's StainFittingError
        raise ValueError(
            f"the stains of {what} cannot be told apart ({err}). Is it an H&E image? Choose other observations, or leave out `stain=`."
        ) from err
    return np.asarray(found.stain_matrix, dtype=np.float64)
