"""Scales that are known by construction, from every source, and what contradicts itself."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import tifffile

import stimg
from stimg import pp

PITCH_PX, MPP = 160.0, 0.625  # 100 µm


def hexagons(n=9, *, pitch=PITCH_PX, library="A", turn=0.0):
    """A Visium-like section: hexagonal, Space Ranger's indices, no scale factors."""
    row, col = np.divmod(np.arange(n * n), n)
    array_col = 2 * col + row % 2
    xy = pitch * np.column_stack([array_col / 2, row * np.sqrt(3) / 2]) + 500
    c, s = np.cos(turn), np.sin(turn)
    obs = pd.DataFrame({"array_row": row, "array_col": array_col, "library_id": pd.Categorical([library] * n * n)})
    obs.index = [f"{library}{i}" for i in range(n * n)]
    adata = ad.AnnData(np.ones((n * n, 2), np.float32), obs=obs)
    adata.obsm["spatial"] = xy @ np.array([[c, s], [-s, c]])
    adata.uns["spatial"] = {library: {"images": {}, "scalefactors": {}}}
    return adata


def squares(pitch=290.0):
    row, col = np.divmod(np.arange(64), 8)
    adata = ad.AnnData(np.ones((64, 2), np.float32), obs=pd.DataFrame({"array_row": row, "array_col": col, "library_id": "A"}))
    adata.obs_names = [f"s{i}" for i in range(64)]
    adata.obsm["spatial"] = pitch * np.column_stack([col, row])
    return adata


def written(adata, library="A"):
    return adata.uns["spatial"][library]["scalefactors"]["microns_per_pixel"]


def factors(adata, **values):
    adata.uns["spatial"]["A"]["scalefactors"].update(values)
    return adata


@pytest.mark.parametrize("turn", [0.0, 0.3, np.pi / 2])
def test_from_the_pitch_of_visium(turn):
    adata = hexagons(turn=turn)
    pp.set_mpp(adata)
    assert written(adata) == pytest.approx(MPP)
    record = adata.uns["stimg"]["set_mpp"]
    assert record["used"] == {"A": "pitch"}
    assert record["sources"]["A"]["pitch"] == pytest.approx(MPP)
    assert "160 px is 100 µm" in record["words"]["A"]["pitch"]


def test_from_the_user_the_metadata_the_bins_and_the_stated_pitch():
    adata = squares()
    pp.set_mpp(adata, pitch_um=200)
    assert written(adata) == pytest.approx(200 / 290)
    adata = squares()
    pp.set_mpp(adata, mpp={"A": 0.7}, pitch_um={"A": 200})  # 1.5 % apart
    assert written(adata) == 0.7
    assert adata.uns["stimg"]["set_mpp"]["used"]["A"] == "argument"
    assert set(adata.uns["stimg"]["set_mpp"]["sources"]["A"]) == {"argument", "pitch"}
    adata = factors(hexagons(), microns_per_pixel=0.63)
    pp.set_mpp(adata)
    assert written(adata) == 0.63
    assert adata.uns["stimg"]["set_mpp"]["used"]["A"] == "metadata"
    adata = squares(pitch=16.0)
    adata.uns["spatial"] = {"A": {"scalefactors": {"bin_size_um": 8.0}}}
    pp.set_mpp(adata)
    assert written(adata) == pytest.approx(0.5)
    assert adata.uns["stimg"]["set_mpp"]["used"]["A"] == "bins"
    adata = squares()
    adata.uns["spatial"] = {"A": {"metadata": {"pitch_um": 200.0}}}
    pp.set_mpp(adata)
    assert written(adata) == pytest.approx(200 / 290)


def test_from_fiducials_and_spots_of_visium():
    adata = factors(hexagons(), fiducial_diameter_fullres=105 / 0.62, spot_diameter_fullres=65 / 0.63)
    pp.set_mpp(adata, trust="fiducials")
    assert written(adata) == pytest.approx(0.62)
    pp.set_mpp(factors(adata, microns_per_pixel=0.62), trust="spot_diameter")
    assert written(adata) == pytest.approx(0.63)


