"""One library as a source of crops: its raster, its panel in a shared vocabulary, its depth. Loads no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.sparse as sp

from stimg._core import keys, panel, validate
from stimg.image.spec import RasterSpec

if TYPE_CHECKING:
    from anndata import AnnData

    from stimg.image.store import RasterStore


@dataclass(frozen=True, eq=False)
class Library:
    """One capture area, ready to be cropped.

    Parameters
    ----------
    name
        Its name, such as the value of ``obs["library_id"]``.
    store
        The counts of its observations, in raster order.
    spec
        How its observations lie on the lattice.
    panel
        Position of every column of ``store`` in the vocabulary, int64 (store.n_vars,); -1 for a column that must not become a channel.
    depth
        Total counts of every observation over all measured genes, control probes left out, float32 (n_obs,). Genes outside the vocabulary
        count: the depth says how deeply the spot was sequenced, whatever the model looks at.
    rows
        Row of every observation in the AnnData, int64 (n_obs,).
    rc
        Row and column of every observation on the raster, int32 (n_obs, 2). May be left out where no two observations share a lattice point.
    counts
        Whether the values are raw counts. False for a normalised layer, whose values the channel rules take as they are.
    spots
        The values of ``store`` once more as CSR (n_obs, store.n_vars), or None. Channel rules that look at all genes read them several times
        faster from here. Only where no two observations share a lattice point.
    """

    name: str
    store: "RasterStore"
    spec: RasterSpec
    panel: np.ndarray
    depth: np.ndarray
    rows: np.ndarray
    rc: np.ndarray | None = None
    counts: bool = True
    spots: sp.csr_matrix | None = None

    def __post_init__(self) -> None:
        if tuple(self.store.shape) != tuple(self.spec.shape):
            raise ValueError(f"library {self.name!r}: the store has shape {tuple(self.store.shape)} but the spec has {self.spec.shape}.")
        if self.panel.shape != (self.store.n_vars,):
            raise ValueError(
                f"library {self.name!r}: panel has shape {self.panel.shape}; wanted one entry per column of the store ({self.store.n_vars},)."
            )
        if self.depth.shape != self.rows.shape or self.rows.ndim != 1:
            raise ValueError(
                f"library {self.name!r}: depth {self.depth.shape} and rows {self.rows.shape} differ; wanted one value per observation."
            )
        if self.rc is not None and self.rc.shape != (len(self.rows), 2):
            raise ValueError(f"library {self.name!r}: rc has shape {self.rc.shape}; wanted ({len(self.rows)}, 2).")
        if self.spots is not None and self.spots.shape != (len(self.rows), self.store.n_vars):
            raise ValueError(f"library {self.name!r}: spots has shape {self.spots.shape}; wanted {(len(self.rows), self.store.n_vars)}.")
        if self.spots is not None and int((self.store.index >= 0).sum()) != len(self.rows):
            raise ValueError(f"library {self.name!r} has observations that share a lattice point. Leave `spots` out.")
        used = self.panel[self.panel >= 0]
        if not len(used):
            raise ValueError(
                f"library {self.name!r} measures no gene of the vocabulary. Compare the gene names of both (symbols or Ensembl identifiers?)."
            )
        if len(np.unique(used)) != len(used):
            raise ValueError(
                f"library {self.name!r}: {len(used) - len(np.unique(used))} columns of the store share a position of the vocabulary; wanted each once."
            )

    @cached_property
    def genes(self) -> np.ndarray:
        """Columns of the store that can become channels, int64, in the order of the vocabulary."""
        order = np.argsort(self.panel, kind="stable").astype(np.int64)
        return order[self.panel[order] >= 0]

    @cached_property
    def in_order(self) -> bool:
        """Whether the columns of the store that can become channels stand in the order of the vocabulary."""
        return bool((np.diff(self.genes) > 0).all())

    @cached_property
    def first(self) -> np.ndarray:
        """Row of the store that stands for every observation, int64 (n_obs,): the first one on its lattice point."""
        if self.rc is not None:
            index = self.store.index[self.rc[:, 0], self.rc[:, 1]].astype(np.int64)
        else:
            index = np.arange(len(self.rows), dtype=np.int64)
            occupied = int((self.store.index >= 0).sum())
            if occupied != len(self.rows):
                raise ValueError(
                    f"library {self.name!r} has {len(self.rows)} observations on {occupied} lattice points. Pass `rc` to Library."
                )
        return index

    @cached_property
    def points(self) -> np.ndarray:
        """Row and column of every observation, int64 (n_obs, 2)."""
        if self.rc is not None:
            return self.rc.astype(np.int64)
        found = np.full((len(self.rows), 2), -1, dtype=np.int64)
        row, col = np.nonzero(self.store.index >= 0)
        found[self.store.index[row, col]] = np.stack([row, col], axis=1)
        return found

    @cached_property
    def depth_image(self) -> np.ndarray:
        """Depth of every lattice point, float32 (rows, cols), 0 where there is no observation; observations on one point add up."""
        total = np.bincount(self.first, weights=self.depth, minlength=self.n_obs).astype(np.float32)
        return np.where(self.store.index >= 0, total[self.store.index], np.float32(0))

    @property
    def n_obs(self) -> int:
        """Number of observations on the raster."""
        return len(self.rows)


def libraries(
    adata: "AnnData",
    *,
    vocabulary: Sequence[str],
    layer: str | None = None,
    library_key: str = keys.LIBRARY,
    rows: np.ndarray | Sequence[int] | None = None,
    panels: Mapping[str, Sequence[str]] | None = None,
    counts: bool = True,
    by_spot: bool = True,
) -> list[Library]:
    """Return one :class:`Library` for every value of ``obs[library_key]``, in the order of the raster records.

    Parameters
    ----------
    adata
        Observations on a raster (:func:`stimg.pp.rasterize`).
    vocabulary
        Gene names, as in ``adata.var_names``; the position of a name is the id of its channel. Several objects with different panels
        share one vocabulary: their lists of libraries are simply added.
    layer
        Layer with raw counts; ``adata.X`` where None.
    library_key
        Column of ``obs`` that names the capture area.
    rows
        Observations to use, as positions or as a mask of length ``n_obs``. The others do not exist for the libraries returned: they are not
        seen, not counted, and no window is placed for them. Libraries without any of them are left out.
    panels
        Names of the genes that a library measured, for objects that were joined from different panels and hold zeros where a gene was not
        measured. Libraries that are not named measured all of ``var_names``.
    counts
        Whether the values have to be raw counts. With False any finite values are taken, and ``depth`` is their sum.
    by_spot
        Whether to keep the values in the order of the spots too (:attr:`Library.spots`), 3 to 6 bytes per non-zero. Batches do not depend on
        it; the channel rules ``"weighted"`` and ``"variance"`` are several times faster with it.

    Raises
    ------
    KeyError
        Where a slot is missing.
    ValueError
        Where values are no counts, names are not unique, or no gene is shared with the vocabulary.

    Notes
    -----
    Control probes (:func:`stimg._core.panel.is_control`) are never channels and do not count towards depth.
    """
    from stimg.data.slots import raster_libraries

    validate.not_empty(adata)
    validate.unique_names(adata.var_names, "gene names", todo="Run `adata.var_names_make_unique()` or add up the duplicates.")
    names = pd.Index([str(v) for v in vocabulary])
    validate.unique_names(names, "names in the vocabulary", todo="Pass every gene once.")
    gene = ~panel.is_control(adata.var)
    position = np.where(gene, names.get_indexer(pd.Index([str(v) for v in adata.var_names])), -1).astype(np.int64)
    if not (position >= 0).any():
        raise ValueError(
            f"None of the {len(names)} genes of the vocabulary (such as {list(names[:3])}) is among the {int(gene.sum())} genes of the object "
            f"(such as {[str(v) for v in adata.var_names[gene][:3]]}). Bring both to symbols or to Ensembl identifiers of one species."
        )
    matrix = _matrix(adata, layer, counts)
    wanted = _mask(rows, adata.n_obs)
    rasters = raster_libraries(adata, library_key=library_key)
    unknown = sorted(set(panels or {}) - set(rasters))
    if unknown:
        raise ValueError(f"panels names {unknown}, but the libraries are {list(rasters)}.")
    found = []
    for name, raster in rasters.items():
        kept = wanted[raster.rows]
        if not kept.any():
            continue
        own, rc = raster.rows[kept].astype(np.int64), np.ascontiguousarray(raster.rc[kept], dtype=np.int32)
        values = matrix[own]
        measured = gene if panels is None or name not in panels else _measured(name, values, gene, adata.var_names, panels[name])
        parts = _parts(values, raster.spec, rc, np.where(measured, position, -1), by_spot=by_spot)
        depth = (values @ measured.astype(np.float64)).astype(np.float32)
        found.append(Library(name, parts[0], raster.spec, parts[1], depth, own, rc, counts, parts[2]))
    if not found:
        raise ValueError(
            f"None of the {int(wanted.sum())} observations asked for lies on a raster. Check `rows`, and run `stimg.pp.rasterize` on them."
        )
    return found


def _measured(name: str, values: sp.csr_matrix, gene: np.ndarray, var_names: pd.Index, panel_names: Sequence[str]) -> np.ndarray:
    """Return which columns the library measured, bool (n_vars,)."""
    mask = gene & var_names.isin([str(v) for v in panel_names])
    if np.abs(values @ (gene & ~mask).astype(np.float64)).any():
        raise ValueError(f"library {name!r} has values for genes that panels[{name!r}] says it did not measure. Correct the panel.")
    return mask


def _parts(
    values: sp.csr_matrix, spec: RasterSpec, rc: np.ndarray, position: np.ndarray, *, by_spot: bool
) -> tuple["RasterStore", np.ndarray, sp.csr_matrix | None]:
    """Return the store, its panel, and the values by spot, of the columns with a position; columns in the order of the vocabulary."""
    from stimg.image.store import RasterStore

    columns = np.flatnonzero(position >= 0)
    columns = columns[np.argsort(position[columns])]
    chosen = sp.csr_matrix(values[:, columns])
    chosen.eliminate_zeros()
    chosen.sort_indices()
    store = RasterStore.from_csr(chosen, rc, spec.shape)
    spots = None
    if by_spot and int((store.index >= 0).sum()) == len(rc):
        spots = sp.csr_matrix(chosen.shape, dtype=store.dtype)
        # set one by one, because the constructor widens the indices to int32
        spots.indptr, spots.data = chosen.indptr, chosen.data.astype(store.dtype)
        spots.indices = chosen.indices.astype(np.uint16 if len(columns) < 2**16 else np.int32)
    return store, position[columns], spots


def _matrix(adata: "AnnData", layer: str | None, counts: bool) -> sp.csr_matrix:
    if counts:
        return validate.counts(adata, layer)
    return sp.csr_matrix(validate.finite_matrix(adata, layer))


def _mask(rows: np.ndarray | Sequence[int] | None, n_obs: int) -> np.ndarray:
    if rows is None:
        return np.ones(n_obs, dtype=bool)
    rows = np.asarray(rows)
    if rows.dtype == bool:
        if rows.shape != (n_obs,):
            raise ValueError(f"rows is a mask of shape {rows.shape}; wanted ({n_obs},), one value per observation.")
        return rows
    if rows.ndim != 1 or not (np.issubdtype(rows.dtype, np.integer) or rows.size == 0):
        raise TypeError(f"rows has dtype {rows.dtype} and shape {rows.shape}; wanted positions of observations or a boolean mask.")
    if rows.size and (rows.min() < 0 or rows.max() >= n_obs):
        raise ValueError(f"rows has values from {rows.min()} to {rows.max()}; wanted positions in 0 .. {n_obs - 1}.")
    mask = np.zeros(n_obs, dtype=bool)
    mask[rows.astype(np.int64)] = True
    if int(mask.sum()) != rows.size:
        raise ValueError(f"rows holds {rows.size - int(mask.sum())} positions twice; wanted every observation once.")
    return mask
