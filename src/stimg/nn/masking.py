"""Which values of a crop are hidden from the encoder."""

from dataclasses import dataclass

import torch
from torch import Tensor

from stimg.nn.packing import Packed, eagerly

SCOPES = ("cell", "crop", "mixed")


@dataclass(frozen=True)
class MaskSpec:
    """How values are hidden.

    Parameters
    ----------
    ratios
        Fractions of the channels to hide; one is drawn uniformly for every spot (``"cell"``) or crop (``"crop"``). The paper's are .25, .5, .75.
    scope
        ``"cell"``: every spot hides channels of its own, as in the paper, so that a hidden gene is often visible next door. ``"crop"``: a
        hidden gene is hidden in the whole crop, as in panel completion. ``"mixed"``: every crop is of one or the other kind, by chance.
    """

    ratios: tuple[float, ...] = (0.25, 0.5, 0.75)
    scope: str = "mixed"

    def __post_init__(self) -> None:
        if self.scope not in SCOPES:
            raise ValueError(f"mask scope {self.scope!r} is not known; wanted one of {SCOPES}.")
        if not self.ratios or not all(0 < r < 1 for r in self.ratios):
            raise ValueError(
                f"mask ratios {self.ratios} are not all between 0 and 1; wanted fractions of the channels, such as (0.25, 0.5, 0.75)."
            )


@dataclass
class Visibility:
    """What the encoder sees of a packed batch.

    Attributes
    ----------
    entry
        Which of the non-zero values, bool (N,).
    mask
        Which channels of every spot, bool (B, T, C) or (B, 1, C). None on the sparse path where spots hide channels of their own: then every
        value, zeros included, is visible with probability ``1 - ratio``.
    ratio
        Fraction of the channels hidden, float32 (B, T) or (B, 1).
    """

    entry: Tensor
    mask: Tensor | None
    ratio: Tensor

    def weigh(self, packed: Packed, weight: Tensor) -> Tensor:
        """Return the sum of the per-gene ``weight`` (n_genes,) over what is visible, (B, T) or (B, 1); expected, where ``mask`` is None."""
        per_channel = panel_values(packed.panel, weight)
        if self.mask is None:
            return per_channel.sum(-1)[:, None] * (1.0 - self.ratio)
        return torch.einsum("btc,bc->bt", self.mask.to(per_channel.dtype), per_channel)


def panel_values(panel: Tensor, per_gene: Tensor) -> Tensor:
    """Return ``per_gene`` (n_genes,) or (B, n_genes) of every channel (B, C), 0 for padding."""
    index = panel.clamp(min=0)
    found = per_gene[index] if per_gene.ndim == 1 else per_gene.gather(1, index)
    return found.masked_fill(panel < 0, 0.0)


def see_all(packed: Packed) -> Visibility:
    """Return the visibility of inference: every measured channel of the panel."""
    mask = (packed.panel >= 0)[:, None]
    return Visibility(torch.ones_like(packed.cell, dtype=torch.bool), mask, packed.depth.new_zeros(packed.shape[0], 1))


@eagerly
def draw_mask(packed: Packed, spec: MaskSpec, *, dense: bool, generator: torch.Generator | None = None) -> Visibility:
    """Return a random visibility.

    In a spot or crop with C channels and ratio r, ``floor(r C)`` are hidden, drawn uniformly: measured zeros are hidden too. Padding
    channels are never visible. Without ``dense``, spots with channels of their own hide each value independently with probability r, so that
    nothing of size (B, T, C) is made, and ``"mixed"`` draws one kind for the whole batch.
    """
    n_crops, n_spots, n_channels = packed.shape
    device = packed.seen.device
    real = packed.panel >= 0
    ratios = torch.tensor(spec.ratios, device=device)

    def draw_ratio(n_rows: int) -> Tensor:
        return ratios[torch.randint(len(ratios), (n_crops, n_rows), device=device, generator=generator)]

    def visible(ratio: Tensor) -> Tensor:
        key = torch.rand(n_crops, ratio.shape[1], n_channels, device=device, generator=generator)
        key = key.masked_fill(~real[:, None], 2.0)
        # 0.29 x 100 is 28.999998 in single precision
        count = (ratio * real.sum(1)[:, None] + 1e-3).floor().long()
        late = torch.arange(n_channels, device=device) >= count[..., None]
        return torch.zeros_like(late).scatter_(-1, key.argsort(dim=-1), late) & real[:, None]

    crop_of = torch.div(packed.cell, n_spots, rounding_mode="floor")
    spot_of = packed.cell - crop_of * n_spots
    scope = spec.scope
    if scope == "mixed" and not dense:
        scope = "crop" if bool(torch.rand(1, device=device, generator=generator) < 0.5) else "cell"
    if scope == "crop":
        ratio = draw_ratio(1)
        mask = visible(ratio)
        return Visibility(mask[crop_of, 0, packed.column], mask, ratio)
    whole = torch.rand(n_crops, device=device, generator=generator) < (0.5 if scope == "mixed" else -1.0)
    ratio = torch.where(whole[:, None], draw_ratio(1), draw_ratio(n_spots))
    if dense:
        mask = visible(ratio)
        if scope == "mixed":
            mask = torch.where(whole[:, None, None], mask[:, :1], mask)
        return Visibility(mask[crop_of, spot_of, packed.column], mask, ratio)
    keep = torch.rand(packed.cell.shape, device=device, generator=generator) >= ratio[crop_of, spot_of]
    return Visibility(keep, None, ratio)
