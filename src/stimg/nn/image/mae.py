"""A masked autoencoder of image tiles: patches hidden at random, and predicted from the rest."""

import math

import torch
from torch import Tensor, nn

from stimg._core import validate
from stimg.nn.transformer import SpatialTransformer

SPACES = ("od", "rgb")
POOLING = ("mean", "mean_sd")
TURNS = (1, 4)
OCTAVE = 10000.0
"""Longest wavelength of the positions over the shortest, as in transformers of text."""
FLOOR = 1e-2
"""Added to the variance of a patch before it divides, in units of the variance of all pixels: a plain patch is noise otherwise."""


def patchify(images: Tensor, patch: int) -> Tensor:
    """Return the patches of images (B, H, W, C) as (B, H / patch * W / patch, patch * patch * C): row by row, in each row by row, channels last."""
    n, height, width, channels = images.shape
    rows, columns = height // patch, width // patch
    cut = images.reshape(n, rows, patch, columns, patch, channels)
    return cut.permute(0, 1, 3, 2, 4, 5).reshape(n, rows * columns, patch * patch * channels)


def unpatchify(patches: Tensor, patch: int, shape: tuple[int, int]) -> Tensor:
    """Return images (B, H, W, C) of ``shape`` (H, W) from their patches: the inverse of :func:`patchify`."""
    rows, columns = shape[0] // patch, shape[1] // patch
    cut = patches.reshape(len(patches), rows, columns, patch, patch, -1)
    return cut.permute(0, 1, 3, 2, 4, 5).reshape(len(patches), *shape, cut.shape[-1])


def grid_points(rows: int, columns: int, device: torch.device | None = None) -> Tensor:
    """Return (y, x) of the patches about the middle of their tile, in patches, float32 (rows * columns, 2)."""
    y = torch.arange(rows, device=device) - (rows - 1) / 2
    x = torch.arange(columns, device=device) - (columns - 1) / 2
    return torch.stack([y[:, None].expand(rows, columns), x.expand(rows, columns)], dim=-1).reshape(-1, 2)


def sin_cos(points: Tensor, dim: int) -> Tensor:
    r"""Return the positions of points (T, 2) as float32 (T, dim): sines and cosines of y, then those of x.

    With :math:`m` = ``dim / 4`` and :math:`\omega_k = 10000^{-k / m}`: :math:`\sin(\omega_k y), \cos(\omega_k y), \sin(\omega_k x), \cos(\omega_k x)`, each for
    k = 0 .. m - 1 (Vaswani et al. 2017, arXiv 1706.03762, in two dimensions).
    """
    quarter = dim // 4
    omega = OCTAVE ** (-torch.arange(quarter, device=points.device, dtype=torch.float64) / quarter)
    angle = points.double()[..., None] * omega
    return torch.cat([angle.sin(), angle.cos()], dim=-1).flatten(-2).float()


