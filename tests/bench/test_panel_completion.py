"""Panel completion: hidden genes that are not there, every rival against plain linear algebra, the published list and its leak."""

import pickle
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import stimg
from stimg.bench import LeakageError, Panel, Prediction, get_protocol, load_sections
from stimg.bench.method import METHODS, load
from stimg.bench.methods import completion

PROTOCOL = replace(get_protocol("panel-completion"), ceiling_splits=2)
METHODS_OF_GRID = ("PCA + ridge, tuned", "PCA + neighbours + ridge, tuned")
BLIND = ("observed depth line", "best co-expressed gene", "mean of 20 co-expressed genes", "PCA-50 + ridge", *METHODS_OF_GRID)
MARK = 987_654.0


def simulated(**options):
    defaults = {"technology": "st", "shape": (8, 8), "n_genes": 60, "n_donors": 3, "n_sections": 2, "rng": 1}
    return stimg.datasets.simulate(**{**defaults, **options})


@pytest.fixture(scope="module")
def sections():
    return load_sections(simulated())


@pytest.fixture(scope="module")
def hexagonal():
    adata = simulated(technology="visium", n_donors=2)
    keep = np.random.default_rng(0).random(adata.n_obs) < 0.85
    return load_sections(adata[keep].copy())


def task_of(sections, donor, protocol=PROTOCOL):
    (fold,) = [f for f in protocol.folds(sections) if f.name == donor]
    return protocol.task(sections, fold)


def answer(name, task):
    load()
    found = METHODS[name].function(task, np.random.default_rng(0))
    return PROTOCOL.check(task, found.values if isinstance(found, Prediction) else found, name), getattr(found, "notes", {})


# ------------------------------------------------------------------------------------------------------------------------- what is hidden


def test_a_fifth_of_the_panel_is_hidden_and_drawn_by_the_seed(sections):
    task, _ = task_of(sections, "D1")
    panel = list(task.extra["panel"])
    drawn = sorted(np.random.default_rng(0).choice(len(panel), round(0.2 * len(panel)), replace=False))
    assert list(task.genes) == [panel[i] for i in drawn]
    assert set(task_of(sections, "D1", replace(PROTOCOL, draw=1))[0].genes) != set(task.genes)
    assert len(task_of(sections, "D1", replace(PROTOCOL, hidden_share=0.5))[0].genes) == round(0.5 * len(panel))


def test_hidden_genes_are_not_in_the_test_sections(sections):
    before, _ = task_of(sections, "D2")
    marked = {}
    for name, adata in sections.items():
        marked[name] = adata.copy()
        if name.startswith("D2"):
            dense = adata.X.toarray()
            dense[:3, adata.var_names.get_indexer(list(before.genes))] = MARK
            marked[name].X = sp.csr_matrix(dense)
    task, hidden = task_of(marked, "D2")
    assert [a.obs["library_id"].iloc[0] for a in task.test] == ["D2S1", "D2S2"]
    for a in task.test:
        assert list(a.var_names) == [g for g in task.extra["panel"] if g not in task.genes]
        assert not a.is_view
        assert a.raw is None
        assert not a.layers
    assert np.float32(MARK).tobytes() not in pickle.dumps(task)
    assert np.float32(MARK).tobytes() in pickle.dumps(hidden)
    assert all(not a.obs["donor"].isin(["D2"]).any() for a in task.train)


def test_poisoned_values_change_no_prediction(sections):
    """Neither those of the hidden genes nor those of genes outside the panel."""
    small = replace(PROTOCOL, panel=Panel("40", "highest mean", 40))
    before, truth = task_of(sections, "D3", small)
    poisoned = {}
    for name, adata in sections.items():
        poisoned[name] = adata.copy()
        if name.startswith("D3"):
            genes = [g for g in adata.var_names if g in before.genes or g not in before.extra["panel"]]
            dense = adata.X.toarray()
            dense[:, adata.var_names.get_indexer(genes)] = np.random.default_rng(5).poisson(30, (adata.n_obs, len(genes)))
            poisoned[name].X = sp.csr_matrix(dense)
    after, changed = task_of(poisoned, "D3", small)
    assert before.genes == after.genes
    assert before.extra["panel"] == after.extra["panel"]
    assert not np.allclose(truth.truth["D3S1"], changed.truth["D3S1"])
    for name in BLIND:
        first, second = answer(name, before)[0], answer(name, after)[0]
        for key in first:
            np.testing.assert_array_equal(first[key], second[key])


