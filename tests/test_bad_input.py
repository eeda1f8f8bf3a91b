"""Kinds of bad input, each with its error: the type, the measured value, the way out, and that nothing was written.

One entry is one kind. It names the type of the error and two patterns: what the message must say was found, and what it must say is wanted
or to be done. The function returns what must stay as it is (an object, a folder) and the call that has to fail.
"""

import errno
import functools
import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import stimg
from stimg import pp
from stimg.image import CropSpec, RasterSpec, RasterStore


class Kind(NamedTuple):
    error: type[Exception]
    found: str
    way_out: str
    make: Callable[[SimpleNamespace], tuple[Any, Callable[[], Any]]]


KINDS: dict[str, Kind] = {}


def kind(error: type[Exception], found: str, way_out: str) -> Callable:
    def add(make: Callable) -> Callable:
        KINDS[make.__name__] = Kind(error, found, way_out, make)
        return make

    return add


# ---- what is made bad


@functools.cache
def _slide(technology: str, shape: tuple[int, int], rastered: bool) -> ad.AnnData:
    adata = stimg.datasets.simulate(technology=technology, shape=shape, n_genes=12, mpp=0.5, rng=0)
    if rastered:
        pp.rasterize(adata)
    return adata


def slide(technology="visium", shape=(8, 8), *, rastered=False):
    return _slide(technology, shape, rastered).copy()


def rastered(technology="visium", shape=(8, 8)):
    return slide(technology, shape, rastered=True)


def plain(xy, *, row=None, col=None, **factors):
    """Counts at (x, y), with array indices where given."""
    adata = ad.AnnData(sp.csr_matrix(np.ones((len(xy), 2), dtype=np.float32)), obs=pd.DataFrame(index=[f"s{i}" for i in range(len(xy))]))
    adata.obsm["spatial"] = np.asarray(xy, dtype=float)
    adata.obs["library_id"] = "A"
    if row is not None:
        adata.obs["array_row"], adata.obs["array_col"] = row, col
    adata.uns["spatial"] = {"A": {"images": {}, "scalefactors": factors, "metadata": {}}}
    return adata


def square(rows=10, cols=12, pitch=200.0):
    row, col = (a.ravel() for a in np.mgrid[:rows, :cols])
    return row, col, pitch * np.stack([col, row], axis=1)


def hexagonal(rows=10, cols=12, pitch=200.0):
    row, col = (a.ravel() for a in np.mgrid[:rows, :cols])
    return pitch * np.stack([col + 0.5 * (row % 2), row * np.sqrt(0.75)], axis=1)


def model_of(adata, **options):
    stimg.model.STMAE.setup_anndata(adata)
    return stimg.model.STMAE(adata, **{"crop_size": (4, 4), "n_latent": 8, "n_layers": 1, "n_heads": 2, **options})


def train(model, **options):
    quiet = {"accelerator": "cpu", "enable_progress_bar": False, "logger": False}
    model.train(**{"max_epochs": 1, "validation": None, "rng": 0, **quiet, **options})
    return model


@functools.cache
def trained():
    return train(model_of(rastered()))


def store(folder: Path) -> Path:
    path = folder / "store.zarr"
    adata = rastered("st")
    spec = RasterSpec.from_dict(adata.uns["stimg"]["raster"]["D1S1"])
    RasterStore.from_csr(adata.X, adata.obsm["stimg_rc"], spec.shape).save(path)
    return path


def state(thing: Any) -> Any:
    """Everything that an object or a folder holds, as something that can be compared."""
    if isinstance(thing, ad.AnnData):
        parts = {name: {k: state(v) for k, v in getattr(thing, name).items()} for name in ("obsm", "layers", "obs", "var", "uns")}
        return {"X": state(thing.X), "names": (tuple(thing.obs_names), tuple(thing.var_names)), **parts}
    if isinstance(thing, dict):
        return {k: state(v) for k, v in thing.items()}
    if isinstance(thing, Path):
        return {str(p.relative_to(thing)): p.read_bytes() for p in sorted(thing.rglob("*")) if p.is_file()}
    if sp.issparse(thing):
        return [state(part) for part in (thing.data, thing.indices, thing.indptr)]
    if isinstance(thing, (np.ndarray, pd.Series, pd.DataFrame)):
        values = np.asarray(thing)
        return (values.shape, repr(values.tolist()))
    return repr(thing)


# ---- positions


