"""Bad input of imputation: slides made sparse, places and references, models and what they learn from."""

import errno
import functools
import os
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from _kinds import Kinds, rastered, slide, state

import stimg
from stimg import pp, tl
from stimg.image.interpolate import Interpolated
from stimg.model import S2SImputer

kind = Kinds()
SMALL = {"n_samples": 4, "natural": None, "n_hidden": 4, "growth": 2, "n_stages": 1, "turns": 1, "window": 4}
FIT = {"max_epochs": 1, "steps_per_epoch": 2, "batch_size": 8, "rng": 0, "enable_progress_bar": False}


@functools.cache
def _pair(technology="st"):
    return pp.sparsify(rastered(technology, (10, 10)), fraction=0.4)


def sparse(technology="st"):
    return _pair(technology).observed.copy()


def hidden(technology="st"):
    return _pair(technology).truth.copy()


def scaled(adata):
    adata.X = adata.X * np.float32(0.3)
    return adata


def with_nan(adata):
    adata.X.data[3] = np.nan
    return adata


def nearest(adata, **options):
    return lambda: tl.impute(adata, **{"method": "nearest", "targets": hidden(), "uncertainty": False, **options})


def reference(technology="st"):
    adata = rastered(technology)
    adata.obs["library_id"], adata.obs["donor"] = "D2S1", "D2"
    return adata


def of_donors(adata, other):
    return nearest(adata, method="donor_kriging", reference=other)


def imputer(adata, guide=None, **changes):
    S2SImputer.setup_anndata(adata, guide=guide)
    return S2SImputer(adata, **{**SMALL, **changes})


def fitted(model, **changes):
    model.train(**{**FIT, **changes})
    return model


@functools.cache
def trained():
    """To be read, not to be changed."""
    return fitted(imputer(sparse()))


def guided(adata, width=3, value=None):
    rng = np.random.default_rng(0)
    adata.obsm["X_image"] = rng.normal(size=(adata.n_obs, width)) if value is None else np.full((adata.n_obs, width), value)
    return adata


@functools.cache
def trained_with_guide():
    return fitted(imputer(guided(sparse()), guide="X_image"))


# ---- pp.sparsify


@kind(KeyError, r"obsm\['stimg_rc'\] is missing \(found \['spatial'", r"Run `stimg.pp.rasterize` first")
def sparsify_without_a_raster(here):
    adata = slide("st")
    return adata, lambda: pp.sparsify(adata)


@kind(ValueError, r"0 observations and 12 genes; wanted at least one of each", r"Check the reader or the filter")
def sparsify_an_empty_section(here):
    adata = rastered("st")[:0].copy()
    return adata, lambda: pp.sparsify(adata)


@kind(ValueError, r"\d+ fractional values of \d+ \(for example 0\.\d+\)", r"Pass `layer=` with raw counts")
def sparsify_normalised_values(here):
    adata = scaled(rastered("st"))
    return adata, lambda: pp.sparsify(adata)


@kind(ValueError, r"no mask named 'quater'", r"Did you mean 'quarter'\? Known: checkerboard, half, holes")
def unknown_mask(here):
    adata = rastered("st")
    return adata, lambda: pp.sparsify(adata, mask="quater")


@kind(ValueError, r"mask='checkerboard' has no option \['fraction'\]; it has \['phase'\]", r"Leave them out, or take another mask")
def option_of_another_mask(here):
    adata = rastered("st")
    return adata, lambda: pp.sparsify(adata, mask="checkerboard", fraction=0.5)


@kind(ValueError, r"fraction=50 is not between 0 and 1", r"wanted the share of the lattice points to hide")
def percent_for_a_fraction(here):
    adata = rastered("st")
    return adata, lambda: pp.sparsify(adata, fraction=50)


