"""The manifest of a split: which sections or blocks are on which side, and what they held, as plain JSON that belongs in git."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from stimg._core import hashing, keys, validate
from stimg._core.files import replacing
from stimg.data import manifest_table
from stimg.data.manifest_parts import LEVELS, PARTS, Division, ManifestSection, unknown_names
from stimg.data.manifest_table import Masks

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["Division", "ManifestSection", "Masks", "SplitManifest"]

FORMAT, VERSION = "stimg split manifest", 1


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
        known = list(self.units())
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

    def units(self) -> dict[str, str]:
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
        units, shared = self.units(), set()
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
        return manifest_table.check(self, adata, strict=strict, layer=layer, library_key=library_key, donor_key=donor_key)

    def masks(self, adata: "AnnData", *, library_key: str = keys.LIBRARY) -> Iterator[Masks]:
        """Yield each division as masks over the observations of ``adata``; a ValueError for sections or observations that it does not list.

        Names decide: :meth:`check` says whether the sections are still what they were.
        """
        return manifest_table.masks(self, adata, library_key=library_key)

    def apply(self, adata: "AnnData", *, library_key: str = keys.LIBRARY) -> pd.Series:
        """Return the part of each observation, categorical; of folds the number of the fold in which it is tested, int32, -1 for none."""
        return manifest_table.apply(self, adata, library_key=library_key)

    def folds(self) -> Iterator[Division]:
        """Yield each division: its name, and the sections (blocks) to train on, to validate on and to test."""
        yield from self.divisions
