"""The frozen parameter sets of images: how a library lies on its lattice, what a crop is, and what a tile of a slide is."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from stimg._core.validate import positive
from stimg.image.units import check_mpp

LATTICES = ("square", "hex")
COLLISIONS = ("error", "nearest", "sum")
MAX_POINTS = 2**31 - 1
"""Most lattice points of a raster: an index into them is an int32."""
HEX_ROW_STEP = math.sqrt(3.0) / 2.0
"""Distance between the rows of a hexagonal lattice, in units of the pitch."""


@dataclass(frozen=True)
class RasterSpec:
    """How one library lies on its lattice.

    Row ``r`` and column ``c`` of a square lattice have their centre at lattice point ``(r, c)``, in units of the pitch. A hexagonal
    lattice is kept as offset rows: rows with ``r % 2 == hex_parity`` are shifted right by half a step, and rows are sqrt(3)/2 apart,
    so that the centre is ``(r * sqrt(3)/2, c + 0.5 * (r % 2 == hex_parity))``.

    Parameters
    ----------
    lattice
        ``"square"`` (arrays on a square lattice, bins, rasterised cells and molecules) or ``"hex"``.
    shape
        Number of (rows, columns).
    pitch_um
        Distance between the centres of nearest neighbours in µm; for bins, their edge.
    hex_parity
        0 or 1 for a hexagonal lattice, -1 for a square one.
    origin
        (row, column) of the array or bin index that became raster (0, 0).
    affine
        2 x 3, maps a lattice point (y, x, 1), in units of the pitch, to (y, x) in the units of ``obsm["spatial"]`` (full-resolution pixels).
    residual_um
        Largest distance between an observation and the centre of its lattice point, in µm.
    mpp
        µm per full-resolution pixel.
    source
        Where the lattice came from: ``"array"`` (array indices), ``"coordinates"``, ``"bins"``, ``"cells"`` or ``"points"``.
    collision
        What was done with observations that fell on one lattice point: ``"error"``, ``"nearest"`` (only the nearest to the centre is
        on the raster, the others have row and column -1) or ``"sum"`` (all stay, and a window adds their values).
    """

    lattice: str
    shape: tuple[int, int]
    pitch_um: float
    hex_parity: int = -1
    origin: tuple[int, int] = (0, 0)
    affine: tuple[tuple[float, float, float], tuple[float, float, float]] = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
    residual_um: float = 0.0
    mpp: float = 1.0
    source: str = "array"
    collision: str = "error"

    def __post_init__(self) -> None:
        if self.lattice not in LATTICES:
            raise ValueError(f"lattice={self.lattice!r} is not known; wanted one of {LATTICES}.")
        if self.collision not in COLLISIONS:
            raise ValueError(f"collision={self.collision!r} is not known; wanted one of {COLLISIONS}.")
        if (self.lattice == "hex") != (self.hex_parity in (0, 1)):
            raise ValueError(
                f"hex_parity={self.hex_parity} does not go with lattice={self.lattice!r}; wanted 0 or 1 for hex, -1 for square."
            )
        if len(self.shape) != 2 or min(self.shape) < 1:
            raise ValueError(f"shape={self.shape} is not a raster; wanted (rows, columns), each at least 1.")
        if self.shape[0] * self.shape[1] > MAX_POINTS:
            raise ValueError(
                f"shape={self.shape} has {self.shape[0] * self.shape[1]:.3g} lattice points; wanted at most {MAX_POINTS:.3g}. Take larger pixels, or "
                "look for observations far away from the others."
            )
        if not (math.isfinite(self.pitch_um) and self.pitch_um > 0):
            raise ValueError(f"pitch_um={self.pitch_um} is not a positive number of µm.")

    def lattice_points(self, rc: np.ndarray) -> np.ndarray:
        """Return the (y, x) lattice points of (row, col) pairs, float64 (n, 2), in units of the pitch."""
        rc = np.asarray(rc, dtype=np.float64).reshape(-1, 2)
        if self.lattice == "square":
            return rc
        shifted = np.mod(rc[:, 0], 2) == self.hex_parity
        return np.stack([rc[:, 0] * HEX_ROW_STEP, rc[:, 1] + 0.5 * shifted], axis=1)

    def centres_um(self, rc: np.ndarray) -> np.ndarray:
        """Return the (y, x) centres of (row, col) pairs in µm, float64 (n, 2), with raster (0, 0) at the origin (plus the hex shift)."""
        return self.lattice_points(rc) * self.pitch_um

    def centres_px(self, rc: np.ndarray) -> np.ndarray:
        """Return the (y, x) centres of (row, col) pairs in full-resolution pixels, float64 (n, 2)."""
        affine = np.asarray(self.affine)
        return self.lattice_points(rc) @ affine[:, :2].T + affine[:, 2]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that ``uns`` can hold; :meth:`from_dict` is the inverse."""
        out = asdict(self)
        out["shape"], out["origin"] = np.asarray(self.shape), np.asarray(self.origin)
        out["affine"] = np.asarray(self.affine, dtype=np.float64)
        return out

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "RasterSpec":
        """Return the spec of :meth:`to_dict`'s values, also after a round trip through h5ad or zarr."""
        affine = np.asarray(values["affine"], dtype=np.float64)
        return cls(
            lattice=str(values["lattice"]),
            shape=(int(values["shape"][0]), int(values["shape"][1])),
            pitch_um=float(values["pitch_um"]),
            hex_parity=int(values["hex_parity"]),
            origin=(int(values["origin"][0]), int(values["origin"][1])),
            affine=(tuple(affine[0].tolist()), tuple(affine[1].tolist())),
            residual_um=float(values["residual_um"]),
            mpp=float(values["mpp"]),
            source=str(values["source"]),
            collision=str(values["collision"]),
        )


