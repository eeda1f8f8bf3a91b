"""Linear probes of known regions between donors and between sections of one: folds, regions that are not shared, scores, nulls."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score
from sklearn.preprocessing import StandardScaler

import stimg
from stimg.bench.protocol import library_of

LABELS, CLUSTERS = (stimg.bench.get_protocol(name) for name in ("her2st-labels", "her2st-clusters"))


@pytest.fixture
def regions(slides):
    """Sections of donors A, A, B, B, C with three regions, of which B1 lacks one and C1 has one more."""
    for name, adata in slides.items():
        row = adata.obs["array_row"].to_numpy()
        adata.obs["label"] = np.where(row < 3, "top", np.where(row < 6, "middle", "bottom"))
        if name == "B1":
            adata.obs.loc[row >= 6, "label"] = "undetermined"
        if name == "C1":
            adata.obs.loc[row < 2, "label"] = "crust"
    return slides


def load(slides):
    return stimg.bench.load_sections(slides, labels="label")


def embed(sections):
    """Region with noise, the same space for all sections."""
    rng = np.random.default_rng(0)
    known = ["bottom", "crust", "middle", "top"]
    out = {}
    for name, a in sections.items():
        at = np.array([known.index(v) if v in known else 0 for v in a.obs["label"]])
        out[name] = np.eye(4)[at][:, :3] + rng.normal(0, 0.7, (a.n_obs, 3))
    return out


def test_folds_keep_donors_or_sections_apart(regions):
    sections = load(regions)
    found = {f.name: (set(f.train), set(f.test)) for f in LABELS.folds(sections)}
    assert found == {
        "A from other donors": ({"B1", "B2", "C1"}, {"A1", "A2"}),
        "B from other donors": ({"A1", "A2", "C1"}, {"B1", "B2"}),
        "C from other donors": ({"A1", "A2", "B1", "B2"}, {"C1"}),
    }
    near = {f.name: (f.train, f.test) for f in CLUSTERS.folds(sections)}
    assert near == {f"{a} from its donor": ((b,), (a,)) for a, b in (("A1", "A2"), ("A2", "A1"), ("B1", "B2"), ("B2", "B1"))}


def test_scores_are_scikit_learn_on_shared_regions(regions):
    sections = load(regions)
    values = embed(sections)
    for fold in LABELS.folds(sections):
        task, hidden = LABELS.task(sections, fold)
        assert all("label" not in a.obs for a in (*task.train, *task.test))
        scored = LABELS.score(task, hidden, LABELS.check(task, values, "me"))
        x = np.concatenate([values[n] for n in fold.train])
        y = np.concatenate([np.asarray(sections[n].obs["label"], dtype=str) for n in fold.train])
        x, y = x[y != "undetermined"], y[y != "undetermined"]
        scale = StandardScaler().fit(x)
        model = LogisticRegression(max_iter=1000).fit(scale.transform(x), y)
        for row in scored.rows:
            truth = np.asarray(sections[row["library"]].obs["label"], dtype=str)
            inside = np.isin(truth, y)
            p = model.predict_proba(scale.transform(values[row["library"]][inside]))
            said, truth_in = model.classes_[p.argmax(1)], truth[inside]
            here = sorted(set(truth_in))
            assert row["n_obs"] == inside.sum()
            assert row["n_unseen"] == (~inside & (truth != "undetermined")).sum()
            assert row["accuracy"] == pytest.approx(np.mean(said == truth_in))
            assert row["macro_f1"] == pytest.approx(f1_score(truth_in, said, labels=here, average="macro", zero_division=0))
            with_all = [np.mean(said[truth_in == c] == c) for c in here]
            assert row["balanced_accuracy"] == pytest.approx(np.mean(with_all))
            if set(said) <= set(here):
                assert row["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth_in, said))
            each = [roc_auc_score(truth_in == c, p[:, list(model.classes_).index(c)]) for c in here]
            assert row["auroc"] == pytest.approx(np.mean(each), abs=1e-4)
            own = scored.details[scored.details["library"] == row["library"]].set_index("region")
            assert list(own.index) == here
            np.testing.assert_allclose(own["auroc"], each, atol=1e-4)
            np.testing.assert_allclose(own["recall"], with_all)
            assert own["n"].tolist() == [int((truth_in == c).sum()) for c in here]


def test_regions_of_no_training_section_are_counted_and_not_scored(regions):
    sections = load(regions)
    fold = next(f for f in LABELS.folds(sections) if f.test == ("C1",))
    task, hidden = LABELS.task(sections, fold)
    (row,) = LABELS.score(task, hidden, LABELS.check(task, embed(sections), "me")).rows
    assert row["n_unseen"] == (sections["C1"].obs["label"] == "crust").sum()
    assert row["n_regions"] == 3


def test_nulls_are_where_they_should_be(regions):
    report = stimg.bench.run("her2st-labels", regions, labels="label", seeds=1)
    value = report.summary()["value"]
    assert value["commonest region", "auroc", "donor to donor"] == 0.5
    balanced = report.scores().query("method == 'commonest region'")
    there = (
        balanced["library"] != "B1"
    ).to_numpy()  # the commonest region of the others is "bottom", which B1 lacks: nothing is right there
    assert there.sum() == len(balanced) - 1
    np.testing.assert_allclose(balanced["balanced_accuracy"], there / balanced["n_regions"])
    np.testing.assert_allclose(balanced["accuracy"], balanced["chance_accuracy"])  # ties among training regions are broken alike
    assert value["commonest region", "accuracy", "donor to donor"] == value["commonest region", "chance_accuracy", "donor to donor"]
    assert value["row and column", "balanced_accuracy", "donor to donor"] > 0.8  # these regions are rows
    assert abs(value["regions permuted", "balanced_accuracy", "donor to donor"] - balanced["balanced_accuracy"].mean()) < 0.15
    assert not report.data["stamps"]


def test_finished_embeddings_and_colours_are_read(regions):
    for adata in regions.values():
        adata.obsm["X_stimg_colour"] = np.column_stack([adata.obs["array_row"], np.ones(adata.n_obs)]).astype(np.float32)
        stimg.data.ledger.remember(adata, "X_stimg_colour")
    given = embed(load(regions))
    report = stimg.bench.run(
        "her2st-labels", regions, labels="label", features=["X_stimg_colour"], predictions={"mine": given}, nulls=True, seeds=1
    )
    value = report.summary()["value"]
    assert value["colour of the spot", "balanced_accuracy", "donor to donor"] > 0.8
    assert value["mine", "auroc", "donor to donor"] > 0.75
    assert report.data["stamps"] == ["NOT CHECKED: mine does not say what it has seen"]


def test_an_encoder_fitted_on_the_test_donor_stops_the_run(regions):
    def cheat(task, rng):
        seen = stimg.bench.seen_of(regions["A1"], who="an encoder", kind="encoder")
        return stimg.bench.Prediction({library_of(a): np.ones((a.n_obs, 1)) for a in (*task.train, *task.test)}, (seen,))

    with pytest.raises(stimg.bench.LeakageError, match="the encoder 'an encoder' has seen"):
        stimg.bench.run("her2st-labels", regions, labels="label", methods={"mine": cheat}, nulls=False)


def test_sections_that_share_nothing_are_refused(regions):
    for adata in regions.values():
        adata.obs["label"] = adata.obs["donor"].astype(str) + adata.obs["label"].astype(str)
    with pytest.raises(ValueError, match="no section shares 2 regions with sections of other donors"):
        stimg.bench.run("her2st-labels", regions, labels="label")
    report = stimg.bench.run("her2st-clusters", regions, labels="label", seeds=1, nulls=False, methods=["row and column"])
    assert set(report.scores()["library"]) == {"A1", "A2", "B1", "B2"}


@pytest.mark.data
def test_the_pathologists_regions_of_her2st(mirror):
    data = [stimg.datasets.her2st(s) for s in ("B1", "C1", "D1", "E1")]
    report = stimg.bench.run("her2st-labels", data, labels="label", seeds=1, nulls=False, methods=["commonest region", "library depth"])
    rows = report.scores().query("method == 'commonest region'").set_index("library")
    assert rows["n_obs"].to_dict() == {"B1": 228, "C1": 167, "D1": 255, "E1": 534}
    assert rows.loc["B1", "n_unseen"] == 41  # breast glands are in no other section
    assert (rows["n_regions"] == 3).all()
    np.testing.assert_array_equal(rows["accuracy"], rows["chance_accuracy"])
