"""Imputation: masks by brute force, hidden spots that are not there, every method against plain loops, scores against plain formulas."""

import math
import pickle
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.spatial import Delaunay

import stimg
from stimg._core import keys
from stimg.bench import LeakageError, Prediction, get_protocol, load_sections
from stimg.bench.masks import MASKS, hidden_spots
from stimg.bench.method import METHODS, load
from stimg.bench.methods.imputation import RIVALS
from stimg.bench.protocol import Fold
from stimg.bench.protocols.imputation import ImputationProtocol, sd_key
from stimg.image import interpolate
from stimg.image.spec import RasterSpec

PROTOCOL = get_protocol("imputation")
ALL = ("random 50 %", "checkerboard", "quarter grid", "hole", "right half")
BLIND = ("section mean", "nearest", "linear", "k-NN 8", "inverse distance 8", "Gaussian")
LATTICES = [("square", -1), ("hex", 0), ("hex", 1)]
MARK = 987_654.0


def coordinates(rc, lattice, parity):
    """Places in pitches from the definition of the lattice, nothing shared with the code under test."""
    if lattice == "square":
        return [(float(r), float(c)) for r, c in rc]
    return [(r * math.sqrt(3) / 2, c + (0.5 if r % 2 == parity else 0.0)) for r, c in rc]


def apart(a, b):
    return math.hypot(a[0] - b[0], a[1] - b[1])


def spec_of(lattice, parity, shape):
    return RasterSpec(lattice, shape, pitch_um=100.0, hex_parity=parity)


def tissue(seed, shape=(15, 14), share=0.85):
    rc = np.argwhere(np.random.default_rng(seed).random(shape) < share)
    return rc[np.random.default_rng(seed + 1).permutation(len(rc))]


@pytest.fixture(scope="module")
def sections():
    """Two donors with one section each, square and hexagonal, with holes in the tissue and in random order."""
    out = {}
    for technology, donor in (("st", "square donor"), ("visium", "hex donor")):
        adata = stimg.datasets.simulate(technology=technology, shape=(15, 14), n_genes=60, rng=3)
        keep = np.random.default_rng(0).permutation(adata.n_obs)[: int(0.9 * adata.n_obs)]
        adata = adata[keep].copy()
        adata.obs["library_id"] = pd.Categorical([technology] * adata.n_obs)
        adata.obs["donor"] = pd.Categorical([donor] * adata.n_obs)
        adata.uns["spatial"] = {technology: next(iter(adata.uns["spatial"].values()))}
        out |= load_sections(adata)
    return out


SMALL = replace(PROTOCOL, panel=replace(PROTOCOL.panel, n=25), ceiling_splits=2)


def task_of(sections, library, mask, protocol=SMALL):
    (fold,) = [f for f in protocol.folds(sections) if f.name == f"{library} {mask}"]
    return protocol.task(sections, fold)


# ---------------------------------------------------------------------------------------------------------------------------------- masks


@pytest.mark.parametrize(("lattice", "parity"), LATTICES)
def test_random_half(lattice, parity):
    rc = tissue(0)
    spec = spec_of(lattice, parity, (15, 14))
    hidden = hidden_spots("random 50 %", spec, rc, seed=4)
    assert hidden.sum() == len(rc) // 2
    other = np.random.default_rng(8).permutation(len(rc))
    assert (hidden_spots("random 50 %", spec, rc[other], seed=4) == hidden[other]).all()
    assert (hidden_spots("random 50 %", spec, rc, seed=5) != hidden).any()


@pytest.mark.parametrize(("lattice", "parity", "neighbours"), [("square", -1, 4), ("hex", 0, 6), ("hex", 1, 6)])
def test_checkerboard_keeps_four_neighbours_of_every_hidden_point(lattice, parity, neighbours):
    rc = np.argwhere(np.ones((10, 10)))
    hidden = hidden_spots("checkerboard", spec_of(lattice, parity, (10, 10)), rc)
    at = coordinates(rc, lattice, parity)
    for i in np.flatnonzero(hidden):
        near = [j for j in range(len(at)) if 0 < apart(at[i], at[j]) < 1.1]
        if len(near) == neighbours:  # not at the border
            assert sum(not hidden[j] for j in near) == 4
    assert hidden.sum() == 50