@kind(
    ValueError, r"mask='random' hides 0 of the 64 observations of library 'D1S1'", r"wanted some hidden and some left. Change its options"
)
def no_spot_hidden(here):
    adata = rastered("st")
    return adata, lambda: pp.sparsify(adata, fraction=0.001)


@kind(
    ValueError, r"mask='holes' hides 64 of the 64 observations of library 'D1S1'", r"wanted some hidden and some left. Change its options"
)
def every_spot_hidden(here):
    adata = rastered("st")
    return adata, lambda: pp.sparsify(adata, mask="holes", radius_um=1e5)


@kind(ValueError, r"n=99 holes of radius 4 pitches do not fit beside each other; \d do", r"Ask for fewer or smaller ones")
def more_holes_than_fit(here):
    adata = rastered("st")
    return adata, lambda: pp.sparsify(adata, mask="holes", n_holes=99)


@kind(ValueError, r"phase=4 is not known", r"wanted a whole number from 0 to 3")
def fifth_phase_of_a_quarter_grid(here):
    adata = rastered("visium")
    return adata, lambda: pp.sparsify(adata, mask="quarter", phase=4)


@kind(KeyError, r"keep names \['X_pca'\], which are in none of obs, var and obsm", r"Name columns or slots that are there")
def slot_to_keep_that_is_missing(here):
    adata = rastered("st")
    return adata, lambda: pp.sparsify(adata, keep="X_pca")


# ---- tl.impute: counts and genes


@kind(KeyError, r"obsm\['stimg_rc'\] is missing \(found \['spatial'", r"Run `stimg.pp.rasterize` first")
def impute_without_a_raster(here):
    adata = slide("st", (10, 10))
    return adata, nearest(adata)


@kind(ValueError, r"0 observations and 12 genes; wanted at least one of each", r"Check the reader or the filter")
def impute_an_empty_section(here):
    adata = sparse()[:0].copy()
    return adata, nearest(adata)


@kind(ValueError, r"\d+ fractional values of \d+ \(for example 0\.\d+\)", r"Pass `layer=` with raw counts")
def impute_normalised_values(here):
    adata = scaled(sparse())
    return adata, nearest(adata)


@kind(ValueError, r"adata.X has 1 NaN or infinite values; wanted raw counts", r"Remove or repair them")
def impute_nan_counts(here):
    adata = with_nan(sparse())
    return adata, nearest(adata)


@kind(ValueError, r"11 duplicated gene names, the first is 'g'", r"Run `adata.var_names_make_unique\(\)` or add up the duplicates")
def impute_genes_of_one_name(here):
    adata = sparse()
    adata.var_names = ["g"] * adata.n_vars
    return adata, nearest(adata)


@kind(ValueError, r"1 duplicated genes asked for, the first is 'Gene00001'", r"Name each gene once")
def impute_a_gene_twice(here):
    adata = sparse()
    return adata, nearest(adata, genes=["Gene00001", "Gene00001"])


@kind(KeyError, r"1 of 1 genes are not in the object: \['ERBB_typo'\]", r"Pass names of adata.var_names")
def impute_an_unknown_gene(here):
    adata = sparse()
    return adata, nearest(adata, genes="ERBB_typo")


@kind(ValueError, r"3 of 60 observations have no counts, so nothing was measured there", r"Remove them; their places are then imputed")
def spots_without_counts(here):
    adata = sparse()
    adata.X = sp.csr_matrix(adata.X.multiply(np.arange(adata.n_obs)[:, None] > 2))
    return adata, nearest(adata)


@kind(ValueError, r"Observations by library: \{'D1S1': 9\}", r"wanted at least 10 on the raster of each. Leave these libraries out")
def nine_spots(here):
    adata = sparse()[:9].copy()
    return adata, nearest(adata)


# ---- tl.impute: places


@kind(ValueError, r"no place to predict: no lattice point inside the tissue is empty", r"Pass `targets=`, or a larger `max_gap_um=`")
def nothing_to_fill(here):
    adata = rastered("st")
    return adata, lambda: tl.impute(adata)


