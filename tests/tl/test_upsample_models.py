"""``tl.upsample`` by models: they are asked for the lattices that they list, and for nothing else."""

import numpy as np
import pandas as pd
import pytest
from scipy.spatial import KDTree

import stimg
from stimg._core import keys
from stimg.data.slots import raster_libraries

NEAREST = {"method": "nearest", "uncertainty": False}


def sparse_slide(technology, n_genes=20):
    adata = stimg.datasets.simulate(technology=technology, shape=(11, 10), n_genes=n_genes, rng=3)
    stimg.pp.rasterize(adata)
    return stimg.pp.sparsify(adata, mask="random", fraction=0.3)[0]


@pytest.fixture(scope="module", params=["st", "visium"])
def sparse(request):
    return sparse_slide(request.param)


class Model:
    """As much of a model as the verb asks for: 7 at holes, 10 x + y at points of a finer lattice, most of which it lists in an order of its own."""

    ledger = ()

    def __init__(self, rows=slice(None)):
        self.rows = rows

    def places(self, adata, targets):
        (library,) = raster_libraries(adata).values()
        spec = library.spec
        steps = np.argwhere(np.ones((targets * spec.shape[0], targets * (spec.shape[1] + spec.shape[0])))) / targets
        points = (
            np.stack([steps[:, 0] * np.sqrt(0.75), steps[:, 1] + steps[:, 0] / 2 - spec.shape[0] // 2], axis=1)
            if spec.lattice == "hex"
            else steps
        )
        affine = np.asarray(spec.affine)
        yx = points @ affine[:, :2].T + affine[:, 2]
        return pd.DataFrame({"library_id": library.name, "y": yx[:, 0], "x": yx[:, 1]})[::-1].iloc[self.rows]

    def impute(self, adata, targets, *, genes):
        if hasattr(targets, "obsm"):
            return np.full((targets.n_obs, len(genes)), 7.0), np.full((targets.n_obs, len(genes)), 0.25)
        places = self.places(adata, targets)
        values = (10 * places["x"] + places["y"]).to_numpy()[:, None] + np.arange(len(genes))
        return values, np.full(values.shape, 0.5)


def test_a_model_is_asked_for_its_own_finer_lattice(sparse):
    genes = sparse.var_names[:2].tolist()
    found = stimg.tl.upsample(sparse, factor=2, genes=genes, method=Model())
    layer, sd, status = found.layers["stimg_model"], found.layers["stimg_model_sd"], found.obs[keys.STATUS].to_numpy()
    x, y = found.obsm["spatial"].T
    off = status == "invented"
    np.testing.assert_allclose(layer[off], (10 * x + y)[off, None] + [0, 1], rtol=1e-6)
    assert (sd[off] == 0.5).all()
    assert (layer[status == "imputed"] == 7).all()
    assert (sd[status == "imputed"] == 0.25).all()
    by_name = stimg.tl.upsample(sparse, factor=2, genes=genes, **NEAREST)
    assert sorted(by_name.obs_names) == sorted(found.obs_names)
    fewer = stimg.tl.upsample(sparse, factor=2, genes=genes, method=Model(slice(0, None, 3)))
    assert 0 < (fewer.obs[keys.STATUS] == "invented").sum() < off.sum()
    assert (fewer.obs[keys.STATUS] == "imputed").sum() == (status == "imputed").sum()
    both = found.obs_names.intersection(fewer.obs_names)
    np.testing.assert_array_equal(found[both].layers["stimg_model"], fewer[both].layers["stimg_model"])
    pair = stimg.tl.upsample(sparse, factor=2, genes=genes, method=(Model(), "mean"), uncertainty=False)
    assert sorted(pair.obs_names) == sorted(found.obs_names)


def test_models_that_cannot(sparse):
    class Coarse:
        ledger = ()

        def impute(self, adata, targets, *, genes):
            raise AssertionError

    with pytest.raises(ValueError, match=r"Coarse has no `places`, so it predicts points of the measured lattice alone"):
        stimg.tl.upsample(sparse, factor=2, method=Coarse())
    with pytest.raises(ValueError, match=r"Model predicts lattices a whole number of times finer; 47 µm is another .* Pass `factor=`"):
        stimg.tl.upsample(sparse, pixel_um=47.0, method=Model())


@pytest.mark.parametrize("technology", ["st", "visium"])
def test_an_s2s_imputer(technology):
    from stimg.model import S2SImputer

    sparse = sparse_slide(technology, n_genes=10)
    S2SImputer.setup_anndata(sparse)
    model = S2SImputer(sparse, n_samples=2, turns=1, n_hidden=4, growth=2, natural=None)
    model.train(max_epochs=1, steps_per_epoch=2, batch_size=4, enable_progress_bar=False)
    genes = sparse.var_names[:3].tolist()
    for factor in (2, 4):
        found = stimg.tl.upsample(sparse, factor=factor, genes=genes, method=model)
        by_name = stimg.tl.upsample(sparse, factor=factor, genes=genes, **NEAREST)
        status = found.obs[keys.STATUS]
        assert (status == "imputed").sum() == (by_name.obs[keys.STATUS] == "imputed").sum()
        assert (status == "invented").sum() > 0.95 * (by_name.obs[keys.STATUS] == "invented").sum()
        assert set(found.obs_names) <= set(by_name.obs_names)
        values, sd = model.impute(sparse, factor, genes=genes)
        places = model.places(sparse, factor)
        off = (status == "invented").to_numpy()
        away, at = KDTree(places[["x", "y"]]).query(found.obsm["spatial"][off])
        assert away.max() < 1e-6
        np.testing.assert_allclose(found.layers["stimg_s2simputer"][off], values[at], rtol=1e-5)
        np.testing.assert_allclose(found.layers["stimg_s2simputer_sd"][off], sd[at], rtol=1e-5)
    with pytest.raises(ValueError, match=r"wanted a lattice 2 or 4 times finer"):
        stimg.tl.upsample(sparse, factor=3, genes=genes, method=model)
