"""Labels of slides: folds of donors, what methods are given, scores against loops over pairs, chance, sites, leaks."""

from itertools import product

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.preprocessing import StandardScaler

import stimg
from stimg.bench.methods import slides as methods
from stimg.bench.protocol import library_of
from stimg.bench.protocols.slides import dealt
from stimg.bench.slide_scores import Pairs, Slides, permuted, scores

PROTOCOL = stimg.bench.get_protocol("slides")


def cohort(n_donors=20, **options):
    return stimg.datasets.simulate_cohort(n_donors=n_donors, **{"n_tiles": (5, 9), "n_features": 6, "rng": 0, **options})


def load(data, **options):
    return PROTOCOL.load(data, **{"labels": "label", "features": ["X_simulated"], **options})[1]


def run(data, **options):
    return stimg.bench.run("slides", data, **{"labels": "label", "features": ["X_simulated"], "seeds": 1, **options})


def test_folds_hold_whole_donors_and_all_classes():
    sections = load(cohort(23, n_slides=2, prevalence=0.3))
    folds = PROTOCOL.folds(sections)
    assert len(folds) == 5
    donors = [{str(sections[n].obs["donor"].iloc[0]) for n in f.test} for f in folds]
    assert sum(len(d) for d in donors) == len(set.union(*donors)) == 23
    for fold in folds:
        assert not set(fold.train) & set(fold.test)
        assert set(fold.train) | set(fold.test) == set(sections)
        assert {str(sections[n].obs["label"].iloc[0]) for n in fold.test} == {"negative", "positive"}
    sizes = [len(d) for d in donors]
    assert max(sizes) - min(sizes) <= 1
    turned = dict(reversed(sections.items()))
    assert [set(f.test) for f in PROTOCOL.folds(turned)] == [set(f.test) for f in folds]


def test_groups_are_as_many_as_the_rarest_class_has_donors():
    assert len(dealt(list("abcdefg"), list("xxxyyyy"), 5)) == 3
    both = dealt(["a", "a", "b", "c", "d"], ["x", "y", "x", "y", "x"], 5)  # donor a has slides of both
    assert sorted(i for g in both for i in g) == list(range(5))
    assert any({0, 1} <= set(g) for g in both)
    with pytest.raises(ValueError, match=r"all slides have the label \['x'\]"):
        dealt(["a", "b"], ["x", "x"], 5)
    with pytest.raises(ValueError, match=r"classes \['y'\] have one donor"):
        dealt(["a", "b", "c", "c"], ["x", "x", "y", "y"], 5)


def test_methods_get_training_labels_and_no_test_label():
    sections = load(cohort())
    for fold in PROTOCOL.folds(sections):
        task, hidden = PROTOCOL.task(sections, fold)
        assert task.extra == {"features": ["X_simulated"], "classes": ("negative", "positive")}
        assert all("label" in a.obs for a in task.train)
        for a in task.test:
            assert set(a.obs) == {"library_id", "donor", "site"}
            assert set(a.obsm) == {"X_simulated", "spatial"}
            assert a.n_vars == 0
        for a in hidden.sections:
            wanted = np.array([c == a.obs["label"].iloc[0] for c in task.extra["classes"]], dtype=float)
            np.testing.assert_array_equal(hidden.truth[library_of(a)], wanted)
        np.testing.assert_array_equal(task.target(hidden.sections[0]), hidden.truth[library_of(hidden.sections[0])])


def naive_auroc(truth, score, cell):
    won = of = 0.0
    for i, j in product(range(len(truth)), repeat=2):
        if truth[i] and not truth[j] and cell[i] == cell[j]:
            of += 1
            won += float(score[i] > score[j]) + 0.5 * float(score[i] == score[j])
    return won / of if of else 0.5


@pytest.fixture
def answers():
    rng = np.random.default_rng(3)
    n = 60
    donor = np.repeat([f"d{i}" for i in range(30)], 2)
    truth = np.repeat(rng.integers(0, 2, 30), 2)
    fold = np.repeat(rng.integers(0, 4, 30), 2)
    p = np.round(np.clip(0.5 + 0.15 * (truth - 0.5) + rng.normal(0, 0.2, n) + 0.1 * fold, 0, 1), 1)  # with ties, and a level for each fold
    return Slides(truth, np.column_stack([1 - p, p]), donor.astype(object), fold.astype(object))


