"""Every function draws every kind of raster to pixels: nothing overlaps the frame, nothing fails late in the drawing."""

import numpy as np
import pytest

import stimg
from stimg.image.spec import CropSpec
from stimg.pl import _geometry

HISTORY = {"train_loss": [3.0, 2.0, 1.0], "validation_loss": [3.0, 2.5, 2.6]}
PICTURES = {
    "raster": lambda adata, lib: stimg.pl.raster(
        adata, color=["ERBB2", "region"], transform="log1p", image=lib is not None, return_fig=True
    ),
    "crops": lambda adata, lib: stimg.pl.crops(adata, genes=["ERBB2", "IGKC", "SNAP25"], spec=CropSpec(size=(4, 4)), n=3, return_fig=True),
    "crop": lambda adata, lib: stimg.pl.crops(adata, genes="ERBB2", spec=CropSpec(size=(4, 4)), n=3, return_fig=True),
    "reconstruction": lambda adata, lib: stimg.pl.reconstruction(
        adata, genes=["ERBB2"], truth_layer="log", masked="hidden", library_id="A", scores={"ERBB2": 0.5}, return_fig=True
    ),
    "embedding_map": lambda adata, lib: stimg.pl.embedding_map(adata, components=True, return_fig=True),
    "history": lambda adata, lib: stimg.pl.history(HISTORY, return_fig=True),
    "genes": lambda adata, lib: stimg.pl.genes(
        adata, genes=["ERBB2", "IGKC"], predicted="stimg_stmae", library_id="A", image=lib is not None, return_fig=True
    ),
    "imputation": lambda adata, lib: filled(
        adata, lambda table, truth: stimg.pl.imputation(table, genes=["ERBB2", "IGKC"], truth=truth, library_id="A", return_fig=True)
    ),
    "upsampled": lambda adata, lib: stimg.pl.imputation(
        stimg.tl.upsample(adata, factor=2, method="nearest"), genes="ERBB2", library_id="A", return_fig=True
    ),
    "calibration": lambda adata, lib: filled(adata, lambda table, truth: stimg.pl.calibration(table, truth, return_fig=True)),
    "retrieval": lambda adata, lib: (
        stimg.tl.retrieve(adata, image_key="X_stimg_stmae", gene_key="X_stimg_stmae"),
        stimg.pl.retrieval(adata, kind="queries", return_fig=True),
    )[1],
    "recall": lambda adata, lib: (
        stimg.tl.retrieve(adata, image_key="X_stimg_stmae", gene_key="X_stimg_stmae"),
        stimg.pl.retrieval(adata, return_fig=True),
    )[1],
}


def filled(adata, draw):
    """Hide a part of the section, impute it, and draw."""
    sparse, truth = stimg.pp.sparsify(adata, mask="checkerboard")
    return draw(stimg.tl.impute(sparse, targets=truth, method="nearest"), truth)


@pytest.mark.parametrize("kind", ["hex", "square", "bins", "two libraries"])
@pytest.mark.parametrize("picture", list(PICTURES))
def test_draws(section, joined, monkeypatch, kind, picture):
    if kind == "bins":
        monkeypatch.setitem(_geometry.IMAGE_FROM, "square", 1)
    first = section("hex" if kind in ("hex", "two libraries") else "square", pitch_um=8.0 if kind == "bins" else 100.0)
    adata = joined(first, section("square", name="B", shape=(8, 8), seed=1)) if kind == "two libraries" else first
    fig = PICTURES[picture](adata, None if kind == "two libraries" else "A")
    fig.canvas.draw()
    pixels = np.asarray(fig.canvas.buffer_rgba())
    assert (pixels[..., :3].min(axis=2) < 250).mean() > 0.02
    for ax in fig.axes:
        box = ax.get_tightbbox()
        assert box.x0 > -2, ax.get_title()
        assert box.y0 > -2, ax.get_title()
        assert box.x1 < fig.bbox.x1 + 2, ax.get_title()
        assert box.y1 < fig.bbox.y1 + 2, ax.get_title()
