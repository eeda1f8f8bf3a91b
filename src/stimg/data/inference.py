"""Windows that cover every observation, in a fixed order, for reading values out of a trained model."""

from collections.abc import Sequence

import numpy as np
from torch.utils.data import Dataset

from stimg._core import rng as _rng
from stimg._core import validate
from stimg.data.crops import Batch, CropReader, occupied_points
from stimg.data.library import Library
from stimg.image.blend import tile_windows

MODES = ("tiles", "centred")


class InferenceDataset(Dataset):
    """Windows over libraries such that every observation lies in at least one; no augmentation, no occupancy rule.

    Blend what a model says about the windows with :class:`stimg.image.Blend`: ``blend.add(batch["obs"], values, taper(size))`` for each
    batch, then ``blend.result(dataset.rows, at=dataset.at)``.

    Parameters
    ----------
    libraries
        Libraries of one AnnData.
    size
        (rows, columns) of the window.
    mode
        ``"tiles"``: a grid of windows (:func:`stimg.image.tile_windows`), those without any observation left out. ``"centred"``: one window
        per observation, with the observation at pixel ``(rows // 2, columns // 2)``; windows hang over the raster's edge, and observations
        that share a lattice point share a window. Blend these with ``taper(size, "centre")``.
    overlap
        Lattice steps by which tiles overlap, one number or (y, x).
    rule, n_channels, channels
        As for :class:`stimg.data.CropReader`. Rules that draw do so from ``(seed, index of the window)``.
    seed
        Where the draws of such rules come from.
    """

    def __init__(
        self,
        libraries: Sequence[Library],
        size: tuple[int, int],
        *,
        mode: str = "tiles",
        overlap: int | tuple[int, int] = 0,
        rule: str = "variance",
        n_channels: int | None = None,
        channels: Sequence[int] | None = None,
        seed: int = 0,
    ) -> None:
        validate.one_of(mode, MODES, "mode")
        if mode == "centred" and overlap != 0:
            raise ValueError(
                f"overlap={overlap} does not go with mode='centred', where every observation has its own window. Leave it at 0."
            )
        self.reader = CropReader(libraries, size, rule=rule, n_channels=n_channels, channels=channels)
        self.seed = _rng.as_seed(seed)
        self.rows = np.concatenate([library.rows for library in self.reader.libraries])
        self.at = np.concatenate([library.rows[library.first] for library in self.reader.libraries])
        if len(np.unique(self.rows)) != len(self.rows):
            raise ValueError("Two libraries hold the same row of an AnnData. Pass the libraries of one AnnData at a time, each once.")
        parts = []
        for which, library in enumerate(self.reader.libraries):
            corners = self._centred(library) if mode == "centred" else self._tiles(library, overlap)
            parts.append(np.column_stack([np.full(len(corners), which, dtype=np.int64), corners]))
        self.windows = np.concatenate(parts)
        """Library, top row and left column of every window, int64 (n, 3)."""

    def _centred(self, library: Library) -> np.ndarray:
        half = np.array([self.reader.size[0] // 2, self.reader.size[1] // 2])
        return library.points[np.unique(library.first)] - half

    def _tiles(self, library: Library, overlap: int | tuple[int, int]) -> np.ndarray:
        corners = tile_windows(library.spec.shape, self.reader.size, overlap)
        return corners[occupied_points(library.store.index >= 0, corners[:, 0], corners[:, 1], self.reader.size) > 0]

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        windows = []
        for index in indices:
            if not 0 <= index < len(self):
                raise IndexError(f"window {index} does not exist; there are {len(self)}.")
            which, top, left = self.windows[index].tolist()
            windows.append((which, top, left, 0, _rng.derive(self.seed, 0, index)))
        return self.reader.read(windows)
