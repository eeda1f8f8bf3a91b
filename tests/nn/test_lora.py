"""The layers that are chosen, with the real network; the additions with a small stand-in for peft, and with peft where it is installed."""

import importlib.util
import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from stimg.nn.image import EfficientNetLite0
from stimg.nn.image.efficientnet import SameConv2d
from stimg.nn.lora import add_lora, layers


class Added(nn.Module):
    """A layer with a low-rank addition that starts at zero."""

    def __init__(self, base, config):
        super().__init__()
        self.base_layer, self.scale = base, config["lora_alpha"] / config["r"]
        n_in = base.in_features if isinstance(base, nn.Linear) else base.in_channels
        n_out = base.out_features if isinstance(base, nn.Linear) else base.out_channels
        make = type(base) if isinstance(base, nn.Linear) else (lambda a, b, bias: type(base)(a, b, 1, bias=bias))
        self.lora_A, self.lora_B = make(n_in, config["r"], bias=False), make(config["r"], n_out, bias=False)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x):
        return self.base_layer(x) + self.scale * self.lora_B(self.lora_A(x))


@pytest.fixture
def peft(monkeypatch):
    """A stand-in: every named layer is replaced by one with an addition."""

    def inject(config, network):
        for name in config["target_modules"]:
            parent, _, own = name.rpartition(".")
            setattr(network.get_submodule(parent), own, Added(network.get_submodule(name), config))

    module = ModuleType("peft")
    module.LoraConfig, module.inject_adapter_in_model = (lambda **options: options), inject
    monkeypatch.setitem(sys.modules, "peft", module)
    return module


def test_layers_are_chosen_by_type():
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.Conv2d(4, 4, 1),
        nn.Conv2d(4, 4, 1, groups=4),
        SameConv2d(4, 4, 1),
        nn.Flatten(),
        nn.Linear(4, 2),
        nn.Linear(2, 2),
    )
    network[6].requires_grad_(False)
    assert layers(network) == ["1", "3", "5"]

    class Special(nn.Conv2d):
        pass

    assert layers(nn.Sequential(Special(2, 2, 1), nn.Linear(2, 2))) == ["1"]


def test_efficientnet_has_its_pointwise_layers():
    found = layers(EfficientNetLite0())
    assert "classifier" in found
    assert len(found) == 15 + 16 + 1 + 1  # expansions, projections, the last convolution, the classifier


def adapted(alpha=16.0):
    torch.manual_seed(0)
    network = EfficientNetLite0(n_classes=5)
    network.classifier.requires_grad_(False)
    x = torch.randn(4, 3, 64, 64)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = None  # the statistics of this batch, so that random weights say something
    network(x)
    network.eval()
    before = network(x)
    names = add_lora(network, rank=4, alpha=alpha, dropout=0.0)
    return network, x, before, names


def check():
    network, x, before, names = adapted()
    torch.testing.assert_close(network(x), before)
    learning = [name for name, p in network.named_parameters() if p.requires_grad]
    assert learning
    assert all("lora_" in name for name in learning)
    assert len(learning) == 2 * len(names)
    assert "classifier" not in names
    network(x).sum().backward()
    for name, p in network.named_parameters():
        assert (p.grad is not None) == p.requires_grad, name
    with torch.no_grad():
        for name, p in network.named_parameters():
            if "lora_B" in name:
                p.add_(0.01)
    assert not torch.allclose(network(x), before)


def test_additions_start_at_nothing_and_learn_alone(peft):
    check()


@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed")
def test_the_same_with_peft_itself():
    check()


def test_a_network_without_such_layers(peft):
    with pytest.raises(ValueError, match="Conv2d has no linear layer and no convolution of 1 x 1"):
        add_lora(nn.Conv2d(3, 4, 3))


def test_peft_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    network = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ImportError, match=r"peft is needed .*pip install 'stimg\[lora\]'"):
        add_lora(network)
    assert type(network[0]) is nn.Linear
