"""Protocols of predicted expression against naive code: targets, genes, smoothing, scores, and what a method is given."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.stats import pearsonr

import stimg
from stimg.bench.expression import ExpressionProtocol, Target, dense_counts, depth_of, lattice_mean
from stimg.bench.gene_rules import GENE_RULES, Panel
from stimg.bench.protocol import Fold, get
from stimg.bench.sections import shared_genes

EXPRESSION = ("her2st-strict", "triplex", "histogene", "stem", "hest", "hest-no-pca")


def small(**changes):
    fields = {"name": "small", "version": "0", "title": "t", "source": "s", "panels": (Panel("HEG10", "highest mean", 10),)}
    return ExpressionProtocol(**{**fields, **changes})


def naive_target(counts, transform, library):
    out = np.empty(counts.shape)
    depth = counts.sum(1)
    for i in range(len(counts)):
        for j in range(counts.shape[1]):
            c = counts[i, j]
            share = c / depth[i] if library != "none" else 0
            out[i, j] = {
                "log1p_cp10k": np.log1p(1e4 * share),
                "log1p": np.log(1 + c),
                "log2p": np.log2(1 + c),
                "scprep": np.log10(1 + share * np.median(depth)),
            }[transform]
    return out


@pytest.mark.parametrize(("transform", "library"), [("log1p_cp10k", "full"), ("scprep", "full"), ("log1p", "none"), ("log2p", "none")])
def test_targets(loaded, transform, library):
    adata = loaded["A1"]
    protocol = small(target=Target(transform, library))
    genes = list(adata.var_names[[5, 2, 40]])
    wanted = naive_target(adata.X.toarray().astype(float), transform, library)[:, [5, 2, 40]]
    np.testing.assert_allclose(protocol.truth(adata, genes), wanted, atol=1e-12)


def test_the_library_of_a_panel_is_the_panels_own(loaded):
    adata = loaded["A1"]
    genes = list(adata.var_names[:4])
    counts = adata.X[:, :4].toarray().astype(float)
    found = small(target=Target("log1p_cp10k", "panel")).truth(adata, genes)
    np.testing.assert_allclose(found, np.log1p(1e4 * counts / np.maximum(counts.sum(1, keepdims=True), 1e-300)), atol=1e-12)


def test_smoothing_is_the_mean_over_three_by_three(loaded):
    adata = loaded["A1"]
    rc = adata.obsm["stimg_rc"]
    near = np.abs(rc[:, None] - rc[None]).max(-1) <= 1
    values = np.random.default_rng(0).normal(size=(adata.n_obs, 3))
    wanted = np.stack([values[mask].mean(0) for mask in near])
    np.testing.assert_allclose(lattice_mean(adata) @ values, wanted, atol=1e-12)
    part = adata[np.random.default_rng(1).random(adata.n_obs) < 0.6].copy()  # with holes
    rc = part.obsm["stimg_rc"]
    near = np.abs(rc[:, None] - rc[None]).max(-1) <= 1
    np.testing.assert_allclose(lattice_mean(part).toarray(), near / near.sum(1, keepdims=True), atol=1e-12)


def test_smoothing_on_hexagons_takes_the_six_neighbours():
    adata = stimg.datasets.simulate(technology="visium", shape=(7, 6), n_genes=10, rng=0)
    stimg.pp.rasterize(adata)
    xy = adata.obsm["spatial"]
    apart = cdist(xy, xy)
    near = apart <= 1.2 * np.sort(apart, axis=1)[:, 1].min()
    np.testing.assert_allclose(lattice_mean(adata).toarray(), near / near.sum(1, keepdims=True), atol=1e-12)


def test_genes_that_a_section_does_not_list_are_undefined(loaded):
    adata = loaded["A1"]
    found = small().truth(adata, ["g3", "not there"])
    assert np.isnan(found[:, 1]).all()
    assert np.isfinite(found[:, 0]).all()
    counts, measured = dense_counts(adata, ["not there", "g3"])
    assert measured.tolist() == [False, True]
    assert not counts[:, 0].any()


def pooled(loaded, names=None):
    parts = [loaded[n].X.toarray().astype(float) for n in (names or loaded)]
    return np.concatenate(parts)


def test_gene_rules(loaded):
    genes = loaded["A1"].var_names
    counts = pooled(loaded)
    depth = counts.sum(1)
    rule = lambda name, n=12, **k: GENE_RULES[name](loaded, Panel("p", name, n, **k))  # noqa: E731
    order = sorted(range(60), key=lambda g: (-counts[:, g].sum(), g))
    assert rule("highest mean") == list(genes[order[:12]])
    logs = np.log1p(counts)
    assert set(rule("variance of logs")) == set(genes[np.argsort(-logs.var(0))[:12]])
    often = [g for g in range(60) if all((loaded[n].X[:, g].toarray() > 0).mean() >= 0.1 for n in loaded)]
    assert rule("detected everywhere") == list(genes[[g for g in order if g in often][:12]])
    values = np.log1p(1e4 * counts / depth[:, None])
    kept = np.flatnonzero((counts > 0).mean(0) > 0.1)
    x, y = np.log10(values[:, kept].mean(0)), np.log10(values[:, kept].var(0))
    residual = y - np.polyval(np.polyfit(x, y, 2), x)
    assert rule("residual variance") == list(genes[kept[np.argsort(-residual)[:12]]])
    logs2 = np.log2(1 + counts)
    found = rule("mean and spread")
    k = next(k for k in range(1, 61) if len(set(np.argsort(-logs2.mean(0))[:k]) & set(np.argsort(-logs2.std(0))[:k])) >= 12)
    assert set(found) <= set(genes[np.argsort(-logs2.mean(0))[:k]])
    assert set(found) <= set(genes[np.argsort(-logs2.std(0))[:k]])
    assert len(found) == 12


def test_genes_are_chosen_on_training_sections_alone(loaded):
    fold = Fold("C", ("A1", "A2", "B1", "B2"), ("C1",))
    protocol = small(panels=(Panel("HEG10", "highest mean", 10), Panel("HVG10", "residual variance", 10)))
    before, _ = protocol.genes(loaded, fold)
    poisoned = dict(loaded)
    poisoned["C1"] = loaded["C1"].copy()
    poisoned["C1"].X = poisoned["C1"].X * 1000
    assert protocol.genes(poisoned, fold)[0] == before
    leaky = small(panels=(Panel("HEG10", "highest mean", 10, seen="all"),))
    poisoned["C1"].X[:, :5] = 1e6
    assert leaky.genes(poisoned, fold)[0] != leaky.genes(loaded, fold)[0]


def test_a_method_is_given_no_count_of_the_test_sections(loaded):
    task, hidden = small().task(loaded, Fold("C", ("A1", "B1"), ("C1",)))
    (test,) = task.test
    assert test.X is None
    assert test.n_vars == 0
    assert test.n_obs == loaded["C1"].n_obs
    assert {a.obs["library_id"].iloc[0] for a in task.train} == {"A1", "B1"}
    assert len(task.genes) == 10
    np.testing.assert_allclose(hidden.depth["C1"], loaded["C1"].X.toarray().sum(1))
    np.testing.assert_allclose(hidden.training_mean, np.concatenate([task.target(a) for a in task.train]).mean(0))


@pytest.mark.parametrize("average", ["section", "fold"])
def test_scores_are_those_of_scipy(loaded, average):
    protocol = small(average=average, ceiling_splits=3)
    task, hidden = protocol.task(loaded, Fold("B", ("A1", "A2", "C1"), ("B1", "B2")))
    rng = np.random.default_rng(0)
    values = {n: t + rng.normal(0, 1, t.shape) for n, t in hidden.truth.items()}
    values["B1"][:, 3] = 2.5  # a constant: undefined, counts 0
    scored = protocol.score(task, hidden, values)
    units = [["B1"], ["B2"]] if average == "section" else [["B1", "B2"]]
    assert [row["library"] for row in scored.rows] == (["B1", "B2"] if average == "section" else ["all"])
    for row, names in zip(scored.rows, units, strict=True):
        truth, predicted = (np.concatenate([part[n] for n in names]) for part in (hidden.truth, values))
        depth = np.log(np.concatenate([hidden.depth[n] for n in names]))
        r = [0 if np.ptp(predicted[:, g]) == 0 else pearsonr(truth[:, g], predicted[:, g])[0] for g in range(10)]
        assert row["mean_r"] == pytest.approx(np.mean(r))
        assert row["median_r"] == pytest.approx(np.median(r))
        assert row["n_undefined"] == sum(v == 0 for v in r)
        assert row["selected_r"] == pytest.approx(np.mean(r))  # fewer genes than are selected
        assert row["relative_mse"] == pytest.approx(((truth - predicted) ** 2).sum() / ((truth - hidden.training_mean) ** 2).sum())
        assert row["relative_mse_test"] == pytest.approx(((truth - predicted) ** 2).sum() / ((truth - truth.mean(0)) ** 2).sum())
        assert row["flat_r"] == pytest.approx(pearsonr(truth.ravel(), predicted.ravel())[0])
        assert row["spot_r"] == pytest.approx(np.mean([pearsonr(a, b)[0] for a, b in zip(truth, predicted, strict=True)]))
        lines = [v - np.stack([np.polyval(np.polyfit(depth, c, 1), depth) for c in v.T], 1) for v in (truth, predicted)]
        partial = [0 if r[g] == 0 else pearsonr(lines[0][:, g], lines[1][:, g])[0] for g in range(10)]
        assert row["depth_residual_r"] == pytest.approx(np.mean(partial), abs=1e-9)
        assert row["fraction_of_ceiling"] == pytest.approx(row["mean_r"] / row["ceiling"])
    assert len(scored.details) == 10 * len(units)


def test_a_perfect_prediction_scores_best_and_its_order_does_not_matter(loaded):
    protocol = small()
    task, hidden = protocol.task(loaded, Fold("C", ("A1", "B1"), ("C1",)))
    (row,) = protocol.score(task, hidden, hidden.truth).rows
    assert row["mean_r"] == pytest.approx(1)
    assert row["relative_mse"] == 0
    order = np.random.default_rng(0).permutation(loaded["C1"].n_obs)
    noisy = hidden.truth["C1"] + np.random.default_rng(1).normal(size=hidden.truth["C1"].shape)
    first = protocol.score(task, hidden, {"C1": noisy}).rows[0]
    shuffled = replace(hidden, truth={"C1": hidden.truth["C1"][order]}, depth={"C1": hidden.depth["C1"][order]})
    second = protocol.score(task, shuffled, {"C1": noisy[order]}).rows[0]
    assert {k: pytest.approx(v, abs=1e-9) for k, v in first.items() if isinstance(v, float)} == {
        k: v for k, v in second.items() if isinstance(v, float)
    }


def test_tables_are_put_into_the_order_of_the_task(loaded):
    protocol = small()
    task, hidden = protocol.task(loaded, Fold("C", ("A1", "B1"), ("C1",)))
    import pandas as pd

    table = pd.DataFrame(hidden.truth["C1"], index=loaded["C1"].obs_names, columns=list(task.genes))
    mixed = table.iloc[::-1, ::-1].assign(other=1.0)
    np.testing.assert_array_equal(protocol.check(task, {"C1": mixed}, "x")["C1"], hidden.truth["C1"])
    with pytest.raises(ValueError, match=r"x gave a table for C1 that lacks 1 of 10 genes"):
        protocol.check(task, {"C1": table.iloc[:, 1:]}, "x")
    with pytest.raises(ValueError, match=r"x gave \(5, 10\) values for C1; wanted \(72, 10\)"):
        protocol.check(task, {"C1": np.zeros((5, 10))}, "x")
    with pytest.raises(ValueError, match=r"x gave no values for \['C1'\] \(found \['D'\]\)"):
        protocol.check(task, {"D": table}, "x")


def test_folds(loaded):
    assert [(f.name, f.test) for f in small().folds(loaded)] == [("A", ("A1", "A2")), ("B", ("B1", "B2")), ("C", ("C1",))]
    assert [f.test for f in small(folds_by="section").folds(loaded)] == [("A1",), ("A2",), ("B1",), ("B2",), ("C1",)]
    (fold,) = small(folds_by="one section").folds(loaded)
    assert fold.test == ("B1",)
    assert set(fold.train) == {"A1", "A2", "B2", "C1"}
    one = {k: v for k, v in loaded.items() if k[0] == "A"}
    with pytest.raises(ValueError, match=r"There is one donor \(\['A'\]\)"):
        small().folds(one)
    with pytest.raises(ValueError, match="There is one section"):
        small(folds_by="one section").folds({"A1": loaded["A1"]})


@pytest.mark.parametrize("name", EXPRESSION)
def test_hashes_change_with_whatever_moves_a_number(name):
    protocol = get(name)
    assert protocol.hash == get(name).hash
    others = [
        replace(protocol, version="9"),
        replace(protocol, average="fold" if protocol.average == "section" else "section"),
        replace(protocol, panels=(replace(protocol.panels[0], n=7),)),
        replace(protocol, target=replace(protocol.target, smooth=not protocol.target.smooth)),
    ]
    assert len({p.hash for p in others} | {protocol.hash}) == 5
    assert replace(protocol, remarks=("other words",), title="other").hash == protocol.hash


def test_options_that_contradict_each_other_are_refused():
    with pytest.raises(ValueError, match="raw logs have no library"):
        Target("log1p", "full")
    with pytest.raises(ValueError, match="transform='sqrt' is not known"):
        Target("sqrt")
    with pytest.raises(ValueError, match="Several panels with library='panel'"):
        small(panels=(Panel("a", "highest mean", 3), Panel("b", "highest mean", 4)), target=Target("log1p_cp10k", "panel"))
    with pytest.raises(ValueError, match="There is no gene rule named 'best'"):
        GENE_RULES["best"]


def test_too_few_genes_are_refused(loaded):
    few = {n: a[:, [0 if n[0] == "A" else 1]].copy() for n, a in loaded.items()}
    with pytest.raises(ValueError, match=r"panel 'HEG10' has 0 genes in these sections; wanted at least 2"):
        small().task(few, Fold("C", ("A1", "B1"), ("C1",)))


def test_the_depth_is_that_of_all_genes(loaded):
    np.testing.assert_allclose(depth_of(loaded["A1"]), loaded["A1"].X.toarray().sum(1))
    assert shared_genes(loaded) == list(loaded["A1"].var_names)


@pytest.mark.slow
def test_models_get_a_p_value_that_keeps_blocks_together(slides):
    from stimg.image.split import square_blocks
    from stimg.metrics import block_permutation_p

    protocol = small(ceiling_splits=0, nulls=("training mean",))
    loaded = stimg.bench.load_sections(slides)
    truth = {n: protocol.task(loaded, f)[1].truth[n] for f in protocol.folds(loaded) for n in f.test}
    rng = np.random.default_rng(0)
    good = {n: values + rng.normal(0, 0.1, values.shape) for n, values in truth.items()}
    noise = {n: rng.normal(size=values.shape) for n, values in truth.items()}
    report = stimg.bench.run(protocol, slides, predictions={"good": good, "noise": noise}, seeds=1, progress=False)
    rows = report.scores().set_index(["method", "library"]).sort_index()["p_block"]
    assert rows["training mean"].isna().all()
    assert (rows["good"] < 0.1).all()  # four blocks can be laid in 24 ways
    assert rows["noise"].median() > 0.2
    rc = loaded["C1"].obsm["stimg_rc"]
    blocks = square_blocks(rc.astype(float), 5)
    assert rows["noise"]["C1"] == block_permutation_p(truth["C1"], noise["C1"], blocks, n=99, rng=0, rc=rc).p
