import numpy as np
import pytest
from scipy.ndimage import label
from scipy.spatial.distance import cdist

from stimg.data.slots import raster_libraries
from stimg.model._split import split_observations


def split(adata, seed=0, **options):
    options = {"validation": "blocks", "fraction": 0.2, **options}
    return split_observations(raster_libraries(adata), adata.n_obs, rng=np.random.default_rng(seed), **options)


@pytest.mark.parametrize("technology", ["st", "visium"])
@pytest.mark.parametrize("seed", range(4))
def test_one_contiguous_block_of_each_library_and_a_margin(make_slide, technology, seed):
    adata = make_slide(technology, n_sections=2)
    found = split(adata, seed)
    assert not (found.train & found.validation).any()
    for name, raster in raster_libraries(adata).items():
        held, train = found.validation[raster.rows], found.train[raster.rows]
        assert 0.1 < held.mean() < 0.3, name
        image = np.zeros(raster.spec.shape, dtype=bool)
        image[tuple(raster.rc[held].T)] = True
        assert label(image, np.ones((3, 3)))[1] == 1
        distance = cdist(raster.spec.centres_um(raster.rc[held]), raster.spec.centres_um(raster.rc)).min(0) / raster.spec.pitch_um
        np.testing.assert_array_equal(train, distance > 1.5 + 1e-6)


def test_the_block_is_drawn(make_slide):
    adata = make_slide()
    assert len({split(adata, seed).validation.tobytes() for seed in range(6)}) > 2
    assert np.array_equal(split(adata, 3).validation, split(adata, 3).validation)


def test_whole_libraries_and_none(make_slide):
    adata = make_slide(n_sections=2)
    second = (adata.obs["library_id"] == "D1S2").to_numpy()
    found = split(adata, validation=["D1S2"])
    np.testing.assert_array_equal(found.validation, second)
    np.testing.assert_array_equal(found.train, ~second)
    everything = split(adata, validation=None)
    assert everything.train.all()
    assert not everything.validation.any()


def test_observations_off_the_raster_are_in_neither(make_slide):
    adata = make_slide()
    rc = adata.obsm["stimg_rc"].copy()
    rc[5] = -1
    adata.obsm["stimg_rc"] = rc
    for validation in ("blocks", None):
        found = split(adata, validation=validation)
        assert not found.train[5]
        assert not found.validation[5]