def test_scores_are_those_of_loops_over_pairs(answers):
    found = scores(answers)
    truth, p, fold = answers.truth, answers.predicted[:, 1], answers.fold
    assert found["auroc"] == pytest.approx(naive_auroc(truth, p, fold))
    number = sum(truth[i] != truth[j] and fold[i] == fold[j] for i in range(60) for j in range(i))
    assert found["n_pairs"] == number
    assert (found["n_obs"], found["n_donors"], found["n_undefined"]) == (60, 30, 0)
    rare = int(truth.mean() <= 0.5)
    rank = pd.Series(answers.predicted[:, rare]).groupby(fold).rank(pct=False) - 0.5
    rank /= pd.Series(fold).groupby(fold).transform("size")
    assert found["auprc"] == pytest.approx(average_precision_score(truth == rare, rank))
    assert found["auprc_chance"] == pytest.approx(np.mean(truth == rare))
    said = answers.predicted.argmax(1)
    assert found["balanced_accuracy"] == pytest.approx(np.mean([np.mean(said[truth == c] == c) for c in (0, 1)]))
    assert found["auroc_low"] < found["auroc"] < found["auroc_high"]
    one_fold = Slides(truth, answers.predicted, answers.donor, np.zeros(60, dtype=object))
    assert scores(one_fold)["auroc"] == pytest.approx(roc_auc_score(truth, p))


def test_within_sites_only_pairs_of_one_site_count(answers):
    site = np.tile(["a", "b", "c"], 20).astype(object)
    cell = [f"{f}{s}" for f, s in zip(answers.fold, site, strict=True)]
    assert scores(answers, within=site)["auroc"] == pytest.approx(naive_auroc(answers.truth, answers.predicted[:, 1], cell))
    tied = scores(answers, within=answers.truth.astype(object))
    assert (tied["n_pairs"], tied["n_undefined"], tied["auroc"]) == (0, 1, 0.5)


def test_a_bootstrap_weight_is_a_repeated_slide(answers):
    pairs = Pairs(answers.predicted, answers.fold.astype(int))
    weight = np.random.default_rng(0).integers(0, 3, 60)
    repeated = np.repeat(np.arange(60), weight)
    wanted = naive_auroc(answers.truth[repeated], answers.predicted[repeated, 1], answers.fold[repeated])
    assert pairs.auroc(answers.truth[None], weight[None].astype(float))[0] == pytest.approx(wanted)


def test_three_classes_are_averaged():
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 3, 45)
    p = rng.random((45, 3)) + 0.4 * np.eye(3)[truth]
    p /= p.sum(1, keepdims=True)
    slides = Slides(truth, p, np.arange(45).astype(object), np.zeros(45, dtype=object))
    assert scores(slides, n=20)["auroc"] == pytest.approx(roc_auc_score(truth, p, multi_class="ovr"))


def test_permutations_move_donors_whole_and_within_folds(answers):
    cell = answers.fold.astype(int)
    donor = np.unique(answers.donor.astype(str), return_inverse=True)[1]
    drawn = permuted(answers.truth, donor, cell, 50)
    assert len({tuple(row) for row in drawn}) > 40
    for row in drawn:
        for d in range(30):
            assert len(set(row[donor == d])) == 1
        for c in np.unique(cell):
            assert row[cell == c].sum() == answers.truth[cell == c].sum()


def test_p_values_of_answers_that_know_nothing_are_uniform():
    rng = np.random.default_rng(5)
    found = []
    for _ in range(150):
        p = rng.random(40)
        truth = rng.permutation(np.repeat([0, 1], 20))
        slides = Slides(truth, np.column_stack([1 - p, p]), np.arange(40).astype(object), np.repeat(np.arange(5), 8).astype(object))
        found.append(scores(slides, n=100)["p"])
    assert abs(np.mean(found) - 0.5) < 0.08
    assert np.mean(np.array(found) <= 0.1) < 0.18


