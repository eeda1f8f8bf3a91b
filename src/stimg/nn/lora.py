"""Low-rank additions to the layers of a network, by peft: a few trained weights beside many that stay."""

from torch import nn

from stimg._core.optional import need
from stimg.nn.image.efficientnet import SameConv2d


def layers(network: nn.Module) -> list[str]:
    """Return the names of the layers that take additions: linear maps, and convolutions of 1 x 1 without groups.

    Layers are chosen by type, so that any network has some. One whose weights do not learn is left out: it may not be used at all. So is a
    convolution of another class, which may do more than convolve.
    """
    found = []
    for name, part in network.named_modules():
        pointwise = type(part) in (nn.Conv2d, SameConv2d) and part.kernel_size == (1, 1) and part.groups == 1
        if (isinstance(part, nn.Linear) or pointwise) and part.weight.requires_grad:  # type: ignore[union-attr]
            found.append(name)
    return found


def _plain(network: nn.Module, names: list[str]) -> None:
    """Replace convolutions that pad by themselves, which for 1 x 1 is no padding, by torch's own, with the same weights: peft copies the class."""
    for name in names:
        part = network.get_submodule(name)
        if isinstance(part, SameConv2d):
            conv = nn.Conv2d(part.in_channels, part.out_channels, 1, part.stride, bias=False)  # type: ignore[arg-type]
            conv.weight = part.weight
            parent, _, own = name.rpartition(".")
            setattr(network.get_submodule(parent), own, conv.train(part.training))


def add_lora(network: nn.Module, *, rank: int = 8, alpha: float = 16.0, dropout: float = 0.1) -> list[str]:
    r"""Add :math:`\frac{\alpha}{r} B A` to the layers of ``network`` in place, freeze all else, and return the names of the layers.

    Hu et al. 2021 (arXiv 2106.09685). B starts at zero, so the network says the same as before.

    Parameters
    ----------
    network
        Linear layers and convolutions of 1 x 1 are taken, see :func:`layers`.
    rank, alpha, dropout
        r, :math:`\alpha`, and dropout of the additions' input.

    Raises
    ------
    ImportError
        Where peft is missing.
    ValueError
        Where no layer can take additions.
    """
    names = layers(network)
    if not names:
        raise ValueError(
            f"{type(network).__name__} has no linear layer and no convolution of 1 x 1 that learns, so nothing can be added to."
        )
    peft = need("peft", extra="lora", purpose="low-rank additions to an image encoder")
    _plain(network, names)
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=names)
    peft.inject_adapter_in_model(config, network)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_("lora_" in name)
    return names
