"""What every interpolator takes and gives."""

from typing import NamedTuple

import numpy as np

from stimg._core import validate


class Interpolated(NamedTuple):
    """Values at the wanted places.

    Parameters
    ----------
    values
        float64 (wanted, genes), in the unit of the values that were given.
    variance
        Expected squared difference between these and what a measurement there would give, noise of the measurement included, of the
        same shape; None where the method has no such estimate.
    """

    values: np.ndarray
    variance: np.ndarray | None = None


def checked(known: np.ndarray, values: np.ndarray, wanted: np.ndarray, *, least: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return places (n, 2), values (n, genes) and wanted places (m, 2) as float64; a ValueError where they do not fit or are not finite."""
    known, values, wanted = (np.asarray(a, dtype=np.float64) for a in (known, values, wanted))
    for name, places in (("known", known), ("wanted", wanted)):
        if places.ndim != 2 or places.shape[1] != 2:
            raise ValueError(f"{name} has shape {places.shape}; wanted (n, 2), (y, x) in pitches.")
        validate.finite(places, name, todo="Leave these places out.")
    if values.ndim != 2 or len(values) != len(known):
        raise ValueError(f"values has shape {values.shape} for {len(known)} known places; wanted ({len(known)}, genes).")
    validate.finite(values, "values", todo="Leave these places or genes out.")
    if len(known) < least:
        raise ValueError(f"There are {len(known)} known places; wanted at least {least}.")
    return known, values, wanted


def reading_order(places: np.ndarray) -> np.ndarray:
    """Return the order that sorts places by y, then x: what is computed in it does not depend on the order of the observations."""
    return np.lexsort(places.T[::-1])
