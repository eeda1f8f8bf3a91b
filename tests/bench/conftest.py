"""Small sections for the tests of the evaluation."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import stimg


def make_section(library: str, donor: str, seed: int, shape=(9, 8), n_genes: int = 60) -> ad.AnnData:
    """A square section whose genes follow two gradients and a depth that differs from spot to spot."""
    rng = np.random.default_rng(seed)
    rc = np.argwhere(np.ones(shape))
    programmes = np.column_stack([rc[:, 0] / shape[0], rc[:, 1] / shape[1], np.ones(len(rc))])
    loading = np.random.default_rng(99).gamma(0.7, 1.0, (3, n_genes))  # the same genes mean the same in every section
    rate = programmes @ loading
    depth = rng.lognormal(6.5, 0.5, len(rc))
    counts = rng.poisson(depth[:, None] * rate / rate.sum(1, keepdims=True)).astype(np.float32)
    obs = pd.DataFrame(
        {
            "library_id": pd.Categorical([library] * len(rc)),
            "donor": pd.Categorical([donor] * len(rc)),
            "array_row": rc[:, 0],
            "array_col": rc[:, 1],
            "label": pd.Categorical(np.where(rc[:, 0] < shape[0] / 2, "top", "bottom")),
        },
        index=[f"{library}_{r}x{c}" for r, c in rc],
    )
    adata = ad.AnnData(sp.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(n_genes)]))
    adata.obsm["spatial"] = rc[:, ::-1] * 100.0 + 50
    adata.uns["spatial"] = {library: {"images": {}, "scalefactors": {"spot_diameter_fullres": 50.0, "microns_per_pixel": 2.0}}}
    return adata


@pytest.fixture(scope="session")
def _slides():
    names = [("A1", "A"), ("A2", "A"), ("B1", "B"), ("B2", "B"), ("C1", "C")]
    return {library: make_section(library, donor, i) for i, (library, donor) in enumerate(names)}


@pytest.fixture
def slides(_slides):
    """Five sections of three donors."""
    return {name: adata.copy() for name, adata in _slides.items()}


@pytest.fixture
def loaded(slides):
    """The same as a protocol gets them."""
    return stimg.bench.load_sections(slides)


@pytest.fixture(scope="session")
def section_of():
    """The function that makes such a section, of any shape."""
    return make_section
