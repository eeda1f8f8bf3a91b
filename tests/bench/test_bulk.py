"""Bulk expression against naive code: cohorts, folds, what methods are given, scores over all folds, chance, bad input."""

from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.stats import pearsonr

import stimg
from stimg.bench.protocols.bulk import pairwise_r

BULK = stimg.bench.get_protocol("bulk")
GENES = [f"g{i}" for i in range(40)]


def make_cohort(n=48, seed=0, n_sites=4):
    """Pairs of samples a donor, sites with an effect of their own, two subtypes, and slide features that tell three programmes."""
    rng = np.random.default_rng(seed)
    programme, subtype, site = rng.normal(size=(n, 3)), rng.integers(0, 2, n), np.arange(n) // 2 % n_sites
    log = rng.normal(4, 1, 40) + programme @ rng.normal(0, 0.4, (3, 40)) + rng.normal(0, 0.4, (n_sites, 40))[site]
    log[:, :10] += subtype[:, None]
    obs = pd.DataFrame(
        {
            "donor": [f"D{i // 2}" for i in range(n)],
            "site": [f"S{s}" for s in site],
            "subtype": np.array(["basal", "luminal"])[subtype],
        },
        index=[f"s{i:02d}" for i in range(n)],
    )
    adata = ad.AnnData(rng.poisson(np.exp(log)).astype(np.float32), obs=obs, var=pd.DataFrame(index=GENES))
    adata.obsm["X_slide"] = np.column_stack([programme + rng.normal(0, 0.3, programme.shape), rng.normal(size=(n, 4))])
    return adata


@pytest.fixture
def cohort():
    return make_cohort()


def target(adata):
    x = np.asarray(adata.X, dtype=float)
    return np.log1p(1e6 * x / x.sum(axis=1, keepdims=True))


def naive_r(a, b):
    return 0.0 if len(a) < 3 or np.ptp(a) < 1e-9 or np.ptp(b) < 1e-9 else float(pearsonr(a, b)[0])


def value(report, method, metric, samples="all"):
    return report.summary().loc[(method, metric, samples), "value"]


def test_methods_get_no_expression_and_no_subtype_of_the_test(cohort):
    _, sections = BULK.load(cohort, features=("X_slide",))
    folds = BULK.folds(sections)
    assert [f.name for f in folds] == ["S0", "S1", "S2", "S3"]
    for fold in folds:
        task, hidden = BULK.task(sections, fold)
        (train,), (test,) = task.train, task.test
        assert test.X is None
        assert test.n_vars == 0
        assert "subtype" not in test.obs
        assert set(test.obsm) == {"X_slide"}
        assert not set(train.obs["site"]) & set(test.obs["site"])
        assert not set(train.obs["donor"]) & set(test.obs["donor"])
        assert train.n_obs + test.n_obs == 48
        np.testing.assert_allclose(task.target(train), target(cohort[train.obs_names]), rtol=1e-6)
        np.testing.assert_allclose(hidden.truth[fold.name], target(cohort[test.obs_names]), rtol=1e-6)


