"""The image side outside of stimg: as a file of torch.export, and through a stand-in for LazySlide's registry."""

import sys
from types import ModuleType

import numpy as np
import pytest
import torch

FIT = {"max_epochs": 5, "validation": None, "batch_size": 64, "lr": 5e-3, "rng": 0}


@pytest.fixture(scope="module")
def reading(make_pairs, make_clip):
    """Pairs, and a model with a decoder."""
    adata = make_pairs(sections=2, donors=2)
    model = make_clip(adata, expression_weight=1.0)
    model.train(**FIT)
    return adata, model


def test_an_exported_file_says_what_the_model_says(reading, tmp_path):
    adata, model = reading
    model.export(tmp_path / "side.pt2")
    side = torch.export.load(tmp_path / "side.pt2").module()
    for n in (1, 7):
        embedding, expression = side(torch.from_numpy(adata.obsm["X_image"][:n]))
        np.testing.assert_allclose(embedding.detach().numpy(), model.get_image_embedding()[:n], atol=1e-5)
        np.testing.assert_allclose(expression.detach().numpy(), model.predict_expression().to_numpy()[:n], atol=1e-4)
    with pytest.raises(FileExistsError, match="overwrite"):
        model.export(tmp_path / "side.pt2")
    with pytest.raises(ValueError, match="format"):
        model.export(tmp_path / "side.bin", format="pickle")
    assert [p.name for p in tmp_path.iterdir()] == ["side.pt2"]


def test_onnx_says_what_is_missing(reading, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match="pip install onnx"):
        reading[1].export(tmp_path / "side.onnx", format="onnx")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def lazyslide(monkeypatch):
    """What of lazyslide_models is used: a base class, the task, the registry."""
    package, base = ModuleType("lazyslide_models"), ModuleType("lazyslide_models.base")
    base.FeaturePredictionModel = type("FeaturePredictionModel", (), {})
    base.ModelTask = type("ModelTask", (), {"feature_prediction": "feature_prediction"})
    package.MODEL_REGISTRY, package.base = {}, base
    monkeypatch.setitem(sys.modules, "lazyslide_models", package)
    monkeypatch.setitem(sys.modules, "lazyslide_models.base", base)
    return package


def test_lazyslide_gets_one_column_a_gene(reading, lazyslide):
    adata, model = reading
    registered = model.to_lazyslide("mine")
    assert lazyslide.MODEL_REGISTRY["mine"] is type(registered)
    made = lazyslide.MODEL_REGISTRY["mine"]()  # as LazySlide does it
    found = made.predict(adata.obsm["X_image"][:5])
    assert list(found) == list(model.genes)
    wanted = model.predict_expression()
    for gene in model.genes:
        np.testing.assert_allclose(found[gene], wanted[gene].to_numpy()[:5], atol=1e-5)
    with pytest.raises(ValueError, match=r"reads \(n, 12\)"):
        made.predict(np.zeros((3, 4), dtype=np.float32))
    with pytest.raises(ValueError, match="already"):
        model.to_lazyslide("mine")


def test_without_lazyslide(reading, monkeypatch):
    monkeypatch.setitem(sys.modules, "lazyslide_models", None)
    monkeypatch.setitem(sys.modules, "lazyslide_models.base", None)
    with pytest.raises(ImportError, match="pip install lazyslide_models"):
        reading[1].to_lazyslide("mine")
