"""The frozen parameter set of S2SImputer."""

from dataclasses import dataclass
from typing import Any, Self

from stimg._core import validate
from stimg.image.interpolate import METHODS
from stimg.model._options import Options
from stimg.nn.s2s import CONSISTENCIES, LOSSES

SAMPLINGS = ("auto", "random", "lattice")


@dataclass(frozen=True)
class S2SImputerOptions(Options):
    """What an imputation network is made of, and what it learns from. Changing one field gives another model.

    Parameters
    ----------
    base
        What the cascade starts from: a name of ``stimg.image.interpolate.METHODS``. ``"ensemble"`` is the default of :func:`stimg.tl.impute`, and of a model that
        was trained on several donors ``"donor_ensemble"``; the network learns what is left. ``"nearest"``: the nearest measured value, as in the paper.
        ``"mean"``: the mean of the gene.
    n_shared
        Axes of expression of all training sections that are kriged beside, where the model is trained on several donors. While it trains on a section, its
        donor has no part in them. 0: none.
    count_aware
        Whether a spot of few counts weighs less: in the base, between the networks and in the loss. Otherwise all spots are equally sure.
    standardise
        Whether maps are centred and divided by the spread of the gene. Otherwise they are divided by 10, as in the paper.
    n_stages
        Networks of the cascade, each with weights of its own.
    consistency
        ``"soft"``, ``"hard"`` or ``"none"``: how the state is brought to the measured values between the networks; soft gives way to noise.
    final_consistency
        Whether a measured point is given back as measured; otherwise as the network sees it.
    context
        Whether the networks see what is known beside the state: measured values, masks, depth, distance from data, facts of the gene.
    n_hidden, n_blocks, n_dense, growth
        Of each network: channels; residual dense blocks; their convolutions and the channels that each adds.
    n_attention, n_heads, window, ratio, branch
        Attention blocks behind each dense block; their heads, window in steps, width of the feed-forward network in units of ``n_hidden``, and weight of
        the branch with channel attention (0: none).
    guide_dim
        Width of the linear map of guide features.
    loss
        ``"l2"`` or ``"l1"``.
    score
        ``"hidden"``: the loss is taken at the spots that were left out; ``"all"``: at those that were shown too, as in the paper.
    sampling
        How a sparser map is drawn from the sparse one. ``"random"``: spots by chance; ``"lattice"``: every second row and column, at one of four phases;
        ``"auto"``: lattice in one of four, and where the measured spots are themselves such a lattice in one of two.
    keep
        Least and largest part of the spots that random sampling keeps.
    cycle_weight
        Weight of the second loss of the paper: the map predicted from all measured spots has to agree with them.
    natural
        Pictures that are learned from beside the genes: ``"skimage"`` (photographs that come with scikit-image), a folder, or None.
    natural_fraction
        Part of the maps of a step that are pictures.
    natural_noise
        Whether pictures get as much noise as the genes have, and are to be predicted without it.
    crop
        Side of the training window in steps; smaller slides are read whole.
    n_samples
        Different sparser maps of each library; they are drawn before anything is turned or flipped.
    augment
        Whether maps are turned and flipped, by the symmetries of the lattice.
    turns
        Symmetries over which a prediction is the mean: 1, or as many as the lattice has (8 of a square one, 12 of a hexagonal one) at most.
    """

    base: str = "ensemble"
    n_shared: int = 20
    count_aware: bool = True
    standardise: bool = True
    n_stages: int = 2
    consistency: str = "soft"
    final_consistency: bool = False
    context: bool = True
    n_hidden: int = 16
    n_blocks: int = 1
    n_dense: int = 2
    growth: int = 8
    n_attention: int = 1
    n_heads: int = 1
    window: int = 6
    ratio: float = 2.0
    branch: float = 0.0
    guide_dim: int = 4
    loss: str = "l2"
    score: str = "hidden"
    sampling: str = "auto"
    keep: tuple[float, float] = (0.5, 0.9)
    cycle_weight: float = 0.0
    natural: str | None = "skimage"
    natural_fraction: float = 0.25
    natural_noise: bool = True
    crop: int = 40
    n_samples: int = 24
    augment: bool = True
    turns: int = 4

    def __post_init__(self) -> None:
        if METHODS[self.base].donors:
            raise ValueError(f"base={self.base!r} reads other donors. Pass base='ensemble' and train on sections of several donors.")
        validate.one_of(self.consistency, CONSISTENCIES, "consistency")
        validate.one_of(self.loss, LOSSES, "loss")
        validate.one_of(self.score, ("hidden", "all"), "score")
        validate.one_of(self.sampling, SAMPLINGS, "sampling")
        for name in ("n_stages", "n_hidden", "n_blocks", "n_dense", "growth", "n_heads", "guide_dim", "n_samples", "turns"):
            validate.whole(getattr(self, name), name)
        for name in ("n_attention", "n_shared"):
            validate.whole(getattr(self, name), name, least=0)
        validate.whole(self.window, "window", least=2)
        validate.whole(self.crop, "crop", least=8)
        validate.positive(self.ratio, "ratio")
        if self.n_hidden % self.n_heads:
            raise ValueError(
                f"n_hidden={self.n_hidden} is not a multiple of n_heads={self.n_heads}. Pass another width, or another n_heads."
            )
        for name in ("branch", "cycle_weight"):
            if not validate.number(getattr(self, name), name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)} is not a weight; wanted zero or a positive number.")
        if len(self.keep) != 2 or not 0 < self.keep[0] <= self.keep[1] < 1:
            raise ValueError(f"keep={self.keep}; wanted two parts, 0 < least <= largest < 1.")
        if not isinstance(self.natural, str | None):
            raise TypeError(
                f"natural={self.natural!r} is a {type(self.natural).__name__}; wanted 'skimage', the path of a folder as text, or None."
            )
        if not 0 <= validate.number(self.natural_fraction, "natural_fraction") < 1:
            raise ValueError(f"natural_fraction={self.natural_fraction} is not in [0, 1).")

    @classmethod
    def released(cls, **changes: Any) -> Self:
        """Return the design of the paper's released code: 3.3 million weights, nearest values, hard consistency, absolute errors.

        ``changes`` are as for :meth:`changed`. There one model is trained for each gene (``S2SImputer(adata, ["ERBB2"])``), at lr 1e-4 for 3,000 epochs.
        """
        design: dict[str, Any] = {
            "base": "nearest", "count_aware": False, "standardise": False, "n_stages": 3, "consistency": "hard", "context": False,
            "n_hidden": 32, "n_blocks": 8, "n_dense": 4, "growth": 32, "n_attention": 2, "n_heads": 4, "window": 8, "ratio": 4.0, "branch": 0.01,
            "loss": "l1", "score": "all", "sampling": "lattice", "cycle_weight": 1.0, "natural_fraction": 0.5, "natural_noise": False,
            "crop": 64, "turns": 1,
        }  # fmt: skip
        return cls(**design).changed(**changes)