def test_every_score_against_naive_code(cohort):
    noise = np.random.default_rng(1).normal(0, 0.4, (48, 40))
    cohort.layers["mine"] = 0.6 * target(cohort) + noise
    report = stimg.bench.run("bulk", cohort, predictions={"mine": "mine"}, nulls=False, seeds=1)
    t, p = target(cohort), np.asarray(cohort.layers["mine"])
    site, subtype = (cohort.obs[c].to_numpy() for c in ("site", "subtype"))
    mean = np.stack([t[site != s].mean(axis=0) for s in site])
    kinds = {"all": (np.full(48, True), site), "within subtype": (np.full(48, True), np.char.add(site.astype(str), subtype.astype(str)))}
    kinds |= {f"subtype {s}": (subtype == s, site) for s in ("basal", "luminal")}
    assert set(report.scores()["samples"]) == set(kinds)
    for name, (which, cell) in kinds.items():
        a, b, c, m = t[which], p[which], cell[which], mean[which]
        x, y = (np.stack([v[i] - v[c == c[i]].mean(axis=0) for i in range(len(v))]) for v in (a, b))
        r = [naive_r(x[:, g], y[:, g]) for g in range(40)]
        expected = {
            "mean_r": np.mean(r),
            "median_r": np.median(r),
            "relative_mse": ((a - b) ** 2).sum() / ((a - m) ** 2).sum(),
            "spread": np.median([y[:, g].std() / x[:, g].std() for g in range(40)]),
            "raw_r": np.mean([naive_r(a[:, g], b[:, g]) for g in range(40)]),
            "sample_r": np.mean([naive_r(a[i], b[i]) for i in range(len(a))]),
            "target_r": np.corrcoef(a)[~np.eye(len(a), dtype=bool)].mean(),
            "prediction_r": np.corrcoef(b)[~np.eye(len(b), dtype=bool)].mean(),
        }
        for metric, number in expected.items():
            assert value(report, "mine", metric, name) == pytest.approx(number, rel=1e-4), (name, metric)
    table = report.details()
    assert list(table["gene"]) == GENES
    assert set(table["fold"]) == {"all folds"}
    assert table["r"].mean() == pytest.approx(value(report, "mine", "mean_r"))


def test_what_is_the_same_for_a_whole_fold_has_no_r(cohort):
    constant = {
        "zero": lambda task, rng: {n: np.zeros((a.n_obs, 40)) for n, a in task.asked().items()},
        "by site": lambda task, rng: {n: np.tile(rng.normal(8, 3, 40), (a.n_obs, 1)) for n, a in task.asked().items()},
    }
    report = stimg.bench.run("bulk", cohort, methods=constant, seeds=1)
    for name in (*constant, "mean of training samples", "site mean"):
        own = report.scores()
        own = own[own["method"] == name]
        assert (own["mean_r"] == 0).all()
        assert (own["n_undefined"] == 40).all()
        assert (own["spread"] == 0).all()
    assert value(report, "mean of training samples", "relative_mse") == 1
    assert value(report, "mean of training samples", "raw_r") < -0.1  # the fault of pooling folds as they are
    assert value(report, "site mean", "raw_r") > 0.2
    assert value(report, "site mean", "relative_mse") < 1
    assert value(report, "mean of training samples", "prediction_r") > 0.95 > value(report, "mean of training samples", "target_r")
    within = report.scores().query("method == 'subtype mean' and samples != 'all'")
    assert (within["mean_r"] == 0).all()
    assert value(report, "subtype mean", "mean_r") > 0.1


def test_truth_scores_one_and_chance_nothing(cohort):
    truth = {n: target(cohort[[n]])[0] for n in cohort.obs_names}

    def perfect(task, rng):
        return {n: np.stack([truth[s] for s in a.obs_names]) for n, a in task.asked().items()}

    report = stimg.bench.run("bulk", cohort, methods={"truth": perfect}, features=["X_slide"], seeds=[0, 1, 2])
    best = report.summary().loc["truth"]["value"]
    for metric, ideal in {"mean_r": 1, "median_r": 1, "spread": 1, "raw_r": 1, "sample_r": 1, "relative_mse": 0}.items():
        np.testing.assert_allclose(best[metric], ideal, atol=1e-6)
    np.testing.assert_allclose(best["target_r"], best["prediction_r"])
    assert abs(value(report, "another sample", "mean_r")) < 0.08
    assert value(report, "another sample", "spread") == pytest.approx(1, abs=0.15)
    assert value(report, "another sample", "sample_r") == pytest.approx(value(report, "another sample", "target_r"), abs=0.05)
    assert 0.4 < value(report, "slide features, ridge", "mean_r") < 1
    assert value(report, "slide features, ridge", "relative_mse") < 0.9


