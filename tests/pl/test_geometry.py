import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stimg.data.slots import RasterLibrary
from stimg.image.spec import RasterSpec
from stimg.pl._geometry import bounding_box, cells_of, lattice_image, polygons_um, same_scale, window_box


def spec_of(lattice, shape=(6, 5), pitch=55.0, parity=0):
    return RasterSpec(lattice, shape, pitch, hex_parity=parity if lattice == "hex" else -1)


def area(corners):
    x, y = corners[:, 0], corners[:, 1]
    return 0.5 * abs(sum(x[i] * y[i - 1] - x[i - 1] * y[i] for i in range(len(x))))


@pytest.mark.parametrize(("lattice", "parity"), [("square", 0), ("hex", 0), ("hex", 1)])
def test_neighbours_share_an_edge_and_nobody_else_does(lattice, parity):
    spec = spec_of(lattice, parity=parity)
    rc = np.array(list(itertools.product(range(6), range(5))))
    polygons = polygons_um(spec, rc)
    centres = spec.centres_um(rc)[:, ::-1]
    np.testing.assert_allclose(polygons.mean(axis=1), centres, atol=1e-9)
    for i, j in itertools.combinations(range(len(rc)), 2):
        shared = sum(np.allclose(a, b, atol=1e-6) for a in polygons[i] for b in polygons[j])
        near = np.isclose(np.linalg.norm(centres[i] - centres[j]), spec.pitch_um)
        assert (shared == 2) == near
    want = spec.pitch_um**2 * (np.sqrt(3) / 2 if lattice == "hex" else 1.0)
    assert all(area(p) == pytest.approx(want) for p in polygons)


@given(
    lattice=st.sampled_from(["square", "hex"]), parity=st.integers(0, 1), top=st.integers(-2, 5), left=st.integers(-2, 5),
    height=st.integers(1, 4), width=st.integers(1, 4),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_a_windows_box_is_the_box_of_its_polygons(lattice, parity, top, left, height, width):
    spec = spec_of(lattice, parity=parity)
    rc = np.array(list(itertools.product(range(top, top + height), range(left, left + width))))
    corners = polygons_um(spec, rc).reshape(-1, 2)
    box = window_box(spec, top, left, height, width)
    np.testing.assert_allclose([box[1], box[0]], corners.min(axis=0), atol=1e-9)
    np.testing.assert_allclose([box[1] + box[3], box[0] + box[2]], corners.max(axis=0), atol=1e-9)


@pytest.mark.parametrize(("lattice", "parity"), [("square", 0), ("hex", 0), ("hex", 1)])
def test_the_image_shows_each_value_at_its_centre(lattice, parity):
    spec = spec_of(lattice, shape=(12, 9), parity=parity)
    rng = np.random.default_rng(1)
    rc = np.argwhere(rng.random((12, 9)) < 0.6)[3:]
    values = np.arange(1.0, len(rc) + 1)
    image, (top, left, height, width) = lattice_image(spec, rc, values)
    for (y, x), value in zip(spec.centres_um(rc), values, strict=True):
        row = int(np.floor((y - top) / height * image.shape[0]))
        for side in (-0.4, 0.4):
            col = int(np.floor((x + side * spec.pitch_um - left) / width * image.shape[1]))
            assert image[row, col] == value
    assert np.isfinite(image).sum() == len(rc) * (2 if lattice == "hex" else 1)
    assert height / image.shape[0] == pytest.approx(spec.pitch_um * (np.sqrt(3) / 2 if lattice == "hex" else 1.0))


def test_cells_are_in_raster_order_and_add_what_shares_a_point():
    rng = np.random.default_rng(2)
    spec = spec_of("square", shape=(4, 4))
    rc = rng.integers(0, 4, (30, 2)).astype(np.int32)
    rows = np.sort(rng.choice(50, 30, replace=False)).astype(np.int64)
    values = rng.random(50)
    cells = cells_of(RasterLibrary("A", spec, rows, rc))
    naive = {}
    for row, point in zip(rows, map(tuple, rc.tolist()), strict=True):
        naive.setdefault(point, []).append(row)
    assert [tuple(p) for p in cells.rc.tolist()] == sorted(naive)
    np.testing.assert_array_equal(cells.first, [naive[p][0] for p in sorted(naive)])
    np.testing.assert_allclose(cells.added(values), [values[naive[p]].sum() for p in sorted(naive)])
    np.testing.assert_allclose(bounding_box(cells), window_box(spec, 0, 0, 4, 4))


def test_boxes_of_like_size_get_one_scale_and_others_stay():
    small, large, tiny = (0.0, 0.0, 100.0, 80.0), (10.0, 20.0, 120.0, 60.0), (0.0, 0.0, 10.0, 10.0)
    assert same_scale([small, large]) == [(-10.0, 0.0, 120.0, 80.0), (10.0, 10.0, 120.0, 80.0)]
    assert same_scale([small, tiny]) == [small, tiny]
