"""``tl.impute`` in windows: against the method on the whole table, in a SpatialData, when it is broken off, and with intervals learned from a sample."""

import numpy as np
import pytest

import stimg
from stimg._core import keys
from stimg.image.interpolate import METHODS, Interpolated, Measured, in_windows, trust


def simulated(technology="visium", shape=(16, 15), n_genes=30, **options):
    made = stimg.datasets.simulate(technology=technology, shape=shape, n_genes=n_genes, rng=3, **options)
    stimg.pp.rasterize(made.tables["table"] if options.get("as_sdata") else made)
    return made


@pytest.fixture(scope="module")
def pair():
    return tuple(stimg.pp.sparsify(simulated(), mask="random", fraction=0.4))


def logs(adata):
    counts = np.asarray(adata.X.todense(), dtype=float)
    return np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))


def dense(sparse, truth, n):
    """The first ``n`` genes asked for, all as one dense table, and the wanted places."""
    (library,) = stimg.data.slots.raster_libraries(sparse).values()
    total = np.asarray(sparse.X.sum(axis=0)).ravel()
    read = [*range(n), *[i for i in np.argsort(-total, kind="stable") if i >= n]]
    depth = np.asarray(sparse.X.sum(axis=1), dtype=float).ravel()
    places = library.spec.lattice_points(library.rc)
    return Measured(places, logs(sparse)[:, read], columns=np.arange(n), depth=depth), library.spec.lattice_points(truth.obsm[keys.RC])


@pytest.mark.parametrize("name", ["ensemble", "pca_kriging"])
def test_windows_are_those_of_the_method_on_a_dense_table(pair, monkeypatch, name):
    sparse, truth = pair
    genes, n = sparse.var_names[:4].tolist(), sparse.n_obs
    measured, wanted = dense(sparse, truth, 4)
    method = METHODS[name].function.method
    expected = in_windows(method, most=40)(measured, wanted)
    learned = trust(in_windows(method, most=40), measured, rng=0)
    whole = method(measured, wanted)
    assert np.abs(expected.values - whole.values).max() > 1e-3
    monkeypatch.setattr("stimg.image.interpolate._windows.MOST", 40)
    monkeypatch.setattr("stimg.tl._impute.ROWS", 7)
    found = stimg.tl.impute(sparse, method=name, targets=truth, genes=genes)
    layer, sd = found.layers[f"stimg_{name}"], found.layers[f"stimg_{name}_sd"]
    np.testing.assert_allclose(layer[:n], logs(sparse)[:, :4], rtol=1e-6)
    np.testing.assert_allclose(layer[n:], np.maximum(expected.values, 0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(sd[n:], np.sqrt(expected.variance) * learned.factor, rtol=1e-5)
    wide = stimg.tl.impute(sparse, method=in_windows(method, most=40, halo=100.0), targets=truth, genes=genes, uncertainty=False)
    np.testing.assert_allclose(wide.layers["stimg_windowed"][n:], np.maximum(whole.values, 0), rtol=1e-5, atol=1e-6)


def test_a_spatialdata_gets_the_same(pair, monkeypatch):
    monkeypatch.setattr("stimg.image.interpolate._windows.MOST", 40)
    sdata = simulated(as_sdata=True, shape=(12, 12), n_sections=2)
    sparse, truth = stimg.pp.sparsify(sdata, mask="checkerboard")
    table, targets = sparse.tables["table"].copy(), truth.tables["table"]
    expected = stimg.tl.impute(table, method="kriging", targets=targets)
    stimg.tl.impute(sparse, method="kriging", targets=targets)
    for key in ("stimg_kriging", "stimg_kriging_sd"):
        np.testing.assert_array_equal(sparse.tables["table_imputed"].layers[key], expected.layers[key])


@pytest.mark.parametrize("as_sdata", [False, True])
def test_nothing_is_written_when_it_is_broken_off(as_sdata):
    made = simulated(as_sdata=as_sdata, shape=(12, 12))
    sparse, truth = stimg.pp.sparsify(made, mask="checkerboard")
    table, targets = (each.tables["table"] if as_sdata else each for each in (sparse, truth))
    before, elements = table.copy(), [name for *_, name, _ in sparse.gen_elements()] if as_sdata else []
    done = []

    def breaking(measured, wanted):
        done.append(len(wanted))
        if len(done) == 2:
            raise KeyboardInterrupt
        return Interpolated(np.ones((len(wanted), measured.n_asked)))

    with pytest.raises(KeyboardInterrupt):
        stimg.tl.impute(sparse, method=in_windows(breaking, most=30), targets=targets, uncertainty=False)
    assert len(done) == 2
    assert list(table.layers) == list(before.layers)
    assert list(table.obs) == list(before.obs)
    assert str(table.uns[keys.UNS]) == str(before.uns[keys.UNS])
    assert (table.X != before.X).nnz == 0
    if as_sdata:
        assert [name for *_, name, _ in sparse.gen_elements()] == elements


def test_intervals_of_a_large_section_are_learned_from_a_sample():
    counts = stimg.datasets.CountOptions(depth=60.0)
    adata = simulated("visium_hd", (92, 92), 20, counts=counts)
    adata = adata[np.asarray(adata.X.sum(axis=1)).ravel() > 0].copy()
    sparse, truth = stimg.pp.sparsify(adata, mask="random")
    asked = []

    def neighbours(measured, wanted):
        asked.append(len(wanted))
        return METHODS["k_nearest"](measured, wanted)

    found = stimg.tl.impute(sparse, method=neighbours, targets=truth)
    n = sparse.n_obs
    assert n > 3800
    assert 3000 <= sum(asked) - truth.n_obs < n  # what was left out to learn from
    reach = 1.6448537 * found.layers["stimg_neighbours_sd"][n:]
    inside = np.abs(logs(truth) - found.layers["stimg_neighbours"][n:]) <= reach
    assert 0.88 < inside.mean() < 0.92


def test_progress_is_shown_where_there_are_windows(pair, monkeypatch, capsys):
    sparse, truth = pair
    monkeypatch.setattr(stimg.settings, "progress", True)
    for most, shown in ((40, True), (1000, False)):
        stimg.tl.impute(sparse, method=in_windows(METHODS["mean"], most=most), targets=truth, uncertainty=False)
        assert ("impute" in capsys.readouterr().err) == shown
