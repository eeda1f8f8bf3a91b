"""The only wording of errors about slots and values: what was found, what was wanted, what to do."""

import numbers
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp


def _names(mapping: Iterable[Any], limit: int = 12) -> str:
    names = [str(n) for n in mapping if n is not None]  # anndata from 0.13 on lists X as the layer None
    return "[" + ", ".join(repr(n) for n in names[:limit]) + (", ..." if len(names) > limit else "") + "]"


def slot(mapping: Mapping[str, Any] | pd.DataFrame, where: str, key: str, *, todo: str) -> Any:
    """Return ``mapping[key]``; a KeyError names the slot, what is there instead, and ``todo``."""
    if key not in mapping:
        raise KeyError(f"adata.{where}[{key!r}] is missing (found {_names(mapping.keys())}). {todo}")
    return mapping[key]


def obs(adata: Any, key: str, *, todo: str) -> pd.Series:
    """Return ``adata.obs[key]`` without missing values."""
    column = slot(adata.obs, "obs", key, todo=todo)
    missing = int(column.isna().sum())
    if missing:
        raise ValueError(f"adata.obs[{key!r}] has {missing} missing values of {len(column)}. {todo}")
    return column


def obsm(adata: Any, key: str, *, columns: int, todo: str) -> np.ndarray:
    """Return ``adata.obsm[key]`` as a finite array with ``columns`` columns."""
    array = np.asarray(slot(adata.obsm, "obsm", key, todo=todo))
    if array.ndim != 2 or array.shape[1] != columns:
        raise ValueError(f"adata.obsm[{key!r}] has shape {array.shape}; wanted ({adata.n_obs}, {columns}). {todo}")
    if array.dtype.kind not in "iuf":
        raise TypeError(f"adata.obsm[{key!r}] has dtype {array.dtype}; wanted numbers. {todo}")
    finite(array, f"adata.obsm[{key!r}]", todo=todo)
    return array


def finite(array: np.ndarray, name: str, *, todo: str) -> None:
    """Raise a ValueError that counts the rows of ``array`` with NaN or infinite values."""
    bad = ~np.isfinite(np.asarray(array, dtype=np.float64))
    if bad.any():
        rows = np.atleast_1d(bad.reshape(len(bad), -1).any(axis=1))
        raise ValueError(
            f"{name} has {int(rows.sum())} rows of {len(rows)} with NaN or infinite values, the first is row {int(np.argmax(rows))}. {todo}"
        )


def not_empty(adata: Any, *, todo: str = "Check the reader or the filter that made this object.") -> None:
    """Raise a ValueError where there is no observation or no gene, a TypeError where it is no table."""
    if not hasattr(adata, "n_obs"):
        raise TypeError(f"adata is a {type(adata).__name__}; wanted an AnnData. Read the file, or pass its table.")
    if adata.n_obs == 0 or adata.n_vars == 0:
        raise ValueError(f"adata has {adata.n_obs} observations and {adata.n_vars} genes; wanted at least one of each. {todo}")


def unique_names(names: pd.Index, what: str, *, todo: str) -> None:
    """Raise a ValueError that counts duplicated names and shows the first."""
    duplicated = names[names.duplicated()]
    if len(duplicated):
        raise ValueError(f"{len(duplicated)} duplicated {what}, the first is {duplicated[0]!r}. {todo}")


def matrix(adata: Any, layer: str | None) -> Any:
    """Return ``adata.X`` or ``adata.layers[layer]``."""
    if layer is None:
        if adata.X is None:
            raise KeyError(f"adata.X is missing (layers found: {_names(adata.layers.keys())}). Pass `layer=` or set adata.X to the counts.")
        return adata.X
    return slot(adata.layers, "layers", layer, todo="Pass the name of the layer that holds raw counts.")


