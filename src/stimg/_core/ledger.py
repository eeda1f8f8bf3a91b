"""The ledger: what a fitted thing has seen, and the error where an evaluation would use data that it has seen."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

KINDS = ("gene list", "normaliser", "PCA", "stain target", "clustering", "embedding", "encoder", "model", "prediction")
"""Kinds of fitted things."""
LEVELS = ("observation", "section", "donor")
"""How far a fitted thing must keep from the test observations: from them, from their sections, from their donors."""


def _hashes(values: Any) -> np.ndarray:
    found = np.unique(np.asarray(values if values is not None else (), dtype=np.uint64))
    return found[found != 0]


def _names(values: Any) -> tuple[str, ...]:
    return tuple(str(v) for v in np.asarray(values if values is not None else ()).ravel().tolist())


@dataclass(frozen=True)
class Seen:
    """What one fitted thing has read.

    Parameters
    ----------
    who
        Its name, as an error message should call it: ``"PCA-50 of the counts"``.
    kind
        One of ``"gene list"``, ``"normaliser"``, ``"PCA"``, ``"stain target"``, ``"clustering"``, ``"embedding"``, ``"encoder"``, ``"model"``,
        ``"prediction"``.
    ids
        uint64, hashes of (library, name) of the observations; sorted, without repeats.
    contents
        uint64, hashes of their counts of ``genes``; they find an observation that comes back under another name.
    genes
        Names of the genes over which ``contents`` were taken, sorted.
    images
        uint64, perceptual hashes of the images that were read.
    libraries, donors
        Names of the libraries and donors of the observations.
    """

    who: str
    kind: str
    ids: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    contents: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    genes: tuple[str, ...] = ()
    images: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    libraries: tuple[str, ...] = ()
    donors: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind={self.kind!r} is not known; wanted one of {list(KINDS)}.")
        for name in ("ids", "contents", "images"):
            object.__setattr__(self, name, _hashes(getattr(self, name)))
        for name in ("genes", "libraries", "donors"):
            object.__setattr__(self, name, tuple(sorted(set(_names(getattr(self, name))))))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for ``uns`` and for files."""
        return {
            "who": self.who,
            "kind": self.kind,
            "ids": self.ids,
            "contents": self.contents,
            "genes": np.asarray(self.genes, dtype=str),
            "images": self.images,
            "libraries": np.asarray(self.libraries, dtype=str),
            "donors": np.asarray(self.donors, dtype=str),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Seen":
        """Return what :meth:`to_dict` gave, also after a round trip through h5ad, zarr or JSON."""
        missing = [name for name in ("who", "kind") if name not in values]
        if missing:
            raise ValueError(
                f"A record of what was seen lacks {missing} (found {sorted(values)}). Write it again with `stimg.bench.remember`."
            )
        rest: dict[str, Any] = {n: values.get(n) for n in ("ids", "contents", "genes", "images", "libraries", "donors")}
        return cls(str(values["who"]), str(values["kind"]), **rest)

    def renamed(self, who: str, kind: str) -> "Seen":
        """Return the same under another name: a prediction has seen what its model has seen."""
        return Seen(who, kind, self.ids, self.contents, self.genes, self.images, self.libraries, self.donors)

    def __len__(self) -> int:
        return max(len(self.ids), len(self.contents))


@dataclass(frozen=True)
class Leak:
    """One finding: ``who`` has seen ``n`` of ``of`` test observations, recognised ``by`` counts, names, neighbours, image, section or donor."""

    who: str
    kind: str
    by: str
    n: int
    of: int
    where: tuple[str, ...] = ()

    def __str__(self) -> str:
        places = ", ".join(self.where[:6]) + (", ..." if len(self.where) > 6 else "")
        what = {
            "counts": f"{self.n} of {self.of} test observations, recognised by their counts",
            "names": f"{self.n} of {self.of} test observations, recognised by library and name",
            "neighbours": f"neighbours of {self.n} of {self.of} test observations",
            "image": f"{self.n} of {self.of} test images",
            "section": f"other observations of {self.n} of {self.of} test sections",
            "donor": f"other observations of {self.n} of {self.of} test donors",
        }[self.by]
        return f"the {self.kind} {self.who!r} has seen {what}{f' ({places})' if places else ''}"


class LeakageError(ValueError):
    """Raised where an evaluation would score data that something fitted has seen; ``leaks`` lists who saw what."""

    def __init__(self, leaks: Sequence[Leak]) -> None:
        self.leaks = tuple(leaks)
        lines = "; ".join(str(leak) for leak in self.leaks)
        super().__init__(
            f"Leakage: {lines}. Fit it on training observations alone (`stimg.pp.split` makes them), or pass allow_leakage=True, "
            "which stamps every report."
        )


def merged(seen: Iterable[Seen], *, who: str, kind: str) -> Seen:
    """Return one record for a thing that was fitted on the outputs of several others; genes are kept where all agree on them."""
    parts = list(seen)
    same = len({part.genes for part in parts}) == 1
    none = np.zeros(0, np.uint64)
    return Seen(
        who,
        kind,
        ids=np.concatenate([none, *(p.ids for p in parts)]),
        contents=np.concatenate([none, *(p.contents for p in parts if same)]),
        genes=parts[0].genes if same else (),
        images=np.concatenate([none, *(p.images for p in parts)]),
        libraries=tuple(name for p in parts for name in p.libraries),
        donors=tuple(name for p in parts for name in p.donors),
    )
