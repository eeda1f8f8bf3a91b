"""A slide file and a model in, a SpatialData and a picture out; or nothing at all."""

import errno
import tracemalloc

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
import tifffile
import torch
from PIL import Image

import stimg
from stimg.cli import main
from stimg.cli.predict import chosen_genes
from stimg.cli.slide_image import image_element
from stimg.model import ExpressionHead
from stimg.nn.image import EfficientNetLite0

KEY = "X_efficientnet_lite0"
MPP, TILE_UM, TILE_MPP = 1.0, 128.0, 2.0


def reference(seed=0, n=40, **record):
    """Sections with features that say they come from tiles of 128 µm at 2 µm per pixel, and genes that follow some of them or none."""
    rng = np.random.default_rng(seed)
    x = 0.1 * rng.standard_normal((3 * n, 1280))
    counts = rng.poisson(np.exp(2 + 8 * x[:, :3] * [1, -1, 0]))
    adata = ad.AnnData(sp.csr_matrix(np.column_stack([counts, np.full(3 * n, 30)]).astype(np.float32)))
    adata.var_names = ["up", "down", "flat", "rest"]
    adata.obs["library_id"] = adata.obs["donor"] = np.repeat(["A", "B", "C"], n)
    adata.obsm[KEY] = x.astype(np.float32)
    made = {"verb": "stimg.tl.embed_image", "encoder": "efficientnet_lite0", "tile_um": TILE_UM, "mpp": TILE_MPP, "fields": np.array([1.0])}
    adata.uns["stimg"] = {KEY: {**made, **record}}
    return adata