@kind(ValueError, r"1 rows of 64 with NaN or infinite values, the first is row 3", r"remove the observations without a position")
def nan_coordinates(here):
    adata = slide()
    adata.obsm["spatial"][3, 0] = np.nan
    return adata, lambda: pp.rasterize(adata)


@kind(KeyError, r"obsm\['spatial'\] is missing, and there are no array indices", r"Give \(x, y\) in full-resolution pixels, or array")
def no_positions(here):
    adata = plain(square()[2])
    del adata.obsm["spatial"]
    return adata, lambda: pp.rasterize(adata, mpp=0.5)


@kind(ValueError, r"0 observations; wanted at least one", r"Check the reader or the filter")
def empty_section(here):
    adata = slide()[:0].copy()
    return adata, lambda: pp.rasterize(adata)


@kind(ValueError, r"1 observations are too few to find a lattice .*; wanted 4 or more", r"Give array indices .* and `pitch_um=`")
def one_spot_from_coordinates(here):
    adata = plain([[5.0, 7.0]])
    return adata, lambda: pp.rasterize(adata, mpp=0.5)


@kind(ValueError, r"1 duplicated barcodes, the first is 's0'", r"Make them unique")
def duplicate_barcodes(here):
    row, col, xy = square()
    adata = plain(xy, row=row, col=col)
    adata.obs_names = ["s0", *adata.obs_names[:-1]]
    return adata, lambda: pp.rasterize(adata, mpp=0.5)


@kind(ValueError, r"1 of 121 observations fall on an occupied lattice point.*'s0' and 's120' .*duplicate spots", r"`collision='nearest'`")
def duplicate_spots(here):
    row, col, xy = square()
    adata = plain(np.vstack([xy, xy[:1]]), row=np.append(row, 0), col=np.append(col, 0))
    return adata, lambda: pp.rasterize(adata, mpp=0.5)


@kind(
    ValueError,
    r"measured pitch of 100 px is 100 µm at 1 µm per pixel, but .* says 0.5",
    r"look like µm, not pixels: pass `mpp=1`, or divide them by the µm per pixel",
)
def micrometres_for_pixels(here):
    adata = slide()
    adata.obsm["spatial"] *= 0.5
    return adata, lambda: pp.rasterize(adata)


@kind(ValueError, r"pitch of \d+ px is 100 µm at 5 µm per pixel, but .* says 0.5", r"divide them by tissue_hires_scalef = 0.1")
def hires_pixels(here):
    adata = slide()
    adata.uns["spatial"]["D1S1"]["scalefactors"]["tissue_hires_scalef"] = 0.1
    adata.obsm["spatial"] *= 0.1
    return adata, lambda: pp.rasterize(adata)


@kind(ValueError, r"opposite handedness.*determinant -", r"x and y are swapped: obsm\['spatial'\] must be \(x, y\)")
def swapped_axes(here):
    adata = slide()
    adata.obsm["spatial"] = adata.obsm["spatial"][:, ::-1].copy()
    return adata, lambda: pp.rasterize(adata)


@kind(ValueError, r"opposite handedness.*One axis is mirrored", r"`allow_mirror=True` where the image really is mirrored")
def mirrored_axis(here):
    adata = slide()
    adata.obsm["spatial"][:, 0] = 5000 - adata.obsm["spatial"][:, 0]
    return adata, lambda: pp.rasterize(adata)


@kind(ValueError, r"\d+ observations have square and \d+ hexagonal neighbourhoods", r"Split them with\s+obs\['library_id'\]")
def mixed_lattices(here):
    adata = plain(np.vstack([square()[2], hexagonal() + np.array([4000, 0])]))
    return adata, lambda: pp.rasterize(adata, mpp=0.5)


@kind(ValueError, r"root-mean-square distance", r"obs rows and obsm\['spatial'\] are in the same order")
def shuffled_coordinates(here):
    adata = slide()
    adata.obsm["spatial"] = np.random.default_rng(0).permutation(adata.obsm["spatial"])
    return adata, lambda: pp.rasterize(adata)


@kind(TypeError, r"obsm\['spatial'\] has dtype <U\d+; wanted numbers", r"Give \(x, y\) in full-resolution pixels")
def text_for_coordinates(here):
    adata = slide()
    adata.obsm["spatial"] = adata.obsm["spatial"].astype(int).astype(str)
    return adata, lambda: pp.rasterize(adata)


