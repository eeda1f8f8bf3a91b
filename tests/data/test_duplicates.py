"""Copies of a section are found whatever was done to them, and serial sections are no copies."""

import itertools

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import stimg
from stimg.data import near_duplicates
from stimg.data.duplicates import COLUMNS


@pytest.fixture(scope="module")
def sections():
    """Two serial sections of each of two donors, with images."""
    adata = stimg.datasets.simulate(technology="visium", shape=(20, 20), n_genes=300, n_donors=2, n_sections=2, image=True, mpp=4.0, rng=0)
    parts = {}
    for name in adata.obs["library_id"].unique():
        parts[name] = adata[adata.obs["library_id"] == name].copy()
        parts[name].uns["spatial"] = {name: adata.uns["spatial"][name]}
    return parts


def renamed(adata: ad.AnnData, name: str = "copy", image=None) -> ad.AnnData:
    """The section under another name, with other barcodes, rows and genes in another order, and no image unless one is given."""
    rng = np.random.default_rng(1)
    again = adata[rng.permutation(adata.n_obs)].copy()[:, rng.permutation(adata.n_vars)].copy()
    again.obs_names = [f"{name}_{i}" for i in range(again.n_obs)]
    again.obs["library_id"], again.obs["donor"] = name, "unknown"
    again.uns["spatial"] = {} if image is None else {name: {"images": {"hires": image}}}
    return again


def thinned(adata: ad.AnnData, p: float) -> ad.AnnData:
    out = adata.copy()
    out.X = sp.csr_matrix(np.random.default_rng(0).binomial(adata.X.toarray().astype(int), p).astype(np.float32))
    return out


def normalised(adata: ad.AnnData, genes: int) -> ad.AnnData:
    """Counts of some genes, scaled to the depth over those genes, and log-transformed."""
    out = adata[:, np.sort(np.random.default_rng(2).permutation(adata.n_vars)[:genes])].copy()
    x = out.X.toarray().astype(float)
    out.X = sp.csr_matrix(np.log1p(x / np.maximum(x.sum(axis=1, keepdims=True), 1) * 3000).astype(np.float32))
    return out


def standardised(adata: ad.AnnData, genes: int) -> ad.AnnData:
    out = normalised(adata, genes)
    x = out.X.toarray()
    out.X = (x - x.mean(axis=0)) / (x.std(axis=0) + 1e-8)
    return out


def corner(adata: ad.AnnData, fraction: float) -> ad.AnnData:
    return adata[np.argsort(adata.obsm["spatial"].sum(axis=1))[: int(fraction * adata.n_obs)]].copy()


def turned(adata: ad.AnnData) -> ad.AnnData:
    out = adata.copy()
    out.obsm["spatial"] = out.obsm["spatial"][:, ::-1] * [1, -1]
    return out


COPIES = {
    "another name": (lambda a: a, "same counts"),
    "a subset of the spots": (lambda a: corner(a, 0.2), "same counts"),
    "another choice of genes": (lambda a: a[:, :120].copy(), "same counts"),
    "turned and cropped": (lambda a: turned(corner(a, 0.5)), "same counts"),
    "thinned a little": (lambda a: thinned(a, 0.95), "same observations, other values"),
    "thinned to a half": (lambda a: thinned(a, 0.5), "same observations, other values"),
    "thinned, cropped and turned": (lambda a: turned(corner(thinned(a, 0.8), 0.3)), "same observations, other values"),
    "some genes, normalised": (lambda a: normalised(a, 100), "same observations, other values"),
    "some genes, standardised": (lambda a: standardised(a, 150), "same observations, other values"),
}


@pytest.mark.parametrize("what", COPIES)
def test_a_copy_is_found(sections, what):
    make, verdict = COPIES[what]
    table = near_duplicates([*sections.values(), renamed(make(sections["D1S2"]))])
    assert list(table.columns) == list(COLUMNS)
    assert table[["library_a", "library_b", "verdict"]].to_numpy().tolist() == [["D1S2", "copy", verdict]]
    row = table.iloc[0]
    assert (row["donor_a"], row["donor_b"]) == ("D1", "unknown")
    assert row["why"]
    assert np.isnan(row["image_distance"])
    if verdict == "same counts":
        assert row["shared_observations"] == 1.0
    else:
        assert row["shared_observations"] < 0.05
        assert row["matched_observations"] > 0.9


