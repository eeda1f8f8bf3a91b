"""Embeddings of expression."""

import logging
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stimg._core import keys, provenance, validate
from stimg.data.ledger import remember
from stimg.data.tables import table_of
from stimg.zoo.gene import GENE

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from stimg._core.ledger import Seen
    from stimg._core.rng import RngLike
    from stimg.model import STMAE, GeneEncoder

logger = logging.getLogger(__name__)
APPLIED = ("layer", "gene_key", "batch_size", "device")
FITTED = ("fit", "n_features", "genes", "layer")
READS: dict[str, tuple[str, ...]] = {
    "pca": FITTED,
    "scvi": (*FITTED, "batch_key", "max_epochs", "batch_size", "device"),
    "drvi": (*FITTED, "batch_key", "max_epochs", "batch_size", "device"),
    "stmae": ("path", "batch_size"),
    "nicheformer": ("path", "technology", *APPLIED),
    "scfoundation": ("path", *APPLIED),
}
"""Which arguments an encoder reads."""
PATHS = {
    "stmae": "It is the folder of a saved `stimg.model.STMAE`; or pass a trained one as `encoder=`.",
    "nicheformer": "It is the folder with the published files (see `stimg.model.GeneEncoder.pretrained`).",
    "scfoundation": "It is the folder with the published files (see `stimg.model.GeneEncoder.pretrained`).",
}
"""Encoders that come from a folder, and which one."""


def embed_genes(
    data: "AnnData | SpatialData",
    *,
    encoder: "str | GeneEncoder | STMAE" = "pca",
    fit: Any = None,
    path: "str | os.PathLike | None" = None,
    n_features: int | None = None,
    genes: Sequence[str] | None = None,
    layer: str | None = None,
    gene_key: str | None = None,
    batch_key: str | None = None,
    technology: str | None = None,
    max_epochs: int | None = None,
    batch_size: int | None = None,
    device: str | None = None,
    rng: "RngLike" = 0,
    key_added: str | None = None,
    library_key: str = keys.LIBRARY,
    donor_key: str = keys.DONOR,
    table_key: str = "table",
) -> None:
    """Write ``obsm["X_genes_<encoder>"]`` (float32, n_obs x width): an embedding of the expression of every observation.

    Parameters
    ----------
    data
        Observations with raw counts.
    encoder
        ``"pca"``, ``"scvi"``, ``"drvi"``: fitted here, or read from ``path``. ``"stmae"``, ``"nicheformer"``, ``"scfoundation"``: read from ``path``.
        Or a :class:`stimg.model.GeneEncoder` or a trained :class:`stimg.model.STMAE`, which is applied as it is.
    fit
        What ``"pca"``, ``"scvi"`` and ``"drvi"`` are fitted on: a mask (n_obs,), positions or names of observations of ``data``, or another AnnData.
        None: all of ``data``, and the ledger then says so of every observation.
    path
        Folder of a saved :class:`stimg.model.GeneEncoder` or :class:`stimg.model.STMAE`, or of published weights
        (:meth:`stimg.model.GeneEncoder.pretrained`).
    n_features, genes, batch_key, max_epochs
        As for :meth:`stimg.model.GeneEncoder.fit`.
    layer
        Layer with raw counts, in ``data`` and in ``fit``; STMAE reads the one that it was trained on.
    gene_key
        Column of ``var`` with the names by which an encoder from elsewhere calls the genes; None: ``var_names``.
    technology
        What Nicheformer is told, such as ``"xenium"``.
    batch_size, device
        As for :meth:`stimg.model.GeneEncoder.transform`. For ``"scvi"`` and ``"drvi"`` ``device`` is where they are trained.
    rng
        Of a fit. The global random state is left as it was.
    key_added
        Slot to write; ``"X_genes_<encoder>"`` where None.
    library_key, donor_key
        Columns of ``obs`` for the ledger.
    table_key
        Table of a SpatialData.

    Raises
    ------
    KeyError
        For genes, names, columns or layers that are not there.
    ValueError
        For values that are no counts, duplicated genes, arguments that the encoder does not read, and as :class:`stimg.model.GeneEncoder` says.
    ImportError, FileNotFoundError
        Where a package or a file is missing.

    Notes
    -----
    What is written remembers the observations that the encoder was fitted on, so that :func:`stimg.bench.check_leakage` finds a test section among
    them. To apply one encoder to several tables, fit it once: ``encoder = stimg.model.GeneEncoder.fit(adata, ...)``.

    Examples
    --------
    >>> import stimg
    >>> adata = stimg.datasets.simulate(technology="visium", shape=(8, 8), n_genes=20, n_donors=2, rng=0)
    >>> stimg.tl.embed_genes(adata, fit=adata.obs["donor"] == "D1", n_features=4)
    >>> adata.obsm["X_genes_pca"].shape
    (128, 4)
    """
    from stimg.model.gene_encoders import GeneEncoder

    adata = table_of(data, table_key)
    given = {
        "fit": fit,
        "path": path,
        "n_features": n_features,
        "genes": genes,
        "layer": layer,
        "gene_key": gene_key,
        "batch_key": batch_key,
        "technology": technology,
        "max_epochs": max_epochs,
        "batch_size": batch_size,
        "device": device,
    }
    options = {name: value for name, value in given.items() if value is not None}
    _check(encoder, options)
    if isinstance(encoder, str) and encoder != "stmae":
        columns = {"library_key": library_key, "donor_key": donor_key}
        encoder = _found(encoder, options) if "path" in options else _fitted(adata, encoder, options, rng=rng, **columns)
    if isinstance(encoder, GeneEncoder):
        values, ledger, facts = _by_encoder(adata, encoder, options)
    else:
        values, ledger, facts = _by_model(adata, encoder, options)
    key = key_added or f"X_genes_{facts['encoder']}"
    adata.obsm[key] = values
    provenance.record(adata, key, verb="stimg.tl.embed_genes", unit="embedding", layer=layer, **facts)
    remember(adata, key, *ledger)
    logger.info("Wrote adata.obsm[%r]: %d observations x %d by %s", key, *values.shape, GENE[facts["encoder"]].title)


