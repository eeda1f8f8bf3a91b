import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from stimg.data.crops import CropDataset
from stimg.data.library import Library, libraries
from stimg.image.spec import CropSpec, RasterSpec

GENES = [f"g{i}" for i in range(10)]


def rasterised(seed=0, *, genes=GENES, shapes=((6, 7), (5, 8)), dtype=np.float32):
    """Two libraries with the slots that `stimg.pp.rasterize` writes."""
    rng = np.random.default_rng(seed)
    rcs, names, records = [], [], {}
    for name, shape in zip(("left", "right"), shapes, strict=True):
        rc = np.argwhere(rng.random(shape) < 0.8)
        rcs.append(rc[rng.permutation(len(rc))])
        names += [name] * len(rc)
        records[name] = RasterSpec("square", shape, 100.0).to_dict()
    rc = np.concatenate(rcs).astype(np.int32)
    rc[3] = -1  # not on the raster
    order = rng.permutation(len(rc))
    X = sp.csr_matrix(rng.poisson(1.0, size=(len(rc), len(genes))).astype(dtype))
    obs = pd.DataFrame({"library_id": pd.Categorical(np.array(names)[order])}, index=[f"o{i}" for i in range(len(rc))])
    adata = ad.AnnData(X, obs=obs, var=pd.DataFrame(index=list(genes)))
    adata.obsm["stimg_rc"] = rc[order]
    adata.obsm["spatial"] = rc[order][:, ::-1].astype(float)
    adata.uns["stimg"] = {"raster": records}
    return adata


def everything(libs, **options):
    data = CropDataset(libs, CropSpec((3, 3)), rule="weighted", n_channels=4, **options)
    return [data[(e, i)] for e in range(2) for i in range(len(data))]


def equal(a, b):
    return len(a) == len(b) and all(all(torch.equal(x[k], y[k]) for k in x) for x, y in zip(a, b, strict=True))


def test_a_library_holds_the_counts_of_its_observations():
    adata = rasterised()
    vocabulary = ["g7", "absent", "g2", "g5"]
    libs = libraries(adata, vocabulary=vocabulary)
    assert sorted(lib.name for lib in libs) == ["left", "right"]
    dense = adata.X.toarray()
    for lib in libs:
        own = np.flatnonzero((adata.obs["library_id"] == lib.name).to_numpy() & (adata.obsm["stimg_rc"][:, 0] >= 0))
        assert sorted(lib.rows.tolist()) == own.tolist()
        np.testing.assert_array_equal(lib.depth, dense[lib.rows].sum(1))
        assert [vocabulary[p] for p in lib.panel] == ["g7", "g2", "g5"]
        window = lib.store.window(0, 0, *lib.spec.shape)
        found = np.zeros((3, *lib.spec.shape))
        found[(window.gene, *np.divmod(window.pixel, lib.spec.shape[1]))] = window.value
        for row, (r, c) in zip(lib.rows, lib.points, strict=True):
            assert tuple(adata.obsm["stimg_rc"][row]) == (r, c)
            assert found[:, r, c].tolist() == [dense[row, 7], dense[row, 2], dense[row, 5]]
            assert lib.depth_image[r, c] == dense[row].sum()
        assert lib.depth_image.sum() == lib.depth.sum()


def test_control_probes_change_no_output():
    adata = rasterised()
    names = [
        "NegControlProbe_1",
        "BLANK_7",
        "Blank-3",
        "UnassignedCodeword_2",
        "antisense_X",
        "DeprecatedCodeword_1",
        "Intergenic_9",
        "NegPrb4",
        "weird",
    ]
    rng = np.random.default_rng(3)
    probes = ad.AnnData(
        sp.csr_matrix(rng.poisson(50.0, size=(adata.n_obs, len(names))).astype(np.float32)), obs=adata.obs, var=pd.DataFrame(index=names)
    )
    both = ad.concat([adata, probes], axis=1)[:, rng.permutation([*GENES, *names])].copy()
    both.obs, both.obsm, both.uns = adata.obs.copy(), adata.obsm, adata.uns
    both.var["control"] = both.var_names == "weird"
    vocabulary = [*GENES[::-1], *names]
    assert equal(everything(libraries(adata, vocabulary=vocabulary)), everything(libraries(both, vocabulary=vocabulary)))