def test_the_panel_is_chosen_without_the_test_donor(sections):
    before, _ = task_of(sections, "D1")
    other = {n: a.copy() for n, a in sections.items()}
    for name in ("D1S1", "D1S2"):
        other[name].X = sp.csr_matrix(np.random.default_rng(0).poisson(3, other[name].shape).astype(np.float32))
    after, hidden = task_of(other, "D1")
    assert before.extra["panel"] == after.extra["panel"]
    assert hidden.seen[0].donors == ("D2", "D3")


def test_target_is_that_of_the_full_library(sections):
    task, hidden = task_of(sections, "D1")
    whole = sections["D1S2"]
    counts = whole[:, list(task.genes)].X.toarray().astype(float)
    np.testing.assert_allclose(hidden.truth["D1S2"], np.log1p(1e4 * counts / whole.X.toarray().sum(1, keepdims=True)), rtol=1e-6)


def test_a_gene_that_a_test_section_does_not_list_counts_as_undefined(sections):
    task, _ = task_of(sections, "D1")
    lost = [task.genes[0], next(g for g in task.extra["panel"] if g not in task.genes)]
    found = dict(sections)
    found["D1S1"] = sections["D1S1"][:, ~sections["D1S1"].var_names.isin(lost)].copy()
    again, hidden = task_of(found, "D1")
    assert again.genes == task.genes
    assert np.isnan(hidden.truth["D1S1"][:, 0]).all()
    for name in BLIND:
        answer(name, again)
    truth = {n: np.nan_to_num(v) for n, v in hidden.truth.items()}
    first, second = PROTOCOL.score(again, hidden, truth).rows
    assert (first["n_undefined"], second["n_undefined"]) == (1, 0)
    assert first["mean_r"] == pytest.approx(1 - 1 / len(task.genes))


def test_bad_data(sections):
    with pytest.raises(ValueError, match="There is one donor"):
        PROTOCOL.folds({n: a for n, a in sections.items() if n.startswith("D1")})
    with pytest.raises(ValueError, match=r"the panel 'few' has 4 genes in these sections; wanted at least 10"):
        task_of(sections, "D1", replace(PROTOCOL, panel=Panel("few", "highest mean", 4)))
    with pytest.raises(ValueError, match=r"hidden_share=1\.5 is not between 0 and 1"):
        replace(PROTOCOL, hidden_share=1.5)


# -------------------------------------------------------------------------------------------------------------------------------- methods


class Plain:
    """One section by dense arrays: shown genes on their own depth, hidden genes on the full one, neighbours by distance."""

    def __init__(self, adata, panel, genes, full=None):
        shown = [g for g in panel if g not in genes]
        counts = np.asarray(adata[:, shown].X.todense(), dtype=float)
        depth = np.maximum(counts.sum(1, keepdims=True), 1)
        self.depth = np.log(depth.ravel())
        self.x = np.log1p(1e4 * counts / depth)
        self.x = self.x - self.x.mean(0)
        whole = adata if full is None else full
        hidden = np.asarray(whole[:, list(genes)].X.todense(), dtype=float)
        self.raw = np.log1p(1e4 * hidden / np.asarray(whole.X.sum(1), dtype=float).reshape(-1, 1))
        self.y = self.raw - self.raw.mean(0)
        spec = next(iter(adata.uns["stimg"]["raster"].values()))
        rc = np.asarray(adata.obsm["stimg_rc"], dtype=float)
        reach = 1.5
        if spec["lattice"] == "hex":
            rc = np.column_stack([rc[:, 0] * np.sqrt(3) / 2, rc[:, 1] + 0.5 * (rc[:, 0] % 2 == int(spec["hex_parity"]))])
            reach = 1.1
        gap = np.hypot(*(rc[:, None] - rc[None]).transpose(2, 0, 1))
        self.near = [np.flatnonzero((row > 0) & (row < reach)) for row in gap]

    def around(self):
        return np.array([self.x[near].mean(0) if len(near) else self.x.mean(0) for near in self.near])


def plain_r(a, b):
    a, b = a - a.mean(0), b - b.mean(0)
    scale = np.sqrt((a * a).sum(0) * (b * b).sum(0))
    return np.where(scale > 1e-9, (a * b).sum(0) / np.maximum(scale, 1e-9), 0)


def plain_pca(train, rank, penalty, *, spatial):
    x, y = np.vstack([s.x for s in train]), np.vstack([s.y for s in train])
    axes = np.linalg.svd(x, full_matrices=False)[2][:rank].T
    features = lambda s: np.hstack([s.x @ axes, s.around() @ axes]) if spatial else s.x @ axes  # noqa: E731
    f = np.vstack([features(s) for s in train])
    strength = penalty * (f**2).sum() / f.shape[1]
    weights = np.linalg.lstsq(np.vstack([f, np.sqrt(strength) * np.eye(f.shape[1])]), np.vstack([y, np.zeros((f.shape[1], y.shape[1]))]))[0]
    return lambda s: features(s) @ weights


