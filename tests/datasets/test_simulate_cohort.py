"""The simulated cohort: what it says of itself, measured on what it gives."""

import numpy as np
import pytest

import stimg
from stimg.datasets import simulate_cohort


def means(adata):
    x = adata.obsm["X_simulated"]
    return {s: x[(adata.obs["library_id"] == s).to_numpy()].mean(0) for s in adata.obs["library_id"].cat.categories}


def test_numbers_are_those_asked_for():
    adata = simulate_cohort(n_donors=20, n_slides=2, n_tiles=(10, 30), n_features=6, prevalence=0.3, informative=0.2, rng=3)
    obs = adata.obs
    assert obs["donor"].nunique() == 20
    assert (obs.groupby("donor", observed=True)["library_id"].nunique() == 2).all()
    size = obs["library_id"].value_counts()
    assert size.min() >= 10
    assert size.max() <= 30
    label = obs.groupby("donor", observed=True)["label"].unique()
    assert (label.str.len() == 1).all()
    assert (label.str[0] == "positive").sum() == 6
    carry = obs.groupby("library_id", observed=True).agg(n=("informative", "sum"), of=("informative", "size"), label=("label", "first"))
    assert (carry.loc[carry["label"] == "negative", "n"] == 0).all()
    positive = carry[carry["label"] == "positive"]
    assert (positive["n"] == (0.2 * positive["of"]).round().clip(lower=1)).all()
    assert adata.n_vars == 0
    assert adata.obsm["X_simulated"].dtype == np.float32
    record = adata.uns["stimg"]["X_simulated"]
    assert record["verb"] == "simulate_cohort"
    assert record["effect"] == 3.0
    assert record["seen"] == {}


def test_the_effect_is_the_distance_between_the_same_cohort_with_and_without():
    with_it, without = (simulate_cohort(n_donors=8, n_tiles=40, effect=e, rng=1) for e in (2.5, 0.0))
    difference = with_it.obsm["X_simulated"] - without.obsm["X_simulated"]
    length = np.linalg.norm(difference, axis=1)
    carries = with_it.obs["informative"].to_numpy()
    np.testing.assert_allclose(length[carries], 2.5, rtol=1e-4)
    assert (length[~carries] == 0).all()
    direction = difference[carries] / length[carries][:, None]
    np.testing.assert_allclose(direction, np.tile(direction[0], (carries.sum(), 1)), atol=1e-4)


def test_sites_shift_their_slides_and_go_with_the_label_where_confounded():
    plain, shifted = (simulate_cohort(n_donors=20, n_tiles=5, n_sites=2, site_effect=e, rng=2) for e in (0.0, 4.0))
    difference = shifted.obsm["X_simulated"] - plain.obsm["X_simulated"]
    np.testing.assert_allclose(np.linalg.norm(difference, axis=1), 4.0, rtol=1e-4)
    per_site = {s: difference[(shifted.obs["site"] == s).to_numpy()].mean(0) for s in ("site_1", "site_2")}
    assert np.linalg.norm(per_site["site_1"] - per_site["site_2"]) > 2
    both = shifted.obs.groupby("donor", observed=True)[["site", "label"]].first()
    assert set(both.value_counts().to_list()) == {5}
    tied = simulate_cohort(n_donors=20, n_tiles=5, n_sites=2, site_effect=4.0, confounded=True, rng=2)
    both = tied.obs.groupby("donor", observed=True)[["site", "label"]].first()
    assert set(map(tuple, both.to_numpy())) == {("site_1", "negative"), ("site_2", "positive")}


def test_donors_differ_by_their_standard_deviation():
    adata = simulate_cohort(n_donors=60, n_tiles=400, n_types=1, donor_sd=2.0, informative=0.0, n_features=8, rng=5)
    assert np.std(np.stack(list(means(adata).values())), axis=0).mean() == pytest.approx(2.0, rel=0.1)


def test_the_same_seed_gives_the_same_and_global_chance_is_left_alone():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    a, b, c = (simulate_cohort(n_donors=4, n_tiles=6, rng=r) for r in (7, 7, 8))
    np.testing.assert_array_equal(a.obsm["X_simulated"], b.obsm["X_simulated"])
    assert a.obs.equals(b.obs)
    assert not np.array_equal(a.obsm["X_simulated"], c.obsm["X_simulated"])
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_it_can_be_written(tmp_path):
    import anndata

    adata = simulate_cohort(n_donors=4, n_tiles=6, rng=0)
    adata.write_h5ad(tmp_path / "a.h5ad")
    again = anndata.read_h5ad(tmp_path / "a.h5ad")
    np.testing.assert_array_equal(again.obsm["X_simulated"], adata.obsm["X_simulated"])
    assert again.obs["informative"].dtype == bool


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_donors": 1}, "n_donors=1 is not usable"),
        ({"n_tiles": (9, 3)}, "the smallest is larger than the largest"),
        ({"n_tiles": (1, 2, 3)}, "wanted one number, or the smallest and the largest"),
        ({"prevalence": 1.2}, r"prevalence=1.2 is not in \[0, 1\]"),
        ({"informative": -0.1}, r"informative=-0.1 is not in \[0, 1\]"),
        ({"donor_sd": -1.0}, "donor_sd=-1.0 is negative"),
        ({"site_effect": -1.0}, "site_effect=-1.0 is negative"),
        ({"confounded": True}, "confounded=True with n_sites=1"),
    ],
)
def test_bad_numbers(options, message):
    with pytest.raises(ValueError, match=message):
        stimg.datasets.simulate_cohort(**options)
