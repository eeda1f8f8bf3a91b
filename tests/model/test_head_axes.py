"""The head on axes of expression beside dense loops, scikit-learn, and a world whose axes are known."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from sklearn.linear_model import Ridge

import stimg
from stimg.metrics import retrieve
from stimg.model import ExpressionHead, _head_maps

GENES = [f"g{i}" for i in range(30)]
BASE = np.random.default_rng(1).normal(5.0, 0.5, 30)
SHARE = np.exp(BASE) / np.linalg.norm(np.exp(BASE))
_FREE = np.random.default_rng(7).standard_normal((30, 2))
AXES = np.linalg.qr(_FREE - np.outer(SHARE, SHARE @ _FREE))[0]
"""Two axes along which log rates vary in every donor; along them the sum of all rates stays nearly what it is."""


def section(name, donor, n=80, *, seed=0, image=True, told=1.0, genes=GENES):
    """Counts whose depth and place on two axes vary; the image tells of depth and of the first axis, and holds three columns of noise."""
    rng = np.random.default_rng(seed)
    place, depth = rng.standard_normal((n, 2)), 0.5 * rng.standard_normal(n)
    rate = np.exp(BASE + 1.6 * place @ AXES.T + depth[:, None])
    adata = AnnData(
        sp.csr_matrix(pd.DataFrame(rng.poisson(rate), columns=GENES).reindex(columns=genes, fill_value=0).to_numpy(dtype=np.float32)),
        obs=pd.DataFrame({"library_id": name, "donor": donor}, index=[f"{name}-{i}" for i in range(n)]),
        var=pd.DataFrame(index=list(genes)),
    )
    adata.obsm["spatial"] = np.column_stack([np.arange(n) % 8, np.arange(n) // 8]) * 100.0
    if image:
        noise = rng.standard_normal((n, 3))
        adata.obsm["X_some"] = np.column_stack([depth + 0.2 * noise[:, 0], told * place[:, 0] + 0.2 * noise[:, 1], noise]).astype(
            np.float32
        )
    return adata


@pytest.fixture
def tables():
    return [section(f"{d}{i}", d, n=50 + 10 * i, seed=10 * k + i) for k, d in enumerate("ABC") for i in (1, 2)]


def logs(adata, genes=GENES):
    counts = pd.DataFrame(adata.X.toarray().astype(np.float64), columns=adata.var_names)
    return np.log1p(1e4 * counts.reindex(columns=genes, fill_value=0.0).to_numpy() / counts.to_numpy().sum(axis=1, keepdims=True))


def naive_axes(tables, k):
    """Slopes, axes and loadings by loops over donors; sections centred."""
    donors = {}
    for t in tables:
        y, d = logs(t), np.log(t.X.toarray().sum(axis=1))
        part = donors.setdefault(t.obs["donor"].iloc[0], ([], []))
        part[0].append(y - y.mean(axis=0))
        part[1].append(d - d.mean())
    donors = [(np.concatenate(y), np.concatenate(d)) for y, d in donors.values()]
    slope = np.mean([[np.polyfit(d, y[:, g], 1)[0] for g in range(y.shape[1])] for y, d in donors], axis=0)
    pooled = np.zeros((y_width := donors[0][0].shape[1], y_width))
    for y, d in donors:
        rest = y - np.outer(d, slope)
        pooled += np.cov(rest.T, bias=True) / np.trace(np.cov(rest.T, bias=True))
    vectors = np.linalg.eigh(pooled)[1][:, ::-1][:, :k]
    return slope, vectors


@pytest.mark.parametrize("n_more", [0, 3])
def test_axes_are_those_of_loops_over_donors(tables, n_more):
    more = [section(f"M{i}", "CDD"[i], seed=50 + i, image=False) for i in range(n_more)]
    head = ExpressionHead.fit(tables, features="X_some", kind="axes", n_joint=3, expression=more or None)
    slope, vectors = naive_axes([*tables, *more], 3)
    np.testing.assert_allclose(head.map.axes.slope, slope, atol=1e-4)
    np.testing.assert_allclose(np.abs((head.map.axes.axes * vectors).sum(axis=0)), 1.0, atol=1e-4)
    np.testing.assert_allclose(head.map.axes.loadings[0], slope, atol=1e-4)
    np.testing.assert_allclose(head.map.axes.loadings[1:], head.map.axes.axes.T, atol=1e-4)  # all genes are judged here


def test_the_axes_of_the_world_are_found(tables):
    head = ExpressionHead.fit(tables, features="X_some", kind="axes", n_joint=2)
    assert head.map.axes.loadings.shape == (3, 30)
    shared = np.linalg.svd(AXES.T @ head.map.axes.axes, compute_uv=False)
    assert shared.min() > 0.9  # the plane that the world varies in
    depth, *others = head.map.agreement
    assert depth > 0.5
    assert max(others) > 0.8


def test_genes_beyond_those_judged_get_loadings_by_least_squares(tables, monkeypatch):
    whole = ExpressionHead.fit(tables, features="X_some", kind="axes", n_joint=2)
    monkeypatch.setattr("stimg.model._head_axes.MOST_JUDGED", 12)
    monkeypatch.setattr(_head_maps, "GENES", 7)
    some = ExpressionHead.fit(tables, features="X_some", kind="axes", n_joint=2)
    axes = some.map.axes
    assert axes.judged.size == 12
    z, y, weight = [], [], []
    for d in "ABC":
        own = [t for t in tables if t.obs["donor"].iloc[0] == d]
        depth = np.concatenate([(v := np.log(t.X.toarray().sum(axis=1))) - v.mean() for t in own])
        rest = np.concatenate([(v := logs(t)) - v.mean(axis=0) for t in own]) - np.outer(depth, axes.loadings[0])
        z.append(rest[:, axes.judged] @ axes.axes)
        y.append(rest)
        weight.append(np.full(len(rest), 1 / np.sqrt((rest[:, axes.judged] ** 2).sum())))
    weight = np.concatenate(weight)[:, None]
    wanted = np.linalg.lstsq(np.concatenate(z) * weight, np.concatenate(y) * weight, rcond=None)[0]
    np.testing.assert_allclose(axes.loadings[1:], wanted, atol=1e-4)
    new = section("Z1", "Z", seed=99)
    r = [np.corrcoef(h.predict(new).values.T, logs(new).T)[:30, 30:].diagonal().mean() for h in (whole, some)]
    assert r[1] > r[0] - 0.05


def test_each_latent_has_a_ridge_regression_of_its_own(tables):
    head = ExpressionHead.fit(tables, features="X_some", kind="axes", n_joint=2, n_components=None)
    map_ = head.map
    x = np.concatenate([t.obsm["X_some"] - t.obsm["X_some"].mean(axis=0) for t in tables]).astype(np.float64)
    z, penalties = [], map_.penalty
    for t in tables:
        d = np.log(t.X.toarray().sum(axis=1))
        y, d = logs(t) - logs(t).mean(axis=0), d - d.mean()
        z.append(np.column_stack([d, (y - np.outer(d, map_.axes.slope)) @ map_.axes.axes]))
    z, donor = np.concatenate(z), np.concatenate([t.obs["donor"].to_numpy() for t in tables])
    new = section("Z1", "Z", seed=99)
    asked = new.obsm["X_some"] - new.obsm["X_some"].mean(axis=0)
    wanted = np.zeros((new.n_obs, 30))
    for j in range(3):
        scale = x.std(axis=0)
        line = Ridge(alpha=penalties[j] * len(x)).fit(x / scale, z[:, j])
        left_out = np.zeros(len(x))
        for one in "ABC":
            kept = donor != one
            sd = x[kept].std(axis=0)
            left_out[~kept] = Ridge(alpha=penalties[j] * kept.sum()).fit(x[kept] / sd, z[kept, j]).predict(x[~kept] / sd)
        gain = max(np.polyfit(left_out, z[:, j], 1)[0], 0.0)
        assert map_.gain[j] == pytest.approx(gain, abs=0.02)  # sections are centred once more there
        wanted += np.outer(map_.gain[j] * line.predict(asked / scale), map_.axes.loadings[j])
    mean = np.concatenate([logs(t) for t in tables]).mean(axis=0)
    np.testing.assert_allclose(head.predict(new).values, np.maximum(wanted + mean, 0), atol=1e-3)


def test_the_penalty_of_each_latent_is_the_best_of_left_out_donors(tables):
    """An axis that the image does not tell of gets a large penalty, whatever suits the others."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((120, 40))
    y = np.column_stack([x[:, 0] + 0.1 * rng.standard_normal(120), rng.standard_normal(120)])
    group = np.repeat([0, 1, 2], 40)
    found = stimg.metrics.separate_ridge(x, y, group=group, section=group, n_components=None)
    for j in range(2):
        scores = []
        for p in stimg.metrics._ridge.PENALTIES:
            r = []
            for g in range(3):
                kept = group != g
                mean, sd = x[kept].mean(axis=0), x[kept].std(axis=0)
                line = Ridge(alpha=p * 80).fit((x[kept] - mean) / sd, y[kept, j])
                r.append(np.corrcoef(line.predict((x[~kept] - mean) / sd), y[~kept, j])[0, 1])
            scores.append(np.mean(r))
        assert found.penalty[j] == pytest.approx(stimg.metrics._ridge.PENALTIES[int(np.argmax(scores))])
    assert found.penalty[1] != found.penalty[0]
    alone = stimg.metrics.separate_ridge(x, y[:, 1:], group=group, section=group, n_components=None)
    np.testing.assert_allclose(alone.held_out[:, 0], found.held_out[:, 1], atol=1e-10)
    np.testing.assert_allclose(alone.linear.coefficients[:, 0], found.linear.coefficients[:, 1], atol=1e-10)
    with pytest.raises(ValueError, match="1 group of rows; wanted at least two"):
        stimg.metrics.separate_ridge(x, y, group=np.zeros(120), section=group)