@kind(ValueError, r"lattice points; wanted at most 2.15e\+09", r"Take larger pixels, or look for observations far away")
def pixels_far_too_small(here):
    adata = slide("xenium", (8, 8))
    return adata, lambda: pp.rasterize(adata, pixel_um=1e-4)


# ---- scale


@kind(ValueError, r"nothing states the scale", r"Pass `mpp=` .* or `pitch_um=`")
def missing_scale(here):
    row, col, xy = square()
    adata = plain(xy, row=row, col=col)
    return adata, lambda: pp.rasterize(adata)


@kind(ValueError, r"mpp=0.7 was passed, but scalefactors\['microns_per_pixel'\] is 0.5", r"Correct the wrong one")
def two_scales_that_differ(here):
    adata = slide()
    return adata, lambda: pp.rasterize(adata, mpp=0.7)


@kind(TypeError, r"mpp='0.5' is a str", r"wanted a number of µm")
def text_for_scale(here):
    adata = slide()
    return adata, lambda: pp.rasterize(adata, mpp="0.5")


@kind(ValueError, r"pitch_um=-100.0 is not a positive number of µm", r"Pass the distance between neighbouring observations")
def pitch_below_zero(here):
    adata = slide("st")
    return adata, lambda: pp.rasterize(adata, pitch_um=-100.0)


@kind(ValueError, r"microns_per_pixel'\] is 500 µm per pixel; wanted 0.01 .. 50", r"Check the unit of the coordinates")
def mpp_out_of_range(here):
    adata = slide()
    adata.uns["spatial"]["D1S1"]["scalefactors"]["microns_per_pixel"] = 500.0
    return adata, lambda: pp.rasterize(adata)


# ---- counts


@kind(ValueError, r"adata.X has 1 negative values \(minimum -3\); wanted raw counts", r"Pass `layer=` with unscaled counts")
def negative_counts(here):
    adata = rastered()
    adata.X.data[0] = -3
    return adata, lambda: stimg.model.STMAE.setup_anndata(adata)


@kind(ValueError, r"adata.X has \d+ fractional values of \d+ \(for example 0\.\d+\)", r"Pass `layer=` with raw counts")
def fractional_counts(here):
    adata = rastered()
    adata.X = adata.X * np.float32(0.3)
    return adata, lambda: pp.select_genes(adata, rule="variance", n=4)


@kind(ValueError, r"adata.X has 1 NaN or infinite values", r"Remove or repair them")
def nan_in_sparse_counts(here):
    adata = rastered()
    adata.X.data[5] = np.nan
    return adata, lambda: stimg.model.STMAE.setup_anndata(adata)


@kind(TypeError, r"adata.X has dtype complex128; wanted raw counts", r"Convert it to real numbers")
def complex_counts(here):
    adata = rastered()
    adata.layers["c"] = adata.X.toarray().astype(np.complex128)
    adata.X = adata.layers.pop("c")
    return adata, lambda: pp.select_genes(adata, rule="variance", n=4)


@kind(TypeError, r"layers\['text'\] has dtype <U1; wanted raw counts", r"Convert it to real numbers")
def text_for_counts(here):
    adata = rastered()
    adata.layers["text"] = np.full(adata.shape, "7")
    return adata, lambda: pp.select_genes(adata, rule="variance", n=4, layer="text")


@kind(KeyError, r"adata.layers\['counts'\] is missing \(found \['raw'\]\)", r"Pass the name of the layer that holds raw counts")
def missing_layer(here):
    adata = rastered()
    adata.layers["raw"] = adata.X.copy()
    return adata, lambda: stimg.model.STMAE.setup_anndata(adata, layer="counts")


@kind(ValueError, r"adata.X has 1 NaN or infinite values; wanted finite values", r"Remove or repair them")
def nan_to_resample(here):
    adata = rastered()
    adata.X.data[5] = np.nan
    return adata, lambda: pp.resample(adata, pixel_um=300.0)


@kind(ValueError, r"The 64 training observations have no count of the 12 genes", r"Check the layer and the genes")
def no_counts_to_train_on(here):
    adata = rastered()
    adata.X = adata.X * 0
    model = model_of(adata)
    return adata, lambda: train(model)


# ---- genes


@kind(ValueError, r"64 observations and 0 genes; wanted at least one of each", r"Check the reader or the filter")
def no_genes(here):
    adata = rastered()[:, :0].copy()
    return adata, lambda: pp.select_genes(adata, rule="variance", n=4)


