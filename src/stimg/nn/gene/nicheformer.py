"""Nicheformer: genes ranked by their excess over a technology's mean, read as a sentence by a transformer (Schaar et al. 2024)."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn

from stimg.nn.gene._weights import depth, fill, unwrapped

MODALITIES = {"dissociated": 3, "spatial": 4}
SPECIES = {"human": 5, "mouse": 6}
ASSAYS = {
    "merfish": 7,
    "cosmx": 8,
    "xenium": 9,
    "10x 5' v2": 10,
    "10x 3' v3": 11,
    "10x 3' v2": 12,
    "10x 5' v1": 13,
    "10x 3' v1": 14,
    "10x 3'": 15,
    "10x 5'": 16,
    "cite-seq": 17,
    "smart-seq v4": 18,
}
"""Tokens of the three words before the genes."""
PAD = 1
N_CONTEXT, N_RESERVED, N_HEADS = 1500, 30, 16
POOLING = ("genes", "positions")
UNUSED = ("encoder_layer.", "classifier_head.", "pooler_head.", "cls_head.", "pos")
"""Weights of the checkpoint that embeddings do not need: a pattern layer, and heads."""
TITLE = "Nicheformer"


def technology_mean(values: np.ndarray, *, rounded: bool = False) -> np.ndarray:
    """Return the mean counts of a technology by gene, float64, with 1 where none are known: those genes are not scaled.

    Parameters
    ----------
    values
        Means; NaN where a gene was never measured.
    rounded
        Whether to round them to whole counts first, halves up, as the authors' notebooks do that make tokens; their code that makes
        embeddings does not.

    Raises
    ------
    ValueError
        For values that are no vector, negative or infinite.
    """
    mean = np.where(np.isnan(values), 0.0, np.asarray(values, dtype=np.float64))
    if mean.ndim != 1 or not np.isfinite(mean).all() or (mean < 0).any():
        raise ValueError(f"the technology mean has shape {mean.shape}; wanted one finite value of zero or more for each gene.")
    if rounded:
        mean = np.floor(mean + 0.5)
    return np.where(mean == 0, 1.0, mean)


def rank_tokens(counts: sp.csr_matrix, mean: np.ndarray, *, n_context: int = N_CONTEXT, n_reserved: int = N_RESERVED) -> np.ndarray:
    """Return the genes of every observation as tokens, int32 (n, n_context), the most excessive first, then padding.

    Parameters
    ----------
    counts
        (n, genes) in the order of the vocabulary.
    mean
        float64 (genes,), see :func:`technology_mean`.
    n_context
        Longest sentence; further genes are left out.
    n_reserved
        Tokens before that of the first gene.

    Notes
    -----
    A gene's value is its counts over the mean of its technology. Scaling an observation to 10,000 counts first, as the paper does, changes no
    rank. Genes without counts have no token, so a gene that was not measured and one that was not found are the same. Equal values are ordered by the
    vocabulary; the authors' sort leaves their order open.
    """
    if counts.shape[1] != len(mean):
        raise ValueError(
            f"counts have {counts.shape[1]} genes and the technology mean has {len(mean)}; wanted the genes of the vocabulary."
        )
    out = np.full((counts.shape[0], n_context), PAD, dtype=np.int32)
    for row in range(counts.shape[0]):
        part = slice(counts.indptr[row], counts.indptr[row + 1])
        genes, values = counts.indices[part], counts.data[part]
        genes, values = genes[values > 0], values[values > 0]
        order = np.lexsort((genes, -(values / mean[genes])))[:n_context]
        out[row, : len(order)] = genes[order] + n_reserved
    return out


class Nicheformer(nn.Module):
    """The part of Nicheformer that embeddings need.

    Parameters
    ----------
    n_tokens
        Rows of the table of tokens.
    dim, n_layers, n_heads, n_hidden
        Width, number of layers, heads and width of the feed-forward networks.
    n_context
        Longest sentence, the three words before the genes included.
    """

    def __init__(
        self,
        n_tokens: int = 20345,
        dim: int = 512,
        n_layers: int = 12,
        n_heads: int = N_HEADS,
        n_hidden: int = 1024,
        n_context: int = N_CONTEXT,
    ) -> None:
        super().__init__()
        self.n_context, self.n_features, self.n_heads = n_context, dim, n_heads
        self.embeddings = nn.Embedding(n_tokens, dim, padding_idx=PAD)
        self.positional_embedding = nn.Embedding(n_context, dim)
        layer = nn.TransformerEncoderLayer(dim, n_heads, n_hidden, dropout=0.0, batch_first=True, layer_norm_eps=1e-12)
        self.encoder = nn.TransformerEncoder(layer, n_layers, enable_nested_tensor=False)

    @classmethod
    def from_weights(cls, weights: Mapping[str, Tensor], *, path: Path, n_heads: int = N_HEADS) -> "Nicheformer":
        """Return the network of a checkpoint, in eval mode; sizes are those of its tensors, but for the number of heads.

        Raises
        ------
        ValueError
            Counts the weights that are missing, unknown or of another shape.
        """
        own = unwrapped(weights, "embeddings.weight", title=TITLE, path=path)
        positions, feed = own.get("positional_embedding.weight"), own.get("encoder.layers.0.linear1.weight")
        n_tokens, dim = own["embeddings.weight"].shape
        with torch.random.fork_rng(devices=[]):
            network = cls(
                n_tokens,
                dim,
                depth(own, "encoder.layers") or 12,
                n_heads,
                1024 if feed is None else len(feed),
                N_CONTEXT if positions is None else len(positions),
            )
        fill(network, own, title=TITLE, path=path, unused=UNUSED)
        return network.eval()

    def forward(self, tokens: Tensor, words: Tensor, *, pooling: str = "positions") -> Tensor:
        """Return the mean of the last layer after the first words, (B, dim).

        Parameters
        ----------
        tokens
            Genes, int (B, length); see :func:`rank_tokens`. Those beyond the context are left out.
        words
            Species, assay and modality, int (3,) or (B, 3).
        pooling
            ``"positions"``: over all positions, padding included, as the authors' code does; ``"genes"``: over genes alone (zero where there are none).
        """
        sentence = torch.cat([words.to(tokens).expand(len(tokens), -1), tokens], dim=1)[:, : self.n_context].long()
        padding = sentence == PAD
        if pooling == "genes":  # padding that nothing is read from need not be computed
            longest = int((~padding).sum(dim=1).max())
            sentence, padding = sentence[:, :longest], padding[:, :longest]
        x = self.embeddings(sentence) + self.positional_embedding.weight[: sentence.shape[1]]
        x = self.encoder(x, src_key_padding_mask=padding)[:, words.shape[-1] :]
        if pooling == "positions":
            return x.mean(dim=1)
        kept = (~padding[:, words.shape[-1] :])[..., None].to(x)
        return (x * kept).sum(dim=1) / kept.sum(dim=1).clamp(min=1)
