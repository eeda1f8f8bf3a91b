"""Observations on lattices, for the tests of ``pp.rasterize``."""

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from stimg.image.spec import RasterSpec


def make(xy, row=None, col=None, *, lib="A", factors=None, images=None, n_vars=3):
    """An AnnData with positions, and array indices where given."""
    xy = np.asarray(xy, dtype=float)
    n = len(xy)
    rng = np.random.default_rng(0)
    adata = ad.AnnData(sp.csr_matrix(rng.poisson(2, (n, n_vars)).astype(np.float32)), obs=pd.DataFrame(index=[f"b{i}" for i in range(n)]))
    adata.obsm["spatial"] = xy
    if row is not None:
        adata.obs["array_row"], adata.obs["array_col"] = np.asarray(row), np.asarray(col)
    adata.obs["library_id"] = pd.Categorical([lib] * n)
    adata.uns["spatial"] = {lib: {"images": images or {}, "scalefactors": factors or {}, "metadata": {}}}
    return adata


def visium(first_row=0, rows=12, cols=9, pitch=138.0, holes=0.2, turn=0.0, seed=0, **kwargs):
    """A hexagonal array in Space Ranger's convention, and its true (x, y)."""
    rng = np.random.default_rng(seed)
    row = np.repeat(np.arange(first_row, first_row + rows), cols)
    col = 2 * np.tile(np.arange(3, 3 + cols), rows) + row % 2
    keep = rng.random(len(row)) >= holes
    row, col = row[keep], col[keep]
    xy = pitch * np.stack([col / 2, row * np.sqrt(3) / 2], axis=1)
    cos, sin = np.cos(turn), np.sin(turn)
    xy = xy @ np.array([[cos, -sin], [sin, cos]]).T + [3000, 2000]
    return make(xy, row, col, **kwargs)


def square(rows=8, cols=10, pitch=290.0, holes=0.2, seed=0, first=(5, 7), **kwargs):
    rng = np.random.default_rng(seed)
    row, col = np.divmod(np.arange(rows * cols), cols)
    keep = rng.random(len(row)) >= holes
    row, col = row[keep] + first[0], col[keep] + first[1]
    return make(pitch * np.stack([col, row], axis=1), row, col, **kwargs)


def spec_of(adata, lib="A"):
    return RasterSpec.from_dict(adata.uns["stimg"]["raster"][lib])