@kind(ValueError, r"None of the 12 genes can become a channel: 12 are control probes", r"Check adata.var, the layer, and `fit_on`")
def control_probes_alone(here):
    adata = rastered()
    adata.var["control"] = True
    return adata, lambda: pp.select_genes(adata, rule="variance", n=4)


@kind(KeyError, r"1 of 2 markers are not in the object: \['ACTB_typo'\]", r"Check the spelling, the species")
def unknown_marker(here):
    adata = rastered()
    return adata, lambda: pp.select_genes(adata, rule="markers", markers=[adata.var_names[0], "ACTB_typo"])


@kind(KeyError, r"1 of 1 genes asked for are not in the object: \['nope'\]", r"predicts genes of its vocabulary alone")
def unknown_gene_to_impute(here):
    adata = rastered()
    return adata, lambda: stimg.tl.impute_genes(adata, model=trained(), genes=["nope"], copy=True)


@kind(
    ValueError,
    r"None of the 12 genes of the vocabulary .* is among the 12 genes of the object \(such as \['ENSG0'",
    r"symbols or to Ensembl",
)
def no_shared_genes(here):
    adata = rastered()
    adata.var_names = [f"ENSG{i}" for i in range(adata.n_vars)]
    return adata, lambda: stimg.tl.embed(adata, model=trained())


@kind(ValueError, r"genes names all 12 genes that adata shares with the model", r"Leave some out")
def every_gene_hidden(here):
    adata = rastered()
    return adata, lambda: stimg.tl.impute_genes(adata, model=trained(), genes=list(adata.var_names))


@kind(ValueError, r"1 duplicated genes asked for, the first is 'Gene00001'", r"Name each gene once")
def a_gene_asked_for_twice(here):
    adata = rastered()
    return adata, lambda: stimg.tl.impute_genes(adata, model=trained(), genes=["Gene00001"] * 2)


@kind(ValueError, r"n=2.5 is not usable", r"wanted a whole number of at least 1")
def half_a_channel(here):
    adata = rastered()
    return adata, lambda: pp.select_genes(adata, rule="variance", n=2.5)


@kind(KeyError, r"\['stimg'\]\['raster'\]\['D1S1'\] is missing \(found \[\]\)", r"`?stimg.pp.rasterize`? first")
def raster_lost_when_joined(here):
    adata = ad.concat([rastered()])
    return adata, lambda: pp.spatial_blocks(adata, n_blocks=4)


@kind(ValueError, r"no channel rule named 'highly_variabel'", r"Did you mean 'highly_variable'\? Known: ")
def unknown_rule(here):
    adata = rastered()
    return adata, lambda: pp.select_genes(adata, rule="highly_variabel")


# ---- libraries and slots


@kind(KeyError, r"obs\['library_id'\] is missing \(found \[.*\]\), and adata.uns\['spatial'\] has 2 libraries", r"pass `library_key=`")
def missing_library_column(here):
    adata = slide()
    adata.uns["spatial"]["other"] = {}
    del adata.obs["library_id"]
    return adata, lambda: pp.rasterize(adata)


@kind(ValueError, r"obs\['library_id'\] has 2 missing values of 64", r"names the capture area of every observation")
def nan_in_library(here):
    adata = slide()
    adata.obs.loc[adata.obs_names[:2], "library_id"] = np.nan
    return adata, lambda: pp.rasterize(adata)


@kind(KeyError, r"obsm\['stimg_rc'\] is missing \(found \['spatial'", r"Run `stimg.pp.rasterize` first")
def missing_raster(here):
    adata = slide()
    return adata, lambda: stimg.model.STMAE.setup_anndata(adata)


@kind(ValueError, r"adata is a view of another object", r"`adata.copy\(\)` instead")
def view_for_setup(here):
    adata = rastered()
    view = adata[:40]
    return adata, lambda: stimg.model.STMAE.setup_anndata(view)


@kind(ValueError, r"names libraries that are not there: \['D9S9'\]", r"the libraries are \['D1S1'\]")
def unknown_library_for_validation(here):
    model = model_of(rastered())
    return model.adata, lambda: train(model, validation=["D9S9"])


@kind(ValueError, r"validation=\[\] names no library", r"wanted some of \['D1S1'\], 'blocks', or None")
def no_library_for_validation(here):
    model = model_of(rastered())
    return model.adata, lambda: train(model, validation=[])


