"""Which observations a model trains on, and which it is stopped by: whole libraries or donors, or contiguous blocks, never random spots."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from stimg.data.slots import RasterLibrary
from stimg.image.split import balanced_blocks, hold_out

NEIGHBOUR = 1.5
"""Pitches within which nothing is learned from around a held-out block."""


class Split(NamedTuple):
    """Masks over the observations of an AnnData, bool (n_obs,)."""

    train: np.ndarray
    validation: np.ndarray


class Area(NamedTuple):
    """The observations of a library, int64 (n,), and how to find where they lie: centres (n, 2) as (y, x), and their pitch in the same unit."""

    rows: np.ndarray
    centres: np.ndarray
    pitch: float


def hold_out_blocks(areas: Mapping[str, Area], split: Split, fraction: float, rng: np.random.Generator) -> None:
    """Move one rectangle of every library, with about ``fraction`` of its observations, from training to validation, and drop its margin."""
    if not 0 < fraction <= 0.5:
        raise ValueError(f"validation_fraction={fraction} is outside (0, 0.5].")
    n_blocks = max(2, round(1 / fraction))
    for name, area in areas.items():
        if len(area.rows) < 4 * n_blocks:
            raise ValueError(
                f"library {name!r} has {len(area.rows)} observations, too few to hold out one of {n_blocks} blocks. "
                "Pass `validation=[...]` with names of whole libraries, or `validation=None`."
            )
        blocks = balanced_blocks(area.centres, n_blocks)
        parts = hold_out(blocks, [int(rng.integers(n_blocks))], area.centres, NEIGHBOUR * area.pitch)
        split.validation[area.rows[parts.test]] = True
        split.train[area.rows[~parts.train]] = False


def hold_out_named(groups: Mapping[str, np.ndarray], split: Split, names: Sequence[str]) -> None:
    """Move the rows of whole libraries from training to validation; ``groups`` are the rows of every library."""
    names = [str(v) for v in names]
    if not names:
        raise ValueError(f"validation=[] names no library; wanted some of {list(groups)}, 'blocks', or None for no validation.")
    unknown = sorted(set(names) - set(groups))
    if unknown:
        raise ValueError(f"validation={names} names libraries that are not there: {unknown}; the libraries are {list(groups)}.")
    if len(set(names)) == len(groups):
        raise ValueError(
            f"validation={names} holds out every library; nothing is left to train on. Leave one out of the list, or pass `validation='blocks'`."
        )
    for name in names:
        split.validation[groups[name]] = True
        split.train[groups[name]] = False


def split_observations(
    rasters: Mapping[str, RasterLibrary],
    n_obs: int,
    *,
    validation: str | Sequence[str] | None,
    fraction: float,
    rng: np.random.Generator,
) -> Split:
    """Return training and validation observations.

    Parameters
    ----------
    rasters
        The libraries.
    n_obs
        Number of observations of the AnnData.
    validation
        ``"blocks"``: of every library one contiguous rectangle with about ``fraction`` of its observations, and no training observation
        next to it (within 1.5 pitches). A list of library names: those, whole. None: no validation.
    fraction
        Part of the observations, for ``"blocks"``.
    rng
        Chooses the rectangles.
    """
    train, held = np.zeros(n_obs, dtype=bool), np.zeros(n_obs, dtype=bool)
    for library in rasters.values():
        train[library.rows] = True
    if validation is None:
        return Split(train, held)
    split = Split(train, held)
    if isinstance(validation, str):
        if validation != "blocks":
            raise ValueError(f"validation={validation!r} is not known; wanted 'blocks', a list of library names, or None.")
        areas = {name: Area(each.rows, each.spec.centres_um(each.rc), each.spec.pitch_um) for name, each in rasters.items()}
        hold_out_blocks(areas, split, fraction, rng)
    else:
        hold_out_named({name: each.rows for name, each in rasters.items()}, split, validation)
    return split
