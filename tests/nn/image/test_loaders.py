"""Loading with packages that stand in for timm, transformers, huggingface_hub and conch: what is asked of them, and what is said when they fail."""

import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import stimg
from stimg.nn.image import load_image_encoder
from stimg.nn.image._ctranspath import ConvStem, convert
from stimg.nn.image.loaders import read_weights


class GatedRepoError(OSError):
    """As the hub's client names it."""

    response = SimpleNamespace(status_code=401)


class LocalEntryNotFoundError(FileNotFoundError):
    """As the hub's client names it."""


class Net(nn.Module):
    """A tiny network as timm gives it."""

    def __init__(self, width=8, **arguments):
        super().__init__()
        self.num_features, self.arguments = width, arguments
        self.patch = nn.Conv2d(3, width, 4, stride=4)
        self.norm = nn.LayerNorm(width)

    def forward(self, x):
        return self.norm(self.patch(x).mean(dim=(2, 3)))


class Swin(Net):
    """One with a patch embedding to be replaced."""

    def __init__(self, **arguments):
        super().__init__(8)
        del self.patch
        self.patch_embed = nn.Module()
        self.patch_embed.norm = nn.LayerNorm(8)
        self.patch_embed.proj = nn.Conv2d(3, 8, 4, stride=4)

    def forward(self, x):
        return self.norm(self.patch_embed(x).mean(dim=(1, 2)))


@pytest.fixture
def card():
    return replace(
        stimg.zoo.get("uni2_h"),
        name="made",
        title="Made",
        repo="someone/made",
        n_features=8,
        size_px=16,
        extra={
            "architecture": "vit_made",
            "kwargs": {"depth": 2, "mlp_layer": "SwiGLUPacked", "act_layer": "SiLU"},
            "hub": {"init_values": 1e-5},
            "drop": ("fc.",),
        },
    )


@pytest.fixture
def packages(monkeypatch, tmp_path):
    """Stand-ins that record their calls; ``fail`` holds what they raise."""
    calls, state = [], SimpleNamespace(fail=None, make=Net, snapshot=tmp_path / "snapshot")

    def raising():
        if state.fail is not None:
            raise state.fail

    def create_model(name, pretrained=False, **arguments):
        calls.append((name, pretrained, arguments))
        if pretrained:
            raising()
        return state.make(**arguments)

    def snapshot_download(repo, local_files_only=False):
        calls.append(("snapshot", repo, local_files_only))
        raising()
        return str(state.snapshot)

    timm, hub, transformers = ModuleType("timm"), ModuleType("huggingface_hub"), ModuleType("transformers")
    timm.create_model, timm.layers = create_model, SimpleNamespace(SwiGLUPacked="the layer of timm")
    hub.snapshot_download = snapshot_download
    hub.hf_hub_download = lambda repo, file, local_files_only=False: (
        calls.append((repo, file, local_files_only)),
        raising(),
        str(state.snapshot / file),
    )[2]

    class AutoModel:
        @staticmethod
        def from_pretrained(source, local_files_only=False, output_loading_info=False):
            calls.append((source, local_files_only))
            raising()
            return state.make(), {"missing_keys": state.missing}

    state.missing = {"embeddings.mask_token"}
    transformers.AutoModel = AutoModel
    for module in (timm, hub, transformers):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return SimpleNamespace(calls=calls, state=state)


def tiles(size=16):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, size, size, 3), dtype=np.uint8))


def test_from_the_hub(packages, card):
    before = torch.random.get_rng_state()
    encoder = load_image_encoder(card)
    assert packages.calls == [("hf-hub:someone/made", True, {"init_values": 1e-5})]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not encoder.training
    assert not encoder.network.training
    assert encoder.source == "someone/made"
    assert encoder(tiles()).shape == (2, 8)


