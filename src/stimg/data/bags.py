"""Bags of tiles: the slides of a table, each with a label, and batches of them with nothing padded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from stimg._core import keys, validate
from stimg._core import rng as _rng
from stimg.data.pairs import PairDataset
from stimg.data.slots import library_rows

if TYPE_CHECKING:
    from anndata import AnnData

TODO = "Write it with `stimg.tl.embed_image` or `stimg.pp.read_embedding`, or name another slot."


@dataclass(frozen=True)
class Bags:
    """The slides of a table.

    Parameters
    ----------
    features
        (n_obs, width) as the table holds them: not copied.
    rows
        Rows of each slide's tiles, int64, ascending.
    names
        Name of each slide, sorted.
    donors
        Donor of each slide.
    labels
        Label of each slide, None where it is not known.
    """

    features: np.ndarray
    rows: tuple[np.ndarray, ...]
    names: tuple[str, ...]
    donors: tuple[str, ...]
    labels: tuple[str | None, ...]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def width(self) -> int:
        """Number of features."""
        return int(self.features.shape[1])

    def chosen(self, mask: np.ndarray) -> "Bags":
        """Return the slides where ``mask``, bool (n_slides,), is True."""
        at = np.flatnonzero(mask)
        picked: Any = [tuple(each[i] for i in at) for each in (self.rows, self.names, self.donors, self.labels)]
        return Bags(self.features, *picked)


def bags_of(
    adata: "AnnData", *, features: str, library_key: str = keys.LIBRARY, donor_key: str = keys.DONOR, label_key: str | None = None
) -> Bags:
    """Return the slides of ``adata``: observations of one library are a bag.

    Parameters
    ----------
    adata
        Observations (tiles, spots or cells) with their features.
    features
        Slot of ``obsm``.
    library_key, donor_key
        Columns of ``obs`` with the slide and the donor; every slide has one donor. A slide without a column of donors is a donor of its own
        where there is no ``label_key``: then nothing is divided.
    label_key
        Column of ``obs`` with the label of the slide, the same for all of its observations, missing for all or none. None: no labels.

    Raises
    ------
    KeyError
        For a missing slot or column.
    TypeError
        For features that are no numbers.
    ValueError
        For features of another shape or not finite, and for slides with several donors or labels.
    """
    found = np.asarray(validate.slot(adata.obsm, "obsm", features, todo=TODO))
    if found.ndim != 2 or 0 in found.shape:
        raise ValueError(f"adata.obsm[{features!r}] has shape {found.shape}; wanted ({adata.n_obs}, features). {TODO}")
    if found.dtype.kind not in "iuf":
        raise TypeError(f"adata.obsm[{features!r}] has dtype {found.dtype}; wanted numbers. {TODO}")
    validate.finite(found, f"adata.obsm[{features!r}]", todo="Leave out the tiles without an image.")
    rows = library_rows(validate.obs(adata, library_key, todo="Name the slide of every observation."))
    if label_key is None and donor_key not in adata.obs:
        donors = {name: name for name in rows}
    else:
        column = validate.obs(adata, donor_key, todo="Slides of one donor are no independent data: write the donor of every slide there.")
        donors = {name: _one(column.astype(str).to_numpy(dtype=object)[at], name, "donors") for name, at in rows.items()}
    labels: dict[str, str | None] = dict.fromkeys(rows)
    if label_key is not None:
        values = validate.slot(adata.obs, "obs", label_key, todo="Name the column with the label of each slide.")
        missing = values.isna().to_numpy()
        texts = values.astype(object).to_numpy()
        for name, at in rows.items():
            if missing[at].any() and not missing[at].all():
                raise ValueError(
                    f"slide {name!r} has no label in {int(missing[at].sum())} of its {len(at)} observations in adata.obs[{label_key!r}]; "
                    "wanted one for all, or none. A label that differs within a slide is no label of the slide."
                )
            labels[name] = None if missing[at].all() else _one(np.array([str(t) for t in texts[at]], dtype=object), name, "labels")
    return Bags(found, tuple(rows.values()), tuple(rows), tuple(donors[n] for n in rows), tuple(labels[n] for n in rows))


def _one(values: np.ndarray, slide: str, what: str) -> str:
    distinct = sorted(set(values.tolist()))
    if len(distinct) > 1:
        raise ValueError(
            f"slide {slide!r} has {len(distinct)} {what} ({distinct[:4]}); wanted one. Is the column of libraries the right one?"
        )
    return str(distinct[0])


class BagDataset(PairDataset):
    """Slides, of which an item ``(epoch, positions)`` is a whole batch: the tiles of several slides, one after the other.

    An item has ``items`` float32 (n, width), ``bag`` int64 (n,), the place of each tile's slide in the batch, and ``label`` int64 (slides,).

    Parameters
    ----------
    bags
        The slides; all have a label.
    classes
        The classes in order.
    max_tiles
        Most tiles of a slide; of larger ones as many are drawn anew in every epoch, from (seed, epoch, slide) alone. None: all.
    seed
        Of those draws.
    """

    def __init__(self, bags: Bags, classes: Sequence[str], *, max_tiles: int | None = None, seed: int = 0) -> None:
        code = {name: i for i, name in enumerate(classes)}
        self.bags, self.max_tiles, self.seed = bags, max_tiles, seed
        self.rows = np.sort(np.concatenate(bags.rows)) if len(bags) else np.zeros(0, np.int64)
        self.labels = np.array([code[str(label)] for label in bags.labels], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.bags)

    @property
    def groups(self) -> np.ndarray:
        """Class of each slide, int64 (slides,), of which ``sampling="balanced"`` takes as many of each."""
        return self.labels

    def __getitem__(self, item: tuple[int, Sequence[int]]) -> dict[str, Tensor]:
        epoch, positions = item
        rows = [self._tiles(int(epoch), int(i)) for i in positions]
        return {**batch_of(self.bags.features, rows), "label": torch.from_numpy(self.labels[np.asarray(positions, dtype=np.int64)])}

    def _tiles(self, epoch: int, position: int) -> np.ndarray:
        rows = self.bags.rows[position]
        if self.max_tiles is None or len(rows) <= self.max_tiles:
            return rows
        return np.sort(_rng.derive(self.seed, epoch, position).choice(rows, self.max_tiles, replace=False))


def batch_of(features: np.ndarray, rows: Sequence[np.ndarray]) -> dict[str, Tensor]:
    """Return ``items``, ``bag`` and ``n_bags`` of the slides whose tiles are ``rows``."""
    items = np.ascontiguousarray(features[np.concatenate(rows)], dtype=np.float32)
    bag = np.repeat(np.arange(len(rows), dtype=np.int64), [len(r) for r in rows])
    return {"items": torch.from_numpy(items), "bag": torch.from_numpy(bag), "n_bags": torch.tensor(len(rows))}


def hold_out_donors(
    bags: Bags, *, validation: str | Sequence[str] | None, fraction: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return masks of training and validation slides, bool (n_slides,); slides without a label are in neither.

    Parameters
    ----------
    bags
        The slides.
    validation
        ``"donors"``: of the donors of each class about ``fraction``, at least one, whole. A list of donors: those. None: no validation.
    fraction
        Share of the donors.
    rng
        Chooses them.
    """
    known = np.array([label is not None for label in bags.labels], dtype=bool)
    donors = np.array(bags.donors, dtype=object)
    none = np.zeros(len(bags), dtype=bool)
    if validation is None:
        return known, none
    kinds = donor_kinds(bags)
    if isinstance(validation, str):
        if validation != "donors":
            raise ValueError(f"validation={validation!r} is not known; wanted 'donors', a list of donors, or None.")
        if not 0 < fraction <= 0.5:
            raise ValueError(f"validation_fraction={fraction} is outside (0, 0.5].")
        chosen = []
        for kind in sorted(set(kinds.values())):
            own = [d for d in sorted(kinds) if kinds[d] == kind]
            if len(own) < 2:
                raise ValueError(
                    f"{len(own)} donor ({own[0]!r}) has slides of {', '.join(kind)}; wanted two, one to train on and one to validate on. "
                    "Pass validation=None with `max_epochs`, or a list of donors."
                )
            size = min(len(own) - 1, max(1, round(fraction * len(own))))
            chosen += [own[i] for i in np.sort(rng.permutation(len(own))[:size])]
    else:
        chosen = [str(d) for d in validation]
        unknown = sorted(set(chosen) - set(kinds))
        if unknown or not chosen:
            raise ValueError(f"validation={chosen} names donors without a labelled slide: {unknown}; wanted some of {sorted(kinds)[:12]}.")
    held = known & np.isin(donors, chosen)
    train = known & ~held
    for mask, what in ((train, "train on"), (held, "validate on")):
        lacking = sorted({str(bags.labels[i]) for i in np.flatnonzero(known)} - {str(bags.labels[i]) for i in np.flatnonzero(mask)})
        if lacking and (what == "train on" or isinstance(validation, str)):
            raise ValueError(
                f"validation={validation!r} leaves no slide of {lacking} to {what}. Name other donors, or pass validation=None."
            )
    return train, held


def donor_kinds(bags: Bags) -> Mapping[str, tuple[str, ...]]:
    """Return the classes of each donor's labelled slides, in sorted order."""
    found: dict[str, set[str]] = {}
    for donor, label in zip(bags.donors, bags.labels, strict=True):
        if label is not None:
            found.setdefault(donor, set()).add(label)
    return {donor: tuple(sorted(labels)) for donor, labels in found.items()}
