"""The tables of spatial_autocorr against squidpy on a graph made from distances."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from stimg.image.spec import RasterSpec
from stimg.pp import spatial_autocorr


def sections(lattice="square", libraries=2, seed=0) -> ad.AnnData:
    """Rasters with holes, an observation that is off its raster, and a constant gene."""
    rng = np.random.default_rng(seed)
    parity = 1 if lattice == "hex" else -1
    rc, names = [], []
    for library in range(libraries):
        here = np.argwhere(rng.random((9, 8)) > 0.2)
        rc.append(here)
        names += [f"lib{library}"] * len(here)
    rc = np.concatenate(rc)
    counts = rng.poisson(rng.gamma(1, 1, 25) * (1 + (rc[:, :1] > 4) * rng.random(25)), (len(rc), 25))
    counts[:, 7] = 0
    order = rng.permutation(len(rc))
    adata = ad.AnnData(sp.csr_matrix(np.log1p(counts[order]).astype(np.float32)))
    adata.obs_names = [f"spot{i}" for i in range(len(rc))]
    adata.var_names = [f"gene{i}" for i in range(25)]
    adata.obs["library_id"] = pd.Categorical(np.array(names)[order])
    adata.obsm["stimg_rc"] = rc[order].astype(np.int32)
    adata.obsm["stimg_rc"][3] = -1
    adata.uns["stimg"] = {"raster": {f"lib{k}": RasterSpec(lattice, (9, 8), 100.0, parity).to_dict() for k in range(libraries)}}
    return adata


def on_raster(adata: ad.AnnData, lattice: str, *, diagonal: bool) -> ad.AnnData:
    """The observations on their rasters with squidpy's graph slot, from distances."""
    out = adata[adata.obsm["stimg_rc"][:, 0] >= 0].copy()
    rc = out.obsm["stimg_rc"].astype(float)
    y, x = rc.T
    if lattice == "hex":
        x, y = x + 0.5 * (y % 2), y * np.sqrt(3) / 2
    distance = np.hypot(y[:, None] - y, x[:, None] - x)
    library = out.obs["library_id"].to_numpy()
    near = (distance > 0) & (distance < (1.5 if diagonal else 1.1)) & (library[:, None] == library)
    out.obsp["spatial_connectivities"] = sp.csr_matrix(near.astype(float))
    return out


@pytest.mark.parametrize(("lattice", "diagonal"), [("square", False), ("square", True), ("hex", False)])
@pytest.mark.parametrize("mode", ["moran", "geary"])
@pytest.mark.parametrize("transformation", [True, False])
def test_agrees_with_squidpy(lattice, diagonal, mode, transformation):
    import squidpy as sq

    adata = sections(lattice)
    key = {"moran": "moranI", "geary": "gearyC"}[mode]
    spatial_autocorr(adata, mode=mode, diagonal=diagonal, transformation=transformation)
    ours = adata.uns[key]
    reference = on_raster(adata, lattice, diagonal=diagonal)
    genes = [g for g in reference.var_names if g != "gene7"]  # squidpy's correction knows no NaN
    theirs = sq.gr.spatial_autocorr(reference, mode=mode, genes=genes, n_perms=None, transformation=transformation, copy=True)
    assert list(ours.columns) == list(theirs.columns)
    assert ours.index[-1] == "gene7"
    assert np.isnan(ours.loc["gene7", ours.columns[0]])
    assert list(ours.index[:-1]) == list(theirs.index)
    np.testing.assert_allclose(ours.iloc[:-1].to_numpy(), theirs.to_numpy(), rtol=1e-8, atol=1e-12)


def test_permutations_have_squidpys_columns_and_the_analytic_spread():
    import squidpy as sq

    adata = sections(libraries=1)
    spatial_autocorr(adata, n_perms=200, rng=5)
    ours = adata.uns["moranI"].dropna()
    assert len(ours) > 20
    reference = on_raster(adata, "square", diagonal=False)
    theirs = sq.gr.spatial_autocorr(reference, genes=list(ours.index), n_perms=10, seed=0, n_jobs=1, show_progress_bar=False, copy=True)
    assert list(ours.columns) == list(theirs.columns)
    assert ours["var_sim"].mean() == pytest.approx(ours["var_norm"].iloc[0], rel=0.15)
    again = sections(libraries=1)
    spatial_autocorr(again, n_perms=200, rng=5)
    pd.testing.assert_frame_equal(adata.uns["moranI"], again.uns["moranI"])
    spatial_autocorr(again, n_perms=200, rng=6)
    assert not adata.uns["moranI"].equals(again.uns["moranI"])


def test_genes_layers_dense_values_and_round_trip(tmp_path):
    adata = sections()
    spatial_autocorr(adata)
    every = adata.uns["moranI"]
    spatial_autocorr(adata, genes=["gene3", "gene1"])
    np.testing.assert_allclose(adata.uns["moranI"]["I"].sort_index(), every["I"].loc[["gene1", "gene3"]], rtol=1e-12)
    adata.layers["dense"] = adata.X.toarray()
    adata.X = sp.csr_matrix(adata.shape)
    spatial_autocorr(adata, layer="dense")
    pd.testing.assert_frame_equal(adata.uns["moranI"], every, rtol=1e-9)
    spatial_autocorr(adata, layer="dense", genes="gene3")
    assert list(adata.uns["moranI"].index) == ["gene3"]
    adata.write_h5ad(tmp_path / "a.h5ad")
    pd.testing.assert_frame_equal(ad.read_h5ad(tmp_path / "a.h5ad").uns["moranI"], adata.uns["moranI"])
    assert adata.uns["stimg"]["moranI"]["n_obs"] == adata.n_obs - 1


def test_values_of_observations_off_the_raster_take_no_part():
    adata = sections()
    spatial_autocorr(adata)
    before = adata.uns["moranI"]
    dense = adata.X.toarray()
    dense[3] = 1e5
    adata.X = sp.csr_matrix(dense)
    spatial_autocorr(adata)
    pd.testing.assert_frame_equal(adata.uns["moranI"], before)


def test_errors_say_what_was_found():
    adata = sections()
    with pytest.raises(ValueError, match="mode='getis'"):
        spatial_autocorr(adata, mode="getis")
    with pytest.raises(KeyError, match="TP53"):
        spatial_autocorr(adata, genes=["TP53"])
    with pytest.raises(KeyError, match="counts"):
        spatial_autocorr(adata, layer="counts")
    bad = adata.copy()
    bad.X.data[0] = np.nan
    with pytest.raises(ValueError, match="1 NaN"):
        spatial_autocorr(bad)
    bare = adata.copy()
    del bare.obsm["stimg_rc"]
    with pytest.raises(KeyError, match=r"stimg\.pp\.rasterize"):
        spatial_autocorr(bare)
    off = adata.copy()
    off.obsm["stimg_rc"][:] = -1
    with pytest.raises(ValueError, match="No observation is on a raster"):
        spatial_autocorr(off)
