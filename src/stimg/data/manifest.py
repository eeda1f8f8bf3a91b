"""The manifest of a split: which sections or blocks are on which side, and what they held, as plain JSON that belongs in git."""

import difflib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from stimg._core import hashing, keys, validate
from stimg._core.files import replacing
from stimg.data.slots import library_rows

if TYPE_CHECKING:
    from anndata import AnnData

FORMAT, VERSION = "stimg split manifest", 1
LEVELS = ("donor", "section", "block")
PARTS = ("train", "validation", "test", "buffer")
OWN_GROUP = "declared own group"
"""Source of the donor of a section whose donor is not known and that was declared to be a group of its own."""
_TODO = "Name the section of every observation, or pass `library_key=`."


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


class Masks(NamedTuple):
    """One division of the observations of an AnnData: bool (n_obs,) masks, of which exactly one is True for each observation."""

    name: str
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    buffer: np.ndarray


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


def _digest(values: Mapping[str, Any]) -> str:
    text = json.dumps({k: v for k, v in values.items() if k != "hash"}, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[: hashing.LENGTH]


@dataclass(frozen=True)
class SplitManifest:
    """A split of sections by donor, by section or by block that cannot be inconsistent, with what the sections held when it was made.

    :func:`stimg.pp.split` makes and applies manifests; one can also be written by hand, for a published split.

    Parameters
    ----------
    level
        ``"donor"``: no donor is on two sides of a division; ``"section"``: no section is; ``"block"``: no block of a section is.
    sections
        What is divided.
    divisions
        One, or with ``folded=True`` one a fold.
    folded
        Whether the divisions are folds, in each of which other sections (blocks) are tested.
    parameters
        What the split was made with.
    near_duplicates
        Suspicious pairs of sections (:func:`stimg.data.near_duplicates`).
    merged
        Groups (donors, sections) that were treated as one because sections of theirs are duplicates.
    not_judged
        Sections that could not be compared with the others: too few observations with enough detected genes.

    Raises
    ------
    ValueError
        Where a section or block is in no part, in two, or not there; where nothing is trained on or nothing held out; at level
        ``"donor"`` also where a donor is missing or is in two parts.

    Examples
    --------
    >>> from stimg.data.manifest import Division, ManifestSection, SplitManifest
    >>> sections = [ManifestSection("A1", "A"), ManifestSection("A2", "A"), ManifestSection("B1", "B")]
    >>> SplitManifest("donor", sections, [Division("split", train=("A1",), test=("A2", "B1"))])
    Traceback (most recent call last):
    ...
    ValueError: Division 'split' has sections of the donor 'A' in train and in test; ...
    >>> manifest = SplitManifest("donor", sections, [Division("split", train=("A1", "A2"), test=("B1",))])
    >>> manifest.shared_donors, len(manifest.hash)
    ((), 16)
    """

    level: str
    sections: Sequence[ManifestSection]
    divisions: Sequence[Division]
    folded: bool = False
    parameters: Mapping[str, Any] = field(default_factory=dict)
    near_duplicates: Sequence[Mapping[str, Any]] = ()
    merged: Sequence[Sequence[str]] = ()
    not_judged: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name in ("sections", "divisions", "near_duplicates", "not_judged"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "merged", tuple(tuple(group) for group in self.merged))
        validate.one_of(self.level, LEVELS, "level")
        blocks = [block for s in self.sections for block in s.blocks]
        for found, what in ((list(self.libraries), "sections"), ([d.name for d in self.divisions], "divisions"), (blocks, "blocks")):
            validate.unique_names(pd.Index(found), f"{what} of the manifest", todo="Name each once.")
        if not self.divisions or (len(self.divisions) > 1 and not self.folded):
            raise ValueError(f"The manifest has {len(self.divisions)} divisions and folded={self.folded}; wanted one, or folds.")
        for division in self.divisions:
            self._check_division(division)
        tested = [unit for division in self.divisions for unit in division.test]
        if self.folded and len(set(tested)) < len(tested):
            twice = sorted({unit for unit in tested if tested.count(unit) > 1})
            raise ValueError(f"{twice} are tested in several folds; wanted each in one.")

    def _check_division(self, division: Division) -> None:
        known = list(self._units())
        what, where = ("block" if self.level == "block" else "section"), f"Division {division.name!r}"
        part_of: dict[str, str] = {}
        for part in PARTS[:3]:
            members = getattr(division, part)
            unknown_names(members, known, f"{where}, {part},", what)
            for unit in members:
                if unit in part_of:
                    raise ValueError(f"{where} has {unit!r} in {part_of[unit]} and in {part}; wanted each {what} once.")
                part_of[unit] = part
        left_out = [unit for unit in known if unit not in part_of]
        if left_out:
            raise ValueError(f"{where} leaves out {left_out}; wanted each {what} in one of {list(PARTS[:3])}. Drop them from the sections.")
        if not division.train or not (division.test or division.validation):
            raise ValueError(
                f"{where} has {len(division.train)} {what}s to train on and {len(division.test) + len(division.validation)} held out; "
                "wanted at least one of each."
            )
        if self.level == "donor":
            side: dict[str, str] = {}
            for section in self.sections:
                if section.donor is None:
                    raise ValueError(f"Section {section.library!r} has no donor; a split by donor needs one for each section.")
                part = part_of[section.library]
                if side.setdefault(section.donor, part) != part:
                    raise ValueError(
                        f"{where} has sections of the donor {section.donor!r} in {side[section.donor]} and in {part}; wanted each donor on one side."
                    )
        if division.buffer and self.level != "block":
            raise ValueError(f"{where} has a buffer; there is one at level 'block' alone.")

    def _units(self) -> dict[str, str]:
        """Return what is divided, sections or blocks, with the library of each."""
        if self.level != "block":
            return {s.library: s.library for s in self.sections}
        return {block: s.library for s in self.sections for block in s.blocks}

    @property
    def libraries(self) -> tuple[str, ...]:
        """Names of the sections."""
        return tuple(s.library for s in self.sections)

    @property
    def shared_donors(self) -> tuple[str, ...]:
        """Donors with sections or blocks in several parts of a division."""
        donor_of = {s.library: s.donor for s in self.sections}
        units, shared = self._units(), set()
        for division in self.divisions:
            sides = [{donor_of[units[u]] for u in getattr(division, part)} for part in PARTS[:3]]
            shared |= (sides[0] & sides[1]) | (sides[0] & sides[2]) | (sides[1] & sides[2])
        return tuple(sorted(name for name in shared if name is not None))

    def _values(self) -> dict[str, Any]:
        """Return everything but the hash, as JSON holds it."""
        sections = []
        for s in self.sections:
            entry: dict[str, Any] = {"library": s.library, "donor": s.donor, "donor_source": s.donor_source}
            entry |= {"n_obs": s.n_obs, "contents": s.contents, "names": s.names}
            sections.append(entry | ({"blocks": {b: list(names) for b, names in s.blocks.items()}} if s.blocks else {}))
        divisions = []
        for d in self.divisions:
            parts: dict[str, Any] = {"name": d.name} | {part: list(getattr(d, part)) for part in PARTS[:3]}
            divisions.append(parts | ({"buffer": {lib: list(names) for lib, names in d.buffer.items()}} if d.buffer else {}))
        values = {
            "format": FORMAT,
            "format_version": VERSION,
            "level": self.level,
            "parameters": dict(self.parameters),
            "sections": sections,
            "near_duplicates": [dict(pair) for pair in self.near_duplicates],
            "merged": [list(group) for group in self.merged],
            "not_judged": list(self.not_judged),
            "shared_donors": list(self.shared_donors),
        }
        return values | ({"folds": divisions} if self.folded else {"parts": divisions[0]})

    @property
    def hash(self) -> str:
        """First 16 digits of the SHA-256 of the manifest: sections and what they held, parts, parameters, findings."""
        return _digest(self._values())

    def to_json(self) -> str:
        """Return the manifest as JSON with sorted keys and one value a line, so that changes are seen line by line."""
        values = self._values()
        return json.dumps(values | {"hash": _digest(values)}, sort_keys=True, ensure_ascii=False, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, *, where: str = "The text") -> "SplitManifest":
        """Return the manifest that :meth:`to_json` wrote; a ValueError where it is damaged, of another format, or was edited.

        ``where`` names the text in error messages.
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as err:
            raise ValueError(f"{where} is no JSON ({err}); wanted a split manifest. Restore the file, or make it again.") from err
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise ValueError(f"{where} is no split manifest; wanted one written by `SplitManifest.save`.")
        if values.get("format_version") != VERSION:
            raise ValueError(
                f"{where} has format version {values.get('format_version')}; this version of stimg reads {VERSION}. Make the split again, or "
                "install the version that wrote it."
            )
        if values.get("hash") != _digest(values):
            raise ValueError(
                f"{where} was edited or damaged: it says hash {values.get('hash')}, and its content has {_digest(values)}. Restore the file; "
                "for another split, make another manifest with `stimg.pp.split`."
            )
        sections = [
            ManifestSection(**{k: v for k, v in s.items() if k != "blocks"}, blocks={b: tuple(n) for b, n in s.get("blocks", {}).items()})
            for s in values["sections"]
        ]
        divisions = []
        for d in values.get("folds", [values.get("parts")]):
            train, validation, test = (tuple(d[part]) for part in PARTS[:3])
            buffer = {library: tuple(names) for library, names in d.get("buffer", {}).items()}
            divisions.append(Division(d["name"], train, validation, test, buffer))
        found = (values[name] for name in ("parameters", "near_duplicates", "merged", "not_judged"))
        return cls(values["level"], sections, divisions, "folds" in values, *found)

    def save(self, path: str | os.PathLike, *, overwrite: bool = False) -> None:
        """Write the manifest to ``path`` as JSON; either the whole file is there afterwards or what was there before.

        Raises
        ------
        FileExistsError
            Where ``path`` exists and ``overwrite`` is False.
        OSError
            Where nothing can be written there.
        """
        with replacing(path, overwrite=overwrite) as temporary:
            temporary.write_text(self.to_json(), encoding="utf-8", newline="\n")

    @classmethod
    def load(cls, path: str | os.PathLike) -> "SplitManifest":
        """Return the manifest of a file.

        Raises
        ------
        FileNotFoundError
            Where there is no file.
        ValueError
            Where the file is damaged, of another format or version, or was edited.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"There is no split manifest at {path}. Write one with `SplitManifest.save`, or correct the path.")
        try:
            text = Path(path).read_text(encoding="utf-8")
        except UnicodeDecodeError as err:
            raise ValueError(f"{path} is no text ({err.reason}); wanted a split manifest. Restore the file, or make it again.") from err
        return cls.from_json(text, where=str(path))

    @classmethod
    def from_anndata(cls, adata: "AnnData", key: str = keys.SPLIT) -> "SplitManifest":
        """Return the manifest that :func:`stimg.pp.split` wrote into ``uns["stimg"][key]``.

        Raises
        ------
        KeyError
            Where there is none.
        """
        record = adata.uns.get(keys.UNS, {}).get(key, {})
        where = f"adata.uns['{keys.UNS}'][{key!r}]"
        text = validate.slot(record, f"uns['{keys.UNS}'][{key!r}]", "manifest", todo="Run `stimg.pp.split` first, or pass another key.")
        return cls.from_json(str(text), where=f"{where}['manifest']")

    def check(
        self,
        adata: "AnnData",
        *,
        strict: bool = True,
        layer: str | None = None,
        library_key: str = keys.LIBRARY,
        donor_key: str = keys.DONOR,
    ) -> tuple[str, ...]:
        """Return the sections whose counts could not be compared because the manifest was written without them; raise where others differ.

        Parameters
        ----------
        adata
            Raw counts in ``X`` or ``layers[layer]``.
        strict
            Every section of the manifest must be there, with the same names of observations. With False, some may be missing, and at level
            ``"donor"`` and ``"section"`` observations may have other names.
        layer
            Layer with raw counts.
        library_key, donor_key
            Columns of ``obs``.

        Raises
        ------
        KeyError
            Where the library column is missing.
        ValueError
            For sections that are missing or that the manifest does not list, and for a section that changed: other counts, genes,
            observations or donor.
        """
        rows = library_rows(validate.obs(adata, library_key, todo=_TODO))
        unknown_names(rows, self.libraries, f"adata.obs[{library_key!r}]", "section")
        missing = [name for name in self.libraries if name not in rows]
        if missing and strict:
            raise ValueError(
                f"{len(missing)} of the {len(self.libraries)} sections of the manifest are not in adata: {missing}. Add them, or pass "
                "`strict=False` to work with those that are there."
            )
        found = {s.library: s for s in describe(adata, donors={}, layer=layer, library_key=library_key)}
        donor = adata.obs[donor_key] if donor_key in adata.obs else None
        not_compared = []
        for wanted in (s for s in self.sections if s.library in rows):
            own = found[wanted.library]
            if wanted.contents is None:
                not_compared.append(wanted.library)
            elif own.contents != wanted.contents:
                raise ValueError(
                    f"Section {wanted.library!r} is not the one of the manifest: {own.n_obs} observations with contents {own.contents}; wanted "
                    f"{wanted.n_obs} with {wanted.contents}. Observations, genes or counts have changed: pass raw counts (`layer=`) of all "
                    "of them, or make the split again."
                )
            if wanted.names is not None and own.names != wanted.names and (strict or self.level == "block"):
                raise ValueError(
                    f"Section {wanted.library!r} has the counts of the manifest, and other names of observations. Give them their old names"
                    + (", or make the split again." if self.level == "block" else ", or pass `strict=False`.")
                )
            if donor is not None and wanted.donor is not None and wanted.donor_source != OWN_GROUP:
                donors = sorted(donor.iloc[rows[wanted.library]].dropna().astype(str).unique())
                if donors and donors != [wanted.donor]:
                    raise ValueError(
                        f"Section {wanted.library!r} has the donor {donors}, in the manifest {wanted.donor!r}. Correct adata.obs[{donor_key!r}], or "
                        "make the split again."
                    )
        return tuple(not_compared)

    def masks(self, adata: "AnnData", *, library_key: str = keys.LIBRARY) -> Iterator[Masks]:
        """Yield each division as masks over the observations of ``adata``; a ValueError for sections or observations that it does not list.

        Names decide: :meth:`check` says whether the sections are still what they were.
        """
        column = validate.obs(adata, library_key, todo=_TODO).astype(str)
        rows = library_rows(column)
        unknown_names(rows, self.libraries, f"adata.obs[{library_key!r}]", "section")
        units = {unit: i for i, unit in enumerate(self._units())}
        unit_of = np.full(adata.n_obs, -1, dtype=np.int64)
        for section in self.sections:
            here = rows.get(section.library, np.zeros(0, dtype=np.int64))
            if self.level != "block":
                unit_of[here] = units[section.library]
                continue
            where = {name: units[block] for block, names in section.blocks.items() for name in names}
            unit_of[here] = [where.get(name, -1) for name in adata.obs_names[here].astype(str)]
            lost = here[unit_of[here] < 0]
            if len(lost):
                raise ValueError(
                    f"{len(lost)} observations of section {section.library!r} are in no block of the manifest, the first is "
                    f"{adata.obs_names[lost[0]]!r}. Give them their old names, or make the split again."
                )
        for division in self.divisions:
            train, validation, test = (np.isin(unit_of, [units[u] for u in getattr(division, part)]) for part in PARTS[:3])
            buffer = np.zeros(adata.n_obs, dtype=bool)
            for library, names in division.buffer.items():
                here = rows.get(library, np.zeros(0, dtype=np.int64))
                buffer[here] = adata.obs_names[here].astype(str).isin(names)
            yield Masks(division.name, train & ~buffer, validation & ~buffer, test & ~buffer, buffer)

    def apply(self, adata: "AnnData", *, library_key: str = keys.LIBRARY) -> pd.Series:
        """Return the part of each observation, categorical; of folds the number of the fold in which it is tested, int32, -1 for none."""
        masks = list(self.masks(adata, library_key=library_key))
        if self.folded:
            fold = np.full(adata.n_obs, -1, dtype=np.int32)
            for i, each in enumerate(masks):
                fold[each.test] = i
            return pd.Series(fold, index=adata.obs_names)
        codes = np.select([getattr(masks[0], part) for part in PARTS], np.arange(len(PARTS)))
        return pd.Series(pd.Categorical.from_codes(codes, categories=list(PARTS)), index=adata.obs_names)

    def folds(self) -> Iterator[Division]:
        """Yield each division: its name, and the sections (blocks) to train on, to validate on and to test."""
        yield from self.divisions


