"""The picture of the calibration against loops over hidden values."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import scipy.stats

import stimg
from stimg.pl._calibration import LEVELS


def logs(adata):
    counts = adata.X.toarray().astype(float)
    return np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))


def line(ax, gid):
    (found,) = [each for each in ax.get_lines() if each.get_gid() == gid]
    return np.array(found.get_data(), dtype=float)


def by_place(filled, truth):
    """Rows of the table at the places of the truth."""
    here = {tuple(rc): i for i, rc in enumerate(filled.obsm["stimg_rc"].tolist())}
    return [here[tuple(rc)] for rc in truth.obsm["stimg_rc"].tolist()]


@pytest.fixture
def parts(section):
    """A truth, and a table whose predictions have errors of a size that is known."""
    sparse, truth = stimg.pp.sparsify(section(shape=(20, 20), keep=1.0), mask="random", rng=0)
    filled = stimg.tl.impute(sparse, targets=truth, method="nearest")
    rng = np.random.default_rng(0)
    rows = by_place(filled, truth)
    sd = rng.uniform(0.2, 2.0, (truth.n_obs, truth.n_vars)) * [0.5, 1.0, 1.0, 2.0]
    filled.layers["stimg_nearest"][rows] = logs(truth) + rng.normal(0.0, 1.3 * sd)
    filled.layers["stimg_nearest_sd"][rows] = sd
    return sparse, truth, filled


@pytest.mark.parametrize("genes", [None, ["IGKC", "ERBB2"], "IGKC"])
def test_curve_and_band_are_those_of_a_loop(parts, genes):
    _, truth, filled = parts
    ax = stimg.pl.calibration(filled, truth, genes=genes)["coverage"]
    names = list(filled.var_names) if genes is None else [genes] if isinstance(genes, str) else genes
    columns, rows = filled.var_names.get_indexer(names), by_place(filled, truth)
    x = logs(truth)[:, columns]
    mean, sd = (filled.layers[k][rows][:, columns].astype(float) for k in ("stimg_nearest", "stimg_nearest_sd"))
    held = np.zeros((len(LEVELS), *x.shape))
    for a, level in enumerate(LEVELS):
        low, high = scipy.stats.norm.interval(level, loc=mean, scale=sd)
        for i, j in np.ndindex(*x.shape):
            held[a, i, j] = low[i, j] <= x[i, j] <= high[i, j]
    np.testing.assert_allclose(line(ax, "pooled"), [LEVELS, held.mean(axis=(1, 2))])
    np.testing.assert_array_equal(line(ax, "diagonal"), [[0, 1], [0, 1]])
    at90 = held[LEVELS.index(0.9)].mean()
    assert ax.get_title(loc="left") == (
        f"90 % intervals hold {100 * at90:.1f} % of {x.size:,} values\nof {truth.n_obs} hidden spots; mean width {2 * 1.644854 * sd.mean():.2f} log1p cp10k"
    )
    bands = [c for c in ax.collections if c.get_gid() == "genes"]
    assert len(bands) == (len(names) > 1)
    if bands:
        corners = {tuple(np.round(v, 9)) for v in bands[0].get_paths()[0].vertices}
        for a, level in enumerate(LEVELS):
            for q in (0.1, 0.9):
                assert (level, round(float(np.quantile(held[a].mean(axis=0), q)), 9)) in corners
        assert f"10 to 90 % of {len(names)} genes" in [t.get_text() for t in ax.get_legend().get_texts()]


def test_errors_in_bins_of_sd_are_those_of_a_sort(parts):
    _, truth, filled = parts
    ax = stimg.pl.calibration(filled, truth, n_bins=4)["error"]
    rows = by_place(filled, truth)
    error = (filled.layers["stimg_nearest"][rows] - logs(truth)).ravel()
    sd = filled.layers["stimg_nearest_sd"][rows].ravel().astype(float)
    quarters = np.array_split(np.argsort(sd), 4)
    wanted = [[np.sqrt(np.mean(v[q] ** 2)) for q in quarters] for v in (sd, error)]
    np.testing.assert_allclose(line(ax, "bins"), wanted, rtol=1e-6)
    off = np.mean([abs(e - s) / s for s, e in zip(*wanted, strict=True)])
    assert ax.get_title(loc="left").startswith(f"errors differ by {100 * off:.0f} % from their sd")
    assert 0.2 < off < 0.4  # errors were made 1.3 times their sd
    assert ax.get_xlim() == ax.get_ylim()


def test_imputed_and_invented_places_have_lines_of_their_own(section):
    sparse, truth = stimg.pp.sparsify(section("square", shape=(16, 16), keep=1.0), mask="holes", n_holes=1, radius_um=350.0, rng=None)
    filled = stimg.tl.impute(sparse, targets=truth, method="nearest", max_gap_um=500.0)
    own = (filled.obs["stimg_status"] == "imputed").sum()
    assert own
    assert (filled.obs["stimg_status"] == "invented").any()
    alone = filled.copy()
    alone.obs["stimg_status"] = alone.obs["stimg_status"].astype(str).replace("imputed", "invented")
    assert {each.get_gid() for each in stimg.pl.calibration(alone, truth)["coverage"].get_lines()} == {"diagonal", "pooled"}
    ax = stimg.pl.calibration(filled, truth)["coverage"]
    rows = np.array(by_place(filled, truth))
    x, mean, sd = logs(truth), filled.layers["stimg_nearest"][rows].astype(float), filled.layers["stimg_nearest_sd"][rows].astype(float)
    for status in ("imputed", "invented"):
        at = (filled.obs["stimg_status"].to_numpy() == status)[rows]
        wanted = [np.mean(np.abs(x[at] - mean[at]) <= scipy.stats.norm.ppf((1 + p) / 2) * sd[at]) for p in LEVELS]
        np.testing.assert_allclose(line(ax, status)[1], wanted)
    texts = [t.get_text() for t in ax.get_legend().get_texts()]
    assert any(t.startswith("imputed: ") and t.endswith(f"(n = {own * filled.n_vars})") for t in texts)


def test_libraries_are_pooled_unless_one_is_named(section, joined):
    two = joined(section(), section(name="B", seed=1))
    sparse, truth = stimg.pp.sparsify(two, mask="checkerboard")
    filled = stimg.tl.impute(sparse, targets=truth, method="nearest")
    numbers = {}
    for asked in (None, "A", "B"):
        title = stimg.pl.calibration(filled, truth, library_id=asked)["coverage"].get_title(loc="left")
        numbers[asked] = int(title.split(" hidden spots")[0].split("of ")[-1])
    assert numbers["A"] == (truth.obs["library_id"] == "A").sum()
    assert numbers[None] == numbers["A"] + numbers["B"] == truth.n_obs


def test_bad_input_is_refused(parts, section):
    sparse, truth, filled = parts
    with pytest.raises(KeyError, match=r"adata\.obs\['stimg_status'\] is missing"):
        stimg.pl.calibration(sparse, truth)
    plain = stimg.tl.impute(sparse, targets=truth, method="nearest", uncertainty=False)
    with pytest.raises(KeyError, match=r"adata\.layers\['stimg_nearest_sd'\] is missing .*`uncertainty=True`"):
        stimg.pl.calibration(plain, truth)
    plain.layers["stimg_nearest_sd"] = np.full(plain.shape, np.nan, dtype=np.float32)
    with pytest.raises(ValueError, match=r"None of the \d+ hidden values has a standard deviation"):
        stimg.pl.calibration(plain, truth)
    with pytest.raises(KeyError, match="1 of 1 genes are not in the object"):
        stimg.pl.calibration(filled, truth, genes="NOPE")
    with pytest.raises(ValueError, match="genes is empty"):
        stimg.pl.calibration(filled, truth, genes=[])
    with pytest.raises(KeyError, match="1 of 4 genes are not in the object"):
        stimg.pl.calibration(filled, truth[:, truth.var_names != "IGKC"].copy())
    with pytest.raises(ValueError, match="stand where the table has a measurement"):
        stimg.pl.calibration(filled, sparse)
    with pytest.raises(ValueError, match="is at a place that was predicted"):
        stimg.pl.calibration(filled, section(name="B"))
    with pytest.raises(KeyError, match="There is no library 'C'"):
        stimg.pl.calibration(filled, truth, library_id="C")
    with pytest.raises(ValueError, match="n_bins=0"):
        stimg.pl.calibration(filled, truth, n_bins=0)
    with pytest.raises(ValueError, match="ax holds 1 Axes for 2 panels"):
        stimg.pl.calibration(filled, truth, ax=plt.subplots()[1])
    with pytest.raises(TypeError, match="truth is a Sparsified of 2"):
        stimg.pl.calibration(filled, stimg.pp.sparsify(section(), mask="checkerboard"))


def test_axes_may_be_given(parts):
    _, truth, filled = parts
    _, axes = plt.subplots(1, 2)
    found = stimg.pl.calibration(filled, truth, ax=axes)
    assert [found["coverage"], found["error"]] == list(axes)
