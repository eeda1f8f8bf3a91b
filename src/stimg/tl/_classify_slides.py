"""Labels of slides, and the tiles that they come from."""

import logging
from typing import TYPE_CHECKING

from stimg._core import keys, provenance
from stimg.data.ledger import remember
from stimg.data.tables import table_of

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from stimg.model import SlideClassifier

logger = logging.getLogger(__name__)


def classify_slides(
    data: "AnnData | SpatialData", *, model: "SlideClassifier", key_added: str = "stimg_slide", table_key: str = "table"
) -> None:
    """Write the weight of every tile into ``obs["stimg_slide_attention"]``, and for what it speaks into ``obsm["stimg_slide_contribution"]``.

    The probabilities of the slides are in ``uns["stimg"]["stimg_slide"]["table"]``, slides by rows and classes by columns.

    Parameters
    ----------
    data
        Tiles (spots, cells) of slides with the features that the model was trained on; an AnnData, or a SpatialData whose table is meant. Labels
        are not read.
    model
        A trained :class:`stimg.model.SlideClassifier`.
    key_added
        The beginning of the three names.
    table_key
        Table of a SpatialData.

    Raises
    ------
    KeyError
        Where a slot is missing.
    TypeError
        For a model that does not classify slides.
    ValueError
        Where the features are not those of the training: another width, another encoder, values that are not finite.
    RuntimeError
        Where the model is not trained.

    Notes
    -----
    Attention is float32, at least 0, and sums to 1 in each slide: a tile of twice as large a slide weighs half. Contributions are a float32 table
    (n_obs x classes), see :meth:`stimg.model.SlideClassifier.get_contribution`.

    Examples
    --------
    >>> import stimg
    >>> adata = stimg.datasets.simulate_cohort(n_donors=12, n_tiles=30, rng=0)
    >>> stimg.model.SlideClassifier.setup_anndata(adata, features="X_simulated", label_key="label")
    >>> model = stimg.model.SlideClassifier(adata, n_hidden=16)
    >>> model.train(max_epochs=2, enable_progress_bar=False)
    >>> stimg.tl.classify_slides(adata, model=model)
    >>> adata.obs["stimg_slide_attention"].groupby(adata.obs["library_id"], observed=True).sum().round(3).unique().tolist()
    [1.0]
    >>> adata.uns["stimg"]["stimg_slide"]["table"].shape
    (12, 2)
    """
    adata = table_of(data, table_key)
    if not (hasattr(model, "predict_proba") and hasattr(model, "get_contribution")):
        raise TypeError(f"model is a {type(model).__name__}; wanted a trained stimg.model.SlideClassifier.")
    found = model.read_slides(adata)
    attention, contribution = f"{key_added}_attention", f"{key_added}_contribution"
    adata.obs[attention] = found.attention
    adata.obsm[contribution] = found.contribution
    provenance.record(
        adata,
        key_added,
        verb="stimg.tl.classify_slides",
        unit="probability",
        attention=attention,
        contribution=contribution,
        **model.identity(adata),
    )
    adata.uns[keys.UNS][key_added]["table"] = found.proba
    remember(adata, key_added, *model.ledger)
    logger.info(
        "Wrote adata.obs[%r] and adata.obsm[%r]: %d observations of %d slides", attention, contribution, adata.n_obs, len(found.proba)
    )
