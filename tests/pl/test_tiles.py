"""The contact sheet shows the pixels of the plan, their sizes, and what lies outside."""

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import stimg
from stimg.data.tiles import TileDataset

IMAGES = {name: np.random.default_rng(i).integers(0, 256, (300, 300, 3), dtype=np.uint8) for i, name in enumerate("AB")}


@pytest.fixture
def adata():
    out = ad.AnnData(
        np.ones((12, 2)), obs=pd.DataFrame({"library_id": pd.Categorical(["A"] * 6 + ["B"] * 6)}, index=[f"spot{i}" for i in range(12)])
    )
    out.obsm["spatial"] = np.tile([[60.0, 60], [150, 60], [240, 60], [60, 200], [150, 200], [295, 150]], (2, 1))
    out.uns["spatial"] = {name: {"images": {}, "scalefactors": {"microns_per_pixel": 0.5}} for name in "AB"}
    stimg.pp.plan_tiles(out, tile_um=20, mpp=0.5, fields=(1, 3), image=IMAGES)
    return out


def words(fig):
    return [text.get_text() for ax in fig.axes for text in ax.texts] + [text.get_text() for text in fig.texts]


def test_panels_show_the_tiles_of_the_plan(adata):
    axes = stimg.pl.tiles(adata, obs_names=["spot1", "spot5", "spot8"], image=IMAGES)
    assert list(axes) == [(name, field) for name in ("spot1", "spot5", "spot8") for field in (1.0, 3.0)]
    tiles = TileDataset(adata, image=IMAGES)
    for name, row in (("spot1", 1), ("spot5", 5), ("spot8", 8)):
        for f, field in enumerate((1.0, 3.0)):
            (shown,) = axes[name, field].images
            np.testing.assert_array_equal(shown.get_array(), tiles[row]["image"][f])
            assert axes[name, field].get_xlim() == (0, 20 * field)
            assert axes[name, field].get_ylim() == (20 * field, 0)
    (outline,) = axes["spot1", 3.0].patches
    assert (outline.get_x(), outline.get_y(), outline.get_width()) == (20, 20, 20)
    assert not axes["spot1", 1.0].patches
    fig = axes["spot1", 1.0].get_figure()
    assert "20 µm and 60 µm wide, 40 px" in words(fig)
    assert {"38 % outside", "46 % outside"} <= set(words(fig))  # 295 + 20 - 300 of 40, 295 + 60 - 300 of 120
    assert [t for t in words(fig) if t.endswith("µm")] == ["5 µm", "10 µm"]
    assert axes["spot8", 1.0].get_title(loc="left") == "spot8\nB"


def test_libraries_take_turns(adata):
    axes = stimg.pl.tiles(adata, n=6, image=IMAGES, rng=1)
    libraries = [adata.obs.loc[name, "library_id"] for name, field in axes if field == 1.0]
    assert libraries == ["A", "B"] * 3
    again = stimg.pl.tiles(adata, n=6, image=IMAGES, rng=1)
    assert list(again) == list(axes)
    alone = stimg.pl.tiles(adata, n=50, image=IMAGES, library_id="B")
    assert {name for name, _ in alone} == set(adata.obs_names[6:])


@pytest.mark.parametrize("n", [1, 4, 12])
def test_nothing_leaves_the_figure_or_overlaps(adata, n):
    adata.obs_names = [f"a very long name of an observation {i}" for i in range(12)]
    fig = stimg.pl.tiles(adata, n=n, image=IMAGES, ncols=3, return_fig=True)
    fig.canvas.draw()
    boxes = [ax.get_window_extent() for ax in fig.axes]
    for i, a in enumerate(boxes):
        assert not any(a.overlaps(b) for b in boxes[i + 1 :])
    for ax in fig.axes:
        box = ax.get_tightbbox()
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= fig.bbox.x1 + 1
        assert box.y1 <= fig.bbox.y1 + 1
    titles = [ax.title.axes._left_title.get_window_extent() for ax in fig.axes if ax._left_title.get_text()]
    for i, a in enumerate(titles):
        assert not any(a.overlaps(b) for b in titles[i + 1 :])
    plt.close(fig)


def test_a_spatialdata_and_a_stain(adata):
    class Darker:
        def apply(self, tiles, library):
            return tiles // 2

    plain = stimg.pl.tiles(adata, obs_names=["spot1"], image=IMAGES)
    dark = stimg.pl.tiles(adata, obs_names="spot1", image=IMAGES, stain=Darker())
    np.testing.assert_array_equal(dark["spot1", 1.0].images[0].get_array(), plain["spot1", 1.0].images[0].get_array() // 2)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"obs_names": ["spot1", "no"]}, KeyError, r"no observations \['no'\]"),
        ({"library_id": "C"}, KeyError, r"no library 'C' with tiles \(found \['A', 'B'\]\)"),
        ({"key": "other"}, KeyError, "holds no plan of tiles"),
        ({"n": 0}, ValueError, "n=0 is not usable"),
        ({"ncols": 0}, ValueError, "ncols=0 is not usable"),
        ({"image": None}, KeyError, "planned on the image, which is not here"),
        ({"image": {"A": IMAGES["B"], "B": IMAGES["A"]}}, ValueError, "has changed since the tiles were planned"),
    ],
)
def test_refused(adata, options, error, message):
    with pytest.raises(error, match=message):
        stimg.pl.tiles(adata, **{"image": IMAGES, **options})
    assert not plt.get_fignums()