def plain_tuned(train, groups, *, spatial):
    best = (-np.inf, 0, 0.0)
    for rank in (5, 10, 15, 20, 30, 50):
        for penalty in (1e-3, 1e-2, 1e-1, 1.0):
            scores = []
            for left in sorted(set(groups)):
                model = plain_pca([s for s, g in zip(train, groups, strict=True) if g != left], rank, penalty, spatial=spatial)
                scores += [plain_r(model(s), s.y).mean() for s, g in zip(train, groups, strict=True) if g == left]
            best = max(best, (float(np.mean(scores)), rank, penalty))
    return best[1:]


def plain(name, train, groups, test):
    """Return predictions for ``test`` up to a constant of each gene."""
    x, y = np.vstack([s.x for s in train]), np.vstack([s.y for s in train])
    if name == "observed depth line":
        d = np.concatenate([s.depth - s.depth.mean() for s in train])
        return np.outer(test.depth, d @ y / (d @ d))
    if name.startswith("PCA"):
        spatial = "neighbours" in name
        rank, penalty = (50, 1e-3) if "tuned" not in name else plain_tuned(train, groups, spatial=spatial)
        return plain_pca(train, rank, penalty, spatial=spatial)(test)
    k = 1 if name.startswith("best") else 20
    out = np.zeros((len(test.x), y.shape[1]))
    spread = x.std(0)
    for gene in range(y.shape[1]):
        r = plain_r(x, y[:, [gene]])
        partners = sorted(range(len(r)), key=lambda i: -r[i])[:k]
        feature = np.mean([x[:, i] / spread[i] for i in partners], axis=0)
        slope = feature @ y[:, gene] / (feature @ feature)
        out[:, gene] = slope * np.mean([test.x[:, i] / spread[i] for i in partners], axis=0)
    return out


@pytest.mark.parametrize("name", BLIND)
@pytest.mark.parametrize("kind", ["square, three donors", "hexagonal, one training donor"])
def test_methods_agree_with_plain_linear_algebra(sections, hexagonal, name, kind):
    found = sections if kind.startswith("square") else hexagonal
    task, _ = task_of(found, "D2")
    panel, genes = task.extra["panel"], task.genes
    train = [Plain(a, panel, genes) for a in task.train]
    column = "donor" if kind.startswith("square") else "library_id"
    groups = [a.obs[column].iloc[0] for a in task.train]
    values, notes = answer(name, task)
    level = np.vstack([s.raw for s in train]).mean(0)
    for a in task.test:
        library = a.obs["library_id"].iloc[0]
        test = Plain(a, panel, genes, full=found[library])
        expected = plain(name, train, groups, test)
        difference = values[library] - expected
        np.testing.assert_allclose(difference - difference.mean(0), 0, atol=1e-6)
        if name != "observed depth line" and "neighbours" not in name:  # these follow the section's own depth, and its border
            np.testing.assert_allclose(values[library].mean(0), level, atol=1e-6)
    if name in METHODS_OF_GRID:
        assert (notes["rank"], notes["penalty"]) == plain_tuned(train, groups, spatial="neighbours" in name)


def test_one_training_section_is_not_tuned(hexagonal):
    task, _ = task_of({n: a for n, a in hexagonal.items() if n != "D1S2"}, "D2")
    assert len(task.train) == 1
    values, notes = answer("PCA + ridge, tuned", task)
    assert (notes["rank"], notes["penalty"]) == completion.UNTUNED
    np.testing.assert_array_equal(values["D2S1"], answer("PCA-50 + ridge", task)[0]["D2S1"])


@pytest.mark.parametrize("name", BLIND)
def test_methods_do_not_depend_on_the_order_of_spots(sections, name):
    found = []
    for seed in (None, 3):
        shuffled = sections
        if seed is not None:
            rng = np.random.default_rng(seed)
            shuffled = {n: a[rng.permutation(a.n_obs)].copy() for n, a in sections.items()}
        task, _ = task_of(shuffled, "D1")
        values = answer(name, task)[0]["D1S1"]
        found.append(pd.DataFrame(values, index=task.test[0].obs_names, columns=task.genes).sort_index())
    np.testing.assert_allclose(found[0], found[1][list(found[0].columns)], atol=1e-8)


# ------------------------------------------------------------------------------------------------------------------------ score and run


