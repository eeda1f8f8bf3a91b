"""Small slides on a raster, small pairs of image and expression, and a trained model of each."""

from functools import cache

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import stimg
from stimg.model import STMAE, ImageGeneCLIP

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


def _make_pairs(*, n=64, sections=4, donors=4, n_genes=24, n_features=12, effect=0.0, noise=0.6, shuffled=False, seed=0):
    """Sections whose image features and counts share a latent of four dimensions; ``effect`` moves each section's features and counts as a whole."""
    rng = np.random.default_rng(seed)
    to_image, to_gene = rng.normal(size=(4, n_features)), rng.normal(size=(4, n_genes)) * 0.5
    parts = []
    for s in range(sections):
        latent = rng.normal(size=(n, 4))
        image = latent @ to_image + noise * rng.normal(size=(n, n_features)) + effect * rng.normal(size=n_features)
        rate = np.exp(1.0 + latent @ to_gene + 0.3 * effect * rng.normal(size=n_genes))
        counts = rng.poisson(rate)
        side = int(np.ceil(np.sqrt(n)))
        at = np.arange(n)
        obs = pd.DataFrame({"library_id": f"S{s}", "donor": f"D{s % donors}"}, index=[f"s{s}_{i}" for i in at])
        order = rng.permutation(n) if shuffled else at
        obsm = {"X_image": image[order].astype(np.float32), "spatial": np.column_stack([at % side, at // side]) * 100.0}
        parts.append(ad.AnnData(sp.csr_matrix(counts.astype(np.float32)), obs=obs, obsm=obsm))
    adata = ad.concat(parts)
    adata.var_names = [f"g{i}" for i in range(n_genes)]
    adata.obs = adata.obs.astype("category")
    return adata


def _make_clip(adata, genes=None, *, image="X_image", gene=None, setup=None, **changes):
    """A small alignment of such sections."""
    ImageGeneCLIP.setup_anndata(adata, image=image, gene=gene, **(setup or {}))
    return ImageGeneCLIP(adata, genes, **{"n_dim": 8, **changes})


@pytest.fixture(scope="session")
def make_pairs():
    return _make_pairs


@pytest.fixture(scope="session")
def make_clip():
    return _make_clip


@pytest.fixture(scope="session")
def aligned():
    """Sections and an alignment that was trained on them: to be read, not to be changed."""
    adata = _make_pairs()
    model = _make_clip(adata, expression_weight=0.5)
    model.train(max_epochs=40, validation="donors", batch_size=64, lr=5e-3, rng=0)
    return adata, model