def test_from_the_image_file(tmp_path):
    path = tmp_path / "slide.tif"
    pixels = np.full((64, 64, 3), 200, np.uint8)
    tifffile.imwrite(path, pixels, resolution=(1e4 / 0.61, 1e4 / 0.61), resolutionunit="CENTIMETER", photometric="rgb", tile=(64, 64))
    adata = hexagons()
    pp.set_mpp(adata, image=path, trust="image")
    assert written(adata) == pytest.approx(0.61, rel=1e-3)
    adata = hexagons()
    adata.uns["spatial"]["A"]["metadata"] = {"source_image_path": str(path), "source_image_scale": 0.5}  # half as many pixels in the file
    with pytest.raises(ValueError, match=r"up to \d+% apart.*pitch 0\.625.*image 0\.305 .* of the image file"):
        pp.set_mpp(adata)


@pytest.mark.parametrize(
    ("trust", "mpp", "wanted"),
    [("user", 0.9, 0.9), ("metadata", None, 0.5), ("metadata", 0.9, 0.5), ("pitch", None, MPP), ("pitch", 0.9, MPP)],
)
def test_trust_decides_where_sources_differ(trust, mpp, wanted):
    adata = factors(hexagons(), microns_per_pixel=0.5)
    pp.set_mpp(adata, trust=trust, mpp=mpp)
    assert written(adata) == pytest.approx(wanted)
    assert adata.uns["stimg"]["set_mpp"]["trust"] == trust


@pytest.mark.parametrize("off", [1.06, 0.94])
def test_more_than_five_percent_is_an_error_that_names_all(off):
    adata = factors(hexagons(), microns_per_pixel=MPP * off)
    with pytest.raises(ValueError, match=r"up to 6% apart .*metadata 0\.\d+ .*pitch 0\.625 .*trust=.*'metadata', 'pitch'"):
        pp.set_mpp(adata)
    assert written(adata) == MPP * off
    assert "stimg" not in adata.uns
    pp.set_mpp(factors(adata, microns_per_pixel=MPP * 1.04))


def test_micrometres_are_named():
    adata = hexagons(pitch=100.0)
    with pytest.raises(ValueError, match=r"The coordinates look like µm, not pixels"):
        pp.set_mpp(factors(adata, microns_per_pixel=0.5))


def test_every_library_by_itself_and_nothing_half_written():
    both = ad.concat([hexagons(), hexagons(pitch=200.0, library="B")])
    pp.set_mpp(both)
    assert written(both, "A") == pytest.approx(MPP)
    assert written(both, "B") == pytest.approx(0.5)
    broken = ad.concat([hexagons(), hexagons(library="B")])
    broken.uns["spatial"] = {"A": {"scalefactors": {}}, "B": {"scalefactors": {"microns_per_pixel": 3.0}}}
    with pytest.raises(ValueError, match="library 'B': sources of the scale are up to"):
        pp.set_mpp(broken)
    assert "microns_per_pixel" not in broken.uns["spatial"]["A"]["scalefactors"]


