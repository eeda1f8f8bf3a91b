"""Moran's I and Geary's C of every gene, on the raster."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.stats

from stimg._core import keys, provenance, validate
from stimg._core.rng import RngLike, as_seed
from stimg.data.slots import raster_libraries
from stimg.data.tables import table_of
from stimg.metrics.spatial import SpatialWeights, autocorrelation

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)

COLUMNS = {"moran": ("I", keys.MORAN), "geary": ("C", keys.GEARY)}


def spatial_autocorr(
    data: "AnnData | SpatialData",
    *,
    mode: str = "moran",
    layer: str | None = None,
    genes: str | Sequence[str] | None = None,
    n_perms: int | None = None,
    library_key: str = keys.LIBRARY,
    diagonal: bool = False,
    transformation: bool = True,
    rng: RngLike = 0,
    table_key: str = "table",
) -> None:
    """Write ``uns["moranI"]`` or ``uns["gearyC"]``, one row per gene, in the format of :func:`squidpy.gr.spatial_autocorr`.

    Neighbours are adjacent lattice points of the raster, so no graph is needed: run `stimg.pp.rasterize` first.

    Parameters
    ----------
    data
        Values in ``X`` or ``layers[layer]`` of an AnnData, or of the table of a SpatialData, used as they are: log-normalise counts first where that is wanted (zeros stay zeros).
    mode
        ``"moran"`` or ``"geary"``.
    layer
        Layer with the values; None is ``X``.
    genes
        Genes to look at; None is every gene of the object.
    n_perms
        Number of permutations for ``pval_sim``; None for analytic p-values only.
    library_key
        Column of ``obs`` with the library. Pairs join observations of one library, and permutations stay within it; the mean is common.
    diagonal
        8 instead of 4 neighbours on a square lattice.
    transformation
        Divide each row of the weights by its sum, as squidpy does by default; False for binary weights.
    rng
        Seed of the permutations.
    table_key
        Table of a SpatialData; the slots are read from it and written to it.

    Raises
    ------
    KeyError
        For missing slots or genes (listed).
    ValueError
        For values that are not finite, or a raster without neighbours.

    Notes
    -----
    Columns: the score (``I`` or ``C``), ``pval_norm``, ``var_norm``, with permutations ``pval_z_sim``, ``pval_sim``, ``var_sim``, and each
    p-value with Benjamini and Hochberg's correction as ``<p-value>_fdr_bh``. P-values are one-sided. Rows are sorted from the most to the least
    autocorrelated gene; genes with one value throughout come last, with NaN. Three things differ from squidpy 1.8: all genes are the default, not
    the highly variable ones; genes with NaN take no part in the correction; and permutations move the values of the observations, where squidpy
    moves the rows of the weights alone, so that ``pval_sim``, ``pval_z_sim`` and ``var_sim`` differ. Observations that are not on
    the raster take no part.
    """
    adata = table_of(data, table_key)
    validate.one_of(mode, COLUMNS, "mode")
    stat, key = COLUMNS[mode]
    validate.not_empty(adata)
    validate.unique_names(adata.var_names, "gene names", todo="Run `adata.var_names_make_unique()` first.")
    values, names = validate.matrix(adata, layer), adata.var_names
    if genes is not None:
        wanted = [genes] if isinstance(genes, str) else list(genes)
        values = values[:, validate.genes(wanted, names, what="genes", todo="Check the spelling.")]
        names = pd.Index(wanted)
    found = {name: lib for name, lib in raster_libraries(adata, library_key).items() if len(lib.rows)}
    if not found:
        raise ValueError("No observation is on a raster; wanted at least one library. Run `stimg.pp.rasterize` again.")
    parts, groups = [], np.full(adata.n_obs, -1, dtype=np.int64)
    for number, lib in enumerate(found.values()):
        across = diagonal and lib.spec.lattice == "square"
        parts.append(
            SpatialWeights.from_raster(lib.spec, lib.rc, diagonal=across, row_standardise=transformation, rows=lib.rows, n_rows=adata.n_obs)
        )
        groups[lib.rows] = number
    seed = as_seed(rng)
    result = autocorrelation(values, SpatialWeights.concatenate(parts), mode=mode, n_perms=n_perms, groups=groups, rng=seed)
    columns: dict[str, np.ndarray | float | None] = {stat: result.score, "pval_norm": result.pval_norm, "var_norm": result.var_norm}
    if n_perms is not None:
        columns |= {"pval_z_sim": result.pval_z_sim, "pval_sim": result.pval_sim, "var_sim": result.var_sim}
    table = pd.DataFrame(columns, index=names)
    for name in [c for c in table.columns if c.startswith("pval")]:
        table[f"{name}_fdr_bh"] = _adjusted(table[name].to_numpy())
    adata.uns[key] = table.sort_values(stat, ascending=mode == "geary", kind="stable")
    provenance.record(
        adata,
        key,
        mode=mode,
        layer=layer,
        n_perms=n_perms,
        seed=seed,
        library_key=library_key,
        libraries=list(found),
        diagonal=diagonal,
        transformation=transformation,
        n_obs=sum(len(lib.rows) for lib in found.values()),
    )
    logger.info("spatial_autocorr: %s of %d genes over %d observations of %d libraries", stat, len(names), len(groups), len(found))


def _adjusted(pvalues: np.ndarray) -> np.ndarray:
    """Return Benjamini and Hochberg's adjusted p-values; NaN stays NaN and does not count."""
    out = np.full(len(pvalues), np.nan)
    known = ~np.isnan(pvalues)
    if known.any():
        out[known] = scipy.stats.false_discovery_control(pvalues[known], method="bh")
    return out
