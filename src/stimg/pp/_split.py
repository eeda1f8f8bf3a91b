"""Splits by donor, by section or by contiguous block: whole groups on one side, never single observations."""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from stimg._core import keys, provenance, validate
from stimg._core.rng import RngLike, as_seed, derive
from stimg.data.duplicates import near_duplicates
from stimg.data.manifest import SplitManifest
from stimg.data.manifest_parts import LEVELS, OWN_GROUP, PARTS, Division, unknown_names
from stimg.data.manifest_table import describe
from stimg.data.slots import library_rows
from stimg.data.tables import table_of
from stimg.image.split import TOUCH, distance_to
from stimg.pp._assign import assign
from stimg.pp._blocks import centres_um, spatial_blocks

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)
LEAVE_ONE_OUT = "leave-one-out"
HELD_OUT = ("test", "validation")


def split(
    data: "AnnData | SpatialData",
    *,
    by: str = "donor",
    test: str | Sequence[str] | float | None = None,
    validation: str | Sequence[str] | float | None = None,
    n_folds: int | str | None = None,
    stratify: str | None = None,
    n_blocks: int | None = None,
    block_um: float | None = None,
    buffer_um: float = 0.0,
    missing_donor: str = "error",
    duplicates: str = "together",
    manifest: SplitManifest | str | os.PathLike | None = None,
    layer: str | None = None,
    library_key: str = keys.LIBRARY,
    donor_key: str = keys.DONOR,
    key_added: str | None = None,
    rng: RngLike = 0,
    table_key: str = "table",
) -> None:
    """Write ``obs["stimg_split"]`` (train, validation, test, buffer) or ``obs["stimg_fold"]`` (int32), and the manifest of the split into ``uns``.

    There is no split of single observations, and there will be none: neighbouring spots share tissue, stain and counts that have spread from
    one to the other, so a model that is tested on spots beside its training spots is tested on what it has seen.

    Parameters
    ----------
    data
        An AnnData with raw counts, or a SpatialData with such a table.
    by
        What stays together: ``"donor"``, all sections of a donor; ``"section"``, one section; ``"block"``, one contiguous block of a section.
    test, validation
        Names of donors, sections or blocks, or the fraction of the observations (above 0, below 1).
    n_folds
        Number of folds, or ``"leave-one-out"``, in place of ``test``: every donor (section, block) is tested in one fold. A fraction
        for ``validation`` is then taken anew from what each fold does not test; those that are named are validated on in every fold and never tested.
    stratify
        Column of ``obs`` (a label, an organ): its values, too, are shared out in the wanted fractions, as closely as whole groups allow.
    n_blocks, block_um
        For ``by="block"``: as for :func:`stimg.pp.spatial_blocks`. Without either, the blocks in ``obs["stimg_block"]``.
    buffer_um
        For ``by="block"``: observations within this distance, in µm, of a test observation are neither trained nor validated on, those
        within it of a validation observation not trained on. At least the diagonal of a crop keeps crops of training observations out of the test.
    missing_donor
        ``"error"``, or ``"own-group"``: a section without a donor is a donor of its own, which the manifest says.
    duplicates
        What is done with sections that are there twice (:func:`stimg.data.near_duplicates`): ``"together"``: their donors (sections) are treated as one;
        ``"error"``; ``"report"``: they are only listed in the manifest.
    manifest
        Apply this :class:`stimg.data.SplitManifest`, or the one in this file, and make none. Sections must be those that it lists, unchanged.
    layer
        Layer with raw counts.
    library_key, donor_key
        Columns of ``obs``.
    key_added
        Name of the column and of the record; by default ``"stimg_split"``, and ``"stimg_fold"`` for folds.
    rng
        Decides between divisions that are equally close to what is wanted.
    table_key
        Table of a SpatialData; the slots are read from it and written to it.

    Raises
    ------
    KeyError
        For missing columns or rasters.
    ValueError
        For unknown names; missing donors; a section with several donors; too few groups; nothing left to train on; duplicates where they are
        an error, or where blocks cannot keep them together; a manifest that does not belong to the data.
    TypeError
        For a ``stratify`` column of fractional numbers.

    Notes
    -----
    ``obs["stimg_fold"]`` is the number of the fold in which an observation is tested, -1 for none. ``uns["stimg"][key_added]["manifest"]`` is the manifest
    as JSON; :meth:`stimg.data.SplitManifest.from_anndata` reads it, and its ``masks`` give the observations of each fold.

    The parts are those for which the sum over parts of (share - wanted share)² is least, of all assignments where there are at most
    65,536, else of those that moves and exchanges of groups reach from ten starts. With ``stratify`` the shares are those of all observations, and of the
    values of the column, whose squares are averaged. Fractions are of all observations, buffers included.

    Examples
    --------
    >>> import stimg
    >>> adata = stimg.datasets.simulate(technology="visium", shape=(8, 8), n_genes=60, n_donors=3, n_sections=2, rng=0)
    >>> stimg.pp.split(adata, test=["D2"])
    >>> adata.obs.groupby("donor", observed=True)["stimg_split"].first().to_dict()
    {'D1': 'train', 'D2': 'test', 'D3': 'train'}
    >>> stimg.pp.split(adata, n_folds="leave-one-out")
    >>> adata.obs.groupby("donor", observed=True)["stimg_fold"].first().to_dict()
    {'D1': 0, 'D2': 1, 'D3': 2}
    """
    adata = table_of(data, table_key)
    validate.not_empty(adata)
    validate.one_of(by, LEVELS, "by")
    validate.one_of(missing_donor, ("error", "own-group"), "missing_donor")
    validate.one_of(duplicates, ("together", "error", "report"), "duplicates")
    if manifest is not None:
        if any(each is not None for each in (test, validation, n_folds, stratify)):
            raise ValueError(
                "manifest= applies a split that was made before; test=, validation=, n_folds= and stratify= make one. Pass one or the other."
            )
        made = manifest if isinstance(manifest, SplitManifest) else SplitManifest.load(manifest)
        made.check(adata, layer=layer, library_key=library_key, donor_key=donor_key)
    else:
        options = {
            "test": _wanted(test, "test"),
            "validation": _wanted(validation, "validation"),
            "n_folds": n_folds if n_folds is None or n_folds == LEAVE_ONE_OUT else validate.whole(n_folds, "n_folds", least=2),
            "stratify": stratify,
            "n_blocks": None if n_blocks is None else validate.whole(n_blocks, "n_blocks"),
            "block_um": None if block_um is None else validate.number(block_um, "block_um", "µm"),
            "buffer_um": validate.number(buffer_um, "buffer_um", "µm"),
            "missing_donor": missing_donor,
            "duplicates": duplicates,
            "rng": as_seed(rng),
        }
        made = _make(adata, by, options, layer, library_key, donor_key)
    key = key_added or (keys.FOLD if made.folded else keys.SPLIT)
    adata.obs[key] = made.apply(adata, library_key=library_key)
    provenance.record(
        adata, key, by=made.level, manifest=made.to_json(), split_hash=made.hash, layer=layer, library_key=library_key, donor_key=donor_key
    )
    sizes = adata.obs[key].value_counts().sort_index()
    logger.info("split by %s, %s: %s", made.level, made.hash, ", ".join(f"{name} {n}" for name, n in sizes.items()))


