"""Where each technology captures: the capture areas of a section, in µm."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stimg._core import validate
from stimg.image.spec import HEX_ROW_STEP

TECHNOLOGIES = ("st", "visium", "visium_hd", "xenium")
BINS_UM = (2.0, 8.0, 16.0)
CELL_DIAMETER_UM = 10.0

_PITCH = {"st": 200.0, "visium": 100.0, "xenium": CELL_DIAMETER_UM}
_DIAMETER = {"st": 100.0, "visium": 55.0, "xenium": CELL_DIAMETER_UM}
_SHAPE = {"st": (30, 30), "visium": (32, 32), "visium_hd": (128, 128), "xenium": (64, 64)}
_FULL_DEPTH = {"st": (10_000.0, 2000), "visium": (6_000.0, 2000), "xenium": (200.0, 300)}


@dataclass(frozen=True)
class Layout:
    """The capture areas of one section: ``shape`` (rows, columns), ``size_um`` (y, x), ``pitch_um``, ``diameter_um`` (the edge of a bin)."""

    technology: str
    shape: tuple[int, int]
    size_um: tuple[float, float]
    pitch_um: float
    diameter_um: float

    @property
    def square(self) -> bool:
        """Whether a capture area is a square bin and not a round spot."""
        return self.technology == "visium_hd"

    def centres_um(self, index: np.ndarray) -> np.ndarray:
        """Return the (y, x) centres in µm, float64 (n, 2), of positions in row-major order."""
        row, col = np.divmod(index, self.shape[1])
        step = HEX_ROW_STEP if self.technology == "visium" else 1.0
        shift = 0.5 * (row % 2) if self.technology == "visium" else 0.0
        return np.stack([(row * step + 0.5) * self.pitch_um, (col + shift + 0.5) * self.pitch_um], axis=1)

    def array_index(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (array_row, array_col), int32, of positions in row-major order; Visium's columns are 2 * column + row parity."""
        row, col = np.divmod(index, self.shape[1])
        if self.technology == "visium":
            col = 2 * col + row % 2
        return row.astype(np.int32), col.astype(np.int32)

    def names(self, index: np.ndarray) -> list[str]:
        """Return one name per position."""
        row, col = (part.tolist() for part in self.array_index(index))
        if self.technology == "visium_hd":
            head = f"s_{round(self.pitch_um):03d}um_"
            return [f"{head}{r:05d}_{c:05d}-1" for r, c in zip(row, col, strict=True)]
        return [f"{r}x{c}" for r, c in zip(row, col, strict=True)]

    def default_depth(self, n_genes: int) -> float:
        """Return the expected total count of one observation for ``n_genes`` measured genes."""
        full, genes = (2.5 * self.pitch_um**2, 2000) if self.square else _FULL_DEPTH[self.technology]
        return full * min(1.0, n_genes / genes)


def make_layout(technology: str, shape: Sequence[int] | None, size_um: float | Sequence[float] | None, bin_um: float) -> Layout:
    """Return the layout of ``technology`` for ``shape`` (rows, columns) or ``size_um`` (one side, or (y, x)), of which at most one is given."""
    validate.one_of(technology, TECHNOLOGIES, "technology")
    if technology == "visium_hd":
        validate.one_of(float(bin_um), BINS_UM, "bin_um")
    if shape is not None and size_um is not None:
        raise ValueError(f"shape={shape} and size_um={size_um} are both given; pass one of them.")
    pitch = float(bin_um) if technology == "visium_hd" else _PITCH[technology]
    diameter = pitch if technology == "visium_hd" else _DIAMETER[technology]
    step = pitch * (HEX_ROW_STEP if technology == "visium" else 1.0)
    if size_um is None:
        rows, cols = _checked_shape(_SHAPE[technology] if shape is None else shape)
        width = cols * pitch + (pitch / 2 if technology == "visium" and rows > 1 else 0.0)
        return Layout(technology, (rows, cols), ((rows - 1) * step + pitch, width), pitch, diameter)
    sides = np.asarray(size_um, dtype=np.float64).reshape(-1)
    if len(sides) not in (1, 2):
        raise ValueError(f"size_um={size_um!r} is not a side or (y, x), in µm.")
    height, width = float(sides[0]), float(sides[-1])
    for side in (height, width):
        validate.positive(side, "size_um", "µm")
    rows = 1 + math.floor((height - pitch) / step + 1e-9)
    cols = math.floor((width - (pitch / 2 if technology == "visium" and rows > 1 else 0.0)) / pitch + 1e-9)
    if min(rows, cols) < 1:
        raise ValueError(f"size_um={size_um} holds no capture area of {technology}; wanted at least {pitch:g} µm a side.")
    return Layout(technology, (rows, cols), (height, width), pitch, diameter)


def _checked_shape(shape: Sequence[int]) -> tuple[int, int]:
    if len(shape) != 2 or min(shape) < 1 or any(int(s) != s for s in shape):
        raise ValueError(f"shape={shape!r} is not (rows, columns), two whole numbers of at least 1.")
    return int(shape[0]), int(shape[1])
