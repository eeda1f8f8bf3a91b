"""Embeddings."""

import logging
from typing import TYPE_CHECKING

from stimg._core import keys, provenance
from stimg.data.ledger import remember
from stimg.data.tables import table_of

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from stimg.model import STMAE

logger = logging.getLogger(__name__)


def embed(
    data: "AnnData | SpatialData",
    *,
    model: "STMAE",
    key_added: str | None = None,
    mode: str = "tiles",
    overlap: int | None = None,
    batch_size: int = 32,
    table_key: str = "table",
) -> None:
    """Write the embedding of every observation into ``obsm["X_stimg_<model>"]`` (float32, n_obs x dim).

    Parameters
    ----------
    data
        Observations on a raster (:func:`stimg.pp.rasterize`), sharing genes with the model; an AnnData, or a SpatialData whose table is meant.
    model
        A trained model.
    key_added
        Slot to write; ``"X_stimg_stmae"`` where None.
    mode, overlap, batch_size
        As for :meth:`stimg.model.STMAE.get_latent_representation`.
    table_key
        Table of a SpatialData.

    Raises
    ------
    KeyError
        Where a slot is missing.
    ValueError
        Where no gene is shared, or the lattice is one the model does not know.
    RuntimeError
        Where the model is not trained.
    """
    adata = table_of(data, table_key)
    key = key_added or keys.embedding_key(type(model).__name__.lower())
    values = model.get_latent_representation(adata, mode=mode, overlap=overlap, batch_size=batch_size)
    adata.obsm[key] = values
    provenance.record(adata, key, verb="stimg.tl.embed", mode=mode, overlap=overlap, unit="embedding", **model.identity(adata))
    remember(adata, key, *model.ledger)
    logger.info("Wrote adata.obsm[%r]: %d observations x %d", key, *values.shape)