def values(matrix: Any) -> np.ndarray:
    """Return the stored values of a sparse matrix, or all values of a dense one, as a flat array."""
    return matrix.data if sp.issparse(matrix) else np.asarray(matrix).ravel()


def finite_matrix(adata: Any, layer: str | None = None, *, wanted: str = "finite values") -> Any:
    """Return ``adata.X`` or ``adata.layers[layer]``, whose values are real and finite numbers."""
    found = matrix(adata, layer)
    name = "adata.X" if layer is None else f"adata.layers[{layer!r}]"
    data = values(found)
    if data.dtype.kind not in "iufb":
        raise TypeError(f"{name} has dtype {data.dtype}; wanted {wanted}. Convert it to real numbers.")
    bad = int((~np.isfinite(data)).sum())
    if bad:
        raise ValueError(f"{name} has {bad} NaN or infinite values; wanted {wanted}. Remove or repair them.")
    return found


def counts(adata: Any, layer: str | None = None) -> sp.csr_matrix:
    """Return raw counts as CSR (n_obs x n_vars): finite, non-negative, whole numbers, sorted indices."""
    found = finite_matrix(adata, layer, wanted="raw counts")
    name = "adata.X" if layer is None else f"adata.layers[{layer!r}]"
    data = values(found)
    if data.size:
        if data.min() < 0:
            raise ValueError(
                f"{name} has {int((data < 0).sum())} negative values (minimum {data.min():g}); wanted raw counts. Pass `layer=` with unscaled counts."
            )
        if np.issubdtype(data.dtype, np.floating):
            fractional = data != np.rint(data)
            if fractional.any():
                raise ValueError(
                    f"{name} has {int(fractional.sum())} fractional values of {data.size} (for example {data[fractional][0]:g}); wanted whole-number counts. "
                    "Pass `layer=` with raw counts (normalised values cannot be used here)."
                )
    result = sp.csr_matrix(found)
    if not result.has_sorted_indices:
        result = result.sorted_indices()
    return result


def genes(wanted: Iterable[str], available: pd.Index, *, what: str, todo: str) -> np.ndarray:
    """Return the positions of ``wanted`` in ``available``; unknown names are a KeyError that lists them."""
    wanted = list(wanted)
    positions = available.get_indexer(pd.Index(wanted))
    unknown = [g for g, p in zip(wanted, positions, strict=True) if p < 0]
    if unknown:
        raise KeyError(f"{len(unknown)} of {len(wanted)} {what} are not in the object: {_names(unknown)}. {todo}")
    return positions


def one_of(value: Any, allowed: Iterable[Any], name: str) -> None:
    """Raise a ValueError where ``value`` is not one of ``allowed``."""
    allowed = list(allowed)
    if value not in allowed:
        raise ValueError(f"{name}={value!r} is not known; wanted one of {_names(allowed)}.")


def number(value: Any, name: str, unit: str = "") -> float:
    """Return ``value`` as float; a TypeError where it is not a real number."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (numbers.Real, np.number)) or isinstance(value, np.complexfloating):
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}; wanted a number{' of ' + unit if unit else ''}.")
    return float(value)


def whole(value: Any, name: str, *, least: int = 1) -> int:
    """Return ``value`` as int; a ValueError where it is not a whole number of at least ``least``."""
    if not number(value, name).is_integer() or value < least:
        raise ValueError(f"{name}={value!r} is not usable; wanted a whole number of at least {least}.")
    return int(value)


def names(value: str | Iterable[Any]) -> list[str]:
    """Return names as a list; a single string is one name, not a sequence of letters."""
    return [value] if isinstance(value, str) else [str(each) for each in value]


def positive(value: float, name: str, unit: str = "") -> None:
    """Raise a ValueError where ``value`` is not a finite number above zero."""
    number(value, name, unit)
    if not (np.isfinite(value) and value > 0):
        raise ValueError(f"{name}={value!r} is not above zero; wanted a positive number{' of ' + unit if unit else ''}.")
