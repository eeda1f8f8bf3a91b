"""The molecules of an imaging technology: every count of the cell table gets a place."""

import numpy as np
import pandas as pd
import scipy.sparse as sp

from stimg.datasets._simulate_cells import CELL_HALF_UM

UNASSIGNED = "UNASSIGNED"
OUTSIDE = 0.08
"""Molecules outside cells, as a share of those inside."""


def make_molecules(
    counts: sp.csr_matrix,
    yx_um: np.ndarray,
    radius_um: np.ndarray,
    cell_id: np.ndarray,
    genes: np.ndarray,
    size_um: tuple[float, float],
    rng: np.random.Generator,
) -> pd.DataFrame:
    """Return one row per molecule.

    A cell's molecules are normal around its centre, with a standard deviation of half a cell and cut at twice that; those outside cells
    are uniform over the section.
    """
    repeats = counts.data.astype(np.int64)
    entry = np.repeat(np.arange(len(repeats)), repeats)
    cell = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))[entry]
    gene = counts.indices[entry]
    spread = CELL_HALF_UM / 2
    # the radius of a two-dimensional normal, cut at two standard deviations, by inversion
    distance = spread * np.sqrt(-2 * np.log1p(-rng.random(len(cell)) * (1 - np.exp(-2.0))))
    angle = rng.uniform(0, 2 * np.pi, len(cell))
    yx = yx_um[cell] + distance[:, None] * np.stack([np.sin(angle), np.cos(angle)], axis=1)
    n_out = rng.poisson(OUTSIDE * len(cell))
    out_gene = gene[rng.integers(len(gene), size=n_out)] if len(gene) else np.empty(0, dtype=gene.dtype)
    yx = np.concatenate([yx, rng.random((len(out_gene), 2)) * np.asarray(size_um)])
    yx = np.clip(yx, 0, np.asarray(size_um))
    owner = np.concatenate([cell, np.full(len(out_gene), len(cell_id))])
    return pd.DataFrame(
        {
            "x": yx[:, 1].astype(np.float32),
            "y": yx[:, 0].astype(np.float32),
            "feature_name": pd.Categorical.from_codes(np.concatenate([gene, out_gene]), categories=pd.Index(genes)),
            "cell_id": pd.Categorical.from_codes(owner, categories=pd.Index([*cell_id, UNASSIGNED])),
            "overlaps_nucleus": np.concatenate([distance < radius_um[cell], np.zeros(len(out_gene), dtype=bool)]).astype(np.uint8),
            "qv": np.clip(rng.normal(35, 4, len(yx)), 20, 40).astype(np.float32),
        }
    )