def test_sections_that_overlap_are_found_and_the_fraction_is_that_of_the_smaller(sections):
    whole = sections["D1S1"]
    order = np.argsort(whole.obsm["spatial"][:, 0])
    left, right = whole[order[:220]].copy(), renamed(whole[order[200:]].copy(), "right")
    table = near_duplicates([left, right])
    # equal counts, written out
    a, b = ({tuple(row) for row in x.X.toarray()} for x in (left, right[:, left.var_names]))
    assert len(a & b) == 20
    assert table["shared_observations"][0] == pytest.approx(20 / min(len(a), len(b)))
    assert table["verdict"][0] == "same counts"
    half = renamed(whole[order[110:]].copy(), "half")
    assert near_duplicates([thinned(left, 0.9), half])["verdict"].tolist() == ["same observations, other values"]


def test_serial_sections_and_other_donors_are_no_copies(sections):
    table = near_duplicates(list(sections.values()), every_pair=True)
    assert len(table) == 6
    assert set(table["verdict"]) == {""}
    assert (table["shared_observations"] == 0).all()
    assert (table["matched_observations"] < 0.02).all()
    assert (table["image_distance"] > 10).all()
    for _, row in table.iterrows():
        a, b = (
            np.log1p(x / x.sum(axis=1, keepdims=True) * 1e4).mean(axis=0) for x in (sections[row[f"library_{s}"]].X.toarray() for s in "ab")
        )
        assert row["profile_r"] == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-5)


def test_partners_are_those_of_a_dense_correlation(sections):
    a, b = corner(sections["D1S1"], 0.1), thinned(sections["D1S1"], 0.3)
    b = ad.concat([b[:200], sections["D1S2"][:150].copy()])  # a library that was pieced together
    a, b = renamed(a, "a"), renamed(b, "b")
    table = near_duplicates([a, b], every_pair=True)
    z = []
    for part in (a, b[:, a.var_names]):
        x = np.log1p(part.X.toarray() / part.X.toarray().sum(axis=1, keepdims=True) * 1e4)
        z.append((x - x.mean(axis=0), x.std(axis=0)))
    ok = (z[0][1] > 1e-6) & (z[1][1] > 1e-6)
    za, zb = (x[:, ok] / sd[ok] for x, sd in z)
    r = (za / np.linalg.norm(za, axis=1, keepdims=True)) @ (zb / np.linalg.norm(zb, axis=1, keepdims=True)).T
    r.sort(axis=1)
    r = r[(za**2).sum(axis=1) ** 2 / (za**4).sum(axis=1) >= 5]
    assert 30 < len(r) <= 40
    matched = (r[:, -1] >= 0.5) & (r[:, -1] - r[:, -2] >= 0.2)
    assert 0 < matched.mean() < 1
    assert table["matched_observations"][0] == pytest.approx(matched.mean())


def test_order_and_chunks_do_not_matter(sections, monkeypatch):
    objects = [*sections.values(), renamed(thinned(corner(sections["D1S2"], 0.4), 0.7))]
    table = near_duplicates(objects, every_pair=True)
    monkeypatch.setattr("stimg.data.duplicates.CHUNK", 37)
    rng = np.random.default_rng(3)
    again = near_duplicates([a[rng.permutation(a.n_obs)].copy()[:, rng.permutation(a.n_vars)].copy() for a in objects], every_pair=True)
    pd.testing.assert_frame_equal(again, table, rtol=1e-5)
    figures = ["library_a", "library_b", "verdict", "why", "shared_observations", "matched_observations"]
    backwards = near_duplicates(objects[::-1], every_pair=True)
    a, b = ({frozenset(r[:2]): r[2:] for r in t[figures].itertuples(index=False, name=None)} for t in (table, backwards))
    assert a == b
    joined = ad.concat(objects, join="outer")
    assert near_duplicates(joined)["verdict"].tolist() == ["same observations, other values"]


# ---- images


def image_of(adata):
    return next(iter(adata.uns["spatial"].values()))["images"]["hires"]


def other_counts(adata: ad.AnnData, name: str, image) -> ad.AnnData:
    """A section with counts of its own and the given image."""
    out = renamed(adata, name, image)
    out.X = sp.csr_matrix(np.random.default_rng(5).poisson(1.0, out.shape).astype(np.float32))
    return out


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x,
        lambda x: np.rot90(x),
        lambda x: x[:, ::-1],
        lambda x: x[::2, ::2],
        lambda x: np.clip(x * 0.85 + 10, 0, 255).astype(np.uint8),
        lambda x: x.astype(np.float32) / 255,
        lambda x: np.concatenate([x, np.full_like(x[..., :1], 255)], axis=-1),
        lambda x: np.clip(x + np.random.default_rng(0).normal(0, 8, x.shape), 0, 255).astype(np.uint8),
    ],
    ids=["same", "turned", "mirrored", "reduced", "brighter", "floats", "with alpha", "noise"],
)
def test_one_image_under_two_names_is_found(sections, change):
    copy = other_counts(sections["D2S1"], "copy", np.ascontiguousarray(change(image_of(sections["D1S2"]))))
    table = near_duplicates([*sections.values(), copy])
    assert table[["library_a", "library_b", "verdict"]].to_numpy().tolist() == [["D1S2", "copy", "same image"]]
    assert table["image_distance"][0] <= 6


