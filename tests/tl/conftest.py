"""A slide on its raster, and a model trained on it."""

import pytest

import stimg
from stimg.model import STMAE


@pytest.fixture(scope="session")
def example():
    adata = stimg.datasets.simulate(technology="visium", shape=(10, 10), n_genes=30, n_sections=2, rng=0)
    stimg.pp.rasterize(adata)
    own = adata.copy()
    STMAE.setup_anndata(own)
    model = STMAE(own, n_latent=8, n_layers=1, crop_size=(6, 6))
    model.train(max_epochs=2, validation=["D1S2"], lr=5e-3)
    return adata, model


@pytest.fixture
def slide(example):
    """A copy to write to."""
    return example[0].copy()


@pytest.fixture(scope="session")
def model(example):
    return example[1]


@pytest.fixture
def sdata():
    data = stimg.datasets.simulate(technology="visium", shape=(10, 10), n_genes=30, n_sections=2, rng=0, as_sdata=True)
    stimg.pp.rasterize(data.tables["table"])
    return data
