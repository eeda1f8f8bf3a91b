"""``pp.resample``: sums against loops, areas against a fine grid of sample points."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import KDTree

import stimg.pp as pp
from stimg.data.slots import raster_libraries


def array(kind, seed=0, turn=0.0, n_libraries=1):
    rng = np.random.default_rng(seed)
    parts = []
    for lib in range(n_libraries):
        row = np.repeat(np.arange(7), 6)
        col = np.tile(np.arange(6), 7)
        if kind == "hex":
            col = 2 * col + row % 2
        keep = rng.random(len(row)) > 0.2
        row, col = row[keep], col[keep]
        points = np.stack([row * np.sqrt(3) / 2, col / 2], axis=1) if kind == "hex" else np.stack([row, col], axis=1)
        xy = 138.0 * points[:, ::-1] @ np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]).T + [400, 900]
        part = ad.AnnData(sp.csr_matrix(rng.poisson(2, (len(row), 5)).astype(np.float32)))
        part.obs_names = [f"{lib}-{i}" for i in range(len(row))]
        part.obs["array_row"], part.obs["array_col"] = row, col
        part.obs["library_id"], part.obs["donor"], part.obs["label"] = f"L{lib}", f"d{lib}", rng.choice(["a", "b"], len(row))
        part.obsm["spatial"] = xy
        parts.append(part)
    adata = ad.concat(parts)
    pp.rasterize(adata, pitch_um=100.0)
    return adata


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["hex", "square"]), st.integers(0, 2**31), st.floats(-1, 1), st.floats(20, 300), st.sampled_from(["nearest", "area"])
)
def test_sums_are_conserved(kind, seed, turn, pixel_um, method):
    adata = array(kind, seed, turn)
    out = pp.resample(adata, pixel_um=pixel_um, method=method)
    total, before = np.asarray(out.X.sum(axis=0)).ravel(), np.asarray(adata.X.sum(axis=0)).ravel()
    if method == "nearest":
        assert (total == before).all()
        assert out.X.dtype == adata.X.dtype
        assert out.obs["n_merged"].sum() == adata.n_obs
    else:
        assert np.allclose(total, before, rtol=1e-12)
    assert len(out.obs.drop_duplicates(["array_row", "array_col"])) == out.n_obs


def test_nearest_against_a_loop():
    adata = array("hex", turn=0.2)
    out = pp.resample(adata, pixel_um=80.0)
    library = raster_libraries(adata)["L0"]
    step = 80.0 / library.spec.mpp
    expected = {}
    for i, (y, x) in enumerate(library.spec.centres_px(library.rc)):
        key = (int(np.floor(y / step)), int(np.floor(x / step)))
        expected[key] = expected.get(key, 0) + adata.X[i].toarray().ravel()
    found = {(r, c): out.X[i].toarray().ravel() for i, (r, c) in enumerate(zip(out.obs["array_row"], out.obs["array_col"], strict=True))}
    assert found.keys() == expected.keys()
    assert all((found[k] == expected[k]).all() for k in found)


@pytest.mark.parametrize("kind", ["hex", "square"])
def test_area_against_sample_points(kind):
    """The share of a pixel is the share of the cell's points (those nearest to its centre) that lie in it."""
    adata = array(kind, turn=0.15)
    rc = adata.obsm["stimg_rc"]
    middle = int(np.argmin(((rc - rc.mean(axis=0)) ** 2).sum(axis=1)))
    adata.X = sp.csr_matrix(([1.0], ([middle], [0])), shape=adata.shape)
    out = pp.resample(adata, pixel_um=60.0, method="area")
    spec = raster_libraries(adata)["L0"].spec
    around = np.array([[r, c] for r in range(rc[middle, 0] - 2, rc[middle, 0] + 3) for c in range(rc[middle, 1] - 2, rc[middle, 1] + 3)])
    centres, here = spec.centres_px(around), spec.centres_px(rc[[middle]])[0]
    step = 60.0 / spec.mpp
    side = np.linspace(-138, 138, 1200)
    grid = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2) + here
    nearest = KDTree(centres).query(grid)[1]
    mine = grid[(around[nearest] == rc[middle]).all(axis=1)]
    pixels, counts = np.unique(np.floor(mine / step).astype(int), axis=0, return_counts=True)
    expected = {tuple(map(int, p)): c / counts.sum() for p, c in zip(pixels, counts, strict=True)}
    values = out.X[:, 0].toarray().ravel()
    found = {(r, c): v for r, c, v in zip(out.obs["array_row"], out.obs["array_col"], values, strict=True) if v > 1e-3}
    for key in found.keys() | expected.keys():
        assert found.get(key, 0) == pytest.approx(expected.get(key, 0), abs=3e-3)


def test_result_is_a_rasterised_object():
    adata = array("hex", n_libraries=2)
    adata.uns["spatial"] = {"L0": {"scalefactors": {"tissue_hires_scalef": 0.1}}}
    out = pp.resample(adata, pixel_um=100.0)
    assert set(out.obs["donor"][out.obs["library_id"] == "L1"]) == {"d1"}
    assert "label" not in out.obs
    assert out.uns["spatial"]["L0"]["scalefactors"]["tissue_hires_scalef"] == 0.1
    assert "bin_size_um" not in adata.uns["spatial"]["L0"]["scalefactors"]
    for library in raster_libraries(out).values():
        assert (library.spec.lattice, library.spec.pitch_um) == ("square", 100.0)
        assert np.allclose(library.spec.centres_px(library.rc), out.obsm["spatial"][library.rows][:, ::-1])
    again = out.copy()
    pp.rasterize(again)
    assert (again.obsm["stimg_rc"] == out.obsm["stimg_rc"]).all()
    assert out.var_names.equals(adata.var_names)


def test_square_to_its_own_pixels_changes_nothing():
    rng = np.random.default_rng(1)
    row, col = np.divmod(rng.permutation(64), 8)
    obs = pd.DataFrame({"array_row": row, "array_col": col, "library_id": "A"}, index=[str(i) for i in range(64)])
    adata = ad.AnnData(sp.csr_matrix(rng.poisson(1, (64, 4)).astype(np.float32)), obs=obs)
    adata.obsm["spatial"] = (np.stack([col, row], axis=1) + 0.5) * 16.0
    pp.rasterize(adata, pitch_um=8.0)
    for method in ("nearest", "area"):
        out = pp.resample(adata, pixel_um=8.0, method=method)
        order = np.lexsort((col, row))
        assert np.allclose(out.X.toarray(), adata.X[order].toarray(), atol=1e-6)


def test_errors():
    adata = array("hex")
    with pytest.raises(ValueError, match="method='mean'"):
        pp.resample(adata, pixel_um=8.0, method="mean")
    with pytest.raises(ValueError, match="pixel_um=-1"):
        pp.resample(adata, pixel_um=-1)
    del adata.obsm["stimg_rc"]
    with pytest.raises(KeyError, match=r"stimg.pp.rasterize"):
        pp.resample(adata, pixel_um=8.0)