def describe(
    adata: "AnnData",
    *,
    donors: Mapping[str, tuple[str | None, str]],
    blocks: np.ndarray | None = None,
    layer: str | None = None,
    library_key: str = keys.LIBRARY,
) -> list[ManifestSection]:
    """Return the sections of ``adata`` as a manifest lists them.

    ``donors`` gives the donor of each library and its source; ``blocks`` (n_obs,) the block of each observation, for splits within sections.
    """
    hashes = hashing.of_observations(validate.finite_matrix(adata, layer), adata.var_names)
    genes = hashing.of_strings(adata.var_names, ordered=False)
    names = adata.obs_names.astype(str).to_numpy()
    sections = []
    for library, rows in library_rows(validate.obs(adata, library_key, todo=_TODO)).items():
        own: dict[str, tuple[str, ...]] = {}
        if blocks is not None:
            validate.unique_names(
                pd.Index(names[rows]), f"observations in section {library!r}", todo="Run `adata.obs_names_make_unique()`."
            )
            for block, members in library_rows(pd.Series(blocks[rows])).items():
                own[block] = tuple(sorted(names[rows[members]]))
        what = hashing.of_strings([hashing.of_array(np.sort(hashes[rows])), genes])
        donor, source = donors.get(library, (None, ""))
        sections.append(ManifestSection(library, donor, source, len(rows), what, hashing.of_strings(names[rows], ordered=False), own))
    return sections
