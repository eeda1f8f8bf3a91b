"""What must be known of an encoder before its features are used: width, scale, normalisation, licence. Cards hold facts and load nothing."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stimg._core import validate
from stimg._core.registry import Registry

IMAGE_LOADERS = ("stimg", "package", "timm", "transformers", "open_clip")
"""Who builds the network: a trained model of stimg, a package that holds weights, timm, transformers, or the package of CONCH."""
TOLERANCE = 0.05
"""Largest relative difference between the scale of tiles and that of a card."""
POOLING = ("network", "class", "class_mean")
"""``"network"``: what the network returns; ``"class"``: the first token; ``"class_mean"``: the first token beside the mean of the patch tokens."""


def _number(value: Any, name: str) -> None:
    if value is not None:
        validate.positive(value, name)


def _whole(value: Any, name: str) -> None:
    if value is not None:
        validate.whole(value, name)


def _texts(card: Any, *names: str) -> None:
    for name in names:
        if not isinstance(getattr(card, name), str) or not getattr(card, name).strip():
            raise ValueError(f"{type(card).__name__} {card.name!r}: {name}={getattr(card, name)!r}; wanted a text that is not empty.")


def _flags(card: Any, *names: str) -> None:
    for name in names:
        if not isinstance(getattr(card, name), bool):
            raise TypeError(f"{type(card).__name__} {card.name!r}: {name}={getattr(card, name)!r}; wanted True or False.")


@dataclass(frozen=True, kw_only=True)
class ImageCard:
    """One encoder of image tiles.

    Parameters
    ----------
    name
        Under which it is loaded; its features go to ``obsm["X_<name>"]``.
    title
        As its authors write it.
    n_features
        Width of the embedding of one tile; None where a trained model says it.
    size_px
        Side of the tiles that the weights were trained on; None where a trained model says it.
    mpp
        µm per pixel that the weights expect; None for natural images, and where none is stated: any scale is accepted then.
    mean, std
        Red, green and blue of values / 255, as the weights expect them.
    licence
        SPDX identifier, or the name of the licence of the weights.
    commercial
        Whether that licence allows commercial use. False where it is in doubt.
    gated
        Whether the licence has to be accepted on the hub, with an account, before the weights can be downloaded.
    loader
        One of :data:`IMAGE_LOADERS`.
    repo
        Identifier on the hub; None where the weights are not there.
    parameters_m
        Millions of parameters.
    citation
        Work to cite.
    pooling
        One of :data:`POOLING`.
    other_mpp
        Further scales that the weights were trained on.
    multiple_of
        Tiles of any side that is a multiple of this number of pixels can be embedded; None: of ``size_px`` alone.
    extra
        What the loader needs beside: architecture, arguments, number of tokens before the patches.
    notes
        What to know before use, and what could not be confirmed.

    Raises
    ------
    TypeError, ValueError
        For a value that is not of its kind.

    Examples
    --------
    >>> import stimg
    >>> card = stimg.zoo.get("uni")
    >>> card.n_features, card.size_px, card.mpp, card.gated
    (1024, 224, 0.5, True)
    """

    name: str
    title: str
    n_features: int | None
    size_px: int | None
    mpp: float | None
    mean: tuple[float, float, float] | None
    std: tuple[float, float, float] | None
    licence: str
    commercial: bool
    gated: bool
    loader: str
    citation: str
    repo: str | None = None
    parameters_m: float | None = None
    pooling: str = "network"
    other_mpp: tuple[float, ...] = ()
    multiple_of: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)
    notes: str = ""

    def __post_init__(self) -> None:
        _texts(self, "name", "title", "licence", "citation")
        _flags(self, "commercial", "gated")
        validate.one_of(self.loader, IMAGE_LOADERS, "loader")
        validate.one_of(self.pooling, POOLING, "pooling")
        for name in ("n_features", "size_px", "multiple_of"):
            _whole(getattr(self, name), name)
        for name in ("mpp", "parameters_m"):
            _number(getattr(self, name), name)
        for value in self.other_mpp:
            _number(value, "other_mpp")
        own = self.loader == "stimg"
        for name in ("n_features", "size_px", "mean", "std"):
            if getattr(self, name) is None and not own:
                raise ValueError(f"ImageCard {self.name!r}: {name} is None; only a model trained with stimg may leave it open.")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if values is not None and (len(values) != 3 or not all(0 <= v <= 1 for v in values) or (name == "std" and min(values) == 0)):
                raise ValueError(f"ImageCard {self.name!r}: {name}={values!r}; wanted three numbers of 0 .. 1, those of std above 0.")
        if self.loader in ("timm", "transformers", "open_clip") and self.repo is None and "architecture" not in self.extra:
            raise ValueError(f"ImageCard {self.name!r} has neither repo nor extra['architecture']; one of them says what to build.")

    def accepts_mpp(self, mpp: float, *, tolerance: float = TOLERANCE) -> bool:
        """Return whether tiles of this scale are within a relative ``tolerance`` of one that the weights expect, or none is stated."""
        return self.mpp is None or any(abs(mpp - wanted) <= tolerance * wanted for wanted in (self.mpp, *self.other_mpp))

    def accepts_size(self, size_px: int) -> bool:
        """Return whether square tiles of this side in pixels can be embedded."""
        if self.size_px is None or size_px == self.size_px:
            return True
        return self.multiple_of is not None and size_px > 0 and size_px % self.multiple_of == 0


@dataclass(frozen=True, kw_only=True)
class GeneCard:
    """One encoder of expression.

    Parameters
    ----------
    name
        Under which it is used; its embedding goes to ``obsm["X_genes_<name>"]``.
    title
        As its authors write it.
    n_features
        Width of the embedding of one observation; None where the caller chooses it.
    unit
        What it reads, such as raw counts or log(1 + counts per 10,000).
    licence
        SPDX identifier, or the name of the licence of the weights or the code.
    commercial
        Whether that licence allows commercial use. False where it is in doubt.
    gated
        Whether the licence has to be accepted before the weights can be downloaded.
    loader
        Package that fits or loads it, such as ``"stimg"`` or ``"scvi"``.
    citation
        Work to cite.
    fitted
        Whether it is fitted on the caller's observations, so that its ledger lists them.
    repo
        Identifier on the hub; None where the weights are not there, or none are needed.
    parameters_m
        Millions of parameters.
    n_genes
        Genes of its vocabulary; None where it takes the genes of the object.
    extra
        What the loader needs beside.
    notes
        What to know before use, and what could not be confirmed.

    Raises
    ------
    TypeError, ValueError
        For a value that is not of its kind.
    """

    name: str
    title: str
    n_features: int | None
    unit: str
    licence: str
    commercial: bool
    gated: bool
    loader: str
    citation: str
    fitted: bool = True
    repo: str | None = None
    parameters_m: float | None = None
    n_genes: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)
    notes: str = ""

    def __post_init__(self) -> None:
        _texts(self, "name", "title", "unit", "licence", "loader", "citation")
        _flags(self, "commercial", "gated", "fitted")
        for name in ("n_features", "n_genes"):
            _whole(getattr(self, name), name)
        _number(self.parameters_m, "parameters_m")


IMAGE: Registry[ImageCard] = Registry("image encoder")
"""Filled by ``stimg.zoo.image``; a user adds a card with ``stimg.zoo.IMAGE.add(card.name, card)``."""
GENE: Registry[GeneCard] = Registry("gene encoder")
"""Filled by ``stimg.zoo.gene``."""
