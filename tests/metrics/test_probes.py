"""Scores of classifications against scikit-learn and plain loops; probes against pipelines of scikit-learn and against chance."""

import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as reference
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from stimg.metrics import probes as module
from stimg.metrics.probes import KINDS, classification, probe


def answers(seed=0, n=400, classes=("adipose", "immune", "tumour")):
    rng = np.random.default_rng(seed)
    truth = rng.choice(len(classes), n, p=[0.6, 0.3, 0.1])
    probabilities = rng.dirichlet(np.ones(len(classes)), n)
    probabilities[np.arange(n), truth] += 0.4
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    names = np.array(classes)
    return names[truth], names[probabilities.argmax(axis=1)], probabilities, names


def plain_macro_f1(truth, predicted):
    scores = []
    for each in sorted(set(truth)):
        hit = sum(t == each and p == each for t, p in zip(truth, predicted, strict=True))
        asked, said = sum(t == each for t in truth), sum(p == each for p in predicted)
        scores.append(2 * hit / (asked + said))
    return sum(scores) / len(scores)


def plain_auroc(positive, score):
    """Share of pairs in which the positive one scores higher; ties count half."""
    a, b = score[positive], score[~positive]
    return np.mean((a[:, None] > b) + 0.5 * (a[:, None] == b))


def blobs(seed=0, n=300, k=3, d=6, spread=1.0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, k, n)
    x = rng.normal(0, spread, (n, d)) + 3 * np.eye(k, d)[y]
    train = rng.random(n) < 0.6
    return x * np.array([1, 10, 100, 0.1, 1, 1])[:d], np.array(["a", "b", "c", "d"])[y], train, ~train


def test_scores_are_those_of_scikit_learn_and_of_loops():
    truth, predicted, probabilities, names = answers()
    score = classification(truth, predicted, probabilities=probabilities, classes=names, commonest="immune")
    assert score.accuracy == pytest.approx(reference.accuracy_score(truth, predicted))
    assert score.balanced_accuracy == pytest.approx(reference.balanced_accuracy_score(truth, predicted))
    assert score.macro_f1 == pytest.approx(reference.f1_score(truth, predicted, average="macro"))
    assert score.macro_f1 == pytest.approx(plain_macro_f1(truth, predicted))
    assert score.auroc == pytest.approx(reference.roc_auc_score(truth, probabilities, multi_class="ovr", average="macro"))
    assert score.auroc == pytest.approx(np.mean([plain_auroc(truth == c, probabilities[:, i]) for i, c in enumerate(names)]))
    assert score.ari == pytest.approx(reference.adjusted_rand_score(truth, predicted))
    assert score.nmi == pytest.approx(reference.normalized_mutual_info_score(truth, predicted))
    assert score.chance_accuracy == pytest.approx(np.mean(truth == "immune"))
    assert classification(truth, predicted).chance_accuracy == pytest.approx(np.mean(truth == "adipose"))
    assert score[7:] == (400, 0, 0, 0, None, ("adipose", "immune", "tumour"))
    assert classification(truth, predicted).auroc is None


def test_the_order_of_classes_and_observations_and_the_coding_do_not_matter():
    truth, predicted, probabilities, names = answers(1)
    score = classification(truth, predicted, probabilities=probabilities, classes=names)
    mixed = np.random.default_rng(0).permutation(len(truth))
    other = classification(truth[mixed], predicted[mixed], probabilities=probabilities[mixed][:, [2, 0, 1]], classes=names[[2, 0, 1]])
    assert other.classes == score.classes
    assert other[:7] == pytest.approx(score[:7])
    codes = {name: 10 * i for i, name in enumerate(names)}
    ints = classification([codes[t] for t in truth], [codes[p] for p in predicted], probabilities=probabilities, classes=[0, 10, 20])
    assert ints[:7] == pytest.approx(score[:7])
    table = pd.Series(pd.Categorical(truth, categories=[*names, "never seen"]))
    assert classification(table, pd.Series(predicted)).macro_f1 == pytest.approx(score.macro_f1)


def test_perfect_scores_best():
    truth, _, _, names = answers(2)
    score = classification(truth, truth, probabilities=(truth[:, None] == names).astype(float), classes=names)
    assert score[:6] == (1.0,) * 6


