"""Image encoders: uint8 tiles in, features out, whatever package the network comes from."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from stimg.zoo.card import ImageCard


class ImageEncoder(nn.Module):
    """A network of tiles with its card: normalises as the weights expect, and pools as the card says.

    Parameters
    ----------
    card
        What is known of it; width, size, mean and standard deviation must be stated.
    network
        Takes (B, 3, H, W); returns features (B, n_features), or tokens (B, tokens, width) for the poolings ``"class"`` and ``"class_mean"``.
    source
        Where the weights came from, for records.

    Raises
    ------
    ValueError
        Where the card leaves open what is needed.

    Examples
    --------
    >>> import torch, stimg
    >>> from stimg.nn.image import EfficientNetLite0, ImageEncoder
    >>> encoder = ImageEncoder(stimg.zoo.get("efficientnet_lite0"), EfficientNetLite0()).eval()
    >>> encoder(torch.zeros(2, 64, 64, 3, dtype=torch.uint8)).shape
    torch.Size([2, 1280])
    """

    offset: Tensor
    scale: Tensor

    def __init__(self, card: "ImageCard", network: nn.Module, *, source: str = "") -> None:
        super().__init__()
        if card.n_features is None or card.mean is None or card.std is None:
            raise ValueError(f"The card {card.name!r} leaves width, mean or std open. State them with `dataclasses.replace`.")
        self.card, self.network, self.source = card, network, source
        self.n_features = card.n_features
        # not saved with the weights: the card holds them
        self.register_buffer("offset", torch.tensor([255 * v for v in card.mean], dtype=torch.float64).float(), persistent=False)
        self.register_buffer("scale", torch.tensor([255 * v for v in card.std], dtype=torch.float64).float(), persistent=False)

    def prepare(self, tiles: Tensor) -> Tensor:
        """Return uint8 tiles (B, H, W, 3) as float32 (B, 3, H, W), (value - 255 mean) / (255 std), in channels-last memory.

        Raises
        ------
        TypeError
            For anything but uint8: floats would have to say their range.
        ValueError
            For another shape, or a side that the weights do not take.
        """
        if tiles.dtype != torch.uint8:
            raise TypeError(f"tiles are {tiles.dtype}; wanted uint8, 0 to 255.")
        if tiles.ndim != 4 or tiles.shape[3] != 3:
            raise ValueError(
                f"tiles have shape {tuple(tiles.shape)}; wanted (B, H, W, 3). Leave out an alpha channel, and stack single tiles."
            )
        for side in set(tiles.shape[1:3]):
            if not self.card.accepts_size(side):
                what = f"{self.card.size_px} px" + (f" or a multiple of {self.card.multiple_of}" if self.card.multiple_of else "")
                raise ValueError(f"tiles have a side of {side} px; {self.card.title} takes {what}. Plan tiles of that size.")
        return ((tiles.float() - self.offset) / self.scale).permute(0, 3, 1, 2)

    def features(self, x: Tensor) -> Tensor:
        """Return features (B, n_features) of normalised images (B, 3, H, W); gradients flow.

        Raises
        ------
        ValueError
            Where the network returns something else than the card says.
        """
        out = self.network(x)
        pooling = self.card.pooling
        if pooling != "network":
            if out.ndim != 3:
                raise ValueError(
                    f"{self.card.title} returned {tuple(out.shape)}; wanted tokens (B, tokens, width) for the pooling {pooling!r}. "
                    "Build it without pooling of its own."
                )
            first, patches = out[:, 0], out[:, int(self.card.extra.get("prefix_tokens", 1)) :]
            out = first if pooling == "class" else torch.cat([first, patches.mean(dim=1)], dim=1)
        if out.ndim != 2 or out.shape[1] != self.n_features:
            raise ValueError(
                f"{self.card.title} returned {tuple(out.shape)}; its card says (B, {self.n_features}). The weights are of another network."
            )
        return out

    def forward(self, tiles: Tensor) -> Tensor:
        """Return float32 features (B, n_features) of uint8 tiles (B, H, W, 3)."""
        return self.features(self.prepare(tiles)).float()

    def weights_hash(self) -> str:
        """Return 16 hexadecimal digits that depend on the names, shapes and values of all weights."""
        digest = hashlib.sha256()
        for name, value in self.network.state_dict().items():
            flat = value.detach().cpu().contiguous()
            digest.update(f"{name}\0{flat.dtype}\0{tuple(flat.shape)}\0".encode())
            digest.update(flat.reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()[:16]


def load_image_encoder(name: "str | ImageCard", *, path: str | Path | None = None, offline: bool | None = None) -> ImageEncoder:
    """Return an image encoder with its weights, in evaluation mode, on the CPU.

    Parameters
    ----------
    name
        As in :func:`stimg.zoo.list`, or a card of your own.
    path
        Weights on this machine: a file (``.safetensors``, ``.bin``, ``.pth``), or a folder as the hub keeps it. None: the installed package, or
        the hub and its local cache.
    offline
        True: nothing is downloaded, weights come from the local cache of the hub. None: as the environment variable ``HF_HUB_OFFLINE`` says.

    Raises
    ------
    ImportError
        Where the package that builds the network is missing; the message says how to install it.
    FileNotFoundError
        Where ``path`` does not exist, or the weights are not in the cache and cannot be downloaded.
    PermissionError
        Where the weights are gated and access was not granted; the message says what to do.
    ValueError
        For an unknown name, or weights of another network.

    Examples
    --------
    >>> from stimg.nn.image import load_image_encoder
    >>> encoder = load_image_encoder("efficientnet_lite0")  # doctest: +SKIP
    """
    from stimg.nn.image.loaders import load_network
    from stimg.zoo.image import IMAGE

    card = IMAGE[name] if isinstance(name, str) else name
    network, source = load_network(card, path=None if path is None else Path(path), offline=offline)
    return ImageEncoder(card, network, source=source).eval()
