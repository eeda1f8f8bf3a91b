"""Two encoders and two heads that end in one space."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stimg.nn.gene.mlp import GeneMLP
from stimg.nn.heads import Adversary, Head, Project, Standardise


class CLIPModule(nn.Module):
    """The network of :class:`stimg.model.ImageGeneCLIP`.

    Parameters
    ----------
    n_image
        Columns of the image features.
    n_gene
        Columns of the gene side's input: log values of the genes, or a finished embedding.
    n_dim
        Width of the joint space.
    image_head, gene_head, n_hidden, dropout
        Of the heads, see :class:`stimg.nn.Head`.
    gene_encoder, n_layers
        ``"mlp"``, ``"pca"``, or ``"linear"`` for none.
    image_components, gene_components
        Fixed axes before the heads, at most as many as columns; ``image_components`` None for none.
    n_expression, decoder
        Genes that are read out of the image embedding, 0 for none, and how.
    n_batches
        Batches that an adversary tells apart, 0 for none.
    log_scale
        Logarithm of one over the temperature at the start.
    bias
        Bias of the sigmoid loss at the start; None where there is none.
    encoder
        Network that makes features of tiles, uint8 (B, H, W, 3); None where features come finished.
    """

    def __init__(
        self,
        n_image: int,
        n_gene: int,
        *,
        n_dim: int = 128,
        image_head: str = "linear",
        gene_head: str = "linear",
        gene_encoder: str = "pca",
        image_components: int | None = None,
        gene_components: int = 50,
        n_hidden: int = 256,
        n_layers: int = 1,
        dropout: float = 0.0,
        n_expression: int = 0,
        decoder: str = "linear",
        n_batches: int = 0,
        log_scale: float = 2.6593,
        bias: float | None = None,
        encoder: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        head: dict[str, Any] = {"n_hidden": n_hidden, "dropout": dropout}
        self.image_in = Standardise(n_image)
        n_axes = n_image if image_components is None else min(image_components, n_image)
        self.image_axes = None if image_components is None else Project(n_image, n_axes)
        self.image_head = Head(n_axes, n_dim, kind=image_head, **head)
        self.gene_in = Standardise(n_gene)
        self.gene_encoder: nn.Module | None = None
        width = n_gene
        if gene_encoder == "mlp":
            self.gene_encoder, width = GeneMLP(n_gene, n_hidden, n_hidden, n_layers, dropout), n_hidden
        elif gene_encoder == "pca":
            width = min(gene_components, n_gene)
            self.gene_encoder = Project(n_gene, width)
        self.gene_head = Head(width, n_dim, kind=gene_head, **head)
        self.log_scale = nn.Parameter(torch.tensor(float(log_scale)))
        self.bias = None if bias is None else nn.Parameter(torch.tensor(float(bias)))
        self.expression_in = Standardise(n_expression) if n_expression else None
        self.decoder = Head(n_dim, n_expression, kind=decoder, n_hidden=n_hidden) if n_expression else None
        if self.decoder is not None:
            self.decoder.norm = None  # expression has a scale of its own
        self.adversary = Adversary(n_dim, n_batches) if n_batches else None

    def train(self, mode: bool = True) -> "CLIPModule":
        """Set the mode of all parts; an encoder without trained weights stays in evaluation, and so do batch norms: their statistics are kept."""
        super().train(mode)
        if self.encoder is not None and mode:
            learns = any(p.requires_grad for p in self.encoder.parameters())
            for part in self.encoder.modules():
                if not learns or isinstance(part, nn.modules.batchnorm._BatchNorm):
                    part.eval()
        return self

    def kept_state(self) -> dict[str, Tensor]:
        """Return the weights and buffers that are this network's own: all but the encoder's that do not learn."""
        state: dict[str, Tensor] = self.state_dict()
        learned = set() if self.encoder is None else {f"encoder.{name}" for name, p in self.encoder.named_parameters() if p.requires_grad}
        return {name: value for name, value in state.items() if not name.startswith("encoder.") or name in learned}

    def features(self, tiles: Tensor) -> Tensor:
        """Return the encoder's features of tiles, uint8 (B, fields, H, W, 3), as (B, fields * n)."""
        if self.encoder is None:
            raise ValueError("This network has no image encoder, so it reads features and no tiles.")
        return self.encoder(tiles.flatten(0, 1)).reshape(len(tiles), -1)  # type: ignore[no-any-return]

    def embed_image(self, image: Tensor) -> Tensor:
        """Return the embedding (B, n_dim) of image features (B, n_image), or of tiles, uint8 (B, fields, H, W, 3); not normalised."""
        x = self.image_in(self.features(image) if image.dtype == torch.uint8 else image)
        return self.image_head(x if self.image_axes is None else self.image_axes(x))

    def embed_gene(self, gene: Tensor) -> Tensor:
        """Return the embedding (B, n_dim) of the gene side's input (B, n_gene); not normalised."""
        x = self.gene_in(gene)
        return self.gene_head(x if self.gene_encoder is None else self.gene_encoder(x))

    def decode(self, embedding: Tensor) -> Tensor:
        """Return standardised expression (B, n_expression) of image embeddings (B, n_dim)."""
        if self.decoder is None:
            raise ValueError("This network has no decoder of expression.")
        return self.decoder(embedding)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return ``image`` and ``gene`` embeddings, ``expression`` where there is a decoder, ``batch`` (2 B, n_batches) where there is an adversary."""
        out = {"image": self.embed_image(batch["image"]), "gene": self.embed_gene(batch["gene"])}
        if self.decoder is not None:
            out["expression"] = self.decode(out["image"])
        if self.adversary is not None:
            out["batch"] = self.adversary(torch.cat([out["image"], out["gene"]]))
        return out