def test_scores(sections):
    task, hidden = task_of(sections, "D1")
    rng = np.random.default_rng(0)
    predicted = {n: 0.5 * v + rng.normal(0, 0.5, v.shape) for n, v in hidden.truth.items()}
    scored = PROTOCOL.score(task, hidden, predicted)
    mean = np.concatenate([np.log1p(1e4 * _shares(a, task.genes)) for a in task.train]).mean(0)
    for row in scored.rows:
        truth, mine = hidden.truth[row["library"]], predicted[row["library"]]
        assert row["mean_r"] == pytest.approx(plain_r(truth, mine).mean())
        assert row["median_r"] == pytest.approx(np.median(plain_r(truth, mine)))
        assert row["relative_mse"] == pytest.approx(((truth - mine) ** 2).sum() / ((truth - mean) ** 2).sum(), rel=1e-6)
        assert row["fraction_of_ceiling"] == pytest.approx(row["mean_r"] / hidden.ceiling[row["library"]].mean())
        assert row["donor"] == "D1"
    assert set(scored.details["gene"]) == set(task.genes)
    perfect = PROTOCOL.score(task, hidden, hidden.truth).rows[0]
    assert perfect["mean_r"] == pytest.approx(1)
    assert perfect["relative_mse"] == pytest.approx(0)


def _shares(adata, genes):
    return adata[:, list(genes)].X.toarray() / np.asarray(adata.X.sum(1), dtype=float).reshape(-1, 1)


def test_run_ranks_what_is_known_above_chance(sections):
    def mine(task, rng):
        return {name: np.tile(task.target(task.train[0]).mean(0), (a.n_obs, 1)) for name, a in task.asked().items()}

    beside = ("observed depth line", "PCA + ridge, tuned", "hidden values permuted")
    report = stimg.bench.run(replace(PROTOCOL, nulls=beside), sections, methods={"mine": mine}, seeds=1)
    value = report.summary()["value"].xs("mean_r", level="metric").droplevel("stratum")
    assert value["PCA + ridge, tuned"] > value["observed depth line"]
    assert value["PCA + ridge, tuned"] > 0.15
    assert abs(value["hidden values permuted"]) < 0.08
    assert value["mine"] == 0
    assert not report.data["stamps"]
    chosen = [n["notes"] for n in report.data["notes"] if n["method"] == "PCA + ridge, tuned"]
    assert len(chosen) == 3
    assert all({"rank", "penalty"} <= set(n) for n in chosen)


def test_a_panel_chosen_with_the_test_donor_is_a_leak(sections):
    leaking = replace(PROTOCOL, panel=replace(PROTOCOL.panel, seen="all"))
    with pytest.raises(LeakageError, match=r"the gene list 'HVG785 of protocol panel-completion' has seen \d+ of \d+ test observations"):
        stimg.bench.run(leaking, sections, methods=["observed depth line"], nulls=False)
    report = stimg.bench.run(leaking, sections, methods=["observed depth line"], nulls=False, allow_leakage=True)
    assert any("LEAKAGE ALLOWED" in stamp for stamp in report.data["stamps"])


# ------------------------------------------------------------------------------------------------------------------------------ real data


@pytest.mark.data
def test_published_list_on_her2st_agrees_with_plain_linear_algebra(mirror):
    """Two sections of two donors; a figure of each rival from raw counts, with nothing of the package but the reader and the list."""
    data = [stimg.datasets.her2st(name) for name in ("B1", "C1", "C3")]
    protocol = replace(get_protocol("panel-completion-785"), ceiling_splits=1)
    names = ["observed depth line", "best co-expressed gene", "mean of 20 co-expressed genes", "PCA-50 + ridge"]
    report = stimg.bench.run(protocol, data, methods=names, nulls=False, seeds=1, allow_leakage=True)
    sections = load_sections(data)
    panel = [g for g in stimg.datasets.gene_list("her_hvg_cut_1000") if all(g in a.var_names for a in data)]
    drawn = np.sort(np.random.default_rng(0).choice(len(panel), round(0.2 * len(panel)), replace=False))
    genes = [panel[i] for i in drawn]
    plains = {name: Plain(a, panel, genes) for name, a in sections.items()}
    scores = report.scores().set_index(["method", "library"])
    for name in names:
        predicted = plain(name, [plains["C1"], plains["C3"]], ["C1", "C3"], plains["B1"])
        assert scores.loc[(name, "B1"), "mean_r"] == pytest.approx(plain_r(predicted, plains["B1"].y).mean(), abs=1e-6)
    assert scores.loc[("PCA-50 + ridge", "B1"), "mean_r"] > 0.1
