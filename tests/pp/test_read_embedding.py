"""Embeddings from files that the test writes as TRIDENT, HEST, LazySlide and AnnData do, in another order than the observations."""

import logging

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import zarr

import stimg
from stimg.pp._embedding_layouts import read_embeddings

WIDTH = 5
SIDE = 224
"""Side of a tile in pixels of level 0."""


@pytest.fixture
def section():
    """24 spots with 0.5 µm per full-resolution pixel."""
    adata = stimg.datasets.simulate(technology="visium", shape=(4, 6), n_genes=8, mpp=0.5, rng=0)
    return adata


def table(adata, seed=0, extra=7):
    """Embeddings of the observations and of ``extra`` tiles elsewhere, shuffled: values, (x, y) of the centres, names, and each observation's row."""
    rng = np.random.default_rng(seed)
    n = adata.n_obs + extra
    xy = np.asarray(adata.obsm["spatial"])
    centres = np.vstack([xy, xy.max(axis=0) + 500 * (1 + np.arange(extra))[:, None]])
    names = [*adata.obs_names, *(f"other{i}" for i in range(extra))]
    order = rng.permutation(n)
    values = rng.normal(size=(n, WIDTH)).astype(np.float32)
    at = np.argsort(order)[: adata.n_obs]
    return values, centres[order], np.asarray(names, dtype=object)[order], at


def trident(path, values, centres, *, attrs=None, side=SIDE, features="features"):
    with h5py.File(path, "w") as file:
        file.create_dataset(features, data=values)
        coords = file.create_dataset("coords", data=np.floor(centres - side / 2).astype(np.int64))
        standard = {
            "patch_size": 224,
            "patch_size_level0": side,
            "level0_magnification": 20,
            "target_magnification": 20,
            "overlap": 0,
            "name": "slide",
        }
        coords.attrs.update({**standard, **(attrs or {})})
    return path