def test_permuted_samples_are_at_chance(cohort):
    shuffled = cohort[np.random.default_rng(0).permutation(48)]
    cohort.obsm["X_slide"] = np.asarray(shuffled.obsm["X_slide"])
    report = stimg.bench.run("bulk", cohort, features=["X_slide"], seeds=1)
    assert abs(value(report, "slide features, ridge", "mean_r")) < 0.15


def test_pairwise_r_of_constant_profiles_and_of_one():
    x = np.random.default_rng(0).normal(size=(5, 30))
    x[2] = 3.0
    expected = np.mean([naive_r(x[i], x[j]) for i in range(5) for j in range(5) if i != j])
    assert pairwise_r(x) == pytest.approx(expected)
    assert pairwise_r(x[:1]) == 0
    assert pairwise_r(np.tile(x[0], (4, 1))) == pytest.approx(1)


def test_donors_and_sites_are_never_divided(cohort):
    cohort.obs["site"] = cohort.obs["site"].astype(object)
    cohort.obs.loc["s00", "site"] = "S2"  # its donor has the other sample at S0
    _, sections = BULK.load(cohort)
    assert sorted(sections) == ["S0+S2", "S1", "S3"]
    assert sections["S0+S2"].n_obs == 24
    del cohort.obs["site"]
    _, sections = BULK.load(cohort)
    assert len(sections) == 24
    folds = BULK.folds(sections)
    assert [f.name for f in folds] == [f"group {i}" for i in range(1, 6)]
    assert sorted(n for f in folds for n in f.test) == sorted(sections)
    assert {sum(sections[n].n_obs for n in f.test) for f in folds} <= {8, 10}
    few = [f.test for f in BULK.folds({n: sections[n] for n in ("D1", "D2", "D3")})]
    assert sorted(few) == [("D1",), ("D2",), ("D3",)]
    cohort.obs["site"] = "one"
    assert len(BULK.load(cohort)[1]) == 24  # one site tells nothing apart: donors


def test_samples_alone_and_fewer_than_three_are_undefined(cohort):
    few = cohort[["s00", "s01", "s02", "s04"]].copy()
    few.obs["site"] = ["a", "a", "b", "c"]
    report = stimg.bench.run("bulk", few, seeds=1)
    rows = report.scores().query("samples == 'all'")
    assert (rows["n_alone"] == 2).all()
    assert (rows["n_undefined"] == 40).all()
    assert (rows["mean_r"] == 0).all()


def test_the_order_of_the_samples_does_not_matter(cohort):
    shuffled = cohort[np.random.default_rng(3).permutation(48)].copy()
    one, two = (stimg.bench.run("bulk", a, features=["X_slide"], seeds=2).summary()["value"] for a in (cohort, shuffled))
    np.testing.assert_allclose(one.to_numpy(), two.to_numpy(), rtol=1e-5, atol=1e-6)  # parts keep float32


def write(folder, cohort, **changes):
    table = cohort.obs.rename_axis("sample").reset_index()
    files = []
    for i, name in enumerate(cohort.obs_names):
        tiles = np.stack([cohort.obsm["X_slide"][i] + d for d in (-0.5, 0.5)]) if i % 2 else cohort.obsm["X_slide"][i]
        np.save(folder / f"{name}.npy", tiles)
        files.append(f"{name}.npy")
    table = table.assign(features=files)
    table = table.assign(**changes)
    table.to_csv(folder / "cohort.csv", index=False)
    pd.DataFrame(np.asarray(cohort.X), index=cohort.obs_names, columns=GENES).to_csv(folder / "expression.csv")


def test_a_folder_is_read_as_the_same_cohort(tmp_path, cohort):
    write(tmp_path, cohort)
    options = {"methods": ["slide features, ridge", "subtype mean"], "nulls": False, "features": ["X_slide"], "seeds": 1}
    expected = stimg.bench.run("bulk", cohort, **options).summary()["value"]
    found = stimg.bench.run("bulk", tmp_path, **options).summary()["value"]
    pd.testing.assert_series_equal(found, expected, rtol=1e-5)
    (tmp_path / "expression.csv").unlink()
    cohort[::-1].copy().write_h5ad(tmp_path / "expression.h5ad")
    pd.testing.assert_series_equal(stimg.bench.run("bulk", str(tmp_path), **options).summary()["value"], expected, rtol=1e-5)


