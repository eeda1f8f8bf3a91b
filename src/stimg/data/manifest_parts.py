"""What the manifest of a split is made of: sections, divisions, and names that have to be known."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

LEVELS = ("donor", "section", "block")
PARTS = ("train", "validation", "test", "buffer")
OWN_GROUP = "declared own group"
"""Source of the donor of a section whose donor is not known and that was declared to be a group of its own."""


@dataclass(frozen=True)
class ManifestSection:
    """One section as the split saw it.

    Parameters
    ----------
    library
        Its name.
    donor
        Its donor; None where it is not known.
    donor_source
        The column of ``obs`` that named the donor, or ``"declared own group"``.
    n_obs
        Number of observations; None, like the hashes, where the manifest was written without the data.
    contents
        Hash of the counts and of the names of the genes, whatever the order of observations and genes.
    names
        Hash of the names of the observations, whatever their order.
    blocks
        For splits within sections: names of the observations of each block.
    """

    library: str
    donor: str | None = None
    donor_source: str = ""
    n_obs: int | None = None
    contents: str | None = None
    names: str | None = None
    blocks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


class Division(NamedTuple):
    """One division: names of the sections (of the blocks, for splits within sections) of each part, and the observations of the buffer by library."""

    name: str
    train: tuple[str, ...]
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    buffer: Mapping[str, tuple[str, ...]] = {}


def _pieces(name: str, known: Iterable[str]) -> list[str]:
    """Return the known names that ``name`` is made of when they are written one after the other; none where it is not."""
    for first in (k for k in known if k and name.startswith(k)):
        rest = name[len(first) :]
        after = _pieces(rest, known) if rest else []
        if not rest or after:
            return [first, *after]
    return []


def unknown_names(wanted: Iterable[str], known: Iterable[str], argument: str, what: str) -> None:
    """Raise a ValueError that lists the names that are not known, and says where a comma may be missing."""
    known = sorted(known)
    unknown = sorted(set(wanted) - set(known))
    if not unknown:
        return
    hints = ""
    for name in unknown:
        pieces, close = _pieces(name, known), difflib.get_close_matches(name, known, n=1)
        if pieces:
            hints += f" {name!r} is {' and '.join(repr(p) for p in pieces)} written together: is a comma missing?"
        elif close:
            hints += f" Did you mean {close[0]!r} for {name!r}?"
    shown = ", ".join(repr(name) for name in known[:40]) + (", ..." if len(known) > 40 else "")
    raise ValueError(f"{argument} names {len(unknown)} unknown {what}s: {unknown}.{hints} Known are [{shown}].")
