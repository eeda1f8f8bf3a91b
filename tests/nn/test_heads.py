import numpy as np
import pytest
import torch
from torch import nn

from stimg.nn.heads import Adversary, Head, Project, Standardise, reverse_gradient


def test_a_linear_head_is_a_matrix():
    head = Head(5, 3, kind="linear", dropout=0.5).eval()
    x = torch.randn(4, 5)
    torch.testing.assert_close(head(x), x @ head.linear.weight.T + head.linear.bias)
    assert not torch.equal(head.train()(x), head.eval()(x))  # dropout of the input


def test_an_mlp_by_hand():
    head = Head(5, 3, kind="mlp", n_hidden=7, dropout=0.4).eval()
    x = torch.randn(4, 5)
    first, last = head.layers[0], head.layers[3]
    hidden = x @ first.weight.T + first.bias
    hidden = 0.5 * hidden * (1 + torch.erf(hidden / np.sqrt(2)))
    out = hidden @ last.weight.T + last.bias
    out = (out - out.mean(1, keepdim=True)) / (out.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(head(x), out, atol=1e-5, rtol=1e-5)


def test_a_residual_head_starts_linear():
    head = Head(5, 3, kind="residual").eval()
    x = torch.randn(4, 5)
    torch.testing.assert_close(head(x), head.linear(x))
    head(x).square().sum().backward()
    assert head.layers[3].weight.grad.abs().sum() > 0


def test_standardise_and_back():
    layer = Standardise(3)
    layer.mean.copy_(torch.tensor([1.0, 2.0, 3.0]))
    layer.scale.copy_(torch.tensor([2.0, 4.0, 0.5]))
    x = torch.randn(6, 3)
    torch.testing.assert_close(layer(x), (x - layer.mean) / layer.scale)
    torch.testing.assert_close(layer.invert(layer(x)), x)
    assert not list(layer.parameters())
    assert set(layer.state_dict()) == {"mean", "scale"}


def test_project():
    layer = Project(4, 2)
    layer.axes.copy_(torch.randn(4, 2))
    x = torch.randn(3, 4)
    torch.testing.assert_close(layer(x), x @ layer.axes)
    assert not list(layer.parameters())


def test_the_gradient_is_reversed():
    x = torch.randn(5, 2, requires_grad=True)
    y = reverse_gradient(x, 0.3)
    assert torch.equal(x, y)
    (y**2).sum().backward()
    torch.testing.assert_close(x.grad, -0.3 * 2 * x.detach())


def test_an_adversary_learns_and_what_lies_before_unlearns():
    torch.manual_seed(0)
    group = torch.arange(40) % 2
    x = torch.randn(40, 3) + 3 * group[:, None]
    adversary, before = Adversary(3, 2), nn.Linear(3, 3)
    loss = nn.functional.cross_entropy(adversary(before(x)), group)
    loss.backward()
    with torch.no_grad():
        for p in adversary.parameters():
            p -= 0.05 * p.grad
        better = nn.functional.cross_entropy(adversary(before(x)), group)
        for p in before.parameters():
            p -= 0.05 * p.grad
        worse = nn.functional.cross_entropy(adversary(before(x)), group)
    assert better < loss
    assert worse > better


@pytest.mark.parametrize("n_layers", [0, 1, 3])
def test_gene_mlp(n_layers):
    from stimg.nn.gene import GeneMLP

    net = GeneMLP(6, 4, n_hidden=5, n_layers=n_layers, dropout=0.5).eval()
    x = torch.randn(7, 6)
    assert net(x).shape == (7, 4)
    torch.testing.assert_close(net(x)[2:3], net(x[2:3]))  # nobody else in the batch matters
    assert sum(isinstance(m, nn.Linear) for m in net.modules()) == n_layers + 1
    out = x
    for layer in net.layers:
        if isinstance(layer, nn.Linear):
            out = out @ layer.weight.T + layer.bias
        elif isinstance(layer, nn.LayerNorm):
            out = (out - out.mean(1, keepdim=True)) / (out.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        elif isinstance(layer, nn.GELU):
            out = 0.5 * out * (1 + torch.erf(out / np.sqrt(2)))
    torch.testing.assert_close(net(x), out, atol=1e-5, rtol=1e-5)
