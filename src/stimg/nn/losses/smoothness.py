"""The spatial regulariser of the reconstruction."""

import torch
from torch import Tensor

NEIGHBOUR = 1.01
"""Largest distance of neighbours in units of the pitch: 4 on a square lattice, 6 on a hexagonal one."""


def smoothness(values: Tensor, yx: Tensor, seen: Tensor) -> Tensor:
    r"""Return :math:`R = \operatorname{mean}_{(i,j),\,g} (\hat x_{ig} - \hat x_{jg})^2` over pairs of neighbouring spots, a scalar; 0 without pairs.

    The regulariser of Zhu et al. 2026 (arXiv 2603.13432), which adds 0.001 R to the loss, here with the six neighbours of a hexagonal lattice
    where there is one. ``values`` (B, T, K), ``yx`` (B, T, 2) in units of the pitch, ``seen`` (B, T).
    """
    distance = torch.linalg.vector_norm(yx[:, :, None] - yx[:, None], dim=-1)
    both = seen[:, :, None] & seen[:, None]
    crop, first, second = torch.nonzero(torch.triu(both & (distance < NEIGHBOUR), diagonal=1), as_tuple=True)
    if not len(crop):
        return values.sum() * 0.0
    return (values[crop, first] - values[crop, second]).square().mean()