@kind(ValueError, r"validation=\['D1S1'\] holds out every library", r"Leave one out of the list, or pass `validation='blocks'`")
def every_library_held_out(here):
    model = model_of(rastered())
    return model.adata, lambda: train(model, validation=["D1S1"])


@kind(
    ValueError,
    r"library 'D1S1' has 20 observations, too few to hold out one of 10 blocks",
    r"Pass `validation=\[...\]` .*`validation=None`",
)
def library_too_small_for_blocks(here):
    model = model_of(rastered("st", (4, 5)))
    return model.adata, lambda: train(model, validation="blocks")


# ---- crops, masks, options


@kind(
    ValueError,
    r"no window of 20 x 20 with 400 occupied lattice points; the best one holds 64",
    r"Lower `min_occupied`, take a smaller window",
)
def crop_larger_than_the_section(here):
    model = model_of(rastered(), crop_size=(20, 20), min_occupied=400)
    return model.adata, lambda: train(model)


@kind(ValueError, r"min_occupied=17 is outside 1 .. 16", r"Pass one of these, or None for a tenth")
def min_occupied_out_of_range(here):
    return None, lambda: CropSpec((4, 4), min_occupied=17)


@kind(ValueError, r"mask ratios \(0.0,\) are not all between 0 and 1", r"such as \(0.25, 0.5, 0.75\)")
def mask_ratio_of_zero(here):
    adata = rastered()
    stimg.model.STMAE.setup_anndata(adata)
    return adata, lambda: stimg.model.STMAE(adata, mask_ratios=(0.0,))


@kind(ValueError, r"mask ratios \(0.5, 1.0\) are not all between 0 and 1", r"wanted fractions of the channels")
def mask_ratio_of_one(here):
    return None, lambda: stimg.nn.MaskSpec((0.5, 1.0))


@kind(ValueError, r"n_latent=10 is not a multiple of n_heads=4", r"Take n_latent=8 or n_latent=12, or another n_heads")
def latent_not_a_multiple_of_heads(here):
    adata = rastered()
    stimg.model.STMAE.setup_anndata(adata)
    return adata, lambda: stimg.model.STMAE(adata, n_latent=10, n_heads=4)


@kind(TypeError, r"crop_size=16 is one number", r"wanted several, such as \(16, 16\)")
def one_number_for_a_window(here):
    return None, lambda: stimg.model.STMAEOptions(crop_size=16)


@kind(ValueError, r"n_layers=-1 is not usable", r"wanted a whole number of at least 1")
def layers_below_zero(here):
    return None, lambda: stimg.model.STMAEOptions(n_layers=-1)


@kind(ValueError, r"batch_size=0 is not usable", r"wanted a whole number of at least 1")
def batch_of_nothing(here):
    adata = rastered()
    return adata, lambda: stimg.tl.embed(adata, model=trained(), batch_size=0)


@kind(TypeError, r"no option \['n_latents'\]", r"it has \[.*'n_latent'")
def unknown_option(here):
    adata = rastered()
    stimg.model.STMAE.setup_anndata(adata)
    return adata, lambda: stimg.model.STMAE(adata, n_latents=8)


@kind(TypeError, r"rng is a legacy numpy RandomState", r"pass an integer seed or numpy.random.default_rng\(seed\)")
def legacy_random_state(here):
    adata = rastered()
    legacy = np.random.RandomState(0)
    return adata, lambda: pp.select_genes(adata, rule="uniform", n=3, rng=legacy)


@kind(TypeError, r"rng='seven' is a str", r"wanted an integer seed, a numpy Generator")
def text_for_seed(here):
    adata = rastered()
    return adata, lambda: pp.select_genes(adata, rule="uniform", n=3, rng="seven")


@kind(ValueError, r"technology='merfish' is not known", r"wanted one of \['st', 'visium'")
def unknown_technology(here):
    return None, lambda: stimg.datasets.simulate(technology="merfish")


@kind(TypeError, r"data is a ndarray", r"wanted an AnnData or a SpatialData")
def an_array_for_a_table(here):
    return None, lambda: pp.rasterize(np.ones((3, 2)))


# ---- models


@kind(ValueError, r"library 'D1S1' lies on a square lattice with a pitch of 200 µm; the model knows .*'hex'.*100", r"`stimg.pp.resample`")
def raster_of_another_lattice(here):
    adata = rastered("st")
    return adata, lambda: stimg.tl.embed(adata, model=trained())