def test_classes_that_the_test_lacks_are_left_out_and_counted():
    truth, predicted = ["a", "a", "b", "b"], ["a", "c", "b", "b"]
    probabilities = np.array([[0.8, 0.1, 0.1], [0.3, 0.3, 0.4], [0.1, 0.8, 0.1], [0.1, 0.8, 0.1]])
    score = classification(truth, predicted, probabilities=probabilities, classes=["a", "b", "c"])
    assert (score.n_absent, score.n_unseen, score.n_undefined) == (1, 0, 0)
    assert score.macro_f1 == pytest.approx((2 / 3 + 1) / 2)
    assert score.balanced_accuracy == pytest.approx(0.75)
    assert score.auroc == 1.0


def test_classes_that_the_classifier_does_not_know_are_wrong_and_counted():
    truth, predicted = ["a", "a", "new", "new"], ["a", "a", "a", "b"]
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.2, 0.8]])
    score = classification(truth, predicted, probabilities=probabilities, classes=["a", "b"])
    assert (score.n_absent, score.n_unseen, score.accuracy) == (1, 1, 0.5)
    assert score.balanced_accuracy == pytest.approx(0.5)
    assert score.macro_f1 == pytest.approx((2 * 2 / 5 + 0) / 2)
    assert score.auroc == pytest.approx((1.0 + 0.5) / 2)


def test_a_test_of_one_class_has_no_auroc():
    score = classification(["a", "a"], ["a", "b"], probabilities=[[0.9, 0.1], [0.4, 0.6]], classes=["a", "b"])
    assert (score.auroc, score.n_undefined, score.accuracy, score.balanced_accuracy) == (0.0, 1, 0.5, 0.5)
    one = classification(["a"], ["a"])
    assert (one.accuracy, one.macro_f1, one.n_test) == (1.0, 1.0, 1)


def test_bad_classifications_are_refused():
    p = np.array([[0.9, 0.1], [0.4, 0.6]])
    with pytest.raises(ValueError, match="2 true and 1 predicted"):
        classification(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="at least one"):
        classification([], [])
    for nothing in (None, np.nan, "", pd.NA):
        with pytest.raises(ValueError, match="truth has 1 missing labels of 2"):
            classification(["a", nothing], ["a", "b"])
    with pytest.raises(ValueError, match="predicted has 1 missing"):
        classification(["a", "b"], ["a", None])
    with pytest.raises(ValueError, match=r"predicted holds \['z'\]"):
        classification(["a", "b"], ["a", "z"], classes=["a", "b"])
    with pytest.raises(ValueError, match="each class once"):
        classification(["a", "b"], ["a", "b"], classes=["a", "b", "a"])
    with pytest.raises(ValueError, match="commonest='z'"):
        classification(["a", "b"], ["a", "b"], commonest="z")
    with pytest.raises(ValueError, match="classes is None"):
        classification(["a", "b"], ["a", "b"], probabilities=p)
    with pytest.raises(ValueError, match=r"probabilities has shape \(2, 2\) and classes 3 entries"):
        classification(["a", "b"], ["a", "b"], probabilities=p, classes=["a", "b", "c"])
    with pytest.raises(ValueError, match="probabilities has 1 rows of 2 with NaN"):
        classification(["a", "b"], ["a", "b"], probabilities=p * [[1.0], [np.nan]], classes=["a", "b"])
    with pytest.raises(TypeError, match="mix strings"):
        classification(["1", "2"], [1, 2])


