"""Stain normalisation against squidpy's own, on a slide whose stains are known; what the record says that it has seen."""

import types

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from skimage.color import rgb_from_hed

import stimg
from stimg._core.ledger import LeakageError
from stimg.data import StainNormaliser, TileDataset, fit_stain, tile_stain
from stimg.data.ledger import check_leakage
from stimg.image.colour import OPTICAL_DENSITY

HE = rgb_from_hed[:2] / np.linalg.norm(rgb_from_hed[:2], axis=1, keepdims=True)
OTHER = np.array([[0.55, 0.75, 0.37], [0.20, 0.85, 0.48]])
OTHER = OTHER / np.linalg.norm(OTHER, axis=1, keepdims=True)


def slide(stains, seed):
    """Nuclei of haematoxylin on a ground of eosin, amounts varying from pixel to pixel."""
    rng = np.random.default_rng(seed)
    nuclei = np.kron(rng.random((80, 80)) < 0.3, np.ones((5, 5), bool))
    h = np.where(nuclei, rng.gamma(20, 0.04, (400, 400)), rng.gamma(1.5, 0.01, (400, 400)))
    e = np.where(nuclei, rng.gamma(1.5, 0.01, (400, 400)), rng.gamma(20, 0.03, (400, 400)))
    density = np.stack([h, e], axis=-1) @ stains
    return np.clip(np.rint(256 * 10**-density - 1), 0, 255).astype(np.uint8)


IMAGES = {"A": slide(HE, 1), "B": slide(OTHER, 2)}


@pytest.fixture
def adata():
    y, x = (each.ravel() * 40.0 + 40 for each in np.mgrid[:9, :9])
    out = ad.AnnData(
        np.ones((162, 2)), obs=pd.DataFrame({"library_id": pd.Categorical(np.repeat(["A", "B"], 81))}, index=[f"o{i}" for i in range(162)])
    )
    out.obs["donor"] = np.repeat(["d1", "d2"], 81)
    out.obsm["spatial"] = np.tile(np.stack([x, y], axis=1), (2, 1))
    out.uns["spatial"] = {name: {"images": {}, "scalefactors": {"microns_per_pixel": 0.5}} for name in "AB"}
    stimg.pp.plan_tiles(out, tile_um=20, mpp=0.5, image=IMAGES)
    return out


def angle(a, b):
    return np.degrees(np.arccos(np.clip(a @ b / np.linalg.norm(a) / np.linalg.norm(b), -1, 1)))


def test_the_stains_are_those_of_the_slides(adata):
    stain = fit_stain(adata, rows=np.arange(81), image=IMAGES)
    for found, wanted in ((stain.target, HE), (stain.sources["A"], HE), (stain.sources["B"], OTHER)):
        assert angle(found[:, 0], wanted[0]) < 6
        assert angle(found[:, 1], wanted[1]) < 6


def test_tiles_of_another_slide_get_the_colours_of_training(adata):
    stain = fit_stain(adata, rows=np.arange(81), image=IMAGES)
    amounts = np.stack([np.full(50, 0.3), np.linspace(0.1, 0.6, 50)], axis=1)
    there, here = (np.clip(np.rint(256 * 10 ** -(amounts @ stains) - 1), 0, 255).astype(np.uint8) for stains in (OTHER, HE))
    moved = stain.apply(there[None], "B")[0]
    assert np.abs(moved.astype(int) - here).max() < 20
    assert np.abs(moved.astype(int) - here).mean() < 0.3 * np.abs(there.astype(int) - here).mean()
    assert (stain.apply(np.full((2, 2, 3), 255, np.uint8), "B") == 255).all()


def test_the_map_is_that_of_squidpy(adata):
    """``normalize_stains`` on an image of the very pixels that the source was fitted on gives the same colours."""
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel, Labels2DModel
    from squidpy.experimental.im import StainReference, normalize_stains

    stain = fit_stain(adata, rows=np.arange(81), image=IMAGES, n_tiles=60)
    tiles = IMAGES["B"][:200, :200]
    density = OPTICAL_DENSITY[tiles].mean(-1) > tile_stain.TISSUE
    sdata = SpatialData(
        images={"b": Image2DModel.parse(np.moveaxis(tiles, -1, 0), dims=("c", "y", "x"))},
        labels={"b_tissue": Labels2DModel.parse(density.astype(np.int32), dims=("y", "x"))},
    )
    reference = StainReference("macenko", stain_matrix=stain.target, white_point=np.full(3, 255.0))
    wanted = np.moveaxis(np.asarray(normalize_stains(sdata, "b", reference, inplace=False, preserve_background=False)), 0, -1)
    own = StainNormaliser("macenko", stain.target, {"B": tile_stain._stains(tiles, "macenko", "these")})
    assert np.abs(own.apply(tiles, "B").astype(int) - wanted).max() <= 1


