"""Fields, domains, cells and what a capture area sees, against loops."""

import numpy as np
import pytest
from scipy.interpolate import BSpline

from stimg.datasets import DonorOptions, TissueOptions
from stimg.datasets import _simulate_cells as cells
from stimg.datasets import _simulate_tissue as tissue


def make(
    options: TissueOptions | None = None, size_um: tuple[float, float] = (400.0, 500.0), *, section: int = 0, donor: int = 0
) -> tissue.Tissue:
    return tissue.Tissue(options or TissueOptions(), DonorOptions(), size_um, 2, seed=3, donor=donor, section=section)


def test_basis_is_the_cubic_b_spline():
    found = tissue._basis(30, 2.0, 10.0)
    knots = np.arange(-4, found.shape[1] + 4, dtype=float)
    position = np.arange(30) * 0.2 + 1.0
    for k in range(found.shape[1]):
        element = BSpline.basis_element(knots[k + 2 : k + 7], extrapolate=False)
        np.testing.assert_allclose(found[:, k], np.nan_to_num(element(position)), atol=1e-12)
    np.testing.assert_allclose(found.sum(axis=1), 1)


def test_smooth_field_is_smooth_and_stays():
    field = tissue.smooth_field(np.random.default_rng(0), (60, 80), 1.0, 10.0)
    assert field.mean() == pytest.approx(0, abs=1e-5)
    assert field.std() == pytest.approx(1, abs=1e-5)
    assert np.abs(np.diff(field, axis=0)).max() < 0.5
    larger = tissue.smooth_field(np.random.default_rng(0), (64, 88), 1.0, 10.0)
    assert np.corrcoef(field.ravel(), larger[:60, :80].ravel())[0, 1] > 0.999


