import matplotlib.pyplot as plt
import numpy as np
import pytest

from stimg.pl import _style


@pytest.mark.parametrize(("width", "want"), [(6500.0, 1000.0), (1000.0, 200.0), (100.0, 20.0), (17.0, 5.0), (10_000.0, 2000.0), (0.9, 0.2)])
def test_the_bar_is_the_longest_round_length_below_a_third(width, want):
    assert _style.bar_length_um(width) == pytest.approx(want)


def test_lengths_are_written_with_a_fitting_unit():
    assert [_style.length_text(v) for v in (0.2, 5.0, 500.0, 1000.0, 2000.0)] == ["200 nm", "5 µm", "500 µm", "1 mm", "2 mm"]


@pytest.mark.parametrize("n", [1, 7, 8, 9, 17, 40])
def test_categories_get_different_colours(n):
    colors = _style.categorical_colors(n)
    assert len(colors) == len(set(colors)) == n


def test_limits_are_percentiles_of_finite_values_of_all_panels():
    rng = np.random.default_rng(0)
    parts = [rng.random(50), np.array([np.nan, np.inf, 3.0])]
    norm = _style.limits(parts, None, None, (10.0, 90.0))
    drawn = np.append(parts[0], 3.0)
    assert (norm.vmin, norm.vmax) == pytest.approx(tuple(np.percentile(drawn, [10, 90])))
    assert _style.limits(parts, -1.0, 7.0, (0.0, 100.0)).vmax == 7.0


def test_a_gene_in_one_spot_of_many_and_a_constant_keep_usable_limits():
    rare = np.zeros(5000)
    rare[7] = 4.0
    assert _style.limits([rare], None, None, (0.0, 99.5)).vmax == 4.0
    norm = _style.limits([np.full(9, 2.0)], None, None, (0.0, 99.5))
    assert (norm.vmin, norm.vmax) == (2.0, 3.0)


def test_limits_that_cannot_be_used_are_refused():
    with pytest.raises(ValueError, match="vmin below vmax"):
        _style.limits([np.arange(3.0)], 5.0, 1.0, (0.0, 100.0))
    with pytest.raises(ValueError, match="percentile"):
        _style.limits([np.arange(3.0)], None, None, (90.0, 10.0))


def test_a_composite_adds_the_light_of_its_channels():
    norms = [plt.Normalize(0, 2), plt.Normalize(1, 3), plt.Normalize(0, 1)]
    values = np.array([[0.0, 1.0, 0.0], [2.0, 0.0, 0.0], [1.0, 3.0, 0.0], [9.0, 9.0, 9.0]])
    vermilion, green, blue = map(np.array, _style.RGB_COLORS)
    want = [np.zeros(3), vermilion, 0.5 * vermilion + green, vermilion + green + blue]
    np.testing.assert_allclose(_style.composite(values, norms, _style.RGB_COLORS), np.clip(want, 0, 1))
    np.testing.assert_allclose(_style.composite(values, norms), [[0, 0, 0], [1, 0, 0], [0.5, 1, 0], [1, 1, 1]])
