"""The manifest of a split against the observations of an AnnData: what the sections hold, whether they are the same, and who is on which side."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from stimg._core import hashing, keys, validate
from stimg.data.manifest_parts import OWN_GROUP, PARTS, ManifestSection, unknown_names
from stimg.data.slots import library_rows

if TYPE_CHECKING:
    from anndata import AnnData

    from stimg.data.manifest import SplitManifest

_TODO = "Name the section of every observation, or pass `library_key=`."


class Masks(NamedTuple):
    """One division of the observations of an AnnData: bool (n_obs,) masks, of which exactly one is True for each observation."""

    name: str
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    buffer: np.ndarray


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


def check(
    manifest: "SplitManifest", adata: "AnnData", *, strict: bool, layer: str | None, library_key: str, donor_key: str
) -> tuple[str, ...]:
    """Do :meth:`stimg.data.SplitManifest.check`."""
    rows = library_rows(validate.obs(adata, library_key, todo=_TODO))
    unknown_names(rows, manifest.libraries, f"adata.obs[{library_key!r}]", "section")
    missing = [name for name in manifest.libraries if name not in rows]
    if missing and strict:
        raise ValueError(
            f"{len(missing)} of the {len(manifest.libraries)} sections of the manifest are not in adata: {missing}. Add them, or pass "
            "`strict=False` to work with those that are there."
        )
    found = {s.library: s for s in describe(adata, donors={}, layer=layer, library_key=library_key)}
    donor = adata.obs[donor_key] if donor_key in adata.obs else None
    not_compared = []
    for wanted in (s for s in manifest.sections if s.library in rows):
        own = found[wanted.library]
        if wanted.contents is None:
            not_compared.append(wanted.library)
        elif own.contents != wanted.contents:
            raise ValueError(
                f"Section {wanted.library!r} is not the one of the manifest: {own.n_obs} observations with contents {own.contents}; wanted "
                f"{wanted.n_obs} with {wanted.contents}. Observations, genes or counts have changed: pass raw counts (`layer=`) of all "
                "of them, or make the split again."
            )
        if wanted.names is not None and own.names != wanted.names and (strict or manifest.level == "block"):
            raise ValueError(
                f"Section {wanted.library!r} has the counts of the manifest, and other names of observations. Give them their old names"
                + (", or make the split again." if manifest.level == "block" else ", or pass `strict=False`.")
            )
        if donor is not None and wanted.donor is not None and wanted.donor_source != OWN_GROUP:
            donors = sorted(donor.iloc[rows[wanted.library]].dropna().astype(str).unique())
            if donors and donors != [wanted.donor]:
                raise ValueError(
                    f"Section {wanted.library!r} has the donor {donors}, in the manifest {wanted.donor!r}. Correct adata.obs[{donor_key!r}], or "
                    "make the split again."
                )
    return tuple(not_compared)


def masks(manifest: "SplitManifest", adata: "AnnData", *, library_key: str) -> Iterator[Masks]:
    """Do :meth:`stimg.data.SplitManifest.masks`."""
    column = validate.obs(adata, library_key, todo=_TODO).astype(str)
    rows = library_rows(column)
    unknown_names(rows, manifest.libraries, f"adata.obs[{library_key!r}]", "section")
    units = {unit: i for i, unit in enumerate(manifest.units())}
    unit_of = np.full(adata.n_obs, -1, dtype=np.int64)
    for section in manifest.sections:
        here = rows.get(section.library, np.zeros(0, dtype=np.int64))
        if manifest.level != "block":
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
    for division in manifest.divisions:
        train, validation, test = (np.isin(unit_of, [units[u] for u in getattr(division, part)]) for part in PARTS[:3])
        buffer = np.zeros(adata.n_obs, dtype=bool)
        for library, names in division.buffer.items():
            here = rows.get(library, np.zeros(0, dtype=np.int64))
            buffer[here] = adata.obs_names[here].astype(str).isin(names)
        yield Masks(division.name, train & ~buffer, validation & ~buffer, test & ~buffer, buffer)


def apply(manifest: "SplitManifest", adata: "AnnData", *, library_key: str) -> pd.Series:
    """Do :meth:`stimg.data.SplitManifest.apply`."""
    divided = list(masks(manifest, adata, library_key=library_key))
    if manifest.folded:
        fold = np.full(adata.n_obs, -1, dtype=np.int32)
        for i, each in enumerate(divided):
            fold[each.test] = i
        return pd.Series(fold, index=adata.obs_names)
    codes = np.select([getattr(divided[0], part) for part in PARTS], np.arange(len(PARTS)))
    return pd.Series(pd.Categorical.from_codes(codes, categories=list(PARTS)), index=adata.obs_names)
