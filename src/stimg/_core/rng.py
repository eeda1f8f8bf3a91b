"""Randomness enters through one argument, ``rng``; no global random state is ever touched."""

from typing import TypeAlias

import numpy as np

RngLike: TypeAlias = "int | np.random.Generator | np.random.SeedSequence | None"


def as_generator(rng: RngLike) -> np.random.Generator:
    """Return a numpy Generator made from ``rng`` (a seed, a Generator that is then shared, a SeedSequence, or None)."""
    if isinstance(rng, np.random.RandomState):
        raise TypeError("rng is a legacy numpy RandomState; pass an integer seed or numpy.random.default_rng(seed).")
    if isinstance(rng, bool) or not isinstance(rng, (int, np.integer, np.random.Generator, np.random.SeedSequence, type(None))):
        raise TypeError(
            f"rng={rng!r} is a {type(rng).__name__}; wanted an integer seed, a numpy Generator or SeedSequence, or None. Pass an integer for a repeatable result."
        )
    return np.random.default_rng(rng)


def as_seed(rng: RngLike) -> int:
    """Return a non-negative seed below 2**31: ``rng`` itself where it is an integer, else one drawn from it."""
    if isinstance(rng, (int, np.integer)) and not isinstance(rng, bool):
        if not 0 <= int(rng) < 2**31:
            raise ValueError(f"rng={rng} is outside 0 <= rng < 2**31.")
        return int(rng)
    return int(as_generator(rng).integers(2**31))


def derive(seed: int, *keys: int) -> np.random.Generator:
    """Return a Generator that depends on ``seed`` and ``keys`` alone (epoch, rank, index, ...), not on any earlier draw."""
    return np.random.default_rng(np.random.SeedSequence(entropy=seed, spawn_key=tuple(int(k) for k in keys)))
