"""What an expression head is fitted on: features and log values of observations of several tables, and the groups that are left out in turn."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from stimg._core import keys, validate
from stimg._core.panel import is_control
from stimg.image.split import balanced_blocks

if TYPE_CHECKING:
    from anndata import AnnData

SCALE = 1e4
MOST_GROUPS = 5
"""Most groups that are left out in turn; where there are more donors (sections), several make one group."""
BLOCKS = 4
"""Contiguous parts of the one section that are left out in turn where there is no other."""
FEATURES_TODO = "Run `stimg.tl.embed_image` (or `stimg.pp.colour_statistics`) first, or pass `features=`."
LIBRARY_TODO = "Name the section of every observation, or pass `library_key=`."


@dataclass(frozen=True)
class Groups:
    """``label`` int64 (n,), the group of each observation; ``level``, what is left out in turn: ``"donor"``, ``"section"`` or ``"block"``."""

    label: np.ndarray
    level: str

    @property
    def names(self) -> np.ndarray:
        """The groups, ascending."""
        return np.unique(self.label)


@dataclass(frozen=True)
class Reference:
    """Observations to learn from.

    Parameters
    ----------
    values
        log(1 + counts per 10,000) of the genes, CSR float32 (n, genes).
    section
        Code of the section of each observation, int64 (n,).
    donor
        Code of its donor, int64 (n,); None where the donor of some section is not known.
    place
        (y, x) of each observation, float64 (n, 2); None where there are no coordinates.
    depth
        log of the counts of all genes but control probes, at least one, float64 (n,).
    """

    values: sp.csr_matrix
    section: np.ndarray
    donor: np.ndarray | None
    place: np.ndarray | None
    depth: np.ndarray

    def take(self, rows: np.ndarray) -> "Reference":
        """Return the observations ``rows``; codes stay what they are."""
        donor, place = (None if each is None else each[rows] for each in (self.donor, self.place))
        return Reference(self.values[rows], self.section[rows], donor, place, self.depth[rows])

    def groups(self, rows: np.ndarray) -> Groups:
        """Return the groups of the observations ``rows``: donors, sections where there is one donor, blocks where there is one section."""
        for level, codes in (("donor", self.donor), ("section", self.section)):
            if codes is not None and len(np.unique(codes[rows])) > 1:
                return Groups(_few(codes[rows]), level)
        if self.place is None or len(rows) < BLOCKS:
            raise ValueError(
                f"the reference has one section of {len(rows)} observations{' without coordinates' if self.place is None else ''}; wanted several donors or "
                f'sections, or at least {BLOCKS} observations with obsm["{keys.SPATIAL}"], parts of which can be left out in turn.'
            )
        return Groups(balanced_blocks(self.place[rows], BLOCKS).astype(np.int64), "block")


def _few(codes: np.ndarray) -> np.ndarray:
    """Return the codes as groups from 0, at most MOST_GROUPS: the largest first, each into the group that is smallest by then."""
    found, sizes = np.unique(codes, return_counts=True)
    if len(found) <= MOST_GROUPS:
        return np.searchsorted(found, codes).astype(np.int64)
    group, load = np.zeros(len(found), dtype=np.int64), np.zeros(MOST_GROUPS)
    for i in np.argsort(-sizes, kind="stable"):
        group[i] = int(np.argmin(load))
        load[group[i]] += sizes[i]
    return group[np.searchsorted(found, codes)]


def tables_of(reference: Any, *, what: str = "reference") -> "list[AnnData]":
    """Return one AnnData or a sequence of them as a list."""
    tables = [reference] if hasattr(reference, "obs_names") else list(reference)
    wrong = [type(each).__name__ for each in tables if not (hasattr(each, "obsm") and hasattr(each, "var_names"))]
    if wrong or not tables:
        raise TypeError(f"{what} holds {wrong or 'nothing'}; wanted an AnnData, or a list of them, with counts and image features.")
    for each in tables:
        validate.not_empty(each)
    return tables


def shared_genes(tables: "Sequence[AnnData]", genes: Sequence[str] | None, layer: str | None) -> list[str]:
    """Return ``genes``, measured in all tables; or, for None, all that are, but for control probes and genes without a count."""
    for each in tables:
        validate.unique_names(each.var_names, "gene names", todo="Run `adata.var_names_make_unique()` first.")
    if genes is not None:
        wanted = validate.names(genes)
        if not wanted:
            raise ValueError("genes is empty; wanted at least one, or None for all that were measured.")
        validate.unique_names(pd.Index(wanted), "genes asked for", todo="Name each gene once.")
        for each in tables:
            validate.genes(
                wanted, each.var_names, what="genes asked for", todo="Choose genes that every section of the reference measured."
            )
        return wanted
    names = tables[0].var_names[~is_control(tables[0].var)]
    for each in tables[1:]:
        names = names[names.isin(each.var_names)]
    total = np.zeros(len(names))
    for each in tables:
        total += np.asarray(validate.counts(each, layer).sum(axis=0), dtype=np.float64).ravel()[each.var_names.get_indexer(names)]
    if not (total > 0).any():
        raise ValueError(
            f"the {len(tables)} tables of the reference share {len(names)} genes, none with a count; wanted genes that all of them measured."
        )
    return [str(name) for name in names[total > 0]]


def log_depth(adata: "AnnData", layer: str | None) -> np.ndarray:
    """Return log of the counts of all genes but control probes, at least one, float64 (n_obs,)."""
    return np.log(np.maximum(_depth(adata, validate.counts(adata, layer)), 1.0))


def _depth(adata: "AnnData", counts: Any) -> np.ndarray:
    return np.asarray(counts[:, np.flatnonzero(~is_control(adata.var))].sum(axis=1), dtype=np.float64).ravel()


def log_values(adata: "AnnData", genes: Sequence[str], layer: str | None) -> sp.csr_matrix:
    """Return log(1 + counts per 10,000 of all genes but control probes), CSR float32 (n_obs, genes); 0 for a gene that was not measured."""
    counts = validate.counts(adata, layer)
    depth = _depth(adata, counts)
    at = adata.var_names.get_indexer(pd.Index(list(genes)))
    there = np.flatnonzero(at >= 0)
    pick = sp.csr_matrix((np.ones(len(there)), (at[there], there)), shape=(adata.n_vars, len(at)))
    some = sp.csr_matrix(sp.csr_matrix(counts, dtype=np.float64) @ pick)
    some = sp.csr_matrix(sp.diags_array(np.divide(SCALE, depth, out=np.zeros(len(depth)), where=depth > 0)) @ some)
    return sp.csr_matrix(some.log1p(), dtype=np.float32)


def features_of(adata: "AnnData", features: Sequence[str]) -> np.ndarray:
    """Return the slots ``features`` of ``obsm`` beside each other, finite, float64 (n_obs, columns)."""
    parts = []
    for key in features:
        part = np.asarray(validate.slot(adata.obsm, "obsm", key, todo=FEATURES_TODO))
        if part.ndim != 2 or part.shape[1] == 0 or part.dtype.kind not in "biuf":
            raise ValueError(f"adata.obsm[{key!r}] has shape {part.shape} and dtype {part.dtype}; wanted numbers, (n_obs, columns).")
        validate.finite(part, f"adata.obsm[{key!r}]", todo="Remove these observations, or compute the features again.")
        parts.append(part.astype(np.float64, copy=False))
    return np.concatenate(parts, axis=1)


def sections_of(tables: "Sequence[AnnData]", library_key: str) -> tuple[np.ndarray, list[str]]:
    """Return the code of every observation's section, int64, and the names; a section that is in two tables is an error."""
    columns = [validate.obs(each, library_key, todo=LIBRARY_TODO).astype(str) for each in tables]
    names = [name for column in columns for name in sorted(column.unique())]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"the sections {twice} are in several tables of the reference; wanted each once. Rename them, or leave one out.")
    code = {name: i for i, name in enumerate(names)}
    return np.concatenate([column.map(code).to_numpy(dtype=np.int64) for column in columns]), names


def reference_of(
    tables: "Sequence[AnnData]",
    genes: Sequence[str],
    *,
    layer: str | None,
    library_key: str,
    donor_key: str,
    more: "Sequence[AnnData]" = (),
) -> Reference:
    """Return the observations of all tables below each other, and below them those of ``more``, which need not have coordinates."""
    every = [*tables, *more]
    section, _ = sections_of(every, library_key)
    donor = None
    if all(donor_key in each.obs and not each.obs[donor_key].isna().any() for each in every):
        donor = np.unique(np.concatenate([each.obs[donor_key].astype(str).to_numpy() for each in every]), return_inverse=True)[1]
    place = None
    if all(keys.SPATIAL in each.obsm for each in tables):
        todo = "Coordinates of every observation are needed."
        found = [validate.obsm(each, keys.SPATIAL, columns=2, todo=todo)[:, ::-1] for each in tables]
        place = np.concatenate([*found, *(np.full((each.n_obs, 2), np.nan) for each in more)]).astype(np.float64)
    values = sp.csr_matrix(sp.vstack([log_values(each, genes, layer) for each in every]))
    return Reference(values, section, donor, place, np.concatenate([log_depth(each, layer) for each in every]))
