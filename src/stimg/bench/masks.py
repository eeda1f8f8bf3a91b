"""The masks of the imputation protocol: those of :mod:`stimg.image.masks`, each with the options that its name states."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from stimg._core.registry import Registry
from stimg.image.masks import hide
from stimg.image.spec import RasterSpec

MASKS: Registry[tuple[str, Mapping[str, Any]]] = Registry("mask")
"""Name in the protocol to the mask of :data:`stimg.image.masks.MASKS` and its options; ``"random 50 %"`` is drawn with the protocol's seed."""
MASKS.add("random 50 %", ("random", {"fraction": 0.5}))
MASKS.add("checkerboard", ("checkerboard", {}))
MASKS.add("quarter grid", ("quarter", {}))
MASKS.add("hole", ("holes", {"n": 1, "radius": 4.0}))
MASKS.add("right half", ("half", {"side": "right"}))


def hidden_spots(name: str, spec: RasterSpec, rc: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Return which observations the mask ``name`` hides, bool (n,).

    Parameters
    ----------
    name
        ``"random 50 %"``: half of the lattice points, drawn with ``seed``. ``"checkerboard"``: row + column is odd. ``"quarter grid"``: all but
        every second point of every second lattice line. ``"hole"``: a disc with a radius of 4 pitches, where it holds most observed points.
        ``"right half"``: everything right of the median.
    spec
        The raster.
    rc
        (row, column) of every observation, (n, 2), none of them off the raster.
    seed
        For masks that are drawn.

    Raises
    ------
    ValueError
        For an unknown mask.
    """
    mask, options = MASKS[name]
    return hide(mask, spec, rc, **options, **({"rng": seed} if mask == "random" else {}))
