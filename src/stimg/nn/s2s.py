"""A cascade of small networks that fills the holes of a map and agrees with what was measured (S2S-ST, arXiv 2507.16886), one for all genes."""

import math
from typing import TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stimg.nn.s2s_layers import AttentionBlock, DataConsistency, DenseBlock, LatticeConv

CONSISTENCIES = ("soft", "hard", "none")
LOSSES = ("l2", "l1")
LEAST_NOISE = 1e-3


class LatticeBatch(TypedDict):
    """Maps of B genes (or pictures) over one lattice of H x W points, in units of each gene's spread about its mean.

    ``measured`` float32 (B, H, W)
        Values at known points, 0 elsewhere.
    ``base`` float32 (B, 3, H, W)
        What the cascade starts from, and two other opinions less the first.
    ``known``, ``inside`` bool (H, W)
        Points with a measured value, and points of the tissue.
    ``depth`` float32 (H, W)
        Relative depth of known points, 1 elsewhere.
    ``far`` float32 (H, W)
        Between 0 (data at hand) and 1 (no data near).
    ``doubt`` float32 (B, H, W)
        Logarithm of the variance of a value that was not seen, as what the cascade starts from has it; 0 where it has none.
    ``facts`` float32 (B, F)
        What is known of each gene; the second is the part of its variance that is noise.
    ``guide`` float32 (D, H, W)
        Features of the points that other data give, NaN where there are none; D may be 0.
    ``target``, ``weight`` float32 (B, H, W)
        What is to be predicted, and how much it counts.
    """

    measured: Tensor
    base: Tensor
    known: Tensor
    inside: Tensor
    depth: Tensor
    far: Tensor
    doubt: Tensor
    facts: Tensor
    guide: Tensor
    target: Tensor
    weight: Tensor