def hest(path, values, centres, names, *, side=SIDE, coords=True, barcodes="barcodes"):
    with h5py.File(path, "w") as file:
        file.create_dataset("embeddings", data=values)
        file.create_dataset(barcodes, data=np.asarray(names, dtype="S")[:, None])
        if coords:
            file.create_dataset("coords", data=np.floor(centres - side // 2).astype(np.int64))
    return path


def lazyslide(path, values, centres, *, side=SIDE, mpp=0.5, shuffle=True, more=False):
    import geopandas as gpd
    from shapely import box
    from spatialdata import SpatialData
    from spatialdata.models import ShapesModel, TableModel

    tile_id = np.arange(len(values)) + 100
    corners = centres - side / 2
    tiles = gpd.GeoDataFrame({"tile_id": tile_id, "tissue_id": 0, "geometry": [box(x, y, x + side, y + side) for x, y in corners]})
    order = np.random.default_rng(1).permutation(len(values)) if shuffle else np.arange(len(values))
    obs = pd.DataFrame({"tile_id": tile_id[order], "library_id": pd.Categorical(["tiles"] * len(values))}, index=tile_id[order].astype(str))
    features = TableModel.parse(ad.AnnData(values[order], obs=obs), region="tiles", region_key="library_id", instance_key="tile_id")
    sdata = SpatialData(shapes={"tiles": ShapesModel.parse(tiles)}, tables={"uni_tiles": features})
    if more:
        sdata.tables["other_tiles"] = features.copy()
    spec = {"height": side, "width": side, "stride_height": side, "stride_width": side, "mpp": mpp, "ops_level": 0, "ops_downsample": 1.0}
    sdata.attrs["tile_spec"] = {"tiles": {**spec, "base_level": 0, "base_downsample": 1.0, "tissue_name": "tissues"}}
    sdata.attrs["slide_properties"] = {"mpp": mpp, "shape": [1000, 1000]}
    sdata.write(path)
    return path


def test_trident_by_position(section, tmp_path):
    values, centres, _, at = table(section)
    stimg.pp.read_embedding(section, trident(tmp_path / "a.h5", values, centres), key_added="X_uni")
    np.testing.assert_array_equal(section.obsm["X_uni"], values[at])
    assert section.obsm["X_uni"].dtype == np.float32
    record = section.uns["stimg"]["X_uni"]["libraries"]["D1S1"]
    assert (record["layout"], record["matched_by"], record["tiles"]) == ("trident", "position", 31)
    assert (record["tile_um"], record["mpp"]) == (112.0, 0.5)
    assert 0 < record["largest_distance_um"] < 0.5 * np.sqrt(2)
    assert stimg.bench.recall(section, only=["X_uni"]) == []


def test_trident_scale_is_computed_from_the_slide_where_that_is_known(section, tmp_path):
    """40x is nominal: 448 pixels of 0.5 µm are 224 µm, whatever the magnification says."""
    values, centres, _, at = table(section)
    path = trident(tmp_path / "a.h5", values, centres, side=448, attrs={"level0_magnification": 40, "target_magnification": 20})
    stimg.pp.read_embedding(section, path, key_added="X_a", mpp=1.0, tile_um=224.0)
    np.testing.assert_array_equal(section.obsm["X_a"], values[at])
    with pytest.raises(ValueError, match=r"a.h5: mpp is 1 µm, wanted 0.5 \(more than 5 % apart\)"):
        stimg.pp.read_embedding(section, path, key_added="X_b", mpp=0.5)
    with pytest.raises(ValueError, match=r"tile_um is 224 µm, wanted 112"):
        stimg.pp.read_embedding(section, path, key_added="X_b", tile_um=112.0)
    assert "X_b" not in section.obsm


@pytest.mark.parametrize("barcodes", ["barcodes", "barcode"])
def test_hest_by_name(section, tmp_path, barcodes):
    values, centres, names, at = table(section)
    stimg.pp.read_embedding(section, hest(tmp_path / "a.h5", values, centres, names, barcodes=barcodes), key_added="X_uni")
    np.testing.assert_array_equal(section.obsm["X_uni"], values[at])
    record = section.uns["stimg"]["X_uni"]["libraries"]["D1S1"]
    assert (record["layout"], record["matched_by"]) == ("hest", "name")
    assert record["largest_distance_um"] < 1.0


def test_hest_without_coordinates(section, tmp_path):
    values, centres, names, at = table(section)
    stimg.pp.read_embedding(section, hest(tmp_path / "a.h5", values, centres, names, coords=False), key_added="X_uni", mpp=0.5, tile_um=112)
    np.testing.assert_array_equal(section.obsm["X_uni"], values[at])
    record = section.uns["stimg"]["X_uni"]["libraries"]["D1S1"]
    assert (record["tile_um"], record["mpp"], record["largest_distance_um"]) == (112, 0.5, "none")


@pytest.mark.parametrize("shuffle", [False, True])
def test_lazyslide(section, tmp_path, shuffle):
    values, centres, _, at = table(section)
    stimg.pp.read_embedding(section, lazyslide(tmp_path / "slide.zarr", values, centres, shuffle=shuffle), key_added="X_uni")
    np.testing.assert_array_equal(section.obsm["X_uni"], values[at])
    record = section.uns["stimg"]["X_uni"]["libraries"]["D1S1"]
    assert (record["layout"], record["matched_by"], record["mpp"], record["tile_um"]) == ("lazyslide", "position", 0.5, 112.0)


def test_lazyslide_with_several_tables_and_another_scale(section, tmp_path):
    values, centres, _, at = table(section)
    path = lazyslide(tmp_path / "slide.zarr", values, centres, more=True)
    with pytest.raises(ValueError, match=r"2 tables that annotate tiles: \['other_tiles', 'uni_tiles'\]. Pass `features_key=`"):
        stimg.pp.read_embedding(section, path, key_added="X_uni")
    with pytest.raises(KeyError, match=r"no table 'conch_tiles' annotates tiles"):
        stimg.pp.read_embedding(section, path, key_added="X_uni", features_key="conch_tiles")
    stimg.pp.read_embedding(section, path, key_added="X_uni", features_key="uni_tiles")
    np.testing.assert_array_equal(section.obsm["X_uni"], values[at])
    other = lazyslide(tmp_path / "other.zarr", values, centres, mpp=0.25)
    with pytest.raises(ValueError, match=r"the object has 0.5 µm per pixel of level 0 \(slide_mpp / scale\), the file 0.25"):
        stimg.pp.read_embedding(section, other, key_added="X_b")


@pytest.mark.parametrize("ending", ["h5ad", "zarr"])
@pytest.mark.parametrize("slot", [None, "X_uni"])
def test_anndata_by_name(section, tmp_path, ending, slot):
    values, _, names, at = table(section)
    made = ad.AnnData(values if slot is None else np.zeros((len(values), 1)), obs=pd.DataFrame(index=names.astype(str)))
    if slot is not None:
        made.obsm[slot] = values
    path = tmp_path / f"a.{ending}"
    made.write_h5ad(path) if ending == "h5ad" else made.write_zarr(path)
    stimg.pp.read_embedding(section, path, key_added="X_uni", features_key=slot)
    np.testing.assert_array_equal(section.obsm["X_uni"], values[at])
    assert section.uns["stimg"]["X_uni"]["libraries"]["D1S1"]["layout"] == "anndata"
    with pytest.raises(KeyError, match=r"obsm\['X_conch'\] is missing"):
        stimg.pp.read_embedding(section, path, key_added="X_b", features_key="X_conch")


def test_anndata_of_tiles_by_position(section, tmp_path):
    """As LazySlide gives a feature table on its own: corners in ``obsm["spatial"]``, the tile in ``uns``."""
    values, centres, _, at = table(section)
    made = ad.AnnData(values, obsm={"spatial": centres - SIDE / 2})
    made.uns["tile_spec"] = {"width": 224, "height": 224, "base_downsample": 1.0, "mpp": 0.5}
    made.uns["slide_properties"] = {"mpp": 0.5}
    made.write_h5ad(tmp_path / "a.h5ad")
    stimg.pp.read_embedding(section, tmp_path / "a.h5ad", key_added="X_uni")
    np.testing.assert_array_equal(section.obsm["X_uni"], values[at])


def test_several_libraries_each_with_its_file(tmp_path):
    adata = stimg.datasets.simulate(technology="visium", shape=(4, 5), n_genes=8, mpp=0.5, n_donors=2, rng=0)
    adata = adata[np.random.default_rng(0).permutation(adata.n_obs)].copy()
    paths, wanted = {}, np.zeros((adata.n_obs, WIDTH), dtype=np.float32)
    for i, library in enumerate(adata.obs["library_id"].unique()):
        mine = (adata.obs["library_id"] == library).to_numpy()
        values, centres, _, at = table(adata[mine], seed=i)
        paths[library] = trident(tmp_path / f"{library}.h5", values, centres)
        wanted[mine] = values[at]
    stimg.pp.read_embedding(adata, paths, key_added="X_uni")
    np.testing.assert_array_equal(adata.obsm["X_uni"], wanted)
    with pytest.raises(ValueError, match="One file for 2 libraries"):
        stimg.pp.read_embedding(adata, paths["D1S1"], key_added="X_b")
    with pytest.raises(KeyError, match=r"no file for library 'D1S1' \(found \['D2S1'\]\)"):
        stimg.pp.read_embedding(adata, {"D2S1": paths["D2S1"]}, key_added="X_b")


def test_scale_between_coordinates_and_slide(section, tmp_path):
    """obsm["spatial"] in pixels of an image that is half as fine as the slide."""
    values, centres, _, at = table(section)
    path = trident(tmp_path / "a.h5", values, 2 * centres)
    with pytest.raises(ValueError, match=r"24 of 24 observations have no tile within 5 µm .*Check `scale=`"):
        stimg.pp.read_embedding(section, path, key_added="X_uni")
    stimg.pp.read_embedding(section, path, key_added="X_uni", scale=2.0)
    np.testing.assert_array_equal(section.obsm["X_uni"], values[at])
    assert section.uns["stimg"]["X_uni"]["libraries"]["D1S1"]["mpp"] == 0.25


def test_swapped_axes_are_said(section, tmp_path):
    values, centres, _, _ = table(section, extra=0)
    section.obsm["spatial"] = np.asarray(section.obsm["spatial"])[:, ::-1].copy()
    with pytest.raises(
        ValueError, match=r"observations have no tile .*With x and y swapped all have one: obsm\['spatial'\] must be \(x, y\)"
    ):
        stimg.pp.read_embedding(section, trident(tmp_path / "a.h5", values, centres), key_added="X_uni")


def test_missing_tiles_are_counted(section, tmp_path):
    values, centres, names, at = table(section)
    kept = np.setdiff1d(np.arange(len(values)), at[:3])
    with pytest.raises(ValueError, match=r"3 of 24 observations have no tile within 5 µm \(the nearest are up to"):
        stimg.pp.read_embedding(section, trident(tmp_path / "a.h5", values[kept], centres[kept]), key_added="X_uni")
    with pytest.raises(
        ValueError, match=rf"3 of 24 observations have no embedding, the first is '{section.obs_names[0]}' \(the file has 28 names"
    ):
        stimg.pp.read_embedding(section, hest(tmp_path / "b.h5", values[kept], centres[kept], names[kept]), key_added="X_uni")
    assert "X_uni" not in section.obsm


def test_one_tile_for_two_observations_is_refused(section, tmp_path):
    values, centres, _, _ = table(section)
    xy = np.asarray(section.obsm["spatial"]).copy()
    xy[1] = xy[0] + 2
    section.obsm["spatial"] = xy
    with pytest.raises(ValueError, match=r"1 of 24 observations share a tile with another. Lower `tolerance_um=`"):
        stimg.pp.read_embedding(section, trident(tmp_path / "a.h5", values, centres), key_added="X_uni")


def test_names_that_match_the_wrong_places(section, tmp_path):
    values, centres, names, _ = table(section)
    with pytest.raises(ValueError, match=r"names match, but \d+ of 24 tiles do not lie where their observations do"):
        stimg.pp.read_embedding(section, hest(tmp_path / "a.h5", values, centres[:, ::-1], names), key_added="X_uni")
    with pytest.raises(ValueError, match=r"names match, but 24 of 24 tiles"):
        stimg.pp.read_embedding(section, hest(tmp_path / "b.h5", values, centres, names), key_added="X_uni", tile_um=400.0)


def test_values_that_are_refused(section, tmp_path):
    values, centres, names, _ = table(section)
    holes = values.copy()
    holes[[3, 5], 2] = np.nan
    with pytest.raises(ValueError, match="the embedding has 2 rows of 31 with NaN or infinite values, the first is row 3"):
        stimg.pp.read_embedding(section, trident(tmp_path / "a.h5", holes, centres), key_added="X_uni")
    again = np.vstack([centres[:-1], centres[:1]])
    with pytest.raises(ValueError, match="1 of 31 tiles stand at coordinates of another tile"):
        stimg.pp.read_embedding(section, trident(tmp_path / "b.h5", values, again), key_added="X_uni")
    twice = names.copy()
    twice[1] = twice[0]
    with pytest.raises(ValueError, match=r"1 duplicated names in .*c.h5, the first is"):
        stimg.pp.read_embedding(section, hest(tmp_path / "c.h5", values, centres, twice), key_added="X_uni")
    with pytest.raises(ValueError, match="holds 31 embeddings and 30 corners"):
        stimg.pp.read_embedding(section, trident(tmp_path / "d.h5", values, centres[:-1]), key_added="X_uni")
    with pytest.raises(ValueError, match=r"features of shape \(0, 5\); wanted \(tiles, width\)"):
        stimg.pp.read_embedding(section, trident(tmp_path / "e.h5", values[:0], centres[:0]), key_added="X_uni")
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["features"], file["coords"] = np.full((3, 2), b"a"), np.zeros((3, 2))
    with pytest.raises(ValueError, match=r"features of dtype \|S1; wanted numbers"):
        stimg.pp.read_embedding(section, tmp_path / "f.h5", key_added="X_uni")


def test_files_that_are_damaged_or_of_another_kind(section, tmp_path):
    values, centres, _, _ = table(section)
    path = trident(tmp_path / "a.h5", values, centres)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"a.h5 cannot be read as HDF5 \(.*\). It is damaged, was not written to its end"):
        stimg.pp.read_embedding(section, path, key_added="X_uni")
    (tmp_path / "b.h5").write_text("barcode,x,y\n")
    with pytest.raises(ValueError, match=r"b.h5 cannot be read as HDF5"):
        stimg.pp.read_embedding(section, tmp_path / "b.h5", key_added="X_uni")
    with pytest.raises(FileNotFoundError, match=r"there is no .*nothing.h5. Check the path"):
        stimg.pp.read_embedding(section, tmp_path / "nothing.h5", key_added="X_uni")
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file["vectors"] = values
    with pytest.raises(ValueError, match=r"holds \['vectors'\]. Known layouts: trident, hest, lazyslide, anndata"):
        stimg.pp.read_embedding(section, tmp_path / "c.h5", key_added="X_uni")
    with pytest.raises(KeyError, match=r"no dataset 'embeddings' \(found \['vectors'\]\)"):
        stimg.pp.read_embedding(section, tmp_path / "c.h5", key_added="X_uni", layout="hest")
    zarr.open_group(tmp_path / "d.zarr", mode="w").create_array("features", data=values)
    with pytest.raises(ValueError, match=r"zarr folder of \['features'\], neither a SpatialData nor an AnnData"):
        stimg.pp.read_embedding(section, tmp_path / "d.zarr", key_added="X_uni")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="cannot be read as zarr"):
        stimg.pp.read_embedding(section, tmp_path / "empty", key_added="X_uni")
    assert "X_uni" not in section.obsm


