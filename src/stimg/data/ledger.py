"""The ledger for tables: which observations of an AnnData a fitted thing has seen, and whether an evaluation may use the others."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
from scipy.spatial import KDTree

from stimg._core import hashing, keys, validate
from stimg._core.ledger import LEVELS, Leak, LeakageError, Seen
from stimg.data.slots import library_rows

if TYPE_CHECKING:
    from anndata import AnnData

NEIGHBOUR = 1.5
"""Two observations are neighbours where they are closer than this many pitches (the smallest distance of a section's observations)."""
_NAMES_OF = {"observation": (), "section": ("libraries",), "donor": ("libraries", "donors")}


def ids(adata: "AnnData", *, library_key: str = keys.LIBRARY) -> np.ndarray:
    """Return one uint64 per observation that depends on its library and its name alone, (n_obs,)."""
    library = adata.obs[library_key].astype(str) if library_key in adata.obs else ["" for _ in range(adata.n_obs)]
    return hashing.of_names(f"{lib}\0{name}" for lib, name in zip(library, adata.obs_names, strict=True))


def contents(adata: "AnnData", genes: Sequence[str] | None = None, *, layer: str | None = None) -> np.ndarray | None:
    """Return one uint64 per observation that depends on its counts of ``genes`` alone, (n_obs,); None where some of them are not measured."""
    matrix = validate.matrix(adata, layer)
    if genes is None:
        return hashing.of_observations(matrix, adata.var_names)
    at = adata.var_names.get_indexer(list(genes))
    if (at < 0).any():
        return None
    return hashing.of_observations(sp.csr_matrix(matrix)[:, at], adata.var_names[at])


def _column(adata: "AnnData", key: str, rows: np.ndarray) -> tuple[str, ...]:
    return tuple(adata.obs[key].iloc[rows].dropna().astype(str).unique()) if key in adata.obs else ()


def _rows(adata: "AnnData", rows: Any) -> np.ndarray:
    """Return positions from a mask, positions, or None for all."""
    if rows is None:
        return np.arange(adata.n_obs)
    found = np.asarray(rows)
    if found.dtype == bool and len(found) != adata.n_obs:
        raise ValueError(f"rows is a mask of {len(found)} values; wanted {adata.n_obs}, one per observation.")
    return np.flatnonzero(found) if found.dtype == bool else found.astype(np.int64)


def seen_of(
    adata: "AnnData",
    *,
    who: str,
    kind: str,
    rows: Any = None,
    genes: Sequence[str] | None = None,
    layer: str | None = None,
    images: Iterable[int] = (),
    library_key: str = keys.LIBRARY,
    donor_key: str = keys.DONOR,
) -> Seen:
    """Return the record of a thing that was fitted on observations of ``adata``.

    Parameters
    ----------
    adata
        Raw counts in ``X`` or ``layers[layer]``, ``obs`` with the library and, where known, the donor.
    who, kind
        Name and kind of the fitted thing, see :class:`stimg.bench.Seen`.
    rows
        The observations it has read: a mask (n_obs,), positions, or None for all.
    genes
        The genes whose counts it has read; None is all of ``var_names``.
    layer
        Layer with raw counts.
    images
        Perceptual hashes of images it has read (:func:`stimg.image.image_hash`).
    library_key, donor_key
        Columns of ``obs``.

    Raises
    ------
    KeyError
        For genes that are not in ``var_names``.
    ValueError
        For an unknown kind, or a mask of another length.

    Examples
    --------
    >>> import stimg
    >>> adata = stimg.datasets.simulate(technology="visium", shape=(8, 8), n_genes=20, rng=0)
    >>> len(stimg.bench.seen_of(adata, who="PCA", kind="PCA", rows=adata.obs["array_row"] < 4))
    32
    """
    at = _rows(adata, rows)
    if genes is not None:
        validate.genes(genes, adata.var_names, what="genes", todo="Pass names of adata.var_names.")
    part = adata[at]
    found = contents(part, genes, layer=layer)
    return Seen(
        who,
        kind,
        ids=ids(part, library_key=library_key),
        contents=found if found is not None else np.zeros(0, np.uint64),
        genes=tuple(adata.var_names if genes is None else genes),
        images=np.asarray(list(images), dtype=np.uint64),
        libraries=_column(adata, library_key, at),
        donors=_column(adata, donor_key, at),
    )


def remember(adata: "AnnData", key: str, *seen: Seen) -> None:
    """Write ``seen`` into ``uns["stimg"][key]["seen"]``, beside the record of the slot ``key`` that came from these fitted things."""
    space = adata.uns.setdefault(keys.UNS, {})
    space.setdefault(key, {})["seen"] = {str(i): each.to_dict() for i, each in enumerate(seen)}


def recall(source: Any, only: Sequence[str] | None = None) -> list[Seen]:
    """Return what ``source`` remembers.

    Parameters
    ----------
    source
        A :class:`stimg.bench.Seen`, a model of stimg (its ``ledger``), an AnnData (the records in ``uns["stimg"]``), or an iterable of these.
    only
        Keys of ``uns["stimg"]`` to look at; None is all.

    Raises
    ------
    TypeError
        For anything else: a thing that does not remember what it has seen cannot be judged.
    """
    if isinstance(source, Seen):
        return [source]
    if hasattr(source, "ledger"):
        return list(source.ledger)
    if hasattr(source, "uns") and hasattr(source, "obs_names"):
        records = source.uns.get(keys.UNS, {})
        wanted = [k for k in records if only is None or k in only]
        kept = [records[k]["seen"] for k in wanted if isinstance(records[k], Mapping) and "seen" in records[k]]
        return [Seen.from_dict(each) for group in kept for each in group.values()]
    if isinstance(source, Iterable) and not isinstance(source, str | bytes):
        return [seen for each in source for seen in recall(each, only)]
    raise TypeError(
        f"{type(source).__name__} does not say what it has seen; wanted a Seen, a model of stimg or an AnnData with records in uns['stimg']. "
        "Describe it with `stimg.bench.seen_of`."
    )


def find_leaks(
    adata: "AnnData",
    fitted: Any,
    *,
    test: Any = None,
    level: str = "donor",
    layer: str | None = None,
    images: Iterable[int] = (),
    library_key: str = keys.LIBRARY,
    donor_key: str = keys.DONOR,
) -> list[Leak]:
    """Return who has seen what of the test observations; see :func:`check_leakage`."""
    validate.one_of(level, LEVELS, "level")
    at = _rows(adata, test)
    if not len(at):
        raise ValueError("There is no test observation; wanted at least one.")
    own_ids = ids(adata, library_key=library_key)
    libraries, donors = _column(adata, library_key, at), _column(adata, donor_key, at)
    hashes: dict[tuple[str, ...], np.ndarray | None] = {}
    pictures = np.asarray(list(images), dtype=np.uint64)
    leaks = []
    for seen in recall(fitted):
        if seen.genes not in hashes:
            hashes[seen.genes] = contents(adata, seen.genes, layer=layer) if seen.genes and len(seen.contents) else None
        known = hashes[seen.genes]
        by_name = np.isin(own_ids, seen.ids)
        by_counts = np.isin(known, seen.contents) & (known != 0) if known is not None else np.zeros(adata.n_obs, dtype=bool)
        either = by_name | by_counts

        def add(by: str, n: int, of: int, where: Sequence[str], seen: Seen = seen) -> None:
            if n:
                leaks.append(Leak(seen.who, seen.kind, by, int(n), of, tuple(where)))

        direct = len(leaks)
        if by_name[at].any():
            add("names", by_name[at].sum(), len(at), _column(adata, library_key, at[by_name[at]]))
        elif by_counts[at].any():
            add("counts", by_counts[at].sum(), len(at), _column(adata, library_key, at[by_counts[at]]))
        add("image", np.isin(pictures, seen.images).sum(), len(pictures), ())
        if len(leaks) > direct:
            continue
        near = _near(adata, either, at, library_key)
        add("neighbours", near.sum(), len(at), _column(adata, library_key, at[near]))
        if len(leaks) > direct:
            continue
        for name in _NAMES_OF[level]:
            mine = libraries if name == "libraries" else donors
            shared = sorted(set(getattr(seen, name)) & set(mine))
            add({"libraries": "section", "donors": "donor"}[name], len(shared), len(mine), shared)
            if shared:
                break
    return leaks


def check_leakage(adata: "AnnData", fitted: Any, *, allow_leakage: bool = False, **options: Any) -> list[Leak]:
    """Raise a :class:`stimg.bench.LeakageError` where something fitted has seen the observations that are to be scored.

    Parameters
    ----------
    adata
        The object with the test observations, best with the whole of their sections: neighbours can only be found there.
    fitted
        Everything that was fitted on the way to a prediction: :class:`stimg.bench.Seen` records, models, AnnData objects with records, lists.
    allow_leakage
        Return the findings in place of the error; a report made from them is stamped.
    test
        The observations to be scored: a mask, positions, or None for all.
    level
        ``"observation"``: nothing may have seen the test observations or their neighbours; ``"section"``: nor any other observation of their
        libraries; ``"donor"`` (default): nor of their donors.
    layer
        Layer with raw counts.
    images
        Perceptual hashes of the test images.
    library_key, donor_key
        Columns of ``obs``.

    Returns
    -------
    The findings, an empty list where there are none.

    Raises
    ------
    LeakageError
        Names who has seen what.
    TypeError
        For a thing that does not say what it has seen.
    ValueError
        For an unknown level, or no test observation.

    Notes
    -----
    An observation is recognised by library and name, or by its counts of the genes that the fitted thing has read, whatever its name. Counts
    cannot be compared where ``adata`` lacks some of those genes; then names decide. Neighbours are observations of one library within 1.5
    pitches by ``obsm["spatial"]``.

    Examples
    --------
    >>> import stimg
    >>> adata = stimg.datasets.simulate(technology="visium", shape=(8, 8), n_genes=20, rng=0)
    >>> pca = stimg.bench.seen_of(adata, who="PCA of all spots", kind="PCA")
    >>> stimg.bench.check_leakage(adata, pca)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    stimg._core.ledger.LeakageError: Leakage: the PCA 'PCA of all spots' has seen 64 of 64 test observations, ...
    """
    leaks = find_leaks(adata, fitted, **options)
    if leaks and not allow_leakage:
        raise LeakageError(leaks)
    return leaks


def _near(adata: "AnnData", seen: np.ndarray, at: np.ndarray, library_key: str) -> np.ndarray:
    """Return which of the test observations ``at`` have a neighbour in the mask ``seen``, bool (len(at),)."""
    out = np.zeros(len(at), dtype=bool)
    test = np.zeros(adata.n_obs, dtype=bool)
    test[at] = True
    if not (seen & ~test).any() or keys.SPATIAL not in adata.obsm:
        return out
    xy = np.asarray(adata.obsm[keys.SPATIAL], dtype=np.float64)
    groups = library_rows(adata.obs[library_key]) if library_key in adata.obs else {"": np.arange(adata.n_obs)}
    for rows in groups.values():
        fitted, mine = rows[(seen & ~test)[rows]], np.flatnonzero(np.isin(at, rows))
        if len(fitted) and len(mine):
            pitch = np.median(KDTree(xy[rows]).query(xy[rows], k=2)[0][:, 1])
            out[mine] = KDTree(xy[fitted]).query(xy[at[mine]])[0] <= NEIGHBOUR * pitch
    return out