@pytest.mark.parametrize("how", ["argument", "variable"])
def test_offline_asks_for_local_files_alone(packages, card, monkeypatch, how):
    packages.state.snapshot.mkdir()
    (packages.state.snapshot / "config.json").write_text("{}")
    if how == "variable":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    load_image_encoder(card, offline=True if how == "argument" else None)
    assert packages.calls == [
        ("snapshot", "someone/made", True),
        (f"local-dir:{packages.state.snapshot}", True, {"init_values": 1e-5}),
    ]
    packages.calls.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    load_image_encoder(card, offline=False)
    assert packages.calls[0][0] == "hf-hub:someone/made"


@pytest.mark.parametrize("kind", [".safetensors", ".bin", ".pth", "wrapped", "folder", "ddp"])
def test_from_a_file(packages, card, tmp_path, kind):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        known = Net().eval()
    weights = {**known.state_dict(), "fc.weight": torch.zeros(3, 8)}
    path = tmp_path / f"weights{kind if kind.startswith('.') else '.pth'}"
    if kind == ".safetensors":
        save_file(weights, path)
    elif kind == "wrapped":
        torch.save({"epoch": 3, "model": weights}, path)
    elif kind == "ddp":
        torch.save({"state_dict": {f"module.{k}": v for k, v in weights.items()}}, path)
        card = replace(card, extra={**card.extra, "drop": ("fc.",)})
    else:
        torch.save(weights, path)
    encoder = load_image_encoder(card, path=tmp_path if kind == "folder" else path)
    ((name, pretrained, arguments),) = packages.calls
    assert (name, pretrained) == ("vit_made", False)
    assert arguments == {"depth": 2, "mlp_layer": "the layer of timm", "act_layer": nn.SiLU}
    with torch.inference_mode():
        assert torch.equal(encoder(tiles()), known(encoder.prepare(tiles())))
    assert encoder.source == str(tmp_path if kind == "folder" else path)


def test_a_folder_as_the_hub_keeps_it(packages, card, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    load_image_encoder(card, path=tmp_path)
    assert packages.calls == [(f"local-dir:{tmp_path}", True, {"init_values": 1e-5})]


def test_weights_of_another_network(packages, card, tmp_path):
    state = Net().state_dict()
    torch.save({**state, "norm.bias": torch.zeros(7)}, tmp_path / "a.pth")
    with pytest.raises(
        ValueError, match=r"a.pth does not hold the weights of Made: of 4, 1 have another shape \('norm.bias': \(7,\), wanted \(8,\)\)"
    ):
        load_image_encoder(card, path=tmp_path / "a.pth")
    torch.save({"patch.weight": state["patch.weight"], "head.weight": torch.zeros(1)}, tmp_path / "b.pth")
    with pytest.raises(
        ValueError, match=r"3 are missing \(such as 'patch.bias'\), 1 are unknown \(such as 'head.weight'\). Pass those of someone/made"
    ):
        load_image_encoder(card, path=tmp_path / "b.pth")
    packages.state.make = lambda **_: Net(width=6)
    with pytest.raises(ValueError, match=r"someone/made holds a network of width 6; Made has 8"):
        load_image_encoder(card)
    packages.state.make, packages.state.fail = Net, RuntimeError("Error(s) in loading state_dict for Net: size mismatch for norm.bias")
    with pytest.raises(ValueError, match=r"does not fit the network \(Error\(s\) in loading state_dict"):
        load_image_encoder(card)


def test_files_that_hold_no_weights(packages, card, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"path='.*nowhere.pth' does not exist"):
        load_image_encoder(card, path=tmp_path / "nowhere.pth")
    with pytest.raises(FileNotFoundError, match="holds no single file of weights"):
        load_image_encoder(card, path=tmp_path)
    for name, content in (("cut.pth", b"PK\x03\x04 and no more"), ("cut.safetensors", b"\xff" * 20), ("empty.bin", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name} cannot be read as weights \(.*\). Copy it again"):
            read_weights(tmp_path / name)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match=r"holds no weights by name. Save `network.state_dict\(\)`"):
        read_weights(tmp_path / "list.pth")
    torch.save(Net(), tmp_path / "pickled.pth")
    with pytest.raises(ValueError, match="pickled code is not loaded"):
        read_weights(tmp_path / "pickled.pth")
    with pytest.raises(ValueError, match="names no architecture"):
        load_image_encoder(replace(card, extra={}), path=tmp_path / "list.pth")


def wrapped(cause, kind=OSError):
    """As transformers raises: an error of its own around that of the hub."""
    error = kind("You are trying to access a gated repo.\nMake sure to have access to it.")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error", [GatedRepoError("401 Client Error"), wrapped(GatedRepoError("x")), wrapped(None)], ids=["hub", "transformers", "status"]
)
def test_gated_weights(packages, card, error):
    if error.__cause__ is None and not isinstance(error, GatedRepoError):
        error.response = SimpleNamespace(status_code=403)
    packages.state.fail = error
    with pytest.raises(PermissionError) as caught:
        load_image_encoder(card)
    message = str(caught.value)
    for part in (
        "Made are gated",
        "someone/made",
        "Accept the licence (CC-BY-NC-ND-4.0)",
        "hf auth login",
        "`path=`",
        "stimg.pp.read_embedding",
    ):
        assert part in message
    assert caught.value.__cause__ is error


