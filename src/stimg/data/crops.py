"""Crops as batches of tensors: where the windows lie, which genes are their channels, and in which order they come."""

import threading
from collections.abc import Iterator, Sequence
from typing import Any, TypedDict

import numpy as np
import torch
from torch.utils.data import Dataset

from stimg._core import rng as _rng
from stimg.data.augment import hex_symmetries, square_symmetries, window_points
from stimg.data.channels import CropView, channel_rules, pack, pack_spots
from stimg.data.epochs import EpochSampler
from stimg.data.library import Library
from stimg.image.buffers import Workspace
from stimg.image.spec import CropSpec

DEFAULT_CHANNELS = 512
"""Channels of a crop for the rules that draw them, where nothing is asked for (the paper's number)."""
_MANY = 4  # from this part of all genes on (1 / 4), reading whole spots is faster than gathering genes


class Batch(TypedDict):
    """Crops as tensors; B crops of H x W pixels with up to C channels, N non-zero values in all.

    ``pixel`` int64 (N,)
        ``b * H * W + y * W + x``, ascending; within a pixel the channels ascend.
    ``channel`` int64 (N,)
        Position of the gene in the vocabulary.
    ``value`` float32 (N,)
        Raw counts, never zero. What a crop's panel holds and ``pixel`` does not name is a measured zero.
    ``seen`` bool (B, H, W)
        Whether the lattice point holds an observation.
    ``depth`` float32 (B, H, W)
        Total counts of the observation over all genes it was measured for, 0 where there is none.
    ``obs`` int64 (B, H, W)
        Row of the observation in the AnnData, -1 where there is none.
    ``panel`` int64 (B, C)
        The crop's channels as positions in the vocabulary, ascending, then -1. Genes that are not here are unknown, not zero.
    ``yx`` float32 (B, H, W, 2)
        Lattice points relative to the window's centre, in units of the pitch.
    ``library`` int64 (B,)
        Position of the crop's library in the list given.
    """

    pixel: torch.Tensor
    channel: torch.Tensor
    value: torch.Tensor
    seen: torch.Tensor
    depth: torch.Tensor
    obs: torch.Tensor
    panel: torch.Tensor
    yx: torch.Tensor
    library: torch.Tensor


def collate(samples: "Batch | Sequence[Batch]") -> Batch:
    """Return one batch of a list of batches with equal windows and panel widths; a batch is returned as it is."""
    if isinstance(samples, dict):
        return samples
    per_crop = samples[0]["seen"].shape[1] * samples[0]["seen"].shape[2]
    before = np.cumsum([0] + [len(s["seen"]) for s in samples[:-1]]) * per_crop
    joined: dict[str, torch.Tensor] = {key: torch.cat([s[key] for s in samples]) for key in samples[0] if key != "pixel"}  # type: ignore[literal-required]
    joined["pixel"] = torch.cat([s["pixel"] + int(b) for s, b in zip(samples, before, strict=True)])
    return Batch(**joined)  # type: ignore[typeddict-item]