def _check(encoder: Any, options: dict[str, Any]) -> None:
    """Raise where an encoder lacks what it needs, or is given what it would not read."""
    from stimg.model.gene_encoders import GeneEncoder, fitted_here

    if isinstance(encoder, str):
        what = f"encoder={encoder!r}"
        if encoder not in PATHS:
            fitted_here(encoder)
        elif "path" not in options:
            raise ValueError(f"{what} needs `path=`. {PATHS[encoder]} Embeddings made elsewhere come in with `stimg.pp.read_embedding`.")
        reads = READS[encoder]
        if encoder not in PATHS and "path" in options:
            what, reads = f"{what} from a folder", ("path", *APPLIED)
    elif isinstance(encoder, GeneEncoder):
        what, reads = f"the fitted {GENE[encoder.name].title} encoder", APPLIED
    else:
        from stimg.model import STMAE  # takes seconds to import

        if not isinstance(encoder, STMAE):
            raise TypeError(
                f"encoder is a {type(encoder).__name__}; wanted the name of a card (`stimg.zoo.list('gene')`), a stimg.model.GeneEncoder or a stimg.model.STMAE."
            )
        what, reads = "a trained STMAE", ("batch_size",)
    if unread := sorted(set(options) - set(reads)):
        raise ValueError(f"{what} does not read {unread}; it reads {sorted(reads)}. Leave the others out.")


def _found(encoder: str, options: dict[str, Any]) -> "GeneEncoder":
    """Return the encoder that a folder holds."""
    from stimg.model.gene_encoders import PRETRAINED, GeneEncoder

    path = options["path"]
    if encoder in PRETRAINED:
        return GeneEncoder.pretrained(encoder, path, technology=options.get("technology"))
    found = GeneEncoder.load(path)
    if found.name != encoder:
        raise ValueError(f"{path} holds a {found.name!r} encoder; wanted {encoder!r}. Pass encoder={found.name!r}, or another folder.")
    return found


def _fitted(adata: "AnnData", encoder: str, options: dict[str, Any], **more: Any) -> "GeneEncoder":
    """Return an encoder that is fitted on what ``fit`` says."""
    from stimg.model.gene_encoders import GeneEncoder

    own = {name: options[name] for name in options if name not in ("fit", "batch_size")}
    fit = options.get("fit")
    if hasattr(fit, "var_names"):
        return GeneEncoder.fit(fit, encoder, **own, **more)
    return GeneEncoder.fit(adata, encoder, rows=fit, **own, **more)


def _by_encoder(adata: "AnnData", encoder: "GeneEncoder", options: dict[str, Any]) -> "tuple[np.ndarray, Sequence[Seen], dict[str, Any]]":
    """Return the embedding by an encoder, what it has seen, and what a record says of it."""
    values = encoder.transform(adata, **{name: options[name] for name in APPLIED if name in options})
    validate.finite(values, f"the embedding by {GENE[encoder.name].title}", todo="Check the weights.")
    return values, encoder.ledger, encoder.identity()


def _by_model(adata: "AnnData", encoder: "str | STMAE", options: dict[str, Any]) -> "tuple[np.ndarray, Sequence[Seen], dict[str, Any]]":
    """Return the same of a trained STMAE, given or read from a folder."""
    from stimg.model import STMAE

    model = STMAE.load(options["path"]) if isinstance(encoder, str) else encoder
    values = model.get_latent_representation(adata, **{name: options[name] for name in ("batch_size",) if name in options})
    return values, model.ledger, {"encoder": "stmae", "n_features": values.shape[1], **model.identity(adata)}