@kind(ValueError, r"hex lattice with a pitch of 120 µm; the model knows .*100", r"check its scale")
def raster_of_another_pitch(here):
    adata = slide()
    adata.uns["spatial"]["D1S1"]["scalefactors"]["microns_per_pixel"] = 0.6
    pp.rasterize(adata, pitch_um=120.0)
    return adata, lambda: stimg.tl.embed(adata, model=trained())


@kind(RuntimeError, r"The model is not trained", r"Run `model.train\(\)` first")
def untrained_model(here):
    adata = rastered()
    model = model_of(adata.copy())
    return adata, lambda: stimg.tl.embed(adata, model=model)


@kind(RuntimeError, r"The model is not trained", r"Run `model.train\(\)` first")
def untrained_model_saved(here):
    model = model_of(rastered())
    return here.folder, lambda: model.save(here.folder / "model")


@kind(ValueError, r"training loss is (nan|inf) in epoch \d+ \(learning rate 1e\+30\)", r"Lower `lr`")
def loss_that_is_no_number(here):
    model = model_of(rastered(), init="random")
    return model.adata, lambda: train(model, lr=1e30, max_epochs=5)


@kind(FileNotFoundError, r"model.json is missing \(found no such folder\)", r"Pass the folder that `save` wrote")
def no_saved_model(here):
    return here.folder, lambda: stimg.model.STMAE.load(here.folder / "model")


@kind(ValueError, r"model.safetensors is damaged", r"Save the model again")
def truncated_weights(here):
    trained().save(here.folder / "model")
    path = here.folder / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    return here.folder, lambda: stimg.model.STMAE.load(here.folder / "model")


@kind(ValueError, r"model.json is damaged", r"Save the model again")
def truncated_record(here):
    trained().save(here.folder / "model")
    path = here.folder / "model" / "model.json"
    path.write_text(path.read_text()[:-10])
    return here.folder, lambda: stimg.model.STMAE.load(here.folder / "model")


@kind(ValueError, r"list of genes does not match its hash", r"Save the model again")
def renamed_gene_in_record(here):
    trained().save(here.folder / "model")
    path = here.folder / "model" / "model.json"
    record = json.loads(path.read_text())
    record["genes"][0] = "other"
    path.write_text(json.dumps(record))
    return here.folder, lambda: stimg.model.STMAE.load(here.folder / "model")


@kind(ValueError, r"has format 99; this version of stimg reads 1", r"Install the version that wrote it")
def model_of_another_version(here):
    trained().save(here.folder / "model")
    path = here.folder / "model" / "model.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 99'))
    return here.folder, lambda: stimg.model.STMAE.load(here.folder / "model")


@kind(FileExistsError, r"model exists already", r"Pass `overwrite=True`")
def saving_over_a_model(here):
    trained().save(here.folder / "model")
    return here.folder, lambda: trained().save(here.folder / "model")


@kind(ValueError, r"the checkpoint .*last.ckpt cannot be read", r"Delete it to start again|pass another `checkpoint_dir`")
def truncated_checkpoint(here):
    train(model_of(rastered()), checkpoint_dir=here.folder)
    path = here.folder / "last.ckpt"
    path.write_bytes(path.read_bytes()[:500])
    return here.folder, lambda: train(model_of(rastered()), checkpoint_dir=here.folder, max_epochs=2)


# ---- files and disks


@kind(FileNotFoundError, r"There is no store at .*nothing.zarr", r"Write one with `RasterStore.save`")
def missing_store(here):
    return here.folder, lambda: RasterStore.open(here.folder / "nothing.zarr")


@kind(ValueError, r"has \d+ bytes; wanted \d+: it was cut short or changed", r"Write the store again")
def truncated_store(here):
    chunks = (p for p in (store(here.folder) / "X" / "raster_blocks").rglob("*") if p.is_file() and p.name != "zarr.json")
    largest = max(chunks, key=lambda p: p.stat().st_size)
    with largest.open("r+b") as handle:
        handle.truncate(largest.stat().st_size - 1)
    return here.folder, lambda: RasterStore.open(here.folder / "store.zarr")