def cross_validated(rng, n_folds, n=60, width=12):
    """Slides without any effect, scored by the difference of the class means of the other folds."""
    x, truth, fold = rng.normal(size=(n, width)), np.tile([0, 1], n // 2), np.repeat(np.arange(n_folds), n // n_folds)
    score = np.zeros(n)
    for f in range(n_folds):
        own, rest = fold == f, fold != f
        score[own] = x[own] @ (x[rest & (truth == 1)].mean(0) - x[rest & (truth == 0)].mean(0))
    p = 1 / (1 + np.exp(-score))
    return Slides(truth, np.column_stack([1 - p, p]), np.arange(n).astype(object), fold.astype(object))


def test_without_an_effect_trainings_that_share_donors_find_none(monkeypatch):
    rng = np.random.default_rng(0)
    cohorts = [cross_validated(rng, 5) for _ in range(250)]
    found = [scores(each, n=200) for each in cohorts]
    p, low = (np.array([each[name] for each in found]) for name in ("p", "auroc_low"))
    assert abs(np.mean([each["auroc"] for each in found]) - 0.5) < 0.03
    assert np.mean(p <= 0.05) < 0.05 + 2 * np.sqrt(0.05 * 0.95 / 250)
    assert np.mean(p <= 0.01) < 0.01 + 2 * np.sqrt(0.01 * 0.99 / 250)
    assert np.mean(low > 0.5) < 0.05
    assert np.mean(p <= 0.2) > 0.1  # a test that never finds anything would pass the rest
    monkeypatch.setattr("stimg.bench.slide_scores.MUTUAL", 1.0)
    assert np.mean([scores(each, n=200)["p"] <= 0.05 for each in cohorts]) > 0.07  # as said of the protocol


def test_intervals_are_as_wide_as_the_scores_of_whole_new_cohorts():
    rng = np.random.default_rng(1)
    found = [scores(cross_validated(rng, 5), n=200) for _ in range(250)]
    spread = np.std([each["auroc"] for each in found])
    wide = np.mean([each["auroc_high"] - each["auroc_low"] for each in found]) / (2 * 1.96)
    assert wide == pytest.approx(spread, rel=0.25)
    one = cross_validated(rng, 5)
    single = scores(Slides(one.truth, one.predicted, one.donor, np.zeros(60, dtype=object)), n=2000)
    of_pairs = np.sqrt((60 + 1) / (12 * 30 * 30))  # standard deviation of an AUROC of chance: one test, nothing shared
    assert single["auroc_high"] - single["auroc_low"] == pytest.approx(2 * 1.96 * of_pairs, rel=0.2)


def test_averaged_tiles_are_scikit_learn_on_means():
    sections = load(cohort(20, n_features=3))
    task, _ = PROTOCOL.task(sections, PROTOCOL.folds(sections)[0])
    found = methods.mean_of_tiles(task, np.random.default_rng(0))

    def table(part):
        return np.stack([np.asarray(a.obsm["X_simulated"], dtype=float).mean(0) for a in part])

    x, y = table(task.train), [a.obs["label"].iloc[0] for a in task.train]
    scaler = StandardScaler().fit(x)
    close = []
    for c in methods.STRENGTHS:
        model = LogisticRegression(C=c, class_weight="balanced", max_iter=2000).fit(scaler.transform(x), y)
        wanted = model.predict_proba(scaler.transform(table(task.test)))
        close.append(np.allclose(np.stack([found[library_of(a)] for a in task.test]), wanted, atol=1e-4))
    assert any(close)
    order = np.random.default_rng(1).permutation(len(task.train))
    again = methods.mean_of_tiles(type(task)(**{**task.__dict__, "train": tuple(task.train[i] for i in order)}), np.random.default_rng(0))
    for name, value in found.items():
        np.testing.assert_array_equal(value, again[name])


def test_nulls_know_what_they_say_and_no_more():
    data = cohort(40, n_sites=2, site_effect=3.0, confounded=True, effect=0.0)
    report = run(data, seeds=3)
    value = report.summary()["value"]
    assert value["class frequencies", "auroc", "all pairs"] == 0.5
    assert value["depth of the slide", "auroc", "all pairs"] == 0.5
    assert value["site of the slide", "auroc", "all pairs"] == 1.0  # the label goes with the site, and the null says so
    assert value["mean of tiles, logistic", "auroc", "all pairs"] > 0.95  # which is all that this one reads
    assert set(report.summary().index.get_level_values("stratum")) == {"all pairs"}  # no site has both labels
    assert not report.data["stamps"]


def test_where_sites_have_both_labels_pairs_of_one_site_are_free_of_them():
    data = cohort(60, n_sites=2, site_effect=4.0, effect=5.0, informative=0.5, donor_sd=0.2)
    value = run(data).summary()["value"]
    assert value["site of the slide", "auroc", "pairs of one site"] == 0.5
    assert value["mean of tiles, logistic", "auroc", "pairs of one site"] > 0.85


def test_depth_and_number_of_tiles_are_read():
    rng = np.random.default_rng(0)
    data = cohort(30, effect=0.0)
    positive = (data.obs["label"] == "positive").to_numpy()
    deep = ad.AnnData(
        sp.csr_matrix(rng.poisson(np.where(positive, 8.0, 2.0)[:, None], (data.n_obs, 30)).astype(np.float32)),
        obs=data.obs,
        obsm=dict(data.obsm),
    )
    few = deep[positive | (rng.random(deep.n_obs) < 0.5)].copy()
    stimg.data.ledger.remember(few, "X_simulated")
    value = run(few).summary()["value"]
    assert value["depth of the slide", "auroc", "all pairs"] > 0.95
    assert value["number of tiles", "auroc", "all pairs"] > 0.9


def test_slides_without_a_label_and_control_probes_stay_out():
    data = cohort(12)
    data.obs["label"] = data.obs["label"].astype(object)
    data.obs.loc[data.obs["library_id"] == "D01S1", "label"] = None
    names = ["g1", "g2", "NegControl1"]
    whole = ad.AnnData(
        sp.csr_matrix(np.ones((data.n_obs, 3), np.float32)), obs=data.obs, var=pd.DataFrame(index=names), obsm=dict(data.obsm)
    )
    sections = load(whole)
    assert "D01S1" not in sections
    assert len(sections) == 11
    assert list(next(iter(sections.values())).var_names) == names[:2]


def test_a_model_that_has_seen_test_donors_stops_the_run():
    data = cohort()
    seen = stimg.bench.Seen("an encoder", "encoder", donors=("D01",), libraries=("elsewhere",))
    stimg.data.ledger.remember(data, "X_simulated", seen)

    def answer(task, rng):
        return dict.fromkeys(task.asked(), 0.5)

    with pytest.raises(
        stimg.bench.LeakageError, match=r"the encoder 'an encoder' has seen other observations of 1 of 1 test donors \(D01\)"
    ):
        run(data, methods={"mine": answer}, nulls=False)


def test_a_run_goes_on_and_its_report_can_be_read(tmp_path):
    data = cohort(12)
    calls = []

    def answer(task, rng):
        """A probability by chance."""
        calls.append(task.fold)
        return {name: float(rng.random()) for name in task.asked()}

    first = run(data, methods={"mine": answer}, out=tmp_path)
    again = run(data, methods={"mine": answer}, out=tmp_path)
    assert len(calls) == 5
    pd.testing.assert_frame_equal(first.summary(), again.summary())
    details = stimg.bench.Report.load(tmp_path).details()
    own = details[details["method"] == "mine"]
    assert len(own) == 12
    assert np.allclose(own["p_negative"] + own["p_positive"], 1)
    assert "auroc" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "gave nothing for"),
        (1.5, "wanted probabilities between 0 and 1"),
        (np.nan, "wanted probabilities between 0 and 1"),
        (np.array([0.1, 0.2, 0.7]), r"values of shape \(3,\)"),
    ],
)
def test_bad_answers(value, message):
    def answer(task, rng):
        return {name: value for name in task.asked() if value is not None}

    with pytest.raises(ValueError, match=message):
        run(cohort(8), methods={"mine": answer}, nulls=False)