def test_an_axis_that_the_image_does_not_tell_is_left_out():
    """With pure noise as features, what is predicted is nearly the mean, where a regression without gains would follow the noise."""
    blind = [section(f"{d}1", d, seed=i, told=0.0) for i, d in enumerate("ABCD")]
    for t in blind:
        t.obsm["X_some"] = np.random.default_rng(len(t.obs_names[0])).standard_normal((t.n_obs, 5)).astype(np.float32)
    head = ExpressionHead.fit(blind, features="X_some", kind="axes", n_joint=2)
    spread = head.predict(blind[0]).values.std(axis=0) / logs(blind[0]).std(axis=0)
    assert spread.max() < 0.3
    assert head.map.agreement.max() < 0.3


def test_sections_without_an_image_improve_axes_and_see_no_image(tables):
    """Two small sections do not know the axes; many sections without an image do."""
    few = [section(f"{d}1", d, n=25, seed=i) for i, d in enumerate("AB")]
    more = [section(f"M{i}", f"M{i}", n=200, seed=30 + i, image=False) for i in range(4)]
    alone, taught = (ExpressionHead.fit(few, features="X_some", kind="axes", n_joint=2, expression=e) for e in (None, more))
    planes = [np.linalg.svd(AXES.T @ h.map.axes.axes, compute_uv=False).min() for h in (alone, taught)]
    assert planes[1] > max(planes[0], 0.95)
    assert {lib for seen in taught.ledger for lib in seen.libraries} == {"A1", "B1", "M0", "M1", "M2", "M3"}
    with pytest.raises(ValueError, match="Leakage: the model 'axes head' has seen 200 of 200"):
        stimg.bench.check_leakage(more[2], taught)


