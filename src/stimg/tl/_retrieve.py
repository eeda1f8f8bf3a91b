"""Which expression goes with an image, and which image with expression."""

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from stimg._core import hashing, keys, provenance, validate
from stimg.data.ledger import recall, remember
from stimg.data.tables import table_of
from stimg.metrics import nearest
from stimg.metrics import retrieve as rank_of_partners

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)
DIRECTIONS = ("image to expression", "expression to image")
KS = (1, 5, 10, 50)


def retrieve(
    data: "AnnData | SpatialData",
    *,
    reference: "AnnData | SpatialData | None" = None,
    model: Any = None,
    image_key: str | None = None,
    gene_key: str | None = None,
    direction: str = "image to expression",
    k: int = 5,
    within_library: bool = False,
    normalise: bool = True,
    library_key: str = keys.LIBRARY,
    key_added: str = "stimg_retrieval",
    table_key: str = "table",
    chunk: int = 256,
) -> None:
    """Write ``obsm["stimg_retrieval"]`` (int64, n_obs x k): the rows of the reference whose other side is most similar, best first, -1 where there are none.

    Also ``obsm["stimg_retrieval_score"]`` (float32, n_obs x k), their similarities, and, where the reference is the data itself, so that each observation has
    a true partner, ``obs["stimg_retrieval_rank"]`` and ``obs["stimg_retrieval_gallery"]``: the rank of the partner, and among how many.

    Parameters
    ----------
    data
        The queries.
    reference
        The gallery; None: ``data`` itself.
    model
        A trained :class:`stimg.model.ImageGeneCLIP` that makes the embeddings of both sides; or
    image_key, gene_key
        slots of ``obsm`` that hold them already, of one width and in one space (:func:`stimg.tl.align` writes such).
    direction
        ``"image to expression"``: the query is an image, the gallery expression; or ``"expression to image"``.
    k
        Items for each query.
    within_library
        Whether the gallery of a query is its own library.
    normalise
        Whether similarity is the cosine; else the dot product.
    library_key
        Column of ``obs``, in both objects, for ``within_library``.
    key_added
        Name of the slots.
    table_key
        Table of a SpatialData.
    chunk
        Queries that are compared at a time; memory grows with it, and the result does not change.

    Raises
    ------
    KeyError
        For missing slots or columns.
    ValueError
        For embeddings of different widths, an unknown direction, both or none of a model and keys.

    Notes
    -----
    There is never a matrix of all queries by all items. Ranks are those of :func:`stimg.metrics.retrieve`: items with equal scores share their mean
    rank. ``uns["stimg"]["stimg_retrieval"]`` holds recall beside chance.

    Examples
    --------
    >>> import numpy as np, stimg
    >>> adata = stimg.datasets.simulate(technology="visium", shape=(6, 6), n_genes=10, rng=0)
    >>> adata.obsm["X_a"] = np.random.default_rng(0).standard_normal((36, 4)).astype(np.float32)
    >>> adata.obsm["X_b"] = adata.obsm["X_a"] + np.float32(0.1)
    >>> stimg.tl.retrieve(adata, image_key="X_a", gene_key="X_b", k=3)
    >>> adata.obsm["stimg_retrieval"].shape, float(adata.obs["stimg_retrieval_rank"].median())
    ((36, 3), 1.0)
    """
    adata = table_of(data, table_key)
    other = adata if reference is None else table_of(reference, table_key)
    validate.one_of(direction, DIRECTIONS, "direction")
    k = validate.whole(k, "k")
    sides = ("image", "gene") if direction == DIRECTIONS[0] else ("gene", "image")
    named = {"image": image_key, "gene": gene_key}
    query, gallery = (_embedding(each, side, model, named) for each, side in zip((adata, other), sides, strict=True))
    if query.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"the {sides[0]} side has {query.shape[1]} columns and the {sides[1]} side {gallery.shape[1]}; wanted embeddings in one space. Run `stimg.tl.align`."
        )
    groups: dict[str, Any] = {"within": None}
    if within_library:
        todo = "Name the library of every observation, or pass `within_library=False`."
        own, home = (validate.obs(each, library_key, todo=todo).astype(str).to_numpy() for each in (adata, other))
        groups = {"within": "group", "group": own, "gallery_group": home}
    found = nearest(query, gallery, k=k, normalise=normalise, chunk=chunk, **groups)
    facts: dict[str, Any] = {}
    ranks = None
    if other is adata:
        if within_library:
            groups.pop("gallery_group")
        ranks = rank_of_partners(query, gallery, normalise=normalise, **groups)
        table = ranks.table([each for each in KS if each < ranks.gallery.max()] or [1])
        facts = {name.replace("@", "_at_"): value for name, value in table.items()}
    adata.obsm[key_added] = found.index
    adata.obsm[f"{key_added}_score"] = found.score.astype(np.float32)
    for name in ("rank", "gallery"):
        if ranks is not None:
            adata.obs[f"{key_added}_{name}"] = getattr(ranks, name)
        else:
            adata.obs.drop(columns=f"{key_added}_{name}", errors="ignore", inplace=True)
    provenance.record(
        adata,
        key_added,
        verb="stimg.tl.retrieve",
        unit="rows of the reference",
        direction=direction,
        reference="itself" if other is adata else "another object",
        reference_hash=hashing.of_strings(other.obs_names),
        n_reference=other.n_obs,
        within_library=within_library,
        library_key=library_key,
        similarity="cosine" if normalise else "dot product",
        model="none" if model is None else type(model).__name__,
        image_key=image_key,
        gene_key=gene_key,
        **facts,
    )
    used = [name for name in named.values() if name is not None]
    seen = (
        recall(model)
        if model is not None
        else [s for each in ([adata] if other is adata else [adata, other]) for s in recall(each, only=used)]
    )
    remember(adata, key_added, *seen)
    logger.info("Wrote adata.obsm[%r]: %d of %d for each of %d observations", key_added, k, other.n_obs, adata.n_obs)


def _embedding(adata: "AnnData", side: str, model: Any, named: dict[str, str | None]) -> np.ndarray:
    given = [name for name in named.values() if name is not None]
    if model is not None:
        if given:
            raise ValueError(f"model= makes the embeddings, and {given} hold them already; wanted one or the other.")
        if not hasattr(model, "get_image_embedding"):
            raise TypeError(f"model is a {type(model).__name__}; wanted a trained stimg.model.ImageGeneCLIP.")
        return np.asarray(model.get_image_embedding(adata) if side == "image" else model.get_gene_embedding(adata))
    if len(given) < 2:
        raise ValueError(f"image_key={named['image']!r} and gene_key={named['gene']!r}; wanted both, or a trained model as `model=`.")
    key = str(named[side])
    values = np.asarray(validate.slot(adata.obsm, "obsm", key, todo="Run `stimg.tl.align` first, or pass another key."))
    if values.ndim != 2 or values.dtype.kind not in "biuf":
        raise ValueError(f"adata.obsm[{key!r}] has shape {values.shape} and dtype {values.dtype}; wanted numbers, (n_obs, columns).")
    return values
