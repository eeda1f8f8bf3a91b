"""Heads: from the features of an encoder to the joint space of two modalities, and classifiers that are to fail."""

from typing import Any

import torch
from torch import Tensor, nn

KINDS = ("linear", "mlp", "residual")


class Standardise(nn.Module):
    """Columns minus their mean, over their scale; both are set once, from training data, and not learned.

    Parameters
    ----------
    n_features
        Columns.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("scale", torch.ones(n_features))

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., n_features)."""
        return (x - self.mean) / self.scale

    def invert(self, x: Tensor) -> Tensor:
        """Return what :meth:`forward` made ``x`` of."""
        return x * self.scale + self.mean


class Project(nn.Module):
    """A fixed linear map of standardised columns: ``x @ axes``, set once from training data.

    Parameters
    ----------
    n_features, n_axes
        Columns in and out.
    """

    axes: Tensor

    def __init__(self, n_features: int, n_axes: int) -> None:
        super().__init__()
        self.register_buffer("axes", torch.zeros(n_features, n_axes))

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., n_axes)."""
        return x @ self.axes


class Head(nn.Module):
    """From features to the joint space.

    Parameters
    ----------
    n_in, n_out
        Columns in and out.
    kind
        ``"linear"``; ``"mlp"``: a hidden layer with GELU and dropout, then layer normalisation of the output; ``"residual"``: the sum of a
        linear map and a hidden layer whose last weights start at zero.
    n_hidden
        Width of the hidden layer.
    dropout
        Of the hidden layer, and of the input for ``"linear"``.
    """

    def __init__(self, n_in: int, n_out: int, *, kind: str = "mlp", n_hidden: int = 256, dropout: float = 0.0) -> None:
        super().__init__()
        self.kind = kind
        self.linear = nn.Linear(n_in, n_out) if kind != "mlp" else None
        self.drop = nn.Dropout(dropout) if kind == "linear" else None
        self.layers = None
        if kind != "linear":
            self.layers = nn.Sequential(nn.Linear(n_in, n_hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(n_hidden, n_out))
        if kind == "residual":
            nn.init.zeros_(self.layers[-1].weight)  # type: ignore[index, arg-type]
            nn.init.zeros_(self.layers[-1].bias)  # type: ignore[index, arg-type]
        self.norm = nn.LayerNorm(n_out) if kind == "mlp" else None

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., n_out)."""
        if self.kind == "linear":
            return self.linear(self.drop(x))  # type: ignore[misc]
        if self.kind == "mlp":
            out = self.layers(x)  # type: ignore[misc]
            return out if self.norm is None else self.norm(out)
        return self.linear(x) + self.layers(x)  # type: ignore[misc]


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: float) -> Tensor:
        ctx.weight = weight
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.weight * gradient[0], None


def reverse_gradient(x: Tensor, weight: float = 1.0) -> Tensor:
    """Return ``x``; its gradient is turned round and multiplied by ``weight`` (Ganin et al. 2016, arXiv 1505.07818)."""
    return _Reverse.apply(x, weight)  # type: ignore[no-any-return]


class Adversary(nn.Module):
    """A classifier of batches whose gradient is reversed, so that what lies before it learns to hide them.

    Parameters
    ----------
    n_in
        Width of the embedding.
    n_classes
        Number of batches.
    n_hidden
        Width of its hidden layer.
    """

    def __init__(self, n_in: int, n_classes: int, n_hidden: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(n_in, n_hidden), nn.ReLU(), nn.Linear(n_hidden, n_classes))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (n, n_classes)."""
        return self.layers(reverse_gradient(x))
