"""How an alignment reads tables: image features, expression and finished embeddings, checked and, where asked for, centred."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from stimg._core import keys, validate
from stimg._core.panel import is_control
from stimg.model._saving import jsonable

if TYPE_CHECKING:
    from anndata import AnnData

    from stimg.model.image_gene_clip import ImageGeneCLIP

SCALE = 1e4
MEANING = (
    "verb",
    "encoder",
    "weights_hash",
    "model_hash",
    "n_features",
    "tile_um",
    "mpp",
    "fields",
    "size_px",
    "upsample",
    "windows_um",
)
"""What of the record of an embedding says whether another one means the same."""
ABOUT = ("licence", "commercial")
"""What of it goes on the model card."""
CHUNK = 8192


class Columns:
    """Rows of one side of the pairs, read when they are asked for: ``columns(rows)`` returns float32 (len(rows), width).

    Parameters
    ----------
    read
        Returns the values of rows.
    width
        Number of columns.
    """

    def __init__(self, read: Callable[[np.ndarray], np.ndarray], width: int) -> None:
        self.read, self.width = read, width
        self.means: np.ndarray | None = None
        self.codes: np.ndarray | None = None

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        values = np.asarray(self.read(rows), dtype=np.float32)
        return values if self.means is None or self.codes is None else values - self.means[self.codes[rows]]

    def held(self, n: int) -> "Columns":
        """Return the same with the values of all ``n`` rows in memory, for what costs much to read."""
        values = self(np.arange(n))
        return Columns(lambda rows: values[rows], self.width)

    def centre(self, codes: np.ndarray, among: np.ndarray) -> "Columns":
        """Subtract from now on the mean of each group: over its rows in the mask ``among``, or over all where none is there. Returns itself."""
        means = np.zeros((codes.max() + 1, self.width), dtype=np.float32)
        for code in np.unique(codes):
            rows = np.flatnonzero((codes == code) & among)
            rows = rows if len(rows) else np.flatnonzero(codes == code)
            total = np.zeros(self.width)
            for start in range(0, len(rows), CHUNK):
                total += np.asarray(self.read(rows[start : start + CHUNK]), dtype=np.float64).sum(axis=0)
            means[code] = total / len(rows)
        self.means, self.codes = means, codes
        return self


def _array(adata: "AnnData", key: str, todo: str) -> np.ndarray:
    found = validate.slot(adata.obsm, "obsm", key, todo=todo)
    array = np.asarray(found)
    if array.ndim != 2 or array.shape[1] == 0:
        raise ValueError(f"adata.obsm[{key!r}] has shape {array.shape}; wanted ({adata.n_obs}, features). {todo}")
    if array.dtype.kind not in "iuf":
        raise TypeError(f"adata.obsm[{key!r}] has dtype {array.dtype}; wanted numbers. {todo}")
    for start in range(0, len(array), CHUNK):
        validate.finite(array[start : start + CHUNK], f"adata.obsm[{key!r}]", todo=f"{todo} Leave out observations without an image.")
    return array


def source(adata: "AnnData", key: str) -> dict[str, Any]:
    """Return what ``uns["stimg"][key]`` says of where the embedding ``obsm[key]`` comes from, as plain values; nothing where there is no record."""
    record = adata.uns.get(keys.UNS, {}).get(key, {})
    found = {name: record[name] for name in MEANING if isinstance(record, Mapping) and name in record}
    if isinstance(record, Mapping) and isinstance(record.get("spec"), Mapping):
        found |= {name: record["spec"][name] for name in MEANING if name in record["spec"]}
    return jsonable(found)  # type: ignore[no-any-return]


def about(adata: "AnnData", key: str) -> dict[str, Any]:
    """Return the licence of the weights that made ``obsm[key]``, where it is known."""
    record = adata.uns.get(keys.UNS, {}).get(key, {})
    return jsonable({name: record[name] for name in ABOUT if isinstance(record, Mapping) and name in record})  # type: ignore[no-any-return]


def _same(one: Any, other: Any) -> bool:
    try:
        a, b = np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)
    except (TypeError, ValueError):
        return bool(one == other)
    return a.shape == b.shape and np.allclose(a, b, rtol=1e-6)


def check_source(known: Mapping[str, Any], adata: "AnnData", key: str) -> None:
    """Raise a ValueError where ``adata`` says of ``obsm[key]`` that it comes from elsewhere than in training."""
    found = source(adata, key)
    differ = [name for name in known if name in found and not _same(known[name], found[name])]
    if differ:
        told = "; ".join(f"{name} was {known[name]!r} and is {found[name]!r}" for name in differ)
        raise ValueError(
            f"adata.obsm[{key!r}] is not the embedding that the model was trained with: {told}. Make it as it was made for the training data."
        )


def features(adata: "AnnData", names: tuple[str, ...]) -> Columns:
    """Return the image features of several slots beside each other."""
    todo = "Write it with `stimg.tl.embed_image`, or name another slot in `setup_anndata(image=...)`."
    arrays = [_array(adata, name, todo) for name in names]
    width = sum(a.shape[1] for a in arrays)
    return Columns(lambda rows: np.concatenate([a[rows] for a in arrays], axis=1, dtype=np.float32, casting="unsafe"), width)


def embedding(adata: "AnnData", name: str) -> Columns:
    """Return a finished embedding of expression."""
    array = _array(adata, name, "Write it with `stimg.tl.embed_genes`, or name another slot in `setup_anndata(gene=...)`.")
    return Columns(lambda rows: array[rows].astype(np.float32), array.shape[1])


def expression(adata: "AnnData", genes: Any, layer: str | None, *, depth: bool = False) -> Columns:
    """Return log(1 + counts per 10,000) of ``genes``, of all counts but those of control probes; 0 throughout where there are no counts.

    With ``depth`` the last column is log(1 + all counts).
    """
    at = adata.var_names.get_indexer(genes)
    if (at < 0).any():
        missing = [str(g) for g in np.asarray(genes)[at < 0]]
        raise KeyError(
            f"{len(missing)} of the {len(at)} genes of the model are not in adata.var_names, such as {missing[:3]}. "
            "Read the full count table, or train a model on the genes that all sections share."
        )
    counts = validate.counts(adata, layer)
    total = np.asarray(counts[:, ~is_control(adata.var)].sum(axis=1), dtype=np.float64).ravel()
    own = sp.csr_matrix(counts[:, at], dtype=np.float64)
    own.data = np.log1p(own.data * np.repeat(SCALE / np.maximum(total, 1.0), np.diff(own.indptr)))
    own = own.astype(np.float32)
    if not depth:
        return Columns(lambda rows: own[rows].toarray(), len(at))
    deep = np.log1p(total).astype(np.float32)[:, None]
    return Columns(lambda rows: np.concatenate([own[rows].toarray(), deep[rows]], axis=1), len(at) + 1)


def codes_of(adata: "AnnData", key: str) -> tuple[np.ndarray, list[str]]:
    """Return the group of each observation, int64 (n_obs,), and the groups' names in sorted order."""
    column = validate.obs(adata, key, todo="Add the column, or name another one in `setup_anndata`.").astype(str)
    names, codes = np.unique(column.to_numpy(dtype=str), return_inverse=True)
    return codes.astype(np.int64), [str(n) for n in names]