def test_what_is_left_out_teaches_no_axes(tables):
    """Predictability of donor C comes from axes without any section of C, also one without an image."""
    more = [section("C9", "C", n=300, seed=77, image=False)]
    a, b = (ExpressionHead.fit(tables, features="X_some", kind="axes", n_joint=2, expression=e) for e in (None, more))
    other = [section("C9", "E", n=300, seed=77, image=False)]
    c = ExpressionHead.fit(tables, features="X_some", kind="axes", n_joint=2, expression=other)
    assert not np.allclose(b.map.axes.loadings, a.map.axes.loadings, atol=1e-3)
    left_out = {}
    for name, head in (("a", a), ("b", b), ("c", c)):
        left_out[name] = head.calibration.predictability
    assert not np.allclose(left_out["b"], left_out["c"], atol=1e-6)  # donor E may be used where C is left out, the section of C not


def test_depth_alone(tables):
    """Without axes every gene is its slope times the predicted depth."""
    head, new = ExpressionHead.fit(tables, features="X_some", kind="axes", n_joint=0), section("Z1", "Z", seed=99)
    slope, _ = naive_axes(tables, 1)
    found = head.predict(new).values - np.concatenate([logs(t) for t in tables]).mean(axis=0)
    depth = head.map.prepare(new.obsm["X_some"] - new.obsm["X_some"].mean(axis=0)) * head.map.gain
    assert depth.shape == (80, 1)
    np.testing.assert_allclose(found, depth * slope, atol=1e-3)
    assert np.corrcoef(depth[:, 0], np.log(new.X.toarray().sum(axis=1)))[0, 1] > 0.8
    with pytest.raises(ValueError, match="n_joint"):
        ExpressionHead.fit(tables, features="X_some", kind="retrieval", n_joint=0)