def random_keep(n: int, n_patches: int, ratio: float, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """Return the patches that stay visible in each of ``n`` tiles, ascending, int64 (n, n_patches - floor(ratio * n_patches)), drawn uniformly."""
    hidden = math.floor(ratio * n_patches + 1e-6)  # 0.29 * 100 is 28.999999999999996
    order = torch.rand(n, n_patches, device=device, generator=generator).argsort(dim=1)
    return order[:, hidden:].sort(dim=1).values


def _all_seen(yx: Tensor) -> Tensor:
    return torch.ones(yx.shape[:2], dtype=torch.bool, device=yx.device)


class MAEModule(nn.Module):
    r"""Masked autoencoder of uint8 tiles (He et al. 2022, arXiv 2111.06377), small enough for a processor.

    A tile is cut into patches. The encoder reads those that are visible, and no place-holders for the others: its cost is that of a quarter of
    the tile. The decoder, narrower and shallower, gets its output with a learned vector at each hidden patch, and predicts the pixels there.
    Embeddings come from the encoder with every patch visible.

    Parameters
    ----------
    patch
        Side of a patch in pixels.
    n_latent, n_layers, n_heads, n_hidden
        Of the encoder; ``n_hidden`` None: four times ``n_latent``.
    n_decoder, n_decoder_layers
        Width and depth of the decoder.
    dropout
        Of both.
    mask_ratio
        Part of the patches that is hidden in training.
    space
        ``"od"``: optical density, in which a stronger stain is a factor; ``"rgb"``: values as they are. Both are standardised by the channel.
    patch_norm
        Whether the target of a patch is relative to its own mean and spread.
    pooling
        ``"mean"`` of the patches, or ``"mean_sd"``: their mean beside their standard deviation.
    turns
        1, or 4: embeddings are the mean over the four quarter turns of a tile, and do not depend on how it is turned.

    Notes
    -----
    Blocks are :class:`stimg.nn.transformer.SpatialBlock`: attention falls off with distance by a learned slope, beside the sine-cosine positions that are added to the
    tokens. So tiles of another size than those of the training can be read.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        *,
        patch: int = 8,
        n_latent: int = 128,
        n_layers: int = 4,
        n_heads: int = 4,
        n_hidden: int | None = None,
        n_decoder: int = 64,
        n_decoder_layers: int = 1,
        dropout: float = 0.0,
        mask_ratio: float = 0.75,
        space: str = "od",
        patch_norm: bool = True,
        pooling: str = "mean_sd",
        turns: int = 4,
    ) -> None:
        super().__init__()
        validate.one_of(space, SPACES, "space")
        validate.one_of(pooling, POOLING, "pooling")
        validate.one_of(turns, TURNS, "turns")
        for name, width in (("n_latent", n_latent), ("n_decoder", n_decoder)):
            if width % 4:
                raise ValueError(f"{name}={width}; wanted a multiple of 4, for positions are sines and cosines along two axes.")
        self.patch, self.space, self.patch_norm, self.pooling, self.turns = patch, space, patch_norm, pooling, turns
        self.mask_ratio, self.n_latent, self.n_decoder = mask_ratio, n_latent, n_decoder
        n_pixels = 3 * patch * patch
        self.embed_patch = nn.Linear(n_pixels, n_latent)
        self.encoder = SpatialTransformer(n_latent, n_layers, n_heads, n_hidden or 4 * n_latent, dropout)
        self.norm = nn.LayerNorm(n_latent)
        self.narrow = nn.Linear(n_latent, n_decoder)
        self.hidden_token = nn.Parameter(0.02 * torch.randn(n_decoder))
        self.decoder = SpatialTransformer(n_decoder, n_decoder_layers, n_heads, 4 * n_decoder, dropout)
        self.decoder_norm = nn.LayerNorm(n_decoder)
        self.predict_patch = nn.Linear(n_decoder, n_pixels)
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("scale", torch.ones(3))

    @property
    def n_features(self) -> int:
        """Width of the embedding of a tile."""
        return self.n_latent * (2 if self.pooling == "mean_sd" else 1)

    def colours(self, tiles: Tensor) -> Tensor:
        """Return values 0 .. 255 (B, H, W, 3), of any type, in the space of the model, float32; not standardised."""
        values = tiles.float()
        return -torch.log10((values + 1) / 256) if self.space == "od" else values / 255

    def standardise(self, colours: Tensor) -> Tensor:
        """Return colours (B, H, W, 3) less their mean over the training tiles, in units of their spread there."""
        return (colours - self.mean) / self.scale

    def patches(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the patches (B, T, 3 patch²) of standardised images (B, H, W, 3), and where they lie, (T, 2)."""
        if x.shape[1] % self.patch or x.shape[2] % self.patch:
            raise ValueError(f"tiles have {x.shape[1]} x {x.shape[2]} px; wanted multiples of {self.patch}, the side of a patch.")
        return patchify(x, self.patch), grid_points(x.shape[1] // self.patch, x.shape[2] // self.patch, x.device)

    def encode(self, patches: Tensor, points: Tensor, keep: Tensor | None = None) -> Tensor:
        """Return tokens (B, K, n_latent) of the patches ``keep`` (B, K); None: of all."""
        where = sin_cos(points, self.n_latent)
        if keep is None:
            x, yx = self.embed_patch(patches) + where, points[None]  # distances are the same in every tile: one matrix for all
        else:
            patches = patches.gather(1, keep[..., None].expand(-1, -1, patches.shape[2]))
            x, yx = self.embed_patch(patches) + where[keep], points[keep]
        return self.norm(self.encoder(x, yx, _all_seen(yx)))

    def decode(self, tokens: Tensor, points: Tensor, keep: Tensor) -> Tensor:
        """Return predicted patches (B, T, 3 patch²) from the tokens of the visible ones, (B, K, n_latent)."""
        visible = self.narrow(tokens)
        x = self.hidden_token.to(visible.dtype).expand(len(tokens), len(points), self.n_decoder)
        x = x.scatter(1, keep[..., None].expand(-1, -1, self.n_decoder), visible)
        x = self.decoder(x + sin_cos(points, self.n_decoder), points[None], _all_seen(points[None]))
        return self.predict_patch(self.decoder_norm(x))

    def target(self, patches: Tensor) -> Tensor:
        """Return what is predicted of each patch: its standardised pixels, or these relative to the patch's own mean and spread."""
        if not self.patch_norm:
            return patches
        mean, spread = self._level(patches)
        return ((patches.unflatten(-1, (-1, 3)) - mean) / spread).flatten(-2)

    @staticmethod
    def _level(patches: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and spread of each channel of each patch, (B, T, 1, 3)."""
        by_channel = patches.unflatten(-1, (-1, 3))
        mean = by_channel.mean(dim=-2, keepdim=True)
        return mean, ((by_channel - mean).square().mean(dim=-2, keepdim=True) + FLOOR).sqrt()

    def forward(self, tiles: Tensor, keep: Tensor | None = None) -> dict[str, Tensor]:
        """Return ``loss`` of uint8 tiles (B, H, W, 3): mean squared error over the pixels of the hidden patches; ``keep`` (B, K) None: drawn."""
        patches, points = self.patches(self.standardise(self.colours(tiles)))
        if keep is None:
            keep = random_keep(len(patches), patches.shape[1], self.mask_ratio, patches.device)
        predicted = self.decode(self.encode(patches, points, keep), points, keep)
        hidden = torch.ones(patches.shape[:2], dtype=torch.bool, device=patches.device).scatter(1, keep, value=False)
        error = (predicted.float() - self.target(patches)).square().mean(dim=-1)
        return {"loss": error[hidden].mean()}

    def tokens(self, tiles: Tensor) -> Tensor:
        """Return the tokens (B, T, n_latent) of values 0 .. 255 (B, H, W, 3), every patch visible."""
        return self.encode(*self.patches(self.standardise(self.colours(tiles))))

    def embed(self, tiles: Tensor) -> Tensor:
        """Return the embedding (B, n_features) of values 0 .. 255 (B, H, W, 3)."""
        pooled = [self._pool(self.tokens(torch.rot90(tiles, k, dims=(1, 2)))) for k in range(self.turns)]
        return torch.stack(pooled).mean(dim=0)

    def _pool(self, tokens: Tensor) -> Tensor:
        mean = tokens.mean(dim=1)
        return mean if self.pooling == "mean" else torch.cat([mean, tokens.std(dim=1, unbiased=False)], dim=1)

    @torch.inference_mode()
    def reconstruct(self, tiles: Tensor, keep: Tensor) -> Tensor:
        """Return uint8 tiles (B, H, W, 3) whose patches outside ``keep`` (B, K) are predictions from those inside.

        Where ``patch_norm`` is set, a prediction knows nothing of a patch's mean and spread: they are taken from the patch itself, for a picture alone.
        """
        patches, points = self.patches(self.standardise(self.colours(tiles)))
        predicted = self.decode(self.encode(patches, points, keep), points, keep)
        if self.patch_norm:
            mean, spread = self._level(patches)
            predicted = (predicted.unflatten(-1, (-1, 3)) * spread + mean).flatten(-2)
        hidden = torch.ones(patches.shape[:2], dtype=torch.bool, device=patches.device).scatter(1, keep, value=False)
        mixed = torch.where(hidden[..., None], predicted, patches)
        colours = unpatchify(mixed, self.patch, (tiles.shape[1], tiles.shape[2])) * self.scale + self.mean
        values = 256 * torch.pow(10.0, -colours) - 1 if self.space == "od" else 255 * colours
        return values.round().clamp(0, 255).to(torch.uint8)


class MAEFeatures(nn.Module):
    """The encoder of a :class:`MAEModule` as :class:`stimg.nn.image.ImageEncoder` calls it: images (B, 3, H, W), values / 255, to features (B, n_features)."""

    def __init__(self, module: MAEModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        """Return the embedding of each tile; gradients flow."""
        return self.module.embed(255 * x.permute(0, 2, 3, 1))