def image_columns(model: "ImageGeneCLIP", adata: "AnnData") -> Columns:
    """Return the image features of ``adata``, after checking that they are those the model knows."""
    if model.reads_tiles:
        from stimg.model import _clip_tiles

        found = _clip_tiles.columns(model, adata)
        check_source(model.facts["sources"][keys.TILES], adata, keys.TILES)
        return found
    for key in model.image_keys:
        validate.slot(adata.obsm, "obsm", key, todo="Write it as it was written for the training data.")
        width, known = np.shape(adata.obsm[key]), model.facts["widths"][key]
        if len(width) != 2 or width[1] != known:
            raise ValueError(f"adata.obsm[{key!r}] has shape {width}; the model was trained with ({adata.n_obs}, {known}).")
        check_source(model.facts["sources"].get(key, {}), adata, key)
    return features(adata, model.image_keys)


def gene_columns(model: "ImageGeneCLIP", adata: "AnnData") -> Columns:
    """Return the gene side's input of ``adata``, after checking that it is what the model knows."""
    key = model.gene_key
    if key is None:
        return expression(adata, model.genes, model._layer, depth=model.options.depth)
    found, known = embedding(adata, key), model.facts["n_gene"]
    if found.width != known:
        raise ValueError(f"adata.obsm[{key!r}] has {found.width} columns; the model was trained with {known}.")
    check_source(model.facts["sources"].get(key, {}), adata, key)
    return found


def side(model: "ImageGeneCLIP", adata: "AnnData", name: str) -> Columns:
    """Return the input of one side, ``"image"`` or ``"gene"``, of data that the model is used on, centred where the model was trained so."""
    found = (image_columns if name == "image" else gene_columns)(model, adata)
    if not model.options.does("centre"):
        return found
    if name == "image" and model.reads_tiles:
        found = found.held(adata.n_obs)
    return found.centre(codes_of(adata, model._batch_key)[0], np.ones(adata.n_obs, dtype=bool))