def test_weights_that_are_not_there(packages, card):
    packages.state.fail = LocalEntryNotFoundError("Cannot find the requested files in the local cache\nand more")
    with pytest.raises(
        FileNotFoundError, match=r"offline mode is on, and they are not in the local cache \(Cannot find the .* cache\). Download them once"
    ):
        load_image_encoder(card, offline=True)
    with pytest.raises(FileNotFoundError, match=r"someone/made\) were not found: the hub could not be reached"):
        load_image_encoder(card)
    packages.state.fail = ConnectionError()
    with pytest.raises(FileNotFoundError, match=r"could not be reached \(ConnectionError\)"):
        load_image_encoder(card)
    packages.state.fail = OSError("disk")
    with pytest.raises(FileNotFoundError, match=r"could not be loaded \(disk\)"):
        load_image_encoder(card)
    with pytest.raises(FileNotFoundError, match=r"CTransPath are on no hub.*`path=`.*read_embedding"):
        load_image_encoder("ctranspath")
    with pytest.raises(ValueError, match=r"Image MAE of stimg has no weights of its own.*`encoder=` of `stimg.tl.embed_image`"):
        load_image_encoder("image_mae")
    with pytest.raises(ValueError, match=r"no image encoder named 'unni'. Did you mean 'uni'"):
        load_image_encoder("unni")


