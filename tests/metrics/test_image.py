"""SSIM and PSNR against scikit-image, and masked windows against a loop over pixels."""

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from stimg.metrics.image import psnr, ssim


def pair(seed=0, shape=(23, 19), offset=0.0):
    rng = np.random.default_rng(seed)
    truth = rng.gamma(2.0, 1.0, shape) + offset
    return truth, truth + rng.normal(0, 0.7, shape)


def plain(truth, predicted, data_range, mask, window, score):
    """Mean over the scored pixels of equation 13 of Wang et al., from the pixels of each window that are under the mask."""
    half, values = window // 2, []
    for y, x in np.argwhere(score):
        cut = slice(max(y - half, 0), y + half + 1), slice(max(x - half, 0), x + half + 1)
        a, b = truth[cut][mask[cut]], predicted[cut][mask[cut]]
        (va, vab), (_, vb) = np.cov(a, b, ddof=0)
        c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
        luminance = (2 * a.mean() * b.mean() + c1) / (a.mean() ** 2 + b.mean() ** 2 + c1)
        values.append(luminance * (2 * vab + c2) / (va + vb + c2))
    return np.mean(values)


@pytest.mark.parametrize("window", [3, 7, 11])
def test_ssim_inside_the_raster_is_that_of_scikit_image(window):
    truth, predicted = pair()
    whole, local = structural_similarity(truth, predicted, win_size=window, data_range=9.0, use_sample_covariance=False, full=True)
    pad = window // 2
    interior = np.zeros(truth.shape, dtype=bool)
    interior[pad:-pad, pad:-pad] = True
    assert ssim(truth, predicted, data_range=9.0, window=window, score=interior) == pytest.approx(whole, abs=1e-12)
    for y, x in [(pad, pad), (11, 9), (22 - pad, 18 - pad)]:
        one = np.zeros(truth.shape, dtype=bool)
        one[y, x] = True
        assert ssim(truth, predicted, data_range=9.0, window=window, score=one) == pytest.approx(local[y, x], abs=1e-12)


@pytest.mark.parametrize("offset", [0.0, 1e5])
@pytest.mark.parametrize("window", [1, 3, 7])
def test_windows_take_the_pixels_under_the_mask_alone(window, offset):
    truth, predicted = pair(1, offset=offset)
    rng = np.random.default_rng(2)
    mask = rng.random(truth.shape) < 0.6
    score = mask & (rng.random(truth.shape) < 0.4)
    score[0, 0] = mask[0, 0] = True  # a window cut by two borders
    for part in (None, score):
        expected = plain(truth, predicted, 9.0, mask, window, mask if part is None else part)
        assert ssim(truth, predicted, data_range=9.0, mask=mask, window=window, score=part) == pytest.approx(expected, abs=1e-9)
    everywhere = np.ones(truth.shape, dtype=bool)
    expected = plain(truth, predicted, 9.0, everywhere, window, everywhere)
    assert ssim(truth, predicted, data_range=9.0, window=window) == pytest.approx(expected, abs=1e-9)


def test_background_has_no_say():
    truth, predicted = pair(3)
    mask = np.zeros(truth.shape, dtype=bool)
    mask[4:17, 5:15] = True
    clean = ssim(truth, predicted, data_range=9.0, mask=mask), psnr(truth, predicted, data_range=9.0, mask=mask)
    for filler in (0.0, 1e9, np.nan):
        a, b = np.where(mask, truth, filler), np.where(mask, predicted, filler)
        assert (ssim(a, b, data_range=9.0, mask=mask), psnr(a, b, data_range=9.0, mask=mask)) == clean
    zeroed = np.where(mask, truth, 0.0), np.where(mask, predicted, 0.0)
    assert ssim(*zeroed, data_range=9.0) > clean[0] + 0.05  # what counting an empty background would have given


def test_psnr_is_that_of_scikit_image():
    truth, predicted = pair(4)
    assert psnr(truth, predicted, data_range=9.0) == pytest.approx(peak_signal_noise_ratio(truth, predicted, data_range=9.0), abs=1e-12)
    mask = np.random.default_rng(0).random(truth.shape) < 0.5
    expected = peak_signal_noise_ratio(truth[mask], predicted[mask], data_range=9.0)
    assert psnr(truth, predicted, data_range=9.0, mask=mask) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8, bool])
