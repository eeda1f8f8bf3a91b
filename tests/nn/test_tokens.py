"""Tokens against a loop over spots and genes."""

import math

import numpy as np
import pytest
import torch

from stimg.nn import GeneTokens, pack
from stimg.nn.tokens import log_normalise


def tokens(kind, n_genes=11, dim=6, seed=0):
    torch.manual_seed(seed)
    return GeneTokens(n_genes, dim, kind).double()


def network(layers, x):
    """A two-layer network with GELU at one number, in numpy."""
    erf = np.vectorize(math.erf)
    first = layers[0].weight.detach().numpy()[:, 0] * x + layers[0].bias.detach().numpy()
    return layers[2].weight.detach().numpy() @ (0.5 * first * (1 + erf(first / np.sqrt(2))))


def naive(module, packed):
    n, n_spots, _ = packed.shape
    weight = module.weight.detach().numpy()
    out = np.zeros((n * n_spots, weight.shape[1]))
    for cell, gene, value in zip(packed.cell.tolist(), packed.channel.tolist(), packed.value.tolist(), strict=True):
        if module.kind == "linear":
            out[cell] += value * weight[gene]
        else:
            scale = network(module.scale, value) - network(module.scale, 0.0)
            out[cell] += weight[gene] * (value + scale) + network(module.shift, value) - network(module.shift, 0.0)
    return out.reshape(n, n_spots, -1)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
@pytest.mark.parametrize("seed", [0, 1])
def test_sparse_is_the_loop(make_batch, kind, seed):
    packed = pack(make_batch(seed=seed))
    module, n_cells = tokens(kind), packed.shape[0] * packed.shape[1]
    got = module.sparse(packed.cell, packed.channel, packed.value.double(), n_cells)
    np.testing.assert_allclose(got.detach().numpy(), naive(module, packed).reshape(n_cells, -1), atol=1e-10)
    shuffled = torch.randperm(len(packed.cell))
    again = module.sparse(packed.cell[shuffled], packed.channel[shuffled], packed.value[shuffled].double(), n_cells)
    np.testing.assert_allclose(again.detach().numpy(), got.detach().numpy(), atol=1e-10)


def test_dense_is_the_loop(make_batch):
    packed = pack(make_batch())
    assert (packed.panel < 0).any()
    module = tokens("linear")
    np.testing.assert_allclose(module.dense(packed.dense().double(), packed.panel).detach().numpy(), naive(module, packed), atol=1e-10)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_zero_adds_nothing(kind):
    module = tokens(kind)
    cell, channel, value = torch.tensor([0, 2]), torch.tensor([3, 4]), torch.tensor([1.5, 2.0]).double()
    got = module.sparse(cell, channel, value, 3)
    more = module.sparse(torch.tensor([0, 1, 2, 2]), torch.tensor([3, 5, 4, 7]), torch.tensor([1.5, 0.0, 2.0, 0.0]).double(), 3)
    np.testing.assert_allclose(more.detach(), got.detach(), atol=1e-12)
    assert not got[1].any()
    assert not module.sparse(cell[:0], channel[:0], value[:0], 2).any()


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_value_and_gene_are_bound(kind):
    module, cell, channel = tokens(kind), torch.tensor([0, 0]), torch.tensor([3, 4])
    one = module.sparse(cell, channel, torch.tensor([1.0, 2.0]).double(), 1)
    other = module.sparse(cell, channel, torch.tensor([2.0, 1.0]).double(), 1)
    assert (one - other).abs().max() > 0.01


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_permuted_channels(make_batch, kind):
    packed, rng = pack(make_batch()), np.random.default_rng(0)
    module, moved = tokens(kind), tokens(kind, seed=1)
    order = torch.from_numpy(rng.permutation(11))
    state = dict(module.state_dict())
    state["weight"] = torch.empty_like(state["weight"]).index_copy_(0, order, state["weight"])
    moved.load_state_dict(state)
    n_cells = packed.shape[0] * packed.shape[1]
    got = moved.sparse(packed.cell, order[packed.channel], packed.value.double(), n_cells)
    np.testing.assert_allclose(
        got.detach(), module.sparse(packed.cell, packed.channel, packed.value.double(), n_cells).detach(), atol=1e-10
    )
    if kind == "linear":
        columns = torch.from_numpy(rng.permutation(packed.shape[2]))
        panel = torch.where(packed.panel >= 0, order[packed.panel.clamp(min=0)], -1)[:, columns]
        again = moved.dense(packed.dense().double()[..., columns], panel)
        np.testing.assert_allclose(again.detach(), module.dense(packed.dense().double(), packed.panel).detach(), atol=1e-10)


def test_padding_has_no_effect(make_batch):
    packed, module = pack(make_batch()), tokens("linear")
    wide = torch.cat([packed.panel, torch.full((3, 4), -1)], 1)
    counts = torch.cat([packed.dense().double(), torch.zeros(*packed.shape[:2], 4).double()], 2)
    got = module.dense(counts, wide).detach()
    np.testing.assert_allclose(got, module.dense(packed.dense().double(), packed.panel).detach(), atol=1e-12)


def test_straightened_mlp_is_linear(make_batch):
    packed, module, linear = pack(make_batch()), tokens("mlp"), tokens("linear")
    linear.weight.data.copy_(module.weight.data)
    args = (packed.cell, packed.channel, packed.value.double(), packed.shape[0] * packed.shape[1])
    assert not torch.allclose(module.sparse(*args), linear.sparse(*args))
    module.straighten()
    np.testing.assert_allclose(module.sparse(*args).detach(), linear.sparse(*args).detach(), atol=1e-12)
    linear.straighten()


def test_log_normalise_is_that_of_scanpy(make_batch):
    batch = make_batch(widths=(11, 11), filled=(1.0, 0.7), extra=False)
    packed = pack(batch)
    counts = packed.dense().numpy()[packed.seen.numpy()]
    counts = counts[counts.sum(1) > 0]
    wanted = np.log1p(counts / counts.sum(1, keepdims=True) * 1e4)
    n_cells = packed.shape[0] * packed.shape[1]
    total = torch.zeros(n_cells).index_add_(0, packed.cell, packed.value)
    got = log_normalise(packed.value, packed.cell, total, torch.ones(n_cells))
    np.testing.assert_allclose(got, wanted[wanted > 0], rtol=1e-5)


def test_log_normalise_of_a_part_keeps_the_scale():
    # half of the counts are hidden: the visible total halves, and so does its expected share
    value, cell = torch.tensor([4.0, 6.0]), torch.tensor([0, 0])
    whole = log_normalise(value, cell, torch.tensor([20.0]), torch.tensor([1.0]))
    part = log_normalise(value, cell, torch.tensor([10.0]), torch.tensor([0.5]))
    np.testing.assert_allclose(part, whole)
    np.testing.assert_allclose(whole, np.log1p([2000.0, 3000.0]), rtol=1e-6)


def test_log_normalise_without_counts_is_finite():
    assert log_normalise(torch.tensor([0.0]), torch.tensor([0]), torch.tensor([0.0]), torch.tensor([1.0])).item() == 0


def test_unknown_kind():
    with pytest.raises(ValueError, match="'rank' is not known"):
        GeneTokens(3, 2, "rank")
