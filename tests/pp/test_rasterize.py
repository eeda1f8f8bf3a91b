"""``pp.rasterize``: round trips on made lattices, every error with its measured value."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from _lattices import make, spec_of, square, visium
from hypothesis import given, settings
from hypothesis import strategies as st

import stimg.pp as pp
from stimg.data.slots import raster_libraries


def round_trip(adata, lib="A"):
    """Largest distance in µm between the observations and the centres of their raster points."""
    library = raster_libraries(adata)[lib]
    yx = adata.obsm["spatial"][library.rows][:, ::-1]
    return np.linalg.norm(library.spec.centres_px(library.rc) - yx, axis=1).max(initial=0) * library.spec.mpp


@pytest.mark.parametrize("first_row", [0, 1, 2, 7])
def test_visium_is_kept_as_hex(first_row):
    adata = visium(first_row=first_row)
    pp.rasterize(adata)
    spec, rc = spec_of(adata), adata.obsm["stimg_rc"]
    assert rc.dtype == np.int32
    assert (spec.lattice, spec.source, spec.pitch_um) == ("hex", "array", 100.0)
    assert spec.mpp == pytest.approx(100 / 138)
    assert (rc[:, 0] == adata.obs["array_row"] - adata.obs["array_row"].min()).all()
    odd = adata.obs["array_row"].to_numpy() % 2
    assert ((rc[:, 0] % 2 == spec.hex_parity) == (odd == 1)).all()  # odd array rows are the shifted ones
    assert round_trip(adata) < 1e-6
    assert spec.residual_um < 1e-6


def test_square_array_with_holes():
    adata = square()
    pp.rasterize(adata, pitch_um=200.0)
    spec = spec_of(adata)
    assert (spec.lattice, spec.origin) == ("square", (5, 7))
    assert (adata.obsm["stimg_rc"] == adata.obs[["array_row", "array_col"]].to_numpy() - [5, 7]).all()
    assert spec.mpp == pytest.approx(200 / 290)
    assert np.allclose(spec.affine, [[290, 0, 5 * 290], [0, 290, 7 * 290]])


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**31),
    st.booleans(),
    st.integers(0, 3),
    st.floats(-np.pi, np.pi),
    st.floats(3, 400),
    st.sampled_from([0.0, 0.1]),
    st.booleans(),
)
def test_round_trip_of_any_lattice(seed, is_hex, first_row, turn, pitch, jitter, sheared):
    rng = np.random.default_rng(seed)
    base = visium(first_row=first_row, pitch=1.0, seed=seed) if is_hex else square(pitch=1.0, seed=seed, first=(first_row, 2))
    linear = (
        pitch
        * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        @ (np.array([[1, 0.1], [0, 1.1]]) if sheared else np.eye(2))
    )
    xy = base.obsm["spatial"] @ linear.T + rng.normal(scale=jitter / 3 * pitch, size=(base.n_obs, 2))
    adata = make(xy, base.obs["array_row"], base.obs["array_col"])
    pp.rasterize(adata, pitch_um=100.0)
    assert round_trip(adata) == pytest.approx(spec_of(adata).residual_um, abs=1e-6)
    assert spec_of(adata).residual_um < 0.6 * 100
    if not jitter:
        assert spec_of(adata).residual_um < 1e-6
    free = adata.copy()
    pp.rasterize(free, pitch_um=100.0, mpp=spec_of(adata).mpp, source="coordinates")
    assert round_trip(free) <= 60.0
    assert len(np.unique(free.obsm["stimg_rc"], axis=0)) == free.n_obs


def test_free_coordinates_agree_with_array_indices():
    adata = visium(turn=0.1)
    pp.rasterize(adata)
    with_array = spec_of(adata).lattice_points(adata.obsm["stimg_rc"])
    del adata.obs["array_row"], adata.obs["array_col"]
    pp.rasterize(adata, pitch_um=100)
    found = spec_of(adata).lattice_points(adata.obsm["stimg_rc"])
    assert spec_of(adata).source == "coordinates"
    assert np.allclose(found - found[0], with_array - with_array[0])


def test_checkerboard_is_turned_and_can_stay_upright():
    row, col = np.nonzero(np.add.outer(np.arange(20), np.arange(20)) % 2 == 0)
    adata = make(np.stack([col * 21.6, row * 24.0], axis=1), row, col)
    pp.rasterize(adata, mpp=4.6)
    spec = spec_of(adata)
    assert spec.lattice == "square"
    assert spec.pitch_um == pytest.approx(4.6 * np.sqrt(2 * 21.6 * 24))
    assert round_trip(adata) < 1e-6
    pp.rasterize(adata, mpp=4.6, lattice="square")
    assert spec_of(adata).shape == (20, 20)
    assert round_trip(adata) < 1e-6


def test_bins():
    adata = square(rows=30, cols=20, pitch=29.3, factors={"bin_size_um": 8.0, "microns_per_pixel": 8 / 29.3, "spot_diameter_fullres": 29.3})
    pp.rasterize(adata)
    assert (spec_of(adata).source, spec_of(adata).pitch_um) == ("bins", 8.0)
    adata = square(rows=30, cols=20, pitch=29.3)
    pp.rasterize(adata, source="bins", pitch_um=8.0)
    assert spec_of(adata).source == "bins"


def naive_cells(xy, step):
    """Bin index of every cell by a loop."""
    return np.array([[int(np.floor(y / step)), int(np.floor(x / step))] for x, y in xy])


@pytest.mark.parametrize("collision", ["nearest", "sum"])
def test_cells_against_a_loop(collision):
    rng = np.random.default_rng(3)
    adata = make(rng.uniform(-50, 400, (300, 2)))
    pp.rasterize(adata, source="cells", pixel_um=10.0, mpp=0.5, collision=collision)
    spec, rc = spec_of(adata), adata.obsm["stimg_rc"]
    bins = naive_cells(adata.obsm["spatial"], 20.0)
    assert spec.origin == tuple(bins.min(axis=0))
    expected = bins - bins.min(axis=0)
    if collision == "nearest":
        centre = (bins + 0.5) * 20.0
        distance = np.linalg.norm(adata.obsm["spatial"][:, ::-1] - centre, axis=1)
        for point in np.unique(bins, axis=0):
            here = np.flatnonzero((bins == point).all(axis=1))
            expected[np.setdiff1d(here, here[np.argmin(distance[here])])] = -1
    assert (rc == expected).all()
    assert spec.residual_um <= 10 / np.sqrt(2)
    assert round_trip(adata) == pytest.approx(spec.residual_um)
    with pytest.raises(ValueError, match=rf"{300 - len(np.unique(bins, axis=0))} of 300 observations fall on an occupied"):
        pp.rasterize(adata, source="cells", pixel_um=10.0, mpp=0.5)


def test_cells_in_the_wrong_unit():
    xy = np.random.default_rng(0).uniform(0, 300, (2000, 2))  # µm, cells about 3.4 µm apart
    with pytest.raises(ValueError, match=r"nearest cells is 0\.6\d+ µm at 0\.2125"):
        pp.rasterize(make(xy), pixel_um=8.0, mpp=0.2125, collision="sum")


def test_libraries_are_placed_apart_and_nothing_is_written_on_failure():
    a, b = visium(lib="A"), square(lib="B")
    both = ad.concat([a, b], index_unique="-", uns_merge="unique")
    with pytest.raises(KeyError, match=r"obs\['slide'\] is missing"):
        pp.rasterize(both, library_key="slide")
    with pytest.raises(ValueError, match="library 'B': nothing states the scale"):
        pp.rasterize(both)
    assert "stimg_rc" not in both.obsm
    pp.rasterize(both, pitch_um={"B": 200.0})
    found = raster_libraries(both)
    assert list(found) == ["A", "B"]
    assert [found[n].spec.lattice for n in found] == ["hex", "square"]
    assert max(round_trip(both, "A"), round_trip(both, "B")) < 1e-6
    with pytest.raises(KeyError, match="no libraries"):
        pp.rasterize(both, pitch_um={"C": 200.0})


def test_missing_library_column_is_written_for_one_library():
    adata = visium()
    del adata.obs["library_id"]
    pp.rasterize(adata)
    assert list(adata.obs["library_id"].cat.categories) == ["A"]
    del adata.obs["library_id"], adata.uns["spatial"]
    with pytest.raises(KeyError, match="has 0 libraries"):
        pp.rasterize(adata)


def test_spec_survives_files(tmp_path):
    adata = visium()
    pp.rasterize(adata)
    adata.write_h5ad(tmp_path / "a.h5ad")
    again = ad.read_h5ad(tmp_path / "a.h5ad")
    assert raster_libraries(again)["A"].spec == spec_of(adata)
    part = again[::3].copy()
    assert (raster_libraries(part)["A"].rc == adata.obsm["stimg_rc"][::3]).all()


def test_one_spot():
    adata = make([[500.0, 700.0]], [4], [9])
    with pytest.raises(ValueError, match="Pass `mpp=`"):
        pp.rasterize(adata, pitch_um=200.0)
    pp.rasterize(adata, pitch_um=200.0, mpp=0.5)
    assert spec_of(adata).shape == (1, 1)
    assert np.allclose(spec_of(adata).affine, [[400, 0, 700], [0, 400, 500]])
    with pytest.raises(ValueError, match="1 observations are too few"):
        pp.rasterize(adata, source="coordinates", pitch_um=200.0, mpp=0.5)


def test_one_row_of_spots_and_no_coordinates():
    adata = make(np.c_[290.0 * np.arange(5), np.full(5, 40.0)], np.full(5, 3), np.arange(5))
    pp.rasterize(adata, pitch_um=200.0)
    assert np.allclose(spec_of(adata).affine, [[290, 0, 40], [0, 290, 0]])
    adata = visium()
    del adata.obsm["spatial"]
    pp.rasterize(adata)
    assert spec_of(adata).lattice == "hex"
    assert np.allclose(spec_of(adata).affine, [[100, 0, 0], [0, 100, 0]])


def swap(adata):
    adata.obsm["spatial"] = adata.obsm["spatial"][:, ::-1].copy()
    return adata


def edit(adata, **obs):
    for key, value in obs.items():
        adata.obs[key] = value
    return adata


def shuffled(adata):
    adata.obsm["spatial"] = np.random.default_rng(0).permutation(adata.obsm["spatial"])
    return adata


def with_nan(adata):
    adata.obsm["spatial"][4, 0] = np.nan
    return adata


def duplicated(adata):
    adata.obsm["spatial"][1] = adata.obsm["spatial"][0]
    return edit(
        adata,
        array_row=adata.obs["array_row"].to_numpy()[[0, 0, *range(2, adata.n_obs)]],
        array_col=adata.obs["array_col"].to_numpy()[[0, 0, *range(2, adata.n_obs)]],
    )


def scaled(adata, factor):
    adata.obsm["spatial"] = adata.obsm["spatial"] * factor
    return adata


def renamed(adata):
    adata.obs_names = ["same", "same", *adata.obs_names[2:]]
    return adata


def half_nan(adata):
    return edit(adata, library_id=pd.Categorical([None, *["A"] * (adata.n_obs - 1)]))


def mixed():
    a, b = visium(rows=10, cols=10, holes=0), square(rows=10, cols=10, pitch=138.0, holes=0)
    b.obsm["spatial"] += [9000, 0]
    return ad.concat([a, b], index_unique="-", uns_merge="unique")


VISIUM = {"tissue_hires_scalef": 0.15, "spot_diameter_fullres": 96.4}


@pytest.mark.parametrize(
    ("adata", "options", "error", "message"),
    [
        (lambda: visium()[:0].copy(), {}, ValueError, "0 observations"),
        (lambda: swap(visium()), {}, ValueError, r"opposite handedness.*determinant -.*x and y are swapped"),
        (lambda: swap(square()), {"pitch_um": 200}, ValueError, r"opposite handedness.*x and y are swapped"),
        (lambda: scaled(visium(), [-1, 1]), {}, ValueError, "One axis is mirrored"),
        (lambda: shuffled(visium()), {}, ValueError, r"do not lie on the hex lattice.*root-mean-square distance \d+\.\d+ pitches"),
        (lambda: with_nan(visium()), {}, ValueError, "1 rows of .* NaN .* row 4"),
        (
            lambda: duplicated(visium()),
            {},
            ValueError,
            r"1 of \d+ observations fall .* 'b0' and 'b1' .*duplicate spots.*collision='nearest'",
        ),
        (lambda: renamed(visium()), {}, ValueError, "1 duplicated barcodes, the first is 'same'"),
        (lambda: half_nan(visium()), {}, ValueError, r"obs\['library_id'\] has 1 missing"),
        (lambda: square(), {}, ValueError, "nothing states the scale"),
        (lambda: visium(factors={"microns_per_pixel": 0.5}), {}, ValueError, "0.7246 µm per pixel, but .* says 0.5"),
        (lambda: scaled(visium(factors={"microns_per_pixel": 100 / 138}), 100 / 138), {}, ValueError, "look like µm"),
        (lambda: scaled(visium(factors=VISIUM), 100 / 138), {}, ValueError, "1.04 of scalefactors"),
        (lambda: scaled(visium(factors=VISIUM), 0.15), {}, ValueError, "0.215 of scalefactors.*divide them by tissue_hires_scalef = 0.15"),
        (lambda: scaled(visium(factors={"microns_per_pixel": 100 / 138, **VISIUM}), 0.15), {}, ValueError, "pixels of the hires image"),
        (lambda: visium(), {"mpp": 60.0}, ValueError, "60 µm per pixel; wanted 0.01 .. 50"),
        (lambda: visium(), {"lattice": "square", "mpp": 0.72}, ValueError, "by a factor of 1.73"),
        (lambda: square(), {"lattice": "hex", "pitch_um": 200}, ValueError, "both|one parity"),
        (lambda: square(holes=0), {"source": "coordinates", "lattice": "hex", "pitch_um": 200}, ValueError, "do not lie on a hex lattice"),
        (mixed, {"mpp": 0.7}, ValueError, "two kinds of lattice in one library"),
        (mixed, {"mpp": 0.7, "source": "coordinates"}, ValueError, "two kinds of lattice in one library"),
        (lambda: edit(square(), array_row=np.nan), {"source": "array"}, ValueError, "have no array index"),
        (lambda: edit(square(), array_row="A1"), {"pitch_um": 200}, ValueError, "no numbers, the first is 'A1'"),
        (lambda: edit(square(), array_row=0.25), {"pitch_um": 200}, ValueError, "no whole numbers"),
        (lambda: visium(lib="a/b"), {}, ValueError, "'/'"),
        (lambda: make(np.random.default_rng(0).uniform(size=(50, 2))), {"mpp": 1}, ValueError, "source='cells'"),
        (lambda: visium(), {"source": "cells"}, ValueError, "pixel_um"),
        (lambda: visium(), {"pixel_um": 8, "source": "array"}, ValueError, "pixel_um=8"),
        (lambda: visium(), {"collision": "first"}, ValueError, "collision='first'"),
    ],
)
def test_errors_state_what_was_found(adata, options, error, message):
    adata = adata()
    with pytest.raises(error, match=message):
        pp.rasterize(adata, **options)
    assert "stimg_rc" not in adata.obsm
    assert "stimg" not in adata.uns


@pytest.mark.parametrize("dtype", ["Int64", "str", "category", "float32"])
def test_indices_of_any_type(dtype):
    adata = square()
    pp.rasterize(adata, pitch_um=200.0)
    rc = adata.obsm["stimg_rc"].copy()
    adata.obs["array_row"] = (
        adata.obs["array_row"].astype(str).astype("category") if dtype == "category" else adata.obs["array_row"].astype(dtype)
    )
    pp.rasterize(adata, pitch_um=200.0)
    assert (adata.obsm["stimg_rc"] == rc).all()


def test_views_become_copies_and_parents_stay():
    adata = square()
    view = adata[5:]
    with pytest.warns(ad.ImplicitModificationWarning, match="of view"):
        pp.rasterize(view, pitch_um=200.0)
    assert "stimg" in view.uns
    assert "stimg" not in adata.uns
    assert "stimg_rc" not in adata.obsm


def test_turned_by_a_quarter_is_no_error_and_a_mirror_is_allowed_on_request():
    adata = visium(turn=np.pi / 2)
    pp.rasterize(adata)
    assert round_trip(adata) < 1e-6
    adata = scaled(visium(), [-1, 1])
    pp.rasterize(adata, allow_mirror=True)
    assert round_trip(adata) < 1e-6


def test_nearest_keeps_the_nearest_of_duplicates():
    adata = duplicated(square())
    adata.obsm["spatial"][0] += 20.0
    pp.rasterize(adata, pitch_um=200.0, collision="nearest")
    assert adata.obsm["stimg_rc"][0].tolist() == [-1, -1]
    assert len(raster_libraries(adata)["A"].rows) == adata.n_obs - 1
    assert spec_of(adata).residual_um < 1e-6
    pp.rasterize(adata, pitch_um=200.0, collision="sum")
    assert (adata.obsm["stimg_rc"][0] == adata.obsm["stimg_rc"][1]).all()


def test_coordinates_outside_the_image():
    adata = visium(images={"hires": np.zeros((100, 400, 3))}, factors={"tissue_hires_scalef": 0.05})
    with pytest.raises(ValueError, match=r"outside the image of 8000 x 2000 px"):
        pp.rasterize(adata)


def test_import_is_light():
    import subprocess
    import sys

    code = "import sys, stimg.pp, stimg.data.slots; print([m for m in ('torch', 'scvi', 'squidpy', 'spatialdata', 'matplotlib') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
