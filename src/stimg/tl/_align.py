"""Image and expression of the same observations in one space."""

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from stimg._core import keys, provenance, validate
from stimg._core.rng import RngLike, as_generator
from stimg.data.ledger import recall, remember
from stimg.data.slots import library_rows
from stimg.data.tables import table_of

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)
MOST_SHUFFLED = 10_000
"""Most scores of shuffled pairs that are kept."""


def align(
    data: "AnnData | SpatialData",
    *,
    model: Any,
    library_key: str = keys.LIBRARY,
    key_added: str = "clip",
    rng: RngLike = 0,
    table_key: str = "table",
) -> None:
    """Write ``obsm["X_stimg_clip_image"]`` and ``obsm["X_stimg_clip_genes"]`` (float32, n_obs x dim), and ``obs["stimg_pair_score"]``, their cosine.

    Parameters
    ----------
    data
        Observations with the image features and the genes that the model knows.
    model
        A trained :class:`stimg.model.ImageGeneCLIP`.
    library_key
        Column of ``obs`` with the library: pairs are shuffled within it.
    key_added
        The middle of the names ``"X_stimg_<key_added>_image"`` and ``"X_stimg_<key_added>_genes"``. The score is ``"stimg_pair_score"`` for
        ``"clip"``, else ``"stimg_<key_added>_pair_score"``.
    rng
        How pairs are shuffled.
    table_key
        Table of a SpatialData.

    Raises
    ------
    KeyError
        For missing slots.
    TypeError
        For a model that does not embed both sides.

    Notes
    -----
    ``uns["stimg"]["stimg_pair_score"]["shuffled"]`` holds at most 10,000 scores of images with expression of other observations of their
    library, for comparison: a score says something where it is higher than those.

    Examples
    --------
    >>> import numpy as np, stimg
    >>> adata = stimg.datasets.simulate(technology="visium", shape=(12, 12), n_genes=30, rng=0)
    >>> adata.obsm["X_features"] = np.random.default_rng(0).normal(size=(adata.n_obs, 16)).astype(np.float32)
    >>> stimg.model.ImageGeneCLIP.setup_anndata(adata, image="X_features")
    >>> model = stimg.model.ImageGeneCLIP(adata, n_dim=8)
    >>> model.train(max_epochs=1, validation=None, enable_progress_bar=False)
    >>> stimg.tl.align(adata, model=model)
    >>> adata.obsm["X_stimg_clip_image"].shape, adata.obsm["X_stimg_clip_genes"].shape
    ((144, 8), (144, 8))
    """
    adata = table_of(data, table_key)
    if not (hasattr(model, "get_image_embedding") and hasattr(model, "get_gene_embedding")):
        raise TypeError(f"model is a {type(model).__name__}; wanted a trained stimg.model.ImageGeneCLIP.")
    column = validate.obs(adata, library_key, todo="Name the library of every observation, or pass `library_key=`.")
    image, genes = (np.asarray(each(adata), dtype=np.float32) for each in (model.get_image_embedding, model.get_gene_embedding))
    a, b = _unit(image), _unit(genes)
    score = "stimg_pair_score" if key_added == "clip" else f"stimg_{key_added}_pair_score"
    shuffled = _shuffled(a, b, list(library_rows(column).values()), as_generator(rng))
    slots = {keys.embedding_key(f"{key_added}_image"): image, keys.embedding_key(f"{key_added}_genes"): genes}
    for name, values in slots.items():
        adata.obsm[name] = values
        provenance.record(adata, name, verb="stimg.tl.align", unit="embedding", **model.identity(adata))
        remember(adata, name, *recall(model))
    adata.obs[score] = np.einsum("ij,ij->i", a, b)
    provenance.record(
        adata,
        score,
        verb="stimg.tl.align",
        unit="cosine",
        shuffled=shuffled,
        library_key=library_key,
        embeddings=list(slots),
        **model.identity(adata),
    )
    remember(adata, score, *recall(model))
    logger.info("Wrote adata.obsm[%r], [%r] and adata.obs[%r]: %d observations x %d", *slots, score, *image.shape)


def _unit(values: np.ndarray) -> np.ndarray:
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)


def _shuffled(a: np.ndarray, b: np.ndarray, libraries: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Return cosines of rows of ``a`` with rows of ``b`` of other observations of the library, float32, at most MOST_SHUFFLED in all."""
    pairs = []
    for rows in libraries:
        if len(rows) > 1:
            order = rng.permutation(rows)
            pairs.append(np.stack([order, np.roll(order, 1)]))  # one cycle: no observation is its own partner
    if not pairs:
        return np.zeros(0, dtype=np.float32)
    image, genes = np.concatenate(pairs, axis=1)
    if len(image) > MOST_SHUFFLED:
        some = rng.choice(len(image), size=MOST_SHUFFLED, replace=False)
        image, genes = image[some], genes[some]
    return np.einsum("ij,ij->i", a[image], b[genes]).astype(np.float32)
