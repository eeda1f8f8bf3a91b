"""The stem of CTransPath, a Swin transformer that begins with three convolutions in place of one (Wang et al. 2022)."""

from collections.abc import Mapping

from torch import Tensor, nn


class ConvStem(nn.Module):
    """Two 3 x 3 convolutions of stride 2, each with batch normalisation and ReLU, and a 1 x 1 convolution; then layer normalisation.

    Parameters
    ----------
    n_out
        Width of a token.
    """

    def __init__(self, n_out: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        n_in, width = 3, n_out // 8
        for _ in range(2):
            layers += [nn.Conv2d(n_in, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            n_in, width = width, 2 * width
        self.proj = nn.Sequential(*layers, nn.Conv2d(n_in, n_out, 1))
        self.norm = nn.LayerNorm(n_out)

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens (B, H / 4, W / 4, n_out) of images (B, 3, H, W)."""
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


def convert(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the released weights under the names that timm gives today.

    The release reduces the grid at the end of a stage, timm at the start of the next; index tables and masks are computed, not loaded.
    """
    out = {}
    for name, value in weights.items():
        if name.endswith(("relative_position_index", "attn_mask")):
            continue
        parts = name.split(".")
        if parts[0] == "layers" and parts[2] == "downsample":
            parts[1] = str(int(parts[1]) + 1)
        out[".".join(parts)] = value
    return out


def with_stem(swin: nn.Module) -> nn.Module:
    """Replace the patch embedding of a Swin transformer of timm, and return it.

    Raises
    ------
    ValueError
        Where the network has none of the expected kind.
    """
    old = getattr(swin, "patch_embed", None)
    norm = getattr(old, "norm", None)
    if not isinstance(norm, nn.LayerNorm):
        raise ValueError(f"{type(swin).__name__} has no patch embedding with a layer norm. CTransPath wants a Swin transformer of timm.")
    swin.patch_embed = ConvStem(norm.normalized_shape[0])
    return swin