def _wanted(value: Any, name: str) -> list[str] | float | None:
    """Return names as a list, a fraction as a float, None as it is."""
    if value is None:
        return None
    if isinstance(value, str) or isinstance(value, Iterable):
        found = validate.names(value)
        validate.unique_names(pd.Index(found), f"names in {name}", todo="Name each once.")
        if not found:
            raise ValueError(f"{name}=[] names nothing; wanted names, a fraction, or None.")
        return found
    fraction = validate.number(value, name)
    if not 0 < fraction < 1:
        raise ValueError(f"{name}={value!r} is no fraction; wanted names, or a number above 0 and below 1.")
    return fraction


def _make(adata: "AnnData", by: str, options: Mapping[str, Any], layer: str | None, library_key: str, donor_key: str) -> SplitManifest:
    """Return a new manifest. What is divided are units (sections, or blocks), each of which belongs to a group that stays together."""
    test, validation, n_folds = options["test"], options["validation"], options["n_folds"]
    if test is None and validation is None and n_folds is None:
        raise ValueError("Nothing is held out; wanted test=, validation=, n_folds= or manifest=.")
    if n_folds is not None and test is not None:
        raise ValueError(f"test={test!r} and n_folds={n_folds!r}; wanted one of the two: of folds, each is tested once.")
    if not (np.isfinite(options["buffer_um"]) and options["buffer_um"] >= 0):
        raise ValueError(f"buffer_um={options['buffer_um']} is not a distance; wanted zero or a positive number of µm.")
    if by != "block" and (options["buffer_um"] or options["n_blocks"] is not None or options["block_um"] is not None):
        raise ValueError(f"by={by!r} divides whole sections; n_blocks, block_um and buffer_um are for by='block'.")
    library = validate.obs(adata, library_key, todo="Name the section of every observation, or run `stimg.pp.rasterize` first.").astype(str)
    donors = _donors(adata, library_rows(library), donor_key, by, options["missing_donor"])
    blocks = _blocks(adata, options["n_blocks"], options["block_um"], library_key) if by == "block" else None
    sections = describe(adata, donors=donors, blocks=blocks, layer=layer, library_key=library_key)
    if by == "block":
        group_of = {block: block for s in sections for block in s.blocks}
    else:
        group_of = {s.library: str(s.donor) if by == "donor" else s.library for s in sections}
    pairs = near_duplicates(adata, layer=layer, library_key=library_key, donor_key=donor_key)
    together, merged = _together(group_of, pairs, by, options["duplicates"])
    unit = library.to_numpy() if blocks is None else blocks
    weights = _weights(adata, unit, {u: together[g] for u, g in group_of.items()}, options["stratify"])
    divisions = []
    for name, part_of in _divide(weights, together, by, options):
        train, validated, tested = (tuple(u for u, g in group_of.items() if part_of[together[g]] == part) for part in PARTS[:3])
        divisions.append(Division(name, train, validated, tested))
    if blocks is not None and options["buffer_um"] > 0:
        divisions = _buffered(adata, divisions, blocks, library.to_numpy(), options["buffer_um"], library_key)
    found = [
        {k: (None if pd.isna(v) else round(v, 3) if isinstance(v, float) else v) for k, v in row.items()}
        for row in pairs.to_dict("records")
    ]
    made = SplitManifest(by, sections, divisions, n_folds is not None, options, found, merged, pairs.attrs["not_judged"])
    if made.shared_donors:
        logger.info("split by %s: sections of the donors %s are on more than one side", by, list(made.shared_donors))
    return made