def test_spots_are_summed_and_their_features_averaged(slides):
    for name, a in slides.items():
        a.obsm["X_slide"] = np.random.default_rng(len(name)).normal(size=(a.n_obs, 3))
        a.obs["subtype"] = f"of {name[0]}"
    _, sections = BULK.load(slides, features=("X_slide",))
    assert sorted(sections) == ["A", "B", "C"]
    assert list(sections["A"].obs_names) == ["A1", "A2"]
    for name in ("A1", "A2"):
        at = list(sections["A"].obs_names).index(name)
        np.testing.assert_array_equal(sections["A"].X.toarray()[at], slides[name].X.toarray().sum(axis=0))
        np.testing.assert_allclose(sections["A"].obsm["X_slide"][at], slides[name].obsm["X_slide"].mean(axis=0))
    assert list(sections["C"].obs["subtype"]) == ["of C"]


def test_a_model_that_has_seen_the_donor_is_found(cohort):
    seen = stimg.bench.seen_of(cohort[:4], who="encoder", kind="encoder", library_key="")

    def mine(task, rng):
        return stimg.bench.Prediction({n: np.zeros((a.n_obs, 40)) for n, a in task.asked().items()}, (seen,))

    with pytest.raises(stimg.bench.LeakageError, match="'encoder' has seen 2 of 12 test observations, recognised by their counts"):
        stimg.bench.run("bulk", cohort, methods={"mine": mine}, nulls=False, seeds=1)


def test_an_interrupted_run_gives_the_same_report(tmp_path, cohort):
    del cohort.obs["subtype"]
    options = {"features": ["X_slide"], "seeds": 2, "out": tmp_path / "run"}
    first = stimg.bench.run("bulk", cohort, **options)
    for part in sorted((tmp_path / "run" / "parts").glob("*.json"))[::3]:
        part.unlink()
    again = stimg.bench.run("bulk", cohort, **options)
    assert first.data["summary"] == again.data["summary"]
    assert first.data["details"] == again.data["details"]


def _bad(column, values):
    return lambda a: a.obs.__setitem__(column, values)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda a: a.obs.pop("donor"), {}, "donor of library 's00' is missing"),
        (_bad("donor", "same"), {}, r"hang together through shared donors and sites \(\['S0\+S1\+S2\+S3'\]\)"),
        (_bad("site", [None] + ["a", "b"] * 23 + ["a"]), {}, "site of 1 of 48 samples is missing, such as .'s00'"),
        (lambda a: a.X.__setitem__((0, 0), -1), {}, "negative values"),
        (lambda a: a.X.__setitem__((0, 0), np.nan), {}, "NaN|not finite"),
        (lambda a: a.X.__setitem__(3, 0), {}, "1 samples have no expression at all, such as .'s03'"),
        (lambda a: setattr(a, "obs_names", ["s"] * 48), {}, "samples"),
        (lambda a: setattr(a, "var_names", ["g"] * 40), {}, "gene names"),
        (lambda a: None, {"features": ["X_slides"]}, "X_slides"),
        (lambda a: None, {"labels": "subtype"}, "labels='subtype': bulk samples have no known regions"),
        (lambda a: None, {"methods": ["slide features, ridge"], "nulls": False}, "needs obsm"),
        (lambda a: None, {"methods": {"m": lambda task, rng: {n: np.full((x.n_obs, 40), np.inf) for n, x in task.asked().items()}}}, "method 'm' gave"),
        (lambda a: None, {"methods": {"m": lambda task, rng: {n: np.zeros((x.n_obs, 39)) for n, x in task.asked().items()}}}, r"wanted \(12, 40\)"),
    ],
)  # fmt: skip
def test_bad_cohorts(cohort, change, options, message):
    change(cohort)
    with pytest.raises((ValueError, KeyError), match=message):
        stimg.bench.run("bulk", cohort, seeds=1, **options)


