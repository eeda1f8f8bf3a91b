"""Layers that read a lattice with holes: convolution over neighbours, dense blocks, attention within windows, and agreement with what was measured.

All maps are (B, C, H, W) over one lattice of points, of which ``inside`` (H, W) says which belong to the tissue. Nothing outside is ever read. A
hexagonal lattice is kept in axial steps (row, and column along the lattice line), where the six neighbours of a point are six of the eight around it.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

OUTSIDE = -1e4
"""Logit of what must not be attended to; finite, so that a window without tissue gives no NaN."""


class LatticeConv(nn.Conv2d):
    """3 x 3 convolution of a lattice; of a hexagonal one, over a point and its six neighbours.

    Parameters
    ----------
    n_in, n_out
        Channels.
    hexagonal
        Whether the lattice is hexagonal, in axial steps: the corners (-1, -1) and (1, 1) are then no neighbours, and their weights are 0.
    """

    allowed: Tensor

    def __init__(self, n_in: int, n_out: int, *, hexagonal: bool) -> None:
        super().__init__(n_in, n_out, 3, padding=1)
        allowed = torch.ones(3, 3)
        if hexagonal:
            allowed[0, 0] = allowed[2, 2] = 0.0
        self.hexagonal = hexagonal
        self.register_buffer("allowed", allowed, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, n_out, H, W)."""
        weight = self.weight * self.allowed if self.hexagonal else self.weight
        return F.conv2d(x, weight, self.bias, padding=1)