def _donors(
    adata: "AnnData", libraries: Mapping[str, np.ndarray], donor_key: str, by: str, missing_donor: str
) -> dict[str, tuple[str | None, str]]:
    """Return the donor of each section and where it comes from."""
    todo = "Name the donor of each section, or pass `missing_donor='own-group'` where each section without one comes from another donor."
    if by == "donor" and missing_donor == "error":
        validate.slot(adata.obs, "obs", donor_key, todo=todo)
    column = adata.obs[donor_key] if donor_key in adata.obs else pd.Series(np.nan, index=adata.obs_names, dtype=object)
    found: dict[str, tuple[str | None, str]] = {}
    for library, rows in libraries.items():
        own = column.iloc[rows]
        names = sorted(own.dropna().astype(str).unique())
        if by == "donor" and (len(names) > 1 or (names and own.isna().any())):
            raise ValueError(
                f"Section {library!r} has the donors {names} and {int(own.isna().sum())} observations without one; wanted one donor. Give the "
                f"part of each donor a library of its own, or correct adata.obs[{donor_key!r}]."
            )
        found[library] = (", ".join(names), f"obs[{donor_key!r}]") if names else (None, "")
    missing = [library for library, (donor, _) in found.items() if donor is None]
    if by != "donor" or not missing:
        return found
    if missing_donor == "error":
        raise ValueError(f"{len(missing)} of {len(found)} sections have no donor in adata.obs[{donor_key!r}]: {missing}. {todo}")
    taken = sorted(set(missing) & {donor for donor, _ in found.values() if donor is not None})
    if taken:
        raise ValueError(f"{taken} are names of sections without a donor and of donors of other sections. Rename one of them.")
    return found | {library: (library, OWN_GROUP) for library in missing}


