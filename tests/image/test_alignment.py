"""Maps, values and agreement against naive computations, and transformations against numpy's own."""

from itertools import pairwise

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.ndimage import binary_dilation, gaussian_filter
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression

from stimg.image import alignment as al


def tissue_image(shape=(160, 200), seed=0, box=(40, 120, 60, 170)):
    """White with a box of noisy purple, a little dust, and black rings that are no tissue; (image, truth)."""
    rng = np.random.default_rng(seed)
    image = np.full((*shape, 3), 245.0) + rng.normal(0, 1.0, (*shape, 3))
    truth = np.zeros(shape, bool)
    truth[box[0] : box[1], box[2] : box[3]] = True
    image[truth] = np.array([150.0, 90.0, 170.0]) + rng.normal(0, 25, (truth.sum(), 3))
    y, x = np.indices(shape)
    for centre in ((15, 15), (15, 100), (145, 185)):
        ring = np.abs(np.hypot(y - centre[0], x - centre[1]) - 6) < 1.2
        image[ring] = 60.0
    return np.clip(image, 0, 255).astype(np.uint8), truth


def test_tissue_is_what_has_colour_and_contrast():
    image, truth = tissue_image()
    maps = al.image_maps(image, step_px=8.0)
    assert maps.has_background
    assert maps.tissue[truth].all()
    assert not maps.tissue[~binary_dilation(truth, iterations=4)].any()


def test_an_image_without_background_is_tissue_everywhere():
    rng = np.random.default_rng(0)
    image = np.clip(np.array([150.0, 90.0, 170.0]) + rng.normal(0, 25, (80, 90, 3)), 0, 255).astype(np.uint8)
    image[:40] = np.clip(image[:40] * 1.15, 0, 255).astype(np.uint8)
    maps = al.image_maps(image, step_px=8.0)
    assert not maps.has_background
    assert maps.tissue.all()
    flat = al.image_maps(np.full((40, 40, 3), 200, dtype=np.uint8), step_px=8.0)
    assert flat.gap == 0
    assert flat.tissue.all()


def test_features_are_smooth_density_and_contrast():
    image, _ = tissue_image()
    features = al.image_maps(image, step_px=10.0).features
    assert features.shape == (8, 160, 200)
    density = -np.log10((image.astype(float) + 1) / 256)
    for scale, first in zip(al.SCALES, (0, 4), strict=True):
        for c in range(3):
            np.testing.assert_allclose(features[first + c], gaussian_filter(density[..., c], 10 * scale), atol=2e-5)
        grey = density.mean(axis=2)
        variance = gaussian_filter(grey**2, 10 * scale) - gaussian_filter(grey, 10 * scale) ** 2
        np.testing.assert_allclose(features[first + 3], np.log(np.sqrt(np.maximum(variance, 0)) + 0.003), atol=2e-2)


@pytest.mark.parametrize(
    ("image", "step", "error", "words"),
    [
        (np.zeros((5, 5), np.uint8), 3.0, ValueError, r"shape \(5, 5\); wanted \(y, x, 3\)"),
        (np.zeros((5, 5, 4), np.uint8), 3.0, ValueError, r"Drop an alpha channel"),
        (np.zeros((5, 5, 3)), 3.0, TypeError, r"dtype float64; wanted uint8"),
        (np.zeros((5, 5, 3), np.uint8), 0.0, ValueError, r"step_px=0.0 is not above zero"),
    ],
)
def test_images_that_cannot_be_used_are_refused(image, step, error, words):
    with pytest.raises(error, match=words):
        al.image_maps(image, step_px=step)


def test_values_are_depth_and_components():
    counts = np.random.default_rng(0).poisson(np.random.default_rng(1).gamma(1, 3, (1, 40)), (120, 40)).astype(float)
    counts[:60, :10] *= 4
    values = al.expression_values(sp.csr_matrix(counts), n_components=3, n_genes=25)
    depth = counts.sum(axis=1)
    log = np.log1p(1e4 * counts / depth[:, None])
    chosen = np.argsort(-log.var(axis=0), kind="stable")[:25]
    wanted = np.column_stack([np.log1p(depth), PCA(3, svd_solver="full").fit_transform(log[:, chosen])])
    wanted = (wanted - wanted.mean(axis=0)) / wanted.std(axis=0)
    assert values.shape == (120, 4)
    np.testing.assert_allclose(np.abs((values * wanted).mean(axis=0)), 1.0, atol=1e-8)  # up to the sign


def test_values_that_do_not_vary_are_left_out():
    counts = np.full((50, 6), 4.0)
    assert al.expression_values(sp.csr_matrix(counts)).shape[1] == 0
    counts[::2] *= 3  # depth alone
    assert al.expression_values(sp.csr_matrix(counts)).shape[1] == 1


