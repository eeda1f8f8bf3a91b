"""A transformer over spots whose attention falls off with distance on the lattice."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DistanceAttention(nn.Module):
    r"""Multi-head attention with a learned penalty on distance.

    The logit of head k between spots i and j is :math:`q_i \cdot k_j / \sqrt{d_k} - \mathrm{softplus}(a_k) \, r_{ij} + s_k [i = j]`, with
    :math:`r_{ij}` their distance in units of the pitch. It depends on distances alone, so the layer does not change when the tissue is moved,
    turned or mirrored, and a crop of any size can be read.
    """

    def __init__(self, dim: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        if dim % n_heads:
            raise ValueError(f"{dim} hidden units cannot be shared among {n_heads} heads; wanted a multiple.")
        self.n_heads, self.dropout = n_heads, dropout
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.slope = nn.Parameter(torch.linspace(-2.0, 1.0, n_heads))
        self.own = nn.Parameter(torch.zeros(n_heads))

    def forward(self, x: Tensor, distance: Tensor, seen: Tensor) -> Tensor:
        """Return (B, T, d) from x (B, T, d), distance (B, T, T) and seen (B, T)."""
        n_crops, n_spots, dim = x.shape
        q, k, v = self.qkv(x).view(n_crops, n_spots, 3, self.n_heads, dim // self.n_heads).permute(2, 0, 3, 1, 4)
        bias = -F.softplus(self.slope)[:, None, None] * distance[:, None]
        bias = bias + self.own[:, None, None] * torch.eye(n_spots, device=x.device, dtype=x.dtype)
        bias = bias.masked_fill(~seen[:, None, None], -1e4).to(q.dtype)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=self.dropout if self.training else 0.0)
        return self.out(mixed.transpose(1, 2).reshape(n_crops, n_spots, dim))


class SpatialBlock(nn.Module):
    """Pre-norm transformer block: attention over spots, then a feed-forward network, each added to its input."""

    def __init__(self, dim: int, n_heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm_attention, self.norm_feed = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = DistanceAttention(dim, n_heads, dropout)
        self.feed = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, dim))
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, distance: Tensor, seen: Tensor) -> Tensor:
        """Return (B, T, d)."""
        x = x + self.drop(self.attention(self.norm_attention(x), distance, seen))
        return x + self.drop(self.feed(self.norm_feed(x)))

    def damp(self, factor: float) -> None:
        """Scale what the block adds to its input, so that a new block starts near the identity."""
        last = self.feed[-1]
        assert isinstance(last, nn.Linear)
        with torch.no_grad():
            for layer in (self.attention.out, last):
                layer.weight.mul_(factor)
                layer.bias.zero_()


class SpatialTransformer(nn.Module):
    """A stack of :class:`SpatialBlock`."""

    def __init__(self, dim: int, n_layers: int, n_heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(SpatialBlock(dim, n_heads, hidden, dropout) for _ in range(n_layers))

    def forward(self, x: Tensor, yx: Tensor, seen: Tensor) -> Tensor:
        """Return (B, T, d) from tokens (B, T, d), lattice points (B, T, 2) and seen (B, T)."""
        if not len(self.blocks):
            return x
        distance = torch.linalg.vector_norm(yx[:, :, None] - yx[:, None], dim=-1)
        for block in self.blocks:
            x = block(x, distance, seen)
        return x