@pytest.mark.parametrize(("lattice", "parity", "neighbours"), [("square", -1, 4), ("hex", 0, 6), ("hex", 1, 6)])
def test_quarter_grid_keeps_the_lattice_with_twice_the_pitch(lattice, parity, neighbours):
    rc = np.argwhere(np.ones((16, 16)))
    kept = np.flatnonzero(~hidden_spots("quarter grid", spec_of(lattice, parity, (16, 16)), rc))
    assert len(kept) == 64
    at = coordinates(rc, lattice, parity)
    full = 0
    for i in kept:
        gaps = [apart(at[i], at[j]) for j in kept if j != i]
        assert min(gaps) == pytest.approx(2)
        inside = 2 < at[i][0] < 11 and 2 < at[i][1] < 13
        full += inside
        assert not inside or sum(g < 2.1 for g in gaps) == neighbours
    assert full > 5


@pytest.mark.parametrize(("lattice", "parity"), LATTICES)
@pytest.mark.parametrize("seed", [0, 3])
def test_hole_is_the_fullest_disc_nearest_to_the_centre(lattice, parity, seed):
    rc = tissue(seed, share=0.8)
    hidden = hidden_spots("hole", spec_of(lattice, parity, (15, 14)), rc)
    at = coordinates(rc, lattice, parity)
    middle = tuple(np.mean(at, axis=0))
    discs = {i: {j for j in range(len(at)) if apart(at[i], at[j]) < 4.001} for i in range(len(at))}
    most = max(len(d) for d in discs.values())
    best = min((round(apart(at[i], middle), 6), *rc[i]) for i, d in discs.items() if len(d) == most)
    centre = next(i for i in range(len(at)) if tuple(rc[i]) == best[1:])
    assert set(np.flatnonzero(hidden)) == discs[centre]


def test_hole_in_full_tissue_has_the_points_of_a_disc():
    for lattice, parity, n in (("square", -1, 49), ("hex", 1, 61)):
        assert hidden_spots("hole", spec_of(lattice, parity, (20, 20)), np.argwhere(np.ones((20, 20)))).sum() == n