@pytest.mark.parametrize(("name", "package"), [("uni", "timm"), ("phikon_v2", "transformers")])
def test_missing_packages(monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{package} is needed \(to build .*\).*pip install 'stimg\[encoders\]'"):
        load_image_encoder(name)


def test_a_broken_pair_of_torch_and_torchvision(monkeypatch, tmp_path):
    (tmp_path / "timm.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match="torchvision does not match the installed torch"):
        load_image_encoder("uni")


class Dino(nn.Module):
    """A tiny network as transformers gives it."""

    def __init__(self, width=8, model_type="dinov2"):
        super().__init__()
        self.config = SimpleNamespace(hidden_size=width, model_type=model_type)
        self.patch = nn.Conv2d(3, width, 4, stride=4)

    def forward(self, pixel_values):
        return SimpleNamespace(last_hidden_state=self.patch(pixel_values).flatten(2).transpose(1, 2))


@pytest.fixture
def dino_card():
    return replace(stimg.zoo.get("dinov2_small"), name="made", title="Made", repo="someone/dino", n_features=8, size_px=16, multiple_of=4)


def test_transformers(packages, dino_card, tmp_path):
    packages.state.make = Dino
    encoder = load_image_encoder(dino_card)
    assert packages.calls == [("someone/dino", False)]
    x = encoder.prepare(tiles())
    with torch.inference_mode():
        assert torch.equal(encoder(tiles()), encoder.network.network.patch(x)[:, :, 0, 0])
    packages.calls.clear()
    packages.state.snapshot.mkdir()
    load_image_encoder(dino_card, offline=True)
    assert packages.calls == [("snapshot", "someone/dino", True), (str(packages.state.snapshot), True)]
    packages.calls.clear()
    assert load_image_encoder(dino_card, path=tmp_path).source == str(tmp_path)
    assert packages.calls == [(str(tmp_path), True)]
    packages.state.fail = wrapped(GatedRepoError("x"))
    with pytest.raises(PermissionError, match="Made are gated"):
        load_image_encoder(dino_card)


def test_transformers_of_another_kind(packages, dino_card, tmp_path):
    packages.state.make = lambda: Dino(model_type="vit")
    with pytest.raises(ValueError, match=r"someone/dino holds a 'vit' network; Made is a 'dinov2'"):
        load_image_encoder(dino_card)
    packages.state.make = lambda: Dino(width=6)
    with pytest.raises(ValueError, match="holds a network of width 6; Made has 8"):
        load_image_encoder(dino_card)
    packages.state.make, packages.state.missing = Dino, {"layer.1.weight", "mask_token"}
    with pytest.raises(ValueError, match=r"lacks 1 weights of Made, such as 'layer.1.weight'"):
        load_image_encoder(dino_card)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"is a file; Made wants the folder with config.json"):
        load_image_encoder(dino_card, path=tmp_path / "model.safetensors")


class Conch(nn.Module):
    """The part of CONCH that is used."""

    def __init__(self):
        super().__init__()
        self.visual, self.text = nn.Conv2d(3, 512, 4, stride=4), nn.Linear(2, 2)

    def encode_image(self, x, proj_contrast, normalize):
        assert (proj_contrast, normalize) == (False, False)
        return self.visual(x).mean(dim=(2, 3))


def test_conch(packages, monkeypatch):
    package, module, calls = ModuleType("conch"), ModuleType("conch.open_clip_custom"), []

    def create_model_from_pretrained(name, checkpoint_path, return_transform):
        calls.append((name, checkpoint_path, return_transform))
        return Conch()

    module.create_model_from_pretrained = create_model_from_pretrained
    for each in (package, module):
        monkeypatch.setitem(sys.modules, each.__name__, each)
    file = packages.state.snapshot / "pytorch_model.bin"
    file.parent.mkdir()
    torch.save(Conch().state_dict(), file)
    encoder = load_image_encoder("conch")
    assert packages.calls == [("MahmoodLab/CONCH", "pytorch_model.bin", False)]
    assert calls == [("conch_ViT-B-16", str(file), False)]
    with torch.inference_mode():
        assert encoder(tiles(448)).shape == (2, 512)
    load_image_encoder("conch", offline=True)
    assert packages.calls[-1][-1] is True
    torch.save({"visual.weight": torch.zeros(512, 3, 4, 4), "text.weight": torch.zeros(2, 2)}, file)
    with pytest.raises(ValueError, match=r"does not hold the weights of CONCH: of 2, 1 are missing \(such as 'visual.bias'\)"):
        load_image_encoder("conch", path=file)
    packages.state.fail = GatedRepoError("401")
    with pytest.raises(PermissionError, match="CONCH are gated"):
        load_image_encoder("conch")


def test_conch_is_in_no_package_index(monkeypatch):
    monkeypatch.setitem(sys.modules, "conch", None)
    with pytest.raises(ImportError, match=r"CONCH needs the package `conch`.*Install it from its authors' repository, mahmoodlab/CONCH"):
        load_image_encoder("conch")


def test_stem_of_ctranspath():
    """Against the same convolutions written out; the released network itself was compared by hand with timm_ctp 0.5.4: equal to the last bit."""
    torch.manual_seed(0)
    stem = ConvStem(16).eval()
    for norm in (stem.proj[1], stem.proj[4]):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2.0)
    x = torch.randn(2, 3, 16, 12)
    state = stem.state_dict()
    out = x
    for conv, norm in ((0, 1), (3, 4)):
        out = nn.functional.conv2d(out, state[f"proj.{conv}.weight"], stride=2, padding=1)
        mean, var, weight, bias = (state[f"proj.{norm}.{n}"][:, None, None] for n in ("running_mean", "running_var", "weight", "bias"))
        out = torch.relu((out - mean) / torch.sqrt(var + 1e-5) * weight + bias)
    out = torch.einsum("bchw,oc->bhwo", out, state["proj.6.weight"][:, :, 0, 0]) + state["proj.6.bias"]
    out = (out - out.mean(-1, keepdim=True)) / torch.sqrt(out.var(-1, unbiased=False, keepdim=True) + 1e-5)
    with torch.no_grad():
        found = stem(x)
    assert found.shape == (2, 4, 3, 16)
    torch.testing.assert_close(found, out, rtol=1e-4, atol=1e-5)


