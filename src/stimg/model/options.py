"""The frozen parameter set of STMAE."""

from dataclasses import dataclass

from stimg._core import validate
from stimg.image.spec import CropSpec
from stimg.model._options import Options

VARIANTS = ("intended", "released")


@dataclass(frozen=True)
class STMAEOptions(Options):
    """What a masked autoencoder of ST images is made of. Changing one field gives another model.

    Parameters
    ----------
    crop_size
        (rows, columns) of the crops in lattice steps; the paper's is 16 x 16.
    crop_um
        Side of the crops in µm instead of ``crop_size``; turned into lattice steps with the raster of the first library.
    min_occupied, coverage
        Of :class:`stimg.image.CropSpec`: fewest occupied lattice points of a crop, and how often an epoch covers a lattice point.
    rule
        How the channels of a training crop are chosen: ``"all"``, ``"weighted"`` (the paper's variance-weighted draw), ``"uniform"``,
        ``"variance"``; ``"auto"`` takes all genes where there are at most 2,048, else the paper's rule.
    n_channels
        Channels of a crop for the rules that draw; the paper's number is 512.
    mask_ratios, mask_scope
        Of :class:`stimg.nn.MaskSpec`.
    n_latent
        Width of the embedding.
    n_layers, n_decoder_layers, n_heads, n_hidden, dropout
        Of the transformers; ``n_hidden`` None is twice ``n_latent``. The paper's code has 6 and 2 layers of width 256.
    token
        ``"linear"`` or ``"mlp"``, see :class:`stimg.nn.GeneTokens`; ``"mlp"`` goes with ``centre=False``.
    likelihood
        ``"mse"`` on log values, ``"poisson"`` or ``"nb"`` on counts.
    centre
        Whether values are read and predicted relative to each library's gene means, which takes library-wide offsets out. Only with linear tokens.
    smooth_weight
        Weight of the spatial regulariser; the paper's is 0.001.
    init
        ``"pca"``: training starts at the shrunken PCA reconstruction of the training observations. ``"random"``: at random weights.
    n_axes
        Number of principal axes for ``init="pca"``.
    sparse_above
        Channels of a crop above which the channel axis is never densified.
    variant
        ``"intended"``, or ``"released"``: the network of the paper's public code, for comparison (:class:`stimg.nn.ReleasedMAE`). It binds
        crop size and channel number, reads the fields up to ``dropout`` alone, and cannot complete panels.
    """

    crop_size: tuple[int, int] = (16, 16)
    crop_um: float | None = None
    min_occupied: int | None = None
    coverage: float = 2.0
    rule: str = "auto"
    n_channels: int = 512
    mask_ratios: tuple[float, ...] = (0.25, 0.5, 0.75)
    mask_scope: str = "mixed"
    n_latent: int = 64
    n_layers: int = 2
    n_decoder_layers: int = 1
    n_heads: int = 4
    n_hidden: int | None = None
    dropout: float = 0.1
    token: str = "linear"
    likelihood: str = "mse"
    centre: bool = True
    smooth_weight: float = 0.0
    init: str = "pca"
    n_axes: int = 16
    sparse_above: int = 2048
    variant: str = "intended"

    def __post_init__(self) -> None:
        validate.one_of(self.rule, ("auto", "all", "weighted", "uniform", "variance"), "rule")
        validate.one_of(self.mask_scope, ("cell", "crop", "mixed"), "mask_scope")
        validate.one_of(self.token, ("linear", "mlp"), "token")
        validate.one_of(self.likelihood, ("mse", "poisson", "nb"), "likelihood")
        validate.one_of(self.init, ("pca", "random"), "init")
        validate.one_of(self.variant, VARIANTS, "variant")
        for name in ("crop_size", "mask_ratios"):
            if isinstance(getattr(self, name), (int, float)):
                raise TypeError(f"{name}={getattr(self, name)!r} is one number; wanted several, such as {getattr(STMAEOptions, name)}.")
            object.__setattr__(self, name, tuple(getattr(self, name)))  # a list would make two equal models differ
        for name in ("n_channels", "n_latent", "n_heads", "n_axes", "n_layers"):
            validate.whole(getattr(self, name), name)
        for name in ("n_decoder_layers", "sparse_above"):
            validate.whole(getattr(self, name), name, least=0)
        if self.n_hidden is not None:
            validate.whole(self.n_hidden, "n_hidden")
        if not self.smooth_weight >= 0:
            raise ValueError(f"smooth_weight={self.smooth_weight} is not a weight; wanted zero or a positive number.")
        if self.n_latent % self.n_heads:
            raise ValueError(
                f"n_latent={self.n_latent} is not a multiple of n_heads={self.n_heads}. "
                f"Take n_latent={max(1, self.n_latent // self.n_heads) * self.n_heads} or n_latent={(self.n_latent // self.n_heads + 1) * self.n_heads}, or another n_heads."
            )
        if self.centre and self.token != "linear":
            raise ValueError(
                f"token={self.token!r} is not linear, so its values cannot be centred, but centre={self.centre!r}. "
                "Pass `centre=False`, or token='linear'."
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} is not in [0, 1).")
        CropSpec(self.crop_size, self.min_occupied, self.coverage)
