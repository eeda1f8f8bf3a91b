"""Small slides on a raster, and one trained model."""

from functools import cache

import pytest

import stimg
from stimg.model import STMAE

SMALL = {"n_latent": 8, "n_layers": 1, "n_decoder_layers": 1, "crop_size": (6, 6)}


@cache
def _slide(technology, shape, n_genes, n_sections, rng):
    adata = stimg.datasets.simulate(technology=technology, shape=shape, n_genes=n_genes, n_sections=n_sections, rng=rng)
    stimg.pp.rasterize(adata)
    return adata


def _make_slide(technology="visium", *, shape=(12, 12), n_genes=40, n_sections=1, rng=0):
    """A simulated slide on its raster, a copy of its own for every caller."""
    return _slide(technology, shape, n_genes, n_sections, rng).copy()


def _make_model(adata, **changes):
    """A small model of a slide."""
    STMAE.setup_anndata(adata)
    return STMAE(adata, **{**SMALL, **changes})


@pytest.fixture(scope="session")
def make_slide():
    return _make_slide


@pytest.fixture(scope="session")
def make_model():
    return _make_model


@pytest.fixture(scope="session")
def trained():
    """A slide and a model that was trained on it: to be read, not to be changed."""
    adata = _make_slide()
    model = _make_model(adata)
    model.train(max_epochs=3, validation_fraction=0.25, lr=5e-3, rng=0)
    return adata, model
