"""Pooling of packed bags against loops over bags."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stimg.nn import GatedAttention, MILModule
from stimg.nn.mil import bag_softmax, bag_sum

SIZES = (4, 1, 7, 2)


@pytest.fixture
def packed():
    """Items of four bags, in mixed order."""
    rng = np.random.default_rng(0)
    bag = torch.from_numpy(rng.permutation(np.repeat(np.arange(len(SIZES)), SIZES)))
    return torch.from_numpy(rng.normal(size=(sum(SIZES), 5)).astype(np.float32)), bag


@pytest.fixture
def attention():
    torch.manual_seed(1)
    return GatedAttention(5, 3)


def naive(attention, items):
    """Ilse et al., equations 7 and 9, item by item."""
    v, u, w = attention.what, attention.gate, attention.weight.weight[0]
    logits = [w @ (torch.tanh(v.weight @ h + v.bias) * torch.sigmoid(u.weight @ h + u.bias)) for h in items]
    a = torch.stack(logits).exp() / torch.stack(logits).exp().sum()
    return sum(weight * h for weight, h in zip(a, items, strict=True)), a


def test_packed_bags_are_pooled_as_each_alone(packed, attention):
    items, bag = packed
    pooled, weights = attention(items, bag, len(SIZES))
    for b in range(len(SIZES)):
        own, a = naive(attention, items[bag == b])
        torch.testing.assert_close(pooled[b], own)
        torch.testing.assert_close(weights[bag == b], a)


def test_gradients_are_those_of_the_loop(packed, attention):
    items, bag = packed
    items = items.clone().requires_grad_()
    attention(items, bag, len(SIZES))[0].square().sum().backward()
    found = [items.grad.clone(), *(p.grad.clone() for p in attention.parameters())]
    items.grad = None
    attention.zero_grad()
    sum(naive(attention, items[bag == b])[0].square().sum() for b in range(len(SIZES))).backward()
    for one, other in zip(found, [items.grad, *(p.grad for p in attention.parameters())], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_the_order_of_items_does_not_matter_and_other_bags_neither(packed, attention):
    items, bag = packed
    pooled, weights = attention(items, bag, len(SIZES))
    order = torch.from_numpy(np.random.default_rng(2).permutation(len(bag)))
    again, moved = attention(items[order], bag[order], len(SIZES))
    torch.testing.assert_close(again, pooled)
    torch.testing.assert_close(moved, weights[order])
    other = torch.where((bag == 2)[:, None], items, items + 100)
    torch.testing.assert_close(attention(other, bag, len(SIZES))[0][2], pooled[2])


def test_large_scores_do_not_overflow_and_empty_bags_are_zero():
    scores, bag = torch.tensor([1e4, 1e4 - 1, -1e4, 5.0]), torch.tensor([0, 0, 2, 2])
    weights = bag_softmax(scores, bag, 3)
    torch.testing.assert_close(weights[:2], torch.softmax(torch.tensor([1.0, 0.0]), 0))
    torch.testing.assert_close(weights[2:], torch.tensor([0.0, 1.0]))
    assert bag_sum(weights[:, None], bag, 3).squeeze(1).tolist() == [1.0, 0.0, 1.0]


@pytest.mark.parametrize("pooling", ["attention", "mean"])
def test_the_classifier_and_its_loss_are_those_of_the_formula(packed, pooling):
    items, bag = packed
    torch.manual_seed(3)
    module = MILModule(5, 3, n_hidden=6, n_attention=4, pooling=pooling).eval()
    module.standardise.mean.copy_(items.mean(0))
    module.standardise.scale.copy_(items.std(0))
    module.class_weight.copy_(torch.tensor([0.5, 1.0, 2.0]))
    label = torch.tensor([2, 0, 1, 2])
    out = module({"items": items, "bag": bag, "label": label})
    logits, losses = [], []
    for b in range(len(SIZES)):
        x = (items[bag == b] - items.mean(0)) / items.std(0)
        h = torch.relu(x @ module.embed[0].weight.T + module.embed[0].bias)
        z = h.mean(0) if pooling == "mean" else naive(module.attention, h)[0]
        logits.append(module.classify[1].weight @ z + module.classify[1].bias)
        losses.append(-module.class_weight[label[b]] * torch.log_softmax(logits[-1], 0)[label[b]])
    torch.testing.assert_close(out["logits"], torch.stack(logits))
    torch.testing.assert_close(out["loss"], torch.stack(losses).mean())
    assert "loss" not in module({"items": items, "bag": bag, "n_bags": torch.tensor(4)})


def test_unlike_a_padded_softmax_nothing_is_masked(packed, attention):
    items, bag = packed
    longest = max(SIZES)
    padded = torch.zeros(len(SIZES), longest, 5)
    mask = torch.zeros(len(SIZES), longest, dtype=torch.bool)
    for b in range(len(SIZES)):
        own = items[bag == b]
        padded[b, : len(own)], mask[b, : len(own)] = own, True
    scores = attention.weight(torch.tanh(attention.what(padded)) * torch.sigmoid(attention.gate(padded))).squeeze(2)
    weights = F.softmax(scores.masked_fill(~mask, -torch.inf), dim=1)
    torch.testing.assert_close(attention(items, bag, len(SIZES))[0], torch.einsum("bn,bnd->bd", weights, padded))


def test_an_unknown_pooling_is_refused():
    with pytest.raises(ValueError, match="pooling='max' is not known"):
        MILModule(4, 2, pooling="max")


@pytest.mark.parametrize("pooling", ["attention", "mean"])
def test_contributions_of_the_items_add_up_to_the_logits_of_their_bag(packed, pooling):
    items, bag = packed
    torch.manual_seed(3)
    module = MILModule(5, 3, n_hidden=6, n_attention=4, pooling=pooling).eval()
    found = module.contributions(items, bag, len(SIZES))
    logits = module({"items": items, "bag": bag, "n_bags": torch.tensor(len(SIZES))})["logits"]
    bias = module.classify[1].bias
    for b in range(len(SIZES)):
        total = sum(found[i] for i in range(len(items)) if bag[i] == b)
        torch.testing.assert_close(total, (logits[b] - logits[b].mean()) - (bias - bias.mean()), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.sum(1), torch.zeros(len(items)), rtol=0, atol=1e-6)
    assert found.std() > 0.01