def test_the_order_of_genes_and_the_dtype_of_counts_change_no_output():
    adata = rasterised()
    turned = adata[:, GENES[::-1]].copy()
    turned.X = turned.X.astype(np.int32)
    assert equal(everything(libraries(adata, vocabulary=GENES)), everything(libraries(turned, vocabulary=GENES)))


def test_observations_outside_rows_do_not_exist():
    adata = rasterised()
    rows = np.random.default_rng(0).permutation(adata.n_obs)[:40]
    changed = adata.copy()
    outside = np.setdiff1d(np.arange(adata.n_obs), rows)
    X = changed.X.tolil()
    X[outside] = 99
    changed.X = X.tocsr()
    changed.obsm["stimg_rc"][outside] = -1
    ours = libraries(adata, vocabulary=GENES, rows=rows)
    batches = everything(ours)
    assert equal(batches, everything(libraries(changed, vocabulary=GENES, rows=np.isin(np.arange(adata.n_obs), rows))))
    assert equal(batches, everything(libraries(changed, vocabulary=GENES)))
    seen = {o for b in batches for o in b["obs"].flatten().tolist()} - {-1}
    assert seen <= set(rows.tolist())
    left = np.flatnonzero((adata.obs["library_id"] == "left").to_numpy())
    assert [lib.name for lib in libraries(adata, vocabulary=GENES, rows=left)] == ["left"]


def test_joined_objects_keep_their_own_panels():
    adata = rasterised()
    left = (adata.obs["library_id"] == "left").to_numpy()
    X = adata.X.tolil()
    X[left, 8:] = 0  # the panel of the left library ends before g8; the join filled with zeros
    adata.X = X.tocsr()
    libs = {lib.name: lib for lib in libraries(adata, vocabulary=GENES, panels={"left": GENES[:8]})}
    assert libs["left"].panel.tolist() == list(range(8))
    assert libs["right"].panel.tolist() == list(range(10))
    with pytest.raises(ValueError, match="did not measure"):
        libraries(adata, vocabulary=GENES, panels={"right": GENES[:8]})
    with pytest.raises(ValueError, match="centre"):
        libraries(adata, vocabulary=GENES, panels={"centre": GENES[:8]})


def test_libraries_with_other_panels_share_a_vocabulary():
    first, second = rasterised(), rasterised(1, genes=["g8", "g9", "x1", "x2"])
    vocabulary = [*GENES, "x1", "x2"]
    data = CropDataset(libraries(first, vocabulary=vocabulary) + libraries(second, vocabulary=vocabulary), CropSpec((3, 3)), rule="all")
    batch = data.__getitems__([(0, i) for i in range(len(data))])
    for which, panel in zip(batch["library"].tolist(), batch["panel"].tolist(), strict=True):
        assert panel == (list(range(10)) if which < 2 else [8, 9, 10, 11] + [-1] * 6)


def test_a_normalised_layer_is_taken_on_request():
    adata = rasterised()
    adata.layers["logged"] = adata.X.log1p()
    with pytest.raises(ValueError, match="fractional"):
        libraries(adata, vocabulary=GENES, layer="logged")
    lib = libraries(adata, vocabulary=GENES, layer="logged", counts=False)[0]
    assert not lib.counts
    np.testing.assert_allclose(lib.depth, np.log1p(adata.X.toarray())[lib.rows].sum(1), rtol=1e-6)
    adata.layers["logged"].data[5] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        libraries(adata, vocabulary=GENES, layer="logged", counts=False)


@pytest.mark.parametrize(("rule", "n_channels"), [("weighted", 4), ("variance", 4), ("uniform", 2), ("weighted", 1), ("all", None)])
def test_keeping_the_values_by_spot_changes_no_output(rule, n_channels):
    adata = rasterised()
    fast, slow = (libraries(adata, vocabulary=GENES, by_spot=b) for b in (True, False))
    assert fast[0].spots is not None
    assert slow[0].spots is None
    a, b = (CropDataset(libs, CropSpec((3, 3)), rule=rule, n_channels=n_channels, augment=True) for libs in (fast, slow))
    for i in range(len(a)):
        assert equal([a[i]], [b[i]])
    for fast_library in fast:
        np.testing.assert_array_equal(fast_library.spots.toarray(), adata.X.toarray()[fast_library.rows])


