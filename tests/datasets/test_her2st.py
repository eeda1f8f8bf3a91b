"""Real sections against pandas reading the same files on its own."""

import logging

import numpy as np
import pandas as pd
import pytest

from stimg import datasets

pytestmark = pytest.mark.data


def _table(mirror, section):
    return pd.read_csv(mirror / f"her2st/ST-cnts/{section}.tsv.gz", sep="\t", index_col=0)


def test_counts_positions_and_labels_of_a_section(mirror):
    adata, table = datasets.her2st("B1"), _table(mirror, "B1")
    spots = pd.read_csv(mirror / "her2st/ST-spotfiles/B1_selection.tsv", sep="\t")
    labels = pd.read_csv(mirror / "her2st/ST-pat/B1_labeled_coordinates.tsv", sep="\t")
    assert adata.shape == table.shape == (295, 15109)
    assert adata.X.sum() == table.to_numpy().sum()
    for i in (0, 100, 294):
        name = adata.obs_names[i].removeprefix("B1_")
        x, y = map(int, name.split("x"))
        assert (adata[i].X.toarray()[0] == table.loc[name, adata.var_names]).all()
        spot = spots[(spots["x"] == x) & (spots["y"] == y)].iloc[0]
        assert adata.obsm["spatial"][i].tolist() == [spot["pixel_x"], spot["pixel_y"]]
        assert (adata.obs["array_col"].iloc[i], adata.obs["array_row"].iloc[i]) == (x, y)
        label = labels.iloc[np.argmin((labels["x"] - x) ** 2 + (labels["y"] - y) ** 2)]["label"]
        assert adata.obs["label"].iloc[i] == label
    assert adata.obs["label"].value_counts()[lambda n: n > 0].to_dict() == labels["label"].value_counts().to_dict()
    assert np.corrcoef(adata.obs["array_row"], adata.obsm["spatial"][:, 1])[0, 1] > 0.999
    assert np.corrcoef(adata.obs["array_col"], adata.obsm["spatial"][:, 0])[0, 1] > 0.999


def test_the_scale_follows_from_the_nearest_spots(mirror):
    from scipy.spatial import cKDTree

    adata = datasets.her2st("C2")
    nearest = np.median(cKDTree(adata.obsm["spatial"]).query(adata.obsm["spatial"], k=5)[0][:, 1:])
    factors = adata.uns["spatial"]["C2"]["scalefactors"]
    assert factors["microns_per_pixel"] == pytest.approx(200 / nearest, rel=0.01)
    assert 0.68 < factors["microns_per_pixel"] < 0.70
    assert factors["spot_diameter_fullres"] == pytest.approx(nearest / 2, rel=0.01)


def test_spots_without_counts_are_dropped_and_logged(mirror, caplog):
    spots = pd.read_csv(mirror / "her2st/ST-spotfiles/D1_selection.tsv", sep="\t")
    names = spots["x"].astype(str) + "x" + spots["y"].astype(str)
    missing = set(names) - set(_table(mirror, "D1").index)
    with caplog.at_level(logging.INFO, logger="stimg"):
        adata = datasets.her2st("D1")
    assert len(missing) == 3
    assert adata.n_obs == len(spots) - 3
    assert "D1: dropped 3 spots without counts" in caplog.text


def test_two_sections_share_their_genes(mirror):
    merged, b1, b4 = datasets.her2st(["B1", "B4"]), _table(mirror, "B1"), _table(mirror, "B4")
    common = set(b4.columns)
    shared = [g for g in b1.columns if g in common]
    assert merged.var_names.tolist() == shared
    assert merged.X.sum() == b1[shared].to_numpy().sum() + b4[shared].to_numpy().sum()
    assert merged.obs["label"].notna().groupby(merged.obs["library_id"], observed=True).sum().to_dict() == {"B1": 295, "B4": 0}
    assert merged.obs["donor"].unique().tolist() == ["B"]
    assert set(merged.obs["cluster"].dropna().str[:2]) == {"B_"}


def test_reduced_and_full_image_show_the_same_tissue(mirror):
    adata = datasets.her2st("C5", image="hires")
    entry = adata.uns["spatial"]["C5"]
    hires, scale = entry["images"]["hires"], entry["scalefactors"]["tissue_hires_scalef"]
    assert hires.shape == (2000, 1873, 3)
    assert scale == 2000 / 9901
    assert entry["images"]["lowres"].shape == (600, 562, 3)
    sdata = datasets.her2st("C5", image="full", as_sdata=True)
    full = sdata.images["C5_image"]["scale0"]["image"]
    assert full.shape == (3, 9901, 9272)
    top, left = (int(v) for v in adata.obsm["spatial"].mean(0)[::-1])
    window = full[:, top : top + 500, left : left + 500].to_numpy().mean((1, 2))
    small = hires[int(top * scale) : int((top + 500) * scale), int(left * scale) : int((left + 500) * scale)].mean((0, 1))
    assert window == pytest.approx(small, abs=2)
    inside = (adata.obsm["spatial"] * scale).astype(int)
    assert hires[inside[:, 1], inside[:, 0]].mean() < hires[:100, :100].mean() - 20  # spots lie on stained tissue, not on glass


def test_unknown_sections_are_refused():
    with pytest.raises(ValueError, match=r"HER2ST section \['C6'\] is not registered; wanted one or more of \['B1'"):
        datasets.her2st("C6")


def test_sections_as_spatialdata_are_rasterised_as_their_table_is(mirror):
    import stimg

    names = ["B1", "C2"]
    adata, sdata = datasets.her2st(names), datasets.her2st(names, as_sdata=True)
    stimg.pp.rasterize(adata, pitch_um=200.0)
    stimg.pp.rasterize(sdata, pitch_um=200.0)
    table = sdata.tables["table"]
    assert table.uns["stimg"]["rasterize"]["coordinate_system"] == {"B1": "B1", "C2": "C2"}
    np.testing.assert_array_equal(table.obsm["stimg_rc"], adata.obsm["stimg_rc"])
    for name in names:
        ours, theirs = (data.uns["stimg"]["raster"][name] for data in (table, adata))
        assert ours["mpp"] == pytest.approx(theirs["mpp"])
        np.testing.assert_allclose(ours["affine"], theirs["affine"], atol=1e-6)
    with pytest.raises(KeyError, match=r"sdata.shapes\['C2_spots'\] has no transformation to 'B1_um'"):
        stimg.pp.rasterize(sdata, coordinate_system="B1_um")
