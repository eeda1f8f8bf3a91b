import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.stats import chi2, entropy

from stimg.metrics import batch, batch_effects


def cloud(seed=0, n=240, slides=2, d=5):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)), rng.integers(0, slides, n), rng.integers(0, 3, n)


def widths(x, code):
    """Silhouette width of each observation by its definition."""
    distance, out = cdist(x, x), []
    for i in range(len(x)):
        mine = (code == code[i]) & (np.arange(len(x)) != i)
        if not mine.any():
            out.append(0.0)
            continue
        a = distance[i, mine].mean()
        b = min(distance[i, code == other].mean() for other in set(code) - {code[i]})
        out.append((b - a) / max(a, b))
    return np.array(out)


def test_an_offset_of_the_slide_shows_the_more_the_larger_it_is():
    x, slide, labels = cloud()
    found = [batch_effects(x + offset * slide[:, None], slide, labels=labels) for offset in (0.0, 0.4, 0.8, 1.6, 6.0)]
    for name, sign in (("probe_accuracy", 1), ("probe_balanced_accuracy", 1), ("silhouette", 1), ("asw", -1)):
        values = [sign * getattr(each, name) for each in found]
        assert values == sorted(values), name
        assert values[0] < values[1] < values[2] < values[3], name
    assert found[0].probe_accuracy == pytest.approx(found[0].probe_chance, abs=0.1)
    assert found[0].probe_balanced_accuracy == pytest.approx(0.5, abs=0.1)
    assert found[0].silhouette == pytest.approx(0, abs=0.02)
    assert found[0].asw > 0.93
    assert found[-1].probe_accuracy == 1
    assert found[-1].asw < 0.3
    assert all(each.converged for each in found)


def test_probe_without_an_effect_is_at_chance_with_unequal_slides():
    rng = np.random.default_rng(3)
    slide = np.repeat(["a", "b", "c"], [300, 60, 40])
    found = batch_effects(rng.normal(size=(400, 4)), slide)
    assert found.probe_chance == 0.75
    assert found.probe_accuracy == pytest.approx(0.75, abs=0.02)
    assert found.probe_balanced_accuracy == pytest.approx(1 / 3, abs=0.03)


def test_probe_is_a_cross_validated_logistic_regression():
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, slide, _ = cloud(1, n=300, slides=3)
    x = x + 0.7 * slide[:, None]
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    reference = (cross_val_predict(model, x, slide, cv=folds) == slide).mean()  # other folds: the same within their scatter
    assert batch_effects(x, slide).probe_accuracy == pytest.approx(reference, abs=0.04)


def test_silhouettes_are_those_of_their_definition():
    x, slide, labels = cloud(2, n=80, slides=3)
    x = x + 0.8 * slide[:, None]
    found = batch_effects(x, slide, labels=labels)
    assert found.silhouette == pytest.approx(widths(x, slide).mean(), abs=1e-12)
    within = [1 - np.abs(widths(x[labels == each], slide[labels == each])).mean() for each in range(3)]
    assert found.asw == pytest.approx(np.mean(within), abs=1e-12)
    assert batch_effects(x, slide).asw == pytest.approx(1 - np.abs(widths(x, slide)).mean(), abs=1e-12)


def test_labels_that_cannot_be_compared_are_left_out_and_counted():
    x, slide, labels = cloud(4, n=90)
    names = np.array(["a", "b", "c"], dtype=object)[labels]
    names[slide == 0] = np.where(names[slide == 0] == "b", "a", names[slide == 0])  # b on one slide alone
    names[:6] = [None, np.nan, "", "two", "two", "a"]
    x[3:5], slide = x[3:5] + 1, np.concatenate([[0, 0, 0, 0, 1, 0], slide[6:]])  # "two": one observation on each slide
    names[5] = "a"
    found = batch_effects(x, slide, labels=names)
    assert found.n_single == 2
    within = [1 - np.abs(widths(x[names == each], slide[names == each])).mean() for each in ("a", "c")]
    assert found.asw == pytest.approx(np.mean(within), abs=1e-12)
    with pytest.raises(ValueError, match="None of the 2 labels is found on two slides"):
        batch_effects(x, slide, labels=slide)


def test_neither_order_nor_names_matter():
    x, slide, labels = cloud(5)
    x = x + 0.5 * slide[:, None]
    one = batch_effects(x, slide, labels=labels)
    order = np.random.default_rng(0).permutation(len(x))
    again = batch_effects(x[order], np.array(["s0", "s1"])[slide[order]], labels=labels[order].astype(str))
    assert again[:5] == pytest.approx(one[:5], abs=1e-9)
    again = batch_effects(x.astype(np.float32), slide, labels=labels)
    assert again[:5] == pytest.approx(one[:5], abs=0.02)  # other folds
    assert batch_effects(x, slide, rng=1).probe_accuracy != one.probe_accuracy
    assert batch_effects(x, slide, rng=1).silhouette == one.silhouette


class Neighbours(SimpleNamespace):
    pass


@pytest.fixture
def fake(monkeypatch):
    """A stand-in for scib-metrics that keeps what it is given."""
    seen = {}
    scib = ModuleType("scib_metrics")
    scib.nearest_neighbors = SimpleNamespace(NeighborsResults=Neighbours)
    scib.ilisi_knn = lambda near, code: seen.update(ilisi=(near, code)) or 0.25
    scib.kbet = lambda near, code: seen.update(kbet=(near, code)) or (0.75, None, None)
    monkeypatch.setitem(sys.modules, "scib_metrics", scib)
    return seen


