import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.patches import Rectangle

import stimg
from stimg.image.spec import CropSpec, RasterSpec
from stimg.pl import _style


def cells_in(ax):
    return next(c for c in ax.collections if isinstance(c, PolyCollection))


def inside(adata, crop, size):
    """Rows of the observations of a crop, row by row, column by column: a naive loop."""
    out = []
    for i, (row, col) in enumerate(adata.obsm["stimg_rc"]):
        if adata.obs["library_id"].iloc[i] == crop[0] and 0 <= row - crop[1] < size[0] and 0 <= col - crop[2] < size[1]:
            out.append(i)
    return sorted(out, key=lambda i: tuple(adata.obsm["stimg_rc"][i]))


@pytest.mark.parametrize("lattice", ["hex", "square"])
def test_given_crops_show_their_window_and_are_outlined(section, lattice):
    adata = section(lattice)
    spec = CropSpec(size=(4, 3))
    crops = [("A", 0, 2), ("A", 5, 8)]
    panels = stimg.pl.crops(adata, genes="IGKC", crops=crops, spec=spec, percentile=(0, 100))
    assert list(panels) == ["A", *crops]
    counts = np.log1p(adata.X.toarray()[:, 2])
    raster = RasterSpec.from_dict(adata.uns["stimg"]["raster"]["A"])
    frames = [p for p in panels["A"].patches if isinstance(p, Rectangle)]
    for crop, frame in zip(crops, frames, strict=True):
        rows = inside(adata, crop, spec.size)
        drawn = cells_in(panels[crop])
        np.testing.assert_allclose(drawn.get_array(), counts[rows])
        assert (drawn.norm.vmin, drawn.norm.vmax) == (counts.min(), counts.max())
        x0, y0, x1, y1 = (*frame.get_xy(), frame.get_x() + frame.get_width(), frame.get_y() + frame.get_height())
        assert panels[crop].get_xlim() == pytest.approx((x0, x1))
        assert panels[crop].get_ylim() == pytest.approx((y1, y0))
        centres = raster.centres_um(adata.obsm["stimg_rc"])
        within = (centres[:, 1] > x0) & (centres[:, 1] < x1) & (centres[:, 0] > y0) & (centres[:, 0] < y1)
        assert set(rows) <= set(np.flatnonzero(within))
        if lattice == "square":
            assert set(rows) == set(np.flatnonzero(within))
    assert [t.get_text() for t in panels["A"].texts if t.get_gid() is None] == ["1", "2"]


def test_three_genes_are_a_composite(section):
    adata = section()
    genes = ["ERBB2", "COL1A1", "IGKC"]
    crop = ("A", 0, 0)
    panels = stimg.pl.crops(adata, genes=genes, crops=[crop], spec=CropSpec(size=(5, 5)), transform=None, percentile=(0, 100))
    counts = adata.X.toarray()[:, :3]
    light = (counts - counts.min(axis=0)) / np.ptp(counts, axis=0)
    want = np.clip(light @ np.array(_style.RGB_COLORS), 0, 1)[inside(adata, crop, (5, 5))]
    np.testing.assert_allclose(cells_in(panels[crop]).get_facecolors()[:, :3], want, atol=1e-6)
    assert [t.get_text().split()[0] for t in panels["A"].get_legend().get_texts()] == genes


def test_crops_by_chance_are_full_enough_apart_and_repeatable(section, joined):
    adata = joined(section(name="A", shape=(20, 20)), section("square", name="B", shape=(16, 24), seed=3))
    spec = CropSpec(size=(5, 5), min_occupied=12)
    first, again = (stimg.pl.crops(adata, genes="IGKC", spec=spec, n=5, rng=7) for _ in range(2))
    chosen = [key for key in first if isinstance(key, tuple)]
    assert list(first) == list(again)
    assert len(chosen) == 5
    assert all(len(inside(adata, c, spec.size)) >= 12 for c in chosen)
    for i, a in enumerate(chosen):
        for b in chosen[:i]:
            assert a[0] != b[0] or abs(a[1] - b[1]) >= 5 or abs(a[2] - b[2]) >= 5
    assert [sum(c[0] == name for c in chosen) for name in "AB"] == [3, 2]
    other = stimg.pl.crops(adata, genes="IGKC", spec=spec, n=5, rng=8)
    assert list(other) != list(first)


def test_crops_overlap_only_where_there_is_no_room(section):
    adata = section("square", shape=(6, 6), keep=1.0)
    panels = stimg.pl.crops(adata, genes="IGKC", spec=CropSpec(size=(5, 5)), n=4, rng=0)
    assert sorted(key[1:] for key in panels if isinstance(key, tuple)) == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_a_window_larger_than_the_raster_is_drawn(section):
    adata = section("square", shape=(4, 5), keep=1.0)
    panels = stimg.pl.crops(adata, genes="IGKC", n=1, spec=CropSpec(min_occupied=20))
    assert len(cells_in(panels["A", 0, 0]).get_array()) == 20


def test_errors(section):
    adata = section()
    with pytest.raises(ValueError, match="2 genes given"):
        stimg.pl.crops(adata, genes=["ERBB2", "IGKC"])
    with pytest.raises(ValueError, match="wanted n=900"):
        stimg.pl.crops(adata, genes="IGKC", spec=CropSpec(size=(4, 4)), n=900)
    with pytest.raises(ValueError, match="at least one crop"):
        stimg.pl.crops(adata, genes="IGKC", n=0)
    with pytest.raises(ValueError, match="holds no occupied lattice point"):
        stimg.pl.crops(adata, genes="IGKC", crops=[("A", 50, 50)])
    with pytest.raises(KeyError, match="no library 'Z'"):
        stimg.pl.crops(adata, genes="IGKC", crops=[("Z", 0, 0)])
    with pytest.raises(ValueError, match="crops is empty"):
        stimg.pl.crops(adata, genes="IGKC", crops=[])
    with pytest.raises(KeyError, match="Did you mean 'IGKC'"):
        stimg.pl.crops(adata, genes="IGKV")
