"""Which image a library has, at which scale, and who says how many µm a pixel measures."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from PIL import Image
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, ShapesModel, TableModel
from spatialdata.transformations import Affine, Identity, Scale, Sequence, Translation

from stimg.data.slide_elements import element_slide, image_name
from stimg.data.slides import as_bytes, slide_of
from stimg.image import Slide
from stimg.image.slide_source import ArraySource

PIXELS = np.random.default_rng(0).integers(0, 256, (120, 150, 3), dtype=np.uint8)


def table(*libraries, mpp=0.5, images=True):
    names = np.repeat(libraries, 3)
    adata = AnnData(
        np.ones((len(names), 2)), obs=pd.DataFrame({"library_id": pd.Categorical(names)}, index=[f"o{i}" for i in range(len(names))])
    )
    adata.obsm["spatial"] = np.tile([[100.0, 80.0], [200.0, 160.0], [240.0, 20.0]], (len(libraries), 1))
    factors = {"tissue_hires_scalef": 0.5, "tissue_lowres_scalef": 0.25} | ({} if mpp is None else {"microns_per_pixel": mpp})
    kept = {"hires": PIXELS, "lowres": PIXELS[::2, ::2]} if images else {}
    adata.uns["spatial"] = {name: {"images": dict(kept), "scalefactors": dict(factors), "metadata": {}} for name in libraries}
    return adata


class TestAnnData:
    def test_the_image_kept_in_uns(self):
        slide, scale = slide_of(table("A"))
        np.testing.assert_array_equal(slide.read(0, 0, 0, 120, 150), PIXELS)
        assert scale == 0.5
        assert slide.mpp == 1.0  # twice the full-resolution pixel
        low, scale = slide_of(table("A"), image_key="lowres")
        assert (low.levels[0][:2], scale, low.mpp) == ((60, 75), 0.25, 2.0)

    def test_a_file_that_uns_names(self, tmp_path):
        Image.fromarray(PIXELS).save(tmp_path / "a.png")
        adata = table("A")
        adata.uns["spatial"]["A"]["metadata"] = {"source_image_path": str(tmp_path / "a.png"), "source_image_scale": 0.8}
        slide, scale = slide_of(adata, "A")
        assert (slide.path, scale) == (tmp_path / "a.png", 0.8)
        assert slide.mpp == pytest.approx(0.5 / 0.8)
        (tmp_path / "a.png").unlink()
        assert slide_of(adata, "A")[1] == 0.5  # falls back on what is kept

    def test_images_given(self):
        other = PIXELS[::-1]
        slide, scale = slide_of(table("A"), image=other)
        assert scale == 1.0
        assert slide.mpp == 0.5
        np.testing.assert_array_equal(slide.read(0, 0, 0, 5, 5), other[:5, :5])
        assert slide_of(table("A", "B"), "B", image={"A": PIXELS, "B": other})[0].read(0, 0, 0, 5, 5).tobytes() == other[:5, :5].tobytes()
        with pytest.raises(KeyError, match=r"image has nothing for library 'B' \(found \['A'\]\)"):
            slide_of(table("A", "B"), "B", image={"A": PIXELS})
        with pytest.raises(ValueError, match="One image for several libraries"):
            slide_of(table("A", "B"), "B", image=PIXELS)
        with pytest.raises(ValueError, match=r"has 2 libraries .*`library=`"):
            slide_of(table("A", "B"))
        with pytest.raises(KeyError, match="names no image file that exists and holds no 'hires' image"):
            slide_of(table("A", images=False))
        with pytest.raises(KeyError, match="holds no 'other' image"):
            slide_of(table("A"), image_key="other")

    def test_floats_are_scaled_only_from_0_to_1(self):
        adata = table("A")
        adata.uns["spatial"]["A"]["images"]["hires"] = PIXELS / 255.0
        np.testing.assert_array_equal(slide_of(adata)[0].read(0, 0, 0, 120, 150), PIXELS)
        for wrong in (PIXELS.astype(np.float32), PIXELS / 255.0 - 0.1, np.where(PIXELS > 250, np.nan, PIXELS / 255)):
            with pytest.raises(ValueError, match=r"\['hires'\] has float(32|64) values from .*; wanted 0 to 1"):
                as_bytes(wrong, "adata.uns['spatial']['A']['images']['hires']")
        rgba = np.concatenate([PIXELS, np.full((120, 150, 1), 255, np.uint8)], axis=2)
        np.testing.assert_array_equal(as_bytes(rgba, "x"), PIXELS)
        adata.uns["spatial"]["A"]["images"]["hires"] = PIXELS.astype(np.uint16)
        with pytest.raises(TypeError, match="uint16; wanted uint8"):
            slide_of(adata)


class TestScale:
    def test_sources_have_to_agree(self):
        stating = Slide(ArraySource([PIXELS], mpp_sources={"the file": 0.51}))
        slide, _ = slide_of(table("A"), image=stating)
        assert (slide.mpp, slide.mpp_source) == (0.5, "scalefactors['microns_per_pixel']")
        assert slide.mpp_sources == {"scalefactors['microns_per_pixel']": 0.5, "the file": 0.51}
        stating = Slide(ArraySource([PIXELS], mpp_sources={"the file": 0.6}))
        with pytest.raises(
            ValueError, match=r"'A': scalefactors\['microns_per_pixel'\] says 0\.5 µm .*, the file says 0\.6 \(more than 5 % apart\)"
        ):
            slide_of(table("A"), image=stating)
        assert slide_of(table("A"), image=stating, mpp=0.6)[0].mpp == 0.6
        assert slide_of(table("A"), image=stating, mpp={"A": 0.6})[0].mpp == 0.6
        settled = table("A")
        settled.uns["stimg"] = {"set_mpp": {"used": {"A": "pitch"}}}
        assert slide_of(settled, image=stating)[0].mpp_source == "stimg.pp.set_mpp"

    def test_the_raster_knows_the_scale(self):
        adata = table("A", mpp=None)
        assert slide_of(adata)[0].mpp is None
        turned = 200.0 * np.array([[np.cos(0.3), -np.sin(0.3), 0.1], [np.sin(0.3), np.cos(0.3), 0.2]])
        adata.uns["stimg"] = {"raster": {"A": {"affine": turned, "pitch_um": 100.0}}}
        slide, _ = slide_of(adata)
        assert slide.mpp == pytest.approx(1.0)  # 0.5 µm per full-resolution pixel, twice that of the reduced image
        assert slide.mpp_source == "the raster"


def spatial(image_to, shapes_to, *, mpp=None, scale_factors=None, pixels=PIXELS):
    """Three circles on an image, each with its own transformations."""
    image = Image2DModel.parse(np.moveaxis(pixels, -1, 0), dims=("c", "y", "x"), transformations=image_to, scale_factors=scale_factors)
    shapes = ShapesModel.parse(
        np.array([[10.0, 20.0], [30.0, 20.0], [30.0, 45.0]]), geometry=0, radius=2.0, index=[0, 1, 2], transformations=shapes_to
    )
    adata = AnnData(
        np.ones((3, 2)),
        obs=pd.DataFrame({"library_id": ["A"] * 3, "region": pd.Categorical(["spots"] * 3), "instance": [0, 1, 2]}, index=list("abc")),
    )
    if mpp:
        adata.uns["spatial"] = {"A": {"scalefactors": {"microns_per_pixel": mpp}}}
    parsed = TableModel.parse(adata, region="spots", region_key="region", instance_key="instance")
    return SpatialData(images={"he": image}, shapes={"spots": shapes}, tables={"table": parsed})


class TestSpatialData:
    def test_levels_of_an_element(self):
        for factors, downs in ((None, [1]), ([2], [1, 2]), ([2, 2], [1, 2, 4])):
            sdata = spatial({"global": Identity()}, {"global": Identity()}, scale_factors=factors)
            slide, scale = slide_of(sdata)
            assert [level.downsample for level in slide.levels] == downs
            np.testing.assert_array_equal(slide.read(0, 30, 40, 50, 60), PIXELS[30:80, 40:100])
            assert scale == 1.0
            assert slide.mpp is None

    def test_odd_sizes_are_halved_exactly(self):
        """SpatialData writes 2.0067 for the scale of a level whose last row was trimmed off; its pixels lie at twice, not at 2.0067 times."""
        rows = np.repeat(np.arange(151, dtype=np.uint8)[:, None], 121, axis=1)[..., None].repeat(3, axis=2)
        slide, _ = slide_of(spatial({"global": Identity()}, {"global": Identity()}, scale_factors=[2], pixels=rows))
        assert slide.levels[1] == (75, 60, 2.0)
        fine, _ = slide.tile((140.0, 60.0), 16.0, 16)
        coarse, _ = slide.tile((140.0, 60.0), 16.0, 8)
        np.testing.assert_allclose(coarse[:, 0, 0], fine.reshape(8, 2, 16, 3).mean((1, 2, 3)), atol=0.51)

    def test_scale_from_transformations_and_from_the_table(self):
        to = {
            "global": Sequence([Scale([4.0, 4.0], axes=("x", "y")), Translation([7, 9], axes=("x", "y"))]),
            "um": Scale([2.0, 2.0], axes=("x", "y")),
        }
        slide, scale = slide_of(spatial(to, {"global": Identity()}))
        assert scale == pytest.approx(0.25)
        assert slide.mpp_sources == {"coordinate system 'um'": pytest.approx(2.0)}
        slide, _ = slide_of(spatial(to, {"global": Identity()}, mpp=0.5))  # 0.5 µm per unit of the circles, which is one of global
        assert slide.mpp_sources == {"coordinate system 'um'": pytest.approx(2.0), "scalefactors['microns_per_pixel']": pytest.approx(2.0)}
        slide, _ = slide_of(spatial(to, {"global": Scale([2.0, 2.0], axes=("x", "y"))}, mpp=1.0))  # whose unit is two of global
        assert slide.mpp_sources["scalefactors['microns_per_pixel']"] == pytest.approx(2.0)
        with pytest.raises(ValueError, match=r"coordinate system 'um' says 2 µm .* scalefactors\['microns_per_pixel'\] says 4"):
            slide_of(spatial(to, {"global": Identity()}, mpp=1.0))
        assert slide_of(spatial(to, {"global": Identity()}, mpp=1.0), mpp=2.1)[0].mpp == 2.1

    def test_pixels_that_are_no_squares_in_the_system(self):
        with pytest.raises(ValueError, match=r"has pixels of 1 x 3 in 'global', which are no squares there"):
            slide_of(spatial({"global": Scale([1.0, 3.0], axes=("x", "y"))}, {"global": Identity()}))
        shear = Affine([[1, 0.5, 0], [0, 1, 0], [0, 0, 1]], input_axes=("x", "y"), output_axes=("x", "y"))
        with pytest.raises(ValueError, match="no squares"):
            slide_of(spatial({"global": shear}, {"global": Identity()}))
        turn = Affine([[0.6, -0.8, 3], [0.8, 0.6, 4], [0, 0, 1]], input_axes=("x", "y"), output_axes=("x", "y"))
        assert slide_of(spatial({"global": turn}, {"global": Identity()}))[1] == pytest.approx(1.0)

    def test_names(self):
        sdata = spatial({"global": Identity()}, {"global": Identity()})
        assert image_name(sdata, "A", None) == "he"
        with pytest.raises(KeyError, match=r"sdata.images\['no'\] is missing \(found \['he'\]\)"):
            image_name(sdata, "A", "no")
        sdata.images["A_image"], sdata.images["A2_image"] = sdata.images["he"], sdata.images["he"]
        assert image_name(sdata, "A", None) == "A_image"
        assert image_name(sdata, "A2", None) == "A2_image"
        with pytest.raises(KeyError, match=r"library 'C' could be on any of the images"):
            image_name(sdata, "C", None)
        with pytest.raises(KeyError, match=r"no transformation to 'elsewhere' \(found \['global'\]\)"):
            element_slide(sdata, "A", coordinate_system="elsewhere")

    def test_images_that_cannot_be_used(self):
        sdata = spatial({"global": Identity()}, {"global": Identity()})
        sdata.images["he"] = Image2DModel.parse(np.zeros((5, 60, 60), np.uint8), dims=("c", "y", "x"))
        with pytest.raises(ValueError, match=r"sdata.images\['he'\] has shape \(60, 60, 5\); wanted \(y, x, 3\)"):
            slide_of(sdata)
        sdata.images["he"] = Image2DModel.parse(np.zeros((3, 60, 60), np.float32), dims=("c", "y", "x"))
        with pytest.raises(TypeError, match="float32; wanted uint8"):
            slide_of(sdata)
        four = np.concatenate([np.moveaxis(PIXELS, -1, 0), np.full((1, 120, 150), 255, np.uint8)])
        sdata.images["he"] = Image2DModel.parse(four, dims=("c", "y", "x"), scale_factors=[2])
        np.testing.assert_array_equal(slide_of(sdata)[0].read(0, 0, 0, 120, 150), PIXELS)
