"""Protocols of known regions against naive code: what methods are given, how sections are divided, scores, chance, leaks."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

import stimg
from stimg.bench.protocol import library_of

DOMAINS, RANDOM = (stimg.bench.get_protocol(name) for name in ("domains", "domains-random"))
QUICK = replace(DOMAINS, n_draws=2, clusterings=("kmeans",), probes=("linear", "knn"), nulls=())


def load(slides, **options):
    return stimg.bench.load_sections(slides, **{"labels": "label", **options})


def regions(adata):
    return {library_of(a): np.asarray(a.obs["label"]) for a in adata.values()}


def one_hot(task, truth):
    known = sorted({v for values in truth.values() for v in values})
    return {name: np.stack([truth[name] == k for k in known], axis=1).astype(float) for name in task.asked()}


def naive_ari(a, b):
    pairs = list(combinations(range(len(a)), 2))
    same_a, same_b = (np.array([v[i] == v[j] for i, j in pairs]) for v in (a, b))
    both, expected = (same_a & same_b).sum(), same_a.sum() * same_b.sum() / len(pairs)
    return (both - expected) / ((same_a.sum() + same_b.sum()) / 2 - expected)


def test_methods_never_see_a_region(slides):
    sections = load(slides)
    for fold in DOMAINS.folds(sections):
        task, hidden = DOMAINS.task(sections, fold)
        for a in (*task.train, *task.test):
            assert "label" not in a.obs
            assert not any("top" in set(a.obs[c].astype(str)) for c in a.obs)
            assert a.X.nnz > 0
            assert set(a.obsm) == {"spatial", "stimg_rc"}
        assert set(task.asked()) == {*fold.train, *fold.test} == set(hidden.truth)
        with pytest.raises(ValueError, match="has no target"):
            task.target(task.test[0])
    assert "label" in sections["A1"].obs


def test_folds_are_sections_donors_with_several_and_other_donors(slides):
    found = {f.name: (set(f.train), set(f.test)) for f in DOMAINS.folds(load(slides))}
    assert [n for n in found if not found[n][0]] == ["A1", "A2", "B1", "B2", "C1"]
    assert found["A1 from its donor"] == ({"A2"}, {"A1"})
    assert "C1 from its donor" not in found
    assert found["A from other donors"] == ({"B1", "B2", "C1"}, {"A1", "A2"})
    assert len(found) == 5 + 4 + 3
    assert len(RANDOM.folds(load(slides))) == 5


def test_sections_without_regions_or_without_common_ones_stay_out(slides):
    slides["A2"].obs["label"] = None
    slides["C1"].obs["label"] = np.where(slides["C1"].obs["array_row"] < 4, "other", "names")
    found = {f.name: f.train for f in DOMAINS.folds(load(slides))}
    within = dict.fromkeys(("A1", "B1", "B2", "C1"), ())
    near = {"B1 from its donor": ("B2",), "B2 from its donor": ("B1",)}
    assert found == {**within, **near, "A from other donors": ("B1", "B2"), "B from other donors": ("A1",)}


def test_blocks_keep_their_margin_and_random_draws_their_share(section_of):
    (adata,) = load({"A1": section_of("A1", "A", 0, shape=(20, 15))}).values()
    adata.obs.loc[adata.obs_names[:7], "label"] = "undetermined"
    known = np.asarray(adata.obs["label"]) != "undetermined"
    rc = adata.obsm["stimg_rc"].astype(float)
    distance = np.sqrt(((rc[:, None] - rc[None]) ** 2).sum(-1))
    draws = list(DOMAINS.draws(adata))
    assert len(draws) == 5
    assert len({tuple(train) for train, _ in draws}) > 1
    for train, test in draws:
        assert not (train & test).any()
        assert not ((train | test) & ~known).any()
        assert abs(train.sum() / known.sum() - 0.2) < 0.05
        near = distance[:, train].min(axis=1) <= 1.5
        np.testing.assert_array_equal(test, known & ~near)
        assert (distance[np.ix_(train, train)] <= 1).sum() > 3 * train.sum()  # contiguous: most have neighbours in it, themselves included
    for train, test in RANDOM.draws(adata):
        np.testing.assert_array_equal(train | test, known)
        assert not (train & test).any()
        for region in ("top", "bottom"):
            own = np.asarray(adata.obs["label"]) == region
            assert train[own].sum() == round(0.2 * own.sum())


def test_scores_agree_with_plain_scikit_learn(slides):
    sections = load({n: slides[n] for n in ("A1", "A2")})
    truth = regions(sections)
    for a in sections.values():
        a.obs.loc[a.obs_names[:5], "label"] = None
    rng = np.random.default_rng(0)
    values = {n: np.column_stack([truth[n] == "top", np.ones(len(truth[n]))]) + rng.normal(0, 0.5, (len(truth[n]), 2)) for n in truth}
    for fold in QUICK.folds(sections):
        task, hidden = QUICK.task(sections, fold)
        rows = QUICK.score(task, hidden, QUICK.check(task, values, "me")).rows
        if fold.train:
            x = np.concatenate([values[n] for n in (*fold.train, *fold.test)])
            y = np.concatenate([hidden.truth[n] for n in (*fold.train, *fold.test)])
            known, first = np.array([v is not None for v in y]), np.arange(len(y)) < len(values[fold.train[0]])
            draws = [(first & known, ~first & known)]
        else:
            x, y, draws = values[fold.name], hidden.truth[fold.name], list(QUICK.draws(sections[fold.name]))
            labels = KMeans(2, n_init=10, random_state=0).fit_predict(x)
            known = np.array([v is not None for v in y])
            (row,) = (r for r in rows if r["split"] == "whole section")
            assert row["ari"] == pytest.approx(naive_ari(y[known], labels[known]), abs=0.05)  # another start may move a few
            assert row["n_obs"] == len(y) - 5
            assert row["k"] == 2
        for kind, model in (("linear", LogisticRegression(max_iter=1000)), ("knn", KNeighborsClassifier(10))):
            found = [r for r in rows if r["reader"] == f"{kind} probe"]
            assert [r["draw"] for r in found] == list(range(len(draws)))
            for row, (train, test) in zip(found, draws, strict=True):
                if len(set(y[train])) < 2:
                    answer = np.full(test.sum(), y[train][0], dtype=object)
                else:
                    scale = StandardScaler().fit(x[train])
                    fitted = model.fit(scale.transform(x[train]), y[train].astype(str))
                    answer = fitted.predict(scale.transform(x[test]))
                assert row["accuracy"] == pytest.approx(np.mean(answer == y[test]))
                present = sorted(set(y[test]))
                expected = f1_score(y[test].astype(str), answer.astype(str), labels=present, average="macro", zero_division=0)
                assert row["macro_f1"] == pytest.approx(expected)
                assert row["n_obs"] == test.sum()
                assert row["n_train"] == train.sum()
                commonest = max(set(y[train]), key=list(y[train]).count)
                assert row["chance_accuracy"] == pytest.approx(np.mean(y[test] == commonest))


def test_a_clustering_is_the_median_over_its_starts_of_at_most_fifty_components(slides):
    sections = load({"A1": slides["A1"]})
    protocol = replace(DOMAINS, transfer=False, probes=(), n_components=3)
    task, hidden = protocol.task(sections, protocol.folds(sections)[0])
    rng = np.random.default_rng(0)
    wide = rng.normal(size=(72, 6)) * [3, 2, 2, 1e-6, 1e-6, 1e-6]
    scored = protocol.score(task, hidden, {"A1": wide})
    narrow = protocol.score(task, hidden, {"A1": (wide - wide.mean(axis=0))[:, :3]})
    assert {r["reader"] for r in scored.rows} == {"k-means", "Gaussian mixture"}
    for row, other in zip(scored.rows, narrow.rows, strict=True):
        own = scored.details[scored.details["reader"] == row["reader"]]
        assert len(own) == 5
        assert row["ari"] == np.median(own["ari"])
        assert row["nmi"] == np.median(own["nmi"])
        assert row["ari"] == pytest.approx(other["ari"], abs=0.1)


def test_true_regions_score_best_and_permuted_ones_at_chance(section_of):
    slides = {n: section_of(n, n[0], i, shape=(12, 12)) for i, n in enumerate(("A1", "B1"))}
    truth = {n: np.asarray(a.obs["label"]) for n, a in slides.items()}
    nulls = ("row and column", "library depth", "random embedding", "regions permuted")
    options = {"methods": {"truth": lambda task, rng: one_hot(task, truth)}, "labels": "label", "seeds": 3, "allow_leakage": True}
    for protocol in (replace(QUICK, nulls=nulls), replace(RANDOM, n_draws=2, probes=("linear",), nulls=nulls)):
        summary = stimg.bench.run(protocol, slides, **options).summary()["value"]
        perfect = summary["truth"]
        for name in nulls:
            for metric in ("ari", "accuracy", "auroc"):
                if metric in summary[name]:
                    assert (summary[name][metric] <= perfect[metric] + 1e-12).all(), (name, metric)
        for stratum in set(perfect["ari"].index) - {
            "blocks, linear probe",
            "blocks, knn probe",
        }:  # there a region may be missing in the training
            assert perfect["ari"][stratum] == pytest.approx(1)
        for name in ("regions permuted", "random embedding"):
            assert (summary[name]["ari"].abs() < 0.08).all()
            if "auroc" in summary[name]:
                assert (abs(summary[name]["auroc"] - 0.5) < 0.12).all()


def test_values_do_not_depend_on_the_order_of_observations(slides):
    base = {n: slides[n] for n in ("A1", "A2")}
    shuffled = {n: a[np.random.default_rng(1).permutation(a.n_obs)].copy() for n, a in base.items()}
    options = {"methods": ["512 HVG", "PCA-50, neighbours averaged"], "labels": "label", "seeds": 1}
    one, two = (stimg.bench.run(QUICK, data, **options).summary()["value"] for data in (base, shuffled))
    np.testing.assert_allclose(one.to_numpy(), two.to_numpy(), rtol=1e-9, atol=1e-9)
    first, second = (load(data) for data in (base, shuffled))
    for a, b in zip(RANDOM.draws(first["A1"]), RANDOM.draws(second["A1"]), strict=True):
        assert set(first["A1"].obs_names[a[0]]) == set(second["A1"].obs_names[b[0]])


def test_unlabelled_observations_stay_and_are_not_scored(slides):
    adata = slides["A1"]
    adata.obs["label"] = adata.obs["label"].astype(object)
    adata.obs.loc[adata.obs_names[:6], "label"] = ["undetermined", "", None, np.nan, "undetermined", ""]
    sections = load({"A1": adata})
    protocol = replace(QUICK, transfer=False)
    task, hidden = protocol.task(sections, protocol.folds(sections)[0])
    assert task.test[0].n_obs == 72
    assert [v is None for v in hidden.truth["A1"][:7]] == [True] * 6 + [False]
    rows = protocol.score(task, hidden, {"A1": np.random.default_rng(0).normal(size=(72, 3))}).rows
    assert {r["n_obs"] for r in rows if r["split"] == "whole section"} == {66}
    assert all(r["n_obs"] + r["n_train"] <= 66 for r in rows if r["split"] == "blocks")


def test_random_neighbours_are_a_leak_and_blocks_are_not(slides):
    data = {"A1": slides["A1"]}
    expected, of = 0, 0
    (adata,) = load(data).values()
    rc = adata.obsm["stimg_rc"].astype(float)
    for train, test in RANDOM.draws(adata):
        near = [any(((rc[i] - rc[j]) ** 2).sum() <= 1.5**2 for j in np.flatnonzero(train)) for i in np.flatnonzero(test)]
        expected, of = expected + sum(near), of + int(test.sum())
    quick = replace(RANDOM, probes=("knn",), nulls=("row and column",))
    with pytest.raises(stimg.bench.LeakageError, match=f"training observations of the probe' has seen neighbours of {expected} of {of} "):
        stimg.bench.run(quick, data, labels="label", seeds=1)
    report = stimg.bench.run(quick, data, labels="label", seeds=1, allow_leakage=True)
    assert report.data["stamps"] == [
        f"LEAKAGE ALLOWED: the model 'training observations of the probe' has seen neighbours of {expected} of {of} test observations (A1)"
    ]
    assert not stimg.bench.run(replace(QUICK, nulls=("row and column",)), data, labels="label", seeds=1).data["stamps"]


def test_counts_may_be_read_within_a_section_but_not_across(slides, section_of):
    def embedding(seen):
        def answer(task, rng):
            return stimg.bench.Prediction({n: np.asarray(a.obsm["stimg_rc"], float) for n, a in task.asked().items()}, (seen,))

        return {"mine": answer}

    one = stimg.bench.seen_of(slides["A1"], who="autoencoder", kind="model")
    stimg.bench.run(QUICK, {"A1": slides["A1"]}, methods=embedding(one), labels="label", seeds=1)
    with pytest.raises(stimg.bench.LeakageError, match="'autoencoder' has seen 72 of 72"):
        stimg.bench.run(QUICK, {n: slides[n] for n in ("A1", "A2")}, methods=embedding(one), labels="label", seeds=1)
    unlabelled = stimg.bench.seen_of(section_of("A3", "A", 9), who="autoencoder", kind="model")
    stimg.bench.run(QUICK, {n: slides[n] for n in ("A1", "A2")}, methods=embedding(unlabelled), labels="label", seeds=1)  # another section
    with pytest.raises(stimg.bench.LeakageError, match="other observations of 1 of 1 test donors"):
        stimg.bench.run(QUICK, {n: slides[n] for n in ("A1", "B1")}, methods=embedding(unlabelled), labels="label", seeds=1)


def test_a_probe_trained_on_one_region_always_answers_with_it(slides):
    sections = load({"A1": slides["A1"]})
    protocol = replace(QUICK, transfer=False, clusterings=(), probes=("linear", "mlp"))
    task, hidden = protocol.task(sections, protocol.folds(sections)[0])
    y = hidden.truth["A1"]
    one = (y == "top") & (np.arange(72) < 10), np.arange(72) >= 20
    hidden.extra["draws"]["A1"] = [one]
    for row in protocol.score(task, hidden, {"A1": np.random.default_rng(0).normal(size=(72, 3))}).rows:
        assert row["accuracy"] == row["chance_accuracy"] == np.mean(y[20:] == "top")
        assert row["auroc"] == 0.5
        assert row["n_unseen"] == 1


def test_methods_against_naive_code(slides):
    sections = load({n: slides[n] for n in ("A1", "A2")})
    fold = next(f for f in DOMAINS.folds(sections) if f.name == "A1 from its donor")
    task, _ = DOMAINS.task(sections, fold)
    method = {n: stimg.bench.method.get(n) for n in DOMAINS.nulls}
    rng = np.random.default_rng(0)
    components = method["PCA-50"].function(task, rng)
    averaged = method["PCA-50, neighbours averaged"].function(task, rng)
    genes = stimg.bench.methods.labels.ranked_genes(task)
    assert len(genes) == 60
    logs = {}
    for name, a in task.asked().items():
        counts = a[:, genes].X.toarray().astype(float)
        logs[name] = np.log1p(1e4 * counts / a.X.toarray().sum(axis=1, keepdims=True))
        np.testing.assert_allclose(method["512 HVG"].function(task, rng)[name], logs[name])
        np.testing.assert_allclose(method["library depth"].function(task, rng)[name][:, 0], np.log1p(a.X.toarray().sum(axis=1)))
        np.testing.assert_array_equal(method["row and column"].function(task, rng)[name], a.obsm["stimg_rc"])
        rc = a.obsm["stimg_rc"]
        for i in (0, 20, 71):
            near = ((rc - rc[i]) ** 2).sum(axis=1) <= 2.5**2
            np.testing.assert_allclose(averaged[name][i], components[name][near].mean(axis=0))
    centred = logs["A2"] - logs["A2"].mean(axis=0)  # the training section alone
    axes = np.linalg.svd(centred, full_matrices=False)[2][:50]
    expected = (logs["A1"] - logs["A1"].mean(axis=0)) @ axes.T
    np.testing.assert_allclose(np.abs(components["A1"][:, :5]), np.abs(expected[:, :5]), atol=1e-6)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda a: None, {"labels": None}, "'A1' comes without known regions"),
        (lambda a: a.obs.__setitem__("label", "undetermined"), {}, "None of 1 sections has a known region"),
        (lambda a: a.obs.__setitem__("label", None), {}, "None of 1 sections has a known region"),
        (lambda a: a.obs.__setitem__("label", "WM"), {}, "'A1' has one region, 'WM'; wanted at least two"),
        (lambda a: a.obs.__setitem__("label", ["x"] * 4 + ["y"] * 4 + [None] * 64), {}, "'A1' has 8 observations with a region; wanted at least 10"),
        (lambda a: a.obs.__setitem__("label", ["x"] * 6 + ["y"] * 4 + [None] * 62), {}, "'A1' is too small: of 10 observations"),
        (lambda a: None, {"labels": "layer"}, "layer"),
    ],
)  # fmt: skip
def test_bad_sections(slides, change, options, message):
    change(slides["A1"])
    protocol = replace(DOMAINS, margin=9.0) if "too small" in message else DOMAINS
    with pytest.raises((ValueError, KeyError), match=message):
        stimg.bench.run(protocol, {"A1": slides["A1"]}, seeds=1, **{"labels": "label", **options})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"A1": np.zeros((72, 2))}, r"mine gave no embedding of \['A2'\]"),
        ({"A1": np.zeros((71, 2)), "A2": np.zeros((72, 2))}, r"shape \(71, 2\) for A1; wanted \(72, dimensions\)"),
        ({"A1": np.zeros(72), "A2": np.zeros((72, 2))}, r"shape \(72,\) for A1"),
        ({"A1": np.zeros((72, 0)), "A2": np.zeros((72, 2))}, r"shape \(72, 0\) for A1"),
        ({"A1": np.full((72, 2), np.nan), "A2": np.zeros((72, 2))}, "not finite for 72 of 72 observations of A1"),
        ({"A1": np.zeros((72, 3)), "A2": np.zeros((72, 2))}, "different numbers of dimensions: .*'A1': 3"),
    ],
)
def test_bad_embeddings(slides, values, message):
    sections = load({n: slides[n] for n in ("A1", "A2")})
    task, _ = DOMAINS.task(sections, next(f for f in DOMAINS.folds(sections) if f.train))
    with pytest.raises(ValueError, match=message):
        DOMAINS.check(task, values, "mine")


def test_a_table_is_put_into_the_order_of_the_section(slides):
    sections = load({"A1": slides["A1"]})
    task, _ = DOMAINS.task(sections, DOMAINS.folds(sections)[0])
    values = np.random.default_rng(0).normal(size=(72, 2))
    table = pd.DataFrame(values, index=sections["A1"].obs_names).sample(frac=1, random_state=0)
    np.testing.assert_array_equal(DOMAINS.check(task, {"A1": table}, "mine")["A1"], values)


def test_the_protocols_are_what_they_were():
    assert (DOMAINS.version, RANDOM.version) == ("1.0", "1.0")
    assert DOMAINS.metrics[0].name == "ari"
    assert RANDOM.metrics[0].name == "accuracy"
    assert DOMAINS.hash != RANDOM.hash
    assert DOMAINS.hash != replace(DOMAINS, n_blocks=9).hash
    assert DOMAINS.hash == replace(DOMAINS, title="other words").hash
    with pytest.raises(ValueError, match="divided"):
        replace(DOMAINS, divided="halves")


@pytest.mark.data
@pytest.mark.slow
def test_dlpfc_as_measured_before(mirror):
    section = stimg.datasets.dlpfc("151673")
    methods = ["row and column", "PCA-50, neighbours averaged"]
    options = {"methods": methods, "labels": "label", "seeds": 1, "nulls": False}
    protocol = replace(RANDOM, probes=("mlp",), n_draws=2)
    random = stimg.bench.run(protocol, section, allow_leakage=True, **options).summary()["value"]
    blocks = stimg.bench.run(replace(DOMAINS, probes=("mlp",), clusterings=()), section, **options).summary()["value"]
    for name, leaking, apart in (("row and column", 0.82, 0.38), ("PCA-50, neighbours averaged", 0.90, 0.45)):
        assert random[name]["accuracy"].iloc[0] == pytest.approx(leaking, abs=0.04)
        assert blocks[name]["accuracy"].iloc[0] == pytest.approx(apart, abs=0.1)
