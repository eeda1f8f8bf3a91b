"""Checks and sums that the baselines share."""

from typing import Any

import numpy as np

from stimg._core import validate


def matrix(values: Any, name: str) -> np.ndarray:
    """Return ``values`` as a finite float64 array of two dimensions, or raise."""
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} has dtype {array.dtype}; wanted a dense array of real numbers.")
    if array.ndim != 2:
        raise ValueError(f"{name} has shape {array.shape}; wanted two dimensions, one row an observation.")
    array = array.astype(np.float64, copy=False)
    validate.finite(array, name, todo="Remove or repair them.")
    return array


def same_length(**arrays: Any) -> None:
    """Raise a ValueError where the arrays, those that are None left out, differ in length or are empty."""
    lengths = {name: np.shape(array)[0] for name, array in arrays.items() if array is not None}
    if len(set(lengths.values())) > 1 or 0 in lengths.values():
        raise ValueError(f"The arrays have different or no numbers of observations: {lengths}. Pass one row per observation in each.")


def same_width(**arrays: np.ndarray) -> None:
    """Raise a ValueError where the matrices differ in their number of columns."""
    widths = {name: array.shape[1] for name, array in arrays.items()}
    if len(set(widths.values())) > 1:
        raise ValueError(f"The arrays have different numbers of columns: {widths}; wanted the same columns in each.")


def correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return Pearson's r of each column, NaN where one of them is constant."""
    p, q = a - a.mean(axis=0), b - b.mean(axis=0)
    pp, qq = np.einsum("ij,ij->j", p, p), np.einsum("ij,ij->j", q, q)
    defined = (pp > 1e-24 * np.einsum("ij,ij->j", a, a)) & (qq > 1e-24 * np.einsum("ij,ij->j", b, b))
    return np.divide(np.einsum("ij,ij->j", p, q), np.sqrt(pp * qq), out=np.full(a.shape[1], np.nan), where=defined)
