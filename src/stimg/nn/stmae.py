"""The masked autoencoder of ST images: gene identity bound to value on the way in, and tied to it on the way out."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stimg.nn.losses import negative_binomial_nll, poisson_nll, smoothness, weighted_mean
from stimg.nn.masking import MaskSpec, Visibility, draw_mask, panel_values, see_all
from stimg.nn.packing import Packed, pack
from stimg.nn.tokens import SCALE, GeneTokens, log_normalise
from stimg.nn.transformer import SpatialBlock, SpatialTransformer

LIKELIHOODS = ("mse", "poisson", "nb")
MAX_TARGETS = 2**18
"""Most hidden values, and most hidden zeros, that one step of the sparse path scores."""
SMOOTH_CHANNELS = 128
"""Most genes in which the spatial regulariser compares neighbours in one step."""


@dataclass
class Offsets:
    """What is known of each library before a crop is read; L libraries.

    Attributes
    ----------
    mean
        Mean of log1p counts per 10,000 of every gene, float32 (L, n_genes); for genes that were not measured, that of the training data.
    composition
        Share of every gene in the counts, float32 (L, n_genes); likewise.
    coverage
        What the depth of a library's spots is divided by to be on the scale of the two others, float32 (L,); less than 1 where the depth is
        the sum over a part of the genes. None: 1.
    """

    mean: Tensor
    composition: Tensor
    coverage: Tensor | None = None

    def of(self, library: Tensor) -> "Offsets":
        """Return the rows of ``library`` (B,)."""
        return Offsets(self.mean[library], self.composition[library], None if self.coverage is None else self.coverage[library])

    def deepen(self, depth: Tensor) -> Tensor:
        """Return ``depth`` (B, T) on the scale of mean and composition."""
        return depth if self.coverage is None else depth / self.coverage[:, None]


class STMAEModule(nn.Module):
    r"""Masked autoencoder over crops.

    Encoder: token (:class:`stimg.nn.GeneTokens`), then transformer layers over the spots of the crop. Decoder: transformer layers, then one
    inner product for every gene, :math:`f_{tg} = \langle U h_t, W_g \rangle + \beta_g`, with the same gene vectors :math:`W_g` that made the tokens.

    Parameters
    ----------
    n_genes
        Size of the vocabulary.
    n_latent
        Width of the tokens and of the embedding.
    n_layers, n_decoder_layers, n_heads, n_hidden, dropout
        The transformers; ``n_hidden`` is the width of the feed-forward layers (None: twice ``n_latent``).
    token
        ``"linear"`` or ``"mlp"``, see :class:`stimg.nn.GeneTokens`.
    likelihood
        ``"mse"``: squared error of log1p counts per 10,000, each gene divided by its spread. ``"poisson"``, ``"nb"``: likelihood of the counts,
        with rate depth x composition x exp(f).
    centre
        Whether values are read, and predicted, relative to the library's mean of each gene.
    smooth_weight
        Weight of the spatial regulariser (:func:`stimg.nn.losses.smoothness`).
    mask
        How values are hidden in training.
    sparse_above
        Number of channels above which the channel axis is never densified.
    """

    composition: Tensor
    mean: Tensor
    spread: Tensor

    def __init__(
        self,
        n_genes: int,
        *,
        n_latent: int = 128,
        n_layers: int = 3,
        n_decoder_layers: int = 1,
        n_heads: int = 4,
        n_hidden: int | None = None,
        dropout: float = 0.1,
        token: str = "linear",
        likelihood: str = "mse",
        centre: bool = True,
        smooth_weight: float = 0.0,
        mask: MaskSpec | None = None,
        sparse_above: int = 2048,
    ) -> None:
        super().__init__()
        if likelihood not in LIKELIHOODS:
            raise ValueError(f"likelihood={likelihood!r} is not known; wanted one of {LIKELIHOODS}.")
        if centre and token != "linear":
            raise ValueError(
                "centre=True goes with token='linear' alone, where subtracting the library's mean costs nothing; wanted centre=False."
            )
        self.likelihood, self.centre, self.smooth_weight = likelihood, centre, float(smooth_weight)
        self.mask = mask or MaskSpec()
        self.sparse_above = sparse_above
        self.n_genes, self.n_latent = n_genes, n_latent
        hidden = n_hidden or 2 * n_latent
        self.tokens = GeneTokens(n_genes, n_latent, token)
        self.lift = nn.Linear(n_latent, n_latent)
        self.encoder = SpatialTransformer(n_latent, n_layers, n_heads, hidden, dropout)
        self.decoder = SpatialTransformer(n_latent, n_decoder_layers, n_heads, hidden, dropout)
        self.readout = nn.Linear(n_latent, n_latent, bias=False)
        self.beta = nn.Parameter(torch.zeros(n_genes))
        if likelihood == "nb":
            self.log_theta = nn.Parameter(torch.zeros(n_genes))
        self.register_buffer("composition", torch.full((n_genes,), 1.0 / n_genes))
        self.register_buffer("mean", torch.zeros(n_genes))
        self.register_buffer("spread", torch.ones(n_genes))

    @torch.no_grad()
    def initialise(
        self, *, composition: Tensor, mean: Tensor, spread: Tensor, loadings: Tensor | None = None, shrinkage: Tensor | None = None
    ) -> None:
        """Take over what is known of the training data.

        Parameters
        ----------
        composition, mean, spread
            Share of the counts, mean and within-library standard deviation of log1p counts per 10,000 of every gene, each (n_genes,).
        loadings, shrinkage
            Orthonormal principal axes of the centred log values (n_genes, k) and the factor in (0, 1] by which each is shrunk. With them the
            untrained model is the shrunken PCA reconstruction: tokens are scores, the transformers start near the identity. Without
            ``centre``, the training data's mean is taken off the tokens.
        """
        self.composition.copy_(composition)
        self.mean.copy_(mean)
        self.spread.copy_(spread.clamp(min=1e-3))
        if not self.centre and self.likelihood == "mse":
            self.beta.copy_(mean)
        if loadings is None or shrinkage is None:
            return
        k = min(loadings.shape[1], self.n_latent)
        self.tokens.weight.normal_(0.0, 1e-2 / self.n_genes**0.5)
        self.tokens.weight[:, :k] = loadings[:, :k]
        self.lift.weight.copy_(torch.eye(self.n_latent))
        self.lift.bias.zero_()
        if not self.centre:
            self.lift.bias.copy_(-(mean @ self.tokens.weight))
        self.tokens.straighten()
        factor = torch.full((self.n_latent,), float(shrinkage.min()))
        factor[:k] = shrinkage[:k]
        self.readout.weight.copy_(torch.diag(factor))
        for stack in (self.encoder, self.decoder):
            for block in stack.blocks:
                assert isinstance(block, SpatialBlock)
                block.damp(0.1)

    def is_dense(self, packed: Packed) -> bool:
        """Whether ``packed`` takes the path that densifies the channels of a crop."""
        return packed.shape[2] <= self.sparse_above and self.tokens.kind == "linear"

    def encode(self, packed: Packed, sight: Visibility, offsets: Offsets) -> Tensor:
        """Return the embedding of every spot, (B, T, n_latent)."""
        n_crops, n_spots, _ = packed.shape
        n_cells = n_crops * n_spots
        total = packed.depth.new_zeros(n_cells).index_add_(0, packed.cell, packed.value * sight.entry)
        expected = sight.weigh(packed, self.composition).expand(n_crops, n_spots).reshape(-1)
        entry = sight.entry.nonzero(as_tuple=True)[0]
        value = log_normalise(packed.value[entry], packed.cell[entry], total, expected)
        variance = self.spread.square()
        gain = variance.sum() / sight.weigh(packed, variance).clamp(min=1e-6 * variance.sum())
        mean = panel_values(packed.panel, offsets.mean) if self.centre else None
        if self.is_dense(packed) and sight.mask is not None:
            x = packed.depth.new_zeros(n_cells * packed.shape[2])
            x[packed.cell[entry] * packed.shape[2] + packed.column[entry]] = value
            x = x.view(packed.shape)
            if mean is not None:
                x = x - mean[:, None] * sight.mask
            z = self.tokens.dense(x, packed.panel)
        else:
            z = self.tokens.sparse(packed.cell[entry], packed.channel[entry], value, n_cells).view(n_crops, n_spots, -1)
            if mean is not None:
                z = z - self._baseline(packed, sight, mean)
        z = self.lift(z * gain[..., None]) * packed.seen[..., None]
        return self.encoder(z, packed.yx, packed.seen)

    def _baseline(self, packed: Packed, sight: Visibility, mean: Tensor) -> Tensor:
        shown = mean[:, None] * sight.mask if sight.mask is not None else mean[:, None]
        if shown.shape[1] > 1:
            return self.tokens.dense(shown, packed.panel)
        full = mean.new_zeros(len(mean), self.n_genes).scatter_add_(1, packed.panel.clamp(min=0), shown[:, 0])
        with torch.autocast(mean.device.type, enabled=False):  # a small difference of large sums
            projected = (full @ self.tokens.weight)[:, None]
        return projected if sight.mask is not None else projected * (1.0 - sight.ratio)[..., None]

    def decode(self, h: Tensor, packed: Packed) -> Tensor:
        """Return the spots' side of the inner product, U h_t, (B, T, n_latent)."""
        return self.readout(self.decoder(h, packed.yx, packed.seen))

    def predict(self, h: Tensor, packed: Packed, genes: Tensor, offsets: Offsets) -> Tensor:
        """Return log1p counts per 10,000 (B, T, K) of ``genes`` (K,) from embeddings (B, T, n_latent)."""
        f = self.decode(h, packed) @ self.tokens.weight[genes].T + self.beta[genes]
        if self.likelihood != "mse":
            return torch.log1p(SCALE * offsets.composition[:, None, genes] * f.clamp(max=20.0).exp())
        return f + offsets.mean[:, None, genes] if self.centre else f

    def forward(self, batch: Mapping[str, Tensor], offsets: Offsets) -> dict[str, Tensor]:
        """Return the training loss of ``batch`` and its parts: ``loss``, ``hidden`` (data term), ``zeros`` and ``nonzeros`` (data term by target)."""
        packed, own = pack(batch), offsets.of(batch["library"])
        sight = draw_mask(packed, self.mask, dense=self.is_dense(packed))
        out = self.decode(self.encode(packed, sight, own), packed)
        terms = self._dense_loss(out, packed, sight, own) if self.is_dense(packed) else self._sparse_loss(out, packed, sight, own)
        if self.smooth_weight > 0:
            chosen = torch.randperm(self.n_genes, device=out.device)[:SMOOTH_CHANNELS]
            terms["smooth"] = smoothness(out @ self.tokens.weight[chosen].T, packed.yx, packed.seen)
            terms["loss"] = terms["loss"] + self.smooth_weight * terms["smooth"]
        return terms

    def embed(self, batch: Mapping[str, Tensor], offsets: Offsets) -> Tensor:
        """Return the embedding of every pixel with everything visible, (B, H, W, n_latent), 0 where nothing was seen."""
        packed = pack(batch)
        return packed.to_grid(self.encode(packed, see_all(packed), offsets.of(batch["library"])))

    def reconstruct(self, batch: Mapping[str, Tensor], offsets: Offsets, genes: Tensor) -> Tensor:
        """Return log1p counts per 10,000 of ``genes`` (K,) for every pixel, (B, H, W, K), with everything in the panel visible."""
        packed, own = pack(batch), offsets.of(batch["library"])
        return packed.to_grid(self.predict(self.encode(packed, see_all(packed), own), packed, genes, own))

    def _score(self, f: Tensor, count: Tensor, depth: Tensor, gene: Tensor, mean: Tensor, composition: Tensor) -> Tensor:
        """Return the loss of one prediction each; all arguments broadcast."""
        if self.likelihood == "mse":
            target = torch.log1p(SCALE * count / depth.clamp(min=1.0))
            return ((f - (target - mean if self.centre else target)) / self.spread[gene]).square()
        log_rate = f.clamp(-20.0, 20.0) + torch.log(composition.clamp(min=1e-8)) + torch.log(depth.clamp(min=1.0))
        if self.likelihood == "poisson":
            return poisson_nll(count, log_rate)
        return negative_binomial_nll(count, log_rate, self.log_theta[gene])

    def _dense_loss(self, out: Tensor, packed: Packed, sight: Visibility, own: Offsets) -> dict[str, Tensor]:
        assert sight.mask is not None
        gene = packed.panel.clamp(min=0)
        f = torch.bmm(out, F.embedding(gene, self.tokens.weight).transpose(1, 2)) + self.beta[gene][:, None]
        count = packed.dense()
        mean, composition = panel_values(packed.panel, own.mean), panel_values(packed.panel, own.composition)
        error = self._score(f.float(), count, own.deepen(packed.depth)[..., None], gene[:, None], mean[:, None], composition[:, None])
        hidden = packed.seen[..., None] & ~sight.mask & (packed.panel >= 0)[:, None]
        positive = count > 0
        loss = weighted_mean(error, hidden)
        return {
            "loss": loss,
            "hidden": loss,
            "zeros": weighted_mean(error, hidden & ~positive),
            "nonzeros": weighted_mean(error, hidden & positive),
        }

    def _sparse_loss(self, out: Tensor, packed: Packed, sight: Visibility, own: Offsets) -> dict[str, Tensor]:
        """Mean over hidden values, its zeros estimated without bias from a sample (uniform over the hidden zeros)."""
        n_crops, n_spots, n_channels = packed.shape
        out, device = out.reshape(n_crops * n_spots, -1), out.device
        entry = (~sight.entry).nonzero(as_tuple=True)[0]
        n_nonzero = len(entry)
        if n_nonzero > MAX_TARGETS:
            entry = entry[torch.randint(n_nonzero, (MAX_TARGETS,), device=device)]
        real = packed.panel >= 0
        if sight.mask is not None:
            hidden_channels = (~sight.mask[:, 0] & real).sum(1)[:, None].expand(n_crops, n_spots)
        else:
            hidden_channels = real.sum(1)[:, None] * sight.ratio
        per_cell = (hidden_channels * packed.seen).reshape(-1).float()
        n_zero = (per_cell.sum() - n_nonzero).clamp(min=0.0)
        n_draws = min(MAX_TARGETS, max(1024, n_nonzero))
        cumulative = per_cell.cumsum(0)
        cell = torch.searchsorted(cumulative, torch.rand(n_draws, device=device) * cumulative[-1], right=True).clamp(max=len(per_cell) - 1)
        crop = torch.div(cell, n_spots, rounding_mode="floor")
        column = self._hidden_columns(packed, sight, crop, n_draws)
        key = cell * n_channels + column
        taken = packed.cell * n_channels + packed.column
        at = torch.searchsorted(taken, key).clamp(max=max(len(taken) - 1, 0))
        fresh = per_cell[cell] > 0
        if len(taken):
            fresh = fresh & (taken[at] != key)
        cell, column = cell[fresh], column[fresh]
        cells = torch.cat([packed.cell[entry], cell])
        crops = torch.div(cells, n_spots, rounding_mode="floor")
        genes = torch.cat([packed.channel[entry], packed.panel[crops[len(entry) :], column]])
        count = torch.cat([packed.value[entry], packed.value.new_zeros(len(cell))])
        f = (out[cells] * self.tokens.weight[genes]).sum(-1) + self.beta[genes]
        depth = own.deepen(packed.depth).reshape(-1)[cells]
        error = self._score(f.float(), count, depth, genes, own.mean[crops, genes], own.composition[crops, genes])
        nonzeros = error[: len(entry)].mean() if len(entry) else error.sum() * 0.0
        zeros = error[len(entry) :].mean() if len(cell) else error.sum() * 0.0
        loss = (n_nonzero * nonzeros + n_zero * zeros) / (n_nonzero + n_zero).clamp(min=1.0)
        return {"loss": loss, "hidden": loss, "zeros": zeros, "nonzeros": nonzeros}

    def _hidden_columns(self, packed: Packed, sight: Visibility, crop: Tensor, n_draws: int) -> Tensor:
        """Return a column of each crop's panel, uniform over those hidden."""
        real = packed.panel >= 0
        hidden = ~sight.mask[:, 0] & real if sight.mask is not None else real
        order = torch.argsort(hidden.int(), dim=1, descending=True, stable=True)
        pick = (torch.rand(n_draws, device=crop.device) * hidden.sum(1)[crop]).long()
        return order[crop, pick.clamp(max=packed.shape[2] - 1)]