@kind(ValueError, r"store .* has version 99; this version of stimg reads 1", r"Write it again with `RasterStore.save`")
def store_of_another_version(here):
    path = store(here.folder) / "X" / "raster_blocks" / "zarr.json"
    path.write_text(re.sub(r'("stimg-raster-store": )\d+', r"\g<1>99", path.read_text()))
    return here.folder, lambda: RasterStore.open(here.folder / "store.zarr")


@kind(OSError, r"cannot write beside .*model \(.*file is no folder\)", r"Choose a folder you may write to, with free space")
def folder_that_cannot_be_written(here):
    (here.folder / "file").write_text("in the way")
    return here.folder, lambda: trained().save(here.folder / "file" / "model")


@kind(OSError, r"model could not be written \(No space left on device\); nothing was changed", r"a folder with more free space")
def full_disk_while_a_model_is_saved(here):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    model = trained()
    here.patch.setattr(Path, "write_bytes", full)
    return here.folder, lambda: model.save(here.folder / "model")


@kind(OSError, r"store.zarr could not be written \(No space left on device\); nothing was changed", r"a folder with more free space")
def full_disk_while_a_store_is_saved(here):
    import zarr

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    adata = rastered("st")
    made = RasterStore.from_csr(adata.X, adata.obsm["stimg_rc"], (8, 8))
    here.patch.setattr(zarr.Group, "create_array", full)
    return here.folder, lambda: made.save(here.folder / "store.zarr")


@kind(ValueError, r"is damaged or another file: (sha256|git blob sha1) \w+, expected \w+", r"Copy it again, or remove it")
def data_file_with_another_hash(here):
    from stimg.datasets.registry import FILES

    entry = next(e for e in FILES._entries.values() if e.mirror and (e.sha256 or e.git_sha1))
    (here.folder / entry.mirror).parent.mkdir(parents=True)
    (here.folder / entry.mirror).write_bytes(b"not it")
    here.patch.setenv("STIMG_DATA_MIRROR", str(here.folder))
    return here.folder, lambda: stimg.datasets.fetch_file(entry.name)


@kind(FileNotFoundError, r"STIMG_DATA_MIRROR names .*nowhere, which is not a folder", r"Correct the variable, or unset it")
def mirror_that_is_no_folder(here):
    here.patch.setenv("STIMG_DATA_MIRROR", str(here.folder / "nowhere"))
    return here.folder, lambda: stimg.datasets.fetch_file("her2st/counts/B1")


# ---- the test


@pytest.mark.parametrize("name", list(KINDS))
def test_bad_input(name, tmp_path, monkeypatch):
    wanted = KINDS[name]
    kept, call = wanted.make(SimpleNamespace(folder=tmp_path, patch=monkeypatch))
    before = state(kept)
    with pytest.raises(wanted.error) as caught:
        call()
    monkeypatch.undo()
    message = caught.value.args[0] if isinstance(caught.value, KeyError) else str(caught.value)
    assert type(caught.value) is wanted.error or wanted.error is OSError
    assert re.search(wanted.found, message), message
    assert re.search(wanted.way_out, message), message
    assert state(kept) == before


def test_a_system_that_refuses_to_write_more(tmp_path):
    resource = pytest.importorskip("resource", reason="the limit on the size of files is that of Unix")
    model = train(model_of(rastered(), n_latent=64))
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        for name, call in {
            "model": lambda: model.save(tmp_path / "model"),
            "last.ckpt": lambda: train(model_of(rastered(), n_latent=64), checkpoint_dir=tmp_path / "checkpoints"),
        }.items():
            with pytest.raises(OSError, match=f"{name} could not be written .*; nothing was changed.*more free space") as caught:
                call()
            assert caught.value.errno == errno.EFBIG
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert state(tmp_path) == {}


def test_at_least_so_many_kinds():
    assert len(KINDS) >= 60


class Killed(BaseException):
    """What a batch system sends."""


def test_a_killed_training_goes_on_as_if_nothing_had_been(tmp_path):
    from lightning.pytorch.callbacks import Callback

    class Kill(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 2:
                raise Killed

    whole = train(model_of(rastered()), max_epochs=4)
    with pytest.raises(Killed):
        train(model_of(rastered()), max_epochs=4, checkpoint_dir=tmp_path, callbacks=[Kill()])
    resumed = train(model_of(rastered()), max_epochs=4, checkpoint_dir=tmp_path)
    assert resumed.epochs() == whole.epochs() == 4
    for name, value in whole.module.state_dict().items():
        assert (resumed.module.state_dict()[name] == value).all(), name
