"""The simulated tissue: smooth random fields, domains, outline, gradients. Everything is a function of the position in µm."""

import math
from enum import IntEnum

import numpy as np

from stimg._core.rng import derive
from stimg.datasets._simulate_options import DonorOptions, TissueOptions

GRID_PER_KNOT = 5
KNOTS = 64


class Stream(IntEnum):
    """First key of every derived generator, so that no two parts of the simulator share random numbers."""

    DOMAIN = 1
    GRADIENT = 2
    DEPTH_FIELD = 3
    OUTLINE = 4
    HOLE = 5
    WARP = 6
    COMPOSITION = 7
    CELL = 8
    GENE = 9
    SHIFT = 10
    DEPTH = 11
    COUNT = 12
    STAIN = 13
    NUCLEUS = 14
    TEXTURE = 15
    MOLECULE = 16


def _basis(n: int, step: float, spacing: float) -> np.ndarray:
    """Return the cubic B-spline weights (n grid points, knots) of grid points ``step`` apart and knots ``spacing`` apart."""
    position = np.arange(n) * (step / spacing) + 1.0
    distance = np.abs(position[:, None] - np.arange(math.ceil(position[-1]) + 2))
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = np.clip(2 - distance, 0, None) ** 3 / 6
    return np.where(distance < 1, near, far)


def smooth_field(rng: np.random.Generator, shape: tuple[int, int], step: float, spacing: float) -> np.ndarray:
    """Return a cubic B-spline through white noise, float32 of ``shape``, with mean 0 and standard deviation 1 over the grid.

    Noise is drawn on knots ``spacing`` apart, in a block of a fixed size first, so that small changes of ``shape`` keep the field.
    """
    rows, cols = _basis(shape[0], step, spacing), _basis(shape[1], step, spacing)
    side = max(KNOTS, rows.shape[1], cols.shape[1])
    knots = rng.standard_normal((side, side))[: rows.shape[1], : cols.shape[1]]
    values = rows @ knots @ cols.T
    values -= values.mean()
    spread = values.std()
    return (values / spread if spread > 0 else values).astype(np.float32)


class Grid:
    """Fields on a regular grid that starts at (0, 0) µm, read by bilinear interpolation; beyond the grid the border's value holds."""

    def __init__(self, fields: list[np.ndarray], step_um: float) -> None:
        self.values = np.ascontiguousarray(np.stack(fields, axis=-1))
        self.step_um = step_um

    def at(self, yx_um: np.ndarray) -> np.ndarray:
        """Return the fields, float32 (n, fields), at ``yx_um`` (n, 2)."""
        last = np.asarray(self.values.shape[:2]) - 1
        position = np.clip(np.asarray(yx_um) / self.step_um, 0, last)
        corner = np.minimum(position.astype(np.int64), np.maximum(last - 1, 0))
        part = (position - corner).astype(np.float32)
        y, x = corner[:, 0], corner[:, 1]
        y1, x1 = np.minimum(y + 1, last[0]), np.minimum(x + 1, last[1])
        fy, fx = part[:, :1], part[:, 1:]
        top = self.values[y, x] * (1 - fx) + self.values[y, x1] * fx
        return top * (1 - fy) + (self.values[y1, x] * (1 - fx) + self.values[y1, x1] * fx) * fy


def domain_width_um(options: TissueOptions, size_um: tuple[float, float]) -> float:
    """Return ``domain_um`` with its default resolved."""
    return options.domain_um if options.domain_um is not None else min(size_um) / 2


