"""What is drawn: genes and columns of obs, read from the slots, with the words of the errors."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp

from stimg._core import keys, validate
from stimg.data.slots import raster_libraries
from stimg.pl import _style
from stimg.pl._geometry import Cells, cells_of

Transform = Literal["log1p"] | None


@dataclass(frozen=True)
class Shown:
    """One thing to draw: a value per observation, whether values add up on a lattice point, and how it is named.

    ``categories`` is empty for numbers; for categories ``values`` holds codes, NaN where missing, and ``colors`` one colour each.
    """

    name: str
    values: np.ndarray
    label: str
    adds: bool = False
    categories: tuple[str, ...] = ()
    colors: tuple[Any, ...] = ()
    transform: Transform = None

    def at(self, cells: Cells) -> np.ndarray:
        """Return one value per lattice point of ``cells``, (m,), in raster order."""
        values = cells.added(self.values) if self.adds else self.values[cells.first]
        return np.log1p(values) if self.transform == "log1p" else values


def select_cells(adata: Any, library_id: str | Sequence[str] | None, library_key: str) -> list[Cells]:
    """Return the cells of the wanted libraries, in the order asked for; all of them for None."""
    libraries = raster_libraries(adata, library_key=library_key)
    wanted = list(libraries) if library_id is None else [library_id] if isinstance(library_id, str) else list(library_id)
    for name in wanted:
        if name not in libraries:
            raise KeyError(f"There is no library {name!r} on a raster.{_hint(name, libraries)} Known: {', '.join(map(repr, libraries))}.")
    out = [cells_of(libraries[name]) for name in wanted]
    for cells in out:
        if not len(cells.rc):
            raise ValueError(
                f"Library {cells.name!r} has no observation on its raster; wanted at least one. Choose another with `library_id=`."
            )
    if not out:
        raise ValueError("library_id is empty; wanted at least one library, or None for all of them.")
    return out


def select_one(adata: Any, library_id: str | None, library_key: str) -> Cells:
    """Return the cells of one library: the wanted one, or for None the only one."""
    found = select_cells(adata, library_id, library_key)
    if len(found) > 1:
        raise ValueError(
            f"There are {len(found)} libraries ({', '.join(repr(c.name) for c in found)}); wanted one. Name it with `library_id=`."
        )
    return found[0]


def _hint(name: str, known: Any) -> str:
    lowered = {str(k).lower(): str(k) for k in known}
    close = [lowered[k] for k in difflib.get_close_matches(str(name).lower(), lowered, n=5, cutoff=0.6)]
    return f" Did you mean {', '.join(map(repr, close))}?" if close else ""


def gene_columns(adata: Any, genes: Sequence[str], layer: str | None) -> np.ndarray:
    """Return the values of ``genes`` as float64 (n_obs, n_genes) from X or a layer; unknown genes are a KeyError with the nearest names."""
    validate.unique_names(adata.var_names, "gene names", todo="Run `adata.var_names_make_unique()` first.")
    for gene in genes:
        if gene not in adata.var_names:
            raise KeyError(f"{gene!r} is not a gene of this object ({adata.n_vars} genes).{_hint(gene, adata.var_names)}")
    found = validate.matrix(adata, layer)[:, adata.var_names.get_indexer(pd.Index(list(genes)))]
    return np.asarray(found.toarray() if sp.issparse(found) else found, dtype=np.float64).reshape(adata.n_obs, len(genes))


def unit_of(adata: Any, layer: str | None, values: np.ndarray, transform: Transform) -> str:
    """Return the words of the colour bar: the recorded unit, or the layer's name, or "counts" for whole numbers in X."""
    if layer is not None:
        unit = str(adata.uns.get(keys.UNS, {}).get(layer, {}).get("unit", layer))
    else:
        finite = values[np.isfinite(values)]
        unit = "counts" if np.array_equal(finite, np.rint(finite)) else "X"
    return f"log1p({unit})" if transform == "log1p" else unit


def check_transform(transform: Any, values: np.ndarray) -> None:
    """Raise where the transform is unknown, or cannot be taken of ``values``."""
    validate.one_of(transform, (None, "log1p"), "transform")
    if transform == "log1p" and values.size and np.nanmin(values) < 0:
        raise ValueError(
            f'transform="log1p" of values down to {np.nanmin(values):g}; wanted counts, at least 0. Pass `transform=None` or another `layer=`.'
        )


def shown_genes(adata: Any, genes: Sequence[str], layer: str | None, transform: Transform) -> list[Shown]:
    """Return the genes as things to draw."""
    values = gene_columns(adata, genes, layer)
    check_transform(transform, values)
    label = unit_of(adata, layer, values, transform)
    return [Shown(g, values[:, i], label, adds=True, transform=transform) for i, g in enumerate(genes)]


def shown_obs(adata: Any, column: str) -> Shown:
    """Return a column of obs: numbers as numbers; categories, strings and booleans as codes and colours."""
    series = adata.obs[column]
    if pd.api.types.is_numeric_dtype(series.dtype) and not pd.api.types.is_bool_dtype(series.dtype):
        return Shown(column, series.to_numpy(dtype=np.float64, na_value=np.nan), column)
    if not isinstance(series.dtype, pd.CategoricalDtype):
        series = series.astype("category")
    codes = series.cat.codes.to_numpy()
    names = tuple(str(c) for c in series.cat.categories)
    stored = adata.uns.get(f"{column}_colors")
    if stored is not None and len(stored) < len(names):
        raise ValueError(
            f"adata.uns['{column}_colors'] has {len(stored)} colours for the {len(names)} categories of adata.obs['{column}']; wanted one each. "
            "Delete the slot to have colours chosen, or set all of them."
        )
    colors = _style.categorical_colors(len(names)) if stored is None else [str(c) for c in stored]
    return Shown(column, np.where(codes < 0, np.nan, codes), column, categories=names, colors=tuple(colors[: len(names)]))


def shown(adata: Any, color: str | Sequence[str], layer: str | None, transform: Transform) -> list[Shown]:
    """Return genes and columns of obs as things to draw, in the order asked for."""
    names = [color] if isinstance(color, str) else list(color)
    if not names:
        raise ValueError("color is empty; wanted at least one gene or column of adata.obs.")
    for name in names:
        if name in adata.obs and name in adata.var_names:
            raise ValueError(f"{name!r} is both a gene and a column of adata.obs. Rename the column.")
        if name not in adata.obs and name not in adata.var_names:
            known = [*adata.obs.columns, *adata.var_names]
            raise KeyError(f"{name!r} is neither a gene nor a column of adata.obs.{_hint(name, known)} Columns: {list(adata.obs.columns)}.")
    genes = list(dict.fromkeys(n for n in names if n not in adata.obs))
    of_gene = dict(zip(genes, shown_genes(adata, genes, layer, transform) if genes else [], strict=True))
    return [of_gene[n] if n in of_gene else shown_obs(adata, n) for n in names]