def test_bad_sets_of_cohorts(cohort):
    other = cohort.copy()
    other.var_names = [f"ENSG{i}" for i in range(40)]
    other.obs_names = [f"t{i}" for i in range(48)]
    with pytest.raises(ValueError, match=r"2 tables have no gene in common, such as \['g0'.* against \['ENSG0'"):
        stimg.bench.run("bulk", [cohort, other], seeds=1)
    with pytest.raises(ValueError, match="48 samples occur twice"):
        stimg.bench.run("bulk", [cohort, cohort.copy()], seeds=1)
    spots = ad.AnnData(
        sp.csr_matrix(np.ones((4, 3), np.float32)),
        obs=pd.DataFrame({"library_id": "L", "donor": "D", "subtype": ["x", "y"] * 2}, index=list("abcd")),
    )
    with pytest.raises(ValueError, match="sample 'L' has several values of 'subtype'"):
        BULK.load(spots)


@pytest.mark.parametrize(
    ("break_it", "error", "message"),
    [
        (lambda f: (f / "expression.csv").unlink(), FileNotFoundError, r"wanted one of \['expression.csv', 'expression.h5ad'\]"),
        (lambda f: (f / "s03.npy").unlink(), FileNotFoundError, "features of sample 's03' are missing"),
        (lambda f: np.save(f / "s03.npy", np.zeros((2, 2, 2))), ValueError, r"s03.npy has shape \(2, 2, 2\); wanted \(dim,\) or \(tiles, dim\)"),
        (lambda f: np.save(f / "s03.npy", np.zeros(3)), ValueError, "features of 's03' and 's00' have 3 and 7 dimensions"),
        (lambda f: (f / "cohort.csv").write_text("sample,site\ns00,a\n"), ValueError, r"lacks the columns \['donor'\]"),
        (lambda f: (f / "cohort.csv").write_text("sample,donor\ns00,a\ns00,b\n"), ValueError, "without a name or twice"),
        (lambda f: (f / "cohort.csv").write_text("sample,donor\ns00,a\nt9,b\n"), ValueError, "no expression of 1 of 2 samples of cohort.csv, such as .'t9'"),
        (lambda f: (f / "expression.csv").write_text("sample,g0\ns00,high\n"), ValueError, "wanted numbers after the first column"),
    ],
)  # fmt: skip
def test_bad_folders(tmp_path, cohort, break_it, error, message):
    write(tmp_path, cohort)
    break_it(tmp_path)
    with pytest.raises(error, match=message):
        stimg.bench.run("bulk", tmp_path, features=["X_slide"], seeds=1)


def test_the_protocol_is_what_it_was():
    assert BULK.version == "1.0"
    assert BULK.metrics[0].name == "mean_r"
    assert BULK.hash != replace(BULK, n_folds=4).hash
    assert BULK.hash == replace(BULK, remarks=()).hash
    assert stimg.bench.list_protocols().loc["bulk", "level"] == "donor"


@pytest.mark.slow
@pytest.mark.data
def test_sums_of_her2st_sections(mirror):
    adata = stimg.datasets.her2st(["B1", "B2", "B3", "C1", "C2", "D1", "D2", "E1", "E2"])
    report = stimg.bench.run("bulk", adata, seeds=1)
    assert [f["name"] for f in report.data["split"]["folds"]] == ["B", "C", "D", "E"]
    assert value(report, "mean of training samples", "sample_r") > 0.8  # nothing was predicted
    assert value(report, "mean of training samples", "raw_r") < -0.5
    assert value(report, "mean of training samples", "mean_r") == 0
    assert any("no benchmark" in remark for remark in report.data["protocol"]["remarks"])
