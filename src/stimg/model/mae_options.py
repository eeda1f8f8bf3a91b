"""The frozen parameter set of ImageMAE."""

from dataclasses import dataclass

from stimg._core import validate
from stimg.model._options import Options
from stimg.nn.image.mae import POOLING, SPACES, TURNS


@dataclass(frozen=True)
class ImageMAEOptions(Options):
    """What a masked autoencoder of image tiles is made of. Changing one field gives another model.

    Parameters
    ----------
    size_px
        Side of the training tiles in pixels, at the µm per pixel of the plan. Tiles of other sizes can be embedded, if ``patch`` divides their side.
    patch
        Side of a patch in pixels; at 1 µm per pixel 8 is about a nucleus.
    n_latent
        Width of the encoder.
    n_layers, n_heads, n_hidden, dropout
        Of the encoder; ``n_hidden`` None is four times ``n_latent``.
    n_decoder, n_decoder_layers
        Width and depth of the decoder, which training alone uses.
    mask_ratio
        Part of the patches that is hidden in training; the paper's is 0.75.
    space
        ``"od"``: pixels as optical density, in which a stronger stain is a factor; ``"rgb"``: as they are.
    patch_norm
        Whether a hidden patch is predicted relative to its own mean and spread: its structure and not its colour. Colour is read all the same.
    pooling
        ``"mean"`` of the patches of a tile, or ``"mean_sd"``: their mean beside their standard deviation, twice as wide.
    turns
        1, or 4: an embedding is the mean over the four quarter turns of a tile, so that it does not depend on how the tissue lies, at four
        times the cost. It changes no weight.
    """

    size_px: int = 64
    patch: int = 8
    n_latent: int = 128
    n_layers: int = 4
    n_heads: int = 4
    n_hidden: int | None = None
    dropout: float = 0.0
    n_decoder: int = 64
    n_decoder_layers: int = 1
    mask_ratio: float = 0.75
    space: str = "od"
    patch_norm: bool = True
    pooling: str = "mean_sd"
    turns: int = 4

    def __post_init__(self) -> None:
        validate.one_of(self.space, SPACES, "space")
        validate.one_of(self.pooling, POOLING, "pooling")
        validate.one_of(self.turns, TURNS, "turns")
        for name in ("size_px", "patch", "n_latent", "n_layers", "n_heads", "n_decoder"):
            validate.whole(getattr(self, name), name)
        validate.whole(self.n_decoder_layers, "n_decoder_layers", least=0)
        if self.n_hidden is not None:
            validate.whole(self.n_hidden, "n_hidden")
        for name in ("n_latent", "n_decoder"):
            width = getattr(self, name)
            if width % self.n_heads:
                raise ValueError(f"{name}={width} is not a multiple of n_heads={self.n_heads}. Pass another width, or another n_heads.")
            if width % 4:
                raise ValueError(f"{name}={width} is not a multiple of 4, as positions need it: sines and cosines along two axes.")
        if self.size_px % self.patch:
            below = self.size_px // self.patch * self.patch
            raise ValueError(
                f"size_px={self.size_px} is not a multiple of patch={self.patch}; take size_px={max(below, self.patch)} or size_px={below + self.patch}."
            )
        n_patches = (self.size_px // self.patch) ** 2
        hidden = int(validate.number(self.mask_ratio, "mask_ratio") * n_patches + 1e-6)
        if not 1 <= hidden < n_patches:
            raise ValueError(
                f"mask_ratio={self.mask_ratio} hides {hidden} of {n_patches} patches; wanted at least one hidden and one visible."
            )
        if not 0 <= validate.number(self.dropout, "dropout") < 1:
            raise ValueError(f"dropout={self.dropout} is not in [0, 1).")