def test_identical_images_score_one_and_an_infinite_ratio(dtype):
    truth = np.random.default_rng(0).integers(0, 2, (9, 9)).astype(dtype)
    assert ssim(truth, truth, data_range=1.0) == 1.0
    assert psnr(truth, truth, data_range=1.0) == np.inf
    assert ssim(np.zeros((9, 9), dtype), np.zeros((9, 9), dtype), data_range=1.0) == 1.0
    assert psnr(truth, ~truth if truth.dtype == bool else 1 - truth, data_range=1.0) == 0.0  # not wrapped around 256


def test_stacks_are_scored_gene_by_gene():
    truth, predicted = pair(5, (4, 12, 10))
    mask = np.random.default_rng(1).random((12, 10)) < 0.8
    ranges = np.array([3.0, 5.0, 7.0, 9.0])
    for score in (ssim, psnr):
        together = score(truth, predicted, data_range=ranges, mask=mask)
        assert together.shape == (4,)
        assert together.dtype == np.float64
        alone = [score(truth[g], predicted[g], data_range=ranges[g], mask=mask) for g in range(4)]
        np.testing.assert_array_equal(together, alone)
        assert all(isinstance(each, float) for each in alone)
        same = score(truth, predicted, data_range=5.0, mask=mask)
        assert same[1] == alone[1]
        assert same[0] != alone[0]
        np.testing.assert_allclose(score(truth * 10, predicted * 10, data_range=ranges * 10, mask=mask), together, atol=1e-12)
        flipped = score(truth[:, ::-1], predicted[:, ::-1], data_range=ranges, mask=mask[::-1])
        np.testing.assert_allclose(flipped, together, rtol=0, atol=1e-12)


def test_a_smoothed_map_and_noise_are_told_apart():
    rng = np.random.default_rng(6)
    truth = np.add.outer(np.sin(np.arange(30) / 4), np.cos(np.arange(30) / 5))
    near, far = truth + rng.normal(0, 0.1, truth.shape), rng.permutation(truth.ravel()).reshape(truth.shape)
    assert ssim(truth, near, data_range=4.0) > 0.8
    assert abs(ssim(truth, far, data_range=4.0)) < 0.1


@pytest.mark.parametrize("score", [ssim, psnr])
def test_bad_input_is_refused(score):
    a = np.random.default_rng(0).random((9, 8))
    with pytest.raises(TypeError, match="data_range"):
        score(a, a)
    for bad in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match=r"data_range=.* is not above zero"):
            score(a, a, data_range=bad)
    with pytest.raises(ValueError, match=r"data_range has shape \(2,\)"):
        score(a, a, data_range=[1.0, 2.0])
    with pytest.raises(ValueError, match=r"truth has shape \(9, 8\) and predicted \(8, 8\)"):
        score(a, a[:8], data_range=1.0)
    with pytest.raises(ValueError, match="wanted the same"):
        score(a[0], a[0], data_range=1.0)
    with pytest.raises(ValueError, match="not empty"):
        score(a[None][:0], a[None][:0], data_range=1.0)
    with pytest.raises(TypeError, match="predicted has dtype complex128"):
        score(a, a + 0j, data_range=1.0)
    with pytest.raises(ValueError, match="predicted has 1 NaN"):
        score(a, np.where(a == a.max(), np.nan, a), data_range=1.0)
    with pytest.raises(TypeError, match="mask has dtype int64"):
        score(a, a, data_range=1.0, mask=np.ones((9, 8), dtype=np.int64))
    with pytest.raises(ValueError, match="mask has shape"):
        score(a, a, data_range=1.0, mask=np.ones((8, 8), dtype=bool))
    with pytest.raises(ValueError, match="mask has no pixel"):
        score(a, a, data_range=1.0, mask=np.zeros((9, 8), dtype=bool))


def test_windows_and_scored_pixels_that_do_not_fit_are_refused():
    a = np.random.default_rng(0).random((9, 6))
    with pytest.raises(ValueError, match=r"window=7 on a raster of \(9, 6\)"):
        ssim(a, a, data_range=1.0)
    with pytest.raises(ValueError, match=r"window=4 .*odd"):
        ssim(a, a, data_range=1.0, window=4)
    with pytest.raises(ValueError, match="score has no pixel"):
        ssim(a, a, data_range=1.0, window=5, score=np.zeros(a.shape, dtype=bool))
    mask = np.ones(a.shape, dtype=bool)
    mask[0] = False
    with pytest.raises(ValueError, match="score has 6 pixels outside the mask"):
        ssim(a, a, data_range=1.0, window=5, mask=mask, score=np.ones(a.shape, dtype=bool))
