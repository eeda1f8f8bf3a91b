"""``tl.upsample`` against a naive loop over the finer lattice, ``tl.impute``, fields that are known off the lattice, and poisoned hidden values."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.spatial import KDTree

import stimg
from stimg._core import keys
from stimg.data.ledger import recall
from stimg.data.slots import raster_libraries
from stimg.image import RasterSpec
from stimg.image.interpolate import Interpolated

NEAREST = {"method": "nearest", "uncertainty": False}


def simulated(technology="visium", **options):
    adata = stimg.datasets.simulate(technology=technology, **{"shape": (11, 10), "n_genes": 20, "rng": 3, **options})
    stimg.pp.rasterize(adata)
    return adata


@pytest.fixture(scope="module", params=["st", "visium"])
def sparse(request):
    return stimg.pp.sparsify(simulated(request.param), mask="random", fraction=0.3)[0]


def logs(adata, genes):
    counts = np.asarray(adata.X.todense(), dtype=float)
    return np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))[:, adata.var_names.get_indexer(genes)]


def rasterised_again(table):
    """The table as a reader would have given it: nothing of stimg in it, and counts."""
    bare = ad.AnnData(sp.csr_matrix(np.ones(table.shape, dtype=np.float32)), obs=table.obs.copy(), obsm={"spatial": table.obsm["spatial"]})
    bare.uns["spatial"] = table.uns["spatial"]
    stimg.pp.rasterize(bare)
    return bare


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_nearest_by_a_naive_loop(sparse, factor):
    genes = sparse.var_names[[4, 1]].tolist()
    found = stimg.tl.upsample(sparse, factor=factor, genes=genes, **NEAREST)
    values = logs(sparse, genes)
    (library,) = raster_libraries(sparse).values()
    xy = library.spec.centres_px(library.rc)[:, ::-1]
    n = sparse.n_obs
    for row in range(n, found.n_obs, 7):
        apart = np.hypot(*(xy - found.obsm["spatial"][row]).T)
        near = apart <= apart.min() * (1 + 1e-6)
        low, high = values[near].min(axis=0), values[near].max(axis=0)  # any of several that are as near
        got = found.layers["stimg_nearest"][row]
        assert ((got >= low - 1e-5) & (got <= high + 1e-5)).all()
    np.testing.assert_allclose(found.layers["stimg_nearest"][:n], values, rtol=1e-6)
    assert (found.obs[keys.STATUS][:n] == "measured").all()
    assert found.obs_names[:n].tolist() == sparse.obs_names.tolist()


@pytest.mark.parametrize("factor", [2, 3])
def test_the_finer_lattice_is_a_raster_that_comes_out_of_its_coordinates(sparse, factor):
    found = stimg.tl.upsample(sparse, factor=factor, genes=sparse.var_names[:1], **NEAREST)
    ((name, coarse),) = raster_libraries(sparse).items()
    (finer,) = raster_libraries(found).values()
    assert len(finer.rows) == found.n_obs
    assert finer.spec.lattice == coarse.spec.lattice
    assert finer.spec.pitch_um == pytest.approx(coarse.spec.pitch_um / factor)
    um = found.obsm["spatial"] * finer.spec.mpp
    nearest = KDTree(um).query(um, k=2)[0][:, 1]
    np.testing.assert_allclose(nearest, coarse.spec.pitch_um / factor, rtol=1e-6)
    np.testing.assert_allclose(finer.spec.centres_px(finer.rc), found.obsm["spatial"][:, ::-1], atol=1e-6)
    np.testing.assert_array_equal(finer.rc[: sparse.n_obs, 0], factor * coarse.rc[:, 0])
    again = rasterised_again(found)
    np.testing.assert_array_equal(again.obsm[keys.RC], found.obsm[keys.RC] - found.obsm[keys.RC].min(axis=0))
    assert again.uns["stimg"]["raster"][name]["pitch_um"] == pytest.approx(finer.spec.pitch_um)
    for column in ("array_row", "array_col"):
        np.testing.assert_array_equal(found.obs[column][: sparse.n_obs], factor * sparse.obs[column])
    factors = [part.uns["spatial"][name]["scalefactors"]["spot_diameter_fullres"] for part in (sparse, found)]
    assert factors[1] == pytest.approx(factors[0] / factor)


def test_points_of_the_measured_lattice_are_those_of_impute(sparse):
    genes = sparse.var_names[:3].tolist()
    filled = stimg.tl.impute(sparse, genes=genes, method="kriging", rng=5)
    found = stimg.tl.upsample(sparse, factor=2, genes=genes, method="kriging", rng=5)
    n = sparse.n_obs
    on = np.flatnonzero(found.obs[keys.STATUS] == "imputed")
    assert len(on) == filled.n_obs - n
    away, at = KDTree(found.obsm["spatial"][on]).query(filled.obsm["spatial"][n:])
    assert away.max() < 1e-6
    for layer in ("stimg_kriging", "stimg_kriging_sd"):
        np.testing.assert_allclose(found.layers[layer][on[at]], filled.layers[layer][n:], rtol=1e-5)
    (coarse,) = raster_libraries(sparse).values()
    whole = KDTree(coarse.spec.centres_px(np.argwhere(np.ones(coarse.spec.shape)))[:, ::-1])
    invented = found.obsm["spatial"][(found.obs[keys.STATUS] == "invented").to_numpy()]
    away = whole.query(invented)[0] / (coarse.spec.pitch_um / coarse.spec.mpp)
    assert away.min() == pytest.approx(0.5)  # the middle of an edge, or of a square
    assert away.max() == pytest.approx(0.5 if coarse.spec.lattice == "hex" else np.sqrt(0.5))
    assert found.obs[keys.STATUS].cat.categories.tolist() == ["measured", "imputed", "invented"]
    assert np.isfinite(found.layers["stimg_kriging_sd"][n:]).all()


def test_a_wide_gap_stays_empty():
    whole = simulated("st", shape=(15, 15))
    hole = (np.abs(whole.obsm[keys.RC] - 7) <= 3).all(axis=1)
    adata = whole[~hole].copy()
    found = stimg.tl.upsample(adata, factor=2, genes=adata.var_names[:1], **NEAREST)
    rc = found.obsm[keys.RC]
    assert (np.abs(rc - 14) > 5).any(axis=1).all()
    assert len(found) < 29 * 29 - 100
    filled = stimg.tl.upsample(adata, factor=2, genes=adata.var_names[:1], max_gap_um=3000.0, **NEAREST)
    assert filled.n_obs == 29 * 29
    assert (filled.obs[keys.STATUS] == "imputed").sum() == 49


def field(lattice, seed=0):
    """A measured table on every second step of a fine lattice, the fine places in pixels, and the log rates there."""
    rng = np.random.default_rng(seed)
    spec = RasterSpec(lattice, (33, 33), 50.0, 1 if lattice == "hex" else -1, affine=((60.0, 0.0, 500.0), (0.0, 60.0, 900.0)), mpp=50 / 60)
    rc = np.argwhere(np.ones(spec.shape))
    y, x = spec.lattice_points(rc).T
    wave = [np.sin(y / 5.0 + 0.3), np.cos(x / 6.0), np.sin((y + x) / 7.0)]
    rates = np.exp(np.stack(wave, axis=1)) * 40
    rates = np.concatenate([rates, np.full((len(rc), 7), 60.0)], axis=1)
    half = 2 * rc[:, 1] + (rc[:, 0] % 2 == spec.hex_parity)  # half steps
    own = (rc[:, 0] % 2 == 0) & (((half - rc[:, 0]) % 4 == 0) if lattice == "hex" else (rc[:, 1] % 2 == 0))
    counts = sp.csr_matrix(rng.poisson(rates[own]).astype(np.float32))
    adata = ad.AnnData(
        counts, obs=pd.DataFrame({"library_id": pd.Categorical(["A"] * own.sum())}, index=[f"s{i}" for i in range(own.sum())])
    )
    adata.obsm["spatial"] = spec.centres_px(rc[own])[:, ::-1]
    stimg.pp.rasterize(adata, mpp=spec.mpp)
    return adata, spec.centres_px(rc)[:, ::-1], np.log1p(1e4 * rates / rates.sum(axis=1, keepdims=True))[:, :3]


@pytest.mark.parametrize("lattice", ["square", "hex"])
def test_a_smooth_field_is_recovered_between_the_points(lattice):
    adata, xy, truth = field(lattice)
    error = {}
    for method in ("nearest", "ensemble", "linear"):
        found = stimg.tl.upsample(adata, factor=2, genes=adata.var_names[:3], method=method, uncertainty=False)
        off = (found.obs[keys.STATUS] == "invented").to_numpy()
        away, at = KDTree(xy).query(found.obsm["spatial"][off])
        assert away.max() < 1e-6
        error[method] = np.sqrt(((found.layers[f"stimg_{method}"][off] - truth[at]) ** 2).mean())
        assert off.sum() > 600
    assert error["ensemble"] < 0.5 * error["nearest"]
    assert error["linear"] < 0.75 * error["nearest"]


def test_poisoned_hidden_values_change_nothing():
    whole = simulated("st")
    sparse, truth = stimg.pp.sparsify(whole, mask="quarter")
    poisoned = whole.copy()
    dense = poisoned.X.toarray()
    dense[poisoned.obs_names.isin(truth.obs_names)] = 777
    poisoned.X = sp.csr_matrix(dense)
    again, _ = stimg.pp.sparsify(poisoned, mask="quarter")
    a, b = (stimg.tl.upsample(s, factor=2, genes=sparse.var_names[:4].tolist()) for s in (sparse, again))
    for layer in ("stimg_ensemble", "stimg_ensemble_sd"):
        np.testing.assert_array_equal(a.layers[layer], b.layers[layer])
    spoilt = a.copy()
    spoilt.X = np.full(a.shape, 777.0)
    for layer in spoilt.layers:
        spoilt.layers[layer] = np.full(a.shape, 777.0)
    c = stimg.tl.upsample(sparse, grid=spoilt, genes=sparse.var_names[:4].tolist())
    np.testing.assert_array_equal(a.layers["stimg_ensemble"], c.layers["stimg_ensemble"])
    assert c.obs_names.tolist() == a.obs_names.tolist()
    pd.testing.assert_series_equal(c.obs[keys.STATUS], a.obs[keys.STATUS])


def test_square_pixels_on_a_hexagonal_lattice():
    adata = simulated("visium")
    found = stimg.tl.upsample(adata, pixel_um=40.0, genes=adata.var_names[:2], **NEAREST)
    (finer,) = raster_libraries(found).values()
    assert finer.spec.lattice == "square"
    um = found.obsm["spatial"] * finer.spec.mpp
    np.testing.assert_allclose(um % 40.0, 20.0, atol=1e-6)
    np.testing.assert_allclose(KDTree(um).query(um, k=2)[0][:, 1], 40.0)
    pixel = stimg.pp.resample(adata, pixel_um=40.0, method="area")
    assert {tuple(p) for p in found.obsm["spatial"].round(3)} <= {tuple(p) for p in pixel.obsm["spatial"].round(3)}
    assert (found.obs[keys.STATUS] == "invented").all()
    np.testing.assert_array_equal(rasterised_again(found).obsm[keys.RC], found.obsm[keys.RC] - found.obsm[keys.RC].min(axis=0))
    assert found.obs_names[0] == "D1S1_40um_{}x{}".format(*found.obsm[keys.RC][0])


def test_pixels_that_divide_a_square_pitch_are_a_factor():
    adata = simulated("st")
    a = stimg.tl.upsample(adata, pixel_um=50.0, genes=adata.var_names[:2], **NEAREST)
    b = stimg.tl.upsample(adata, factor=4, genes=adata.var_names[:2], **NEAREST)
    np.testing.assert_array_equal(a.layers["stimg_nearest"], b.layers["stimg_nearest"])
    pd.testing.assert_frame_equal(a.obs, b.obs)
    assert a.uns[keys.UNS][keys.RASTER]["D1S1"]["pitch_um"] == pytest.approx(50.0)
    other = stimg.tl.upsample(adata, pixel_um=60.0, genes=adata.var_names[:2], **NEAREST)
    assert other.uns[keys.UNS][keys.RASTER]["D1S1"]["pitch_um"] == pytest.approx(60.0)


def test_a_grid_keeps_the_observations_that_stand_on_it():
    adata = simulated("st")
    (library,) = raster_libraries(adata).values()
    step = library.spec.affine[0][0] / 2
    shift = (library.spec.affine[0][2] + 4 * step, library.spec.affine[1][2] + 2 * step)
    grid = RasterSpec(
        "square", (5, 9), library.spec.pitch_um / 2, affine=((step, 0.0, shift[0]), (0.0, step, shift[1])), mpp=library.spec.mpp
    )
    found = stimg.tl.upsample(adata, grid={"D1S1": grid}, genes=adata.var_names[:2], **NEAREST)
    assert found.n_obs == 5 * 9
    kept = found.obs_names[found.obs[keys.STATUS] == "measured"]
    assert {tuple(p) for p in adata[kept].obsm[keys.RC]} == {(r, c) for r in (2, 3, 4) for c in (1, 2, 3, 4, 5)}
    np.testing.assert_allclose(found[kept].layers["stimg_nearest"], logs(adata[kept], found.var_names), rtol=1e-6)
    assert {tuple(p) for p in found.obsm[keys.RC]} == {(r, c) for r in range(5) for c in range(9)}
    assert found.obs[keys.STATUS].cat.categories.tolist() == ["measured", "imputed", "invented"]
    again = stimg.tl.upsample(adata, grid=grid, genes=adata.var_names[:2], **NEAREST)
    np.testing.assert_array_equal(again.layers["stimg_nearest"], found.layers["stimg_nearest"])
    assert found.obs["array_row"].dtype.kind == "i"


def test_a_guide_of_features_at_every_place():
    adata = simulated("visium")
    genes = adata.var_names[:3].tolist()
    first = stimg.tl.upsample(adata, factor=2, genes=genes, **NEAREST)
    rng = np.random.default_rng(0)
    first.obsm["X_guide"] = rng.normal(size=(first.n_obs, 3))
    adata.obsm["X_guide"] = first.obsm["X_guide"][: adata.n_obs]
    order = rng.permutation(first.n_obs)[: first.n_obs - 9]
    grid = first[order].copy()
    guided = stimg.tl.upsample(adata, grid=grid, guide="X_guide", genes=genes, method="kriging")
    places = grid[~grid.obs_names.isin(adata.obs_names)].copy()
    expected = stimg.tl.impute(adata, targets=places, guide="X_guide", genes=genes, method="kriging")
    both = guided.obs_names.intersection(places.obs_names)
    assert len(both) == places.n_obs
    np.testing.assert_allclose(guided[both].layers["stimg_kriging"], expected[both].layers["stimg_kriging"], rtol=1e-4, atol=1e-5)
    plain = stimg.tl.upsample(adata, factor=2, genes=genes, method="kriging")
    assert not np.allclose(plain[both].layers["stimg_kriging"], guided[both].layers["stimg_kriging"], atol=1e-3)


def test_several_libraries_know_nothing_of_each_other():
    both, _ = stimg.pp.sparsify(simulated("visium", n_sections=2), mask="checkerboard")
    genes = both.var_names[:3].tolist()
    found = stimg.tl.upsample(both, factor=2, genes=genes, method="kriging")
    for name in ("D1S1", "D1S2"):
        alone = stimg.tl.upsample(both[both.obs["library_id"] == name].copy(), factor=2, genes=genes, method="kriging")
        mine = found[found.obs["library_id"] == name]
        assert sorted(mine.obs_names) == sorted(alone.obs_names)
        np.testing.assert_allclose(mine[alone.obs_names].layers["stimg_kriging"], alone.layers["stimg_kriging"], atol=1e-5)
        np.testing.assert_array_equal(mine[alone.obs_names].obsm[keys.RC], alone.obsm[keys.RC])
    with pytest.raises(ValueError, match=r"grid has the libraries \['D1S1'\], data has \['D1S1', 'D1S2'\]"):
        stimg.tl.upsample(both, grid={"D1S1": RasterSpec("square", (3, 3), 10.0)})
    with pytest.raises(ValueError, match=r"grid is one RasterSpec, but data has 2 libraries"):
        stimg.tl.upsample(both, grid=RasterSpec("square", (3, 3), 10.0))


def test_observations_that_are_not_on_the_raster_are_left_out(sparse):
    adata = sparse.copy()
    adata.obsm[keys.RC][3] = -1
    found = stimg.tl.upsample(adata, factor=2, genes=adata.var_names[:1], **NEAREST)
    assert (found.obsm[keys.RC] >= 0).all()
    assert sparse.obs_names[3] not in found.obs_names


def test_the_record_and_what_has_been_seen(sparse):
    before = sparse.copy()
    found = stimg.tl.upsample(sparse, factor=2, genes=sparse.var_names[:2].tolist(), method="kriging", key_added="fine")
    record = found.uns[keys.UNS]["fine"]
    assert record["verb"] == "stimg.tl.upsample"
    assert record["factor"] == 2
    assert record["pixel_um"] == "none"
    assert record["method"] == "kriging"
    assert record["unit"] == "log1p_cp10k"
    assert record["pitch_um"]["D1S1"] == pytest.approx(found.uns[keys.UNS][keys.RASTER]["D1S1"]["pitch_um"])
    assert sum(len(each.ids) for each in recall(found, only=["fine"])) == sparse.n_obs
    assert set(found.layers) - {None} == {"fine", "fine_sd"}
    for part in ("obs", "obsm", "uns"):
        assert list(getattr(before, part)) == list(getattr(sparse, part))
    np.testing.assert_array_equal(before.obsm[keys.RC], sparse.obsm[keys.RC])
    np.testing.assert_array_equal(before.obsm["spatial"], sparse.obsm["spatial"])
    assert sparse.uns["spatial"]["D1S1"]["scalefactors"] == before.uns["spatial"]["D1S1"]["scalefactors"]


def test_written_and_drawn(sparse, tmp_path):
    import matplotlib.pyplot as plt

    found = stimg.tl.upsample(sparse, factor=2, genes=sparse.var_names[:2].tolist(), **NEAREST)
    found.write_h5ad(tmp_path / "a.h5ad")
    back = ad.read_h5ad(tmp_path / "a.h5ad")
    np.testing.assert_array_equal(back.layers["stimg_nearest"], found.layers["stimg_nearest"])
    axes = stimg.pl.raster(back, color=back.var_names[0], layer="stimg_nearest")
    drawn = [c.get_array() for c in axes.collections if c.get_array() is not None]
    np.testing.assert_allclose(np.sort(np.concatenate(drawn)), np.sort(found.layers["stimg_nearest"][:, 0]), rtol=1e-6)
    plt.close("all")


def test_spatialdata(tmp_path):
    from spatialdata import get_element_annotators, read_zarr

    sdata = stimg.datasets.simulate(technology="visium", shape=(8, 8), n_genes=12, n_sections=2, rng=0, as_sdata=True)
    stimg.pp.rasterize(sdata.tables["table"])
    before = sdata.tables["table"].copy()
    expected = stimg.tl.upsample(before, factor=2, **NEAREST)
    assert stimg.tl.upsample(sdata, factor=2, **NEAREST) is None
    table = sdata.tables["table_upsampled"]
    np.testing.assert_array_equal(table.layers["stimg_nearest"], expected.layers["stimg_nearest"])
    assert (sdata.tables["table"].X != before.X).nnz == 0
    finer = raster_libraries(table)
    for name in ("D1S1", "D1S2"):
        circles = sdata.shapes[f"{name}_table_upsampled"]
        mine = (table.obs["library_id"] == name).to_numpy()
        np.testing.assert_allclose(np.column_stack([circles.geometry.x, circles.geometry.y]), table.obsm["spatial"][mine])
        np.testing.assert_allclose(circles["radius"] * finer[name].spec.mpp, 0.25 * 50.0)
    copied = stimg.tl.upsample(sdata, factor=2, copy=True, key_added="other", **NEAREST)
    np.testing.assert_array_equal(copied.obsm[keys.RC], expected.obsm[keys.RC])
    assert "other" not in sdata.tables
    sdata.write(tmp_path / "s.zarr")
    back = read_zarr(tmp_path / "s.zarr")
    assert get_element_annotators(back, "D1S1_table_upsampled") == {"table_upsampled"}
    np.testing.assert_array_equal(back.tables["table_upsampled"].obsm[keys.RC], expected.obsm[keys.RC])


def test_a_function_sees_pitches(sparse):
    asked = []

    def zero(measured, wanted):
        asked.append(wanted)
        return Interpolated(np.zeros((len(wanted), 1)))

    found = stimg.tl.upsample(sparse, factor=2, genes=sparse.var_names[:1], method=zero, uncertainty=False)
    (coarse,) = raster_libraries(sparse).values()
    affine = np.asarray(coarse.spec.affine)
    np.testing.assert_allclose((asked[0] @ affine[:, :2].T + affine[:, 2])[:, ::-1], found.obsm["spatial"][sparse.n_obs :], atol=1e-6)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, r"nothing given; wanted one of `factor=`, `pixel_um=` and `grid=`"),
        ({"factor": 2, "pixel_um": 10.0}, ValueError, r"factor and pixel_um given; wanted one of"),
        ({"factor": 0}, ValueError, r"factor=0 is not usable; wanted a whole number of at least 1"),
        ({"factor": 1}, ValueError, r"factor=1 is the measured lattice; wanted 2 or more. `stimg.tl.impute` fills"),
        ({"factor": 1.5}, ValueError, r"factor=1.5 is not usable; wanted a whole number"),
        ({"factor": "2"}, TypeError, r"factor='2' is a str; wanted a number"),
        ({"factor": True}, TypeError, r"factor=True is a bool; wanted a number"),
        ({"pixel_um": -20.0}, ValueError, r"pixel_um=-20.0 is not above zero"),
        ({"pixel_um": float("nan")}, ValueError, r"pixel_um=nan is not above zero"),
        ({"pixel_um": 250.0}, ValueError, r"pixel_um=250 is coarser than the pitch of library 'D1S1', .* `stimg.pp.resample` makes larger pixels"),
        ({"pixel_um": 0.001}, ValueError, r"finer lattice has about .* points in the tissue, .* Pass a smaller `factor=`, a larger `pixel_um=`"),
        ({"factor": 100_000}, ValueError, r"finer lattice has about .* points in the tissue"),
        ({"grid": 3}, TypeError, r"grid is a int. Pass a RasterSpec, one by library"),
        ({"grid": {"D1S1": (3, 3)}}, TypeError, r"grid has no RasterSpec for \['D1S1'\]"),
        ({"grid": RasterSpec("square", (3, 3), 10.0)}, ValueError, r"The grid of library 'D1S1' says 10 µm, and its map 1 µm at 1 µm per pixel; the data has 0.5"),
        ({"grid": RasterSpec("square", (3, 3), 10.0, affine=((20.0, 0.0, -900.0), (0.0, 20.0, -900.0)), mpp=0.5)}, ValueError, r"There is no place to predict: no point of the finer"),
        ({"factor": 2, "guide": "X_h"}, ValueError, r"guide='X_h' needs the features of the places too. Pass as `grid=`"),
        ({"factor": 2, "method": "krigging"}, ValueError, r"no method of imputation named 'krigging'"),
        ({"factor": 2, "genes": ["nothing"]}, KeyError, r"1 of 1 genes are not in the object"),
        ({"factor": 2, "max_gap_um": 0.0}, ValueError, r"max_gap_um=0.0 is not above zero"),
    ],
)  # fmt: skip
def test_bad_input(sparse, options, error, message):
    with pytest.raises(error, match=message):
        stimg.tl.upsample(sparse, **options)


def test_bad_tables(sparse, monkeypatch):
    few = sparse[:6].copy()
    with pytest.raises(ValueError, match=r"Observations by library: \{'D1S1': 6\}; wanted at least 10"):
        stimg.tl.upsample(few, factor=2)
    with pytest.raises(KeyError, match=r"stimg_rc"):
        stimg.tl.upsample(ad.AnnData(sparse.X, obs=sparse.obs), factor=2)
    monkeypatch.setattr("stimg.tl._impute.MOST", 200)
    with pytest.raises(ValueError, match=r"values of 20 genes; 2e\+07 points and 2e\+02 values fit at a time"):
        stimg.tl.upsample(sparse, factor=2)
