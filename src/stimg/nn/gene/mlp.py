"""A small network of one observation's expression."""

from torch import Tensor, nn


class GeneMLP(nn.Module):
    """Layers of linear map, layer normalisation, GELU and dropout, then a linear map.

    Parameters
    ----------
    n_genes
        Columns of the input: standardised log values of the genes.
    n_features
        Columns of the output.
    n_hidden
        Width of the hidden layers.
    n_layers
        Number of hidden layers; 0 is a linear map.
    dropout
        After every hidden layer.

    Notes
    -----
    HESCAPE (arXiv 2508.01490) has batch normalisation in the same place; layer normalisation does not depend on who else is in the batch, nor on
    the number of processes.

    Examples
    --------
    >>> import torch
    >>> from stimg.nn.gene import GeneMLP
    >>> GeneMLP(250, 64)(torch.zeros(5, 250)).shape
    torch.Size([5, 64])
    """

    def __init__(self, n_genes: int, n_features: int, n_hidden: int = 256, n_layers: int = 1, dropout: float = 0.1) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = n_genes
        for _ in range(n_layers):
            layers += [nn.Linear(width, n_hidden), nn.LayerNorm(n_hidden), nn.GELU(), nn.Dropout(dropout)]
            width = n_hidden
        self.layers = nn.Sequential(*layers, nn.Linear(width, n_features))

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., n_features)."""
        return self.layers(x)  # type: ignore[no-any-return]
