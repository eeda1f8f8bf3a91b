"""scFoundation: values of the genes that have counts, and two tokens of depth, read by a transformer (Hao et al. 2024)."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stimg.nn.gene._weights import BRING, depth, fill, unwrapped
from stimg.nn.image.loaders import read_weights

N_GENES, N_HEADS, SCALE, TARGET = 19264, 12, 1e4, 4.0
N_DEPTH = 2
"""Tokens of depth: the wanted one (T), the observed one (S)."""
POOLING = ("all", "max")
UNUSED = ("decoder.", "decoder_embed.", "norm.", "to_final.", "token_emb.emb_mask.", "token_emb.emb_pad.")
"""Weights of the checkpoint that embeddings of cells do not need."""
TITLE = "scFoundation"


class ValueTokens(NamedTuple):
    """``values`` float32, ``genes`` int64 and ``padding`` bool, (n, longest): T, S, then the genes that have counts, then padding."""

    values: np.ndarray
    genes: np.ndarray
    padding: np.ndarray


def value_tokens(counts: sp.csr_matrix, *, target: float = TARGET) -> ValueTokens:
    """Return values and places of the tokens of every observation.

    Parameters
    ----------
    counts
        (n, genes) in the order of the vocabulary, every row with a count.
    target
        Token T: log10 of the depth that is wanted.

    Raises
    ------
    ValueError
        For a row without counts, which has no depth.

    Notes
    -----
    A gene's value is log(1 + counts per 10,000); S is log10 of the counts of the vocabulary's genes. Genes without counts have no token. T and S
    stand first here and last in the authors' code: place is told by the gene, not by the order, so the embedding is the same.
    """
    n, n_genes = counts.shape
    total = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    if (total <= 0).any():
        raise ValueError(
            f"{int((total <= 0).sum())} of {n} observations have no count of the {n_genes} genes of {TITLE}, so no depth. Leave them out."
        )
    longest = N_DEPTH + int(np.diff(counts.indptr).max(initial=0))
    values = np.zeros((n, longest), dtype=np.float32)
    genes = np.full((n, longest), n_genes + N_DEPTH, dtype=np.int64)
    values[:, 0], values[:, 1] = target, np.log10(total)
    genes[:, 0], genes[:, 1] = n_genes, n_genes + 1
    for row in range(n):
        part = slice(counts.indptr[row], counts.indptr[row + 1])
        found = counts.data[part] > 0
        at = slice(N_DEPTH, N_DEPTH + int(found.sum()))
        values[row, at] = np.log1p(SCALE * counts.data[part][found] / total[row])
        genes[row, at] = counts.indices[part][found]
    padding = genes == n_genes + N_DEPTH
    used = int((~padding).sum(axis=1).max(initial=N_DEPTH))
    return ValueTokens(values[:, :used], genes[:, :used], padding[:, :used])


class ValueEmbedding(nn.Module):
    """A value as a mixture of learned vectors: the weights are a softmax of two small layers of it.

    Parameters
    ----------
    dim, n_bins
        Width, and number of vectors.
    alpha
        Weight of the first layer beside the second.
    """

    def __init__(self, dim: int, n_bins: int, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha
        self.mlp, self.mlp2 = nn.Linear(1, n_bins), nn.Linear(n_bins, n_bins)
        self.emb = nn.Embedding(n_bins, dim)

    def forward(self, values: Tensor) -> Tensor:
        """Return (..., dim)."""
        hidden = F.leaky_relu(self.mlp(values[..., None]), 0.1)
        return torch.softmax(self.alpha * hidden + self.mlp2(hidden), dim=-1) @ self.emb.weight


class _Encoder(nn.Module):
    def __init__(self, dim: int, n_layers: int, n_heads: int, n_hidden: int) -> None:
        super().__init__()
        self.transformer_encoder = nn.ModuleList(
            nn.TransformerEncoderLayer(dim, n_heads, n_hidden, dropout=0.0, batch_first=True) for _ in range(n_layers)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        for layer in self.transformer_encoder:
            x = layer(x, src_key_padding_mask=padding)
        return self.norm(x)


class ScFoundation(nn.Module):
    """The encoder of scFoundation.

    Parameters
    ----------
    n_genes
        Genes of the vocabulary.
    dim, n_layers, n_heads, n_hidden
        Width, number of layers, heads and width of the feed-forward networks.
    n_bins, alpha
        Of :class:`ValueEmbedding`.
    """

    def __init__(
        self,
        n_genes: int = N_GENES,
        dim: int = 768,
        n_layers: int = 12,
        n_heads: int = N_HEADS,
        n_hidden: int = 3072,
        n_bins: int = 100,
        alpha: float = 1.0,
    ) -> None:
        super().__init__()
        self.n_features, self.n_heads = dim, n_heads
        self.token_emb = ValueEmbedding(dim, n_bins, alpha)
        self.pos_emb = nn.Embedding(n_genes + N_DEPTH + 1, dim)
        self.encoder = _Encoder(dim, n_layers, n_heads, n_hidden)

    @classmethod
    def from_weights(cls, weights: Mapping[str, Tensor], *, path: Path, n_heads: int = N_HEADS, alpha: float = 1.0) -> "ScFoundation":
        """Return the network of a checkpoint, in eval mode; sizes are those of its tensors, but for heads and ``alpha``.

        Raises
        ------
        ValueError
            Counts the weights that are missing, unknown or of another shape.
        """
        own = unwrapped(weights, "token_emb.emb.weight", title=TITLE, path=path)
        n_bins, dim = own["token_emb.emb.weight"].shape
        places, feed = own.get("pos_emb.weight"), own.get("encoder.transformer_encoder.0.linear1.weight")
        with torch.random.fork_rng(devices=[]):
            network = cls(
                N_GENES if places is None else len(places) - N_DEPTH - 1,
                dim,
                depth(own, "encoder.transformer_encoder") or 12,
                n_heads,
                4 * dim if feed is None else len(feed),
                n_bins,
                alpha,
            )
        fill(network, own, title=TITLE, path=path, unused=UNUSED)
        return network.eval()

    def forward(self, values: Tensor, genes: Tensor, padding: Tensor, *, pooling: str = "all") -> Tensor:
        """Return the embedding of every observation.

        Parameters
        ----------
        values, genes, padding
            See :func:`value_tokens`.
        pooling
            ``"all"``: S, T, the largest and the mean over genes beside each other, (B, 4 dim), as the authors advise; ``"max"``: the largest over all
            tokens, (B, dim). An observation needs a gene.
        """
        x = self.encoder(self.token_emb(values) + self.pos_emb(genes), padding)
        hidden = padding[..., None]
        if pooling == "max":
            return x.masked_fill(hidden, -torch.inf).amax(dim=1)
        own, hidden = x[:, N_DEPTH:], hidden[:, N_DEPTH:]
        mean = own.masked_fill(hidden, 0.0).sum(dim=1) / (~hidden).sum(dim=1)
        return torch.cat([x[:, 1], x[:, 0], own.masked_fill(hidden, -torch.inf).amax(dim=1), mean], dim=1)


def read_checkpoint(path: Path, key: str = "cell") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return weights and settings of a file: the authors' ``models.ckpt`` with its parts ``"cell"``, ``"gene"`` and ``"rde"``, or weights by name.

    Raises
    ------
    ValueError
        Where the file cannot be read without unpickling code, or has no such part.
    """
    found: Any = None
    if path.is_file() and path.suffix != ".safetensors":
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as err:
            said = (str(err).strip() or type(err).__name__).splitlines()[0]
            raise ValueError(
                f"{path} cannot be read as tensors and plain values ({said}); pickled code is not loaded. Open it once where you trust it, and save "
                f"`checkpoint[{key!r}]['state_dict']` with safetensors. {BRING}"
            ) from err
    if not (isinstance(found, Mapping) and any(isinstance(v, Mapping) and "state_dict" in v for v in found.values())):
        return read_weights(path), {}
    if key not in found:
        raise ValueError(f"{path} has no part {key!r} (found {sorted(found)}). Pass the file models.ckpt of its authors. {BRING}")
    config: Any = found[key].get("config", {})
    for name in ("model_config", "mae_autobin"):
        config = config.get(name, {}) if isinstance(config, Mapping) else {}
    return dict(found[key]["state_dict"]), dict(config)
