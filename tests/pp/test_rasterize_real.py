"""``pp.rasterize`` on the public data: what is found on correct files, and what is refused on spoilt ones."""

import json

import numpy as np
import pandas as pd
import pytest
from _lattices import make, spec_of

import stimg.pp as pp


def swap(adata):
    adata.obsm["spatial"] = adata.obsm["spatial"][:, ::-1].copy()
    return adata


def scaled(adata, factor):
    adata.obsm["spatial"] = adata.obsm["spatial"] * factor
    return adata


@pytest.mark.data
@pytest.mark.parametrize("section", ["B3", "B4", "C2", "E1"])
def test_her2st(mirror, section):
    spots = pd.read_csv(mirror / f"her2st/ST-spotfiles/{section}_selection.tsv", sep="\t")
    adata = make(spots[["pixel_x", "pixel_y"]], spots["y"].round().astype(int), spots["x"].round().astype(int))
    pp.rasterize(adata, pitch_um=200.0)
    assert 0.685 < spec_of(adata).mpp < 0.690
    assert spec_of(adata).residual_um < 90
    rc = adata.obsm["stimg_rc"].copy()
    pp.rasterize(adata, pitch_um=200.0, source="coordinates")
    assert (adata.obsm["stimg_rc"] == rc).all()
    with pytest.raises(ValueError, match="swapped"):
        pp.rasterize(swap(adata), pitch_um=200.0)


@pytest.mark.data
@pytest.mark.parametrize(
    ("path", "factors"),
    [("dlpfc/151673/tissue_positions_list.txt", "dlpfc/151673"), ("visium_lymph/tissue_positions_list.csv", "visium_lymph")],
)
def test_visium_files(mirror, path, factors):
    table = pd.read_csv(mirror / path, header=None)
    adata = make(table[[5, 4]], table[2], table[3], factors=json.loads((mirror / factors / "scalefactors_json.json").read_text()))
    pp.rasterize(adata)
    spec = spec_of(adata)
    assert (spec.shape, spec.lattice, spec.hex_parity) == ((78, 64), "hex", 1)
    assert spec.mpp == pytest.approx(0.7246, abs=5e-4)
    assert spec.residual_um < 0.6  # positions are whole pixels
    assert (np.sort(adata.obsm["stimg_rc"] @ [64, 1]) == np.arange(4992)).all()  # every lattice point once
    for wrong in (0.15, 100 / 138):
        with pytest.raises(ValueError, match="of scalefactors"):
            pp.rasterize(scaled(adata.copy(), wrong))


@pytest.mark.data
@pytest.mark.parametrize("section", [1, 2])
def test_mob_is_a_checkerboard(mirror, section):
    spots = pd.read_csv(mirror / f"mob/alignment_table_MOB{section}.tsv", sep="\t")
    adata = make(spots[["pixel_x", "pixel_y"]], spots["y"], spots["x"])
    pp.rasterize(adata, mpp=4.6)
    assert spec_of(adata).lattice == "square"
    assert spec_of(adata).pitch_um == pytest.approx(148.4, abs=0.2)
    index = spots[["y", "x"]].to_numpy()
    diagonal = np.stack([index.sum(axis=1) // 2, (index[:, 1] - index[:, 0]) // 2], axis=1)
    assert (adata.obsm["stimg_rc"] == diagonal - diagonal.min(axis=0)).all()
