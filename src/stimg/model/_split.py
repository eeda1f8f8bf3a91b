"""Which observations a model trains on, and which it is stopped by: whole libraries or contiguous blocks, never random spots."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from stimg.data.slots import RasterLibrary
from stimg.image.split import balanced_blocks, hold_out


class Split(NamedTuple):
    """Masks over the observations of an AnnData, bool (n_obs,)."""

    train: np.ndarray
    validation: np.ndarray


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
    if isinstance(validation, str):
        if validation != "blocks":
            raise ValueError(f"validation={validation!r} is not known; wanted 'blocks', a list of library names, or None.")
        if not 0 < fraction <= 0.5:
            raise ValueError(f"validation_fraction={fraction} is outside (0, 0.5].")
        n_blocks = max(2, round(1 / fraction))
        for name, library in rasters.items():
            if len(library.rows) < 4 * n_blocks:
                raise ValueError(
                    f"library {name!r} has {len(library.rows)} observations, too few to hold out one of {n_blocks} blocks. "
                    "Pass `validation=[...]` with names of whole libraries, or `validation=None`."
                )
            centres = library.spec.centres_um(library.rc)
            blocks = balanced_blocks(centres, n_blocks)
            parts = hold_out(blocks, [int(rng.integers(n_blocks))], centres, 1.5 * library.spec.pitch_um)
            held[library.rows[parts.test]] = True
            train[library.rows[~parts.train]] = False
        return Split(train, held)
    names = [str(v) for v in validation]
    if not names:
        raise ValueError(f"validation=[] names no library; wanted some of {list(rasters)}, 'blocks', or None for no validation.")
    unknown = sorted(set(names) - set(rasters))
    if unknown:
        raise ValueError(f"validation={names} names libraries that are not there: {unknown}; the libraries are {list(rasters)}.")
    if len(set(names)) == len(rasters):
        raise ValueError(
            f"validation={names} holds out every library; nothing is left to train on. Leave one out of the list, or pass `validation='blocks'`."
        )
    for name in names:
        held[rasters[name].rows] = True
        train[rasters[name].rows] = False
    return Split(train, held)
