"""Records of what was seen: plain values, unions, and hashes that depend on content alone."""

import json

import numpy as np
import pytest
import scipy.sparse as sp

from stimg._core import hashing
from stimg._core.ledger import Leak, LeakageError, Seen, merged


def test_a_record_survives_plain_values_and_json():
    seen = Seen("PCA", "PCA", ids=np.array([5, 2, 5, 0]), contents=[9, 2**63 + 1], genes=("b", "a"), libraries=("B1",), donors=("B",))
    assert seen.ids.tolist() == [2, 5]
    assert seen.genes == ("a", "b")
    text = json.dumps({k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in seen.to_dict().items()})
    for back in (Seen.from_dict(seen.to_dict()), Seen.from_dict(json.loads(text))):
        assert back.to_dict().keys() == seen.to_dict().keys()
        assert all(np.array_equal(back.to_dict()[k], v) for k, v in seen.to_dict().items())
    assert len(seen) == 2
    assert len(Seen("nothing", "model")) == 0


def test_records_are_joined_and_counts_are_kept_only_over_one_gene_set():
    one, two = Seen("a", "PCA", ids=[1], contents=[7], genes=("x",)), Seen("b", "PCA", ids=[2], contents=[8], genes=("x",), donors=("D",))
    both = merged([one, two], who="both", kind="model")
    assert both.ids.tolist() == [1, 2]
    assert both.contents.tolist() == [7, 8]
    assert both.donors == ("D",)
    other = merged([one, Seen("c", "PCA", ids=[3], contents=[9], genes=("y",))], who="mixed", kind="model")
    assert other.ids.tolist() == [1, 3]
    assert not len(other.contents)
    assert other.genes == ()


def test_wrong_records_are_refused():
    with pytest.raises(ValueError, match=r"kind='magic' is not known; wanted one of .*'gene list'"):
        Seen("x", "magic")
    with pytest.raises(ValueError, match=r"lacks \['kind'\] \(found \['who'\]\)"):
        Seen.from_dict({"who": "x"})


def test_the_error_names_who_saw_what_and_the_way_out():
    error = LeakageError([Leak("hvg", "gene list", "counts", 3, 10, ("B1", "B2")), Leak("net", "model", "donor", 1, 2, ("B",))])
    assert "the gene list 'hvg' has seen 3 of 10 test observations, recognised by their counts (B1, B2)" in str(error)
    assert "the model 'net' has seen other observations of 1 of 2 test donors (B)" in str(error)
    assert "allow_leakage=True" in str(error)
    assert [leak.n for leak in error.leaks] == [3, 1]


def test_hashes_depend_on_counts_by_gene_name_alone():
    rng = np.random.default_rng(0)
    counts = sp.csr_matrix(rng.poisson(0.4, (50, 30)))
    names = np.array([f"g{i}" for i in range(30)])
    found = hashing.of_observations(counts, names)
    order = rng.permutation(30)
    np.testing.assert_array_equal(hashing.of_observations(counts[:, order], names[order]), found)
    np.testing.assert_array_equal(hashing.of_observations(counts.toarray().astype(np.float64), names), found)
    padded = sp.hstack([counts, sp.csr_matrix((50, 3))]).tocsr()
    np.testing.assert_array_equal(hashing.of_observations(padded, [*names, "x", "y", "z"]), found)
    dense = {tuple(row) for row in counts.toarray()}
    assert len(np.unique(found)) == len(dense)
    assert (hashing.of_observations(counts, names[order]) != found)[np.asarray(counts.sum(1)).ravel() > 0].all()
    # additive: the hash of a union of genes is the sum of the hashes of its parts
    parts = [hashing.of_observations(counts[:, part], names[part]) for part in (slice(0, 11), slice(11, 30))]
    np.testing.assert_array_equal(parts[0] + parts[1], found)
    assert hashing.of_observations(sp.csr_matrix((2, 30)), names).tolist() == [0, 0]
    with pytest.raises(ValueError, match="29 names for 30 genes"):
        hashing.of_observations(counts, names[1:])


@pytest.mark.parametrize("entries", [1, 7, 40])
def test_observations_hash_the_same_some_at_a_time(monkeypatch, entries):
    counts = sp.csr_matrix(np.random.default_rng(1).poisson(0.2, (60, 30)) * (np.arange(60) % 9 > 2)[:, None])
    names = [f"g{i}" for i in range(30)]
    found = hashing.of_observations(counts, names)
    monkeypatch.setattr(hashing, "ENTRIES", entries)
    np.testing.assert_array_equal(hashing.of_observations(counts, names), found)
    np.testing.assert_array_equal(np.concatenate([hashing.of_observations(row, names) for row in counts]), found)
    assert len(hashing.of_observations(counts[:0], names)) == 0


def test_names_hash_the_same_everywhere():
    assert hashing.of_names(["B1\0" + "10x13", ""]).tolist() == [
        int.from_bytes(__import__("hashlib").blake2b(t.encode(), digest_size=8).digest(), "little") for t in ("B1\0" + "10x13", "")
    ]
