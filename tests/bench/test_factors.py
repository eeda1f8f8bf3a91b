import itertools

import numpy as np
import pandas as pd
import pytest

from stimg.bench.factors import factor_components, factor_contrast, paired_difference

FACTORS = ("image", "gene")


def grid(effect_a, effect_b, n_folds=4, noise=0.0, seeds=1, rng=0):
    generator = np.random.default_rng(rng)
    rows = []
    for (i, a), (j, b), r, s in itertools.product(enumerate(effect_a), enumerate(effect_b), range(n_folds), range(seeds)):
        rows.append({"image": f"i{i}", "gene": f"g{j}", "fold": f"f{r}", "seed": s, "value": a + b + 0.1 * r + noise * generator.normal()})
    return pd.DataFrame(rows)


def test_components_of_an_additive_grid():
    found = factor_components(grid([0, 1, 3], [0, 0.5]), FACTORS)
    np.testing.assert_allclose(found.loc["image", "variance"], np.var([0, 1, 3], ddof=1))
    np.testing.assert_allclose(found.loc["gene", "variance"], np.var([0, 0.5], ddof=1))
    np.testing.assert_allclose(found.loc["image x gene", ["variance", "range"]].astype(float), 0, atol=1e-12)
    assert found.loc["image", ["range", "lowest", "highest"]].tolist() == [3.0, "i0", "i2"]


def test_components_against_sums_of_squares_of_a_linear_model():
    """Sums of squares as the growth of the residual when indicator columns are left out, by least squares."""
    table = grid([0, 0.2], [0, 0.1, 0.4], n_folds=3, noise=0.3)

    def rss(*terms):
        columns = [np.ones(len(table))]
        for term in terms:
            label = table[list(term)].astype(str).agg("|".join, axis=1)
            columns += [(label == v).to_numpy(float) for v in label.unique()]
        x, y = np.column_stack(columns), table["value"].to_numpy()
        return ((y - x @ np.linalg.lstsq(x, y, rcond=None)[0]) ** 2).sum()

    a, b, r = ("image",), ("gene",), ("fold",)
    ab, ar, br = (*a, *b), (*a, *r), (*b, *r)
    ms_a, ms_ar = (rss() - rss(a)) / 1, (rss(a, r) - rss(ar)) / (1 * 2)
    ms_b, ms_br = (rss() - rss(b)) / 2, (rss(b, r) - rss(br)) / (2 * 2)
    ms_ab, ms_abr = (rss(a, b) - rss(ab)) / 2, rss(ab, ar, br) / (1 * 2 * 2)
    found = factor_components(table, FACTORS)["variance"]
    np.testing.assert_allclose(found, [(ms_a - ms_ar) / 9, (ms_b - ms_br) / 6, (ms_ab - ms_abr) / 3], rtol=1e-8)


def test_noise_alone_has_no_variance_on_average():
    found = [factor_components(grid([0, 0, 0], [0, 0, 0, 0], noise=1.0, rng=k), FACTORS)["variance"] for k in range(300)]
    assert np.abs(np.mean(found, axis=0)).max() < 0.03  # uncorrected, that of the first factor would be 1/16
    assert np.var(grid([0] * 3, [0] * 4, noise=1.0)["value"]) > 0.5


def test_seeds_are_averaged():
    table = grid([0, 1], [0, 1], noise=0.5, seeds=3)
    mean = table.groupby(["image", "gene", "fold"], as_index=False)["value"].mean()
    pd.testing.assert_frame_equal(factor_components(table, FACTORS), factor_components(mean, FACTORS))


@pytest.mark.parametrize("of", ["variance", "range"])
def test_the_contrast_against_random_resamples(of):
    table = grid([0, 0.3, 0.5], [0, 0.2], n_folds=5, noise=0.3)
    found = factor_contrast(table, FACTORS, of=of)
    y = table.pivot_table(index="fold", columns=["image", "gene"], values="value").to_numpy().reshape(5, 3, 2)

    def statistic(part):
        sides = part.mean(axis=(0, 2)), part.mean(axis=(0, 1))
        spread = np.ptp if of == "range" else lambda v: np.var(v, ddof=1)
        return spread(sides[0]) - spread(sides[1])

    generator = np.random.default_rng(0)
    drawn = [statistic(y[generator.integers(0, 5, 5)]) for _ in range(20000)]
    assert found.value == pytest.approx(statistic(y))
    assert found.n_clusters == 5
    assert found.low == pytest.approx(np.quantile(drawn, 0.025), abs=0.02)
    assert found.high == pytest.approx(np.quantile(drawn, 0.975), abs=0.02)


def test_pairs_by_hand():
    rows = [("f1", "x", 0, "a", 0.5), ("f1", "x", 1, "a", 0.7), ("f1", "x", 0, "b", 0.1), ("f1", "x", 1, "b", 0.1)]
    rows += [("f1", "y", 0, "a", 0.2), ("f1", "y", 0, "b", 0.4), ("f2", "x", 0, "a", 1.0), ("f2", "x", 0, "b", 0.9)]
    table = pd.DataFrame(rows, columns=["fold", "image", "seed", "loss", "value"])
    found = paired_difference(table, {"loss": "a"}, {"loss": "b"}, by=["fold", "image"])
    assert found.value == pytest.approx(((0.5 - 0.2) / 2 + 0.1) / 2)  # f1: mean of .6 - .1 and .2 - .4; f2: .1
    assert (found.low, found.high) == pytest.approx((0.1, 0.15))
    swapped = paired_difference(table.sample(frac=1, random_state=0), {"loss": "b"}, {"loss": "a"}, by=["image", "fold"])
    assert swapped.value == pytest.approx(-found.value)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda t: factor_components(t, ("image", "stain")), KeyError, r"lacks the columns \['stain'\]"),
        (lambda t: factor_components(t[t["gene"] == "g0"], FACTORS), ValueError, "at least two of each"),
        (lambda t: factor_components(t.iloc[1:], FACTORS), ValueError, "1 of 16 cells"),
        (lambda t: factor_components(t.assign(value=np.nan), FACTORS), ValueError, "no finite score"),
        (lambda t: factor_contrast(t, FACTORS, of="median"), ValueError, "of='median'"),
        (lambda t: factor_contrast(grid([0, 1], [0, 1], n_folds=9), FACTORS), ValueError, "9 replicates"),
        (lambda t: paired_difference(t, {"image": "i0"}, {"image": "i1"}, by=["gene"]), ValueError, "lacks the cluster 'fold'"),
        (lambda t: paired_difference(t, {"image": "i0"}, {"image": "i7"}, by=["gene", "fold"]), ValueError, "8 rows and .* 0"),
        (lambda t: paired_difference(t.iloc[1:], {"image": "i0"}, {"image": "i1"}, by=["gene", "fold"]), ValueError, "differ in"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call(grid([0, 1], [0, 1]))
