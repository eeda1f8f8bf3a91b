"""Blocks of several libraries: names, sizes in µm, borders, and observations that are not on the raster."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from stimg.image.spec import RasterSpec
from stimg.image.split import hold_out
from stimg.pp import hold_out_blocks, spatial_blocks
from stimg.pp._blocks import centres_um


def sections(seed=0) -> ad.AnnData:
    """A hexagonal library of pitch 100 µm and a square one of 200 µm, shuffled together, with coordinates turned and scaled."""
    rng = np.random.default_rng(seed)
    turn = np.array([[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]])
    specs = {
        "hex": RasterSpec("hex", (20, 16), 100.0, 1, affine=tuple(map(tuple, np.column_stack([300 * turn, [50.0, 70.0]]).tolist()))),
        "square": RasterSpec("square", (10, 12), 200.0, affine=tuple(map(tuple, np.column_stack([400 * turn.T, [9.0, 8.0]]).tolist()))),
    }
    rc = {name: np.argwhere(rng.random(spec.shape) > 0.1) for name, spec in specs.items()}
    names = np.repeat(list(rc), [len(v) for v in rc.values()])
    yx = np.concatenate([specs[name].centres_px(v) for name, v in rc.items()])
    order = rng.permutation(len(names))
    adata = ad.AnnData(sp.csr_matrix((len(names), 2), dtype=np.float32))
    adata.obs["library_id"] = pd.Categorical(names[order])
    adata.obsm["stimg_rc"] = np.concatenate(list(rc.values()))[order].astype(np.int32)
    adata.obsm["spatial"] = yx[order][:, ::-1].copy()
    adata.uns["stimg"] = {"raster": {name: spec.to_dict() for name, spec in specs.items()}}
    return adata


@pytest.mark.parametrize("options", [{"block_um": 600.0}, {"n_blocks": 5}])
def test_blocks_lie_within_libraries_and_are_deterministic(options):
    adata = sections()
    spatial_blocks(adata, **options)
    block = adata.obs["stimg_block"]
    assert isinstance(block.dtype, pd.CategoricalDtype)
    assert (block.astype(str).str.split("/").str[0] == adata.obs["library_id"].astype(str)).all()
    assert (block.value_counts() > 0).all()
    centres = centres_um(adata)
    if "block_um" in options:
        assert all(np.ptp(centres[block == b], axis=0).max() <= 600 for b in block.cat.categories)
    else:
        assert list(block.cat.categories) == [f"{name}/{k}" for name in ("hex", "square") for k in range(5)]
        sizes = block.value_counts()
        assert sizes.filter(like="hex").min() > 0.7 * sizes.filter(like="hex").max()
    order = np.random.default_rng(1).permutation(adata.n_obs)
    again = adata[order].copy()
    spatial_blocks(again, **options)
    assert list(again.obs["stimg_block"]) == list(block.iloc[order])


def test_border_and_hold_out_agree_with_all_distances():
    adata = sections()
    spatial_blocks(adata, n_blocks=4, buffer_um=200.0)
    centres, library, block = centres_um(adata), adata.obs["library_id"].to_numpy(), adata.obs["stimg_block"].to_numpy()
    distance = np.sqrt(((centres[:, None] - centres) ** 2).sum(axis=-1))
    distance[library[:, None] != library] = np.inf
    near = distance <= 200.0 + 1e-6
    np.testing.assert_array_equal(adata.obs["stimg_block_border"], (near & (block[:, None] != block)).any(axis=1))
    got = hold_out(block, ["hex/1", "square/0"], centres, 200.0, library=library)
    np.testing.assert_array_equal(got.test, np.isin(block, ["hex/1", "square/0"]))
    np.testing.assert_array_equal(got.buffer, ~got.test & near[:, got.test].any(axis=1))
    assert distance[np.ix_(got.train, got.test)].min() > 200.0
    hold_out_blocks(adata, held=["hex/1", "square/0"], buffer_um=200.0)
    split = adata.obs["stimg_split"]
    for name in ("train", "test", "buffer"):
        np.testing.assert_array_equal(split == name, getattr(got, name))
    with pytest.raises(ValueError, match="do not exist"):
        hold_out_blocks(adata, held=["hex/9"])


def test_observations_off_the_raster_are_placed_by_their_coordinates():
    adata = sections()
    spatial_blocks(adata, block_um=500.0)
    expected, centres = list(adata.obs["stimg_block"]), centres_um(adata)
    off = [0, 17, 40, 111]
    adata.obsm["stimg_rc"][off] = -1
    np.testing.assert_allclose(centres_um(adata), centres, atol=1e-6)
    spatial_blocks(adata, block_um=500.0)
    assert list(adata.obs["stimg_block"]) == expected


def test_columns_and_provenance(tmp_path):
    adata = sections()
    adata.obs["slide"] = adata.obs["library_id"]
    spatial_blocks(adata, n_blocks=3, library_key="slide", key_added="fold", buffer_um=150)
    assert {"fold", "fold_border"} <= set(adata.obs)
    record = adata.uns["stimg"]["fold"]
    assert (record["n_blocks"], record["block_um"], record["buffer_um"]) == (3, "none", 150.0)
    adata.write_h5ad(tmp_path / "a.h5ad")
    assert list(ad.read_h5ad(tmp_path / "a.h5ad").obs["fold"]) == list(adata.obs["fold"])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, "exactly one"),
        ({"block_um": 5.0, "n_blocks": 2}, "exactly one"),
        ({"block_um": 0.0}, "block_um=0"),
        ({"n_blocks": 0}, "n_blocks=0"),
        ({"n_blocks": 10_000}, "n_blocks=10000"),
        ({"n_blocks": 2, "buffer_um": -1.0}, "buffer_um=-1"),
    ],
)
def test_errors_say_what_was_found(options, match):
    adata = sections()
    with pytest.raises(ValueError, match=match):
        spatial_blocks(adata, **options)
    assert "stimg_block" not in adata.obs


def test_needs_a_raster():
    adata = sections()
    del adata.obsm["stimg_rc"]
    with pytest.raises(KeyError, match=r"stimg\.pp\.rasterize"):
        spatial_blocks(adata, n_blocks=2)
    with pytest.raises(KeyError, match=r"stimg\.pp\.spatial_blocks"):
        hold_out_blocks(adata, held=["a"])
