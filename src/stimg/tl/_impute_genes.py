"""Panel completion."""

import logging
from collections.abc import Sequence
from copy import deepcopy
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stimg._core import keys, provenance, validate
from stimg.data.ledger import remember
from stimg.data.tables import is_spatialdata, table_of

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from stimg.model import STMAE

logger = logging.getLogger(__name__)
UNIT = "log1p_cp10k"


def impute_genes(
    data: "AnnData | SpatialData",
    *,
    model: "STMAE",
    genes: str | Sequence[str] | None = None,
    key_added: str | None = None,
    mode: str = "tiles",
    overlap: int | None = None,
    batch_size: int = 32,
    table_key: str = "table",
    copy: bool = False,
) -> "AnnData | None":
    """Predict genes that the model must not see, and write them.

    Genes that ``data`` measured go into ``layers["stimg_<model>"]`` (float32, NaN for genes that were not asked for). With genes that it did
    not measure there is another gene set, so all predictions become a table of their own: it is returned for an AnnData (``copy=True`` is
    then required, as nothing is written), and added as ``tables["<model>_<table_key>"]`` to a SpatialData, annotating the same elements.

    Parameters
    ----------
    data
        Observations on a raster (:func:`stimg.pp.rasterize`), sharing genes with the model.
    model
        A trained model.
    genes
        Genes of the model's vocabulary to hide and predict. None: those that ``data`` did not measure.
    key_added
        Layer or table to write.
    mode, overlap, batch_size
        As for :meth:`stimg.model.STMAE.impute_genes`.
    table_key
        Table of a SpatialData.
    copy
        Whether to return the predictions as an AnnData (n_obs x genes asked for) instead of writing them.

    Returns
    -------
    None, or the predictions where ``copy`` is True: log1p counts per 10,000 in ``X``, with ``obs``, ``obsm`` and the raster of ``data``.

    Raises
    ------
    KeyError
        For genes outside the model's vocabulary, or a missing slot.
    ValueError
        Where an AnnData did not measure some of the genes and ``copy`` is False.
    """
    adata = table_of(data, table_key)
    genes = None if genes is None else validate.names(genes)
    name = type(model).__name__.lower()
    missing = [g for g in (model.genes if genes is None else genes) if g not in adata.var_names]
    if missing and not copy and not is_spatialdata(data):
        raise ValueError(
            f"{len(missing)} of the genes to predict are not in adata.var_names (such as {missing[:3]}), so no layer of adata can hold them. "
            "Pass `copy=True` to get them as a new AnnData."
        )
    values = model.impute_genes(adata, genes=genes, mode=mode, overlap=overlap, batch_size=batch_size)
    facts = {
        "verb": "stimg.tl.impute_genes",
        "unit": UNIT,
        "genes": list(values.columns),
        "mode": mode,
        "overlap": overlap,
        **model.identity(adata),
    }
    if copy or missing:
        table = _table(adata, values)
        key = key_added or f"{name}_{table_key}"
        provenance.record(table, keys.layer_key(name), **facts)
        remember(table, keys.layer_key(name), *model.ledger)
        if copy:
            return table
        data.tables[key] = table
        logger.info("Wrote sdata.tables[%r]: %d observations x %d genes", key, *values.shape)
        return None
    key = key_added or keys.layer_key(name)
    layer = np.full(adata.shape, np.nan, dtype=np.float32)
    layer[:, adata.var_names.get_indexer(values.columns)] = values.to_numpy()
    adata.layers[key] = layer
    provenance.record(adata, key, **facts)
    remember(adata, key, *model.ledger)
    logger.info("Wrote adata.layers[%r]: %d genes of %d observations", key, values.shape[1], values.shape[0])
    return None


def _table(adata: "AnnData", values: pd.DataFrame) -> "AnnData":
    from anndata import AnnData

    var = adata.var.reindex(values.columns)[[]]
    uns = {k: deepcopy(adata.uns[k]) for k in ("spatial", "spatialdata_attrs") if k in adata.uns}
    uns[keys.UNS] = {keys.RASTER: deepcopy(adata.uns[keys.UNS][keys.RASTER])}
    obsm = {k: adata.obsm[k].copy() for k in (keys.SPATIAL, keys.RC) if k in adata.obsm}
    return AnnData(values.to_numpy(dtype=np.float32), obs=adata.obs.copy(), var=var, uns=uns, obsm=obsm)
