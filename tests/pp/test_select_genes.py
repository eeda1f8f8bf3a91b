"""Channel rules against scanpy and plain loops; observations outside the fit and control probes have no say."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from stimg._core import hashing
from stimg.image.spec import RasterSpec
from stimg.pp import select_genes
from stimg.pp._gene_rules import RULES

CONTROLS = ["NegControlProbe_1", "BLANK_2", "Probe_3"]
DATA_RULES = ["highly_variable", "highly_variable_v3", "spatially_variable", "variance", "detected"]


def sections(seed=0, side=12, n_vars=60, libraries=2) -> ad.AnnData:
    """Two square rasters with holes; genes 0-9 follow the columns, 10-19 vary without structure; three control probes vary most."""
    rng = np.random.default_rng(seed)
    counts, rc, names = [], [], []
    for library in range(libraries):
        here = np.argwhere(rng.random((side, side)) > 0.1)
        rate = np.tile(rng.gamma(2.0, 1.0, n_vars + 3), (len(here), 1))
        rate[:, :10] *= 3 * (here[:, 1:] > side / 2) + 0.2
        rate[:, 10:20] *= rng.gamma(0.4, 2.5, (len(here), 10))
        rate[:, n_vars:] *= rng.gamma(0.05, 200, (len(here), 3))
        counts.append(rng.poisson(rate))
        rc.append(here)
        names += [f"lib{library}"] * len(here)
    order = rng.permutation(len(names))
    adata = ad.AnnData(sp.csr_matrix(np.concatenate(counts)[order].astype(np.float32)))
    adata.obs_names = [f"spot{i}" for i in range(len(names))]
    adata.var_names = [f"gene{i}" for i in range(n_vars)] + CONTROLS
    adata.var["control"] = [False] * (n_vars + 2) + [True]
    adata.obs["library_id"] = pd.Categorical(np.array(names)[order])
    adata.obsm["stimg_rc"] = np.concatenate(rc)[order].astype(np.int32)
    adata.uns["stimg"] = {"raster": {f"lib{k}": RasterSpec("square", (side, side), 100.0).to_dict() for k in range(libraries)}}
    return adata


def genes_only(adata: ad.AnnData) -> ad.AnnData:
    return adata[:, ~adata.var_names.isin(CONTROLS)].copy()


def log_counts(adata: ad.AnnData) -> np.ndarray:
    x = genes_only(adata).X.toarray().astype(np.float64)
    depth = x.sum(axis=1, keepdims=True)
    return np.log1p(np.divide(1e4 * x, depth, out=np.zeros_like(x), where=depth > 0))


def chosen(adata: ad.AnnData) -> list[str]:
    order = adata.var["stimg_channel_order"]
    np.testing.assert_array_equal(order >= 0, adata.var["stimg_channel"])
    picked = order[order >= 0].sort_values()
    np.testing.assert_array_equal(picked, np.arange(len(picked)))
    return list(picked.index)


@pytest.mark.parametrize("rule", [*DATA_RULES, "uniform"])
def test_control_probes_are_never_channels_and_others_have_no_say(rule):
    adata = sections()
    n = 20
    rng = np.random.default_rng(1)
    adata.obs["train"] = rng.random(adata.n_obs) < 0.6
    select_genes(adata, rule=rule, n=n, fit_on="train")
    first = chosen(adata)
    assert len(first) == n
    assert not set(first) & set(CONTROLS)
    # other observations are poisoned: values that no rule accepts, and that would turn every ranking over
    poisoned = adata.copy()
    dense = poisoned.X.toarray()
    out = np.flatnonzero(~adata.obs["train"].to_numpy())
    dense[out] = rng.choice([np.nan, -5.0, 1e6, 0.5], (len(out), adata.n_vars))
    poisoned.X = sp.csr_matrix(dense)
    select_genes(poisoned, rule=rule, n=n, fit_on=adata.obs["train"].to_numpy())
    assert chosen(poisoned) == first
    record, again = adata.uns["stimg"]["channels"], poisoned.uns["stimg"]["channels"]
    if rule == "uniform":
        assert "seen" not in record
    else:
        np.testing.assert_array_equal(record["seen"]["0"]["contents"], again["seen"]["0"]["contents"])
        hashes = hashing.of_observations(adata.X, adata.var_names)[adata.obs["train"]]
        np.testing.assert_array_equal(record["seen"]["0"]["contents"], np.unique(hashes[hashes != 0]))
    assert record["panel"] == hashing.of_strings(first)
    # and the probes could be anything
    other = adata.copy()
    probes = other.X.toarray()
    probes[:, -3:] = 7 * rng.integers(0, 1000, (adata.n_obs, 3))
    other.X = sp.csr_matrix(probes)
    select_genes(other, rule=rule, n=n, fit_on="train")
    assert chosen(other) == first


@pytest.mark.parametrize(("rule", "flavor"), [("highly_variable", "seurat"), ("highly_variable_v3", "seurat_v3")])
@pytest.mark.parametrize("libraries", [1, 2])
def test_highly_variable_genes_are_scanpys(rule, flavor, libraries):
    import scanpy as sc

    adata = sections(libraries=libraries)
    select_genes(adata, rule=rule, n=15)
    genes = genes_only(adata)
    if flavor == "seurat":
        genes.X = sp.csr_matrix(log_counts(adata))
    table = sc.pp.highly_variable_genes(
        genes, flavor=flavor, n_top_genes=15, batch_key="library_id" if libraries > 1 else None, inplace=False
    )
    assert set(chosen(adata)) == set(
        table.index[table["highly_variable"]] if "gene0" in table.index else genes.var_names[table["highly_variable"]]
    )


def test_variance_is_the_variance_of_log_counts():
    adata = sections()
    select_genes(adata, rule="variance", n=60)
    score = log_counts(adata).var(axis=0)
    assert chosen(adata) == [f"gene{i}" for i in np.argsort(-score, kind="stable")]


def test_spatially_variable_averages_the_ranks_of_morans_i():
    adata = sections()
    fit = np.random.default_rng(0).random(adata.n_obs) < 0.8
    select_genes(adata, rule="spatially_variable", n=60, fit_on=fit)
    x, ranks = log_counts(adata), []
    for name in ("lib0", "lib1"):
        rows = np.flatnonzero(fit & (adata.obs["library_id"] == name))
        rc = adata.obsm["stimg_rc"][rows].astype(int)
        graph = (np.abs(rc[:, None] - rc).sum(axis=-1) == 1).astype(float)
        z = x[rows] - x[rows].mean(axis=0)
        score = np.einsum("ig,ij,jg->g", z, graph, z) / (z**2).sum(axis=0)
        ranks.append(np.argsort(np.argsort(-score)))
    expected = np.argsort(np.mean(ranks, axis=0), kind="stable")
    assert chosen(adata) == [f"gene{i}" for i in expected]
    assert set(chosen(adata)[:8]) <= {f"gene{i}" for i in range(10)}


def test_detected_counts_observations():
    adata = sections()
    dense = adata.X.toarray()
    dense[:, 5] = 0
    dense[:4, 5] = 9  # many counts in few observations
    adata.X = sp.csr_matrix(dense)
    fraction = (genes_only(adata).X.toarray() > 0).mean(axis=0)
    select_genes(adata, rule="detected", min_fraction=0.7)
    assert chosen(adata) == [f"gene{i}" for i in np.argsort(-fraction, kind="stable") if fraction[i] >= 0.7]
    assert 0 < len(chosen(adata)) < 60
    select_genes(adata, rule="detected", min_fraction=0.7, n=3)
    assert chosen(adata) == [f"gene{i}" for i in np.argsort(-fraction, kind="stable")[:3]]
    with pytest.raises(ValueError, match=r"genes are detected in at least 0\.7"):
        select_genes(adata, rule="detected", min_fraction=0.7, n=59)


def test_uniform_follows_the_seed_and_reaches_every_gene():
    adata = sections(side=4)
    found = []
    for seed in range(30):
        select_genes(adata, rule="uniform", n=20, rng=seed)
        found.append(chosen(adata))
    assert set().union(*found) == {f"gene{i}" for i in range(60)}
    select_genes(adata, rule="uniform", n=20, rng=3)
    assert chosen(adata) == found[3] != found[4]


@pytest.mark.parametrize("rule", ["panel", "markers"])
def test_markers_keep_their_order(rule):
    adata = sections(side=4)
    select_genes(adata, rule=rule, markers=["gene9", "gene1", "gene30"])
    assert chosen(adata) == ["gene9", "gene1", "gene30"]
    with pytest.raises(KeyError, match=r"2 of 3 markers are not in the object: \['TP53', 'ERBB2'\]"):
        select_genes(adata, rule=rule, markers=["gene9", "TP53", "ERBB2"])
    with pytest.raises(ValueError, match="control probes"):
        select_genes(adata, rule=rule, markers=["gene9", "BLANK_2"])
    with pytest.raises(ValueError, match="duplicated markers"):
        select_genes(adata, rule=rule, markers=["gene9", "gene9"])
    with pytest.raises(ValueError, match="the list decides"):
        select_genes(adata, rule=rule, markers=["gene9"], n=2)
    for markers in (None, []):
        with pytest.raises(ValueError, match="wanted"):
            select_genes(adata, rule=rule, markers=markers)


def test_genes_that_were_not_detected_are_not_chosen_from_counts():
    adata = sections()
    dense = adata.X.toarray()
    dense[:, 30:60] = 0
    adata.X = sp.csr_matrix(dense)
    with pytest.raises(ValueError, match="40 channels of 30 genes detected"):
        select_genes(adata, rule="variance", n=40)
    for rule in DATA_RULES:
        select_genes(adata, rule=rule, n=30)
        assert set(chosen(adata)) == {f"gene{i}" for i in range(30)}


def test_layers_and_round_trip(tmp_path):
    adata = sections()
    select_genes(adata, rule="variance", n=10)
    expected = chosen(adata)
    other = adata.copy()
    other.layers["counts"] = other.X.copy()
    other.X = sp.csr_matrix(other.X.toarray()[::-1] * 0.1)
    with pytest.raises(ValueError, match="whole-number counts"):
        select_genes(other, rule="variance", n=10)
    select_genes(other, rule="variance", n=10, layer="counts")
    assert chosen(other) == expected
    other.write_h5ad(tmp_path / "a.h5ad")
    back = ad.read_h5ad(tmp_path / "a.h5ad")
    assert chosen(back) == expected
    kept = back.uns["stimg"]["channels"]["seen"]["0"]["contents"]
    assert kept.dtype == np.uint64
    np.testing.assert_array_equal(kept, np.unique(hashing.of_observations(adata.X, adata.var_names)))


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"rule": "variense"}, ValueError, "Did you mean 'variance'"),
        ({"rule": "variance", "n": 0}, ValueError, "n=0"),
        ({"rule": "variance", "markers": ["gene1"]}, ValueError, "wanted a list for"),
        ({"rule": "variance", "n": 5, "fit_on": "nowhere"}, KeyError, "nowhere"),
        ({"rule": "variance", "n": 5, "fit_on": "library_id"}, TypeError, "wanted booleans"),
        ({"rule": "variance", "n": 5, "fit_on": np.ones(3, bool)}, ValueError, "has 3 values"),
        ({"rule": "variance", "n": 5, "fit_on": "none"}, ValueError, "False for all"),
        ({"rule": "variance", "n": 5, "library_key": "slide"}, KeyError, "slide"),
        ({"rule": "variance"}, ValueError, "512 channels of 60 genes"),
        ({"rule": "detected", "min_fraction": 2}, ValueError, "min_fraction=2"),
    ],
)
def test_errors_say_what_was_found(options, error, match):
    adata = sections(side=4)
    adata.obs["none"] = False
    with pytest.raises(error, match=match):
        select_genes(adata, **options)
    assert "stimg_channel" not in adata.var


def test_spatially_variable_needs_a_raster():
    adata = sections(side=4)
    del adata.obsm["stimg_rc"]
    with pytest.raises(KeyError, match=r"stimg\.pp\.rasterize"):
        select_genes(adata, rule="spatially_variable", n=5)


def test_every_rule_says_what_it_does():
    assert set(RULES) == {*DATA_RULES, "uniform", "panel", "markers"}
    assert all(RULES[name].rank.__doc__ for name in RULES)