@pytest.mark.parametrize("kind", KINDS)
def test_probes_are_pipelines_of_scikit_learn(kind):
    x, y, train, test = blobs()
    order = np.lexsort([*x[train].T[::-1]])  # the seed of the network goes with an order of the observations
    model = {
        "linear": LogisticRegression(max_iter=1000),
        "knn": KNeighborsClassifier(n_neighbors=10),
        "mlp": MLPClassifier(hidden_layer_sizes=(128,), alpha=1e-2, max_iter=300, random_state=3),
    }[kind]
    pipeline = make_pipeline(StandardScaler(), model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        pipeline.fit(x[train][order], y[train][order])
    score = probe(x, y, train, test, kind=kind, rng=3)
    slack = 0.03 if kind == "mlp" else 1e-6
    assert score.accuracy == pytest.approx(pipeline.score(x[test], y[test]), abs=slack)
    auroc = reference.roc_auc_score(y[test], pipeline.predict_proba(x[test]), multi_class="ovr", average="macro")
    assert score.auroc == pytest.approx(auroc, abs=slack)
    values, count = np.unique(y[train], return_counts=True)
    assert score.chance_accuracy == pytest.approx(np.mean(y[test] == values[count.argmax()]))
    assert score.n_test == test.sum()
    assert score.accuracy > 0.85


@pytest.mark.parametrize("kind", KINDS)
def test_probes_do_not_depend_on_the_order_of_the_observations(kind):
    x, y, train, test = blobs(1, n=600, spread=2.5)
    x = (x[:, :2] / [1, 10]).round()  # hard, with ties between neighbours
    mixed = np.random.default_rng(0).permutation(len(x))
    here, there = (probe(x, y, train, test, kind=kind), probe(x[mixed], y[mixed], train[mixed], test[mixed], kind=kind))
    assert here[:7] == pytest.approx(there[:7], abs=1e-9)
    assert here[7:] == there[7:]


@pytest.mark.parametrize("kind", KINDS)
def test_permuted_labels_score_chance(kind):
    x, y, train, test = blobs(2, n=900)
    score = probe(x, np.random.default_rng(0).permutation(y), train, test, kind=kind)
    assert score.auroc == pytest.approx(0.5, abs=0.07)
    assert score.balanced_accuracy == pytest.approx(1 / 3, abs=0.07)
    assert abs(score.ari) < 0.03


def test_nothing_is_learned_from_the_test():
    x, y, train, test = blobs(3)
    one = np.zeros(len(x), dtype=bool)
    one[np.flatnonzero(test)[0]] = True
    before = probe(x, y, train, one, kind="linear")
    moved, relabelled = x.copy(), y.copy()
    moved[test & ~one] *= 1e4
    moved[~train & ~test] = np.nan
    relabelled[test & ~one] = "d"
    assert probe(moved, relabelled, train, one, kind="linear") == before


def test_few_observations_and_unseen_classes():
    x, y, train, test = blobs(4, k=4)
    train = train & (y != "d")
    score = probe(x, y, train, test & (y != "a"))
    assert (score.n_unseen, score.n_absent, score.classes) == (1, 1, ("a", "b", "c"))
    assert score.accuracy <= np.mean(y[test & (y != "a")] != "d")
    few = np.zeros(len(x), dtype=bool)
    few[[np.flatnonzero(train & (y == c))[0] for c in "abc"]] = True
    assert probe(x, y, few, test, kind="knn").n_test == test.sum()  # fewer training observations than neighbours


def test_what_did_not_converge_is_recorded_and_other_warnings_pass(monkeypatch):
    x, y, train, test = blobs(5)
    assert probe(x, y, train, test).converged
    monkeypatch.setattr(module, "_model", lambda kind, seed, n: LogisticRegression(max_iter=1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not probe(x, y, train, test).converged

    class Loud(LogisticRegression):
        def fit(self, x, y):
            warnings.warn("something else", RuntimeWarning, stacklevel=2)
            return super().fit(x, y)

    monkeypatch.setattr(module, "_model", lambda kind, seed, n: Loud())
    with pytest.warns(RuntimeWarning, match="something else"):
        assert probe(x, y, train, test).converged


def test_the_global_random_state_is_left_alone_and_the_seed_counts():
    x, y, train, test = blobs(6, n=90, spread=3.0)
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    first, again, other = (probe(x, y, train, test, kind="mlp", rng=seed) for seed in (0, 0, 1))
    assert first == again
    assert first.auroc != other.auroc
    np.testing.assert_array_equal(state, np.random.get_state()[1])  # noqa: NPY002


def test_bad_probes_are_refused():
    x, y, train, test = blobs(7, n=40)
    with pytest.raises(ValueError, match="kind='forest'"):
        probe(x, y, train, test, kind="forest")
    with pytest.raises(ValueError, match="40 labels"):
        probe(x[:5], y, train, test)
    with pytest.raises(TypeError, match="train has dtype int64"):
        probe(x, y, np.flatnonzero(train), test)
    with pytest.raises(ValueError, match=r"test has shape .* and 0 observations"):
        probe(x, y, train, np.zeros(40, dtype=bool))
    overlap = test.copy()
    overlap[np.flatnonzero(train)[:2]] = True
    with pytest.raises(ValueError, match="2 observations are in train and in test"):
        probe(x, y, train, overlap)
    gaps = y.astype(object)
    gaps[np.flatnonzero(test)[:3]] = [None, np.nan, ""]
    with pytest.raises(ValueError, match="y in test has 3 missing labels"):
        probe(x, gaps, train, test)
    with pytest.raises(ValueError, match="y in train has 3 missing labels"):
        probe(x, gaps, test, train)
    with pytest.raises(ValueError, match="train holds one class alone, 'a'"):
        probe(x, y, train & (y == "a"), test)
    holes = x.copy()
    holes[np.flatnonzero(train)[0], 0] = np.nan
    with pytest.raises(ValueError, match="x in train has 1 rows"):
        probe(holes, y, train, test)