@dataclass(frozen=True)
class CropSpec:
    """What one crop is.

    Parameters
    ----------
    size
        (rows, columns) of the window in lattice steps.
    min_occupied
        Fewest occupied lattice points of a crop. The paper's released code uses 57 of 256; the default is a tenth of the window, at least 1.
    coverage
        Expected number of crops that cover a lattice point in one epoch: the number of crops of a library is
        ``floor(coverage * rows * columns / (height * width))``, at least 1 (the paper's rule has coverage 2).
    """

    size: tuple[int, int] = (16, 16)
    min_occupied: int | None = None
    coverage: float = 2.0

    def __post_init__(self) -> None:
        if len(self.size) != 2 or min(self.size) < 1 or any(int(side) != side for side in self.size):
            raise ValueError(f"size={self.size} is not a window; wanted (rows, columns) in lattice steps, whole numbers of at least 1.")
        if self.min_occupied is not None and not 1 <= self.min_occupied <= self.size[0] * self.size[1]:
            raise ValueError(
                f"min_occupied={self.min_occupied} is outside 1 .. {self.size[0] * self.size[1]} (the window's lattice points). Pass one of these, or None for a tenth."
            )
        if not (math.isfinite(self.coverage) and self.coverage > 0):
            raise ValueError(f"coverage={self.coverage} is not a positive number.")

    @classmethod
    def from_um(cls, crop_um: float | tuple[float, float], spec: RasterSpec, **options: Any) -> "CropSpec":
        """Return the crop whose window is nearest to ``crop_um`` (one side, or (y, x)), in µm, on the raster of ``spec``."""
        side_y, side_x = crop_um if isinstance(crop_um, tuple) else (crop_um, crop_um)
        row_um = spec.pitch_um * (HEX_ROW_STEP if spec.lattice == "hex" else 1.0)
        size = (round(side_y / row_um), round(side_x / spec.pitch_um))
        if min(size) < 1:
            raise ValueError(f"crop_um={crop_um} is less than one lattice step ({row_um:g} x {spec.pitch_um:g} µm).")
        return cls(size=size, **options)

    @property
    def fewest(self) -> int:
        """Fewest occupied lattice points of a crop, with the default resolved."""
        return self.min_occupied if self.min_occupied is not None else max(1, (self.size[0] * self.size[1]) // 10)

    def n_crops(self, shape: tuple[int, int]) -> int:
        """Return the number of crops of a library of ``shape`` (rows, columns) in one epoch."""
        return max(1, math.floor(self.coverage * shape[0] * shape[1] / (self.size[0] * self.size[1])))


@dataclass(frozen=True)
class TileSpec:
    """What one tile of a slide is.

    Parameters
    ----------
    tile_um
        Side of the square tile on the slide, in µm.
    mpp
        µm per pixel of the delivered tile.
    fields
        Sides of the concentric fields in units of ``tile_um``, each delivered with ``size_px`` pixels a side, so at ``mpp * field``.
    upsample
        Whether a slide more than 5 % coarser than a field's µm per pixel may be interpolated; otherwise that is an error.

    Examples
    --------
    >>> spec = TileSpec(tile_um=112.0, mpp=0.5, fields=(1.0, 4.0))
    >>> spec.size_px, spec.sides_um
    (224, (112.0, 448.0))
    """

    tile_um: float
    mpp: float
    fields: tuple[float, ...] = (1.0,)
    upsample: bool = False

    def __post_init__(self) -> None:
        positive(self.tile_um, "tile_um", "µm")
        positive(self.mpp, "mpp", "µm per pixel")
        check_mpp(self.mpp)
        if not isinstance(self.fields, tuple | list) or not len(self.fields):
            raise ValueError(f"fields={self.fields!r}; wanted at least one number, the side of each field in units of tile_um.")
        for each in self.fields:
            positive(each, "fields")
        object.__setattr__(self, "fields", tuple(float(each) for each in self.fields))
        if len(set(self.fields)) != len(self.fields):
            raise ValueError(f"fields={self.fields} names a field twice; wanted different sides.")
        if self.size_px < 1:
            raise ValueError(f"tile_um={self.tile_um:g} at mpp={self.mpp:g} is less than one pixel; wanted a larger tile, or finer pixels.")

    @property
    def size_px(self) -> int:
        """Rows and columns of the delivered tile: the side in µm over µm per pixel, rounded."""
        return round(self.tile_um / self.mpp)

    @property
    def sides_um(self) -> tuple[float, ...]:
        """Side of each field in µm."""
        return tuple(self.tile_um * each for each in self.fields)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that ``uns`` can hold; :meth:`from_dict` is the inverse."""
        return {
            "tile_um": float(self.tile_um),
            "mpp": float(self.mpp),
            "fields": np.asarray(self.fields, dtype=np.float64),
            "upsample": bool(self.upsample),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TileSpec":
        """Return the spec of :meth:`to_dict`'s values, also after a round trip through h5ad or zarr."""
        fields = tuple(float(each) for each in np.atleast_1d(np.asarray(values["fields"], dtype=np.float64)))
        return cls(float(values["tile_um"]), float(values["mpp"]), fields, bool(values["upsample"]))
