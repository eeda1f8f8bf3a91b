"""Bad tables: positions, scale, counts, genes, libraries and slots."""

import anndata as ad
import numpy as np
import pytest
from _kinds import Kinds, hexagonal, model_of, plain, rastered, slide, square, train, trained

import stimg
from stimg import pp

kind = Kinds()


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


@pytest.mark.parametrize("name", list(kind))
def test_bad_input(name, tmp_path, monkeypatch):
    kind[name].check(tmp_path, monkeypatch)


def test_at_least_so_many_kinds():
    assert len(kind) >= 41
