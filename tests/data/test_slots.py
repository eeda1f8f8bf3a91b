"""Reading rasters back: order, subsets, joined objects, and every way in which slots can be missing."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from stimg.data.slots import library_rows, raster_libraries
from stimg.image.spec import RasterSpec


def rasterised(libraries=("b", "a"), n=6):
    specs = {name: RasterSpec("square", (n, 4), 10.0 + i, origin=(i, 2)) for i, name in enumerate(libraries)}
    adata = ad.AnnData(np.ones((n * len(libraries), 2), dtype=np.float32))
    adata.obs_names = [f"o{i}" for i in range(adata.n_obs)]
    adata.obs["library_id"] = np.tile(libraries, n)  # interleaved
    adata.obsm["stimg_rc"] = np.stack([np.repeat(np.arange(n), len(libraries)), np.ones(adata.n_obs)], axis=1).astype(np.int32)
    adata.uns["stimg"] = {"raster": {name: spec.to_dict() for name, spec in specs.items()}}
    return adata, specs


def test_rows_and_specs_by_library():
    adata, specs = rasterised()
    adata.obsm["stimg_rc"][4] = -1
    found = raster_libraries(adata)
    assert list(found) == ["a", "b"]
    for name, library in found.items():
        naive = [i for i in range(adata.n_obs) if adata.obs["library_id"].iloc[i] == name and adata.obsm["stimg_rc"][i, 0] >= 0]
        assert library.rows.tolist() == naive
        assert library.rows.dtype == np.int64
        assert library.rc.dtype == np.int32
        assert (library.rc == adata.obsm["stimg_rc"][naive]).all()
        assert library.spec == specs[name]


def test_library_rows_against_a_loop():
    column = pd.Series(np.random.default_rng(0).choice(["x", "yy", "z"], 50)).astype("category")
    assert {k: v.tolist() for k, v in library_rows(column).items()} == {
        name: [i for i, v in enumerate(column) if v == name] for name in sorted(set(column))
    }


def test_subsets_and_joined_objects_keep_their_rasters():
    adata, specs = rasterised()
    assert raster_libraries(adata[adata.obs["library_id"] == "a"])["a"].spec == specs["a"]
    parts = [adata[adata.obs["library_id"] == name].copy() for name in specs]
    for part, name in zip(parts, specs, strict=True):
        part.uns["stimg"] = {"raster": {name: specs[name].to_dict()}}
    joined = ad.concat(parts, uns_merge="unique")
    assert {name: library.spec for name, library in raster_libraries(joined).items()} == specs


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda a: a.obsm.pop("stimg_rc"), KeyError, "stimg.pp.rasterize"),
        (lambda a: a.uns.clear(), KeyError, "stimg.pp.rasterize"),
        (lambda a: a.uns["stimg"]["raster"].pop("a"), KeyError, r"\['a'\] is missing \(found \['b'\]\)"),
        (lambda a: a.obs.pop("library_id"), KeyError, "library_id"),
        (lambda a: a.obs.__setitem__("library_id", [None, *["a"] * (a.n_obs - 1)]), ValueError, "1 missing"),
        (lambda a: a.obsm["stimg_rc"].__setitem__((0, 0), 99), ValueError, "outside the raster"),
        (lambda a: a.obsm.__setitem__("stimg_rc", np.zeros((a.n_obs, 3))), ValueError, "shape"),
    ],
)
def test_missing_or_spoilt_slots(spoil, error, message):
    adata, _ = rasterised()
    spoil(adata)
    with pytest.raises(error, match=message):
        raster_libraries(adata)