def two_labels(data):
    data.obs["label"] = data.obs["label"].astype(str)
    data.obs.loc[data.obs_names[data.obs["library_id"] == "D3S1"][:1], "label"] = "other"


def two_sites(data):
    data.obs["site"] = data.obs["site"].astype(str)
    data.obs.loc[data.obs_names[data.obs["library_id"] == "D3S1"][:1], "site"] = "other"


@pytest.mark.parametrize(
    ("spoil", "options", "error", "message"),
    [
        (None, {"labels": None}, ValueError, 'pass the column of obs that holds them, such as labels="label"'),
        (None, {"features": []}, ValueError, "pass the slots of obsm"),
        (None, {"features": ["X_uni"]}, KeyError, r"adata.obsm\['X_uni'\] is missing"),
        (None, {"labels": "mutation"}, KeyError, r"adata.obs\['mutation'\] is missing"),
        (two_labels, {}, ValueError, r"slide 'D3S1' has the labels .* wanted one label for the whole slide"),
        (two_sites, {}, ValueError, "slide 'D3S1' has the sites"),
        (lambda d: d.obs.pop("donor"), {}, ValueError, "the donor of library 'D1S1' is missing"),
        (lambda d: d.obsm["X_simulated"].__setitem__((2, 1), np.inf), {}, ValueError, "1 rows of"),
        (lambda d: d.obs.__setitem__("label", "positive"), {}, ValueError, r"all slides have the label \['positive'\]"),
        (lambda d: d.obs.__setitem__("label", None), {}, ValueError, "none of 8 slides has a label"),
    ],
)
def test_bad_data(spoil, options, error, message):
    data = cohort(8)
    if spoil is not None:
        spoil(data)
    with pytest.raises(error, match=message):
        run(data, **options)


def test_bad_collections():
    data = cohort(8)
    with pytest.raises(ValueError, match="occurs in two objects"):
        run([data, data])
    other = cohort(8, n_features=4)
    other.obs["library_id"] = other.obs["library_id"].astype(str) + "x"
    with pytest.raises(ValueError, match=r"has \[4, 6\] columns in different slides"):
        run([data, other])