class DenseBlock(nn.Module):
    """Dense block (Zhang et al. 2018, CVPR): each convolution reads all maps before it; a 1 x 1 convolution joins them. Its input is added later.

    Parameters
    ----------
    dim
        Channels in and out.
    n_layers, growth
        Convolutions, and the channels that each adds.
    hexagonal
        As for :class:`LatticeConv`.
    """

    def __init__(self, dim: int, *, n_layers: int, growth: int, hexagonal: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(LatticeConv(dim + i * growth, growth, hexagonal=hexagonal) for i in range(n_layers))
        self.join = nn.Conv2d(dim + n_layers * growth, dim, 1)

    def forward(self, x: Tensor, inside: Tensor) -> Tensor:
        """Return (B, dim, H, W), 0 outside the tissue; ``x`` must be 0 there."""
        maps = [x]
        for layer in self.layers:
            maps.append(F.relu(layer(torch.cat(maps, dim=1))) * inside)
        return self.join(torch.cat(maps, dim=1)) * inside


class ChannelBranch(nn.Module):
    """Convolutions whose channels are weighted by their means over the tissue, as beside the attention of HAT (Chen et al. 2023, CVPR)."""

    def __init__(self, dim: int, *, compress: int, squeeze: int, hexagonal: bool) -> None:
        super().__init__()
        narrow, few = max(1, dim // compress), max(1, dim // squeeze)
        self.down, self.up = LatticeConv(dim, narrow, hexagonal=hexagonal), LatticeConv(narrow, dim, hexagonal=hexagonal)
        self.first, self.second = nn.Linear(dim, few), nn.Linear(few, dim)

    def forward(self, x: Tensor, inside: Tensor) -> Tensor:
        """Return (B, dim, H, W)."""
        x = self.up(F.gelu(self.down(x)) * inside) * inside
        mean = x.sum(dim=(2, 3)) / inside.sum().clamp_min(1)
        return x * torch.sigmoid(self.second(F.relu(self.first(mean))))[:, :, None, None]


class WindowAttention(nn.Module):
    r"""Multi-head attention among the tissue points of each window of the lattice (Liu et al. 2021, ICCV).

    The logit of head k between points i and j of a window is :math:`q_i \cdot k_j / \sqrt{d} + b_k(r_i - r_j)` with a learned b for each difference of
    steps. Points outside the tissue are not attended to. Windows are laid from ``shift`` points before the first row and column; what hangs over the
    edge is empty, so that, unlike in the original, no window joins opposite edges.

    Parameters
    ----------
    dim, n_heads
        Channels, shared among the heads.
    window
        Side of the windows in steps.
    shift
        Where the first window starts, 0 .. window - 1.
    """

    offset: Tensor

    def __init__(self, dim: int, *, n_heads: int, window: int, shift: int = 0) -> None:
        super().__init__()
        if dim % n_heads:
            raise ValueError(f"{dim} channels cannot be shared among {n_heads} heads; wanted a multiple.")
        self.n_heads, self.window, self.shift = n_heads, window, shift
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.bias = nn.Parameter(torch.zeros(n_heads, (2 * window - 1) ** 2))
        at = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        apart = at[:, :, None] - at[:, None] + window - 1
        self.register_buffer("offset", apart[0] * (2 * window - 1) + apart[1], persistent=False)

    def windows(self, x: Tensor) -> Tensor:
        """Return the windows of (B, H, W, C) as (B, n, window², C); what hangs over is 0."""
        size, (height, width) = self.window, x.shape[1:3]
        below, right = (-(height + self.shift)) % size, (-(width + self.shift)) % size
        x = F.pad(x, (0, 0, self.shift, right, self.shift, below))
        rows, cols = x.shape[1] // size, x.shape[2] // size
        x = x.view(x.shape[0], rows, size, cols, size, x.shape[3]).transpose(2, 3)
        return x.reshape(x.shape[0], rows * cols, size * size, x.shape[5])

    def unwindowed(self, x: Tensor, height: int, width: int) -> Tensor:
        """Return the inverse of :meth:`windows`, (B, height, width, C)."""
        size, n = self.window, len(x)
        rows, cols = -(-(height + self.shift) // size), -(-(width + self.shift) // size)
        x = x.view(n, rows, cols, size, size, -1).transpose(2, 3).reshape(n, rows * size, cols * size, -1)
        return x[:, self.shift : self.shift + height, self.shift : self.shift + width]

    def forward(self, x: Tensor, inside: Tensor) -> Tensor:
        """Return (B, H, W, dim) from x (B, H, W, dim) and inside (H, W); what is returned outside means nothing."""
        n, height, width, dim = x.shape
        here = self.windows(inside[None, :, :, None].to(x.dtype))[0, :, :, 0] > 0
        used = torch.nonzero(here.any(dim=1))[:, 0]
        tokens = self.windows(x)
        size = self.window**2
        q, k, v = self.qkv(tokens[:, used]).view(n, len(used), size, 3, self.n_heads, dim // self.n_heads).permute(3, 0, 1, 4, 2, 5)
        bias = self.bias[:, self.offset] + (~here[used]).to(self.bias.dtype)[:, None, None] * OUTSIDE
        folded = (n, len(used) * self.n_heads, size, dim // self.n_heads)
        # written out: with a learned bias this is as fast as the fused function, which on a CPU has no fast path for it
        logits = q.reshape(folded) @ k.reshape(folded).transpose(-1, -2) * (dim // self.n_heads) ** -0.5
        share = torch.softmax(logits + bias.reshape(1, -1, size, size).to(logits.dtype), dim=-1)
        mixed = share.to(v.dtype) @ v.reshape(folded)
        mixed = self.out(mixed.view(n, len(used), self.n_heads, size, -1).transpose(2, 3).reshape(n, len(used), size, dim))
        out = mixed.new_zeros(n, tokens.shape[1], size, dim).index_copy(1, used, mixed)
        return self.unwindowed(out, height, width)


class AttentionBlock(nn.Module):
    """Attention within windows, then a feed-forward network, each added to its input; beside the attention a :class:`ChannelBranch` where asked for.

    Parameters
    ----------
    dim, n_heads, window, shift
        Of :class:`WindowAttention`.
    ratio
        Width of the feed-forward network in units of ``dim``.
    branch
        Weight of the channel branch; 0 for none.
    hexagonal
        As for :class:`LatticeConv`.
    """

    def __init__(self, dim: int, *, n_heads: int, window: int, shift: int, ratio: float, branch: float, hexagonal: bool) -> None:
        super().__init__()
        self.norm_attention, self.norm_feed = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = WindowAttention(dim, n_heads=n_heads, window=window, shift=shift)
        hidden = max(1, int(ratio * dim))
        self.feed = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
        self.weight = branch
        self.branch = ChannelBranch(dim, compress=4, squeeze=8, hexagonal=hexagonal) if branch else None

    def forward(self, x: Tensor, inside: Tensor) -> Tensor:
        """Return (B, dim, H, W), 0 outside the tissue."""
        tokens = x.permute(0, 2, 3, 1)
        normed = self.norm_attention(tokens)
        added = self.attention(normed, inside)
        if self.branch is not None:
            channels = normed.permute(0, 3, 1, 2) * inside
            added = added + self.weight * self.branch(channels, inside.to(x.dtype)).permute(0, 2, 3, 1)
        tokens = tokens + added
        tokens = tokens + self.feed(self.norm_feed(tokens))
        return tokens.permute(0, 3, 1, 2) * inside


class DataConsistency(nn.Module):
    r"""Bring a map to what was measured: :math:`x + M \, \frac{v}{1 + v} \, (y - x)`, with M the measured points and y their values.

    Parameters
    ----------
    kind
        ``"hard"``: v is infinite, the measured values replace the map. ``"soft"``: v is learned, and proportional to how much more of a spot's
        variance is signal than noise: :math:`v = s \, d / \rho`, d the relative depth of the spot and :math:`\rho` the part of the gene's variance that
        is noise at typical depth. ``"none"``: the map is left as it is.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        if kind == "soft":
            self.raw = nn.Parameter(torch.tensor(math.log(math.expm1(0.3))))

    def forward(self, x: Tensor, measured: Tensor, known: Tensor, noise: Tensor) -> Tensor:
        r"""Return (B, H, W) from maps and measured values (B, H, W), known (H, W) bool and the noise :math:`\rho / d` (B, H, W), positive."""
        if self.kind == "none":
            return x
        if self.kind == "hard":
            return torch.where(known, measured, x)
        ratio = F.softplus(self.raw) / noise
        return x + known * (ratio / (1.0 + ratio)) * (measured - x)