def _blocks(adata: "AnnData", n_blocks: int | None, block_um: float | None, library_key: str) -> np.ndarray:
    """Return the name of the block of each observation."""
    if n_blocks is None and block_um is None:
        todo = "Pass `n_blocks=` or `block_um=`, or run `stimg.pp.spatial_blocks` first."
        blocks = validate.obs(adata, keys.BLOCK, todo=todo).astype(str).to_numpy()
        libraries = pd.Series(adata.obs[library_key].astype(str).to_numpy()).groupby(blocks).nunique()
        if (libraries > 1).any():
            raise ValueError(
                f"Block {libraries.idxmax()!r} has observations of {libraries.max()} sections; wanted blocks within sections. {todo}"
            )
        return blocks
    import anndata as ad

    bare = ad.AnnData(obs=adata.obs[[library_key]].copy(), obsm={k: adata.obsm[k] for k in (keys.RC, keys.SPATIAL) if k in adata.obsm})
    bare.uns[keys.UNS] = {k: v for k, v in adata.uns.get(keys.UNS, {}).items() if k == keys.RASTER}
    spatial_blocks(bare, n_blocks=n_blocks, block_um=block_um, library_key=library_key)
    return bare.obs[keys.BLOCK].astype(str).to_numpy()


def _together(group_of: Mapping[str, str], pairs: pd.DataFrame, by: str, duplicates: str) -> tuple[dict[str, str], list[list[str]]]:
    """Return the group that each group is treated as, and the groups that were joined."""
    groups = sorted(set(group_of.values()))
    same = {group: group for group in groups}
    apart = [row for row in pairs.itertuples() if by == "block" or group_of[row.library_a] != group_of[row.library_b]]
    if not apart:
        return same, []
    shown = "; ".join(f"{row.library_a} and {row.library_b} ({row.why})" for row in apart)
    if duplicates == "error" or (by == "block" and duplicates == "together"):
        raise ValueError(
            f"Sections are there twice: {shown}. Drop one of each pair"
            + (", since the blocks of two sections cannot be kept together," if by == "block" else ", pass `duplicates='together'`,")
            + " or `duplicates='report'` where they are no copies."
        )
    logger.warning("split by %s: sections are there twice: %s; duplicates=%r", by, shown, duplicates)
    if duplicates == "report":
        return same, []
    at = {group: i for i, group in enumerate(groups)}
    a, b = ([at[group_of[name]] for name in side] for side in zip(*((row.library_a, row.library_b) for row in apart), strict=True))
    label = connected_components(coo_matrix((np.ones(len(a)), (a, b)), shape=(len(groups),) * 2), directed=False)[1]
    members = [[group for group in groups if label[at[group]] == i] for i in range(label.max() + 1)]
    return {group: joined[0] for joined in members for group in joined}, [joined for joined in members if len(joined) > 1]


def _weights(adata: "AnnData", unit: np.ndarray, group_of: Mapping[str, str], stratify: str | None) -> pd.DataFrame:
    """Return the share of each group (row) of all observations, and of those with each value of ``obs[stratify]`` (columns)."""
    group = np.array([group_of[u] for u in unit])
    table = pd.DataFrame({"": pd.Series(group).value_counts()}).sort_index()
    if stratify is not None:
        column = validate.slot(adata.obs, "obs", stratify, todo="Pass a column with a label.")
        if pd.api.types.is_float_dtype(column.dtype):
            raise TypeError(f"adata.obs[{stratify!r}] has dtype {column.dtype}; wanted a label. Cut it into classes first.")
        known = column.notna().to_numpy()
        labels = pd.crosstab(group[known], column[known].astype(str).to_numpy()).reindex(table.index, fill_value=0)
        table = pd.concat([table, labels], axis=1)
    return table / table.sum()


