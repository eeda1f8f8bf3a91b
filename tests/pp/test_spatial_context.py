"""Means over rings against a naive loop over all pairs."""

import numpy as np
import pytest

import stimg
from stimg.data.ledger import recall


@pytest.fixture(params=["visium", "st"])
def slide(request):
    adata = stimg.datasets.simulate(technology=request.param, shape=(9, 8), n_genes=20, n_donors=2, rng=1)
    adata = adata[np.random.default_rng(0).random(adata.n_obs) < 0.8].copy()
    stimg.pp.rasterize(adata)
    adata.obsm["X_some"] = np.random.default_rng(2).normal(size=(adata.n_obs, 3)).astype(np.float32)
    return adata


def naive(adata, rings):
    out = np.tile(np.asarray(adata.obsm["X_some"], dtype=float), len(rings))
    specs = adata.uns["stimg"]["raster"]
    for i in range(adata.n_obs):
        library = adata.obs["library_id"].iloc[i]
        pitch = specs[library]["pitch_um"] / adata.uns["spatial"][library]["scalefactors"]["microns_per_pixel"]
        for r, ring in enumerate(rings):
            inside = []
            for j in range(adata.n_obs):
                if adata.obs["library_id"].iloc[j] != library:
                    continue
                d = np.linalg.norm(adata.obsm["spatial"][i] - adata.obsm["spatial"][j]) / pitch
                if ring - 0.5 < d <= ring + 0.5:
                    inside.append(adata.obsm["X_some"][j])
            if inside:
                out[i, 3 * r : 3 * r + 3] = np.mean(inside, axis=0)
    return out


@pytest.mark.parametrize("rings", [(1,), (1, 2), (3,)])
def test_rings_are_those_of_a_naive_loop(slide, rings):
    stimg.pp.spatial_context(slide, key="X_some", rings=rings)
    assert slide.obsm["X_some_context"].dtype == np.float32
    np.testing.assert_allclose(slide.obsm["X_some_context"], naive(slide, rings), atol=1e-5)


def test_an_observation_alone_keeps_its_own_values(slide):
    alone = slide[[0]].copy()
    stimg.pp.spatial_context(alone, key="X_some", rings=(1, 2))
    np.testing.assert_array_equal(alone.obsm["X_some_context"], np.tile(alone.obsm["X_some"], 2))


def test_the_record_remembers_what_the_slot_was_fitted_on(slide):
    seen = stimg.bench.Seen("network", "model", ids=[1, 2], libraries=("other",))
    stimg.bench.remember(slide, "X_some", seen)
    stimg.pp.spatial_context(slide, key="X_some", key_added="X_near")
    assert slide.uns["stimg"]["X_near"]["rings"] == [1]
    assert [s.who for s in recall(slide, only=["X_near"])] == ["network"]


@pytest.mark.parametrize("rings", [(), (0,), (2, 1), (1, 1), (1.5,)])
def test_rings_that_are_none(slide, rings):
    with pytest.raises(ValueError, match="whole numbers from 1, rising"):
        stimg.pp.spatial_context(slide, key="X_some", rings=rings)


def test_bad_slots(slide):
    with pytest.raises(KeyError, match="X_absent"):
        stimg.pp.spatial_context(slide, key="X_absent")
    slide.obsm["X_some"][3, 1] = np.nan
    with pytest.raises(ValueError, match="X_some"):
        stimg.pp.spatial_context(slide, key="X_some")
    assert "X_some_context" not in slide.obsm
    slide.obsm["X_some"][3, 1] = 0.0
    del slide.obsm["stimg_rc"]
    with pytest.raises(KeyError, match="rasterize"):
        stimg.pp.spatial_context(slide, key="X_some")
