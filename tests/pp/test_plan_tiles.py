"""Where tiles are planned, against coordinates worked out by hand; what is refused."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from spatialdata import SpatialData, read_zarr
from spatialdata.models import Image2DModel, Labels2DModel, ShapesModel, TableModel
from spatialdata.transformations import Affine, Identity, Scale, Sequence, Translation, get_transformation

import stimg
from stimg.data import TileDataset
from stimg.data.tile_plan import tile_plan
from stimg.image import TileSpec

SIDE = 400


def marked():
    """Red is the row and green the column of a pixel, so that every tile tells where it was read."""
    y, x = np.mgrid[:SIDE, :SIDE]
    return np.stack([y // 2, x // 2, 0 * x + 90], axis=-1).astype(np.uint8)


@pytest.fixture
def adata():
    out = ad.AnnData(np.ones((4, 3)), obs=pd.DataFrame({"library_id": pd.Categorical(["A"] * 4)}, index=list("abcd")))
    out.obsm["spatial"] = np.array([[200.0, 100.0], [380.0, 60.0], [90.4, 310.7], [20.0, 390.0]])
    out.uns["spatial"] = {"A": {"images": {"hires": marked()}, "scalefactors": {"tissue_hires_scalef": 1.0, "microns_per_pixel": 0.5}}}
    return out


def seen_at(adata, row, **options):
    """Centre (y, x) of what the first field of a tile shows."""
    image = TileDataset(adata, **options)[row]["image"][0].numpy().astype(float)
    return 2 * image[..., 0].mean() + 1, 2 * image[..., 1].mean() + 1


class TestObservations:
    def test_centres_and_shares_outside(self, adata):
        stimg.pp.plan_tiles(adata, tile_um=20, mpp=0.5, fields=(1, 3))
        found = adata.obsm["stimg_tiles"]
        assert found.dtype == np.float64
        np.testing.assert_array_equal(found[:, :2], adata.obsm["spatial"][:, ::-1])
        np.testing.assert_allclose(found[:, 2], [0, 0, 0, 1 / 4], atol=1e-12)  # 40 px tiles
        wide = [0, 40 / 120, 0, 1 - (80 / 120) * (70 / 120)]  # 120 px: 380 + 60 - 400; 20 - 60; 390 + 60 - 400
        np.testing.assert_allclose(found[:, 3], wide, atol=1e-12)
        plan = tile_plan(adata)
        assert plan.spec == TileSpec(20, 0.5, (1.0, 3.0))
        known = plan.slides["A"]
        assert (known["mpp"], known["scale"], known["size"].tolist()) == (0.5, 1.0, [400, 400])
        assert known["mpp_source"] == "scalefactors['microns_per_pixel']"
        for row in range(3):
            assert seen_at(adata, row) == pytest.approx(found[row, :2], abs=1.1)

    def test_the_plan_survives_a_file(self, adata, tmp_path):
        stimg.pp.plan_tiles(adata, tile_um=20, mpp=0.5, fields=(1, 3), upsample=True)
        adata.write_h5ad(tmp_path / "a.h5ad")
        adata.write_zarr(tmp_path / "a.zarr")
        for again in (ad.read_h5ad(tmp_path / "a.h5ad"), ad.read_zarr(tmp_path / "a.zarr")):
            assert tile_plan(again).spec == tile_plan(adata).spec
            np.testing.assert_array_equal(TileDataset(again)[3]["image"], TileDataset(adata)[3]["image"])

    def test_a_reduced_image_and_two_libraries(self, adata):
        both = ad.concat({"A": adata, "B": adata}, index_unique="-")
        both.obs["library_id"] = pd.Categorical(["A"] * 4 + ["B"] * 4)
        both.uns["spatial"] = {
            "A": adata.uns["spatial"]["A"],
            "B": {"images": {"hires": marked()}, "scalefactors": {"tissue_hires_scalef": 0.5, "microns_per_pixel": 0.25}},
        }
        stimg.pp.plan_tiles(both, tile_um=20, mpp=0.5)
        np.testing.assert_allclose(both.obsm["stimg_tiles"][4:, :2], both.obsm["spatial"][4:, ::-1] / 2)
        assert {name: each["mpp"] for name, each in tile_plan(both).slides.items()} == {"A": 0.5, "B": 0.5}
        stimg.pp.plan_tiles(
            both, tile_um=20, mpp=0.5, image={"A": marked(), "B": marked()}, image_mpp={"A": 0.4, "B": 0.5}, key_added="own"
        )
        assert [tile_plan(both, "own").slides[name]["mpp"] for name in "AB"] == [0.4, 0.5]
        assert "stimg_own" in both.obsm

    @pytest.mark.parametrize(
        ("options", "error", "words"),
        [
            ({"around": "spots"}, ValueError, "around='spots' is not known"),
            ({"tile_um": -3}, ValueError, "tile_um=-3 is not above zero"),
            ({"mpp": 0.4}, ValueError, r"1\.25 times coarser than the tile wanted \(0\.5 µm per pixel, wanted 0\.4\)"),
            ({"fields": (0.5, 1)}, ValueError, "2 times coarser"),
            ({"tile_um": 300}, ValueError, r"a tile of 300 µm is larger than adata\.uns.*, 200 x 200 µm \(x, y\)"),
            ({"step_um": 3}, ValueError, r"\['step_um'\] go with around='grid'"),
            ({"min_tissue": 0.5}, ValueError, "go with around='grid'"),
            ({"around": "grid"}, TypeError, "wanted a SpatialData for around='grid'"),
            ({"library_key": "sample"}, KeyError, r"obs\['sample'\] is missing"),
            ({"image_key": "lowres"}, KeyError, "holds no 'lowres' image"),
            ({"image": np.zeros((5, 5), np.uint8)}, ValueError, r"wanted \(y, x, 3\)"),
            ({"image": "/no/such.svs"}, FileNotFoundError, "there is no image"),
            ({"image_mpp": 1000.0}, ValueError, "wanted 0.01"),
        ],
    )
    def test_bad_requests_write_nothing(self, adata, options, error, words):
        with pytest.raises(error, match=words):
            stimg.pp.plan_tiles(adata, **{"tile_um": 20, "mpp": 0.5, **options})
        assert "stimg_tiles" not in adata.obsm
        assert "stimg" not in adata.uns

    def test_bad_tables(self, adata):
        def bad(change):
            other = adata.copy()
            change(other)
            return other

        cases = [
            (lambda a: a.obsm["spatial"].__setitem__((1, 0), np.nan), ValueError, "1 rows of 4 with NaN"),
            (lambda a: a.obsm.pop("spatial"), KeyError, r"obsm\['spatial'\] is missing"),
            (
                lambda a: a.obsm.__setitem__("spatial", 1000 + a.obsm["spatial"]),
                ValueError,
                r"all 4 tiles lie outside .*\[1020\.0, 1060\.0\] to \[1380\.0, 1390\.0\]",
            ),
            (
                lambda a: a.uns["spatial"]["A"]["scalefactors"].pop("microns_per_pixel"),
                ValueError,
                r"nothing states how many µm a pixel .* Pass `image_mpp=`",
            ),
            (lambda a: a.uns.pop("spatial"), KeyError, "names no image file"),
            (lambda a: a.obs.__setitem__("library_id", ["A", "A", None, "A"]), ValueError, "1 missing values"),
        ]
        for change, error, words in cases:
            with pytest.raises(error, match=words):
                stimg.pp.plan_tiles(bad(change), tile_um=20, mpp=0.5)
        with pytest.raises(ValueError, match="0 observations"):
            stimg.pp.plan_tiles(adata[:0].copy(), tile_um=20, mpp=0.5)
        with pytest.raises(TypeError, match="wanted an AnnData or a SpatialData"):
            stimg.pp.plan_tiles({}, tile_um=20, mpp=0.5)


def turned(degrees, scale=1.0, shift=(0.0, 0.0)):
    c, s = scale * np.cos(np.deg2rad(degrees)), scale * np.sin(np.deg2rad(degrees))
    return Affine([[c, -s, shift[0]], [s, c, shift[1]], [0, 0, 1]], input_axes=("x", "y"), output_axes=("x", "y"))


def spatial(image_to, points, shapes_to=None, *, scale_factors=None):
    """``points`` are (x, y) of circles in the units of their element."""
    image = Image2DModel.parse(np.moveaxis(marked(), -1, 0), dims=("c", "y", "x"), transformations=image_to, scale_factors=scale_factors)
    shapes = ShapesModel.parse(
        np.asarray(points, float), geometry=0, radius=2.0, index=np.arange(len(points)), transformations=shapes_to or {"global": Identity()}
    )
    obs = pd.DataFrame(
        {
            "library_id": pd.Categorical(["A"] * len(points)),
            "region": pd.Categorical(["spots"] * len(points)),
            "instance": np.arange(len(points)),
        }
    )
    obs.index = [f"o{i}" for i in range(len(points))]
    table = TableModel.parse(ad.AnnData(np.ones((len(points), 2)), obs=obs), region="spots", region_key="region", instance_key="instance")
    return SpatialData(images={"he": image}, shapes={"spots": shapes}, tables={"table": table})


class TestElements:
    @pytest.mark.parametrize("scale_factors", [None, [2, 2]])
    @pytest.mark.parametrize(
        ("to", "unit"),
        [
            (Identity(), 1.0),
            (Scale([0.25, 0.25], axes=("x", "y")), 0.25),
            (Sequence([Scale([3.0, 3.0], axes=("x", "y")), Translation([100, -50], axes=("x", "y"))]), 3.0),
            (turned(30, 2.0, (40, 70)), 2.0),
            (turned(90), 1.0),
        ],
    )
    def test_centres_go_through_all_transformations(self, to, unit, scale_factors):
        """Circles are put where given pixels of the image come to lie; the tiles must show these pixels."""
        pixels_xy = np.array([[200.0, 100.0], [320.0, 60.0], [90.0, 310.0]])
        matrix = to.to_affine_matrix(("x", "y"), ("x", "y"))
        sdata = spatial({"global": to}, pixels_xy @ matrix[:2, :2].T + matrix[:2, 2], scale_factors=scale_factors)
        stimg.pp.plan_tiles(sdata, tile_um=20, mpp=0.5, image_mpp=0.5)
        table = sdata.tables["table"]
        np.testing.assert_allclose(table.obsm["stimg_tiles"], np.column_stack([pixels_xy[:, ::-1], np.zeros(3)]), atol=1e-9)
        assert tile_plan(table).slides["A"]["scale"] == pytest.approx(1 / unit)
        for row in range(3):
            assert seen_at(sdata, row) == pytest.approx(pixels_xy[row, ::-1], abs=1.1)

    def test_two_systems_of_which_one_is_shared(self):
        both = {"shared": Scale([2.0, 2.0], axes=("x", "y")), "other": Identity()}
        sdata = spatial(both, [[400.0, 200.0]], {"shared": Identity()})
        stimg.pp.plan_tiles(sdata, tile_um=20, mpp=0.5, image_mpp=0.5)
        np.testing.assert_allclose(sdata.tables["table"].obsm["stimg_tiles"][0, :2], [100, 200])
        with pytest.raises(KeyError, match="no transformation to 'other'"):
            stimg.pp.plan_tiles(sdata, tile_um=20, mpp=0.5, image_mpp=0.5, coordinate_system="other")
        apart = spatial({"a": Identity()}, [[400.0, 200.0]], {"b": Identity()})
        with pytest.raises(KeyError, match="0 coordinate systems to choose from"):
            stimg.pp.plan_tiles(apart, tile_um=20, mpp=0.5, image_mpp=0.5)

    def test_without_a_scale(self):
        with pytest.raises(ValueError, match=r"nothing states how many µm a pixel of sdata.images\['he'\].*`image_mpp=`"):
            stimg.pp.plan_tiles(spatial({"global": Identity()}, [[50.0, 50.0]]), tile_um=20, mpp=0.5)

    def test_an_array_beside_a_spatialdata_is_in_its_obsm(self):
        sdata = spatial({"global": Identity()}, [[50.0, 50.0]])
        sdata.tables["table"].obsm["spatial"] = np.array([[70.0, 80.0]])
        stimg.pp.plan_tiles(sdata, tile_um=20, mpp=0.5, image=marked(), image_mpp=0.5)
        np.testing.assert_array_equal(sdata.tables["table"].obsm["stimg_tiles"][0, :2], [80, 70])


class TestGrid:
    def test_squares_and_table(self, tmp_path):
        to = {
            "global": Sequence([Scale([3.0, 3.0], axes=("x", "y")), Translation([100, -50], axes=("x", "y"))]),
            "um": Scale([0.5, 0.5], axes=("x", "y")),
        }
        sdata = spatial(to, [[50.0, 50.0]])
        stimg.pp.plan_tiles(sdata, tile_um=60, mpp=0.5, fields=(1, 2), step_um=50, around="grid")
        table, squares = sdata.tables["he_tiles"], sdata.shapes["he_squares"]
        assert table.shape == (16, 0)  # 120 px tiles every 100 px on 400 px
        assert "stimg_tiles" not in sdata.tables["table"].obsm
        centres = np.array([[60 + 100 * r, 60 + 100 * c] for r in range(4) for c in range(4)], float)
        np.testing.assert_allclose(table.obsm["stimg_tiles"][:, :2], centres)
        np.testing.assert_allclose(table.obsm["spatial"], centres[:, ::-1])
        np.testing.assert_allclose(table.obsm["stimg_tiles"][:, 2].reshape(4, 4)[3], [1 / 6, 1 / 6, 1 / 6, 1 - 25 / 36])
        assert table.obs["array_row"].tolist() == np.repeat(range(4), 4).tolist()
        assert "tissue" not in table.obs
        np.testing.assert_allclose(squares.geometry.bounds.to_numpy(), np.column_stack([centres[:, ::-1] - 60, centres[:, ::-1] + 60]))
        for system, transformation in get_transformation(sdata.images["he"], get_all=True).items():
            np.testing.assert_array_equal(
                get_transformation(squares, system).to_affine_matrix(("x", "y"), ("x", "y")),
                transformation.to_affine_matrix(("x", "y"), ("x", "y")),
            )
        assert table.uns["spatialdata_attrs"] == {"region": "he_squares", "region_key": "region", "instance_key": "instance_id"}
        sdata.write(tmp_path / "a.zarr")
        again = read_zarr(tmp_path / "a.zarr")
        item = TileDataset(again, table_key="he_tiles")[5]
        np.testing.assert_array_equal(item["image"][0], marked()[100:220, 100:220])
        stimg.pp.rasterize(again, table_key="he_tiles")  # the grid is a raster like any other
        np.testing.assert_array_equal(again.tables["he_tiles"].obsm["stimg_rc"], np.argwhere(np.ones((4, 4))))
        with pytest.raises(ValueError, match="has an element named 'he_tiles' already"):
            stimg.pp.plan_tiles(sdata, tile_um=60, mpp=0.5, around="grid")

    def test_a_file_alone_is_enough(self, tmp_path):
        Image.fromarray(marked()).save(tmp_path / "a slide.png")
        sdata = SpatialData()
        stimg.pp.plan_tiles(sdata, image=tmp_path / "a slide.png", image_mpp=0.5, tile_um=50, mpp=1.0, around="grid")
        table = sdata.tables["a_slide_tiles"]
        assert table.shape == (16, 0)
        assert set(sdata.shapes) == {"a_slide_squares"}
        found = TileDataset(table)[0]["image"][0]  # the path is known to the table
        np.testing.assert_allclose(found, marked()[:100, :100].reshape(50, 2, 50, 2, 3).mean((1, 3)), atol=0.51)
        np.testing.assert_array_equal(TileDataset(sdata, table_key="a_slide_tiles")[0]["image"][0], found)
        entry = table.uns["spatial"]["a_slide"]
        assert entry["scalefactors"]["microns_per_pixel"] == 0.5
        assert entry["images"]["hires"].shape == (400, 400, 3)
        stimg.pp.plan_tiles(sdata, image={"b": marked()}, image_mpp={"b": 0.5}, tile_um=50, mpp=1.0, around="grid")
        assert "b_tiles" in sdata.tables

    def test_tissue_by_labels(self):
        """Shares are those of the labels by area, at their own scale and place."""
        sdata = spatial({"global": Scale([2.0, 2.0], axes=("x", "y"))}, [[50.0, 50.0]])
        mask = np.zeros((45, 50), np.int32)
        mask[10:30, 5:45] = 7
        own = Sequence([Scale([16.0, 16.0], axes=("x", "y")), Translation([20.0, 40.0], axes=("x", "y"))])  # 8 px, begins at pixel (20, 10)
        sdata.labels["tissue"] = Labels2DModel.parse(mask, dims=("y", "x"), transformations={"global": own})
        stimg.pp.plan_tiles(sdata, tile_um=30, mpp=0.5, image_mpp=0.5, around="grid", tissue_key="tissue", min_tissue=0.3)
        table = sdata.tables["he_tiles"]
        full = np.zeros((480, 480))
        full[20 + 80 : 20 + 240, 10 + 40 : 10 + 360] = 1  # the labelled rectangle in pixels of the image
        wanted = {}
        for y in range(0, 400, 60):
            for x in range(0, 400, 60):
                wanted[y + 30.0, x + 30.0] = full[y : y + 60, x : x + 60].mean()
        kept = {centre: share for centre, share in wanted.items() if share >= 0.3}
        assert len(kept) < len(wanted)
        assert {tuple(c): s for c, s in zip(table.obsm["stimg_tiles"][:, :2].tolist(), table.obs["tissue"], strict=True)} == pytest.approx(
            kept
        )

    def test_tissue_by_labels_in_levels(self):
        sdata = spatial({"global": Identity()}, [[50.0, 50.0]])
        mask = np.zeros((400, 400), np.int32)
        mask[:200] = 1
        sdata.labels["tissue"] = Labels2DModel.parse(mask, dims=("y", "x"), scale_factors=[2, 2])
        stimg.pp.plan_tiles(sdata, tile_um=75, mpp=0.5, image_mpp=0.5, around="grid", tissue_key="tissue")
        np.testing.assert_allclose(sdata.tables["he_tiles"].obs["tissue"].to_numpy().reshape(3, 3)[:, 0], [1, 50 / 150, 0])

    def test_tissue_by_squidpy(self):
        image = np.full((600, 600, 3), 245, np.uint8)
        image[100:420, 250:600] = (190, 110, 170)
        image = (image + np.random.default_rng(0).integers(-6, 7, image.shape)).astype(np.uint8)
        sdata = SpatialData()
        stimg.pp.plan_tiles(sdata, image=image, image_key="he", image_mpp=1.0, tile_um=100, mpp=1.0, around="grid", min_tissue=0.25)
        table = sdata.tables["he_tiles"]
        true = np.zeros((600, 600))
        true[100:420, 250:600] = 1
        shares = true.reshape(6, 100, 6, 100).mean((1, 3))
        found = np.zeros((6, 6))
        found[table.obs["array_row"], table.obs["array_col"]] = table.obs["tissue"]
        np.testing.assert_array_equal(found > 0, shares >= 0.25)  # shares are 0, .2, .5 and 1
        np.testing.assert_allclose(found[found > 0], shares[found > 0], atol=0.05)

    @pytest.mark.parametrize(
        ("options", "error", "words"),
        [
            ({"min_tissue": 1.5}, ValueError, "wanted a share from 0 to 1"),
            ({"step_um": 0}, ValueError, "step_um=0 is not above zero"),
            ({"tissue_key": "no"}, KeyError, r"sdata.labels\['no'\] is missing \(found \['turned'\]\)"),
            ({"tissue_key": "turned"}, ValueError, "is turned, mirrored or stretched against the image"),
            ({"image": marked()}, ValueError, "an array has no name"),
            ({"image": {"a": marked(), "b": marked()}}, ValueError, "wanted one, for around='grid'"),
            ({"image_key": "no"}, KeyError, r"sdata.images\['no'\] is missing"),
            ({"tile_um": 500}, ValueError, "larger than"),
        ],
    )
    def test_bad_requests_write_nothing(self, options, error, words):
        sdata = spatial({"global": Identity()}, [[50.0, 50.0]])
        sdata.labels["turned"] = Labels2DModel.parse(np.ones((40, 40), np.int32), dims=("y", "x"), transformations={"global": turned(30)})
        with pytest.raises(error, match=words):
            stimg.pp.plan_tiles(sdata, **{"tile_um": 30, "mpp": 0.5, "image_mpp": 0.5, "around": "grid", **options})
        assert set(sdata.shapes) == {"spots"}
        assert set(sdata.tables) == {"table"}

    def test_no_tissue_and_no_image(self):
        sdata = SpatialData()
        with pytest.raises(KeyError, match=r"sdata has no image. Pass `image=`"):
            stimg.pp.plan_tiles(sdata, tile_um=30, mpp=0.5, around="grid")
        blank = (240 + np.random.default_rng(0).integers(0, 10, (300, 300, 3))).astype(np.uint8)
        with pytest.raises(ValueError, match=r"none of the 25 tiles of the image is tissue to 0\.1 or more; the most is 0"):
            stimg.pp.plan_tiles(sdata, image=blank, image_key="b", image_mpp=1.0, tile_um=60, mpp=1.0, around="grid", min_tissue=0.1)
        assert not set(sdata.tables)


def test_squidpy_without_detect_tissue(monkeypatch):
    import types

    from stimg.image import open_slide
    from stimg.pp import _tissue

    monkeypatch.setattr(_tissue, "need", lambda *args, **options: types.SimpleNamespace())
    with pytest.raises(ImportError, match=r"has no detect_tissue in this version.*or pass `tissue_key=`"):
        _tissue.detected(open_slide(marked()))


@pytest.mark.data
def test_real_slides(mirror):
    sdata = SpatialData()
    stimg.pp.plan_tiles(sdata, image=mirror / "wsi" / "CMU-1-Small-Region.svs", tile_um=112, mpp=0.5, around="grid", min_tissue=0.5)
    table = sdata.tables["CMU-1-Small-Region_tiles"]
    assert 30 < table.n_obs < 60  # of 140: the lower right and the middle are tissue
    tiles = TileDataset(table)
    assert tiles[0]["image"].shape == (1, 224, 224, 3)
    dense = np.array([255 - tiles[i]["image"].numpy().mean() for i in range(len(tiles))])
    assert np.corrcoef(dense, table.obs["tissue"])[0, 1] > 0.4
    with pytest.raises(ValueError, match=r"nothing states how many µm a pixel of .*tcga.* Pass `image_mpp=`"):
        stimg.pp.plan_tiles(sdata, image=mirror / "wsi" / "tcga-cr-7395-01a-01-ts1.svs", tile_um=112, mpp=0.5, around="grid")
