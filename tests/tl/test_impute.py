"""``tl.impute`` against the functions behind it, poisoned targets, flags by geometry, intervals by coverage."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import stimg
from stimg._core import keys
from stimg.data.ledger import recall
from stimg.image.interpolate import METHODS, Interpolated, Measured, axes_of_sections, cross_fitted, on_residual, trust

LAYER = "stimg_ensemble"


def simulated(technology="visium", **options):
    adata = stimg.datasets.simulate(technology=technology, shape=(14, 13), n_genes=30, rng=3, **options)
    stimg.pp.rasterize(adata)
    return adata


@pytest.fixture(scope="module", params=["st", "visium"])
def pair(request):
    return tuple(stimg.pp.sparsify(simulated(request.param), mask="random", fraction=0.4))


@pytest.fixture
def two():
    return tuple(stimg.pp.sparsify(simulated(n_sections=2), mask="checkerboard"))


def logs(adata, genes):
    counts = np.asarray(adata.X.todense(), dtype=float)
    values = np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))
    return values[:, adata.var_names.get_indexer(genes)]


def by_hand(sparse, targets, genes, method):
    """What the method says of one library, from counts and the definition of the lattice."""
    (library,) = stimg.data.slots.raster_libraries(sparse).values()
    total = np.asarray(sparse.X.sum(axis=0)).ravel()
    read = [*genes, *[g for g in sparse.var_names[np.argsort(-total, kind="stable")] if g not in genes]]
    depth = np.asarray(sparse.X.sum(axis=1), dtype=float).ravel()
    measured = Measured(library.spec.lattice_points(library.rc), logs(sparse, read), columns=np.arange(len(genes)), depth=depth)
    wanted = library.spec.lattice_points(targets.obsm[keys.RC])
    return measured, method(measured, wanted), wanted


@pytest.mark.parametrize("name", ["ensemble", "kriging", "nearest", "laplacian"])
def test_values_and_deviations_are_those_of_the_method(pair, name):
    sparse, truth = pair
    genes = sparse.var_names[[4, 1, 20]].tolist()
    found = stimg.tl.impute(sparse, method=name, targets=truth, genes=genes, rng=7)
    measured, expected, _ = by_hand(sparse, truth, genes, METHODS[name])
    layer, n = found.layers[f"stimg_{name}"], sparse.n_obs
    assert found.obs_names.tolist() == [*sparse.obs_names, *truth.obs_names]
    assert found.var_names.tolist() == genes
    assert layer.dtype == np.float32
    np.testing.assert_allclose(layer[:n], logs(sparse, genes), rtol=1e-6)
    np.testing.assert_allclose(layer[n:], np.maximum(expected.values, 0), rtol=1e-5, atol=1e-6)
    learned = trust(METHODS[name], measured, rng=7)
    sd = np.tile(learned.factor, (truth.n_obs, 1)) if expected.variance is None else learned.factor * np.sqrt(expected.variance)
    np.testing.assert_allclose(found.layers[f"stimg_{name}_sd"][n:], sd, rtol=1e-4)
    assert np.isnan(found.layers[f"stimg_{name}_sd"][:n]).all()
    assert found.X is None


def test_poisoned_counts_of_the_targets_change_nothing(pair):
    sparse, truth = pair
    spoilt = truth.copy()
    spoilt.X = sp.csr_matrix(np.full(truth.shape, 1e6, dtype=np.float32))
    bare = ad.AnnData(None, obs=truth.obs.copy(), obsm={"spatial": truth.obsm["spatial"]})
    found = [stimg.tl.impute(sparse, targets=t) for t in (truth, spoilt, bare)]
    for other in found[1:]:
        np.testing.assert_array_equal(found[0].layers[LAYER], other.layers[LAYER])
        np.testing.assert_array_equal(found[0].layers[f"{LAYER}_sd"], other.layers[f"{LAYER}_sd"])
        pd.testing.assert_frame_equal(found[0].obs, other.obs)


def test_poisoned_hidden_values_reach_no_method():
    whole = simulated("st")
    sparse, truth = stimg.pp.sparsify(whole, mask="quarter")
    poisoned = whole.copy()
    dense = poisoned.X.toarray()
    dense[poisoned.obs_names.isin(truth.obs_names)] = 777
    poisoned.X = sp.csr_matrix(dense)
    again, _ = stimg.pp.sparsify(poisoned, mask="quarter")
    for name in METHODS:
        if not METHODS[name].donors:
            a, b = (stimg.tl.impute(s, method=name, genes=sparse.var_names[:4].tolist(), uncertainty=False) for s in (sparse, again))
            np.testing.assert_array_equal(a.layers[f"stimg_{name}"], b.layers[f"stimg_{name}"])


def test_slots_flags_and_record(pair):
    sparse, truth = pair
    before = sparse.copy()
    found = stimg.tl.impute(sparse, targets=truth, genes=sparse.var_names[:5].tolist())
    n = sparse.n_obs
    assert found.obs[keys.STATUS].cat.categories.tolist() == ["measured", "imputed", "invented"]
    assert (found.obs[keys.STATUS][:n] == "measured").all()
    assert (found.obs[keys.STATUS][n:] != "measured").all()
    assert (found.obs[keys.STATUS][n:] == "imputed").mean() > 0.8
    np.testing.assert_allclose(found.obsm["spatial"][n:], truth.obsm["spatial"], atol=1e-6 * np.abs(truth.obsm["spatial"]).max() + 3)
    np.testing.assert_array_equal(found.obsm[keys.RC][n:], truth.obsm[keys.RC])
    for column in ("array_row", "array_col"):
        np.testing.assert_array_equal(found.obs[column][n:].to_numpy(dtype=float), truth.obs[column].to_numpy(dtype=float))
    assert (found.obs["library_id"] == "D1S1").all()
    assert (found.obs["donor"] == "D1").all()
    record = found.uns[keys.UNS][LAYER]
    assert record["verb"] == "stimg.tl.impute"
    assert record["unit"] == "log1p_cp10k"
    assert record["method"] == "ensemble"
    stimg.data.slots.raster_libraries(found)
    seen = recall(found, only=[LAYER])
    assert sum(len(each.ids) for each in seen) == n
    assert list(sparse.uns) == list(before.uns)
    assert sparse.shape == before.shape


def test_the_empty_points_of_the_tissue():
    whole = simulated("st")
    hole = (np.abs(whole.obsm[keys.RC] - 6) <= 3).all(axis=1)
    sparse, truth = stimg.pp.sparsify(whole[~hole].copy(), mask="quarter")
    found = stimg.tl.impute(sparse, method="nearest", genes=sparse.var_names[:2].tolist(), uncertainty=False)
    n = sparse.n_obs
    new = {tuple(p) for p in found.obsm[keys.RC][n:]}
    assert (found.obs[keys.STATUS][n:] == "imputed").all()
    assert {tuple(p) for p in truth.obsm[keys.RC] if (np.abs(p - 6) > 4).any() and p[0] < 13} <= new
    assert (6, 6) not in new
    assert not [key for key in found.layers if key is not None and key.endswith("_sd")]
    wider = stimg.tl.impute(sparse, method="nearest", genes=sparse.var_names[:2].tolist(), uncertainty=False, max_gap_um=3000.0)
    assert (6, 6) in {tuple(p) for p in wider.obsm[keys.RC][n:]}
    assert found.obs_names[n:].tolist() == [f"D1S1_imputed_{r}x{c}" for r, c in found.obsm[keys.RC][n:].tolist()]


def test_coordinates_between_and_beyond_are_invented(pair):
    sparse, truth = pair
    xy = np.concatenate([truth.obsm["spatial"][:3], truth.obsm["spatial"][:3] + 31.0, [[-90_000.0, 0.0]], sparse.obsm["spatial"][:2]])
    found = stimg.tl.impute(sparse, targets=xy, genes=sparse.var_names[:3].tolist(), method="kriging")
    n = sparse.n_obs
    assert found.n_obs == n + 7  # a measurement stands at two of them
    assert (found.obs[keys.STATUS][n + 3 :] == "invented").all()
    assert (found.obsm[keys.RC][n + 3 :] == -1).all()
    np.testing.assert_allclose(found.obsm["spatial"][n + 3 : n + 6], xy[3:6], atol=1e-6)
    sd = found.layers["stimg_kriging_sd"][n:]
    assert (sd[6] >= sd[:3].max(axis=0) * 0.99).all()
    assert np.isfinite(found.obs["array_row"][n : n + 3]).all()
    assert found.obs["array_row"][n + 3 :].isna().all()


def test_intervals_hold_the_hidden_values():
    adata = stimg.datasets.simulate(technology="visium", shape=(24, 24), n_genes=60, rng=0)
    stimg.pp.rasterize(adata)
    sparse, truth = stimg.pp.sparsify(adata, mask="random")
    for method in ("ensemble", "kriging", "linear"):
        found = stimg.tl.impute(sparse, method=method, targets=truth)
        n = sparse.n_obs
        reach = 1.6448537 * found.layers[f"stimg_{method}_sd"][n:]
        inside = np.abs(logs(truth, truth.var_names) - found.layers[f"stimg_{method}"][n:]) <= reach
        assert 0.86 < inside.mean() < 0.94


def test_several_libraries_know_nothing_of_each_other(two):
    sparse, truth = two
    genes = sparse.var_names[:4].tolist()
    both = stimg.tl.impute(sparse, targets=truth, genes=genes, method="kriging")
    for name in ("D1S1", "D1S2"):
        alone = stimg.tl.impute(
            sparse[sparse.obs["library_id"] == name].copy(),
            targets=truth[truth.obs["library_id"] == name].copy(),
            genes=genes,
            method="kriging",
        )
        np.testing.assert_allclose(both[alone.obs_names].layers["stimg_kriging"], alone.layers["stimg_kriging"], atol=1e-6)
        np.testing.assert_allclose(both[alone.obs_names].layers["stimg_kriging_sd"], alone.layers["stimg_kriging_sd"], rtol=1e-5)
    by_name = {n: truth.obsm["spatial"][(truth.obs["library_id"] == n).to_numpy()] for n in ("D1S2",)}
    part = stimg.tl.impute(sparse, targets=by_name, genes=genes, method="nearest", uncertainty=False)
    assert part.n_obs == sparse.n_obs + len(by_name["D1S2"])
    assert (part.obs["library_id"][sparse.n_obs :] == "D1S2").all()


def test_a_function_and_a_pair(pair):
    sparse, truth = pair
    genes = sparse.var_names[:3].tolist()

    def zero(measured, wanted):
        return Interpolated(np.zeros((len(wanted), 3)))

    found = stimg.tl.impute(sparse, method=zero, targets=truth, genes=genes)
    assert (found.layers["stimg_zero"][sparse.n_obs :] == 0).all()
    paired = stimg.tl.impute(sparse, method=("gaussian", "kriging"), targets=truth, genes=genes, rng=2, uncertainty=False)
    _, expected, _ = by_hand(sparse, truth, genes, on_residual(METHODS["gaussian"], METHODS["kriging"], n_folds=5, rng=2))
    np.testing.assert_allclose(
        paired.layers["stimg_gaussian_kriging"][sparse.n_obs :], np.maximum(expected.values, 0), rtol=1e-4, atol=1e-5
    )


class Model:
    """As much of a model as the verb asks for: the mean of what it is given, and what it was given."""

    ledger = ()

    def __init__(self):
        self.asked = []

    def impute(self, adata, targets, *, genes):
        self.asked.append((adata, targets))
        mean = np.log1p(np.asarray(adata[:, genes].X.mean(axis=0))).ravel()
        return np.tile(mean, (targets.n_obs, 1)), np.full((targets.n_obs, len(genes)), 0.5)


def test_a_model_and_kriging_of_what_it_leaves(pair):
    sparse, truth = pair
    sparse, truth = sparse.copy(), truth.copy()
    for part in (sparse, truth):
        part.obsm["X_guide"] = part.obsm["spatial"] / 100
    genes = sparse.var_names[:3].tolist()
    model = Model()
    found = stimg.tl.impute(sparse, method=model, targets=truth, genes=genes)
    n = sparse.n_obs
    ((given, asked),) = model.asked
    assert given.obs_names.tolist() == sparse.obs_names.tolist()
    assert asked.X is None
    np.testing.assert_array_equal(asked.obsm[keys.RC], truth.obsm[keys.RC])
    np.testing.assert_allclose(asked.obsm["X_guide"], truth.obsm["X_guide"])
    expected = np.log1p(np.asarray(sparse[:, genes].X.mean(axis=0))).ravel()
    np.testing.assert_allclose(found.layers["stimg_model"][n:], np.tile(expected, (truth.n_obs, 1)), rtol=1e-6)
    assert (found.layers["stimg_model_sd"][n:] == 0.5).all()
    model = Model()
    stimg.tl.impute(sparse, method=(model, "kriging"), targets=truth, genes=genes, uncertainty=False)
    assert len(model.asked) == 6
    for given, asked in model.asked[:5]:  # each fold is asked for without being given
        assert given.n_obs + asked.n_obs == n
        assert not {tuple(p) for p in given.obsm[keys.RC]} & {tuple(p) for p in asked.obsm[keys.RC]}
    with pytest.raises(TypeError, match=r"model reads counts, so it cannot interpolate what kriging leaves. Put it first"):
        stimg.tl.impute(sparse, method=("kriging", model), targets=truth)
    with pytest.raises(
        ValueError, match=r"1 of 1 targets are not on the lattice of library 'D1S1', and Model predicts lattice points alone"
    ):
        stimg.tl.impute(sparse, method=model, targets=truth.obsm["spatial"][:1] + 31.0, genes=genes)


def test_other_donors():
    whole = simulated("st", n_donors=3)
    sections = {d: whole[whole.obs["donor"] == d].copy() for d in ("D1", "D2", "D3")}
    sparse, truth = stimg.pp.sparsify(sections["D1"], mask="checkerboard")
    reference = whole[whole.obs["donor"] != "D1"].copy()
    genes = sparse.var_names[:3].tolist()
    found = stimg.tl.impute(
        sparse, method="donor_kriging", targets=truth, genes=genes, reference=reference[:, ::-1].copy(), uncertainty=False
    )
    total = np.asarray(sparse.X.sum(axis=0)).ravel()
    read = [*genes, *[g for g in sparse.var_names[np.argsort(-total, kind="stable")] if g not in genes]]
    loadings = axes_of_sections(
        [(logs(sections[d], read), np.asarray(sections[d].X.sum(axis=1), dtype=float).ravel()) for d in ("D2", "D3")]
    )
    from dataclasses import replace

    measured, _, wanted = by_hand(sparse, truth, genes, METHODS["mean"])
    expected = METHODS["donor_kriging"](replace(measured, loadings=loadings), wanted)
    np.testing.assert_allclose(found.layers["stimg_donor_kriging"][sparse.n_obs :], np.maximum(expected.values, 0), rtol=1e-4, atol=1e-5)
    assert {name for each in recall(found, only=["stimg_donor_kriging"]) for name in each.donors} == {"D1", "D2", "D3"}
    with pytest.raises(ValueError, match=r"method 'donor_ensemble' needs sections of other donors. Pass them as `reference=`"):
        stimg.tl.impute(sparse, method="donor_ensemble", targets=truth)
    with pytest.raises(ValueError, match=r"reference has libraries of data: \['D1S1'\]"):
        stimg.tl.impute(sparse, method="donor_ensemble", targets=truth, reference=whole)
    other = reference.copy()
    other.var_names = [f"x{g}" for g in other.var_names]
    with pytest.raises(ValueError, match="reference shares no gene with data"):
        stimg.tl.impute(sparse, method="donor_ensemble", targets=truth, reference=other)


def test_order_of_observations(pair):
    sparse, truth = pair
    order = np.random.default_rng(1).permutation(sparse.n_obs)
    a, b = (stimg.tl.impute(s, targets=truth) for s in (sparse, sparse[order].copy()))
    np.testing.assert_allclose(a[truth.obs_names].layers[LAYER], b[truth.obs_names].layers[LAYER], atol=1e-5)
    np.testing.assert_allclose(a[truth.obs_names].layers[f"{LAYER}_sd"], b[truth.obs_names].layers[f"{LAYER}_sd"], rtol=1e-4)


def test_written_and_read_back(pair, tmp_path):
    sparse, truth = pair
    found = stimg.tl.impute(sparse, targets=truth, genes=sparse.var_names[:3].tolist())
    found.write_h5ad(tmp_path / "a.h5ad")
    back = ad.read_h5ad(tmp_path / "a.h5ad")
    np.testing.assert_array_equal(back.layers[LAYER], found.layers[LAYER])
    assert back.obs[keys.STATUS].tolist() == found.obs[keys.STATUS].tolist()


def test_spatialdata(tmp_path):
    from spatialdata import get_element_annotators, read_zarr

    sdata = stimg.datasets.simulate(technology="visium", shape=(10, 10), n_genes=20, n_sections=2, rng=0, as_sdata=True)
    stimg.pp.rasterize(sdata.tables["table"])
    sparse, truth = stimg.pp.sparsify(sdata, mask="random", fraction=0.3)
    before = sparse.tables["table"].copy()
    expected = stimg.tl.impute(before, targets=truth.tables["table"], method="kriging")
    assert stimg.tl.impute(sparse, targets=truth.tables["table"], method="kriging") is None
    table = sparse.tables["table_imputed"]
    np.testing.assert_array_equal(table.layers["stimg_kriging"], expected.layers["stimg_kriging"])
    assert (sparse.tables["table"].X != before.X).nnz == 0
    for name in ("D1S1", "D1S2"):
        circles = sparse.shapes[f"{name}_table_imputed"]
        mine = (table.obs["library_id"] == name).to_numpy()
        np.testing.assert_allclose(np.column_stack([circles.geometry.x, circles.geometry.y]), table.obsm["spatial"][mine])
        assert circles.index.tolist() == table.obs_names[mine].tolist()
    copied = stimg.tl.impute(sparse, targets=truth.tables["table"], method="kriging", copy=True)
    np.testing.assert_array_equal(copied.layers["stimg_kriging"], expected.layers["stimg_kriging"])
    sparse.write(tmp_path / "s.zarr")
    back = read_zarr(tmp_path / "s.zarr")
    assert get_element_annotators(back, "D1S1_table_imputed") == {"table_imputed"}
    np.testing.assert_array_equal(back.tables["table_imputed"].layers["stimg_kriging"], expected.layers["stimg_kriging"])


def changed(adata, **parts):
    other = adata.copy()
    for name, value in parts.items():
        setattr(other, name, value)
    return other


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda s, t: stimg.tl.impute(s, method="krigging"), ValueError, r"no method of imputation named 'krigging'. Did you mean 'kriging'"),
        (lambda s, t: stimg.tl.impute(s, method=3), TypeError, r"method is a int; wanted one of \["),
        (lambda s, t: stimg.tl.impute(s, method=("mean",)), ValueError, r"method has 1 parts; wanted two"),
        (lambda s, t: stimg.tl.impute(s, genes=["nothing"]), KeyError, r"1 of 1 genes are not in the object"),
        (lambda s, t: stimg.tl.impute(s, genes=[]), ValueError, r"genes is empty"),
        (lambda s, t: stimg.tl.impute(s, n_folds=1), ValueError, r"n_folds=1 is not usable; wanted a whole number of at least 2"),
        (lambda s, t: stimg.tl.impute(s, max_gap_um=-1.0), ValueError, r"max_gap_um=-1.0 is not above zero"),
        (lambda s, t: stimg.tl.impute(s, targets=s), ValueError, r"There is no place to predict: a measurement stands at every one"),
        (lambda s, t: stimg.tl.impute(s, targets=np.ones((3, 3))), ValueError, r"targets has dtype float64 and shape \(3, 3\); wanted \(n, 2\)"),
        (lambda s, t: stimg.tl.impute(s, targets=np.full((3, 2), np.nan)), ValueError, r"targets has 3 rows of 3 with NaN"),
        (lambda s, t: stimg.tl.impute(s, targets={"B": np.ones((3, 2))}), ValueError, r"targets has libraries that data has not: \['B'\]"),
        (lambda s, t: stimg.tl.impute(s, targets=changed(t, obs_names=s.obs_names[: t.n_obs])), ValueError, r"names stand twice among the observations"),
        (lambda s, t: stimg.tl.impute(s, layer="nothing"), KeyError, r"layers\['nothing'\] is missing"),
        (lambda s, t: stimg.tl.impute(changed(s, X=s.X / 3)), ValueError, r"fractional values"),
        (lambda s, t: stimg.tl.impute(changed(s, X=sp.csr_matrix(s.X.multiply(np.arange(s.n_obs)[:, None] > 4)))), ValueError, r"5 of \d+ observations have no counts"),
        (lambda s, t: stimg.tl.impute(s[:6].copy()), ValueError, r"Observations by library: \{'D1S1': 6\}; wanted at least 10"),
        (lambda s, t: stimg.tl.impute(changed(s, obsm={"spatial": s.obsm["spatial"]})), KeyError, r"stimg_rc"),
        (lambda s, t: stimg.tl.impute(s, targets=changed(t, obs=t.obs.drop(columns="library_id"))), KeyError, r"library_id.*Name the library of every place"),
    ],
)  # fmt: skip
def test_bad_input(pair, call, error, message):
    with pytest.raises(error, match=message):
        call(*pair)


def test_a_full_slide_has_nothing_to_fill():
    with pytest.raises(ValueError, match=r"no lattice point inside the tissue is empty. Pass `targets=`"):
        stimg.tl.impute(simulated("st"))


def test_coordinates_need_a_library_where_there_are_several(two):
    with pytest.raises(ValueError, match=r"targets are coordinates, but data has 2 libraries"):
        stimg.tl.impute(two[0], targets=np.ones((3, 2)))


def test_too_many_values(pair, monkeypatch):
    monkeypatch.setattr("stimg.tl._impute.MOST", 100)
    with pytest.raises(ValueError, match=r"values are more than fit at a time"):
        stimg.tl.impute(*pair[:1])


def test_left_out_predictions_are_what_trust_reads(pair):
    sparse, truth = pair
    measured, _, _ = by_hand(sparse, truth, sparse.var_names[:2].tolist(), METHODS["mean"])
    np.testing.assert_array_equal(
        trust(METHODS["kriging"], measured, rng=1).predicted, cross_fitted(METHODS["kriging"], measured, rng=1).values
    )


@pytest.mark.parametrize("verb", ["impute", "upsample"])
def test_transformed_elements_keep_their_pixels(verb):
    from spatialdata import get_centroids
    from spatialdata.transformations import Affine, set_transformation

    plain = simulated(technology="st")
    hidden = np.arange(0, plain.n_obs, 4)
    sdata = stimg.datasets.simulate(technology="st", shape=(14, 13), n_genes=30, rng=3, as_sdata=True)
    turned = Affine([[0.0, -0.5, 900.0], [0.5, 0.0, 70.0], [0, 0, 1]], input_axes=("x", "y"), output_axes=("x", "y"))
    for element in sdata.shapes.values():
        set_transformation(element, turned, "global")
    whole = sdata.tables["table"].copy()
    sdata.tables["table"] = whole[np.setdiff1d(np.arange(whole.n_obs), hidden)].copy()
    stimg.pp.rasterize(sdata, coordinate_system="global", mpp=2 * stimg.data.slots.raster_libraries(plain)["D1S1"].spec.mpp)
    known = sdata.tables["table"].n_obs
    if verb == "impute":
        stimg.tl.impute(
            sdata, method="nearest", targets={"D1S1": whole.obsm["spatial"][hidden]}, genes=whole.var_names[:2], uncertainty=False
        )
        found = sdata.tables["table_imputed"]
        assert (found.obs["stimg_status"].iloc[known:] == "imputed").sum() > 0.6 * len(hidden)
        np.testing.assert_allclose(found.obsm["spatial"][known:], whole.obsm["spatial"][hidden], atol=1e-6 * whole.obsm["spatial"].max())
    else:
        stimg.tl.upsample(sdata, factor=2, method="nearest", genes=whole.var_names[:2], uncertainty=False)
        found = sdata.tables["table_upsampled"]
    pitch = np.sort(np.hypot(*(whole.obsm["spatial"][0] - whole.obsm["spatial"]).T))[1] / (2 if verb == "upsample" else 1)
    step = (found.obsm["spatial"] - found.obsm["spatial"].min(axis=0)) / pitch
    assert np.abs(step - np.rint(step)).max() < 1e-3
    (shapes,) = (sdata.shapes[name] for name in found.obs["region"].unique())
    circles = get_centroids(shapes, coordinate_system="global").compute().to_numpy()
    np.testing.assert_allclose(circles, found.obsm["spatial"] @ [[0.0, 0.5], [-0.5, 0.0]] + [900.0, 70.0], atol=1e-6 * circles.max())
    np.testing.assert_allclose(shapes["radius"], 0.25 * pitch, rtol=1e-6)