def test_names_of_the_released_ctranspath():
    released = [
        "patch_embed.proj.0.weight",
        "layers.0.downsample.norm.weight",
        "layers.2.downsample.reduction.weight",
        "layers.0.blocks.1.attn_mask",
    ]
    released += ["layers.1.blocks.0.attn.relative_position_index", "layers.1.blocks.0.attn.relative_position_bias_table", "norm.bias"]
    found = convert({name: torch.zeros(1) for name in released})
    assert list(found) == [
        "patch_embed.proj.0.weight",
        "layers.1.downsample.norm.weight",
        "layers.3.downsample.reduction.weight",
        "layers.1.blocks.0.attn.relative_position_bias_table",
        "norm.bias",
    ]


def test_ctranspath_from_its_file(packages, tmp_path):
    packages.state.make = Swin
    known = Swin()
    known.patch_embed = ConvStem(8)
    path = tmp_path / "ctranspath.pth"
    torch.save({"model": {**known.state_dict(), "head.weight": torch.zeros(1), "layers.0.blocks.1.attn_mask": torch.zeros(1)}}, path)
    card = replace(stimg.zoo.get("ctranspath"), n_features=8, size_px=16)
    encoder = load_image_encoder(card, path=path)
    with torch.inference_mode():
        torch.testing.assert_close(encoder(tiles()), known.eval()(encoder.prepare(tiles())))
    packages.state.make = Net
    with pytest.raises(ValueError, match="has no patch embedding with a layer norm"):
        load_image_encoder(card, path=path)


def test_a_real_network_of_transformers(tmp_path):
    """Where transformers is installed: a tiny DINOv2 saved by it, loaded by us."""
    transformers = pytest.importorskip("transformers", exc_type=(ImportError, RuntimeError))
    config = transformers.Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=28, patch_size=14)
    known = transformers.Dinov2Model(config).eval()
    known.save_pretrained(tmp_path)
    encoder = load_image_encoder(replace(stimg.zoo.get("dinov2_small"), n_features=32), path=tmp_path)
    with torch.inference_mode():
        torch.testing.assert_close(encoder(tiles(28)), known(encoder.prepare(tiles(28))).pooler_output)
    with pytest.raises(ValueError, match="holds a network of width 32; DINOv2 ViT-S/14 has 384"):
        load_image_encoder("dinov2_small", path=tmp_path)


def test_a_real_network_of_timm(tmp_path):
    """Where timm is installed and works: a tiny vision transformer from a file."""
    timm = pytest.importorskip("timm", exc_type=(ImportError, RuntimeError))
    arguments = {"img_size": 32, "num_classes": 0, "init_values": 1e-5, "dynamic_img_size": True}
    known = timm.create_model("vit_tiny_patch16_224", **arguments).eval()
    torch.save(known.state_dict(), tmp_path / "weights.bin")
    card = replace(
        stimg.zoo.get("uni"), n_features=192, size_px=32, extra={"architecture": "vit_tiny_patch16_224", "kwargs": arguments, "hub": {}}
    )
    encoder = load_image_encoder(card, path=tmp_path / "weights.bin")
    with torch.inference_mode():
        torch.testing.assert_close(encoder(tiles(32)), known(encoder.prepare(tiles(32))))