def naive(maps, yx, values, transform, keep):
    features = []
    on = 0
    h, w = maps.tissue.shape
    for y, x in np.asarray(transform(yx)):
        i, j = int(np.floor(y)), int(np.floor(x))
        on += 0 <= i < h and 0 <= j < w and maps.tissue[i, j]
        features.append(maps.features[:, min(max(i, 0), h - 1), min(max(j, 0), w - 1)])
    flat = maps.features.reshape(len(maps.features), -1).astype(np.float64)
    x, y = ((np.array(features) - flat.mean(axis=1)) / flat.std(axis=1))[keep], values[keep]
    full = np.column_stack([np.ones(len(x)), x])
    inverse = np.linalg.inv(full.T @ full + 1e-6 * len(x) * np.eye(full.shape[1]))
    fitted = [v @ full @ inverse @ full.T @ v - len(v) * v.mean() ** 2 for v in y.T]
    plain = np.mean([LinearRegression().fit(x, v).score(x, v) for v in y.T])
    return on / len(yx), np.mean(fitted / (len(y) * y.var(axis=0))), plain


def test_agreement_is_that_of_naive_regressions():
    image, _ = tissue_image()
    maps = al.image_maps(image, step_px=9.0)
    rng = np.random.default_rng(3)
    yx = rng.uniform([30, 50], [130, 180], (83, 2))
    index = np.floor(yx).astype(int)
    values = maps.features[:3, index[:, 0], index[:, 1]].T
    values = values / values.std(axis=0) + 0.3 * rng.normal(size=(83, 3))
    values = (values - values.mean(axis=0)) / values.std(axis=0)
    tried = [
        al.IDENTITY,
        al.IDENTITY.moved("far", np.array([60.0, -90.0])),
        al.Transform.about("turn", yx.mean(axis=0), np.array([[0.0, -1], [1, 0]])),
    ]
    found = al.agreement(maps, yx, values, tried)
    block = al.blocks(yx)
    for t, transform in enumerate(tried):
        coverage, explained, plain = naive(maps, yx, values, transform, np.ones(83, bool))
        assert found.coverage[t] == pytest.approx(coverage)
        assert found.explained[t] == pytest.approx(explained, abs=1e-9)
        assert found.explained[t] == pytest.approx(plain, abs=1e-3 if t == 0 else 2e-2)  # the ridge counts beside the tissue alone
        for b in range(al.SIDE_BLOCKS**2):
            assert found.without[t, b] == pytest.approx(naive(maps, yx, values, transform, block != b)[1], abs=1e-9)
    assert found.explained[0] > 0.8
    margin, error = found.margin(0, 1)
    each = found.without[0] - found.without[1]
    assert margin == pytest.approx(found.explained[0] - found.explained[1])
    assert error == pytest.approx(np.sqrt(15 / 16 * ((each - each.mean()) ** 2).sum()))


def test_chunks_change_nothing(monkeypatch):
    image, _ = tissue_image()
    maps = al.image_maps(image, step_px=9.0)
    rng = np.random.default_rng(0)
    yx, values = rng.uniform(0, 160, (61, 2)), rng.normal(size=(61, 2))
    tried = [al.IDENTITY.moved("", np.array([i, -i])) for i in range(7)]
    whole = al.agreement(maps, yx, values, tried)
    monkeypatch.setattr(al, "_CHUNK", 1)
    np.testing.assert_allclose(al.agreement(maps, yx, values, tried).without, whole.without)


def test_too_few_observations_are_refused():
    image, _ = tissue_image()
    maps = al.image_maps(image, step_px=9.0)
    with pytest.raises(ValueError, match="20 observations; wanted 34 or more"):
        al.agreement(maps, np.ones((20, 2)), np.ones((20, 1)), [al.IDENTITY])


def test_blocks_are_contiguous_and_equal():
    yx = np.random.default_rng(0).normal(size=(102, 2))
    block = al.blocks(yx)
    assert np.bincount(block, minlength=16).max() - np.bincount(block, minlength=16).min() <= 2
    strips = [yx[block // 4 == i, 0] for i in range(4)]
    assert all(a.max() <= b.min() for a, b in pairwise(strips))
    for i in range(4):
        parts = [yx[block == 4 * i + j, 1] for j in range(4)]
        assert all(a.max() <= b.min() for a, b in pairwise(parts))


@pytest.mark.parametrize(
    ("name", "done"),
    [
        ("swap", lambda a: a.T),
        ("anti-swap", lambda a: a[::-1, ::-1].T),
        ("flip y", lambda a: a[::-1]),
        ("flip x", lambda a: a[:, ::-1]),
        ("turn 180", lambda a: np.rot90(a, 2)),
        ("turn 90", lambda a: np.rot90(a)),
        ("turn 270", lambda a: np.rot90(a, 3)),
    ],
)
def test_orientations_are_those_of_numpy(name, done):
    marked = np.zeros((7, 11))
    marked[2, 8] = 1
    moved = done(marked)
    transform = al.orientations(moved.shape)[name]
    row, col = np.floor(transform(np.array([[2.5, 8.5]]))[0]).astype(int)
    assert moved[row, col] == 1
    assert abs(np.linalg.det(transform.matrix)) == 1
    assert len(al.orientations((3, 4))) == 7
