"""A start for the heads of an alignment: canonical correlation of the training pairs."""

import torch
from torch import Tensor

from stimg.nn.clip import CLIPModule


def canonical(x: Tensor, y: Tensor, n: int, penalty: float) -> tuple[Tensor, Tensor]:
    r"""Return the coefficients, float64 (columns, n) of each side, of canonical correlation with a ridge on both.

    The singular vectors of :math:`(X'X + \lambda_x I)^{-1/2} X'Y (Y'Y + \lambda_y I)^{-1/2}` taken back to the columns (Vinod 1976, J. Econometrics 4,
    147-166), each times the square root of its singular value, so that weak directions weigh less in a similarity.

    Parameters
    ----------
    x, y
        Centred columns of both sides, (n_obs, columns).
    n
        Most directions; fewer where a side has fewer columns.
    penalty
        :math:`\lambda` in units of the mean of the diagonal of each product.
    """
    x, y = x.double(), y.double()
    roots = [_inverse_root(side.T @ side, penalty) for side in (x, y)]
    left, correlation, right = torch.linalg.svd(roots[0] @ (x.T @ y) @ roots[1], full_matrices=False)
    scale = correlation[:n].sqrt()
    return roots[0] @ left[:, :n] * scale, roots[1] @ right[:n].T * scale


def _inverse_root(square: Tensor, penalty: float) -> Tensor:
    values, vectors = torch.linalg.eigh(square)
    return vectors * (values.clamp_min(0) + penalty * values.mean()).rsqrt() @ vectors.T


@torch.no_grad()
def correlate(module: CLIPModule, image: Tensor, gene: Tensor, n: int, penalty: float) -> None:
    """Set the linear maps of both heads to the canonical correlation of training pairs; embeddings then have a mean square length of 1 on each side."""
    x, y = module.image_in(image), module.gene_in(gene)
    x = x if module.image_axes is None else module.image_axes(x)
    y = y if module.gene_encoder is None else module.gene_encoder(y)
    left, right = module.image_head.linear, module.gene_head.linear
    assert left is not None
    assert right is not None
    weights = canonical(x, y, min(n, left.out_features), penalty)
    for linear, side, weight in zip((left, right), (x, y), weights, strict=True):
        length = (side.double() @ weight).square().sum(dim=1).mean().sqrt()
        linear.weight.zero_()
        linear.weight[: weight.shape[1]] = (weight / length).T.float()
        linear.bias.zero_()
