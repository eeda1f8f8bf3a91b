"""Attention over the items of bags of any size: many bags in one array, nothing padded."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stimg.nn.heads import Standardise

POOLINGS = ("attention", "mean")


def bag_softmax(scores: Tensor, bag: Tensor, n_bags: int) -> Tensor:
    """Return weights (n,) that sum to 1 in each bag: the softmax of ``scores`` (n,) over the items with the same number in ``bag`` (n,)."""
    largest = scores.new_full((n_bags,), -torch.inf).scatter_reduce(0, bag, scores.detach(), "amax")
    powers = torch.exp(scores - largest[bag])
    return powers / scores.new_zeros(n_bags).index_add(0, bag, powers)[bag]


def bag_sum(values: Tensor, bag: Tensor, n_bags: int) -> Tensor:
    """Return the sums (n_bags, dim) of ``values`` (n, dim) over the items of each bag."""
    return values.new_zeros(n_bags, values.shape[1]).index_add(0, bag, values)


class GatedAttention(nn.Module):
    r"""Weighted mean of the items of each bag, with learned weights (Ilse et al. 2018, arXiv 1802.04712, equation 9).

    Item :math:`h` of a bag gets the weight :math:`\operatorname{softmax}(w^\top(\tanh(Vh) \odot \sigma(Uh)))`, the softmax over its bag.

    Parameters
    ----------
    n_features
        Width of the items.
    n_hidden
        Rows of :math:`V` and :math:`U`.

    Examples
    --------
    >>> pooled, weights = GatedAttention(4)(torch.ones(5, 4), torch.tensor([0, 0, 0, 1, 1]), 2)
    >>> pooled.shape, round(float(weights[:3].sum()), 6)
    (torch.Size([2, 4]), 1.0)
    """

    def __init__(self, n_features: int, n_hidden: int = 128) -> None:
        super().__init__()
        self.what, self.gate = nn.Linear(n_features, n_hidden), nn.Linear(n_features, n_hidden)
        self.weight = nn.Linear(n_hidden, 1, bias=False)

    def forward(self, items: Tensor, bag: Tensor, n_bags: int) -> tuple[Tensor, Tensor]:
        """Return the pooled bags (n_bags, n_features), and the weight of each item (n,).

        Parameters
        ----------
        items
            (n, n_features), the items of all bags, in any order.
        bag
            int64 (n,), the bag of each item, from 0 to ``n_bags - 1``; a bag without items is pooled to zeros.
        n_bags
            Number of bags.
        """
        scores = self.weight(torch.tanh(self.what(items)) * torch.sigmoid(self.gate(items))).squeeze(1)
        weights = bag_softmax(scores, bag, n_bags)
        return bag_sum(weights[:, None] * items, bag, n_bags), weights


class MILModule(nn.Module):
    """A classifier of bags: items are standardised and embedded, pooled, and the pooled bag is read linearly.

    Parameters
    ----------
    n_features
        Width of the items.
    n_classes
        Number of classes.
    n_hidden
        Width of the embedding, a linear map with ReLU.
    n_attention
        Hidden width of :class:`GatedAttention`.
    dropout
        Of the embedded items and of the pooled bag.
    pooling
        ``"attention"``, or ``"mean"``: all items of a bag weigh the same.
    """

    class_weight: Tensor

    def __init__(
        self,
        n_features: int,
        n_classes: int,
        *,
        n_hidden: int = 64,
        n_attention: int = 64,
        dropout: float = 0.5,
        pooling: str = "attention",
    ) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"pooling={pooling!r} is not known; wanted one of {list(POOLINGS)}.")
        self.standardise = Standardise(n_features)
        self.embed = nn.Sequential(nn.Linear(n_features, n_hidden), nn.ReLU(), nn.Dropout(dropout))
        self.attention = GatedAttention(n_hidden, n_attention) if pooling == "attention" else None
        self.classify = nn.Sequential(nn.Dropout(dropout), nn.Linear(n_hidden, n_classes))
        self.register_buffer("class_weight", torch.ones(n_classes))

    def pool(self, items: Tensor, bag: Tensor, n_bags: int) -> tuple[Tensor, Tensor]:
        """Return the embedding of each bag, (n_bags, n_hidden), and the weight of each item, (n,)."""
        return self._pool(self.embed(self.standardise(items)), bag, n_bags)

    def _pool(self, embedded: Tensor, bag: Tensor, n_bags: int) -> tuple[Tensor, Tensor]:
        if self.attention is not None:
            return self.attention(embedded, bag, n_bags)  # type: ignore[no-any-return]
        weights = bag_softmax(embedded.new_zeros(len(bag)), bag, n_bags)
        return bag_sum(weights[:, None] * embedded, bag, n_bags), weights

    def contributions(self, items: Tensor, bag: Tensor, n_bags: int) -> Tensor:
        """Return what each item adds to the logits of its bag, less the mean over classes, (n, n_classes).

        The pooled bag is read linearly, so the items of a bag and the bias add up to its logits, but for a number that is the same for all classes.
        """
        embedded = self.embed(self.standardise(items))
        weights = self._pool(embedded, bag, n_bags)[1]
        values = weights[:, None] * F.linear(embedded, self.classify[1].weight)  # type: ignore[arg-type]
        return values - values.mean(dim=1, keepdim=True)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return ``logits`` (n_bags, n_classes), and ``loss`` where the batch has labels.

        Parameters
        ----------
        batch
            ``items`` (n, n_features) and ``bag`` int64 (n,); ``label`` int64 (n_bags,), or ``n_bags``, an integer tensor. The loss is the
            cross-entropy, weighted by ``class_weight``.
        """
        n_bags = len(batch["label"]) if "label" in batch else int(batch["n_bags"])
        logits = self.classify(self.pool(batch["items"], batch["bag"], n_bags)[0])
        found = {"logits": logits}
        if "label" in batch:  # a mean over bags, not over weights: the loss of a batch must not depend on which classes are together in it
            each = F.cross_entropy(logits.float(), batch["label"], weight=self.class_weight, reduction="none")
            found["loss"] = each.mean()
        return found
