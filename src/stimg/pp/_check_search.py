"""Every way in which positions could lie on an image, and which of them the data prefer to the one they have."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from stimg.image.alignment import IDENTITY, ImageMaps, Transform, agreement, orientations
from stimg.pp._check_null import Chance, Fields

KINDS = ("axis swap", "flip", "rotation", "shift", "coordinate scale")
LEAST_COVERAGE = 0.85
"""Share of the observations that a placement has to bring onto tissue to be believed."""
CHANCE = (0.01, 0.05)
"""Probability that the best of all placements leads by as much where the given one is right: up to which another one is called right, and mentioned."""
SURE, LIKE = 1.645, 1.0
"""Standard errors of the lead: the one-sided 95 % point of a normal distribution; and within which two placements are called alike."""
LEAST_MARGIN = 0.02
"""Least explained variance by which it has to win."""
LEAST_GAIN = 0.2
"""Share of the observations that it brings onto tissue, from which fewer standard errors are enough."""
REACH = 8
"""Shifts are tried up to this many steps between neighbours."""
ANGLES = (3.0, 5.0, 7.0, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0)
FACTORS = tuple(
    [round(1 + 0.01 * i, 2) for i in range(-10, 11) if abs(i) >= 2] + [round(float(1.03**i), 3) for i in range(-40, 41) if abs(i) >= 4]
)
"""Factors of the coordinates: fine up to 10 %, then in steps of 3 % up to 3.3 and down to its inverse."""
_KIND = {"swap": "axis swap", "anti-swap": "axis swap", "flip y": "flip", "flip x": "flip"}  # all else is a rotation


class Candidate(NamedTuple):
    """A placement to try: its kind, the map to it, and whether it is a mistake that people make."""

    kind: str
    transform: Transform
    plain: bool


@dataclass(frozen=True)
class Alternative:
    """The best other placement of one kind.

    Parameters
    ----------
    kind, transform
        What it is.
    coverage, explained
        Its share on tissue, and what it explains.
    margin, z
        How much more that is than by the placement given, and the same in standard errors of the difference.
    p
        Probability that the best of all placements leads by as much where the given one is right; 1 where this one does not lead.
    gain
        Share of the observations that it brings onto tissue.
    """

    kind: str
    transform: Transform
    coverage: float
    explained: float
    margin: float
    z: float
    p: float
    gain: float

    @property
    def strong(self) -> bool:
        """Whether the data prefer it clearly: by more than the search for the best finds by chance, in all parts of the section, and enough to matter."""
        sure = self.p <= CHANCE[0] and self.z >= SURE and self.margin >= LEAST_MARGIN
        return sure or (self.gain >= LEAST_GAIN and self.margin > 0 and self.coverage >= LEAST_COVERAGE)


@dataclass(frozen=True)
class Placement:
    """How well the given placement fits, and the best of each other kind.

    Parameters
    ----------
    coverage, explained
        Of the placement given.
    chance
        What random fields as smooth as the expression are explained where it lies.
    best
        By kind; None where no placement of that kind brings the observations onto tissue.
    """

    coverage: float
    explained: float
    chance: Chance
    best: Mapping[str, Alternative | None]

    @property
    def better(self) -> int:
        """How many kinds of placement explain more than the one given, however little."""
        return sum(each is not None and each.margin > 0 for each in self.best.values())

    @property
    def cause(self) -> Alternative | None:
        """The kind that the data prefer clearly, None where there is none; of several the one that explains most."""
        strong = [each for each in self.best.values() if each is not None and each.strong]
        return max(strong, key=lambda each: (each.gain >= LEAST_GAIN, each.explained)) if strong else None


def candidates(
    shape: tuple[int, int], yx: np.ndarray, *, step_px: float, origin: np.ndarray, factors: Mapping[str, float]
) -> list[Candidate]:
    """Return every placement that is tried."""
    out: list[Candidate] = []
    centre = yx.mean(axis=0)
    near = np.arange(-1, 1.25, 0.5)
    wide = np.arange(-REACH, REACH + 1)
    for name, exact in orientations(shape).items():
        kind = _KIND.get(name, "rotation")
        own = Transform.about(name, centre, exact.matrix)  # about the observations, where the array was mirrored and not the image
        for base, grid in ((exact, near), (own, wide)):
            for a in grid:
                for b in grid:
                    moved = base.moved(_moved(name, float(a), float(b)), np.array([a, b]) * step_px)
                    out.append(Candidate(kind, moved, plain=base is exact and a == b == 0))
    for a in np.arange(-REACH, REACH + 0.5, 0.5):
        for b in np.arange(-REACH, REACH + 0.5, 0.5):
            if max(abs(a), abs(b)) >= 0.5:
                moved = IDENTITY.moved(_moved("", float(a), float(b)), np.array([a, b]) * step_px)
                out.append(Candidate("shift", moved, plain=False))
    for size in ANGLES:
        for angle in (-size, size):
            turn = np.deg2rad(angle)
            matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
            out.append(Candidate("rotation", Transform.about(f"turn {angle:+g}°", centre, matrix), plain=False))
    named = {f"x {factor:g}": factor for factor in FACTORS}
    for name, factor in {**named, **factors}.items():
        scaled = Transform.about(name, origin, factor * np.eye(2))
        out.append(Candidate("coordinate scale", scaled, plain=name in factors))
    return out


def _moved(name: str, a: float, b: float) -> str:
    shift = f"{a:+g} steps along y, {b:+g} along x"
    return (f"{name}, {shift}" if a or b else name) if name else shift


def search(
    maps: ImageMaps,
    yx: np.ndarray,
    values: np.ndarray,
    *,
    step_px: float,
    origin: np.ndarray | None = None,
    factors: Mapping[str, float] | None = None,
) -> Placement:
    """Return how well positions fit an image as they are, and the best placement of each other kind.

    Parameters
    ----------
    maps
        Of the image.
    yx
        Positions in pixels of the image, (n, 2).
    values
        From :func:`stimg.image.alignment.expression_values`.
    step_px
        Distance between neighbours in pixels of the image; shifts are tried in halves of it.
    origin
        Where the coordinates' (0, 0) lies on the image.
    factors
        More factors of the coordinates to try, by what they mean.
    """
    tried = candidates(maps.tissue.shape, yx, step_px=step_px, origin=np.zeros(2) if origin is None else origin, factors=factors or {})
    found = agreement(maps, yx, values, [IDENTITY, *(each.transform for each in tried)])
    kinds = np.array(["", *(each.kind for each in tried)])
    plain = np.array([False, *(each.plain for each in tried)])
    on = found.coverage >= max(min(LEAST_COVERAGE, found.coverage[0]), 0.5)
    fields = Fields(maps, yx, values, step_px=step_px)
    chance = fields.association()
    others = np.flatnonzero(on[1:])
    ahead_by_chance = np.array([])
    if len(others) and found.explained[1:][others].max() > found.explained[0]:  # else nothing leads, whatever chance does
        ahead_by_chance = fields.best([tried[i].transform for i in others])
    best: dict[str, Alternative | None] = {}
    for kind in KINDS:
        here = np.flatnonzero((kinds == kind) & on)
        if not len(here):
            best[kind] = None
            continue
        i = int(here[np.argmax(found.explained[here])])
        if plain[here].any():  # of two that explain as much, the one that people make
            usual_one = here[plain[here]][np.argmax(found.explained[here[plain[here]]])]
            ahead, error = found.margin(i, int(usual_one))
            i = int(usual_one) if ahead <= max(error, LEAST_MARGIN) else i
        margin, error = found.margin(i, 0)
        coverage = float(found.coverage[i])
        p = (1 + int((ahead_by_chance >= margin).sum())) / (1 + len(ahead_by_chance)) if margin > 0 else 1.0
        best[kind] = Alternative(
            kind,
            tried[i - 1].transform,
            coverage,
            float(found.explained[i]),
            margin,
            margin / max(error, 1e-9),
            p,
            coverage - float(found.coverage[0]),
        )
    return Placement(float(found.coverage[0]), float(found.explained[0]), chance, best)