def test_observations_that_share_a_point_have_no_values_by_spot():
    adata = rasterised()
    left = np.flatnonzero((adata.obs["library_id"] == "left").to_numpy() & (adata.obsm["stimg_rc"][:, 0] >= 0))
    adata.obsm["stimg_rc"][left[1]] = adata.obsm["stimg_rc"][left[0]]
    libs = {lib.name: lib for lib in libraries(adata, vocabulary=GENES)}
    assert libs["left"].spots is None
    assert libs["right"].spots is not None
    shared = libs["left"]
    r, c = adata.obsm["stimg_rc"][left[0]]
    assert shared.depth_image[r, c] == adata.X[left[:2]].sum()
    assert shared.depth_image.sum() == shared.depth.sum()
    with pytest.raises(ValueError, match="share a lattice point"):
        Library("a", shared.store, shared.spec, shared.panel, shared.depth, shared.rows, shared.rc, True, sp.csr_matrix((shared.n_obs, 10)))
    with pytest.raises(ValueError, match="lattice points"):
        Library("a", shared.store, shared.spec, shared.panel, shared.depth, shared.rows).first  # noqa: B018


def test_explicit_zeros_are_no_values():
    adata = rasterised()
    with_zeros = adata.copy()
    with_zeros.X = sp.csr_matrix((with_zeros.X.data.copy(), with_zeros.X.indices.copy(), with_zeros.X.indptr.copy()), shape=adata.shape)
    with_zeros.X.data[::3] = 0
    clean = with_zeros.copy()
    clean.X.eliminate_zeros()
    assert equal(everything(libraries(with_zeros, vocabulary=GENES)), everything(libraries(clean, vocabulary=GENES)))


def test_wrong_input_raises():
    adata = rasterised()
    with pytest.raises(ValueError, match=r"None of the 2 genes of the vocabulary \(such as \['ENSG1'"):
        libraries(adata, vocabulary=["ENSG1", "ENSG2"])
    with pytest.raises(ValueError, match="duplicated names in the vocabulary"):
        libraries(adata, vocabulary=["g1", "g1"])
    with pytest.raises(ValueError, match=r"wanted positions in 0 \.\."):
        libraries(adata, vocabulary=GENES, rows=[adata.n_obs])
    with pytest.raises(ValueError, match="1 positions twice"):
        libraries(adata, vocabulary=GENES, rows=[1, 2, 1])
    with pytest.raises(ValueError, match="mask"):
        libraries(adata, vocabulary=GENES, rows=np.ones(3, bool))
    with pytest.raises(TypeError, match="positions"):
        libraries(adata, vocabulary=GENES, rows=[0.5])
    with pytest.raises(ValueError, match="lies on a raster"):
        libraries(adata, vocabulary=GENES, rows=[])
    del adata.uns["stimg"]
    with pytest.raises(KeyError, match="rasterize"):
        libraries(adata, vocabulary=GENES)


def test_a_library_checks_its_parts(make_library):
    lib = make_library()
    parts = {"name": "b", "store": lib.store, "spec": lib.spec, "panel": lib.panel, "depth": lib.depth, "rows": lib.rows}
    bare = Library(**parts)
    assert np.array_equal(bare.points, lib.rc)
    assert np.array_equal(bare.first, np.arange(lib.n_obs))
    assert np.array_equal(bare.depth_image, lib.depth_image)
    for change, message in [
        ({"panel": lib.panel[1:]}, "panel"),
        ({"panel": np.zeros(12, np.int64)}, "share a position"),
        ({"depth": lib.depth[1:]}, "depth"),
        ({"rc": lib.rc[1:]}, "rc"),
        ({"spec": RasterSpec("square", (3, 3), 1.0)}, "shape"),
    ]:
        with pytest.raises(ValueError, match=message):
            Library(**(parts | change))
