"""Heads beside naive ways of doing the same: loops, scikit-learn, dense arrays."""

import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import scipy.stats
from sklearn.linear_model import Ridge

import stimg
from stimg.metrics import coverage, embedding_ridge
from stimg.model import ExpressionHead, _head_maps, _head_reference
from stimg.model._head_calibration import LEVELS, calibrate

GENES = [f"g{i}" for i in range(6)]


def section(name, donor, n=60, *, seed=0, genes=GENES, width=5, stain=0.0):
    """Counts whose rates follow two of the features."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, width))
    slopes = np.linspace(-0.8, 0.8, len(GENES))
    rate = np.exp(1.5 + x[:, :1] * slopes + 0.3 * x[:, 1:2])
    counts = pd.DataFrame(rng.poisson(rate).astype(np.float32), columns=GENES).reindex(columns=genes, fill_value=0.0)
    obs = pd.DataFrame({"library_id": name, "donor": donor}, index=[f"{name}-{i}" for i in range(n)])
    adata = ad.AnnData(sp.csr_matrix(counts.to_numpy()), obs=obs, var=pd.DataFrame(index=list(genes)))
    adata.obsm["X_some"] = (x + stain).astype(np.float32)
    adata.obsm["spatial"] = np.column_stack([np.arange(n) % 8, np.arange(n) // 8]) * 100.0
    return adata


@pytest.fixture
def tables():
    return [section(f"{d}{i}", d, n=40 + 10 * i, seed=10 * k + i, stain=k) for k, d in enumerate("ABC") for i in (1, 2)]


def logs(adata, genes=GENES):
    """Log values of full libraries, dense."""
    counts = adata.X.toarray().astype(np.float64)
    at = adata.var_names.get_indexer(genes)
    return np.log1p(1e4 * counts[:, at] / counts.sum(axis=1, keepdims=True))


def stacked(tables, column):
    return np.concatenate([t.obs[column].astype(str).to_numpy() for t in tables])


def by_section(values, section):
    return values - pd.DataFrame(values).groupby(section).transform("mean").to_numpy()


@pytest.mark.parametrize("centre", [True, False])
@pytest.mark.parametrize("n_components", [3, None])
def test_ridge_is_embedding_ridge_with_its_coefficients(tables, centre, n_components):
    new = section("D1", "D", seed=99, stain=3.0)
    x, y = np.concatenate([t.obsm["X_some"] for t in tables]), np.concatenate([logs(t) for t in tables])
    where = {"train_section": stacked(tables, "library_id"), "test_section": stacked([new], "library_id")} if centre else {}
    wanted = embedding_ridge(x, y, new.obsm["X_some"], train_group=stacked(tables, "donor"), n_components=n_components, **where)
    head = ExpressionHead.fit(tables, features="X_some", centre=centre, n_components=n_components)
    assert head.map.penalty == wanted.penalty
    mean = y.mean(axis=0)
    values = np.maximum(mean + head.map.gain * (wanted.values - mean), 0)
    np.testing.assert_allclose(head.predict(new).values, values, atol=5e-5)
    assert head.predict(new).values.dtype == np.float32
    np.testing.assert_allclose(head.predict(new, genes=["g4", "g1"]).values, values[:, [4, 1]], atol=5e-5)
    assert head.predict(new).lower is None


def test_ridge_is_that_of_scikit_learn(tables):
    x, y = np.concatenate([t.obsm["X_some"] for t in tables]).astype(np.float64), np.concatenate([logs(t) for t in tables])
    head = ExpressionHead.fit(tables, features="X_some", centre=False, n_components=None)
    z = (x - x.mean(axis=0)) / x.std(axis=0)
    line = Ridge(alpha=head.map.penalty * len(z)).fit(z, y)  # each standardised column has the sum of squares n
    wanted = y.mean(axis=0) + head.map.gain * (line.predict(z[: tables[0].n_obs]) - y.mean(axis=0))
    np.testing.assert_allclose(head.predict(tables[0]).values, np.maximum(wanted, 0), atol=5e-5)


def test_chunks_of_genes_and_rows_change_nothing(tables, monkeypatch):
    whole = ExpressionHead.fit(tables, features="X_some")
    monkeypatch.setattr(_head_maps, "GENES", 2)
    parts = ExpressionHead.fit(tables, features="X_some")
    np.testing.assert_allclose(parts.map.coefficients, whole.map.coefficients, atol=1e-6)
    np.testing.assert_allclose(parts.predictability, whole.predictability, atol=1e-6)
    np.testing.assert_allclose(parts.calibration.quantiles, whole.calibration.quantiles, rtol=1e-5)


def test_predictability_is_learnt_on_donors_that_are_left_out(tables):
    head = ExpressionHead.fit(tables, features="X_some")
    x, y = np.concatenate([t.obsm["X_some"] for t in tables]), np.concatenate([logs(t) for t in tables])
    donor, library = stacked(tables, "donor"), stacked(tables, "library_id")
    found = np.zeros_like(y)
    for d in "ABC":
        held = donor == d
        some = {"train_group": donor[~held], "train_section": library[~held], "test_section": library[held]}
        found[held] = embedding_ridge(x[~held], y[~held], x[held], **some).values
    slope = scipy.stats.linregress(by_section(found, library).ravel(), by_section(y, library).ravel()).slope
    assert head.map.gain == pytest.approx(slope, rel=1e-3)
    for d in "ABC":
        middle = y[donor != d].mean(axis=0)
        found[donor == d] = np.maximum(middle + slope * (found[donor == d] - middle), 0)
    sections = {
        s: [scipy.stats.pearsonr(y[library == s][:, g], found[library == s][:, g])[0] for g in range(6)] for s in np.unique(library)
    }
    r = [np.mean([sections[f"{d}{i}"] for i in (1, 2)], axis=0) for d in "ABC"]
    np.testing.assert_allclose(head.predictability, np.mean(r, axis=0), atol=1e-4)
    assert head.predictability.index.tolist() == GENES
    assert (head.calibration.level, head.calibration.n_groups, head.calibration.n_obs) == ("donor", 3, len(x))
    assert head.predictability["g0"] > 0.4  # follows the features
    assert abs(head.predictability["g2"]) < 0.4  # hardly does


def test_sections_then_blocks_are_left_out_where_there_is_one_donor():
    two = [section("A1", "A", seed=1), section("A2", "A", seed=2)]
    assert ExpressionHead.fit(two, features="X_some").calibration.level == "section"
    one = ExpressionHead.fit(two[0], features="X_some")
    assert (one.calibration.level, one.calibration.n_groups) == ("block", 4)
    del two[1].obs["donor"]
    two[0].obs["donor"] = ["x", "y"] * 30
    assert ExpressionHead.fit(two, features="X_some").calibration.level == "section"  # one section has no donor
    del two[0].obsm["spatial"]
    with pytest.raises(ValueError, match="one section of 60 observations without coordinates; wanted several donors"):
        ExpressionHead.fit(two[0], features="X_some", donor_key="none")


def test_many_donors_make_five_groups():
    codes = np.repeat(np.arange(8), [50, 10, 10, 10, 10, 10, 10, 40])
    found = _head_reference._few(codes)
    table = pd.crosstab(found, codes)
    assert ((table > 0).sum(axis=0) == 1).all()  # no donor is in two groups
    assert len(table) == 5
    assert table.sum(axis=1).max() == 50


@pytest.mark.parametrize("centre", [True, False])
def test_retrieval_is_a_weighted_mean_of_the_nearest(tables, centre):
    head = ExpressionHead.fit(tables, features="X_some", kind="retrieval", centre=centre, n_joint=3, k=7, temperature=0.2)
    new = section("D1", "D", n=15, seed=99, stain=3.0)
    y, library = np.concatenate([logs(t) for t in tables]), stacked(tables, "library_id")
    x, asked = np.concatenate([t.obsm["X_some"] for t in tables]).astype(np.float64), new.obsm["X_some"].astype(np.float64)
    if centre:
        shown, x, asked = by_section(y, library), by_section(x, library), asked - asked.mean(axis=0)
    else:
        shown = y
    middle = shown - shown.mean(axis=0)
    gallery = middle @ np.linalg.svd(middle, full_matrices=False)[2][:3].T
    z = (x - x.mean(axis=0)) / x.std(axis=0)
    target = by_section(gallery, library) if centre else gallery
    line = Ridge(alpha=head.map.image_map.penalty * len(z)).fit(z, target)
    query = line.predict((asked - x.mean(axis=0)) / x.std(axis=0))
    wanted = np.zeros((15, 6))
    for i, q in enumerate(query):
        cosine = gallery @ q / np.linalg.norm(gallery, axis=1) / np.linalg.norm(q)
        best = np.argsort(-cosine)[:7]
        weight = np.exp(cosine[best] / 0.2)
        wanted[i] = weight @ shown[best] / weight.sum() + (y.mean(axis=0) if centre else 0)
    np.testing.assert_allclose(head.predict(new).values, np.maximum(wanted, 0), atol=2e-3)


def test_a_query_without_direction_gets_the_mean(tables):
    head = ExpressionHead.fit(tables, features="X_some", kind="retrieval", n_joint=3, k=7)
    gallery = head.map.gallery
    prepared = _head_maps.RetrievalMap.of(gallery, head.map.values_, head.map.section, centre=True, k=3, temperature=0.1).prepare(
        np.zeros((2, gallery.shape[1]))
    )
    np.testing.assert_allclose(head.map.values(prepared, slice(None)), np.tile(head.map.overall, (2, 1)), rtol=1e-6)


class TestIntervals:
    def test_quantiles_are_those_of_split_conformal_prediction(self):
        rng = np.random.default_rng(0)
        predicted = rng.uniform(1, 3, (40, 1))
        truth = predicted + rng.standard_normal((40, 1)) * predicted
        found = calibrate(truth, predicted, np.arange(40) % 4, np.arange(40) % 4)
        off = np.abs(truth - predicted)[:, 0]
        slope, offset = np.polyfit(predicted[:, 0], off, 1)
        spread = np.clip(offset + slope * predicted[:, 0], off.mean() / 4, 4 * off.mean())
        ratio = sorted(off / spread)
        for level in (0.5, 0.9, 0.95, 0.99):
            place = int(np.ceil(41 * level - 1e-9))
            wanted = ratio[place - 1] if place <= 40 else np.inf
            assert found["quantiles"][LEVELS.index(level), 0] == pytest.approx(wanted, rel=1e-5)

    @pytest.mark.parametrize("level", [0.5, 0.8, 0.9, 0.95])
    @pytest.mark.parametrize("kind", ["ridge", "retrieval"])
    def test_coverage_on_exchangeable_sections_is_nominal(self, kind, level):
        pool = [section(f"{d}1", d, n=150, seed=i) for i, d in enumerate("ABCDEF")]
        head = ExpressionHead.fit(pool, features="X_some", kind=kind, n_joint=3, centre=False)
        new = [section(f"N{i}", "N", n=200, seed=100 + i) for i in range(6)]
        found = [head.predict(a, coverage=level) for a in new]
        truth = np.concatenate([logs(a) for a in new])
        score = coverage(truth, np.concatenate([f.lower for f in found]), np.concatenate([f.upper for f in found]), level=level)
        assert -0.02 < score.error < 0.04  # a head fitted on all groups is a little better than those whose residuals are known
        np.testing.assert_allclose(score.per_gene, level, atol=0.07)  # three standard errors of 900 residuals and 1,200 truths

    def test_a_level_between_two_is_answered_by_the_larger(self, tables):
        head = ExpressionHead.fit(tables, features="X_some")
        low = head.predict(tables[0], coverage=0.905)
        np.testing.assert_array_equal(low.lower, head.predict(tables[0], coverage=0.91).lower)
        exact = head.predict(tables[0], coverage=0.9)
        assert ((exact.upper - exact.lower) <= (low.upper - low.lower)).all()
        assert (exact.lower >= 0).all()
        assert ((exact.lower <= exact.values) & (exact.values <= exact.upper)).all()

    def test_too_few_observations_for_a_level_are_told_by_infinite_bounds(self):
        few = [section("A1", "A", n=20, seed=1), section("B1", "B", n=20, seed=2)]
        head = ExpressionHead.fit(few, features="X_some")
        assert np.isinf(head.predict(few[0], coverage=0.99).upper).all()
        assert np.isfinite(head.predict(few[0], coverage=0.9).upper).all()

    def test_a_gene_that_never_varies(self):
        flat = [section(f"{d}1", d, seed=i) for i, d in enumerate("AB")]
        for each in flat:
            each.X = sp.csr_matrix(np.where(np.arange(6) == 3, 0, each.X.toarray()))
        head = ExpressionHead.fit(flat, features="X_some", genes=GENES)
        found = head.predict(flat[0], coverage=0.9)
        np.testing.assert_allclose(np.stack([found.values, found.lower, found.upper])[:, :, 3], 0.0, atol=1e-6)
        assert head.predictability["g3"] == 0
        assert "g3" not in ExpressionHead.fit(flat, features="X_some").genes  # no count, so not among all genes


def test_saving(tables, tmp_path):
    for kind in ("ridge", "retrieval"):
        head = ExpressionHead.fit(tables, features="X_some", kind=kind, n_joint=3, k=5)
        head.save(tmp_path / kind)
        back = ExpressionHead.load(tmp_path / kind)
        for a, b in zip(head.predict(tables[1], coverage=0.8), back.predict(tables[1], coverage=0.8), strict=True):
            np.testing.assert_array_equal(a, b)
        assert back.options == head.options
        assert back.calibration.facts() == head.calibration.facts()
        pd.testing.assert_series_equal(back.predictability, head.predictability)
        assert [s.to_dict().keys() for s in back.ledger] == [s.to_dict().keys() for s in head.ledger]
        np.testing.assert_array_equal(back.ledger[0].contents, head.ledger[0].contents)
        assert back.identity() == head.identity()
    with pytest.raises(FileExistsError, match="exists already"):
        head.save(tmp_path / "ridge")
    record = json.loads((tmp_path / "ridge" / "model.json").read_text())
    record["genes"][0] = "other"
    (tmp_path / "ridge" / "model.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="list of genes does not match its hash"):
        ExpressionHead.load(tmp_path / "ridge")
    (tmp_path / "retrieval" / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(ValueError, match="is damaged"):
        ExpressionHead.load(tmp_path / "retrieval")
    with pytest.raises(FileNotFoundError, match=r"model\.json is missing"):
        ExpressionHead.load(tmp_path)


def test_the_ledger_finds_a_section_under_another_name(tables):
    head = ExpressionHead.fit(tables[:2], features="X_some")
    again = tables[0].copy()
    again.obs_names = [f"x{i}" for i in range(again.n_obs)]
    again.obs["library_id"], again.obs["donor"] = "other", "other"
    with pytest.raises(
        ValueError, match=r"Leakage: the model 'ridge head' has seen 50 of 50 test observations, recognised by their counts"
    ):
        stimg.bench.check_leakage(again, head)
    assert stimg.bench.check_leakage(section("Z1", "Z", seed=77), head) == []


def test_what_the_features_have_seen_is_remembered(tables):
    pca = stimg.bench.seen_of(tables[4], who="PCA of the image features", kind="PCA")
    for each in tables[:4]:
        each.uns["stimg"] = {"X_some": {"encoder": "some"}}
        stimg.bench.remember(each, "X_some", pca)
    head = ExpressionHead.fit(tables[:4], features="X_some")
    assert [seen.who for seen in head.ledger].count("PCA of the image features") == 1
    with pytest.raises(ValueError, match="the PCA 'PCA of the image features' has seen 50 of 50"):
        stimg.bench.check_leakage(tables[4], head)


class TestErrors:
    def test_features(self, tables):
        with pytest.raises(KeyError, match=r"adata\.obsm\['X_efficientnet_lite0'\] is missing.*stimg\.tl\.embed_image"):
            ExpressionHead.fit(tables)
        head = ExpressionHead.fit(tables, features="X_some")
        new = section("D1", "D", width=7)
        with pytest.raises(ValueError, match="have 7 columns; the head was fitted on 5"):
            head.predict(new)
        with pytest.raises(ValueError, match=r"have \[5, 7\] columns in different tables"):
            ExpressionHead.fit([*tables, new], features="X_some")
        broken = tables[0].copy()
        broken.obsm["X_some"][3, 1] = np.nan
        with pytest.raises(ValueError, match="1 rows of 50 with NaN or infinite values, the first is row 3"):
            head.predict(broken)

    def test_features_made_in_another_way(self, tables):
        for each in tables:
            each.uns["stimg"] = {"X_some": {"encoder": "uni", "mpp": 0.5, "fields": np.array([1.0, 2.0])}}
        head = ExpressionHead.fit(tables, features="X_some")
        other = section("D1", "D")
        head.predict(other)  # nothing is known of how they were made
        for record, what in (
            ({"encoder": "conch"}, "encoder='conch'; the head was fitted on features made with encoder='uni'"),
            ({"mpp": 1.0}, "mpp=1; the head was fitted on features made with mpp=0.5"),
            ({"fields": np.array([1.0])}, r"fields=1; the head was fitted on features made with fields=\[1.0, 2.0\]"),
        ):
            other.uns["stimg"] = {"X_some": record}
            with pytest.raises(ValueError, match=what):
                head.predict(other)
        tables[3].uns["stimg"]["X_some"]["encoder"] = "conch"
        with pytest.raises(ValueError, match="encoder='conch'"):
            ExpressionHead.fit(tables, features="X_some")

    def test_genes(self, tables):
        with pytest.raises(KeyError, match="1 of 2 genes asked for are not in the object"):
            ExpressionHead.fit(tables, features="X_some", genes=["g1", "none"])
        with pytest.raises(ValueError, match="genes is empty"):
            ExpressionHead.fit(tables, features="X_some", genes=[])
        head = ExpressionHead.fit(tables, features="X_some", genes=["g1"])
        with pytest.raises(KeyError, match=r"The head predicts `head\.genes` alone"):
            head.predict(tables[0], genes=["g2"])
        lacking = section("D1", "D", genes=["g0", "g1"])
        assert ExpressionHead.fit([*tables, lacking], features="X_some").genes.tolist() == ["g0", "g1"]

    def test_control_probes_are_no_genes_and_no_depth(self, tables):
        for each in tables:
            each.var["control"] = np.arange(6) == 5
        head = ExpressionHead.fit(tables, features="X_some")
        assert head.genes.tolist() == GENES[:5]
        counts = tables[0].X.toarray()[:, :5]
        np.testing.assert_allclose(
            _head_reference.log_values(tables[0], GENES[:5], None).toarray(),
            np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True)),
            rtol=1e-5,
        )

    def test_reference(self, tables):
        with pytest.raises(ValueError, match=r"the sections \['A1'\] are in several tables"):
            ExpressionHead.fit([tables[0], tables[0]], features="X_some")
        with pytest.raises(TypeError, match="reference holds nothing"):
            ExpressionHead.fit([], features="X_some")
        with pytest.raises(TypeError, match=r"reference holds \['str'\]"):
            ExpressionHead.fit(["A1"], features="X_some")
        del tables[0].obs["library_id"]
        with pytest.raises(KeyError, match=r"adata\.obs\['library_id'\] is missing"):
            ExpressionHead.fit(tables, features="X_some")

    def test_options(self, tables):
        with pytest.raises(ValueError, match="kind='forest' is not known"):
            ExpressionHead.fit(tables, features="X_some", kind="forest")
        with pytest.raises(ValueError, match="kind='trained' needs a trained model"):
            ExpressionHead.fit(tables, features="X_some", kind="trained")
        with pytest.raises(ValueError, match="k=0 is not usable"):
            ExpressionHead.fit(tables, features="X_some", kind="retrieval", k=0)
        head = ExpressionHead.fit(tables, features="X_some")
        with pytest.raises(ValueError, match=r"coverage=0\.3 is not between 0\.5 and 0\.99"):
            head.predict(tables[0], coverage=0.3)

    def test_counts(self, tables):
        tables[0].X = tables[0].X * 0.5
        with pytest.raises(ValueError, match="fractional values"):
            ExpressionHead.fit(tables, features="X_some")