def test_joint_space_finds_partners(tables):
    head = ExpressionHead.fit(tables, features="X_some", kind="axes", n_joint=2)
    new = section("Z1", "Z", n=150, seed=99)
    image, genes = head.get_image_embedding(new), head.get_gene_embedding(new)
    assert image.shape == genes.shape == (150, 3)
    assert image.dtype == genes.dtype == np.float32
    found = retrieve(image, genes)
    assert (found.rank <= 5).mean() > 4 * 5 / 150
    order = np.random.default_rng(0).permutation(150)
    np.testing.assert_allclose(head.get_gene_embedding(new[order].copy()), genes[order], atol=1e-5)
    stimg.tl.align(new, model=head, key_added="axes")
    np.testing.assert_array_equal(new.obsm["X_stimg_axes_image"], image)
    stimg.tl.retrieve(new, model=head, k=3)
    assert new.uns["stimg"]["stimg_retrieval"]["model"] == "ExpressionHead"
    bare = section("Z2", "Z", seed=98)
    del bare.obsm["X_some"]
    assert head.get_gene_embedding(bare).shape == (80, 3)  # needs no image
    empty = AnnData(obs=new.obs, obsm={"X_some": new.obsm["X_some"]})
    np.testing.assert_array_equal(head.get_image_embedding(empty), image)  # needs no counts


def test_saving_and_writing(tables, tmp_path):
    head = ExpressionHead.fit(tables, features="X_some", kind="axes", n_joint=3, layer=None)
    head.save(tmp_path / "head")
    back, new = ExpressionHead.load(tmp_path / "head"), section("Z1", "Z", seed=99)
    for a, b in zip(head.predict(new, coverage=0.8), back.predict(new, coverage=0.8), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(head.get_gene_embedding(new), back.get_gene_embedding(new))
    assert back.identity() == head.identity()
    stimg.tl.predict_expression(new, model=back)
    np.testing.assert_array_equal(new.layers["stimg_axes"], head.predict(new).values)


def test_bad_input(tables):
    with pytest.raises(ValueError, match=r"kind='ridge' learns nothing from sections without image features\. Pass kind='axes'"):
        ExpressionHead.fit(tables, features="X_some", expression=[section("M1", "M", image=False)])
    with pytest.raises(ValueError, match=r"the sections \['A1'\] are in several tables"):
        ExpressionHead.fit(tables, features="X_some", kind="axes", expression=section("A1", "A", seed=8))
    for nothing in ([3], []):
        with pytest.raises(TypeError, match="expression holds"):
            ExpressionHead.fit(tables, features="X_some", kind="axes", expression=nothing)
    logged = section("M1", "M", image=False)
    logged.X = logged.X.log1p()
    with pytest.raises(ValueError, match="counts"):
        ExpressionHead.fit(tables, features="X_some", kind="axes", expression=logged)
    assert ExpressionHead.fit(tables, features="X_some", kind="axes", n_joint=99).map.axes.axes.shape[1] < 31  # as many as there are genes
    with pytest.raises(ValueError, match="kind='axes' regresses on features and reads no model"):
        ExpressionHead.fit(tables, kind="axes", model=object())
    ridge = ExpressionHead.fit(tables, features="X_some")
    with pytest.raises(ValueError, match="kind='ridge' has no joint space"):
        ridge.get_image_embedding(tables[0])
    head = ExpressionHead.fit(tables, features="X_some", kind="axes", n_joint=2)
    with pytest.raises(KeyError, match="genes that span the axes"):
        head.get_gene_embedding(section("Z1", "Z", genes=GENES[:20]))
    flat = [section(f"{d}1", d, seed=i) for i, d in enumerate("AB")]
    for each in flat:
        each.X = sp.csr_matrix(np.ones(each.shape, dtype=np.float32))
    with pytest.raises(ValueError, match="do not vary"):
        ExpressionHead.fit(flat, features="X_some", kind="axes")


def test_a_gene_that_a_further_section_lacks_counts_as_zero_there(tables):
    lacking = section("M1", "M", n=120, seed=5, image=False, genes=GENES[:25])
    filled = section("M1", "M", n=120, seed=5, image=False)
    filled.X = sp.csr_matrix(np.where(np.arange(30) < 25, filled.X.toarray(), 0))
    a, b = (ExpressionHead.fit(tables, features="X_some", kind="axes", n_joint=2, expression=e) for e in (lacking, filled))
    np.testing.assert_allclose(a.map.axes.loadings, b.map.axes.loadings, atol=1e-6)
    assert a.genes.tolist() == GENES