def test_grid_is_bilinear():
    values = np.random.default_rng(0).random((5, 7)).astype(np.float32)
    grid = tissue.Grid([values, 2 * values], 2.0)
    points = np.random.default_rng(1).uniform(0, [8, 12], (40, 2))
    for (y, x), found in zip(points, grid.at(points), strict=True):
        r, c = int(y // 2), int(x // 2)
        fy, fx = y / 2 - r, x / 2 - c
        wanted = (
            values[r, c] * (1 - fy) * (1 - fx)
            + values[r + 1, c] * fy * (1 - fx)
            + values[r, c + 1] * (1 - fy) * fx
            + values[r + 1, c + 1] * fy * fx
        )
        np.testing.assert_allclose(found, [wanted, 2 * wanted], rtol=1e-5)
    np.testing.assert_allclose(grid.at(np.array([[-5.0, 100.0]]))[0, 0], values[0, -1])


def test_layers_are_in_order():
    section = make(TissueOptions(layout="layers", n_domains=4))
    column = np.stack([np.linspace(0, 400, 200), np.full(200, 250.0)], axis=1)
    membership, *_ = section.read(column)
    np.testing.assert_allclose(membership.sum(axis=1), 1, rtol=1e-5)
    order = membership.argmax(axis=1)
    changes = order[np.flatnonzero(np.diff(order, prepend=-1))]
    assert len(changes) >= 3
    assert (np.abs(np.diff(changes)) == 1).all()


def test_domain_um_sets_the_scale():
    points = np.stack(np.meshgrid(np.arange(0, 1200, 6.0), np.arange(0, 1200, 6.0), indexing="ij"), axis=-1).reshape(-1, 2)

    def borders(width: float) -> float:
        section = make(TissueOptions(domain_um=width), (1200.0, 1200.0))
        label = section.read(points)[0].argmax(axis=1).reshape(200, 200)
        return float((label[1:] != label[:-1]).mean())

    assert borders(100.0) == pytest.approx(4 * borders(400.0), rel=0.4)


def test_sections_are_deformed_copies():
    points = np.random.default_rng(0).uniform(0, [400, 500], (2000, 2))
    label = [make(section=s).read(points)[0].argmax(axis=1) for s in (0, 1, 2)]
    other = make(donor=1).read(points)[0].argmax(axis=1)
    assert 0.7 < (label[0] == label[1]).mean() < 1
    assert (label[1] != label[2]).any()
    assert (label[0] == other).mean() < 0.5


@pytest.fixture(scope="module")
def made() -> tuple[tissue.Tissue, cells.Cells, np.ndarray]:
    options = TissueOptions(n_types=4, n_domains=3)
    section = make(options)
    composition = tissue.compositions(options, DonorOptions(), seed=3, donor=0)
    return section, cells.make_cells(section, composition, tissue.densities(options, seed=3), seed=3, donor=0, section=0), composition


def test_cells_keep_their_distance(made):
    _, found, _ = made
    yx, kind = found.yx_um.reshape(-1, 2)[found.index], found.type.ravel()[found.index]
    assert len(yx) > 500
    radius = np.array([k.radius_um for k in cells.kinds(4)])[kind] * cells.CONTACT
    distance = np.linalg.norm(yx[:, None].astype(float) - yx[None], axis=-1) + 1e9 * np.eye(len(yx))
    assert (distance >= radius[:, None] + radius[None] - 1e-4).all()
    assert (yx >= 0).all()
    assert (yx < [400, 500]).all()


def test_thinning_against_a_loop():
    rng = np.random.default_rng(4)
    yx = ((np.stack(np.meshgrid(np.arange(30), np.arange(25), indexing="ij"), axis=-1) + rng.random((30, 25, 2))) * 7).astype(np.float32)
    kind = rng.integers(-1, 3, (30, 25)).astype(np.int8)
    priority = rng.random((30, 25)).astype(np.float32)
    radius = np.array([2.5, 3.5, 6.5, 0.0], dtype=np.float32)
    flat_yx, flat_kind, flat_priority = yx.reshape(-1, 2), kind.ravel(), priority.ravel()
    wanted = flat_kind.copy()
    for i in np.flatnonzero(flat_kind >= 0):
        for j in np.flatnonzero(flat_kind >= 0):
            limit = cells.CONTACT * (radius[flat_kind[i]] + radius[flat_kind[j]])
            if i != j and np.hypot(*(flat_yx[i] - flat_yx[j])) < limit and flat_priority[j] > flat_priority[i]:
                wanted[i] = -1
    cells._thin(yx, kind, priority, radius, 7.0)
    np.testing.assert_array_equal(kind.ravel(), wanted)
    assert (wanted >= 0).sum() > 50


def test_composition_follows_the_domain(made):
    section, found, composition = made
    np.testing.assert_allclose(composition.sum(axis=1), 1)
    yx, kind = found.yx_um.reshape(-1, 2)[found.index], found.type.ravel()[found.index]
    domain = section.read(yx)[0].argmax(axis=1)
    shares = np.stack([np.bincount(kind[domain == d], minlength=4) / (domain == d).sum() for d in range(3)])
    for d in range(3):
        others = np.delete(shares[:, d], d)
        assert shares[d, d] > 1.5 * others.max()


@pytest.mark.parametrize(("half_um", "square"), [(27.5, False), (50.0, False), (1.0, True), (4.0, True), (8.0, True)])
def test_capture_against_a_loop(made, half_um, square):
    _, found, _ = made
    centres = np.random.default_rng(0).uniform(0, [400, 500], (60, 2))
    seen = cells.capture(found, centres, half_um, 4, square=square)
    yx, kind = found.yx_um.reshape(-1, 2)[found.index].astype(float), found.type.ravel()[found.index]
    wanted = np.zeros((60, 4))

    def overlap(away: float) -> float:
        return max(0.0, min(half_um, away + 5.0) - max(-half_um, away - 5.0)) / (2 * min(half_um, 5.0))

    for i, centre in enumerate(centres):
        for place, t in zip(yx, kind, strict=True):
            dy, dx = np.abs(place - centre)
            wanted[i, t] += overlap(dy) * overlap(dx) if square else overlap(float(np.hypot(dy, dx)))
    np.testing.assert_allclose(seen, wanted, atol=1e-4)
    assert seen.sum() > 1


def test_kinds_are_distinct():
    looks = cells.kinds(20)
    assert len({k.name for k in looks}) == 20
    assert len({(round(k.radius_um, 3), k.ratio) for k in looks}) == 20
    assert all(1.5 < k.radius_um < 9 for k in cells.kinds(120))