def test_what_is_needed_to_match_by_position(section, tmp_path):
    values, centres, _, at = table(section)
    no_size = trident(
        tmp_path / "a.h5", values, centres, attrs={"patch_size_level0": "None", "patch_size": "None", "target_magnification": "None"}
    )
    with pytest.raises(ValueError, match=r"does not say how large its tiles are.*Pass `tile_um=`"):
        stimg.pp.read_embedding(section, no_size, key_added="X_uni")
    stimg.pp.read_embedding(section, no_size, key_added="X_uni", tile_um=112.0)
    np.testing.assert_array_equal(section.obsm["X_uni"], values[at])
    del section.uns["spatial"]
    path = trident(tmp_path / "b.h5", values, centres)
    with pytest.raises(ValueError, match=r"needs µm per pixel. Pass `slide_mpp=`"):
        stimg.pp.read_embedding(section, path, key_added="X_b")
    stimg.pp.read_embedding(section, path, key_added="X_b", slide_mpp={"D1S1": 0.5})
    np.testing.assert_array_equal(section.obsm["X_b"], values[at])
    stimg.pp.rasterize(section, pitch_um=100.0)  # then the raster knows the scale
    stimg.pp.read_embedding(section, path, key_added="X_c")
    assert section.uns["stimg"]["X_c"]["libraries"]["D1S1"]["mpp"] == pytest.approx(0.5, rel=1e-3)


