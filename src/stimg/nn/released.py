"""The masked autoencoder as its authors released it, kept for comparison."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from stimg.nn.losses import weighted_mean
from stimg.nn.masking import MaskSpec, draw_mask, see_all
from stimg.nn.packing import pack
from stimg.nn.stmae import SCALE, Offsets


class ReleasedMAE(nn.Module):
    r"""Masked autoencoder with unbound gene and value, after the public code of Zhu et al. 2026 (arXiv 2603.13432).

    Token of lattice point t: :math:`z_t = \sum_g E_g + \sum_g \mathrm{MLP}(x_{tg}) + p_t`, both sums over all channels of the crop, hidden ones
    with value 0. Post-norm transformers over all H x W points, empty ones too; a positional head that maps a token to C values through four
    linear layers, each followed by ReLU, so the output is never negative. The channels come in an arbitrary order.

    Parameters
    ----------
    n_genes
        Size of the vocabulary.
    size
        (H, W) of every crop.
    n_channels
        C of every crop.
    n_latent, n_layers, n_decoder_layers, n_heads, n_hidden, dropout
        The transformers; the defaults are the released ones.
    mask
        Ratios; the scope is always ``"cell"``.

    Notes
    -----
    The sum of gene vectors is the same for every spot of a crop, and the value network does not know which gene a value belongs to: which
    value goes with which gene, and which output is which gene, cannot be told. :class:`stimg.nn.STMAEModule` mends this.
    The sum over channels of the value network is rearranged (its second layer is linear), so that it costs the number of non-zeros.
    """

    def __init__(
        self,
        n_genes: int,
        *,
        size: tuple[int, int] = (16, 16),
        n_channels: int = 512,
        n_latent: int = 256,
        n_layers: int = 6,
        n_decoder_layers: int = 2,
        n_heads: int = 8,
        n_hidden: int = 1024,
        dropout: float = 0.1,
        mask: MaskSpec | None = None,
    ) -> None:
        super().__init__()
        self.n_genes, self.size, self.n_channels, self.n_latent = n_genes, size, n_channels, n_latent
        self.mask = MaskSpec((mask or MaskSpec()).ratios, "cell")
        self.gene = nn.Parameter(nn.init.xavier_uniform_(torch.empty(n_genes, n_latent)))
        self.value_in, self.value_out = nn.Linear(1, n_latent), nn.Linear(n_latent, n_latent)
        self.position = nn.Parameter(nn.init.trunc_normal_(torch.empty(size[0] * size[1], n_latent), std=0.02))

        def stack(depth: int) -> nn.TransformerEncoder:
            layer = nn.TransformerEncoderLayer(n_latent, n_heads, n_hidden, dropout, batch_first=True)
            return nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)

        self.encoder, self.decoder = stack(n_layers), stack(n_decoder_layers)
        head: list[nn.Module] = [nn.Linear(n_latent, n_channels)]
        for _ in range(4):
            head += [nn.ReLU(), nn.Linear(n_channels, n_channels)]
        self.head = nn.Sequential(*head[:-1])

    def _check(self, batch: Mapping[str, Tensor]) -> None:
        found = (tuple(batch["seen"].shape[1:]), batch["panel"].shape[1])
        if found != (tuple(self.size), self.n_channels):
            raise ValueError(
                f"crops are {found[0]} with {found[1]} channels; this variant is bound to {self.size} with {self.n_channels} (as released)."
            )

    def _encode(self, batch: Mapping[str, Tensor], value: Tensor, channel_sum: Tensor) -> Tensor:
        n_crops = len(batch["panel"])
        n_points = self.size[0] * self.size[1]
        origin = torch.relu(self.value_in.bias)
        terms = torch.relu(self.value_in(value[:, None])) - origin
        summed = terms.new_zeros(n_crops * n_points, self.n_latent).index_add_(0, batch["pixel"], terms) + self.n_channels * origin
        values = summed @ self.value_out.weight.T + self.n_channels * self.value_out.bias
        total = value.new_zeros(n_crops * n_points).index_add_(0, batch["pixel"], value)
        z = values.view(n_crops, n_points, -1) + channel_sum[:, None] + self.position
        return self.encoder(z * (total > 0).view(n_crops, n_points, 1))

    def _inputs(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        value = torch.log1p(SCALE * batch["value"] / batch["depth"].reshape(-1)[batch["pixel"]].clamp(min=1.0))
        real = (batch["panel"] >= 0)[..., None]
        return value, (self.gene[batch["panel"].clamp(min=0)] * real).sum(1)

    def forward(self, batch: Mapping[str, Tensor], offsets: Offsets) -> dict[str, Tensor]:
        """Return the training loss of ``batch`` and its parts, as :meth:`stimg.nn.STMAEModule.forward`."""
        self._check(batch)
        packed = pack(batch)
        sight = draw_mask(packed, self.mask, dense=True)
        assert sight.mask is not None
        value, channel_sum = self._inputs(batch)
        h = self._encode(batch, value * sight.entry, channel_sum)
        out = self.head(self.decoder(h))
        order = torch.argsort(torch.rand(batch["panel"].shape, device=out.device), dim=1)
        flat = out.reshape(-1, self.n_channels)
        n_crops, n_spots, n_channels = packed.shape
        predicted = out.new_zeros(n_crops * n_spots, n_channels)
        at = packed.where.reshape(-1)
        predicted[at[at >= 0]] = flat[at >= 0]
        predicted = predicted.view(packed.shape).gather(2, order[:, None].expand(-1, n_spots, -1))
        count = packed.dense()
        target = torch.log1p(SCALE * count / packed.depth.clamp(min=1.0)[..., None])
        error = (predicted - target).square()
        hidden = packed.seen[..., None] & ~sight.mask & (packed.panel >= 0)[:, None]
        loss = weighted_mean(error, hidden)
        positive = count > 0
        return {
            "loss": loss,
            "hidden": loss,
            "zeros": weighted_mean(error, hidden & ~positive),
            "nonzeros": weighted_mean(error, hidden & positive),
        }

    def embed(self, batch: Mapping[str, Tensor], offsets: Offsets) -> Tensor:
        """Return the embedding of every pixel with everything visible, (B, H, W, n_latent), 0 where nothing was seen."""
        self._check(batch)
        packed = pack(batch)
        value, channel_sum = self._inputs(batch)
        h = self._encode(batch, value * see_all(packed).entry, channel_sum)
        return h.view(*batch["seen"].shape, -1) * batch["seen"][..., None]
