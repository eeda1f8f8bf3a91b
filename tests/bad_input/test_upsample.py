"""Bad input of finer lattices, and of what they share with imputation."""

import numpy as np
import pytest
from _kinds import Kinds, rastered

import stimg
from stimg import tl
from stimg.image import RasterSpec

kind = Kinds()


def finer(adata, **options):
    return adata, lambda: tl.upsample(adata, **{"method": "nearest", "uncertainty": False, **options})


class Measured:
    """A model that knows the measured lattice alone."""

    def impute(self, adata, targets, *, genes):
        return np.zeros((len(targets), len(genes))), None


# ---- how fine


@kind(ValueError, r"nothing given; wanted one of", r"`factor=`, `pixel_um=` and `grid=`, which say how fine the lattice is")
def no_lattice(here):
    return finer(rastered())


@kind(ValueError, r"factor and pixel_um given", r"wanted one of")
def two_lattices(here):
    return finer(rastered(), factor=2, pixel_um=50.0)


@kind(ValueError, r"factor=0 is not usable", r"wanted a whole number")
def factor_zero(here):
    return finer(rastered(), factor=0)


@kind(ValueError, r"factor=1.5 is not usable", r"wanted a whole number")
def one_and_a_half_times_finer(here):
    return finer(rastered(), factor=1.5)


@kind(ValueError, r"factor=1 is the measured lattice", r"wanted 2 or more. `stimg.tl.impute` fills the gaps")
def factor_one(here):
    return finer(rastered(), factor=1)


@kind(ValueError, r"pixel_um=-20.0 is not above zero", r"wanted a positive number of µm")
def negative_pixels(here):
    return finer(rastered(), pixel_um=-20.0)


@kind(ValueError, r"pixel_um=150 is coarser than the pitch of library 'D1S1', 100 µm", r"`stimg.pp.resample` makes larger pixels")
def pixels_coarser_than_the_pitch(here):
    return finer(rastered(), pixel_um=150.0)


@kind(
    ValueError,
    r"about \S+ points in the tissue, \S+ values of 12 genes",
    r"Pass a smaller `factor=`, a larger `pixel_um=`, or fewer `genes=`",
)
def pixels_that_do_not_fit(here):
    return finer(rastered(), pixel_um=0.01)


# ---- grids


@kind(
    ValueError,
    r"The grid of library 'D1S1' says 50 µm, and its map 1 µm at 1 µm per pixel; the data has 0.5",
    r"Give `affine` in full-resolution pixels",
)
def grid_without_its_map(here):
    return finer(rastered(), grid=RasterSpec("square", (9, 9), 50.0))


@kind(ValueError, r"There is no place to predict: no point of the finer lattice lies between measured ones", r"Pass a larger `max_gap_um=`")
def grid_beside_the_tissue(here):
    away = RasterSpec("square", (9, 9), 50.0, affine=((100.0, 0.0, 1e6), (0.0, 100.0, 1e6)), mpp=0.5)
    return finer(rastered(), grid=away)


@kind(KeyError, r"obsm\['stimg_rc'\] is missing", r"Run `stimg.pp.rasterize` first")
def grid_without_a_raster(here):
    adata = rastered()
    grid = adata.copy()
    del grid.obsm["stimg_rc"]
    return finer(adata, grid=grid)


@kind(ValueError, r"grid has the libraries \['other'\], data has \['D1S1'\]; wanted the same", r"Pass a RasterSpec, one by library")
def grid_of_another_library(here):
    return finer(rastered(), grid={"other": RasterSpec("square", (9, 9), 50.0)})


@kind(KeyError, r"obsm\['X_image'\] is missing", r"Compute it for the observations of targets")
def grid_without_the_guide(here):
    adata = rastered()
    grid = tl.upsample(adata, factor=2, method="nearest", uncertainty=False)
    adata.obsm["X_image"] = np.ones((adata.n_obs, 2))
    return finer(adata, grid=grid, guide="X_image", method="kriging")


@kind(ValueError, r"guide='X_image' needs the features of the places too", r"Pass as `grid=` an AnnData with obsm\['X_image'\]")
def guide_without_places(here):
    return finer(rastered(), factor=2, guide="X_image", method="kriging")


# ---- models, and what both verbs ask of a method


@kind(ValueError, r"Measured has no `places`, so it predicts points of the measured lattice alone", r"Take a method by name")
def model_of_the_measured_lattice(here):
    return finer(rastered(), factor=2, method=Measured())


@kind(ValueError, r"1 of 1 targets are not on the lattice of library 'D1S1'", r"use `stimg.tl.upsample` for finer lattices")
def target_between_the_points_for_a_model(here):
    adata = rastered()
    between = adata.obsm["spatial"][:1] + 41.0
    return adata, lambda: tl.impute(adata, method=Measured(), targets=between)


@kind(ValueError, r"method has 3 parts; wanted two", r"the second of which interpolates what the first leaves")
def three_methods(here):
    return finer(rastered(), factor=2, method=("mean", "nearest", "linear"))


@kind(ValueError, r"max_gap_um=-5 is not above zero", r"wanted a positive number of µm")
def negative_gap(here):
    adata = rastered()[::2].copy()
    return adata, lambda: tl.impute(adata, method="nearest", max_gap_um=-5)


@kind(ValueError, r"n_folds=1 is not usable", r"wanted a whole number of at least 2")
def one_fold(here):
    adata = rastered()[::2].copy()
    return adata, lambda: tl.impute(adata, method="nearest", n_folds=1)


@pytest.mark.parametrize("name", list(kind))
def test_bad_input(name, tmp_path, monkeypatch):
    kind[name].check(tmp_path, monkeypatch)


def test_a_spatialdata_stays_as_it_is_where_a_lattice_does_not_fit():
    sdata = stimg.datasets.simulate(technology="visium", shape=(8, 8), n_genes=12, rng=0, as_sdata=True)
    stimg.pp.rasterize(sdata.tables["table"])
    with pytest.raises(ValueError, match="points in the tissue"):
        tl.upsample(sdata, pixel_um=0.01)
    assert list(sdata.tables) == ["table"]
    assert len(sdata.shapes) == 1