class Tissue:
    """One section of one donor.

    Sections of a donor read the same fields through a smooth deformation and a small rotation; the first section is not moved.
    """

    def __init__(
        self,
        options: TissueOptions,
        warp: DonorOptions,
        size_um: tuple[float, float],
        n_gradients: int,
        *,
        seed: int,
        donor: int,
        section: int,
    ) -> None:
        self.options, self.size_um, self.n_gradients = options, size_um, n_gradients
        width = domain_width_um(options, size_um)
        knot = width / 2
        step = knot / GRID_PER_KNOT
        self.soft_margin = 1.5 / knot
        shape = (math.ceil(size_um[0] / step) + 1, math.ceil(size_um[1] / step) + 1)

        def field(stream: Stream, index: int, spacing: float) -> np.ndarray:
            return smooth_field(derive(seed, stream, donor, index), shape, step, spacing)

        self.n_fields = options.n_domains if options.layout == "patches" else 1
        fields = [field(Stream.DOMAIN, d, knot) for d in range(self.n_fields)]
        fields += [field(Stream.GRADIENT, g, 1.5 * knot) for g in range(n_gradients)]
        fields.append(field(Stream.DEPTH_FIELD, 0, knot))
        self.has_mask = options.outline or options.holes > 0
        if self.has_mask:
            fields.append(field(Stream.OUTLINE, 0, min(size_um) / 5))
            hole = field(Stream.HOLE, 0, knot)
            fields.append(hole - np.float32(np.quantile(hole, options.holes)) if options.holes > 0 else np.ones_like(hole))
        self.grid = Grid(fields, step)
        self.warp: Grid | None = None
        self.angle = 0.0
        if section:
            amplitude = warp.deformation_um if warp.deformation_um is not None else width / 20
            coarse = max(min(size_um) / 3, 1e-9)
            coarse_step = coarse / GRID_PER_KNOT
            coarse_shape = (math.ceil(size_um[0] / coarse_step) + 1, math.ceil(size_um[1] / coarse_step) + 1)
            self.warp = Grid(
                [
                    amplitude * smooth_field(derive(seed, Stream.WARP, donor, section, k), coarse_shape, coarse_step, coarse)
                    for k in range(2)
                ],
                coarse_step,
            )
            self.angle = math.radians(warp.rotation_deg) * float(derive(seed, Stream.WARP, donor, section, 2).standard_normal())

    def read(self, yx_um: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return (domain membership (n, domains), gradients in 0..1 (n, gradients), depth field (n,), margin (n,)) at ``yx_um``.

        The margin is not negative on tissue; :attr:`soft_margin` is what it changes by over about 1.5 µm.
        """
        yx_um = np.asarray(yx_um, dtype=np.float64)
        if self.warp is not None:
            centre = np.asarray(self.size_um) / 2
            cos, sin = math.cos(self.angle), math.sin(self.angle)
            yx_um = (yx_um - centre) @ np.array([[cos, sin], [-sin, cos]]) + centre + self.warp.at(yx_um)
        values = self.grid.at(yx_um)
        membership = self._membership(yx_um, values[:, : self.n_fields])
        stop = self.n_fields + self.n_gradients
        gradients = 1 / (1 + np.exp(-2.0 * values[:, self.n_fields : stop]))
        margin = np.ones(len(yx_um), dtype=np.float32)
        if self.has_mask:
            margin = values[:, stop + 2]
            if self.options.outline:
                centred = np.abs(2 * yx_um / np.asarray(self.size_um) - 1)
                margin = np.minimum(margin, 0.95 - (centred**3).sum(axis=1) ** (1 / 3) - 0.1 * values[:, stop + 1])
        return membership, gradients, values[:, stop], margin

    def _membership(self, yx_um: np.ndarray, fields: np.ndarray) -> np.ndarray:
        n = self.options.n_domains
        if self.options.layout == "patches":
            logit = self.options.sharpness * fields
        else:
            level = yx_um[:, :1] / self.size_um[0] + 0.12 * fields
            logit = -self.options.sharpness * n * np.abs(level - (np.arange(n) + 0.5) / n)
        logit = logit - logit.max(axis=1, keepdims=True)
        weight = np.exp(logit)
        return (weight / weight.sum(axis=1, keepdims=True)).astype(np.float32)


def compositions(options: TissueOptions, donors: DonorOptions, *, seed: int, donor: int) -> np.ndarray:
    """Return the cell-type proportions of each domain of one donor, float64 (domains, types), rows sum to 1."""
    rng = derive(seed, Stream.COMPOSITION)
    main = np.eye(options.n_types)[np.arange(options.n_domains) % options.n_types]
    shares = options.purity * main + (1 - options.purity) * rng.dirichlet(np.full(options.n_types, 0.8), size=options.n_domains)
    if donor:
        shares = shares * np.exp(donors.composition_sd * derive(seed, Stream.COMPOSITION, donor).standard_normal(shares.shape))
    return shares / shares.sum(axis=1, keepdims=True)


def densities(options: TissueOptions, *, seed: int) -> np.ndarray:
    """Return the share of the places for a cell that each domain fills, float64 (domains,)."""
    return derive(seed, Stream.COMPOSITION, 0, 0).uniform(0.5, 1.0, size=options.n_domains)
