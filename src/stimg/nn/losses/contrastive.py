"""Losses that bring the two sides of a pair together and push other pairs apart, on one process or over several."""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LARGEST_LOG_SCALE = math.log(100.0)
"""Bound of the logarithm of the scale, as Radford et al. 2021 (arXiv 2103.00020) have it."""


class _Gather(torch.autograd.Function):
    """All ranks' rows, one rank after the other; the gradient of a row is the sum of what all ranks say of it."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        ctx.n = len(own)
        parts = [torch.empty_like(own) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(parts, own.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> Tensor:
        total = gradient[0].contiguous().clone()
        torch.distributed.all_reduce(total)
        start = torch.distributed.get_rank() * ctx.n
        return total[start : start + ctx.n]


def several_ranks() -> bool:
    """Return whether this process is one of several."""
    return torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1


def gather(own: Tensor) -> Tensor:
    """Return the rows of all ranks, (ranks * n, ...), in the order of the ranks; on one process ``own`` itself.

    Gradients flow back to the rank that a row came from, summed over ranks: with the mean over ranks that distributed training takes of
    gradients, this is the gradient of the mean of the ranks' losses. Every rank must have the same number of rows.
    """
    if not several_ranks():
        return own
    if own.is_floating_point():
        return _Gather.apply(own)  # type: ignore[no-any-return]
    parts = [torch.empty_like(own) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, own.contiguous())
    return torch.cat(parts)


class _Pairs(NamedTuple):
    """Similarities of a rank's pairs with all pairs: image to gene and gene to image (n, N), where the partners are (n,), what counts (n, N)."""

    image: Tensor
    gene: Tensor
    partner: Tensor
    counts: Tensor | None


def _pairs(image: Tensor, gene: Tensor, normalise: bool, group: Tensor | None, gathered: bool) -> _Pairs:
    if image.shape != gene.shape or image.ndim != 2:
        raise ValueError(f"embeddings have shapes {tuple(image.shape)} and {tuple(gene.shape)}; wanted (n, dim), the same on both sides.")
    if group is not None and group.shape != image.shape[:1]:
        raise ValueError(f"group has shape {tuple(group.shape)}; wanted ({len(image)},), one for each pair.")
    image, gene = image.float(), gene.float()
    if normalise:
        image, gene = F.normalize(image, dim=1), F.normalize(gene, dim=1)
    together = gathered and several_ranks()
    images, genes = (gather(image), gather(gene)) if together else (image, gene)
    first = torch.distributed.get_rank() * len(image) if together else 0
    partner = torch.arange(first, first + len(image), device=image.device)
    counts = None if group is None else group[:, None] == (gather(group) if together else group)[None]
    return _Pairs(image @ genes.T, gene @ images.T, partner, counts)


def _cross_entropy(logits: Tensor, partner: Tensor, counts: Tensor | None, smoothing: float) -> Tensor:
    if counts is not None:
        logits = logits.masked_fill(~counts, -math.inf)
    log_share = F.log_softmax(logits, dim=1)
    found = -log_share.gather(1, partner[:, None]).mean()
    if not smoothing:
        return found
    if counts is None:
        spread = log_share.mean(dim=1)
    else:
        spread = log_share.masked_fill(~counts, 0.0).sum(dim=1) / counts.sum(dim=1)
    return (1 - smoothing) * found - smoothing * spread.mean()


def clip_loss(
    image: Tensor,
    gene: Tensor,
    log_scale: Tensor,
    *,
    normalise: bool = True,
    group: Tensor | None = None,
    smoothing: float = 0.0,
    gathered: bool = True,
) -> Tensor:
    r"""Return the symmetric cross entropy of pairs of embeddings, a scalar.

    .. math::
        L = -\frac{1}{2N} \sum_i \left[ \log \frac{e^{s\, x_i \cdot y_i}}{\sum_{j \in C_i} e^{s\, x_i \cdot y_j}}
        + \log \frac{e^{s\, x_i \cdot y_i}}{\sum_{j \in C_i} e^{s\, x_j \cdot y_i}} \right], \qquad s = e^\theta

    (Radford et al. 2021, arXiv 2103.00020), with :math:`C_i` all pairs, or those of the same group.

    Parameters
    ----------
    image, gene
        Embeddings of the two sides, (n, dim); row i of one belongs to row i of the other.
    log_scale
        :math:`\theta`, a scalar: the logarithm of one over the temperature.
    normalise
        Whether embeddings are brought to unit length. Without, as in the released code of HESCAPE, length is a second way to sharpen.
    group
        Integers (n,): pairs of other groups are no negatives. None: all are.
    smoothing
        Share of the target that is spread evenly over :math:`C_i`.
    gathered
        Whether the pairs of all ranks are one batch.

    Notes
    -----
    Under distributed training each rank scores its own pairs against those of all ranks and returns the mean over its own: the mean over
    ranks is the loss of the joint batch, and so are the gradients after they are averaged.

    Examples
    --------
    >>> import torch
    >>> x = torch.eye(4)
    >>> round(float(clip_loss(x, x, torch.tensor(0.0))), 4)  # log(e + 3) - 1
    0.7437
    """
    pairs = _pairs(image, gene, normalise, group, gathered)
    scale = log_scale.exp()
    one, other = (_cross_entropy(values * scale, pairs.partner, pairs.counts, smoothing) for values in (pairs.image, pairs.gene))
    return (one + other) / 2


def siglip_loss(
    image: Tensor,
    gene: Tensor,
    log_scale: Tensor,
    bias: Tensor,
    *,
    normalise: bool = True,
    group: Tensor | None = None,
    gathered: bool = True,
) -> Tensor:
    r"""Return the pairwise sigmoid loss of pairs of embeddings, a scalar.

    .. math:: L = -\frac{1}{N} \sum_i \sum_{j \in C_i} \log \sigma\left(z_{ij} (e^\theta\, x_i \cdot y_j + b)\right), \qquad z_{ij} = 2 [i = j] - 1

    (Zhai et al. 2023, arXiv 2303.15343). Arguments and the mean over ranks are those of :func:`clip_loss`; ``bias`` is the scalar :math:`b`.

    Examples
    --------
    >>> import torch
    >>> x = torch.eye(2)
    >>> round(float(siglip_loss(x, x, torch.tensor(0.0), torch.tensor(0.0))), 4)  # log(1 + 1 / e) + log 2
    1.0064
    """
    pairs = _pairs(image, gene, normalise, group, gathered)
    logits = pairs.image * log_scale.exp() + bias
    own = torch.zeros_like(logits, dtype=torch.bool)
    own[torch.arange(len(logits), device=logits.device), pairs.partner] = True
    terms = F.logsigmoid(torch.where(own, logits, -logits))
    if pairs.counts is not None:
        terms = terms.masked_fill(~pairs.counts, 0.0)
    return -terms.sum() / len(logits)
