"""``tl.impute`` with features of the places: against the function behind it, and what goes wrong."""

import numpy as np
import pytest

import stimg
from stimg.data.ledger import recall
from stimg.data.slots import raster_libraries
from stimg.image.interpolate import Guide, Measured, kriging


@pytest.fixture(scope="module")
def pair():
    adata = stimg.datasets.simulate(technology="st", shape=(12, 12), n_genes=20, rng=1)
    stimg.pp.rasterize(adata)
    rng = np.random.default_rng(0)
    mixture = np.asarray(adata.obsm["stimg_truth_proportions"])
    adata.obsm["X_image"] = (mixture @ rng.normal(size=(mixture.shape[1], 5))).astype("f4")
    adata.obsm["X_short"] = adata.obsm["X_image"][:, :2]
    stimg.bench.remember(adata, "X_image")
    return tuple(stimg.pp.sparsify(adata, mask="quarter", phase=0, keep=["X_image", "X_short"]))


def test_values_are_those_of_kriging_with_the_features_of_each_place(pair):
    sparse, truth = pair
    found = stimg.tl.impute(sparse, method="kriging", targets=truth[::-1].copy(), guide="X_image", rng=0)
    (library,) = raster_libraries(sparse).values()
    counts = np.asarray(sparse.X.todense(), dtype=float)
    values = np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))
    wanted = library.spec.lattice_points(truth.obsm["stimg_rc"])
    features = np.asarray(sparse.obsm["X_image"], float), np.asarray(truth.obsm["X_image"], float)
    expected = kriging(library.spec.lattice_points(library.rc), values, wanted, features=features).values
    np.testing.assert_allclose(found[truth.obs_names].layers["stimg_kriging"], np.maximum(expected, 0), rtol=1e-5, atol=1e-6)
    assert found.uns["stimg"]["stimg_kriging"]["guide"] == "X_image"


def test_what_the_features_tell_reaches_the_prediction(pair):
    sparse, truth = pair
    counts = np.asarray(truth.X.todense(), dtype=float)
    values = np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))
    error = {}
    for guide in (None, "X_image"):
        found = stimg.tl.impute(sparse, targets=truth, guide=guide)[truth.obs_names].layers["stimg_ensemble"]
        error[guide] = ((found - values) ** 2).mean()
    assert error["X_image"] < error[None]


@pytest.mark.slow
def test_the_image_around_empty_points_guides_a_second_pass():
    adata = stimg.datasets.simulate(technology="st", shape=(12, 12), n_genes=20, image=True, rng=2)
    stimg.pp.rasterize(adata)
    sparse, _ = stimg.pp.sparsify(adata, mask="checkerboard")
    first = stimg.tl.impute(sparse, uncertainty=False)
    places = first[first.obs["stimg_status"] != "measured"].copy()
    for each in (sparse, places):
        stimg.pp.colour_statistics(each)
    second = stimg.tl.impute(sparse, targets=places, guide="X_stimg_colour")
    assert (second.obs_names == first.obs_names).all()
    assert (second.obs["stimg_status"] == first.obs["stimg_status"]).all()
    assert np.abs(second.layers["stimg_ensemble"] - first.layers["stimg_ensemble"]).max() > 0.01


def test_what_the_features_were_fitted_on_is_remembered(pair):
    sparse, truth = (each.copy() for each in pair)
    others = stimg.datasets.simulate(technology="st", shape=(5, 5), n_genes=20, rng=9)
    seen = stimg.data.ledger.seen_of(others, who="an encoder", kind="encoder")
    stimg.data.ledger.remember(sparse, "X_image", seen)
    found = stimg.tl.impute(sparse, method="kriging", targets=truth, guide="X_image", uncertainty=False)
    assert "an encoder" in [each.who for each in recall(found, only=["stimg_kriging"])]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"targets": None},
            ValueError,
            r"guide='X_image' needs the features of the places too, and targets is no AnnData. Pass an AnnData",
        ),
        ({"guide": "X_none"}, KeyError, "Compute it for the observations of data"),
        ({"method": "nearest"}, ValueError, "method 'nearest' reads no features of places"),
        ({"method": "model"}, ValueError, r"guide='X_image' is for methods by name. Set the model up with its guide"),
        ({"change": lambda t: t.obsm.pop("X_image")}, KeyError, "Compute it for the observations of targets"),
        ({"change": lambda t: t.obsm.__setitem__("X_image", t.obsm["X_short"])}, ValueError, r"has 5 columns in data and 2 in targets"),
        (
            {"change": lambda t: t.obsm["X_image"].__setitem__((3, 0), np.nan)},
            ValueError,
            "Leave these places out, or compute their features",
        ),
        ({"change": lambda t: t.obsm.__setitem__("X_image", t.obsm["X_image"].astype(bool))}, TypeError, "has dtype bool"),
    ],
)
def test_bad_guides(pair, options, error, message):
    sparse, truth = pair[0], pair[1].copy()

    class Model:
        def impute(self, *args, **kwargs):
            raise AssertionError

    asked = {"targets": truth, "guide": "X_image", **options}
    asked.pop("change", lambda t: None)(truth)
    if asked.get("method") == "model":
        asked["method"] = Model()
    with pytest.raises(error, match=message):
        stimg.tl.impute(sparse, **asked)


def test_features_of_a_place_are_looked_up_by_place():
    guide = Guide(np.array([[0.0, 0.0], [1.0, 2.0], [3.0, 1.0]]), np.array([[1.0], [2.0], [3.0]]))
    measured = Measured(np.array([[3.0, 1.0]]), np.ones((1, 2)), guide=guide)
    own, theirs = measured.part(np.array([True])).features(np.array([[1.0, 2.0], [0.0, 0.0]]))
    assert own.ravel().tolist() == [3.0]
    assert theirs.ravel().tolist() == [2.0, 1.0]