@pytest.mark.parametrize(
    ("change", "call", "error", "words"),
    [
        (None, {}, ValueError, r"nothing states the scale.*Pass `mpp=`.*`pitch_um=`"),
        (None, {"trust": "me"}, ValueError, r"trust='me' is not known; wanted one of \['user', 'metadata'"),
        (None, {"mpp": 0.7, "trust": "metadata"}, ValueError, r"trust='metadata', but it says nothing. Found: argument 0.7"),
        (None, {"mpp": "0.7"}, TypeError, r"mpp='0.7' is a str; wanted a number"),
        (None, {"mpp": -1.0}, ValueError, r"mpp=-1.0 is not above zero"),
        (None, {"mpp": 900.0}, ValueError, r"mpp is 900 µm per pixel; wanted 0.01 .. 50"),
        (None, {"mpp": {"B": 0.7}}, KeyError, r"mpp names \['B'\], which are no libraries \(found \['A'\]\)"),
        (None, {"pitch_um": {"B": 1}}, KeyError, r"pitch_um names \['B'\]"),
        (None, {"mpp": 0.7, "library_key": "batch"}, KeyError, r"adata.obs\['batch'\] is missing"),
        (None, {"mpp": 0.7, "coordinate_system": "global"}, ValueError, r"coordinate_system='global' goes with a SpatialData"),
        (None, {"mpp": 0.7, "image": "nowhere.tif"}, FileNotFoundError, r"there is no image nowhere.tif"),
        ("empty", {"mpp": 0.7}, ValueError, r"0 observations"),
        ("bad number", {}, ValueError, r"scalefactors\['microns_per_pixel'\] is -1.0; wanted a positive number"),
        ("shape", {"mpp": 0.7}, ValueError, r"obsm\['spatial'\] has shape \(64, 3\); wanted \(64, 2\)"),
        ("text", {"mpp": 0.7}, TypeError, r"obsm\['spatial'\] has dtype <U\d+; wanted numbers"),
        ("slash", {"mpp": 0.7}, ValueError, r"library 'A/1' has a '/' in its name"),
        ("missing", {"mpp": 0.7}, ValueError, r"obs\['library_id'\] has 1 missing values"),
    ],
)
def test_bad_input_is_refused(change, call, error, words):
    adata = squares()
    if change == "empty":
        adata = adata[:0].copy()
    elif change == "bad number":
        adata.uns["spatial"] = {"A": {"scalefactors": {"microns_per_pixel": -1.0}}}
    elif change == "shape":
        adata.obsm["spatial"] = np.ones((64, 3))
    elif change == "text":
        adata.obsm["spatial"] = np.full((64, 2), "a")
    elif change == "slash":
        adata.obs["library_id"] = "A/1"
    elif change == "missing":
        adata.obs["library_id"] = ["A"] * 63 + [None]
    with pytest.raises(error, match=words):
        pp.set_mpp(adata, **call)
    assert "stimg" not in adata.uns


def test_something_else_is_refused():
    with pytest.raises(TypeError, match="data is a dict; wanted an AnnData or a SpatialData"):
        pp.set_mpp({})


def test_nan_coordinates_do_not_disturb_the_rest():
    adata = hexagons()
    adata.obsm["spatial"][3] = np.nan
    pp.set_mpp(adata)
    assert written(adata) == pytest.approx(MPP)


def test_spatialdata_in_units_of_its_element():
    sdata = stimg.datasets.simulate(technology="visium", shape=(9, 9), n_genes=5, mpp=0.5, rng=0, as_sdata=True)
    table = sdata.tables["table"]
    del table.uns["spatial"]["D1S1"]["scalefactors"]["microns_per_pixel"]
    pp.set_mpp(sdata)
    assert written(table, "D1S1") == pytest.approx(0.5)
    from spatialdata.transformations import Scale, set_transformation

    set_transformation(sdata.shapes["D1S1"], Scale([0.25, 0.25], axes=("x", "y")), "coarse")  # a unit is four pixels
    del table.uns["spatial"]["D1S1"]["scalefactors"]["microns_per_pixel"]
    pp.set_mpp(sdata, coordinate_system="coarse")
    assert written(table, "D1S1") == pytest.approx(0.5)
    assert table.uns["stimg"]["set_mpp"]["sources"]["D1S1"]["pitch"] == pytest.approx(2.0)
    assert table.uns["stimg"]["set_mpp"]["coordinate_system"] == {"D1S1": "coarse"}
    set_transformation(sdata.shapes["D1S1"], Scale([0.49, 0.49], axes=("x", "y")), "um")  # 2 % off
    pp.set_mpp(sdata, coordinate_system="D1S1", trust="coordinate_system")
    assert written(table, "D1S1") == pytest.approx(0.49)
    with pytest.raises(KeyError, match="has no transformation to 'nowhere'"):
        pp.set_mpp(sdata, coordinate_system="nowhere")


@pytest.mark.data
@pytest.mark.parametrize(("read", "section", "wanted"), [("her2st", "C2", 0.689), ("dlpfc", "151673", 0.7245), ("mob", "1", 4.37)])
def test_real_sections(mirror, read, section, wanted):
    adata = getattr(stimg.datasets, read)(section)
    (library,) = adata.uns["spatial"]
    del adata.uns["spatial"][library]["scalefactors"]["microns_per_pixel"]
    pp.set_mpp(adata)
    assert written(adata, library) == pytest.approx(wanted, rel=2e-3)
