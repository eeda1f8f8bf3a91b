"""Random fields as smooth as the expression: against dense references, and against how often chance finds what is not there."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from stimg.image.alignment import IDENTITY, ImageMaps, Transform, agreement
from stimg.pp import _check_null as null
from stimg.pp import _check_search as searching
from stimg.pp._check_placement import _section_row
from stimg.pp._check_rows import Row

STEP = 6.0
SHAPE = (80, 90)


def positions():
    grid = np.stack(np.meshgrid(np.arange(10), np.arange(12), indexing="ij"), axis=-1).reshape(-1, 2)
    return grid * STEP + 8.5


def maps(rng):
    features = np.stack([gaussian_filter(rng.normal(size=SHAPE), 5) for _ in range(4)])
    return ImageMaps(features.astype(np.float32), np.ones(SHAPE, dtype=bool), 0.0)


def standardised(values):
    return (values - values.mean(axis=0)) / values.std(axis=0)


def smooth(rng, yx, n_values=3):
    """Values of a field that knows nothing of the image."""
    at = np.floor(yx).astype(int)
    return standardised(np.stack([gaussian_filter(rng.normal(size=SHAPE), 12)[at[:, 0], at[:, 1]] for _ in range(n_values)], axis=1))


def told(rng, image, yx, n_values=3, noise=1.0):
    """Values that the image explains a part of."""
    at = np.floor(yx).astype(int)
    under = standardised(image.features[:, at[:, 0], at[:, 1]].T)
    return standardised(standardised(under @ rng.normal(size=(under.shape[1], n_values))) + noise * smooth(rng, yx, n_values))


def moran(values, yx):
    """Sum over pairs of neighbours, with a loop."""
    out = 0.0
    for i, a in enumerate(yx):
        for j, b in enumerate(yx):
            if i != j:
                out += np.exp(-((a - b) ** 2).sum() / (2 * STEP**2)) * values[i] * values[j]
    return out


def test_the_basis_is_that_of_the_centred_weights():
    yx = positions()[:40]
    values, vectors = null.smooth_basis(yx, STEP)
    weight = np.array([[np.exp(-((a - b) ** 2).sum() / (2 * STEP**2)) if (a != b).any() else 0.0 for b in yx] for a in yx])
    middle = np.eye(40) - 1 / 40
    centred = middle @ weight @ middle
    np.testing.assert_allclose(values, np.linalg.eigvalsh(centred)[::-1], atol=1e-5)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(40), atol=1e-5)
    np.testing.assert_allclose(vectors @ np.diag(values) @ vectors.T, centred, atol=1e-5)


def test_what_is_explained_is_what_agreement_says():
    rng = np.random.default_rng(0)
    image, yx = maps(rng), positions()
    values = told(rng, image, yx)
    tried = [IDENTITY, IDENTITY.moved("", np.array([4.0, -7.0])), Transform.about("", yx.mean(axis=0), np.array([[0.0, 1.0], [1.0, 0.0]]))]
    found = np.concatenate([null.explained(some, values) for some in null.projections(image, yx, tried)])
    np.testing.assert_allclose(found.mean(axis=1), agreement(image, yx, values, tried).explained, atol=1e-4)


def test_random_fields_keep_smoothness_and_relations():
    rng = np.random.default_rng(1)
    yx = positions()
    values = smooth(rng, yx)
    values[:, 1] = standardised(values[:, 0] + 0.5 * values[:, 1])
    fields = null.Fields(maps(rng), yx, values, step_px=STEP).drawn(values)
    assert fields.shape == (null.DRAWS, *values.shape)
    np.testing.assert_allclose(fields.mean(axis=1), 0, atol=1e-5)
    np.testing.assert_allclose(fields.std(axis=1), 1, atol=1e-4)
    mine = moran(values[:, 0], yx)
    assert moran(rng.permutation(values[:, 0]), yx) < 0.3 * mine
    for field in fields[:6]:
        assert moran(field[:, 0], yx) == pytest.approx(mine, rel=0.15)
        assert np.corrcoef(field.T)[0, 1] == pytest.approx(np.corrcoef(values.T)[0, 1], abs=0.05)
    own = [abs(np.corrcoef(field[:, 0], values[:, 0])[0, 1]) for field in fields]
    assert np.mean(own) < 0.5  # and are other fields


def test_a_field_that_knows_nothing_of_the_image_is_called_so_and_one_that_does_is_found():
    unrelated, related, shuffled = [], [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        image, yx = maps(rng), positions()
        values = smooth(rng, yx)
        unrelated.append(null.Fields(image, yx, values, step_px=STEP).association().p)
        related.append(null.Fields(image, yx, told(rng, image, yx), step_px=STEP).association().p)
        (basis,) = (q[0] for q in null.projections(image, yx, [IDENTITY]))
        free = [null.explained(basis, rng.permutation(values)).mean() for _ in range(19)]
        shuffled.append((1 + np.sum(free >= null.explained(basis, values).mean())) / 20)
    assert np.mean(np.array(unrelated) <= 0.05) <= 0.15
    assert np.median(unrelated) > 0.25
    assert np.mean(np.array(related) <= 0.01) >= 0.9
    assert np.mean(np.array(shuffled) <= 0.05) > 0.3  # a permutation of the observations would call most images right


def test_the_best_of_many_by_chance_covers_the_right_placement_and_not_a_wrong_one():
    shifts = [IDENTITY.moved(f"{a} {b}", np.array([a, b]) * STEP) for a in (-2, -1, 0, 1, 2) for b in (-2, -1, 0, 1, 2) if a or b]
    right, wrong = [], []
    for seed in range(15):
        rng = np.random.default_rng(100 + seed)
        image, yx = maps(rng), positions()
        values = told(rng, image, yx)
        for off, kept in ((np.zeros(2), right), (np.array([STEP, -STEP]), wrong)):
            found = agreement(image, yx + off, values, [IDENTITY, *shifts]).explained
            chance = null.Fields(image, yx + off, values, step_px=STEP).best(shifts)
            kept.append((1 + np.sum(chance >= found[1:].max() - found[0])) / (1 + null.DRAWS))
    assert np.mean(np.array(right) <= 0.05) <= 0.2
    assert np.mean(np.array(wrong) <= 0.05) >= 0.9


def test_expression_without_structure_says_nothing_about_the_section():
    rng = np.random.default_rng(3)
    image, yx = maps(rng), positions()
    assert null.Fields(image, yx, smooth(rng, yx), step_px=STEP).association().structured
    flat = null.Fields(image, yx, standardised(rng.normal(size=(len(yx), 3))), step_px=STEP).association()
    assert not flat.structured
    row = _section_row(searching.Placement(1.0, 0.1, flat, {}), None, Row("tissue", "skip", "", ""))
    assert row.status == "skip"
    assert "no more structure than when it is shuffled" in row.found


@pytest.mark.parametrize(
    ("p", "leads", "status"), [(0.005, 0, "pass"), (0.005, 2, "pass"), (0.005, 3, "warn"), (0.03, 0, "warn"), (0.4, 0, "fail")]
)
def test_the_row_of_the_section(p, leads, status):
    def other(kind, margin):
        return searching.Alternative(kind, IDENTITY, 1.0, 0.2 + margin, margin, 0.1, 0.5, 0.0)

    best = {kind: other(kind, 0.01 if i < leads else -0.01) for i, kind in enumerate(searching.KINDS)}
    placement = searching.Placement(1.0, 0.2, null.Chance(p, 0.1, structured=True), best)
    row = _section_row(placement, None, Row("tissue", "pass", "", ""))
    assert row.status == status
    assert bool(row.todo) == (status != "pass")


@pytest.mark.parametrize(
    ("z", "p", "margin", "gain", "strong"),
    [
        (2.0, 0.005, 0.05, 0.0, True),
        (1.5, 0.005, 0.05, 0.0, False),  # one part of the section decides
        (2.0, 0.03, 0.05, 0.0, False),  # the best of thousands by chance
        (2.0, 0.005, 0.01, 0.0, False),  # too little to matter
        (0.2, 0.4, 0.01, 0.3, True),  # brings a third of the observations onto tissue
        (-0.2, 1.0, -0.01, 0.3, False),
    ],
)
def test_when_another_placement_is_called_right(z, p, margin, gain, strong):
    assert searching.Alternative("shift", IDENTITY, 0.95, 0.3, margin, z, p, gain).strong is strong


def test_the_search_says_the_same_each_time():
    rng = np.random.default_rng(5)
    image, yx = maps(rng), positions()
    values = told(rng, image, yx)
    one, two = (searching.search(image, yx + STEP, values, step_px=STEP) for _ in range(2))
    assert one.chance == two.chance
    assert {k: a and (a.p, a.margin) for k, a in one.best.items()} == {k: a and (a.p, a.margin) for k, a in two.best.items()}
    assert one.best["shift"].p <= 0.01