class CropReader:
    """Windows of libraries as batches: the part that training and inference share.

    Parameters
    ----------
    libraries
        Where to read from.
    size
        (rows, columns) of the window.
    rule
        Name of a channel rule (``stimg.data.channel_rules``).
    n_channels
        C, the width of ``panel``. None: 512 for the rules that draw, as many as needed for ``"all"`` and ``"fixed"``.
    channels
        Positions in the vocabulary, for the rule ``"fixed"`` alone.
    """

    def __init__(
        self,
        libraries: Sequence[Library],
        size: tuple[int, int],
        *,
        rule: str,
        n_channels: int | None = None,
        channels: Sequence[int] | None = None,
    ) -> None:
        if not len(libraries):
            raise ValueError("There is no library to crop. Pass the list that `stimg.data.libraries` returns.")
        self.libraries, self.size, self.rule = list(libraries), (int(size[0]), int(size[1])), channel_rules[rule]
        if (rule == "fixed") != (channels is not None):
            raise ValueError(
                f"channels={'given' if channels is not None else None} does not go with rule={rule!r}; wanted with rule='fixed', and there alone."
            )
        self._genes = [library.genes for library in self.libraries]
        if channels is not None:
            wanted = np.unique(np.asarray(channels, dtype=np.int64))
            if len(wanted) != len(channels) or wanted[0] < 0:
                raise ValueError("channels holds a position twice or a negative one; wanted different positions in the vocabulary.")
            self._genes = [genes[np.isin(library.panel[genes], wanted)] for genes, library in zip(self._genes, self.libraries, strict=True)]
            for genes, library in zip(self._genes, self.libraries, strict=True):
                if not len(genes):
                    raise ValueError(
                        f"library {library.name!r} measures none of the {len(wanted)} channels. Leave it out, or add channels that it measures."
                    )
        most = max(len(genes) for genes in self._genes)
        if n_channels is None:
            n_channels = DEFAULT_CHANNELS if self.rule.draws else most
        if n_channels < 1 or (most > n_channels and not self.rule.draws):
            raise ValueError(
                f"n_channels={n_channels} has no room for the {most} channels of rule={rule!r}; wanted at least {most}, or None."
            )
        self.n_channels = int(n_channels)
        self._local = threading.local()

    def _workspace(self, dtype: np.dtype) -> Workspace:
        # One for every thread and dtype: a workspace serves one caller at a time and starts anew when the dtype changes.
        if not hasattr(self._local, "spaces"):
            self._local.spaces = {}
        return self._local.spaces.setdefault(np.dtype(dtype), Workspace())

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_local"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _local=threading.local())

    def read(self, windows: Sequence[tuple[int, int, int, int, np.random.Generator]]) -> Batch:
        """Return the batch of ``(library, top, left, symmetry, rng)``; symmetry 0 leaves the crop as it is."""
        n, (height, width) = len(windows), self.size
        seen, depth = np.empty((n, height, width), dtype=bool), np.empty((n, height, width), dtype=np.float32)
        obs, yx = np.empty((n, height, width), dtype=np.int64), np.empty((n, height, width, 2), dtype=np.float32)
        panel, hits = np.full((n, self.n_channels), -1, dtype=np.int64), []
        for b, (which, top, left, symmetry, rng) in enumerate(windows):
            library = self.libraries[which]
            row = library.store.obs(top, left, height, width).reshape(-1)
            present = row >= 0
            deep = _cut(library.depth_image, top, left, height, width).reshape(-1)
            moved, shown = self._geometry(library, top, symmetry)
            ids, found = self._channels(which, top, left, row, deep, moved, rng)
            panel[b, : len(ids)] = ids
            hits.append((found[0] + b * height * width, found[1], found[2]))
            seen[b], depth[b] = present[moved].reshape(self.size), deep[moved].reshape(self.size)
            obs[b] = np.where(present, library.rows[row], -1)[moved].reshape(self.size)
            yx[b] = shown.reshape(height, width, 2)
        pixels, channel, values = (np.concatenate(parts) for parts in zip(*hits, strict=True))
        library_id = np.array([window[0] for window in windows], dtype=np.int64)
        arrays = {
            "pixel": pixels,
            "channel": channel,
            "value": values,
            "seen": seen,
            "depth": depth,
            "obs": obs,
            "panel": panel,
            "yx": yx,
            "library": library_id,
        }
        return Batch(**{key: torch.from_numpy(array) for key, array in arrays.items()})  # type: ignore[typeddict-item]

    def _geometry(self, library: Library, top: int, symmetry: int) -> tuple[np.ndarray, np.ndarray]:
        if library.spec.lattice == "square":
            return square_symmetries(self.size)[symmetry], window_points(self.size, -1)
        points = window_points(self.size, (library.spec.hex_parity - top) % 2)
        if symmetry:
            points = points @ hex_symmetries()[symmetry].T
        return square_symmetries(self.size)[0], points

    def _channels(
        self, which: int, top: int, left: int, row: np.ndarray, depth: np.ndarray, moved: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Return the ids of a crop's channels, and (pixel, channel, value) of its non-zeros."""
        library, genes, size = self.libraries[which], self._genes[which], self.size
        workspace, n_vars = self._workspace(library.store.dtype), library.store.n_vars
        spots = library.spots if library.in_order else None
        view = CropView(
            genes, n_vars, row, depth, lambda: library.store.window(top, left, *size, workspace=workspace), library.spots, library.counts
        )
        chosen = genes
        if len(genes) > self.n_channels:
            chosen = self.rule.choose(view, self.n_channels, rng)
            chosen = chosen[np.argsort(library.panel[chosen])]
        ids = library.panel[chosen]
        if spots is not None and len(chosen) * _MANY >= n_vars:
            channel = np.full(n_vars, -1, dtype=np.int64)
            channel[chosen] = ids
            return ids, pack_spots(spots.indptr, spots.indices, spots.data, row, moved, channel)
        if "hits" in view.__dict__ or len(chosen) == n_vars:
            window, key = view.hits, chosen
        else:
            window, key = library.store.window(top, left, *size, chosen, workspace=workspace), np.arange(len(chosen))
        key = key.astype(window.gene.dtype)
        starts, stops = np.searchsorted(window.gene, key, "left"), np.searchsorted(window.gene, key, "right")
        place = np.empty_like(moved)
        place[moved] = np.arange(len(moved))
        return ids, pack(window.pixel, window.value, starts, stops, ids, place)

    def n_symmetries(self, library: int) -> int:
        """Return the number of symmetries of a window of library ``library``."""
        return len(square_symmetries(self.size)) if self.libraries[library].spec.lattice == "square" else len(hex_symmetries())


def _cut(image: np.ndarray, top: int, left: int, height: int, width: int) -> np.ndarray:
    """Return a window of ``image`` (rows, cols), zero outside it."""
    rows, cols = image.shape
    if top >= 0 and left >= 0 and top + height <= rows and left + width <= cols:
        return image[top : top + height, left : left + width]
    out = np.zeros((height, width), dtype=image.dtype)
    y0, y1, x0, x1 = max(top, 0), min(top + height, rows), max(left, 0), min(left + width, cols)
    if y0 < y1 and x0 < x1:
        out[y0 - top : y1 - top, x0 - left : x1 - left] = image[y0:y1, x0:x1]
    return out


def occupied_points(occupied: np.ndarray, top: np.ndarray, left: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return how many lattice points are occupied in windows with corners ``top``, ``left`` (arrays that broadcast), int32, by an integral image."""
    sums = np.zeros((occupied.shape[0] + 1, occupied.shape[1] + 1), dtype=np.int32)
    np.cumsum(np.cumsum(occupied, axis=0, dtype=np.int32), axis=1, out=sums[1:, 1:])
    y0, y1 = (np.clip(y, 0, occupied.shape[0]) for y in (top, top + size[0]))
    x0, x1 = (np.clip(x, 0, occupied.shape[1]) for x in (left, left + size[1]))
    return sums[y1, x1] - sums[y0, x1] - sums[y1, x0] + sums[y0, x0]


def valid_corners(occupied: np.ndarray, crop: CropSpec, *, name: str = "") -> np.ndarray:
    """Return the top left corners (row, col) of all windows with at least ``crop.fewest`` occupied lattice points, int32 (n, 2).

    Windows lie inside the raster. Along an axis where the raster is smaller than the window, they hang over it and cover all of it.

    Parameters
    ----------
    occupied
        Whether each lattice point holds an observation, bool (rows, cols).
    crop
        The window.
    name
        Name of the library, for the error.

    Raises
    ------
    ValueError
        Where no window has enough occupied lattice points; it names the largest number found.
    """
    low = [min(0, n - length) for n, length in zip(occupied.shape, crop.size, strict=True)]
    top, left = (np.arange(start, max(0, n - length) + 1) for start, n, length in zip(low, occupied.shape, crop.size, strict=True))
    held = occupied_points(occupied, top[:, None], left[None, :], crop.size)
    corners = np.argwhere(held >= crop.fewest).astype(np.int32)
    if not len(corners):
        raise ValueError(
            f"library {name!r} has no window of {crop.size[0]} x {crop.size[1]} with {crop.fewest} occupied lattice points; the best one holds "
            f"{int(held.max())}. Lower `min_occupied`, take a smaller window, or leave the library out."
        )
    return corners + np.array(low, dtype=np.int32)


class CropDataset(Dataset):
    """Random crops of libraries, a map-style dataset whose item ``(epoch, index)`` is always the same crop.

    Corner, symmetry and channels of a crop are drawn from ``(seed, epoch, index)`` alone, so batches do not depend on workers or ranks. An
    epoch has ``crop.n_crops`` crops of every library, counted over the bounding box of its observations. An item may be a plain index, of
    epoch 0. Use :class:`CropSampler` to walk through the epochs, and :func:`collate` to join items.

    Parameters
    ----------
    libraries
        Where to crop.
    crop
        The window, the fewest occupied points, and the coverage of an epoch.
    rule, n_channels, channels
        As for :class:`CropReader`.
    augment
        Whether to apply a random symmetry of the lattice: flips and quarter turns of the window (square lattice; half turns only where the
        window is oblong), or one of the 12 symmetries of the hexagon to ``yx``.
    seed
        Where all chance comes from.
    max_samples
        Most crops of one epoch; every epoch then takes another random part of them.
    """

    def __init__(
        self,
        libraries: Sequence[Library],
        crop: CropSpec,
        *,
        rule: str = "weighted",
        n_channels: int | None = None,
        channels: Sequence[int] | None = None,
        augment: bool = False,
        seed: int = 0,
        max_samples: int | None = None,
    ) -> None:
        self.reader = CropReader(libraries, crop.size, rule=rule, n_channels=n_channels, channels=channels)
        if max_samples is not None and max_samples < 1:
            raise ValueError(f"max_samples={max_samples} is less than one crop.")
        self.crop, self.augment, self.seed = crop, bool(augment), _rng.as_seed(seed)
        self._corners, counts = [], []
        for library in self.reader.libraries:
            occupied = np.asarray(library.store.occupancy(0, 0, *library.spec.shape))
            self._corners.append(valid_corners(occupied, crop, name=library.name))
            extent = [int(np.ptp(np.flatnonzero(occupied.any(axis=1 - axis)))) + 1 for axis in (0, 1)]
            counts.append(crop.n_crops((extent[0], extent[1])))
        self._ends = np.cumsum(counts)
        self.max_samples = max_samples

    @property
    def n_all(self) -> int:
        """Number of crops of one epoch before ``max_samples``."""
        return int(self._ends[-1])

    def __len__(self) -> int:
        return self.n_all if self.max_samples is None else min(self.n_all, self.max_samples)

    def _window(self, item: "tuple[int, int] | int") -> tuple[int, int, int, int, np.random.Generator]:
        epoch, index = (0, int(item)) if isinstance(item, (int, np.integer)) else (int(item[0]), int(item[1]))
        if index < 0 or epoch < 0:
            raise IndexError(f"crop {index} of epoch {epoch} does not exist; wanted numbers of at least 0.")
        rng = _rng.derive(self.seed, epoch, index)
        which = int(np.searchsorted(self._ends, index % self.n_all, "right"))
        corners = self._corners[which]
        top, left = corners[rng.integers(len(corners))]
        symmetry = int(rng.integers(self.reader.n_symmetries(which)))
        return which, int(top), int(left), symmetry if self.augment else 0, rng

    def __getitem__(self, item: "tuple[int, int] | int") -> Batch:
        return self.__getitems__([item])

    def __getitems__(self, items: "Sequence[tuple[int, int] | int]") -> Batch:
        return self.reader.read([self._window(item) for item in items])


class CropSampler(EpochSampler):
    """The order of a :class:`CropDataset` for one rank: a new permutation every epoch, from (seed, epoch).

    Rank ``r`` of ``n`` takes crops ``r, r + n, ...`` of the sequence that one rank would see. Where ``n`` does not divide the number of
    crops, the sequence is made longer by crops of its own (indices from ``dataset.n_all`` on), so nothing is dropped and nothing comes twice.

    Parameters
    ----------
    dataset
        The crops.
    num_replicas, rank, fixed
        As for :class:`stimg.data.epochs.EpochSampler`.
    """

    dataset: CropDataset

    def __init__(self, dataset: CropDataset, *, num_replicas: int = 1, rank: int = 0, fixed: bool = False) -> None:
        super().__init__(dataset, seed=dataset.seed, num_replicas=num_replicas, rank=rank, fixed=fixed)

    def __iter__(self) -> Iterator[tuple[int, int]]:  # type: ignore[override]
        epoch = self.current
        order = _rng.derive(self.dataset.seed, epoch).permutation(self.dataset.n_all)[: len(self.dataset)]
        added = np.arange(len(self) * self.num_replicas - len(order)) + self.dataset.n_all
        for index in np.concatenate([order, added])[self.rank :: self.num_replicas].tolist():
            yield epoch, index
