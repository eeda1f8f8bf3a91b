"""Splits of published benchmarks, as released and corrected, read from hashed data files; and the check that a hold-out list holds out."""

import difflib
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files as package_files
from types import MappingProxyType
from typing import Any

BENCHMARKS = ("hescape", "hest")
"""Data files in ``stimg/bench/data``: one a benchmark."""
UNKNOWN = "unknown"
"""Group of a sample whose donor nobody states."""
KINDS = ("split", "pretraining", "protocol", "note")
"""What a fix changes: the samples of a part, what pre-training leaves out, how a score is computed or read, or nothing."""
CERTAINTIES = ("checked", "derived", "reported")
"""How sure a fix is: read in the released files or in the maintainers' words; follows from such facts; said by others, or noted and not read again."""


@dataclass(frozen=True)
class Fix:
    """One thing that differs between a benchmark as released and as corrected, or that a reader of its numbers must know.

    Parameters
    ----------
    id
        Its name in the data file.
    kind
        One of ``KINDS``.
    entries
        The entries it concerns.
    what, why, correction
        What was found, what it does to a number, what to do instead.
    affects
        The published numbers it touches.
    certainty
        One of ``CERTAINTIES``.
    source
        Where it was found.
    """

    id: str
    kind: str
    entries: tuple[str, ...]
    what: str
    why: str
    correction: str
    affects: str
    certainty: str
    source: str


@dataclass(frozen=True)
class SplitFold:
    """Names of the samples of one fold."""

    name: str
    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]


@dataclass(frozen=True)
class Division:
    """How an entry is divided.

    Parameters
    ----------
    folds
        The folds; none where no split was published.
    held_out
        Samples that pre-training on the same entry leaves out; empty where the benchmark pre-trains nothing on it.
    """

    folds: tuple[SplitFold, ...]
    held_out: tuple[str, ...]


@dataclass(frozen=True)
class PublishedSplit:
    """One panel or task of a published benchmark.

    Parameters
    ----------
    benchmark, entry, version
        Names, and the version of the data file.
    citation
        What to cite for the benchmark.
    title
        What it is.
    source
        Where the published division was read.
    published, corrected
        The division as released, and with every fix of kind ``"split"`` or ``"pretraining"`` made.
    excluded
        Samples of the entry in no fold of ``corrected``, with the reason.
    groups
        Donor of each sample, ``"unknown"`` where it is not stated. The same donor has the same name in all entries of all benchmarks.
    fixes
        The fixes that concern the entry.
    sha256
        Hash of all of this.
    """

    benchmark: str
    entry: str
    version: str
    citation: str
    title: str
    source: str
    published: Division
    corrected: Division
    excluded: Mapping[str, str]
    groups: Mapping[str, str]
    fixes: tuple[Fix, ...]
    sha256: str

    @property
    def name(self) -> str:
        """``"<benchmark>/<entry>"``, as `published_split` takes it."""
        return f"{self.benchmark}/{self.entry}"


def _content_hash(document: Mapping[str, Any], name: str) -> str:
    """Return the SHA-256 of what an entry says, its fixes included, whatever the order of the keys and the layout of the file."""
    entry = {key: value for key, value in document["entries"][name].items() if key != "sha256"}
    fixes = [fix for fix in document["fixes"] if name in fix["entries"]]
    content = {key: document[key] for key in ("benchmark", "version", "citation")} | {"name": name, "entry": entry, "fixes": fixes}
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()).hexdigest()


def _division(raw: Mapping[str, Any]) -> Division:
    folds = (SplitFold(f["name"], tuple(f["train"]), tuple(f["validation"]), tuple(f["test"])) for f in raw["folds"])
    return Division(tuple(folds), tuple(raw["held_out"]))


def parse(text: str, *, origin: str = "the text") -> list[PublishedSplit]:
    """Return the splits that one data file holds.

    Parameters
    ----------
    text
        Content of the file, JSON.
    origin
        What error messages call it.

    Raises
    ------
    ValueError
        Where it is not JSON, or an entry is not what its ``sha256`` says: a damaged or edited file.
    """
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{origin} is not JSON ({error}). Install stimg anew.") from error
    fixes = [Fix(**{**raw, "entries": tuple(raw["entries"])}) for raw in document["fixes"]]
    splits = []
    for name, raw in document["entries"].items():
        found = _content_hash(document, name)
        if found != raw["sha256"]:
            raise ValueError(
                f"{origin}: the content of {name!r} has the SHA-256 {found}, and {raw['sha256']} is written beside it; the file is damaged or "
                "was edited. Install stimg anew; where the change is meant, raise `version` in the file and write the new hashes."
            )
        splits.append(
            PublishedSplit(
                benchmark=document["benchmark"],
                entry=name,
                version=document["version"],
                citation=document["citation"],
                title=raw["title"],
                source=raw["source"],
                published=_division(raw["published"]),
                corrected=_division(raw["corrected"]),
                excluded=MappingProxyType(raw["excluded"]),
                groups=MappingProxyType(raw["groups"]),
                fixes=tuple(fix for fix in fixes if name in fix.entries),
                sha256=raw["sha256"],
            )
        )
    return splits