@kind(
    ValueError, r"no place to predict: a measurement stands at every one of the targets", r"Pass other places, or None for the empty points"
)
def targets_that_were_measured(here):
    adata = sparse()
    return adata, nearest(adata, targets=adata)


@kind(ValueError, r"no place to predict: targets is empty", r"Pass places, or None for the empty points of the raster")
def no_target(here):
    adata = sparse()
    return adata, nearest(adata, targets=np.ones((0, 2)))


@kind(ValueError, r"targets has libraries that data has not: \['D9S9'\]; data has \['D1S1'\]", r"Correct obs\['library_id'\]")
def targets_of_another_library(here):
    adata, other = sparse(), hidden()
    other.obs["library_id"] = "D9S9"
    return adata, nearest(adata, targets=other)


@kind(KeyError, r"obs\['library_id'\] is missing \(found \['donor'", r"Name the library of every place")
def targets_without_a_library(here):
    adata, other = sparse(), hidden()
    del other.obs["library_id"]
    return adata, nearest(adata, targets=other)


@kind(
    ValueError, r"1 rows of 40 with NaN or infinite values, the first is row 2", r"Give every place its \(x, y\) in full-resolution pixels"
)
def targets_with_nan(here):
    adata, other = sparse(), hidden()
    other.obsm["spatial"][2, 1] = np.nan
    return adata, nearest(adata, targets=other)


@kind(ValueError, r"targets has dtype float64 and shape \(40, 3\)", r"wanted \(n, 2\), \(x, y\) in full-resolution pixels, or an AnnData")
def targets_in_three_dimensions(here):
    adata = sparse()
    return adata, nearest(adata, targets=np.ones((40, 3)))


@kind(ValueError, r"\d+ names stand twice among the observations and the targets, such as 'D1S1", r"Rename them, or pass coordinates")
def targets_named_as_observations(here):
    adata, other = sparse(), hidden()
    other.obs_names = adata.obs_names[: other.n_obs]
    return adata, nearest(adata, targets=other)


@kind(TypeError, r"max_gap_um='wide' is a str", r"wanted a number of µm")
def text_for_a_gap(here):
    adata = sparse()
    return adata, nearest(adata, max_gap_um="wide")


# ---- tl.impute: methods and references


@kind(ValueError, r"no method of imputation named 'krigging'", r"Did you mean 'kriging'\? Known: ")
def unknown_method(here):
    adata = sparse()
    return adata, nearest(adata, method="krigging")


@kind(TypeError, r"method is the class S2SImputer; wanted a trained model", r"Make one with your data, and call its `train`")
def class_for_a_method(here):
    adata = sparse()
    return adata, nearest(adata, method=S2SImputer)


@kind(TypeError, r"method 'bare' gave a ndarray", r"wanted a `stimg.image.interpolate.Interpolated`")
def function_that_gives_an_array(here):
    def bare(measured, wanted):
        return np.zeros((len(wanted), 12))

    adata = sparse()
    return adata, nearest(adata, method=bare)


@kind(ValueError, r"method 'turned' gave values of shape \(12, 40\)", r"wanted \(40, 12\), \(places, genes asked for\)")
def function_that_gives_another_shape(here):
    def turned(measured, wanted):
        return Interpolated(np.zeros((12, len(wanted))))

    adata = sparse()
    return adata, nearest(adata, method=turned)


@kind(ValueError, r"values of method 'holed' has 40 rows of 40 with NaN", r"Let the method give numbers at all places")
def function_that_gives_nan(here):
    def holed(measured, wanted):
        return Interpolated(np.full((len(wanted), 12), np.nan))

    adata = sparse()
    return adata, nearest(adata, method=holed)


@kind(ValueError, r"method 'donor_kriging' needs sections of other donors", r"Pass them as `reference=`, or take 'ensemble'")
def no_reference(here):
    adata = sparse()
    return adata, of_donors(adata, None)