def test_neighbours_given_to_scib_metrics_are_the_nearest(fake):
    x, slide, _ = cloud(6, n=400)
    found = batch_effects(x, slide, k=70)
    assert (found.ilisi, found.kbet, found.missing) == (0.25, 0.75, ())
    for name, k in (("ilisi", 70), ("kbet", 50)):
        near, code = fake[name]
        assert near.indices.shape == near.distances.shape == (400, k)
        np.testing.assert_array_equal(near.indices[:, 0], np.arange(400))
        order = np.array([np.flatnonzero((x == row).all(axis=1))[0] for row in _sorted(x, slide)])
        np.testing.assert_array_equal(code, slide[order])
        distance = np.sort(cdist(x[order], x[order]), axis=1)
        np.testing.assert_allclose(near.distances, distance[:, :k], atol=1e-7)
    batch_effects(x[:60], slide[:60])
    assert fake["ilisi"][0].indices.shape == fake["kbet"][0].indices.shape == (60, 15)


def _sorted(x, slide):
    """Rows in the order of their bytes, as they are worked on."""
    return np.array(sorted(x, key=lambda row: row.tobytes()))


def test_without_scib_metrics_its_scores_are_missing_by_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "scib_metrics", None)  # as if it were not installed
    x, slide, _ = cloud()
    found = batch_effects(x, slide)
    assert found.missing == ("ilisi", "kbet")
    assert np.isnan(found.ilisi)
    assert np.isnan(found.kbet)
    assert 0 < found.probe_accuracy < 1

    def broken(name):
        raise ModuleNotFoundError("No module named 'jax'", name="jax")

    monkeypatch.setattr("stimg._core.optional.import_module", broken)
    with pytest.raises(ImportError, match=r"No module named 'jax'.*stimg\[metrics\]"):
        batch_effects(x, slide)


def lisi(x, code, k):
    """Median inverse Simpson index, scaled, by the definition: weights of perplexity k // 3 among the k nearest, itself left out."""
    distance, n_slides, out = cdist(x, x), code.max() + 1, []
    for i in range(len(x)):
        near = [j for j in np.argsort(distance[i], kind="stable")[:k] if j != i]
        d, low, high = distance[i, near], 1e-9, 1e9
        for _ in range(50):
            beta = np.sqrt(low * high)
            p = np.exp(-beta * (d - d.min()))
            low, high = (beta, high) if entropy(p) > np.log(k // 3) else (low, beta)
        share = np.bincount(code[near], weights=p / p.sum(), minlength=n_slides)
        out.append(1 / (share**2).sum())
    return (np.median(out) - 1) / (n_slides - 1)


def kbet(x, code, k):
    share, accepted = np.bincount(code) / len(code), []
    for row in cdist(x, x):
        seen = np.bincount(code[np.argsort(row)[:k]], minlength=len(share))
        accepted.append(chi2.sf(((seen - k * share) ** 2 / (k * share)).sum(), len(share) - 1) >= 0.05)
    return np.mean(accepted)


@pytest.mark.parametrize("slides", [2, 3])
def test_scib_metrics_by_its_definitions(slides):
    pytest.importorskip("scib_metrics")
    x, slide, labels = cloud(7, n=400, slides=slides)
    values = []
    for offset in (0.0, 0.7, 9.0):
        y = x + offset * slide[:, None]
        found = batch_effects(y, slide, labels=labels)
        assert found.ilisi == pytest.approx(lisi(y, slide, 90), abs=1e-4)
        assert found.kbet == pytest.approx(kbet(y, slide, batch.N_NEIGHBOURS_KBET), abs=0.01)
        assert found.missing == ()
        values.append((found.ilisi, found.kbet))
    assert values[0][0] > 0.8
    assert values[0][1] > 0.85
    assert values[0] > values[1] > values[2]
    assert values[2] == pytest.approx((0, 0), abs=1e-6)
    from scib_metrics import silhouette_batch

    assert found.asw == pytest.approx(silhouette_batch(y, labels, slide), abs=1e-5)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"embedding": np.ones(20)}, ValueError, r"shape \(20,\) for 20 slides"),
        ({"embedding": np.ones((19, 2))}, ValueError, r"shape \(19, 2\) for 20 slides"),
        ({"embedding": np.full((20, 2), np.nan)}, ValueError, "embedding has 20 rows of 20 with NaN"),
        ({"batch": [0] * 20}, ValueError, "batch has 1 slides"),
        ({"batch": ["a"] * 16 + ["few"] * 4}, ValueError, r"\['few'\] have fewer than 5"),
        ({"batch": ["a"] * 10 + ["b"] * 9 + [None]}, ValueError, "batch has 1 missing"),
        ({"labels": [0] * 19}, ValueError, "labels has 19 entries"),
        ({"labels": [None] * 20}, ValueError, "20 of them missing"),
        ({"k": 3}, ValueError, "k=3"),
        ({"rng": "seed"}, TypeError, "rng='seed'"),
    ],
)
def test_errors_say_what_was_found(change, error, match):
    x = np.random.default_rng(0).normal(size=(20, 2))
    with pytest.raises(error, match=match):
        batch_effects(**{"embedding": x, "batch": [0] * 10 + [1] * 10, **change})