@cache
def _read(benchmark: str) -> tuple[PublishedSplit, ...]:
    file = package_files("stimg.bench").joinpath(f"data/{benchmark}.json")
    return tuple(parse(file.read_text(encoding="utf-8"), origin=f"stimg/bench/data/{benchmark}.json"))


def published_splits() -> list[PublishedSplit]:
    """Return all entries of all benchmarks, after comparing each with its hash.

    Raises
    ------
    ValueError
        Where a data file is damaged.

    Examples
    --------
    >>> [split.name for split in published_splits()][:2]
    ['hescape/human-5k-panel', 'hescape/human-multi-tissue-panel']
    """
    return [split for benchmark in BENCHMARKS for split in _read(benchmark)]


def published_split(name: str) -> PublishedSplit:
    """Return one entry of a published benchmark, after comparing it with its hash.

    Parameters
    ----------
    name
        ``"<benchmark>/<entry>"``, such as ``"hescape/human-colon-panel"`` or ``"hest/COAD"``.

    Raises
    ------
    ValueError
        Where there is no such entry, or the data file is damaged.

    Examples
    --------
    >>> published_split("hescape/human-colon-panel").published.folds[0].test
    ('TENX111',)
    """
    known = {split.name: split for split in published_splits()}
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"There is no published split named {name!r}.{hint} Known: {', '.join(known)}.")
    return known[name]


def _pieces(text: str, samples: frozenset[str]) -> tuple[str, ...]:
    """Return names of samples that joined give ``text``, the longest first name first; empty where there are none."""
    joined: dict[int, tuple[str, ...]] = {len(text): ()}
    for start in range(len(text) - 1, -1, -1):
        for end in range(len(text), start, -1):
            if end in joined and text[start:end] in samples:
                joined[start] = (text[start:end], *joined[end])
                break
    return joined.get(0, ())


def _complaints(listed: tuple[str, ...], samples: frozenset[str]) -> Iterator[str]:
    for name in listed:
        if name in samples:
            continue
        pieces = _pieces(name, samples)
        close = difflib.get_close_matches(name, sorted(samples), n=3)
        if pieces:
            yield f"{name!r} is no sample; did a comma get lost between {' and '.join(map(repr, pieces))}?"
        elif close:
            yield f"{name!r} is no sample; close names are {', '.join(map(repr, close))}."
        else:
            yield f"{name!r} is no sample, and none has a name like it."


def check_hold_out(listed: Iterable[str], samples: Iterable[str], *, needed: Iterable[str] = ()) -> tuple[str, ...]:
    """Return the names of a hold-out list, after making sure that the list holds out what it names.

    A name that matches nothing holds nothing out, and filtering by it is silent: two strings without a comma between them become one in Python.

    Parameters
    ----------
    listed
        Names of samples that fitting is to leave out.
    samples
        Names of all samples that the list is meant for. One list for several data sets needs the names of all of them.
    needed
        Names that must be in the list, such as those of all validation and test samples.

    Raises
    ------
    ValueError
        Where a listed name is no sample (with the names that it may stand for), or a needed one is not listed.
    TypeError
        Where ``listed``, ``samples`` or ``needed`` is one string.

    Examples
    --------
    >>> check_hold_out(["A1", "B1"], ["A1", "A2", "B1"], needed=["B1"])
    ('A1', 'B1')
    >>> check_hold_out(["A1B1"], ["A1", "A2", "B1"])
    Traceback (most recent call last):
        ...
    ValueError: 'A1B1' is no sample; did a comma get lost between 'A1' and 'B1'? It holds nothing out. Write the names as they are in the data.
    """
    for argument, value in (("listed", listed), ("samples", samples), ("needed", needed)):
        if isinstance(value, str):
            raise TypeError(f"`{argument}` is the string {value!r}; wanted several names. Write [{value!r}] for one.")
    names = tuple(listed)
    complaints = list(_complaints(names, frozenset(samples)))
    if complaints:
        consequence = "It holds" if len(complaints) == 1 else "They hold"
        raise ValueError(f"{' '.join(complaints)} {consequence} nothing out. Write the names as they are in the data.")
    missing = [name for name in dict.fromkeys(needed) if name not in names]
    if missing:
        raise ValueError(f"The hold-out list lacks {len(missing)} of the samples that it must hold out: {missing}. Add them.")
    return names