def _divide(weights: pd.DataFrame, together: Mapping[str, str], by: str, options: Mapping[str, Any]) -> list[tuple[str, dict[str, str]]]:
    """Return the name of each division and the part of each group in it."""
    groups, shares, n_folds = list(weights.index), weights.to_numpy(), options["n_folds"]
    fixed: dict[str, str] = {}
    for part in HELD_OUT:
        for name in options[part] if isinstance(options[part], list) else ():
            unknown_names(options[part], together, part, by)
            if fixed.setdefault(together[name], part) != part:
                raise ValueError(
                    f"{name!r} is named for test and for validation, or is a duplicate of one that is. Name it for one of them."
                )
    fractions = {part: options[part] for part in HELD_OUT if isinstance(options[part], float)}
    free = np.array([i for i, group in enumerate(groups) if group not in fixed], dtype=np.int64)

    def others(left: np.ndarray, stream: int) -> dict[str, str]:
        """Return the part of each group of ``left``: those with a fraction, and training."""
        parts = [*fractions, "train"]
        if len(left) < len(parts):
            raise ValueError(_too_few(groups, f"{len(left)} of them left to share out among {parts}", by))
        wanted = [*fractions.values(), np.nan]
        found = assign(shares[left], np.tile(wanted, (shares.shape[1], 1)).T, derive(options["rng"], stream))
        return {groups[i]: parts[part] for i, part in zip(left, found, strict=True)}

    if n_folds is None:
        return [("split", fixed | others(free, 0))]
    k = len(free) if n_folds == LEAVE_ONE_OUT else int(n_folds)
    if not 2 <= k <= len(free):
        raise ValueError(_too_few(groups, f"{len(free)} of them to be tested; wanted n_folds={n_folds!r}", by))
    fold = (
        np.arange(k) if k == len(free) else assign(shares[free], np.tile(shares[free].sum(axis=0) / k, (k, 1)), derive(options["rng"], 0))
    )
    divided = []
    for n in range(k):
        tested = {groups[i]: "test" for i in free[fold == n]}
        name = next(iter(tested)) if n_folds == LEAVE_ONE_OUT else str(n)
        divided.append((name, fixed | tested | others(free[fold != n], n + 1)))
    return divided


def _too_few(groups: Sequence[str], found: str, by: str) -> str:
    """Return the text of the error where whole groups do not suffice."""
    instead = {
        "donor": "Hold out contiguous parts of the sections with `by='block'`, or whole sections with `by='section'`, and say so: both share donors.",
        "section": "Hold out contiguous parts of the sections with `by='block'`.",
        "block": "Make more blocks (`n_blocks=`, `block_um=`).",
    }
    shown = ", ".join(repr(group) for group in groups[:6]) + (", ..." if len(groups) > 6 else "")
    return f"There are too few {by}s for this split: {len(groups)} ({shown}), {found}. {instead[by]}"


def _buffered(
    adata: "AnnData", divisions: Sequence[Division], blocks: np.ndarray, library: np.ndarray, buffer_um: float, library_key: str
) -> list[Division]:
    """Return the divisions with the observations that are too near to a tested one, or not validated on and too near to one that is."""
    centres, names = centres_um(adata, library_key=library_key), adata.obs_names.astype(str).to_numpy()
    reach, out = buffer_um * (1 + TOUCH), []
    for division in divisions:
        test, validation = (np.isin(blocks, getattr(division, part)) for part in HELD_OUT)
        buffer = ~test & (distance_to(centres, test, library) <= reach)
        kept = validation & ~buffer
        buffer |= ~test & ~validation & (distance_to(centres, kept, library) <= reach)
        for part, mask in (("train", ~test & ~validation), ("validate", validation)):
            if mask.any() and not (mask & ~buffer).any():
                raise ValueError(
                    f"Nothing is left to {part} on in division {division.name!r}: the buffer of {buffer_um:g} µm takes all "
                    f"{int(mask.sum())} observations. Narrow the buffer, or take other blocks."
                )
        inside = library_rows(pd.Series(library[buffer]))
        out.append(division._replace(buffer={lib: tuple(sorted(names[buffer][rows])) for lib, rows in inside.items()}))
    return out
