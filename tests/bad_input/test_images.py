"""Bad images, scales, tiles, features, weights, heads and alignments."""

import functools
import json
from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import tifffile
import torch
from _kinds import Kinds, slide
from PIL import Image

import stimg
from stimg.image import open_slide

kind = Kinds()
SIDE = 400


def pixels(side=SIDE):
    return np.random.default_rng(0).integers(60, 220, (side, side, 3), dtype=np.uint8)


def section(name="A", n=36, *, mpp=0.5, seed=0):
    """6 x 6 spots on an image of 400 x 400 px, 0.5 µm each, with features that a head or an alignment can read."""
    rng, at = np.random.default_rng(seed), np.arange(n)
    obs = pd.DataFrame({"library_id": pd.Categorical([name] * n), "donor": f"D{name}"}, index=[f"{name}{i}" for i in at])
    adata = ad.AnnData(sp.csr_matrix(rng.poisson(3.0, (n, 6)).astype(np.float32)), obs=obs)
    adata.var_names = [f"g{i}" for i in range(6)]
    adata.obsm["spatial"] = np.stack([at % 6, at // 6], axis=1) * 60.0 + 50.0
    adata.obsm["X_some"] = rng.normal(size=(n, 8)).astype(np.float32)
    factors = {} if mpp is None else {"microns_per_pixel": mpp}
    adata.uns["spatial"] = {name: {"images": {}, "scalefactors": factors, "metadata": {}}}
    return adata


def planned(path, **options):
    Image.fromarray(pixels()).save(path)
    adata = section()
    adata.uns["spatial"]["A"]["metadata"]["source_image_path"] = str(path)
    stimg.pp.plan_tiles(adata, **{"tile_um": 16.0, "mpp": 0.5, **options})
    return adata


def reference():
    return ad.concat([section(name, seed=i) for i, name in enumerate("ABC")], index_unique=None)


@functools.cache
def head():
    return stimg.model.ExpressionHead.fit(reference(), features="X_some", n_components=4)


def aligned(adata, genes=None, **options):
    stimg.model.ImageGeneCLIP.setup_anndata(adata, image="X_some")
    return stimg.model.ImageGeneCLIP(adata, genes, **{"n_dim": 4, "image_components": 4, "gene_components": 4, **options})


@functools.cache
def trained():
    model = aligned(reference())
    model.train(max_epochs=1, validation=None, enable_progress_bar=False)
    return model


# ---- images and their scale


@kind(ValueError, r"library 'A': nothing states how many µm a pixel of the image measures", r"Pass `image_mpp=`, or state it in the object")
def image_without_a_scale(here):
    adata = section(mpp=None)
    return adata, lambda: stimg.pp.plan_tiles(adata, tile_um=16, mpp=0.5, image=pixels())


@kind(ValueError, r"nothing states how many µm a pixel of .*a.tif measures", r"Pass `image_mpp=`")
def dots_per_inch_of_a_screen_are_no_scale(here):
    tifffile.imwrite(here.folder / "a.tif", pixels(), photometric="rgb", resolution=(72, 72), resolutionunit="INCH")
    adata = section(mpp=None)
    return adata, lambda: stimg.pp.plan_tiles(adata, tile_um=16, mpp=0.5, image=here.folder / "a.tif")


@kind(
    ValueError,
    r"says 0.5 µm per pixel of .*a.tif, resolution tags says 0.25 \(more than 5 % apart\)",
    r"trust one explicitly with `stimg.pp.set_mpp`",
)
def file_and_object_that_state_different_scales(here):
    tifffile.imwrite(here.folder / "a.tif", pixels(), photometric="rgb", resolution=(1e4 / 0.25, 1e4 / 0.25), resolutionunit="CENTIMETER")
    adata = section()
    return adata, lambda: stimg.pp.plan_tiles(adata, tile_um=16, mpp=0.5, image=here.folder / "a.tif")


@kind(ValueError, r"up to 18% apart \(wanted 5% or less\).*metadata 0.55 .*pitch 0.5 ", r"Correct the wrong one, or pass `trust=`")
def pitch_and_metadata_that_differ(here):
    adata = slide()
    adata.uns["spatial"]["D1S1"]["scalefactors"]["microns_per_pixel"] = 0.55
    return adata, lambda: stimg.pp.set_mpp(adata)


@kind(ValueError, r"mpp=-0.5 is not above zero", r"wanted a positive number of µm")
def scale_below_zero(here):
    adata = slide()
    return adata, lambda: stimg.pp.set_mpp(adata, mpp=-0.5)


@kind(ValueError, r"2 times coarser than the tile wanted \(1 µm per pixel, wanted 0.5\)", r"Ask for a coarser mpp, pass `upsample=True`")
def image_too_coarse(here):
    adata = section(mpp=1.0)
    return adata, lambda: stimg.pp.plan_tiles(adata, tile_um=16, mpp=0.5, image=pixels())


@kind(ValueError, r"a tile of 500 µm is larger than the image, 200 x 200 µm", r"Take a smaller tile, or check µm per pixel")
def tile_larger_than_the_image(here):
    adata = section()
    return adata, lambda: stimg.pp.plan_tiles(adata, tile_um=500, mpp=0.5, image=pixels())


@kind(
    ValueError,
    r"all 36 tiles lie outside the image of 400 x 400 px .*\[5050.0, 5050.0\]",
    r"Check that the coordinates are of this image's full resolution",
)
def every_tile_outside_the_image(here):
    adata = section()
    adata.obsm["spatial"] += 5000
    return adata, lambda: stimg.pp.plan_tiles(adata, tile_um=16, mpp=0.5, image=pixels())


@kind(KeyError, r"names no image file that exists and holds no 'hires' image", r"Pass `image=` with a path or an array")
def no_image_at_all(here):
    adata = section()
    return adata, lambda: stimg.pp.plan_tiles(adata, tile_um=16, mpp=0.5)


@kind(
    ValueError,
    r"One image for several libraries; wanted one for each",
    r"Pass `image=` with a path or an array \(y, x, 3\) for each library",
)
def one_image_for_several_sections(here):
    adata = reference()
    return adata, lambda: stimg.pp.plan_tiles(adata, tile_um=16, mpp=0.5, image=pixels())


@kind(FileNotFoundError, r"there is no image .*a.svs", r"Check the path")
def image_that_is_not_there(here):
    adata = section()
    return adata, lambda: stimg.pp.plan_tiles(adata, tile_um=16, mpp=0.5, image=here.folder / "a.svs")


@kind(TypeError, r"dtype uint16; wanted uint8, 255 for white", r"Scale it to 0 .. 255 and convert it")
def image_of_sixteen_bits(here):
    adata = section()
    return adata, lambda: stimg.pp.plan_tiles(adata, tile_um=16, mpp=0.5, image=pixels().astype(np.uint16) * 256)


@kind(
    ValueError,
    r"axes 'YX', shape \(400, 400\) and dtype uint8; wanted uint8 with red, green and blue",
    r"Convert it, for example with libvips",
)
def image_of_one_channel(here):
    tifffile.imwrite(here.folder / "a.tif", pixels()[..., 0])
    return here.folder, lambda: open_slide(here.folder / "a.tif", mpp=0.5)


@kind(ValueError, r"shape \(3, 400, 400\); wanted \(y, x, 3\)", r"np.moveaxis\(image, 0, -1\)")
def image_with_channels_first(here):
    adata = section()
    return adata, lambda: stimg.pp.plan_tiles(adata, tile_um=16, mpp=0.5, image=np.moveaxis(pixels(), -1, 0))


@kind(ValueError, r"is truncated: it has \d+ bytes, and its directory names byte \d+", r"Copy it again")
def image_cut_short(here):
    path = here.folder / "a.tif"
    tifffile.imwrite(path, pixels(), photometric="rgb", tile=(64, 64))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return here.folder, lambda: open_slide(path, mpp=0.5).read(0, 0, 0, SIDE, SIDE)


@kind(TypeError, r"data is a AnnData; wanted a SpatialData for around='grid'", r"Pass `SpatialData\(\)` and `image=`")
def grid_over_an_anndata(here):
    adata = section()
    return adata, lambda: stimg.pp.plan_tiles(adata, tile_um=16, mpp=0.5, around="grid", image=pixels())


@kind(ValueError, r"tile_um=0.0 is not above zero", r"wanted a positive number of µm")
def tile_without_a_size(here):
    adata = section()
    return adata, lambda: stimg.pp.plan_tiles(adata, tile_um=0.0, mpp=0.5, image=pixels())


@kind(ValueError, r"none of the 49 tiles of .* is tissue to 0.5 or more; the most is 0", r"Lower `min_tissue=`, or look at the tissue mask")
def slide_without_tissue(here):
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel, Labels2DModel

    glass = np.full((3, 200, 200), 244, np.uint8)
    nothing = Labels2DModel.parse(np.zeros((200, 200), np.int32), dims=("y", "x"))
    sdata = SpatialData(images={"he": Image2DModel.parse(glass, dims=("c", "y", "x"))}, labels={"tissue": nothing})
    options = {"tile_um": 16, "mpp": 0.5, "image_mpp": 0.5, "around": "grid", "tissue_key": "tissue", "min_tissue": 0.5}
    return None, lambda: stimg.pp.plan_tiles(sdata, **options)


# ---- tiles and features


@kind(ValueError, r"a.png has changed since the tiles were planned", r"Run `stimg.pp.plan_tiles` again")
def image_that_changed_after_planning(here):
    adata = planned(here.folder / "a.png")
    Image.fromarray(255 - pixels()).save(here.folder / "a.png")
    return adata, lambda: stimg.tl.embed_image(adata, encoder=encoder())


@kind(
    ValueError,
    r"has \(300, 300\) pixels \(y, x\), the tiles were planned on \(400, 400\)",
    r"Run `stimg.pp.plan_tiles` again with this image",
)
def image_of_another_size_than_planned(here):
    adata = planned(here.folder / "a.png")
    Image.fromarray(pixels(300)).save(here.folder / "a.png")
    return adata, lambda: stimg.tl.embed_image(adata, encoder=encoder())


@kind(KeyError, r"planned on .*a.png, which is not here", r"Pass `image=` or `slides=` with it")
def image_that_is_gone(here):
    adata = planned(here.folder / "a.png")
    (here.folder / "a.png").unlink()
    return adata, lambda: stimg.tl.embed_image(adata, encoder=encoder())


@kind(KeyError, r"holds no plan of tiles \(found \[\]\)", r"Run `stimg.pp.plan_tiles` first")
def tiles_that_were_not_planned(here):
    adata = section()
    return adata, lambda: stimg.tl.embed_image(adata, encoder=encoder())


@kind(ValueError, r"planned at 2 µm per pixel; UNI expects 0.5", r"`stimg.pp.plan_tiles\(..., tile_um=112, mpp=0.5\)`")
def tiles_at_another_scale_than_the_encoder_expects(here):
    adata = planned(here.folder / "a.png", tile_um=112, mpp=2.0)
    return adata, lambda: stimg.tl.embed_image(adata, encoder="uni")


@kind(ValueError, r"no image encoder named 'univ2'", r"Did you mean 'uni'\? Known: conch, ")
def encoder_with_a_typing_error(here):
    adata = planned(here.folder / "a.png")
    return adata, lambda: stimg.tl.embed_image(adata, encoder="univ2")


@kind(ValueError, r"1 tensors for a EfficientNetLite0 of 296", r"Take weights of the same network")
def weights_of_another_network(here):
    from stimg.nn.image import load_image_encoder

    torch.save({"head.weight": torch.zeros(3, 3)}, here.folder / "w.pt")
    return here.folder, lambda: load_image_encoder("efficientnet_lite0", path=here.folder / "w.pt")


@kind(ValueError, r"features of Small has 36 rows of 36 with NaN or infinite values", r"check the weights")
def weights_that_are_no_numbers(here):
    adata, broken = planned(here.folder / "a.png"), encoder()
    with torch.no_grad():
        broken.network[2].weight.fill_(torch.nan)
    return adata, lambda: stimg.tl.embed_image(adata, encoder=broken)


@kind(TypeError, r"tiles are torch.float32", r"wanted uint8, 0 to 255")
def tiles_of_floats(here):
    return None, lambda: encoder()(torch.zeros(2, 32, 32, 3))


def encoder():
    from stimg.nn.image import ImageEncoder

    card = replace(stimg.zoo.get("uni"), name="small", title="Small", n_features=4, size_px=32, mpp=None, multiple_of=4)
    network = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(), torch.nn.Linear(12, 4))
    return ImageEncoder(card, network).eval()


@kind(
    ValueError,
    r"36 of 36 observations have no embedding, the first is 'A0' \(the file has 5 names, such as 'z0'\)",
    r"Bring the names to one form",
)
def embedding_of_other_observations(here):
    ad.AnnData(np.ones((5, 3), np.float32), obs=pd.DataFrame(index=[f"z{i}" for i in range(5)])).write_h5ad(here.folder / "f.h5ad")
    adata = section()
    return adata, lambda: stimg.pp.read_embedding(adata, here.folder / "f.h5ad", key_added="X_uni")


@kind(ValueError, r"1 rows of 36 with NaN or infinite values, the first is row 4", r"Compute it again; a missing tile is not zero")
def embedding_with_nan(here):
    adata = section()
    values = np.ones((adata.n_obs, 3), np.float32)
    values[4, 1] = np.nan
    ad.AnnData(values, obs=pd.DataFrame(index=adata.obs_names)).write_h5ad(here.folder / "f.h5ad")
    return adata, lambda: stimg.pp.read_embedding(adata, here.folder / "f.h5ad", key_added="X_uni")


@kind(ValueError, r"rings=\(2, 1\)", r"wanted whole numbers from 1, rising, such as \(1, 2\)")
def rings_that_do_not_rise(here):
    adata = section()
    stimg.pp.rasterize(adata, pitch_um=30.0)
    return adata, lambda: stimg.pp.spatial_context(adata, key="X_some", rings=(2, 1))


@kind(ValueError, r"encoder='nicheformer' needs `path=`", r"the folder with the published files")
def genes_embedded_without_their_model(here):
    adata = section()
    return adata, lambda: stimg.tl.embed_genes(adata, encoder="nicheformer")


# ---- predicted genes


@kind(ValueError, r"Nothing says how images and genes go together", r"Pass `reference=` .* or `model=`")
def nothing_to_learn_from(here):
    adata = section()
    return adata, lambda: stimg.tl.predict_expression(adata, features="X_some")


@kind(
    KeyError, r"obsm\['X_other'\] is missing \(found \['spatial', 'X_some'\]\)", r"Run `stimg.tl.embed_image` .* first, or pass `features=`"
)
def reference_without_the_features(here):
    adata = section()
    return adata, lambda: stimg.tl.predict_expression(adata, reference=reference(), features="X_other")


@kind(ValueError, r"have 5 columns; the head was fitted on 8", r"Compute the features as for the reference")
def features_of_another_width(here):
    adata = section()
    adata.obsm["X_some"] = adata.obsm["X_some"][:, :5]
    return adata, lambda: stimg.tl.predict_expression(adata, model=head())


@kind(ValueError, r"was made with mpp=1; the head was fitted on features made with mpp=0.5", r"or fit a head on a reference with these")
def features_made_in_another_way(here):
    table, adata = reference(), section()
    made = {"verb": "stimg.tl.embed_image", "encoder": "uni", "tile_um": 112.0, "mpp": 0.5, "fields": np.array([1.0])}
    table.uns["stimg"], adata.uns["stimg"] = {"X_some": made}, {"X_some": {**made, "mpp": 1.0}}
    return adata, lambda: stimg.tl.predict_expression(adata, reference=table, features="X_some")


@kind(
    ValueError, r"1 rows of 36 with NaN or infinite values, the first is row 3", r"Remove these observations, or compute the features again"
)
def nan_in_features(here):
    adata = section()
    adata.obsm["X_some"][3, 2] = np.nan
    return adata, lambda: stimg.tl.predict_expression(adata, model=head())


@kind(KeyError, r"1 of 2 genes asked for are not in the object: \['nope'\]", r"predicts `head.genes` alone")
def gene_that_the_head_does_not_know(here):
    adata = section()
    return adata, lambda: stimg.tl.predict_expression(adata, model=head(), genes=["g1", "nope"])


@kind(ValueError, r"coverage=90 is not between 0.5 and 0.99", r"wanted the share of true values")
def coverage_that_is_a_percentage(here):
    adata = section()
    return adata, lambda: stimg.tl.predict_expression(adata, model=head(), coverage=90)


@kind(ValueError, r"no residuals of observations that it has not seen, so it knows no intervals", r"Pass `reference=` .*or `coverage=None`")
def intervals_of_a_head_that_is_not_calibrated(here):
    adata, model = section(), with_decoder()
    return adata, lambda: stimg.tl.predict_expression(adata, model=model)


@functools.cache
def with_decoder():
    model = aligned(reference(), expression_weight=1.0)
    model.train(max_epochs=1, validation=None, enable_progress_bar=False)
    return model


@kind(ValueError, r"head='trained' needs a model with expression_weight above 0; this one has 0", r"Train one with `expression_weight=1`")
def trained_head_that_was_not_trained(here):
    adata = section()
    return adata, lambda: stimg.tl.predict_expression(adata, model=trained(), coverage=None)


@kind(ValueError, r"6 of the genes to predict are not in adata.var_names", r"Pass `copy=True` to get them as a new AnnData")
def predictions_with_nowhere_to_go(here):
    adata = section()[:, :0].copy()
    return adata, lambda: stimg.tl.predict_expression(adata, model=head())


@kind(ValueError, r"model.json is damaged", r"Save the model again, or copy the folder anew")
def damaged_head(here):
    head().save(here.folder / "head")
    path = here.folder / "head" / "model.json"
    path.write_text(path.read_text()[:-20])
    return here.folder, lambda: stimg.model.ExpressionHead.load(here.folder / "head")


# ---- alignment and retrieval


@kind(ValueError, r"the image side has 8 columns and the gene side 4", r"Run `stimg.tl.align`")
def sides_of_different_widths(here):
    adata = section()
    adata.obsm["X_other"] = adata.obsm["X_some"][:, :4]
    return adata, lambda: stimg.tl.retrieve(adata, image_key="X_some", gene_key="X_other")


@kind(ValueError, r"direction='genes to image' is not known", r"wanted one of \['image to expression', 'expression to image'\]")
def direction_that_does_not_exist(here):
    adata = section()
    return adata, lambda: stimg.tl.retrieve(adata, image_key="X_some", gene_key="X_some", direction="genes to image")


@kind(ValueError, r"image_key='X_some' and gene_key=None", r"wanted both, or a trained model")
def one_side_alone(here):
    adata = section()
    return adata, lambda: stimg.tl.retrieve(adata, image_key="X_some")


@kind(TypeError, r"model is a str", r"wanted a")
def name_in_place_of_an_alignment(here):
    adata = section()
    return adata, lambda: stimg.tl.align(adata, model="model")


@kind(RuntimeError, r"The model is not trained", r"Run `model.train\(\)` first")
def alignment_that_is_not_trained(here):
    adata, model = section(), aligned(reference())
    return adata, lambda: stimg.tl.align(adata, model=model)


@kind(KeyError, r"2 of the 6 genes of the model are not in adata.var_names, such as \['g4', 'g5'\]", r"Read the full count table")
def section_without_the_genes_of_the_model(here):
    adata = section()[:, :4].copy()
    return adata, lambda: stimg.tl.align(adata, model=trained())


@kind(ValueError, r"batch_size=1 has no negatives", r"wanted at least 2")
def pairs_of_one(here):
    model = aligned(reference())
    return model.adata, lambda: model.train(batch_size=1)


@kind(ValueError, r"leaves out one donor of at least two, but adata.obs\['donor'\] names \['DA'\]", r"Pass validation='blocks'")
def donors_that_are_one(here):
    model = aligned(section())
    return model.adata, lambda: model.train(validation="donors")


@kind(ValueError, r"batch=\('none', 'centre'\) contradicts itself", r"wanted 'none', or different ones of")
def ways_with_batches_that_contradict(here):
    return None, lambda: stimg.model.ImageGeneCLIPOptions(batch=("none", "centre"))


@kind(ValueError, r"augment=True does not go with tuning='frozen'", r"Pass tuning='lora' or 'full', or augment=False")
def augmented_tiles_of_a_frozen_encoder(here):
    return None, lambda: stimg.model.ImageGeneCLIPOptions(augment=True)


@kind(ValueError, r"temperature=14.0 is not in \[0.01, 1\]", r"0.07 to 0.2 is usual")
def temperature_in_other_units(here):
    return None, lambda: stimg.model.ImageGeneCLIPOptions(temperature=14.0)


@kind(ValueError, r"list of genes does not match its hash", r"Save the model again")
def alignment_with_other_genes_in_its_record(here):
    trained().save(here.folder / "m")
    path = here.folder / "m" / "model.json"
    record = json.loads(path.read_text())
    record["genes"] = record["genes"][::-1]
    path.write_text(json.dumps(record))
    return here.folder, lambda: stimg.model.ImageGeneCLIP.load(here.folder / "m")


@pytest.mark.parametrize("name", list(kind))
def test_bad_input(name, tmp_path, monkeypatch):
    kind[name].check(tmp_path, monkeypatch)


def test_at_least_so_many_kinds():
    assert len(kind) >= 50
