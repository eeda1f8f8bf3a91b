"""Masks against distances between places, and what every mask has to keep to."""

import math

import numpy as np
import pytest

from stimg.image.masks import MASKS, hide
from stimg.image.spec import RasterSpec

LATTICES = [("square", -1), ("hex", 0), ("hex", 1)]


def spec_of(lattice, parity, shape=(16, 16)):
    return RasterSpec(lattice, shape, pitch_um=100.0, hex_parity=parity)


def at(rc, lattice, parity):
    """Places in pitches from the definition of the lattice."""
    if lattice == "square":
        return np.array(rc, dtype=float)
    return np.array([(r * math.sqrt(3) / 2, c + (0.5 if r % 2 == parity else 0.0)) for r, c in rc])


def gaps(places):
    return np.sqrt(((places[:, None] - places[None]) ** 2).sum(-1))


def tissue(seed=0, shape=(16, 16), share=0.85):
    rng = np.random.default_rng(seed)
    rc = np.argwhere(rng.random(shape) < share)
    return rc[rng.permutation(len(rc))]


@pytest.mark.parametrize(("lattice", "parity"), LATTICES)
def test_the_four_phases_of_the_quarter_grid_are_disjoint_lattices_of_twice_the_pitch(lattice, parity):
    rc = np.argwhere(np.ones((16, 16)))
    kept = [~hide("quarter", spec_of(lattice, parity), rc, phase=phase) for phase in range(4)]
    assert (np.sum(kept, axis=0) == 1).all()
    for each in kept:
        near = np.sort(gaps(at(rc[each], lattice, parity)), axis=1)
        np.testing.assert_allclose(near[:, 1], 2.0)
        full = 4 if lattice == "square" else 6
        assert ((near[:, 1 : full + 1] < 2.01).all(axis=1)).sum() > 10
    first = [tuple(rc[each][np.lexsort(rc[each].T[::-1])][0]) for each in kept]
    assert [row for row, _ in first] == [0, 0, 1, 1]


@pytest.mark.parametrize(("lattice", "parity"), LATTICES)
@pytest.mark.parametrize(
    ("mask", "options"),
    [("random", {"fraction": 0.3, "rng": 4}), ("checkerboard", {"phase": 1}), ("quarter", {"phase": 2}), ("holes", {"n": 2, "radius": 2.5}),
     ("holes", {"n": 3, "radius": 1.5, "rng": 3}), ("half", {"side": "top"}), ("rows", {"every": 3, "phase": 1})],
)  # fmt: skip
def test_no_mask_depends_on_the_order_and_places_are_hidden_together(lattice, parity, mask, options):
    rc, spec = tissue(), spec_of(lattice, parity)
    hidden = hide(mask, spec, rc, **options)
    other = np.random.default_rng(1).permutation(len(rc))
    np.testing.assert_array_equal(hide(mask, spec, rc[other], **options), hidden[other])
    doubled = hide(mask, spec, np.repeat(rc, 2, axis=0), **options)
    np.testing.assert_array_equal(doubled, np.repeat(hidden, 2))
    assert 0 < hidden.sum() < len(rc)


def test_random_hides_the_share_that_is_asked_for():
    rc, spec = tissue(), spec_of("square", -1)
    for fraction in (0.1, 0.25, 0.5, 0.9):
        assert hide("random", spec, rc, fraction=fraction, rng=0).sum() == math.floor(len(rc) * fraction + 1e-9)
    assert (hide("random", spec, rc, rng=1) != hide("random", spec, rc, rng=2)).any()


def test_checkerboard_and_rows_by_their_definition():
    rc = np.argwhere(np.ones((6, 6)))
    spec = spec_of("square", -1, (6, 6))
    for phase in (0, 1):
        assert hide("checkerboard", spec, rc, phase=phase).tolist() == [(r + c + phase) % 2 == 1 for r, c in rc]
    for every, phase in ((2, 0), (2, 1), (3, 2)):
        assert hide("rows", spec, rc, every=every, phase=phase).tolist() == [r not in range(phase, 6, every) for r, _ in rc]


@pytest.mark.parametrize(("lattice", "parity"), LATTICES)
def test_holes_are_discs_that_do_not_overlap(lattice, parity):
    rc, spec = tissue(share=1.0), spec_of(lattice, parity)
    places = at(rc, lattice, parity)
    for rng in (None, 0, 5):
        hidden = hide("holes", spec, rc, n=3, radius=2.0, rng=rng)
        apart = gaps(places[hidden]) < 2.6  # points of one disc are joined by steps inside it, those of two are not always
        discs = {frozenset(np.flatnonzero(gaps(places)[i] <= 2.0 + 1e-9)) for i in range(len(rc))}
        inside = [d for d in discs if d <= set(np.flatnonzero(hidden))]
        assert apart.any()
        assert any(
            len(a | b | c) == hidden.sum() and not (a & b or a & c or b & c)
            for i, a in enumerate(inside) for j, b in enumerate(inside[:i]) for c in inside[:j]
        )  # fmt: skip
    one = np.flatnonzero(hide("holes", spec, rc, n=1, radius=3.0))
    fullest = max((gaps(places)[i] <= 3.0 + 1e-9).sum() for i in range(len(rc)))
    assert len(one) == fullest


@pytest.mark.parametrize("side", ["left", "right", "top", "bottom"])
def test_half(side):
    rc = tissue(2)
    hidden = hide("half", spec_of("hex", 1), rc, side=side)
    along = at(rc, "hex", 1)[:, 1 if side in ("left", "right") else 0]
    expected = along > np.median(along) if side in ("right", "bottom") else along < np.median(along)
    np.testing.assert_array_equal(hidden, expected)
    assert 0.3 < hidden.mean() <= 0.5


@pytest.mark.parametrize(
    ("mask", "options", "message"),
    [
        ("checkers", {}, r"no mask named 'checkers'. Did you mean 'checkerboard'"),
        ("random", {"fraction": 1.0}, r"fraction=1.0 is not between 0 and 1"),
        ("quarter", {"phase": 4}, r"phase=4 is not known; wanted a whole number from 0 to 3"),
        ("checkerboard", {"phase": 0.5}, r"phase=0.5 is not known"),
        ("rows", {"every": 1}, r"every=1 is not usable; wanted a whole number of at least 2"),
        ("holes", {"radius": -1.0}, r"radius=-1.0 is not above zero"),
        ("holes", {"n": 40, "radius": 4.0}, r"n=40 holes of radius 4 pitches do not fit beside each other; \d+ do"),
        ("half", {"side": "north"}, r"side='north' is not known"),
    ],
)
def test_bad_options(mask, options, message):
    with pytest.raises(ValueError, match=message):
        hide(mask, spec_of("square", -1), tissue(), **options)


def test_names():
    assert list(MASKS) == ["checkerboard", "half", "holes", "quarter", "random", "rows"]
