"""How an imputation network reads tables: the measured spots of each library on its lattice, and nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from stimg._core import keys, validate
from stimg._core.panel import is_control
from stimg.data.slots import raster_libraries
from stimg.image.spec import RasterSpec
from stimg.model._s2s_lattice import steps_of

if TYPE_CHECKING:
    from anndata import AnnData

FEWEST = 8
"""Measured spots that a library must have."""
SCALE = 1e4
HELPERS = 2000
"""Genes with most counts that help, beside those of interest, as in ``tl.impute``."""


@dataclass(frozen=True, eq=False)
class Section:
    """The measured points of one library.

    Parameters
    ----------
    name, spec
        The library and its raster.
    steps
        Their places, int64 (n, 2), see ``steps_of``; each once.
    values
        Log1p counts per 10,000, CSR float32 (n, G). Observations that share a lattice point are added up before.
    n_genes
        How many of the columns, the first ones, are genes of interest; the others help.
    counts
        Counts of all genes, float64 (n,).
    guide
        Features, float32 (n, D), or None.
    rows
        Row of the AnnData of each point, or of the first that shares it, int64 (n,).
    donor
        The donor, or the library where the donor is not known.
    """

    name: str
    spec: RasterSpec
    steps: np.ndarray
    values: sp.csr_matrix
    n_genes: int
    counts: np.ndarray
    guide: np.ndarray | None
    rows: np.ndarray
    donor: str = ""

    @property
    def hexagonal(self) -> bool:
        """Whether the lattice is hexagonal."""
        return self.spec.lattice == "hex"

    def part(self, chosen: np.ndarray) -> "Section":
        """Return the same with the points ``chosen`` (positions) alone."""
        guide = None if self.guide is None else self.guide[chosen]
        kept = (self.values[chosen], self.n_genes, self.counts[chosen], guide, self.rows[chosen])
        return Section(self.name, self.spec, self.steps[chosen], *kept, self.donor)

    def dense(self, genes: np.ndarray | None = None) -> np.ndarray:
        """Return values of ``genes``, or all, float32 (n, genes)."""
        return np.asarray((self.values if genes is None else self._by_gene[:, genes]).toarray())

    @cached_property
    def _by_gene(self) -> sp.csc_matrix:
        return self.values.tocsc()


def features(adata: Any, key: str) -> np.ndarray:
    """Return the guide features ``obsm[key]``, float32 (n_obs, D); an error where they are missing, not a table of numbers, or not finite."""
    found = np.asarray(validate.slot(adata.obsm, "obsm", key, todo="Compute the features that guide the imputation first."))
    if found.ndim != 2 or found.dtype.kind not in "fiu":
        raise ValueError(f"adata.obsm['{key}'] is {found.dtype} of shape {found.shape}; wanted numbers of shape ({adata.n_obs}, features).")
    validate.finite(found, f"adata.obsm['{key}']", todo="Fill or remove these observations.")
    return found.astype(np.float32)


def sections(
    adata: "AnnData",
    genes: Sequence[str],
    *,
    helpers: Sequence[str] = (),
    layer: str | None = None,
    library_key: str = keys.LIBRARY,
    guide_key: str | None = None,
    donor_key: str | None = None,
    rows: np.ndarray | None = None,
) -> list[Section]:
    """Return the libraries of ``adata`` with the values of ``genes`` and then of ``helpers``.

    Libraries without a point among ``rows`` (a mask, None: all) are left out.

    Raises
    ------
    KeyError
        Where a slot is missing, or a gene.
    ValueError
        Where counts are no counts, or a library has fewer than 8 measured points.
    """
    columns = validate.genes([*genes, *helpers], adata.var_names, what="genes", todo="Pass names of adata.var_names.")
    matrix = validate.counts(adata, layer)
    total = np.asarray(matrix[:, np.flatnonzero(~is_control(adata.var))].sum(axis=1), dtype=np.float64).ravel()
    matrix = sp.csr_matrix(matrix[:, columns], dtype=np.float64)
    guide = None if guide_key is None else features(adata, guide_key)
    out = []
    for name, library in raster_libraries(adata, library_key=library_key).items():
        here = np.arange(len(library.rows)) if rows is None else np.flatnonzero(rows[library.rows])
        if not len(here):
            continue
        at = library.rows[here]
        steps, first, point = np.unique(steps_of(library.spec, library.rc[here]), axis=0, return_index=True, return_inverse=True)
        if len(steps) < FEWEST:
            raise ValueError(f"library {name!r} has {len(steps)} measured points on its raster; wanted at least {FEWEST}. Leave it out.")
        join = sp.csr_matrix((np.ones(len(at)), (point.ravel(), np.arange(len(at)))), shape=(len(steps), len(at)))
        counts = join @ total[at]
        if not counts.any():
            raise ValueError(f"library {name!r} has no counts at all. Check the layer.")
        scaled = sp.csr_matrix(sp.diags_array(SCALE / np.maximum(counts, 1.0)) @ (join @ matrix[at]))
        scaled.data = np.log1p(scaled.data)
        mean = None if guide is None else np.asarray((join @ guide[at]) / join.sum(axis=1).reshape(-1, 1), dtype=np.float32)
        out.append(
            Section(
                name,
                library.spec,
                steps,
                scaled.astype(np.float32),
                len(genes),
                counts,
                mean,
                at[first],
                _donor(adata, donor_key, at, name),
            )
        )
    return out


def helpers_of(adata: "AnnData", genes: Sequence[str], *, layer: str | None = None, rows: np.ndarray | None = None) -> list[str]:
    """Return the genes with most counts in ``rows`` (a mask, None: all) that are not among ``genes``: of the first 2,000 those that help to know the others."""
    matrix = validate.counts(adata, layer)
    total = np.asarray((matrix if rows is None else matrix[np.flatnonzero(rows)]).sum(axis=0), dtype=np.float64).ravel()
    total[is_control(adata.var)] = -1.0
    most = np.argsort(-total, kind="stable")[:HELPERS]
    names = adata.var_names[most[total[most] > 0]]
    return [str(name) for name in names[~names.isin(list(genes))]]


def _donor(adata: "AnnData", key: str | None, rows: np.ndarray, library: str) -> str:
    """Return the donor of a library; its own name where no donor is given."""
    if key is None or key not in adata.obs:
        return library
    found = adata.obs[key].iloc[rows].dropna().astype(str).unique()
    return " and ".join(sorted(found)) or library
