"""Slides of a table as bags: against pandas, and against loops."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from stimg.data.bags import BagDataset, bags_of, donor_kinds, hold_out_donors


def table(sizes=(5, 3, 8, 4, 6, 2), donors="AABCDE", labels=("x", "x", "y", "x", "y", "y"), seed=0):
    rng = np.random.default_rng(seed)
    slide = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    obs = pd.DataFrame(
        {
            "library_id": pd.Categorical([f"s{i}" for i in slide]),
            "donor": pd.Categorical([donors[i] for i in slide]),
            "label": [labels[i] for i in slide],
        },
        index=[f"t{i}" for i in range(len(slide))],
    )
    adata = ad.AnnData(None, obs=obs)
    adata.obsm["X_tiles"] = rng.normal(size=(len(slide), 3)).astype(np.float32)
    return adata


def read(adata, **options):
    return bags_of(adata, **{"features": "X_tiles", "label_key": "label", **options})


def test_slides_are_the_groups_of_the_table():
    adata = table()
    bags = read(adata)
    groups = adata.obs.reset_index().groupby("library_id", observed=True)
    assert list(bags.names) == list(groups.groups)
    for name, donor, label, rows in zip(bags.names, bags.donors, bags.labels, bags.rows, strict=True):
        own = groups.get_group(name)
        assert rows.tolist() == own.index.tolist()
        assert {donor} == set(own["donor"])
        assert {label} == set(own["label"])
    assert bags.width == 3
    assert bags.features is adata.obsm["X_tiles"]
    few = bags.chosen(np.array([False, True, False, True, False, False]))
    assert few.names == ("s1", "s3")
    assert few.donors == ("A", "C")


def test_slides_without_a_label_are_bags_without_one():
    adata = table(labels=("x", None, "y", "x", "y", "y"))
    assert read(adata).labels == ("x", None, "y", "x", "y", "y")
    del adata.obs["donor"]
    assert read(adata, label_key=None).donors == ("s0", "s1", "s2", "s3", "s4", "s5")


def test_a_batch_is_the_tiles_of_its_slides_and_nothing_else():
    adata = table()
    data = BagDataset(read(adata), ("x", "y"))
    batch = data[3, [4, 0, 2]]
    start = 0
    for place, name in enumerate(("s4", "s0", "s2")):
        own = adata.obsm["X_tiles"][(adata.obs["library_id"] == name).to_numpy()]
        here = batch["bag"].numpy() == place
        np.testing.assert_array_equal(batch["items"].numpy()[here], own)
        assert here[start : start + len(own)].all()
        start += len(own)
    assert len(batch["items"]) == start
    assert batch["label"].tolist() == [1, 0, 1]
    assert data.groups.tolist() == [0, 0, 1, 0, 1, 1]
    assert sorted(data.rows) == list(range(adata.n_obs))


def test_tiles_are_drawn_anew_every_epoch_and_never_twice():
    data = BagDataset(read(table(sizes=(50, 3, 8, 4, 6, 2))), ("x", "y"), max_tiles=10, seed=4)
    draws = [data._tiles(epoch, 0) for epoch in range(30)]
    assert all(len(set(d)) == 10 and set(d) <= set(data.bags.rows[0]) for d in draws)
    assert len({tuple(d) for d in draws}) == 30
    np.testing.assert_array_equal(data._tiles(7, 0), draws[7])
    assert set(np.concatenate(draws)) == set(data.bags.rows[0])
    np.testing.assert_array_equal(data._tiles(0, 1), data.bags.rows[1])


@pytest.mark.parametrize("seed", range(5))
def test_validation_holds_out_whole_donors_of_each_class(seed):
    donors, labels = "AABCDEFGHIJKLMNO", ["x"] * 8 + ["y"] * 8
    bags = read(table(sizes=(2,) * 16, donors=donors, labels=labels))
    train, held = hold_out_donors(bags, validation="donors", fraction=0.25, rng=np.random.default_rng(seed))
    assert not (train & held).any()
    assert (train | held).all()
    of = np.array(bags.donors)
    assert not set(of[train]) & set(of[held])
    for name in "xy":
        own = np.array(bags.labels) == name
        assert len(set(of[held & own])) == round(0.25 * len(set(of[own])))


def test_named_donors_and_none():
    bags = read(table(labels=("x", None, "y", "x", "y", "y")))
    train, held = hold_out_donors(bags, validation=["C", "D"], fraction=0.2, rng=np.random.default_rng(0))
    assert [bags.names[i] for i in np.flatnonzero(held)] == ["s3", "s4"]
    assert [bags.names[i] for i in np.flatnonzero(train)] == ["s0", "s2", "s5"]
    train, held = hold_out_donors(bags, validation=None, fraction=0.2, rng=np.random.default_rng(0))
    assert train.sum() == 5
    assert not held.any()
    assert donor_kinds(bags) == {"A": ("x",), "B": ("y",), "C": ("x",), "D": ("y",), "E": ("y",)}


@pytest.mark.parametrize(
    ("validation", "message"),
    [
        ("slides", "validation='slides' is not known; wanted 'donors'"),
        (["Z"], "names donors without a labelled slide"),
        ([], "names donors without a labelled slide"),
        (["A", "C"], "leaves no slide of"),
    ],
)
def test_bad_validation(validation, message):
    with pytest.raises(ValueError, match=message):
        hold_out_donors(read(table()), validation=validation, fraction=0.2, rng=np.random.default_rng(0))


def test_one_donor_of_a_class_cannot_be_held_out():
    bags = read(table(labels=("x", "x", "y", "y", "y", "y")))
    with pytest.raises(ValueError, match=r"1 donor \('A'\) has slides of x; wanted two"):
        hold_out_donors(bags, validation="donors", fraction=0.2, rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"validation_fraction=0.9 is outside"):
        hold_out_donors(bags, validation="donors", fraction=0.9, rng=np.random.default_rng(0))


def spoil_label(adata):
    adata.obs.loc[adata.obs_names[adata.obs["library_id"] == "s2"][:1], "label"] = "x"


def spoil_missing(adata):
    adata.obs.loc[adata.obs_names[adata.obs["library_id"] == "s2"][:1], "label"] = None


def spoil_donor(adata):
    adata.obs["donor"] = adata.obs["donor"].astype(str)
    adata.obs.loc[adata.obs_names[adata.obs["library_id"] == "s2"][:1], "donor"] = "A"


def spoil_values(adata):
    adata.obsm["X_tiles"][3, 1] = np.nan


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (spoil_label, ValueError, r"slide 's2' has 2 labels \(\['x', 'y'\]\)"),
        (spoil_missing, ValueError, "slide 's2' has no label in 1 of its 8 observations"),
        (spoil_donor, ValueError, "slide 's2' has 2 donors"),
        (spoil_values, ValueError, "1 rows of 28 with NaN or infinite values"),
        (lambda a: a.obsm.pop("X_tiles"), KeyError, r"adata.obsm\['X_tiles'\] is missing"),
        (lambda a: a.obs.pop("library_id"), KeyError, r"adata.obs\['library_id'\] is missing"),
        (lambda a: a.obs.pop("donor"), KeyError, r"adata.obs\['donor'\] is missing.*no independent data"),
        (lambda a: a.obs.pop("label"), KeyError, r"adata.obs\['label'\] is missing"),
        (lambda a: a.obsm.update({"X_tiles": np.full((a.n_obs, 2), "a")}), TypeError, "wanted numbers"),
        (lambda a: a.obsm.update({"X_tiles": np.zeros((a.n_obs, 0))}), ValueError, r"has shape \(28, 0\)"),
    ],
)
def test_bad_tables(spoil, error, message):
    adata = table()
    spoil(adata)
    with pytest.raises(error, match=message):
        read(adata)