def test_the_record_names_the_training_observations_alone(adata):
    training = np.arange(60)
    stain = fit_stain(adata, rows=training, image=IMAGES)
    (seen,) = stain.ledger
    assert (seen.kind, seen.libraries, seen.donors, len(seen.ids)) == ("stain target", ("A",), ("d1",), 60)
    check_leakage(adata, stain, test=np.arange(81, 162))
    with pytest.raises(LeakageError, match="the stain target 'macenko stains' has seen 2 of 2 test observations"):
        check_leakage(adata, stain, test=[3, 4], level="observation")


def test_only_training_tiles_shape_the_target(adata):
    """Whatever the other observations show, the target is the same."""
    changed = {"A": IMAGES["A"].copy(), "B": IMAGES["B"]}
    rows = np.flatnonzero(adata.obsm["spatial"][:81, 1] < 200)
    changed["A"][240:] = 30
    first = fit_stain(adata, rows=rows, image=IMAGES)
    stimg.pp.plan_tiles(adata, tile_um=20, mpp=0.5, image=changed)
    second = fit_stain(adata, rows=rows, image=changed)
    np.testing.assert_array_equal(first.target, second.target)
    np.testing.assert_array_equal(first.sources["A"], second.sources["A"])


def test_the_dataset_applies_it_and_it_survives_values(adata):
    stain = fit_stain(adata, rows=np.arange(81), image=IMAGES)
    again = StainNormaliser.from_dict(stain.to_dict())
    np.testing.assert_array_equal(again.target, stain.target)
    assert again.ledger[0].donors == ("d1",)
    plain, with_stain = TileDataset(adata, image=IMAGES), TileDataset(adata, image=IMAGES, stain=again)
    for i in (0, 100):
        library = adata.obs["library_id"].iloc[i]
        np.testing.assert_array_equal(with_stain[i]["image"], stain.apply(plain[i]["image"].numpy(), library))
    del again.sources["B"]
    with pytest.raises(KeyError, match=r"knows no library 'B' \(found \['A'\]\)"):
        TileDataset(adata, image=IMAGES, stain=again)


def test_what_has_no_stains(adata, monkeypatch):
    white = {"A": np.full((400, 400, 3), 250, np.uint8), "B": IMAGES["B"]}
    stimg.pp.plan_tiles(adata, tile_um=20, mpp=0.5, image=white, key_added="white")
    with pytest.raises(ValueError, match=r"show tissue in 0 of \d+ pixels; wanted at least 1024"):
        fit_stain(adata, rows=np.arange(81), image=white, key="white")
    green = {"A": np.random.default_rng(0).integers(0, 255, (400, 400, 3), dtype=np.uint8) // [4, 1, 4], "B": IMAGES["B"]}
    green["A"] = green["A"].astype(np.uint8)
    stimg.pp.plan_tiles(adata, tile_um=20, mpp=0.5, image=green, key_added="green")
    with pytest.raises(ValueError, match=r"stains of .* cannot be told apart .* Is it an H&E image\?"):
        fit_stain(adata, rows=np.arange(81), image=green, key="green")
    with pytest.raises(ValueError, match="method='reinhard' is not known"):
        fit_stain(adata, rows=np.arange(81), image=IMAGES, method="reinhard")
    with pytest.raises(ValueError, match="rows names no observation"):
        fit_stain(adata, rows=np.zeros(162, bool), image=IMAGES)
    monkeypatch.setattr(tile_stain, "need", lambda *args, **options: types.SimpleNamespace())
    with pytest.raises(ImportError, match="has no fit_stain_reference in this version"):
        fit_stain(adata, rows=np.arange(81), image=IMAGES)


@pytest.mark.data
def test_both_methods_agree_on_a_real_section(mirror):
    adata = stimg.datasets.her2st(["C2"])
    stimg.pp.plan_tiles(adata, tile_um=112, mpp=0.7, image=mirror / "her2st" / "ST-imgs" / "C2.jpg")
    first, second = (fit_stain(adata, rows=np.arange(adata.n_obs), method=method, n_tiles=60).target for method in ("macenko", "vahadane"))
    for stain, wanted in ((0, HE[0]), (1, HE[1])):
        assert angle(first[:, stain], second[:, stain]) < 6
        assert angle(first[:, stain], wanted) < 40