class Stage(nn.Module):
    """One network of the cascade: from the state and what is known to what is added to the state, 0 before training."""

    def __init__(
        self,
        n_in: int,
        n_out: int,
        *,
        n_hidden: int,
        n_blocks: int,
        n_dense: int,
        growth: int,
        n_attention: int,
        n_heads: int,
        window: int,
        ratio: float,
        branch: float,
        n_facts: int,
        hexagonal: bool,
        zero: bool,
    ) -> None:
        super().__init__()
        self.first = LatticeConv(n_in, n_hidden, hexagonal=hexagonal)
        self.second = LatticeConv(n_hidden, n_hidden, hexagonal=hexagonal)
        attention = {"n_heads": n_heads, "window": window, "ratio": ratio, "branch": branch, "hexagonal": hexagonal}
        self.dense = nn.ModuleList(DenseBlock(n_hidden, n_layers=n_dense, growth=growth, hexagonal=hexagonal) for _ in range(n_blocks))
        self.attention = nn.ModuleList(
            AttentionBlock(n_hidden, shift=(i % 2) * (window // 2), **attention)  # type: ignore[arg-type]
            for _ in range(n_blocks)
            for i in range(n_attention)
        )
        self.n_attention = n_attention
        self.join = nn.Conv2d(n_blocks * n_hidden, n_hidden, 1)
        self.after = LatticeConv(n_hidden, n_hidden, hexagonal=hexagonal)
        self.out = LatticeConv(n_hidden, n_out, hexagonal=hexagonal)
        self.modulate = nn.Linear(n_facts, 2 * n_hidden) if n_facts else None
        with torch.no_grad():
            if zero:
                self.out.weight.zero_()
                if self.out.bias is not None:
                    self.out.bias.zero_()
            if self.modulate is not None:
                self.modulate.weight.mul_(0.1)
                self.modulate.bias.zero_()

    def forward(self, x: Tensor, inside: Tensor, facts: Tensor) -> Tensor:
        """Return (B, n_out, H, W), 0 outside the tissue."""
        shallow = self.first(x) * inside
        x = self.second(shallow)
        if self.modulate is not None:
            scale, shift = self.modulate(facts)[:, :, None, None].chunk(2, dim=1)
            x = F.gelu(x * (1.0 + scale) + shift)
        x = x * inside
        found = []
        for i, dense in enumerate(self.dense):
            more = dense(x, inside)
            for block in self.attention[i * self.n_attention : (i + 1) * self.n_attention]:
                more = block(more, inside)
            x = x + more
            found.append(x)
        x = self.after(self.join(torch.cat(found, dim=1)) * inside) * inside
        return self.out(x + shallow) * inside


class S2SModule(nn.Module):
    r"""The cascade: :math:`x_k = \mathrm{DC}(x_{k-1}) + f_k(\mathrm{DC}(x_{k-1}), \ldots)`, from a base :math:`x_0`, with DC a :class:`DataConsistency`.

    Genes are the batch: each map is filled by itself, by weights that all genes share, told apart by a few facts about each.

    Parameters
    ----------
    n_stages
        Networks of the cascade, each with weights of its own.
    n_hidden, n_blocks, n_dense, growth, n_attention, n_heads, window, ratio, branch
        Of each: channels; dense blocks; their convolutions and the channels that these add; attention blocks behind each, every second one shifted
        by half a window; their heads, window in steps, width of the feed-forward network in units of the channels, and weight of the channel branch.
    hexagonal
        Whether the lattice is hexagonal, in axial steps.
    consistency
        ``"soft"``, ``"hard"`` or ``"none"``: what happens between the networks.
    context
        Whether a network sees what is known beside the state: measured values, masks, depth, distance from data, the other bases, facts of the gene.
    n_facts, n_guide, guide_dim
        Width of the facts and of the guide, and of the linear map that the guide goes through.
    loss
        ``"l2"`` or ``"l1"``.

    Notes
    -----
    The variance is that of the base times a factor that a small network gives from the facts and the distance from data. It is learned from the errors of the
    last network alone, and the cascade does not learn from it.
    """

    gate: Tensor
    guide_mean: Tensor
    guide_scale: Tensor

    def __init__(
        self,
        *,
        n_stages: int = 2,
        n_hidden: int = 16,
        n_blocks: int = 1,
        n_dense: int = 2,
        growth: int = 8,
        n_attention: int = 1,
        n_heads: int = 1,
        window: int = 6,
        ratio: float = 2.0,
        branch: float = 0.0,
        hexagonal: bool = False,
        consistency: str = "soft",
        context: bool = True,
        n_facts: int = 4,
        n_guide: int = 0,
        guide_dim: int = 4,
        loss: str = "l2",
    ) -> None:
        super().__init__()
        self.context, self.loss = context, loss
        self.guide = nn.Linear(n_guide, guide_dim) if n_guide else None
        n_in = 1 + (7 if context else 0) + (guide_dim if n_guide else 0)
        sizes = {"n_hidden": n_hidden, "n_blocks": n_blocks, "n_dense": n_dense, "growth": growth, "n_attention": n_attention}
        sizes |= {"n_heads": n_heads, "window": window, "n_facts": n_facts if context else 0}
        self.stages = nn.ModuleList(
            Stage(n_in, 1, ratio=ratio, branch=branch, hexagonal=hexagonal, zero=context, **sizes) for _ in range(n_stages)
        )
        self.agree = nn.ModuleList(DataConsistency(consistency) for _ in range(n_stages))
        self.spread = nn.Sequential(nn.Linear(n_facts + 1, 8), nn.GELU(), nn.Linear(8, 1))
        self.register_buffer("gate", torch.ones(()))
        self.register_buffer("guide_mean", torch.zeros(n_guide))
        self.register_buffer("guide_scale", torch.ones(n_guide))

    def cascade(self, batch: LatticeBatch) -> list[Tensor]:
        """Return the map after each network, (B, H, W) each, 0 outside the tissue."""
        inside = batch["inside"].to(batch["base"].dtype)
        noise = (batch["facts"][:, 1].clamp_min(LEAST_NOISE)[:, None, None]) / batch["depth"]
        start = batch["base"][:, 0] * inside
        more = self._context(batch, inside)
        state, maps = start, []
        for agree, stage in zip(self.agree, self.stages, strict=True):
            state = agree(state, batch["measured"], batch["known"], noise)
            state = state + stage(torch.cat([state[:, None], *more], dim=1), inside, batch["facts"])[:, 0]
            maps.append(state)
        maps[-1] = torch.lerp(start, maps[-1].to(start.dtype), self.gate.to(start.dtype))
        return maps

    def _context(self, batch: LatticeBatch, inside: Tensor) -> list[Tensor]:
        """Return what every network sees beside the state, (B, c, H, W) each."""
        n, parts = len(batch["base"]), []
        if self.context:
            known = batch["known"].to(inside.dtype)
            shared = torch.stack([known, inside, known * torch.log(batch["depth"]), batch["far"] * inside])
            parts += [batch["measured"][:, None] * known, shared.expand(n, -1, -1, -1), batch["base"][:, 1:] * inside]
        if self.guide is not None:
            scaled = (batch["guide"].permute(1, 2, 0) - self.guide_mean) / self.guide_scale
            projected = self.guide(torch.nan_to_num(scaled, nan=0.0)).permute(2, 0, 1) * inside
            parts.append(projected.expand(n, -1, -1, -1))
        return parts

    def log_variance(self, batch: LatticeBatch) -> Tensor:
        """Return the logarithm of the variance of a value that was not seen, (B, H, W)."""
        facts = batch["facts"][:, None, None].expand(-1, *batch["far"].shape, -1)
        far = batch["far"][None, :, :, None].expand(len(facts), -1, -1, -1)
        return (batch["doubt"] + self.spread(torch.cat([facts, far], dim=-1))[..., 0].float()).clamp(-6.0, 4.0)

    def forward(self, batch: LatticeBatch) -> dict[str, Tensor]:
        """Return ``loss``, ``error`` of the last network, and ``base_error`` of what the cascade started from, weighted means over the targets."""
        maps = self.cascade(batch)
        weight, target = batch["weight"], batch["target"]
        total = weight.sum().clamp_min(1e-12)
        n = len(maps)
        share = sum(k / n for k in range(1, n + 1))

        def error(found: Tensor) -> Tensor:
            away = found.float() - target
            return (weight * (away.abs() if self.loss == "l1" else away.square())).sum() / total

        errors = [error(each) for each in maps]
        fit = torch.stack([k / n / share * each for k, each in enumerate(errors, start=1)]).sum()
        log_variance = self.log_variance(batch)
        square = (maps[-1].detach().float() - target).square()
        likelihood = (weight * 0.5 * (log_variance + square * torch.exp(-log_variance))).sum() / total
        return {"loss": fit + 0.1 * likelihood, "error": errors[-1], "base_error": error(batch["base"][:, 0] * batch["inside"])}

    @torch.no_grad()
    def predict(self, batch: LatticeBatch, *, final: bool = False) -> tuple[Tensor, Tensor]:
        """Return the last map and the standard deviation of a value that was not seen, float32 (B, H, W); ``final``: known points as measured."""
        found = self.cascade(batch)[-1].float()
        if final:
            found = torch.where(batch["known"], batch["measured"], found)
        return found, torch.exp(0.5 * self.log_variance(batch))


def n_weights(module: nn.Module) -> int:
    """Return the number of weights of a network."""
    return sum(math.prod(p.shape) for p in module.parameters())
