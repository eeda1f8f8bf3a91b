"""Replays of real leaks: each is stopped, and the error names who has seen what."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.spatial.distance import cdist

import stimg
from stimg._core.ledger import LeakageError, Seen, merged
from stimg.data.ledger import check_leakage, find_leaks, ids, recall, remember, seen_of


def section(library: str, donor: str, seed: int, shape=(12, 10), n_genes: int = 40) -> ad.AnnData:
    """A square section with counts that differ from spot to spot."""
    rng = np.random.default_rng(seed)
    rc = np.argwhere(np.ones(shape))
    counts = sp.csr_matrix(rng.poisson(rng.gamma(1, 2, n_genes), (len(rc), n_genes)).astype(np.float32))
    obs = pd.DataFrame({"library_id": pd.Categorical([library] * len(rc)), "donor": pd.Categorical([donor] * len(rc))})
    obs.index = [f"{library}_{r}x{c}" for r, c in rc]
    adata = ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(n_genes)]))
    adata.obsm["spatial"] = rc[:, ::-1] * 100.0 + 50
    return adata


@pytest.fixture
def slides():
    return {name: section(name, name[0], i) for i, name in enumerate(["A1", "A2", "B1", "C1"])}


def joined(slides, *names):
    return ad.concat([slides[n] for n in names], join="inner", uns_merge="unique")


def test_nothing_is_found_where_donors_are_apart(slides):
    pca = seen_of(joined(slides, "A1", "A2"), who="PCA", kind="PCA")
    assert len(pca) == 240
    assert pca.donors == ("A",)
    assert pca.libraries == ("A1", "A2")
    assert check_leakage(slides["B1"], pca) == []


def test_genes_chosen_with_test_sections_are_stopped(slides):
    everything = joined(slides, "A1", "A2", "B1")
    stimg.pp.select_genes(everything, rule="variance", n=10)
    with pytest.raises(
        LeakageError, match=r"the gene list \"rule 'variance' of select_genes\" has seen 120 of 120 test observations.*\(B1\)"
    ):
        check_leakage(slides["B1"], everything)
    everything.obs["train"] = everything.obs["donor"] != "B"
    stimg.pp.select_genes(everything, rule="variance", n=10, fit_on="train")
    assert check_leakage(slides["B1"], everything) == []
    stimg.pp.select_genes(everything, rule="uniform", n=10)  # reads no count
    assert check_leakage(slides["B1"], everything) == []


def test_a_section_that_comes_back_under_another_name_is_recognised_by_its_counts(slides):
    seen = seen_of(joined(slides, "A1", "B1"), who="net", kind="model")
    again = slides["B1"][:, np.random.default_rng(0).permutation(40)].copy()
    again.obs_names = [f"spot{i}" for i in range(again.n_obs)]
    again.obs["library_id"], again.obs["donor"] = "TENX155", "unknown"
    (leak,) = find_leaks(again, seen)
    assert (leak.by, leak.n, leak.of, leak.where) == ("counts", 120, 120, ("TENX155",))
    # a record over some genes recognises an object with more of them, and says nothing about one with fewer
    some = seen_of(slides["B1"], who="net", kind="model", genes=["g3", "g1", "g7", "g9", "g20", "g21"])
    assert find_leaks(again, some)[0].by == "counts"
    assert find_leaks(again[:, again.var_names != "g7"].copy(), some) == []


def test_a_hold_out_list_with_a_missing_comma_is_stopped(slides):
    hold_out = ["C1B1", "A2"]  # a comma got lost between "C1" and "B1"
    everything = joined(slides, "A1", "A2", "B1", "C1")
    pretraining = ~everything.obs["library_id"].isin(hold_out).to_numpy()
    encoder = seen_of(everything, who="gene encoder", kind="encoder", rows=pretraining)
    with pytest.raises(LeakageError, match=r"the encoder 'gene encoder' has seen 240 of 240 test observations.*\(B1, C1\)"):
        check_leakage(joined(slides, "B1", "C1"), encoder)


def test_clusters_made_before_the_split_are_stopped(slides):
    everything = joined(slides, "A1", "B1")
    clusters = seen_of(everything, who="k-means, 7 phenotypes", kind="clustering")
    model = seen_of(slides["A1"], who="graph network", kind="model")
    with pytest.raises(LeakageError, match="k-means, 7 phenotypes") as caught:
        check_leakage(slides["B1"], [model, clusters])
    assert [leak.kind for leak in caught.value.leaks] == ["clustering"]


def test_random_spots_between_neighbours_are_stopped(slides):
    adata = slides["B1"]
    train = np.random.default_rng(1).random(adata.n_obs) < 0.5
    model = seen_of(adata, who="net", kind="model", rows=train)
    (leak,) = find_leaks(adata, model, test=~train, level="observation")
    apart = cdist(adata.obsm["spatial"][~train], adata.obsm["spatial"][train]).min(1)
    assert leak.by == "neighbours"
    assert leak.n == (apart <= 150).sum()
    block = adata.obsm["spatial"][:, 1] < 600
    far = adata.obsm["spatial"][:, 1] > 800
    model = seen_of(adata, who="net", kind="model", rows=block)
    assert find_leaks(adata, model, test=far, level="observation") == []
    assert find_leaks(adata, model, test=far, level="section")[0].by == "section"


@pytest.mark.parametrize(("level", "by"), [("observation", []), ("section", []), ("donor", ["donor"])])
def test_another_section_of_the_donor_counts_at_the_level_of_donors(slides, level, by):
    seen = seen_of(slides["A1"], who="net", kind="model")
    found = find_leaks(slides["A2"], seen, level=level)
    assert [leak.by for leak in found] == by
    assert [leak.where for leak in found] == [("A",)] * len(by)


def test_an_image_that_was_seen(slides):
    stain = seen_of(slides["A1"], who="reference tile", kind="stain target", images=[11, 12])
    (leak,) = find_leaks(slides["B1"], stain, images=[12, 99])
    assert (leak.by, leak.n, leak.of) == ("image", 1, 2)


def test_findings_are_returned_where_leaks_are_allowed(slides):
    leaks = check_leakage(slides["B1"], seen_of(slides["B1"], who="net", kind="model"), allow_leakage=True)
    assert [str(leak) for leak in leaks] == ["the model 'net' has seen 120 of 120 test observations, recognised by library and name (B1)"]


def test_records_live_in_the_object_and_its_files(slides, tmp_path):
    adata = slides["A1"]
    seen = seen_of(joined(slides, "A1", "B1"), who="net", kind="model", rows=np.arange(100))
    remember(adata, "X_net", seen, seen.renamed("second", "encoder"))
    adata.write_h5ad(tmp_path / "a.h5ad")
    adata.write_zarr(tmp_path / "a.zarr")
    for back in (adata, ad.read_h5ad(tmp_path / "a.h5ad"), ad.read_zarr(tmp_path / "a.zarr")):
        first, second = recall(back)
        assert (first.who, second.who, second.kind) == ("net", "second", "encoder")
        assert first.ids.dtype == np.uint64
        np.testing.assert_array_equal(first.ids, seen.ids)
        np.testing.assert_array_equal(first.contents, seen.contents)
        assert first.genes == seen.genes
        assert recall(back, only=["other"]) == []


def test_observations_are_identified_by_library_and_name(slides):
    a, b = ids(slides["A1"]), ids(slides["A2"])
    assert len(np.unique(np.concatenate([a, b]))) == 240
    np.testing.assert_array_equal(ids(joined(slides, "A1", "A2")), np.concatenate([a, b]))


def test_what_does_not_say_what_it_has_seen_is_refused(slides):
    with pytest.raises(TypeError, match=r"object does not say what it has seen.*stimg\.bench\.seen_of"):
        check_leakage(slides["A1"], object())
    with pytest.raises(TypeError, match="str does not say"):
        check_leakage(slides["A1"], "model")
    with pytest.raises(ValueError, match="There is no test observation"):
        check_leakage(slides["A1"], [], test=np.zeros(120, dtype=bool))
    with pytest.raises(ValueError, match="mask of 3 values; wanted 120"):
        seen_of(slides["A1"], who="x", kind="PCA", rows=np.ones(3, dtype=bool))
    with pytest.raises(KeyError, match=r"1 of 2 genes are not in the object: \['nope'\]"):
        seen_of(slides["A1"], who="x", kind="PCA", genes=["g1", "nope"])
    with pytest.raises(ValueError, match="level='patient' is not known"):
        check_leakage(slides["A1"], [], level="patient")


def test_a_union_of_records_is_caught_too(slides):
    both = merged([seen_of(slides["A1"], who="a", kind="PCA"), seen_of(slides["B1"], who="b", kind="PCA")], who="ensemble", kind="model")
    assert find_leaks(slides["B1"], both)[0].n == 120
    assert isinstance(both, Seen)
