"""The picture says what the table says."""

import functools
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pytest

import stimg


@functools.cache
def examined():
    adata = stimg.datasets.simulate(
        technology="visium", shape=(14, 13), n_genes=40, n_donors=2, image=True, mpp=4.0,
        tissue=stimg.datasets.TissueOptions(outline=True), rng=0,
    )  # fmt: skip
    adata.uns["spatial"]["D1S1"]["images"] = {k: v[:, ::-1].copy() for k, v in adata.uns["spatial"]["D1S1"]["images"].items()}
    stimg.pp.check_slide(adata)
    return adata


def texts(fig):
    return [t.get_text() for ax in fig.axes for t in ax.texts]


def test_every_check_is_there_with_its_sign_and_what_to_do():
    adata = examined()
    figures = stimg.pl.check_slide(adata)
    assert list(figures) == ["D1S1", "D2S1"]
    table = adata.uns["stimg"]["check_slide"]["table"]
    signs = {"pass": "✓", "warn": "!", "fail": "✗", "skip": "–"}
    for name, fig in figures.items():
        rows = table[table["library_id"] == name]
        words = texts(fig)
        for status, sign in signs.items():
            n = int((rows["status"] == status).sum())
            assert f"{sign} {n} {status}" in words
            assert words.count(sign) == n
        for row in rows.itertuples():
            assert row.check in words
            if row.status in ("warn", "fail") and row.todo:
                joined = " ".join(words)
                assert " ".join(f"→ {row.todo}".split()[:6]) in joined
        assert f"{name} · {int((adata.obs['library_id'] == name).sum())} observations" in fig.axes[0].get_title()
    assert "✗" in texts(figures["D1S1"])


def test_observations_lie_on_the_image_and_the_bar_is_in_micrometres():
    adata = examined()
    fig = stimg.pl.check_slide(adata, library_id="D2S1")
    ax = fig.axes[0]
    sketch = adata.uns["stimg"]["check_slide"]["libraries"]["D2S1"]
    rows = (adata.obs["library_id"] == "D2S1").to_numpy()
    points = ax.collections[0]
    factor = sketch["image"].shape[1] / np.shape(adata.uns["spatial"]["D2S1"]["images"]["hires"])[1]
    scale = factor * adata.uns["spatial"]["D2S1"]["scalefactors"]["tissue_hires_scalef"]
    np.testing.assert_allclose(points.get_offsets(), adata.obsm["spatial"][rows] * scale, rtol=5e-3)
    np.testing.assert_allclose(points.get_array(), np.log10(np.asarray(adata.X[rows].sum(axis=1)).ravel() + 1), rtol=1e-6)
    bar = next(line for line in ax.lines if line.get_gid() == "scale bar")
    word = next(t.get_text() for t in ax.texts if t.get_gid() == "scale bar")
    length = float(word.split()[0]) * (1000 if word.endswith("mm") else 1)
    assert np.ptp(bar.get_xdata()) * 4.0 / scale == pytest.approx(length, rel=1e-2)
    np.testing.assert_array_equal(ax.images[0].get_array(), sketch["image"])


def test_details_tell_everything_and_the_picture_grows():
    adata = examined()
    short, long = (stimg.pl.check_slide(adata, library_id="D2S1", details=d) for d in (False, True))
    assert long.get_figheight() >= short.get_figheight()
    found = adata.uns["stimg"]["check_slide"]["table"].query("library_id == 'D2S1' and check == 'scale'")["found"].iloc[0]
    assert found.split()[-1] in " ".join(texts(long))


def test_nothing_overlaps_or_leaves_the_picture():
    for fig in stimg.pl.check_slide(examined()).values():
        fig.canvas.draw()
        for ax in fig.axes:
            for text in ax.texts:
                box = text.get_window_extent()
                assert box.x0 > -2, text
                assert box.x1 < fig.bbox.x1 + 2, text
                assert box.y0 > -2, text
        lines = sorted(
            (t.get_window_extent() for t in fig.axes[1].texts if t.get_position()[0] > 1.5 and t.get_position()[1] > 0.5),
            key=lambda b: b.y0,
        )
        assert all(a.y1 <= b.y0 + 1.5 for a, b in pairwise(lines))


def test_without_image_scale_or_coordinates():
    adata = stimg.datasets.simulate(technology="st", shape=(6, 6), n_genes=12, rng=0)
    adata.uns["spatial"] = {}
    stimg.pp.check_slide(adata)
    assert "scale unknown" in texts(stimg.pl.check_slide(adata))
    del adata.obsm["spatial"]
    stimg.pp.check_slide(adata)
    assert "no coordinates" in texts(stimg.pl.check_slide(adata))


def test_what_is_missing_is_named(monkeypatch):
    adata = examined()
    with pytest.raises(KeyError, match=r"libraries \['other'\] were not examined \(found \['D1S1', 'D2S1'\]\)"):
        stimg.pl.check_slide(adata, library_id=["D1S1", "other"])
    bare = adata.copy()
    del bare.uns["stimg"]["check_slide"]
    with pytest.raises(KeyError, match=r"\['check_slide'\] is missing .* Run `stimg\.pp\.check_slide` first"):
        stimg.pl.check_slide(bare)
    with pytest.raises(KeyError, match="holds no examination"):
        stimg.pl.check_slide(adata, key="simulate")
    called = []
    monkeypatch.setattr(plt, "show", lambda: called.append(1))
    stimg.pl.check_slide(adata, library_id="D1S1")
    assert not called
    stimg.pl.check_slide(adata, library_id="D1S1", show=True)
    assert called