def test_a_card_is_compared(section, tmp_path):
    rng = np.random.default_rng(0)
    _, centres, _, _ = table(section)
    path = trident(tmp_path / "a.h5", rng.normal(size=(31, 1024)), centres)
    stimg.pp.read_embedding(section, path, key_added="X_uni", encoder="uni")
    record = section.uns["stimg"]["X_uni"]
    assert (record["encoder"], record["licence"]) == ("uni", "CC-BY-NC-ND-4.0")
    with pytest.raises(ValueError, match=r"the width is 1024; Virchow2 gives 2560. Correct `encoder=`"):
        stimg.pp.read_embedding(section, path, key_added="X_b", encoder="virchow2")
    coarse = trident(tmp_path / "b.h5", rng.normal(size=(31, 1024)), centres, side=448)
    with pytest.raises(ValueError, match=r"tiles have 1 µm per pixel; UNI expects 0.5. Embed tiles of that scale, or pass `mpp=1`"):
        stimg.pp.read_embedding(section, coarse, key_added="X_b", encoder="uni")
    stimg.pp.read_embedding(section, coarse, key_added="X_b", encoder="uni", mpp=1.0)
    stimg.pp.read_embedding(section, path, key_added="X_c", encoder="an encoder of ours")
    assert section.uns["stimg"]["X_c"]["encoder"] == "an encoder of ours"