@kind(TypeError, r"reference is a str; wanted an AnnData", r"Read the file, or pass its table")
def path_for_a_reference(here):
    adata = sparse()
    return adata, of_donors(adata, "reference.h5ad")


@kind(ValueError, r"reference has libraries of data: \['D1S1'\]", r"Leave them out; it is for sections of other donors")
def reference_with_the_section_itself(here):
    adata = sparse()
    return adata, of_donors(adata, rastered("st"))


@kind(ValueError, r"reference shares no gene with data", r"wanted the same names of genes in both")
def reference_of_other_genes(here):
    adata, other = sparse(), reference()
    other.var_names = [f"ENSG{i}" for i in range(other.n_vars)]
    return adata, of_donors(adata, other)


@kind(ValueError, r"11 duplicated gene names in reference, the first is 'g'", r"Run `reference.var_names_make_unique\(\)`")
def reference_with_genes_of_one_name(here):
    adata, other = sparse(), reference()
    other.var_names = ["g"] * other.n_vars
    return adata, of_donors(adata, other)


@kind(ValueError, r"library 'D2S1' of reference has no counts; wanted measured sections", r"Check its layer, or leave it out")
def reference_without_counts(here):
    adata, other = sparse(), reference()
    other.X = other.X * 0
    return adata, of_donors(adata, other)


@kind(
    ValueError,
    r"guide='X_image' needs the features of the places too, and targets is no AnnData",
    r"Pass an AnnData with obsm\['X_image'\]",
)
def guide_without_a_table_of_places(here):
    adata = guided(sparse())
    return adata, nearest(adata, guide="X_image", method="kriging", targets=None)


@kind(KeyError, r"obsm\['X_image'\] is missing", r"Compute it for the observations of targets")
def guide_that_the_places_lack(here):
    adata = guided(sparse())
    return adata, nearest(adata, guide="X_image", method="kriging")


@kind(ValueError, r"obsm\['X_image'\] has 3 columns in data and 5 in targets", r"Compute both with one encoder")
def guide_of_another_encoder(here):
    adata = guided(sparse())
    return adata, nearest(adata, guide="X_image", method="kriging", targets=guided(hidden(), 5))


# ---- S2SImputer: data


@kind(TypeError, r"adata is a ndarray; wanted an AnnData", r"Read the file, or pass its table")
def set_up_with_an_array(here):
    return None, lambda: S2SImputer.setup_anndata(np.ones((3, 2)))


@kind(ValueError, r"\d+ fractional values of \d+ \(for example 0\.\d+\)", r"Pass `layer=` with raw counts")
def set_up_with_normalised_values(here):
    adata = scaled(sparse())
    return adata, lambda: S2SImputer.setup_anndata(adata)


@kind(
    KeyError, r"obsm\['X_image'\] is missing \(found \['spatial', 'stimg_rc'\]\)", r"Compute the features that guide the imputation first"
)
def set_up_without_the_guide(here):
    adata = sparse()
    return adata, lambda: S2SImputer.setup_anndata(adata, guide="X_image")


@kind(ValueError, r"obsm\['X_image'\] has 60 rows of 60 with NaN", r"Fill or remove these observations")
def set_up_with_a_guide_of_nan(here):
    adata = guided(sparse(), value=np.nan)
    return adata, lambda: S2SImputer.setup_anndata(adata, guide="X_image")


@kind(ValueError, r"library 'D1S1' has 9 measured points, too few to hold out 0.15 of them", r"Pass `validation=None`, or another")
def train_on_nine_spots(here):
    model = imputer(sparse()[:9].copy())
    return model.adata, lambda: fitted(model)


@kind(ValueError, r"library 'D1S1' has no counts at all", r"Check the layer")
def train_without_counts(here):
    adata = sparse()
    adata.X = adata.X * 0
    model = imputer(adata)
    return adata, lambda: fitted(model)


