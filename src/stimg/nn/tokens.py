"""From counts to one token per spot, with every value bound to its gene."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KINDS = ("linear", "mlp")
SCALE = 1e4


class GeneTokens(nn.Module):
    r"""Sum of gene vectors weighted by expression: the token of a spot.

    ``"linear"``: :math:`z_t = \sum_{g \in v} x_{tg} W_g`, with v the visible channels. ``"mlp"``:
    :math:`z_t = \sum_{g \in v} W_g \odot (x_{tg} + s(x_{tg})) + b(x_{tg})`, with s and b small networks that are 0 at 0. A zero adds nothing, so
    the cost is the number of non-zeros; the order of the channels does not matter; a gene that was not measured is no term of the sum.
    :class:`stimg.nn.STMAEModule` subtracts the library's means and scales the sum up to the genes that it does not see.

    Parameters
    ----------
    n_genes
        Size of the vocabulary.
    dim
        Width of a token.
    kind
        ``"linear"`` or ``"mlp"``.
    """

    def __init__(self, n_genes: int, dim: int, kind: str = "linear") -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"token={kind!r} is not known; wanted one of {KINDS}.")
        self.kind = kind
        self.weight = nn.Parameter(torch.randn(n_genes, dim) / dim**0.5)
        if kind == "mlp":
            # no bias in the last layers: what a network says of 0 is subtracted, and a constant with it
            self.scale = nn.Sequential(nn.Linear(1, 32), nn.GELU(), nn.Linear(32, dim, bias=False))
            self.shift = nn.Sequential(nn.Linear(1, 32), nn.GELU(), nn.Linear(32, dim, bias=False))

    @torch.no_grad()
    def straighten(self) -> None:
        """Set the small networks of ``"mlp"`` to 0 everywhere, so that the tokens start as those of ``"linear"``."""
        if self.kind == "mlp":
            for network in (self.scale, self.shift):
                last = network[-1]
                assert isinstance(last, nn.Linear)
                last.weight.zero_()

    def sparse(self, cell: Tensor, channel: Tensor, value: Tensor, n_cells: int) -> Tensor:
        """Return sums of gene vectors (n_cells, d) from the non-zero log values; ``cell`` need not be sorted."""
        if self.kind == "linear":
            order = torch.argsort(cell, stable=True)
            starts = torch.searchsorted(cell[order].contiguous(), torch.arange(n_cells, device=cell.device))
            return F.embedding_bag(channel[order], self.weight, starts, mode="sum", per_sample_weights=value[order].to(self.weight.dtype))
        x, origin = value[:, None], value.new_zeros(1, 1)
        terms = self.weight[channel] * (x + self.scale(x) - self.scale(origin)) + self.shift(x) - self.shift(origin)
        return terms.new_zeros(n_cells, terms.shape[1]).index_add_(0, cell, terms)

    def dense(self, x: Tensor, panel: Tensor) -> Tensor:
        """Return sums of gene vectors (B, T, d) from log values (B, T, C), 0 where hidden; for ``"linear"`` alone."""
        return torch.bmm(x, F.embedding(panel.clamp(min=0), self.weight))


def log_normalise(value: Tensor, cell: Tensor, total: Tensor, expected: Tensor) -> Tensor:
    r"""Return :math:`\log(1 + 10^4 \, y \, f / n)` for counts y (N,), with n the visible total and f its expected share, each (n_cells,).

    With all genes visible, f is 1 and this is the usual log1p of counts per 10,000. Where some are hidden, n is the sum over the visible
    ones and f the share of counts that they have in the training data, so that the values keep their scale without a look at what is hidden.
    """
    factor = SCALE * expected / total.clamp(min=1.0)
    return torch.log1p(value * factor[cell])