def pixels(height=900, width=1100, seed=0):
    """Purple tissue in the middle of a white slide."""
    rng = np.random.default_rng(seed)
    out = np.full((height, width, 3), 245, dtype=np.uint8)
    y0, x0 = height // 4, width // 4
    tissue = rng.integers(80, 200, (height - 2 * y0, width - 2 * x0, 3)) * [0.9, 0.5, 0.9]
    out[y0 : height - y0, x0 : width - x0] = tissue.astype(np.uint8)
    return out


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A slide with and one without its scale, a head, and weights of the encoder drawn at random."""
    folder = tmp_path_factory.mktemp("inputs")
    image = pixels()
    options = {"photometric": "rgb", "tile": (256, 256)}
    stated = {"resolution": (1e4 / MPP, 1e4 / MPP), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(folder / "a slide.tif", image, **options, **stated)
    tifffile.imwrite(folder / "mute.tif", image, **options)
    head = ExpressionHead.fit(reference(), n_components=8)
    head.save(folder / "head")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        torch.save(EfficientNetLite0().state_dict(), folder / "weights.pt")
    return folder, image, head


def call(folder, out, *more, slide="a slide.tif", model="head"):
    own = ["--model", str(folder / model), "--out", str(out), "--weights", str(folder / "weights.pt"), "--min-tissue", "0"]
    return main(["predict", str(folder / slide), *own, *more])


@pytest.fixture(scope="module")
def done(inputs, tmp_path_factory):
    folder, _, _ = inputs
    out = tmp_path_factory.mktemp("out") / "done.zarr"
    assert call(folder, out, "--picture", str(out.with_suffix(".png")), "--genes", "all", "--device", "cpu") == 0
    return out


def test_what_is_written(inputs, done):
    from spatialdata import get_element_annotators, get_extent, read_zarr

    _, image, head = inputs
    sdata = read_zarr(done)
    assert set(sdata.tables) == {"a_slide_tiles", "a_slide_genes"}
    assert set(get_element_annotators(sdata, "a_slide_squares")) == set(sdata.tables)
    np.testing.assert_array_equal(np.moveaxis(sdata.images["a_slide"].to_numpy(), 0, -1), image)
    tiles, genes = sdata.tables["a_slide_tiles"], sdata.tables["a_slide_genes"]
    side = TILE_UM / MPP
    centres = tiles.obsm["stimg_tiles"][:, :2]
    assert len(np.unique(centres, axis=0)) == tiles.n_obs
    steps = np.diff(np.unique(centres[:, 0])), np.diff(np.unique(centres[:, 1]))
    assert all(np.allclose(step, side) for step in steps)
    extent = get_extent(sdata["a_slide_squares"], coordinate_system="global")
    assert extent["x"][1] - extent["x"][0] == pytest.approx(np.ptp(centres[:, 1]) + side)
    x = tiles.obsm[KEY].astype(np.float64)
    wanted = np.maximum((x - x.mean(axis=0)) @ head.map.coefficients.astype(np.float64) + head.map.intercept, 0)
    assert genes.var_names.tolist() == head.genes.tolist()
    np.testing.assert_allclose(genes.X, wanted, atol=1e-4)
    assert set(genes.layers) - {None} == {"stimg_ridge_lower", "stimg_ridge_upper"}
    assert genes.uns["stimg"]["stimg_ridge"]["unit"] == "log1p_cp10k"
    stimg.data.raster_libraries(genes)
    picture = np.asarray(Image.open(done.with_suffix(".png")).convert("RGB"))
    assert (picture.min(axis=2) < 250).mean() > 0.05


def test_features_are_those_of_the_tiles(inputs, done):
    from spatialdata import read_zarr

    folder, image, _ = inputs
    table = read_zarr(done).tables["a_slide_tiles"]
    encoder = stimg.nn.image.load_image_encoder("efficientnet_lite0", path=folder / "weights.pt")
    row = table.n_obs // 2
    top, left = (table.obsm["stimg_tiles"][row, :2] - TILE_UM / MPP / 2).astype(int)
    window = image[top : top + 128, left : left + 128].astype(np.float64)
    tile = np.rint(window.reshape(64, 2, 64, 2, 3).mean(axis=(1, 3))).astype(np.uint8)  # 1 µm per pixel to 2
    with torch.inference_mode():
        wanted = encoder(torch.from_numpy(tile)[None])[0].numpy()
    np.testing.assert_allclose(table.obsm[KEY][row], wanted, atol=0.02)


def test_predictable_genes_tissue_and_no_image(inputs, tmp_path):
    from spatialdata import read_zarr

    folder, _, head = inputs
    out = tmp_path / "o.zarr"
    assert call(folder, out, "--no-image", "--min-tissue", "0.5", "--coverage", "0", "--step-um", "64") == 0
    sdata = read_zarr(out)
    assert not len(sdata.images)
    genes = sdata.tables["a_slide_genes"]
    worth = head.predictability
    assert genes.var_names.tolist() == worth[worth >= 0.1].sort_values(ascending=False).index.tolist()
    assert "flat" not in genes.var_names
    assert not set(genes.layers) - {None}
    y, x = genes.obsm["stimg_tiles"][:, :2].T
    assert ((y > 180) & (y < 720) & (x > 230) & (x < 870)).all()  # on the tissue alone
    assert np.diff(np.unique(x)).min() == pytest.approx(64)


def test_genes_by_name_and_from_a_file(inputs, tmp_path):
    _, _, head = inputs
    (tmp_path / "genes.txt").write_text("down\nflat\n")
    assert chosen_genes(head, "up, flat,up", 0.1) == ["up", "flat"]
    assert chosen_genes(head, str(tmp_path / "genes.txt"), 0.1) == ["down", "flat"]
    assert chosen_genes(head, "all", 0.1) == head.genes.tolist()


def test_a_slide_without_its_scale_is_refused_with_the_way_out(inputs, tmp_path, capsys):
    folder, _, _ = inputs
    out = tmp_path / "o.zarr"
    assert call(folder, out, slide="mute.tif") == 2
    told = capsys.readouterr().err
    assert "does not state how many µm a pixel measures" in told
    assert "Pass --mpp" in told
    assert not out.exists()
    assert call(folder, out, "--no-image", "--mpp", "1", slide="mute.tif") == 0


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_full_disk_or_an_interrupt_leaves_what_was_there(inputs, tmp_path, monkeypatch, capsys, error):
    from spatialdata import SpatialData

    folder, _, _ = inputs

    def half(self, path, **options):
        path.mkdir()
        (path / "zarr.json").write_text("{")
        raise error

    monkeypatch.setattr(SpatialData, "write", half)
    out = tmp_path / "o.zarr"
    arguments = (folder, out, "--no-image", "--step-um", "400", "--picture", str(tmp_path / "p.png"))
    for there in (False, True):
        if there:
            out.mkdir()
            (out / "mine").write_text("kept")
        if isinstance(error, OSError):
            assert call(*arguments, "--overwrite") == 2
            assert "nothing was changed" in capsys.readouterr().err
        else:
            with pytest.raises(KeyboardInterrupt):
                call(*arguments, "--overwrite")
        assert [path.name for path in tmp_path.iterdir()] == (["o.zarr"] if there else [])
    assert (out / "mine").read_text() == "kept"


def test_errors(inputs, done, tmp_path, capsys):
    folder, _, _ = inputs

    def told(*arguments, **options):
        assert call(folder, *arguments, **options) == 2
        return capsys.readouterr().err

    assert "exists already" in told(done)
    assert "wanted .zarr" in told(tmp_path / "o.h5ad")
    assert "wanted .png" in told(tmp_path / "o.zarr", "--picture", "p.pdf")
    assert "model.json is missing" in told(tmp_path / "o.zarr", model="nothing")
    assert "nothing.tif" in told(tmp_path / "o.zarr", slide="nothing.tif")
    assert "2 of 3 genes of --genes are not in the object: ['none', 'nobody']" in told(tmp_path / "o.zarr", "--genes", "up,none,nobody")
    assert "no gene of the model has a predictability of 0.99 or more" in told(tmp_path / "o.zarr", "--min-predictability", "0.99")
    assert "coverage=0.2" in told(tmp_path / "o.zarr", "--coverage", "0.2")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "model.json").write_text("{")
    assert "is damaged" in told(tmp_path / "o.zarr", model=tmp_path / "broken")
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_a_model_whose_features_cannot_be_made_is_refused(inputs, tmp_path, capsys):
    folder, _, _ = inputs
    for name, table, wanted in (
        ("other verb", reference(verb="stimg.pp.colour_statistics"), "does not know that it was made by stimg.tl.embed_image"),
        ("other tiles", None, "features of different tiles"),
    ):
        if table is None:
            table = reference()
            table.obsm["X_wide"] = table.obsm[KEY][:, :4]
            table.uns["stimg"]["X_wide"] = {**table.uns["stimg"][KEY], "tile_um": 256.0}
            head = ExpressionHead.fit(table, features=[KEY, "X_wide"], n_components=8)
        else:
            head = ExpressionHead.fit(table, n_components=8)
        head.save(tmp_path / name)
        assert call(folder, tmp_path / "o.zarr", model=tmp_path / name) == 2
        assert wanted in capsys.readouterr().err


class TestImage:
    def test_scales_are_means_of_the_pixels(self, tmp_path):
        image = pixels(4500, 2600)
        tifffile.imwrite(tmp_path / "s.tif", image, photometric="rgb", tile=(256, 256))
        element = image_element(stimg.image.open_slide(tmp_path / "s.tif", mpp=0.5), None)
        assert [element[f"scale{i}"]["image"].shape for i in range(3)] == [(3, 4500, 2600), (3, 2250, 1300), (3, 1125, 650)]
        for scale, factor in (("scale0", 1), ("scale1", 2), ("scale2", 4)):
            found = np.moveaxis(element[scale]["image"].to_numpy(), 0, -1)
            height, width = found.shape[:2]
            wanted = image[: height * factor, : width * factor].reshape(height, factor, width, factor, 3).mean(axis=(1, 3))
            assert np.abs(found - wanted).max() <= 0.5 + 1e-3
        assert image_element(stimg.image.open_slide(image[:800, :1000], mpp=0.5), None).shape == (3, 800, 1000)  # one scale is enough

    def test_a_coarser_image_lies_where_the_slide_does(self, tmp_path):
        from spatialdata import get_extent

        image = pixels(2048, 2048)
        with tifffile.TiffWriter(tmp_path / "p.tif") as tif:
            tif.write(image, photometric="rgb", tile=(256, 256), subifds=1)
            tif.write(image[::2, ::2], photometric="rgb", tile=(256, 256), subfiletype=1)
        slide = stimg.image.open_slide(tmp_path / "p.tif", mpp=0.5)
        assert len(slide.levels) == 2
        element = image_element(slide, 1.0)
        np.testing.assert_array_equal(np.moveaxis(element.to_numpy(), 0, -1), image[::2, ::2])
        assert get_extent(element, coordinate_system="global") == {"x": (0.0, 2048.0), "y": (0.0, 2048.0)}

    @pytest.mark.slow
    def test_memory_does_not_grow_with_the_slide(self, tmp_path):
        from spatialdata import SpatialData

        peaks = []
        for side in (8192, 16384):
            path = tmp_path / f"{side}.tif"
            blocks = (np.full((512, 512, 3), 150 + i % 90, dtype=np.uint8) for i in range((side // 512) ** 2))
            tifffile.imwrite(path, blocks, shape=(side, side, 3), dtype="uint8", tile=(512, 512), photometric="rgb", compression="jpeg")
            sdata = SpatialData()
            tracemalloc.start()
            sdata.images["slide"] = image_element(stimg.image.open_slide(path, mpp=0.5), None)
            sdata.write(tmp_path / f"{side}.zarr")
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        assert peaks[1] < 1.2 * peaks[0]  # of a slide four times as large
        assert peaks[1] < 400e6  # its pixels are 805 MB


@pytest.mark.data
@pytest.mark.slow
class TestReal:
    def test_a_slide_of_tcga_needs_its_scale(self, mirror, inputs, tmp_path, capsys):
        folder, _, _ = inputs
        slide = mirror / "wsi" / "tcga-cr-7395-01a-01-ts1.svs"
        own = ["--model", str(folder / "head"), "--weights", str(folder / "weights.pt"), "--no-image"]
        assert main(["predict", str(slide), *own, "--out", str(tmp_path / "o.zarr")]) == 2
        assert "Pass --mpp" in capsys.readouterr().err
        assert (
            main(["predict", str(slide), *own, "--out", str(tmp_path / "o.zarr"), "--mpp", "0.5", "--picture", str(tmp_path / "p.png")])
            == 0
        )
        from spatialdata import read_zarr

        table = read_zarr(tmp_path / "o.zarr").tables["tcga-cr-7395-01a-01-ts1_genes"]
        assert 80 < table.n_obs < 250  # tissue of about 2 by 1.7 mm
        assert table.obs["tissue"].min() >= 0.5

    def test_a_slide_that_states_its_scale(self, mirror, inputs, tmp_path):
        from spatialdata import read_zarr

        folder, _, _ = inputs
        slide = mirror / "wsi" / "CMU-1-Small-Region.svs"
        own = ["--model", str(folder / "head"), "--weights", str(folder / "weights.pt")]
        assert main(["predict", str(slide), *own, "--out", str(tmp_path / "o.zarr")]) == 0
        sdata = read_zarr(tmp_path / "o.zarr")
        with tifffile.TiffFile(slide) as tif:
            whole = tif.pages[0].asarray()
        found = np.moveaxis(sdata.images["CMU-1-Small-Region"]["scale0"]["image"].to_numpy(), 0, -1)
        np.testing.assert_array_equal(found, whole)