def test_files_of_two_encoders(tmp_path):
    adata = stimg.datasets.simulate(technology="visium", shape=(3, 4), n_genes=8, mpp=0.5, n_donors=2, rng=0)
    paths = {}
    for i, library in enumerate(adata.obs["library_id"].unique()):
        values, centres, _, _ = table(adata[(adata.obs["library_id"] == library).to_numpy()])
        paths[library] = trident(tmp_path / f"{library}.h5", values[:, : WIDTH - i], centres)
    with pytest.raises(ValueError, match=r"embeddings have width 4, those before 5\. Pass files of one encoder"):
        stimg.pp.read_embedding(adata, paths, key_added="X_uni")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"layout": "clam"}, ValueError, "layout='clam' is not known"),
        ({"tolerance_um": 0}, ValueError, "tolerance_um=0 is not above zero"),
        ({"mpp": "0.5"}, TypeError, "mpp='0.5' is a str; wanted a number of µm"),
        ({"scale": -1}, ValueError, "scale=-1 is not above zero"),
        ({"slide_mpp": 500.0}, ValueError, "slide_mpp is 500 µm per pixel; wanted"),
    ],
)
def test_bad_options(section, tmp_path, options, error, message):
    values, centres, _, _ = table(section)
    with pytest.raises(error, match=message):
        stimg.pp.read_embedding(section, trident(tmp_path / "a.h5", values, centres), key_added="X_uni", **options)


def test_half_precision_and_a_batch_axis(section, tmp_path, caplog):
    values, centres, _, at = table(section)
    path = trident(tmp_path / "a.h5", values[None].astype(np.float16), centres)
    with caplog.at_level(logging.INFO, logger="stimg"):
        stimg.pp.read_embedding(section, str(path), key_added="X_uni")
    np.testing.assert_array_equal(section.obsm["X_uni"], values.astype(np.float16).astype(np.float32)[at])
    assert [r.getMessage() for r in caplog.records] == ["Wrote adata.obsm['X_uni']: 24 observations x 5 from 1 files"]
    named = trident(tmp_path / "b.h5", values, centres, features="feats")
    assert read_embeddings(named, "trident", features_key="feats")[0].values.shape == values.shape