def test_images_without_anything_to_see_are_not_compared(sections):
    plain = np.full((200, 200, 3), 240, dtype=np.uint8)
    pair = [other_counts(sections["D1S1"], "a", plain), renamed(sections["D2S1"], "b", plain), renamed(sections["D1S2"], "c", plain[:10])]
    table = near_duplicates(pair, every_pair=True)
    assert table["image_distance"].isna().all()
    assert set(table["verdict"]) == {""}


# ---- edges


def test_a_few_genes_are_judged_only_where_everything_is_equal():
    rng = np.random.default_rng(0)
    parts = []
    for name in "abc":
        x = sp.csr_matrix(rng.poisson(0.5, (200, 10)).astype(np.float32))
        parts.append(ad.AnnData(x, obs=pd.DataFrame({"library_id": [name] * 200}, index=[f"{name}{i}" for i in range(200)])))
    parts.append(renamed(parts[1]))
    table = near_duplicates(parts)
    assert table[["library_a", "library_b", "verdict", "why"]].to_numpy().tolist() == [
        ["b", "copy", "same counts", "all observations are equal"]
    ]
    assert table.attrs["not_judged"] == ["a", "b", "c", "copy"]
    assert table["matched_observations"].isna().all()


def test_one_section_and_objects_that_share_nothing(sections):
    one = sections["D1S1"]
    assert near_duplicates(one).shape == (0, len(COLUMNS))
    assert near_duplicates(one).attrs["not_judged"] == []
    other = renamed(sections["D1S2"], "other")
    other.var_names = [f"x{g}" for g in other.var_names]
    table = near_duplicates([one, other], every_pair=True)
    assert table["verdict"].tolist() == [""]
    assert table[["shared_observations", "matched_observations", "profile_r"]].isna().all(axis=None)
    empty = one.copy()
    empty.X = sp.csr_matrix(one.shape, dtype=np.float32)
    pair = [renamed(empty, "a"), renamed(empty, "b")]
    assert near_duplicates(pair, every_pair=True)["verdict"].tolist() == [""]


def test_bad_input(sections):
    one, two = sections["D1S1"], sections["D1S2"].copy()
    with pytest.raises(
        ValueError, match=r"1 duplicated libraries among the objects, the first is 'D1S1'. Give each section a name of its own"
    ):
        near_duplicates([one, two, one])
    with pytest.raises(KeyError, match=r"obs\['slide'\] is missing"):
        near_duplicates([one, two], library_key="slide")
    with pytest.raises(KeyError, match=r"layers\['counts'\] is missing"):
        near_duplicates([one, two], layer="counts")
    with pytest.raises(ValueError, match=r"min_genes=0 is not usable"):
        near_duplicates([one, two], min_genes=0)
    two.X.data[3] = np.nan
    with pytest.raises(ValueError, match=r"1 NaN or infinite values"):
        near_duplicates([one, two])


# ---- real sections


@pytest.mark.data
def test_serial_sections_of_her2st_are_no_copies(mirror):
    table = near_duplicates(stimg.datasets.her2st(["B2", "B3", "C1", "C2"]), every_pair=True)
    assert len(table) == 6
    assert set(table["verdict"]) == {""}
    assert (table["shared_observations"] == 0).all()
    assert (table["matched_observations"] <= 1 / 64).all()
    same = table["donor_a"] == table["donor_b"]
    assert table["profile_r"][same].min() > table["profile_r"][~same].max()


@pytest.mark.data
@pytest.mark.slow
def test_serial_sections_of_cortex_are_no_copies(mirror):
    cortex = near_duplicates(stimg.datasets.dlpfc(image="hires"), every_pair=True)
    assert cortex["verdict"].tolist() == [""]
    assert cortex["profile_r"][0] > 0.99
    assert cortex["image_distance"][0] > 10


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize(("name", "near"), [("B2", "B3"), ("E1", "E2")])
def test_copies_of_real_sections_are_found_among_their_neighbours(mirror, name, near):
    section, neighbour = (stimg.datasets.her2st(n) for n in (name, near))
    for make, verdict in COPIES.values():
        table = near_duplicates([section, neighbour, renamed(make(section))])
        assert table[["library_a", "library_b", "verdict"]].to_numpy().tolist() == [[name, "copy", verdict]]


def test_pairs_come_in_the_order_of_the_sections(sections):
    table = near_duplicates(list(sections.values()), every_pair=True)
    assert list(zip(table["library_a"], table["library_b"], strict=True)) == list(itertools.combinations(sections, 2))