@pytest.mark.parametrize(("lattice", "parity"), LATTICES)
def test_right_half_is_right_of_the_median(lattice, parity):
    rc = tissue(1)
    hidden = hidden_spots("right half", spec_of(lattice, parity, (15, 14)), rc)
    x = [place[1] for place in coordinates(rc, lattice, parity)]
    middle = sorted(x)[len(x) // 2] if len(x) % 2 else (sorted(x)[len(x) // 2 - 1] + sorted(x)[len(x) // 2]) / 2
    assert hidden.tolist() == [v > middle for v in x]
    assert 0.35 < hidden.mean() <= 0.5


def test_observations_on_one_lattice_point_are_hidden_together():
    rc = np.repeat(tissue(2), 2, axis=0)
    for name in MASKS:
        hidden = hidden_spots(name, spec_of("square", -1, (15, 14)), rc)
        assert (hidden[::2] == hidden[1::2]).all()
        assert hidden.any()


def test_unknown_mask():
    with pytest.raises(ValueError, match=r"no mask named 'checkers'. Did you mean 'checkerboard'\?"):
        hidden_spots("checkers", spec_of("square", -1, (4, 4)), np.argwhere(np.ones((4, 4))))


# ------------------------------------------------------------------------------------------------------------------------- what is hidden


def test_folds_are_sections_times_masks_with_other_donors(sections):
    folds = PROTOCOL.folds(sections)
    assert [f.name for f in folds] == [f"{library} {mask}" for library in ("st", "visium") for mask in ALL]
    assert folds[0] == Fold("st random 50 %", ("visium",), ("st",))


def test_serial_sections_of_the_donor_do_not_train():
    names = ("D1S1", "D1S2", "D2S1", "D2S2")
    adata = stimg.datasets.simulate(technology="st", shape=(8, 8), n_genes=20, n_donors=2, n_sections=2, rng=0)
    for fold in PROTOCOL.folds(load_sections(adata)):
        assert fold.train == tuple(n for n in names if n[:2] != fold.test[0][:2])


@pytest.mark.parametrize("mask", ALL)
@pytest.mark.parametrize("library", ["st", "visium"])
def test_hidden_spots_are_not_in_the_task(sections, library, mask):
    (name, whole), other = (library, sections[library]), {k: v for k, v in sections.items() if k != library}
    _, before = task_of(sections, library, mask)
    marked = whole.copy()
    rows = marked.obs_names.get_indexer(before.sections[0].obs_names)
    dense = marked.X.toarray()
    dense[rows, :7] = MARK
    marked.X = sp.csr_matrix(dense)
    task, hidden = task_of({**other, name: marked}, library, mask)
    (observed,), asked = task.test, task.where[name]
    assert set(observed.obs_names) | set(asked.obs_names) == set(whole.obs_names)
    assert not set(observed.obs_names) & set(asked.obs_names)
    assert asked.X is None
    assert asked.n_vars == 0
    assert not observed.is_view
    assert hidden.truth[name].shape == (asked.n_obs, 25)
    text = pickle.dumps(task)
    assert np.float32(MARK).tobytes() not in text
    assert np.float32(MARK).tobytes() in pickle.dumps(hidden)


@pytest.mark.parametrize("mask", ALL)
def test_poisoned_hidden_values_change_no_prediction(sections, mask):
    load()
    task, hidden = task_of(sections, "visium", mask)
    rng = np.random.default_rng(0)
    poisoned = sections["visium"].copy()
    rows = poisoned.obs_names.get_indexer(hidden.sections[0].obs_names)
    dense = poisoned.X.toarray()
    dense[rows] = rng.poisson(50, (len(rows), poisoned.n_vars)) + np.arange(poisoned.n_vars) * 20
    poisoned.X = sp.csr_matrix(dense)
    again, changed = task_of({**sections, "visium": poisoned}, "visium", mask)
    for adata in (task.test[0], task.where["visium"], again.test[0], again.where["visium"]):
        adata.obsm[keys.COLOUR] = np.cos(
            adata.obsm["spatial"] @ np.array([[1.0, 0.3, 2.0], [0.5, 1.0, -1.0]]) / 300
        )  # known everywhere, as an image is
    assert task.genes == again.genes
    assert not np.allclose(hidden.truth["visium"], changed.truth["visium"])
    for name in METHODS:
        if "imputation" in METHODS[name].kinds and METHODS[name].role != "audit":
            first, second = (SMALL.check(t, values(METHODS[name].function(t, np.random.default_rng(1))), name) for t in (task, again))
            for key in first:
                np.testing.assert_array_equal(first[key], second[key])


def values(answer):
    return answer.values if isinstance(answer, Prediction) else answer


def test_genes_are_those_with_most_observed_counts(sections):
    task, _ = task_of(sections, "st", "hole")
    totals = {g: float(task.test[0][:, g].X.sum()) for g in task.test[0].var_names}
    assert sorted(totals[g] for g in task.genes) == sorted(totals.values())[-25:]


def test_target_is_that_of_the_full_library(sections):
    task, hidden = task_of(sections, "st", "checkerboard")
    whole = sections["st"]
    for i, spot in enumerate(task.where["st"].obs_names[:5]):
        counts = whole[spot].X.toarray().ravel()
        for j, gene in enumerate(task.genes):
            expected = math.log(1 + 1e4 * counts[whole.var_names.get_loc(gene)] / counts.sum())
            assert hidden.truth["st"][i, j] == pytest.approx(expected, rel=1e-6)


def test_too_few_spots():
    adata = stimg.datasets.simulate(technology="st", shape=(6, 6), n_genes=20, rng=0)
    found = load_sections(adata)
    with pytest.raises(
        ValueError, match=r"mask 'hole' hides \d+ of 36 observations of library 'D1S1'; wanted at least 5 hidden and 5 left"
    ):
        task_of(found, "D1S1", "hole")


# -------------------------------------------------------------------------------------------------------------------------------- methods


def naive_weights(method, known, wanted):
    """Weights of the observed places at one wanted place, by sorting all distances."""
    gaps = [apart(k, wanted) for k in known]
    order = sorted(range(len(known)), key=lambda i: (round(gaps[i], 9), known[i]))
    if method == "nearest":
        return {order[0]: 1.0}
    eighth = round(gaps[order[7]], 9)
    tied = [i for i in order if round(gaps[i], 9) == eighth]
    nearer = [i for i in order if round(gaps[i], 9) < eighth]
    weights = dict.fromkeys(nearer, 1.0) | {i: (8 - len(nearer)) / len(tied) for i in tied}
    if method == "inverse distance 8":
        weights = {i: w / gaps[i] ** 2 for i, w in weights.items()}
    total = sum(weights.values())
    return {i: w / total for i, w in weights.items()}


def naive_gaussian(known, values, wanted, bandwidth, leave=None):
    top, total = np.zeros(values.shape[1]), 0.0
    for i, place in enumerate(known):
        if i != leave:
            weight = math.exp(-0.5 * (apart(place, wanted) / bandwidth) ** 2)
            top, total = top + weight * values[i], total + weight
    return top / total


def naive(method, known, values, wanted):
    """Return predictions (wanted, genes) of a method by plain loops."""
    if method == "section mean":
        return np.array([values.mean(axis=0) for _ in wanted])
    if method == "Gaussian":
        spread = values.std(axis=0)
        losses = {}
        for h in (0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0):  # smaller ones underflow here, and lose
            left = np.array([naive_gaussian(known, values, place, h, leave=i) for i, place in enumerate(known)])
            losses[h] = ((left - values) ** 2)[:, spread > 0].mean(axis=0) / spread[spread > 0] ** 2
        best = min(losses, key=lambda h: losses[h].mean())
        return np.array([naive_gaussian(known, values, place, best) for place in wanted])
    if method == "linear":
        order = sorted(range(len(known)), key=lambda i: known[i])
        corners = np.array([known[i] for i in order])
        mesh = Delaunay(corners)
        out = []
        for place in wanted:
            for triangle in mesh.simplices:
                a = np.vstack([corners[triangle].T, np.ones(3)])
                if abs(np.linalg.det(a)) < 1e-9:
                    continue
                share = np.linalg.solve(a, [*place, 1.0])
                if (share > -1e-9).all():
                    out.append(sum(share[i] * values[order[triangle[i]]] for i in range(3)))
                    break
            else:
                out.append(naive("nearest", known, values, [place])[0])
        return np.array(out)
    rows = [naive_weights(method, known, place) for place in wanted]
    return np.array([sum(w * values[i] for i, w in weights.items()) for weights in rows])


def lattice_places(adata):
    spec = next(iter(adata.uns["stimg"]["raster"].values()))
    return coordinates(adata.obsm["stimg_rc"].tolist(), spec["lattice"], int(spec["hex_parity"]))


@pytest.mark.parametrize("mask", ALL)
@pytest.mark.parametrize("library", ["st", "visium"])
@pytest.mark.parametrize("method", BLIND)
def test_methods_agree_with_plain_loops(sections, library, mask, method):
    load()
    task, _ = task_of(sections, library, mask)
    found = SMALL.check(task, values(METHODS[method].function(task, np.random.default_rng(0))), method)[library]
    (observed,) = task.test
    counts = np.asarray(observed[:, list(task.genes)].X.todense(), dtype=float)
    truth = np.log1p(1e4 * counts / np.asarray(observed.X.sum(1), dtype=float))
    expected = naive(method, lattice_places(observed), truth, lattice_places(task.where[library]))
    # far weights below exp(-8) of the nearest are left out
    np.testing.assert_allclose(found, expected, atol=5e-3 if method == "Gaussian" else 1e-9)


@pytest.mark.parametrize("mask", ["checkerboard", "hole"])
@pytest.mark.parametrize("method", sorted(RIVALS))
def test_rivals_are_the_methods_of_the_image_package(sections, mask, method):
    """From counts by hand: the genes of the task, then those with most counts; axes from the other donor where they are wanted."""
    load()
    task, _ = task_of(sections, "visium", mask)
    answer = METHODS[method].function(task, np.random.default_rng(0))
    found = SMALL.check(task, values(answer), method)
    (observed,), (other,) = task.test, task.train
    total = np.asarray(observed.X.sum(axis=0)).ravel()
    genes = [*task.genes, *[g for g in observed.var_names[np.argsort(-total, kind="stable")] if g not in task.genes]]

    def logs(adata):
        counts, depth = np.asarray(adata[:, genes].X.todense(), dtype=float), np.asarray(adata.X.sum(axis=1), dtype=float)
        return np.log1p(1e4 * counts / depth), depth.ravel()

    known, depth = logs(observed)
    inner = interpolate.METHODS[RIVALS[method]]
    section = interpolate.Measured(
        np.array(lattice_places(observed)), known, columns=np.arange(25), depth=depth, loadings=interpolate.axes_of_sections([logs(other)])
    )
    expected = inner(section, np.array(lattice_places(task.where["visium"])))
    np.testing.assert_allclose(found["visium"], expected.values, atol=1e-7)
    assert (sd_key("visium") in found) == (expected.variance is not None)
    if expected.variance is not None:
        np.testing.assert_allclose(found[sd_key("visium")], np.sqrt(expected.variance), atol=1e-7)
    assert (getattr(answer, "notes", {}).get("regime") == "other donors") == inner.donors


def test_rivals_from_other_donors_need_some(sections):
    load()
    task, _ = task_of({"visium": sections["visium"]}, "visium", "hole")
    with pytest.raises(ValueError, match="There is no section of another donor"):
        METHODS["kriging ensemble, other donors"].function(task, np.random.default_rng(0))


@pytest.mark.slow
def test_one_table_has_every_rival_that_the_data_suffice_for(sections):
    """Those that read other donors are left out where there is one, and those that read features where there are none."""
    load()
    protocol = replace(SMALL, masks=("hole",), ceiling_splits=1)
    from_donors = {name for name, inner in RIVALS.items() if interpolate.METHODS[inner].donors}
    guided = {name for name in PROTOCOL.nulls if METHODS[name].needs}
    assert {name for name in RIVALS if name not in PROTOCOL.nulls} == set()
    assert from_donors == {name for name in PROTOCOL.nulls if METHODS[name].trains} != set()
    assert guided
    both = stimg.bench.run(protocol, sections, seeds=1)
    assert [m["name"] for m in both.data["methods"]] == [n for n in PROTOCOL.nulls if n not in guided]
    alone = stimg.bench.run(protocol, sections["st"], seeds=1)
    assert [m["name"] for m in alone.data["methods"]] == [n for n in PROTOCOL.nulls if n not in guided | from_donors]
    same = [
        r.summary()["value"]["kriging ensemble", "mean_r", "hole"]
        for r in (alone, stimg.bench.run(protocol, sections["st"], nulls=False, methods="kriging ensemble"))
    ]
    assert same[0] == same[1] != 0
    with pytest.raises(ValueError, match="There is no section of another donor"):
        stimg.bench.run(protocol, sections["st"], nulls=False, methods=sorted(from_donors))


@pytest.mark.parametrize("method", BLIND + tuple(sorted(RIVALS)))
def test_methods_do_not_depend_on_the_order_of_spots(sections, method):
    load()
    found = []
    for seed in (None, 5):
        adata = sections["visium"]
        if seed is not None:
            adata = adata[np.random.default_rng(seed).permutation(adata.n_obs)].copy()
        task, _ = task_of({**sections, "visium": adata}, "visium", "random 50 %")
        answer = SMALL.check(task, values(METHODS[method].function(task, np.random.default_rng(0))), method)["visium"]
        found.append(pd.DataFrame(answer, index=task.where["visium"].obs_names, columns=task.genes).sort_index())
    assert (found[0].index == found[1].index).all()
    np.testing.assert_allclose(found[0][list(found[1].columns)], found[1], atol=1e-7)


def test_true_neighbours_reads_the_hidden_ones_too(sections):
    load()
    for library, reach in (("st", 1.5), ("visium", 1.1)):
        task, hidden = task_of(sections, library, "hole")
        found = METHODS["true neighbours"].function(task, np.random.default_rng(0), hidden)[library]
        at = lattice_places(task.test[0]) + lattice_places(task.where[library])
        whole = np.concatenate([task.target(task.test[0]), hidden.truth[library]])
        start = task.test[0].n_obs
        for i in range(len(found)):
            near = [j for j in range(len(at)) if 0 < apart(at[start + i], at[j]) < reach]
            np.testing.assert_allclose(found[i], whole[near].mean(axis=0) if near else whole.mean(axis=0), atol=1e-12)


# ---------------------------------------------------------------------------------------------------------------------------------- score


def pearson(a, b):
    a, b = a - a.mean(), b - b.mean()
    scale = math.sqrt(float((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / scale if scale > 1e-12 else 0.0


def test_scores_agree_with_plain_formulas(sections):
    task, hidden = task_of(sections, "visium", "random 50 %")
    truth, observed = hidden.truth["visium"], task.target(task.test[0])
    rng = np.random.default_rng(0)
    predicted = 0.4 * truth + rng.normal(0, 0.3, truth.shape)
    sd = rng.uniform(0.1, 0.8, truth.shape)
    checked = SMALL.check(task, {"visium": {"mean": predicted, "sd": sd}}, "mine")
    (row,) = SMALL.score(task, hidden, checked).rows
    r = [pearson(truth[:, j], predicted[:, j]) for j in range(25)]
    assert row["mean_r"] == pytest.approx(np.mean(r))
    assert row["median_r"] == pytest.approx(np.median(r))
    error, around = ((truth - predicted) ** 2).sum(), ((truth - truth.mean(axis=0)) ** 2).sum()
    assert row["relative_rmse"] == pytest.approx(math.sqrt(error / around))
    assert row["relative_mse"] == pytest.approx(error / ((truth - observed.mean(axis=0)) ** 2).sum())
    both = [pearson(np.r_[observed[:, j], truth[:, j]], np.r_[observed[:, j], predicted[:, j]]) for j in range(25)]
    assert row["inflated_r"] == pytest.approx(np.mean(both))
    inside = np.abs(truth - predicted) <= 1.6448536 * sd
    assert row["coverage_90"] == pytest.approx(inside.mean(), abs=1e-3)
    assert row["width_90"] == pytest.approx((2 * 1.6448536 * sd).mean(), rel=1e-6)
    assert row["ssim"] == pytest.approx(np.mean(naive_ssim(task, truth, predicted, observed)))
    assert (row["library"], row["donor"], row["mask"], row["n_obs"]) == ("visium", "hex donor", "random 50 %", len(truth))


def naive_ssim(task, truth, predicted, observed):
    rc = task.where["visium"].obsm["stimg_rc"]
    out = []
    for j in range(truth.shape[1]):
        span = observed[:, j].max() - observed[:, j].min()
        c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
        total = []
        for r, c in rc:
            window = (np.abs(rc[:, 0] - r) <= 3) & (np.abs(rc[:, 1] - c) <= 3)
            x, y = truth[window, j], predicted[window, j]
            covariance = ((x - x.mean()) * (y - y.mean())).mean()
            top = (2 * x.mean() * y.mean() + c1) * (2 * covariance + c2)
            total.append(top / ((x.mean() ** 2 + y.mean() ** 2 + c1) * (x.var() + y.var() + c2)))
        out.append(np.mean(total))
    return out


def test_truth_scores_best_and_a_constant_nothing_but_where_observed_values_are_copied(sections):
    task, hidden = task_of(sections, "st", "checkerboard")
    (best,) = SMALL.score(task, hidden, hidden.truth).rows
    assert best["mean_r"] == pytest.approx(1)
    assert best["ssim"] == pytest.approx(1)
    assert best["relative_rmse"] == pytest.approx(0)
    assert best["inflated_r"] == pytest.approx(1)
    assert "coverage_90" not in best
    flat = np.tile(task.target(task.test[0]).mean(axis=0), (task.where["st"].n_obs, 1))
    (row,) = SMALL.score(task, hidden, {"st": flat}).rows
    assert row["mean_r"] == 0
    assert row["n_undefined"] == 25
    assert row["relative_mse"] == pytest.approx(1)
    assert row["relative_rmse"] >= 1
    assert 0.6 < row["inflated_r"] < 0.8


def test_values_that_are_not_finite_count_as_zero(sections):
    task, hidden = task_of(sections, "st", "hole")
    spoilt = hidden.truth["st"].copy()
    spoilt[0, :5] = np.nan
    scored = SMALL.score(task, hidden, {"st": spoilt})
    assert scored.rows[0]["n_undefined"] == 5
    assert scored.rows[0]["mean_r"] == pytest.approx(20 / 25)
    assert scored.rows[0]["ssim"] == pytest.approx(20 / 25)


def test_check_takes_tables_of_the_whole_section_and_refuses_the_rest(sections):
    task, hidden = task_of(sections, "st", "hole")
    truth, asked = hidden.truth["st"], task.where["st"]
    table = pd.DataFrame(0.0, index=sections["st"].obs_names, columns=list(task.genes))
    table.loc[asked.obs_names] = truth
    np.testing.assert_array_equal(SMALL.check(task, {"st": table.iloc[::-1]}, "mine")["st"], truth)
    both = SMALL.check(task, {"st": {"mean": truth, "sd": truth * 0 + 1}}, "mine")
    assert both[sd_key("st")].shape == truth.shape
    with pytest.raises(ValueError, match=r"gave a mapping with \['mean'\] for st; wanted 'mean' and 'sd'"):
        SMALL.check(task, {"st": {"mean": truth}}, "mine")
    with pytest.raises(ValueError, match=r"gave negative sd, by library \{'st': 1\}"):
        SMALL.check(task, {"st": {"mean": truth, "sd": np.where(np.arange(truth.size).reshape(truth.shape) == 3, -1.0, 1.0)}}, "mine")
    with pytest.raises(ValueError, match=r"\(sd\) gave \(2, 25\) values for st"):
        SMALL.check(task, {"st": {"mean": truth, "sd": truth[:2]}}, "mine")
    with pytest.raises(ValueError, match=r"gave \(2, 25\) values for st; wanted \(\d+, 25\)"):
        SMALL.check(task, {"st": truth[:2]}, "mine")
    with pytest.raises(ValueError, match="gave no values for"):
        SMALL.check(task, {}, "mine")


# ------------------------------------------------------------------------------------------------------------------------------------ run


@pytest.mark.slow
def test_run_keeps_masks_apart_and_knows_what_may_be_seen(sections):
    protocol = replace(SMALL, masks=("checkerboard", "hole"))

    def honest(task, rng):
        seen = [stimg.bench.seen_of(a, who="mine", kind="model") for a in task.test]
        mean = {a.obs["library_id"].iloc[0]: task.target(a).mean(axis=0) for a in task.test}
        return Prediction({n: np.tile(mean[n], (a.n_obs, 1)) for n, a in task.asked().items()}, tuple(seen), {"regime": "section"})

    def peeping(task, rng):
        return Prediction(honest(task, rng).values, (stimg.bench.seen_of(sections["st"], who="peeping", kind="model"),))

    report = stimg.bench.run(protocol, sections, methods={"honest": honest}, seeds=2)
    summary = report.summary()["value"]
    assert set(summary.index.get_level_values("stratum")) == {"checkerboard", "hole"}
    for mask in protocol.masks:
        assert summary["section mean", "relative_rmse", mask] == pytest.approx(summary["honest", "relative_rmse", mask])
        assert abs(summary["hidden values permuted", "mean_r", mask]) < 0.1
        assert 0.7 < summary["section mean", "coverage_90", mask] < 1
        assert summary["Gaussian", "relative_rmse", mask] <= summary["nearest", "relative_rmse", mask]
    assert {entry["fold"] for entry in report.data["maps"]} == {"st checkerboard", "visium checkerboard"}
    with pytest.raises(LeakageError, match="'peeping' has seen"):
        stimg.bench.run(protocol, sections, methods={"peeping": peeping}, nulls=False)


def test_a_change_of_masks_is_another_protocol():
    assert PROTOCOL.hash != replace(PROTOCOL, masks=("hole",)).hash
    assert PROTOCOL.hash == replace(PROTOCOL, title="other words").hash
    assert isinstance(PROTOCOL, ImputationProtocol)


# ------------------------------------------------------------------------------------------------------------------------------ real data


@pytest.mark.data
def test_her2st_agrees_with_plain_loops_over_raw_counts(mirror):
    """B1, half of the spots hidden: figures of all methods from the counts, by loops, from the first step to the last."""
    adata = stimg.datasets.her2st("B1")
    protocol = replace(PROTOCOL, masks=("random 50 %",), ceiling_splits=1)
    report = stimg.bench.run(protocol, adata, seeds=1)
    (section,) = load_sections(adata).values()
    hidden = hidden_spots("random 50 %", spec_of("square", -1, tuple(section.obsm["stimg_rc"].max(axis=0) + 1)), section.obsm["stimg_rc"])
    counts = np.asarray(adata[section.obs_names, section.var_names].X.todense(), dtype=float)
    top = np.argsort(-counts[~hidden].sum(axis=0), kind="stable")[:250]
    logs = np.log1p(1e4 * counts[:, top] / counts.sum(axis=1, keepdims=True))
    at = [tuple(float(v) for v in place) for place in section.obsm["stimg_rc"]]
    known, wanted = ([at[i] for i in np.flatnonzero(m)] for m in (~hidden, hidden))
    truth = logs[hidden]
    scores = report.scores().set_index("method")
    for method in BLIND:
        predicted = naive(method, known, logs[~hidden], wanted)
        r = [pearson(truth[:, j], predicted[:, j]) for j in range(250)]
        error = math.sqrt(((truth - predicted) ** 2).sum() / ((truth - truth.mean(axis=0)) ** 2).sum())
        tolerance = 2e-3 if method == "Gaussian" else 1e-6  # its far weights are left out
        assert scores.loc[method, "mean_r"] == pytest.approx(np.mean(r), abs=tolerance)
        assert scores.loc[method, "median_r"] == pytest.approx(np.median(r), abs=tolerance)
        assert scores.loc[method, "relative_rmse"] == pytest.approx(error, abs=tolerance)
    assert scores.loc["Gaussian", "relative_rmse"] < 1 < scores.loc["nearest", "relative_rmse"]