# ---- S2SImputer: pictures


@kind(FileNotFoundError, r"nowhere' is not a folder with pictures \(.png", r"Pass another folder, natural='skimage', or natural=None")
def no_folder_of_pictures(here):
    model = imputer(sparse(), natural=str(here.folder / "nowhere"))
    return here.folder, lambda: fitted(model)


@kind(FileNotFoundError, r"is not a folder with pictures \(.png", r"Pass another folder, natural='skimage', or natural=None")
def folder_without_a_picture(here):
    (here.folder / "readme.txt").write_text("no picture")
    model = imputer(sparse(), natural=str(here.folder))
    return here.folder, lambda: fitted(model)


@kind(ValueError, r"broken.png cannot be read as a picture", r"Take it out of the folder")
def picture_that_is_none(here):
    (here.folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n but no more")
    model = imputer(sparse(), natural=str(here.folder))
    return here.folder, lambda: fitted(model)


@kind(TypeError, r"natural=3 is a int", r"wanted 'skimage', the path of a folder as text, or None")
def number_of_pictures(here):
    adata = sparse()
    return None, lambda: imputer(adata, natural=3)


# ---- S2SImputer: places


@kind(RuntimeError, r"The model is not trained", r"Run `model.train\(\)` first")
def untrained_imputer(here):
    adata = sparse()
    return adata, nearest(adata, method=imputer(adata.copy()))


@kind(ValueError, r"adata lies on a hex lattice; the model was made for a square one", r"Train a model on such data")
def imputer_of_another_lattice(here):
    adata = sparse("visium")
    return adata, nearest(adata, method=trained(), targets=hidden("visium"))


@kind(KeyError, r"12 of 12 genes are not in the object: \['Gene00000'", r"Pass names of adata.var_names")
def imputer_of_other_genes(here):
    adata = sparse()
    adata.var_names = [f"ENSG{i}" for i in range(adata.n_vars)]
    return adata, lambda: trained().impute(adata, hidden())


@kind(ValueError, r"1 of 2 targets are outside the raster of 10 x 10", r"such as \[99, 1\]")
def places_outside_the_raster(here):
    return None, lambda: trained().impute(targets=np.array([[1, 1], [99, 1]]))


@kind(
    ValueError, r"targets is float64 of shape \(40, 2\)", r"wanted whole \(row, column\) of the raster \(n, 2\), an AnnData, 2, 4, or None"
)
def coordinates_for_lattice_points(here):
    return None, lambda: trained().impute(targets=hidden().obsm["spatial"])


@kind(ValueError, r"genes is empty", r"wanted at least one, or None for those of the model")
def no_gene_of_the_imputer(here):
    return None, lambda: trained().impute(targets=hidden(), genes=[])


@kind(ValueError, r"1 duplicated genes asked for, the first is 'Gene00001'", r"Name each gene once")
def gene_of_the_imputer_twice(here):
    return None, lambda: trained().impute(targets=hidden(), genes=["Gene00001", "Gene00001"])


@kind(
    KeyError,
    r"targets.obsm\['X_image'\] is missing \(found \[.*'stimg_rc'\]\). The model reads a guide",
    r"pass an AnnData with these features as `targets`",
)
def places_without_the_guide(here):
    return None, lambda: trained_with_guide().impute(targets=hidden())


@kind(ValueError, r"targets.obsm\['X_image'\] has 5 columns; wanted the 3 that the model reads", r"Compute them as for its training")
def places_with_another_guide(here):
    return None, lambda: trained_with_guide().impute(targets=guided(hidden(), 5))


@kind(ValueError, r"obsm\['X_image'\] has shape \(60, 3\) in data and \(40, 5\) in targets", r"Compute both with one encoder")
def table_of_places_with_another_guide(here):
    adata = guided(sparse())
    return adata, nearest(adata, method=trained_with_guide(), targets=guided(hidden(), 5))


@kind(ValueError, r"guide, which has to be known at the places too", r"Pass an AnnData with these features as `targets`")
def holes_without_the_guide(here):
    return None, lambda: trained_with_guide().impute()


# ---- S2SImputer: files


def saved(here):
    trained().save(here.folder / "model")
    return here.folder / "model"


def cut(path, n):
    path.write_bytes(path.read_bytes()[:-n])


@kind(FileNotFoundError, r"model.json is missing \(found no such folder\)", r"Pass the folder that `save` wrote")
def no_saved_imputer(here):
    return here.folder, lambda: S2SImputer.load(here.folder / "model")


@kind(ValueError, r"model.safetensors is damaged", r"Save the model again")
def truncated_weights_of_an_imputer(here):
    cut(saved(here) / "model.safetensors", 100)
    return here.folder, lambda: S2SImputer.load(here.folder / "model")


@kind(ValueError, r"model.json is damaged", r"Save the model again")
def truncated_record_of_an_imputer(here):
    cut(saved(here) / "model.json", 10)
    return here.folder, lambda: S2SImputer.load(here.folder / "model")


@kind(ValueError, r"holds a S2SImputer; wanted a STMAE", r"Load it with `stimg.model.S2SImputer.load`")
def imputer_loaded_as_another_model(here):
    path = saved(here)
    return here.folder, lambda: stimg.model.STMAE.load(path)


@kind(ValueError, r"adata lies on a hex lattice; the model was made for a square one", r"Train a model on such data")
def imputer_loaded_for_another_lattice(here):
    path, adata = saved(here), sparse("visium")
    return here.folder, lambda: S2SImputer.load(path, adata=adata)


@kind(FileExistsError, r"model exists already", r"Pass `overwrite=True`")
def saving_over_an_imputer(here):
    path = saved(here)
    return here.folder, lambda: trained().save(path)


@kind(OSError, r"model could not be written \(No space left on device\); nothing was changed", r"a folder with more free space")
def full_disk_while_an_imputer_is_saved(here):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    model = trained()
    here.patch.setattr(Path, "write_bytes", full)
    return here.folder, lambda: model.save(here.folder / "model")


@pytest.mark.parametrize("name", list(kind))
def test_bad_input(name, tmp_path, monkeypatch):
    kind[name].check(tmp_path, monkeypatch)


def test_at_least_so_many_kinds():
    assert len(kind) >= 60


def test_an_interrupted_training_keeps_the_old_weights():
    from lightning.pytorch.callbacks import Callback

    class Stop(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            raise KeyboardInterrupt

    model = fitted(imputer(sparse()))
    weights = {name: value.clone() for name, value in model.module.state_dict().items()}
    before, said = state(model.adata), model.impute(targets=hidden())
    with pytest.raises(KeyboardInterrupt):
        model.train(**{**FIT, "rng": 1}, callbacks=[Stop()])
    assert all(torch.equal(value, weights[name]) for name, value in model.module.state_dict().items())
    assert state(model.adata) == before
    for old, new in zip(said, model.impute(targets=hidden()), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_damaged_copy_leaves_the_loaded_model_alone(tmp_path):
    trained().save(tmp_path / "model")
    loaded = S2SImputer.load(tmp_path / "model", adata=sparse())
    cut(tmp_path / "model" / "model.safetensors", 100)
    np.testing.assert_array_equal(loaded.impute(targets=hidden()).values, trained().impute(targets=hidden()).values)


def test_slots_that_no_model_reads_need_not_fit():
    adata, places = sparse(), hidden()
    adata.obsm["X_pca"], places.obsm["X_pca"] = np.ones((adata.n_obs, 4)), np.ones((places.n_obs, 2))
    found = tl.impute(adata, method=trained(), targets=places)
    np.testing.assert_array_equal(found.layers["stimg_s2simputer"][adata.n_obs :], trained().impute(targets=places).values)
