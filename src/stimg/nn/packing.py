"""From a batch of crops to a batch of spots: empty lattice points are left out, so that nothing is computed for them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def eagerly(function: Callable[P, R]) -> Callable[P, R]:
    """Return ``function`` such that ``torch.compile`` runs it as it is: sizes that depend on the data leave nothing to gain.

    ``torch.compiler.disable`` does the same, but imports the compiler (seconds) where it is applied; here that waits until it is needed.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling():
            return torch.compiler.disable(function)(*args, **kwargs)  # type: ignore[no-any-return]
        return function(*args, **kwargs)

    return call


@dataclass
class Packed:
    """Crops as sequences of their occupied spots; B crops, T spots in the fullest crop, C channels, N non-zero values.

    Attributes
    ----------
    cell, channel, value
        The non-zero counts: position ``b * T + t`` of the spot, id of the gene in the vocabulary, count; each (N,).
    column
        Position of the gene in its crop's panel, int64 (N,).
    seen
        Which of the T positions hold a spot, bool (B, T).
    depth
        Library size of the spots, float32 (B, T), 0 where there is none.
    yx
        Lattice points relative to the window's centre in units of the pitch, float32 (B, T, 2).
    panel
        Gene ids of the channels, int64 (B, C), -1 where a crop has fewer.
    where
        Position ``b * T + t`` of every pixel, int64 (B, H, W), -1 where nothing was seen.
    library
        Index of the crop's library, int64 (B,).
    """

    cell: Tensor
    channel: Tensor
    value: Tensor
    column: Tensor
    seen: Tensor
    depth: Tensor
    yx: Tensor
    panel: Tensor
    where: Tensor
    library: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B, T, C)."""
        return self.seen.shape[0], self.seen.shape[1], self.panel.shape[1]

    def dense(self) -> Tensor:
        """Return the counts as float32 (B, T, C)."""
        n_crops, n_spots, n_channels = self.shape
        flat = self.value.new_zeros(n_crops * n_spots * n_channels)
        flat[self.cell * n_channels + self.column] = self.value
        return flat.view(n_crops, n_spots, n_channels)

    def to_grid(self, values: Tensor, fill: float = 0.0) -> Tensor:
        """Return (B, T, K) values as (B, H, W, K), ``fill`` where nothing was seen."""
        flat = values.reshape(-1, values.shape[-1])
        grid = flat[self.where.clamp(min=0)]
        return torch.where(self.where[..., None] >= 0, grid, torch.as_tensor(fill, dtype=grid.dtype, device=grid.device))


@eagerly
def pack(batch: Mapping[str, Tensor]) -> Packed:
    """Return the spots of ``batch`` (:class:`stimg.data.Batch`) without the empty lattice points."""
    seen, panel = batch["seen"], batch["panel"]
    n_crops = seen.shape[0]
    flat = seen.reshape(n_crops, -1)
    order = flat.long().cumsum(1) - 1
    width = max(1, int(flat.sum(1).max())) if n_crops else 1
    where = torch.where(flat, order + torch.arange(n_crops, device=flat.device)[:, None] * width, torch.full_like(order, -1))
    source = flat.nonzero(as_tuple=True)
    target = where[source]

    def take(values: Tensor) -> Tensor:
        values = values.reshape(n_crops, flat.shape[1], *values.shape[3:])
        out = values.new_zeros(n_crops * width, *values.shape[2:])
        out[target] = values[source]
        return out.view(n_crops, width, *values.shape[2:])

    n_panel = panel.shape[1]
    top = int(panel.max()) + 2 if panel.numel() else 1
    crop_of = torch.div(batch["pixel"], flat.shape[1], rounding_mode="floor")
    offset = torch.arange(n_crops, device=panel.device)[:, None] * (top + 1)
    ranked = torch.where(panel >= 0, panel, torch.full_like(panel, top)) + offset
    column = torch.searchsorted(ranked.reshape(-1), batch["channel"] + crop_of * (top + 1)) - crop_of * n_panel
    return Packed(
        cell=where.reshape(-1)[batch["pixel"]],
        channel=batch["channel"],
        value=batch["value"],
        column=column,
        seen=take(seen),
        depth=take(batch["depth"]),
        yx=take(batch["yx"]),
        panel=panel,
        where=where.view(seen.shape),
        library=batch["library"],
    )
