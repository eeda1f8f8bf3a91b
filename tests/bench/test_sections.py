"""From folders, names and objects to sections; what is not fit for an evaluation is refused."""

import anndata as ad
import numpy as np
import pytest

from stimg.bench import sections
from stimg.bench.protocol import Fold


def test_folders_objects_and_joined_objects_give_the_same_sections(slides, tmp_path):
    for name, adata in slides.items():
        adata.write_h5ad(tmp_path / f"{name}.h5ad") if name != "C1" else adata.write_zarr(tmp_path / "C1.zarr")
    (tmp_path / "notes.txt").write_text("not data")
    joined = ad.concat(list(slides.values()), join="inner")
    joined.uns["spatial"] = {n: a.uns["spatial"][n] for n, a in slides.items()}
    expected = sections.content(sections.load_sections(slides))
    for data in (tmp_path, str(tmp_path), list(slides.values()), joined):
        found = sections.load_sections(data)
        assert list(found) == ["A1", "A2", "B1", "B2", "C1"]
        assert sections.content(found) == expected
        assert [sections.donor(a) for a in found.values()] == ["A", "A", "B", "B", "C"]
    assert list(sections.load_sections(tmp_path / "A1.h5ad")) == ["A1"]


def test_nothing_computed_from_counts_comes_along(slides):
    adata = slides["A1"]
    adata.obsm["X_pca"] = np.ones((adata.n_obs, 3))
    adata.obsm["X_uni"] = np.ones((adata.n_obs, 4))
    adata.obs["total_counts"] = 1.0
    adata.layers["log"] = adata.X.copy()
    adata.uns["stimg"] = {"X_uni": {"seen": {}}, "channels": {"rule": "x"}}
    found = sections.load_sections(adata, features=["X_uni"])["A1"]
    assert set(found.obsm) == {"spatial", "stimg_rc", "X_uni"}
    assert set(found.obs) == {"library_id", "donor", "array_row", "array_col"}
    assert not [k for k in found.layers if k is not None]
    assert set(found.uns["stimg"]) == {"X_uni", "raster", "rasterize"}  # the second is what rasterize wrote of itself
    assert "label" in sections.load_sections(adata, labels="label")["A1"].obs


def test_control_probes_are_left_out(slides):
    adata = slides["A1"]
    adata.var_names = [*adata.var_names[:-2], "NegControlProbe_1", "BLANK_3"]
    found = sections.load_sections(adata)["A1"]
    assert found.n_vars == adata.n_vars - 2
    assert found.X.sum() == adata.X[:, :-2].sum()


def test_the_content_does_not_depend_on_order_and_changes_with_a_count(slides):
    adata = slides["A1"]
    rng = np.random.default_rng(0)
    other = adata[rng.permutation(adata.n_obs), rng.permutation(adata.n_vars)].copy()
    content = sections.content(sections.load_sections(adata))
    assert sections.content(sections.load_sections(other)) == content
    other.X[0, 0] += 1
    assert sections.content(sections.load_sections(other)) != content
    folds = [Fold("a", ("A1",), ("B1",)), Fold("b", ("B1",), ("A1",))]
    known = {"A1": "x", "B1": "y"}
    assert sections.split_hash(folds, known) == sections.split_hash(folds[::-1], known)
    assert sections.split_hash(folds, known) != sections.split_hash(folds[:1], known)
    assert sections.split_hash(folds, known) != sections.split_hash(folds, {"A1": "x", "B1": "z"})


def test_a_missing_donor_is_an_error_or_declared(slides):
    adata = slides["A1"]
    adata.obs = adata.obs.drop(columns="donor")
    with pytest.raises(ValueError, match=r"the donor of library 'A1' is missing in obs\['donor'\].*own-group"):
        sections.load_sections(adata)
    assert sections.donor(sections.load_sections(adata, missing_donor="own-group")["A1"]) == "A1 (own group)"
    with pytest.raises(ValueError, match="missing_donor='guess' is not known"):
        sections.load_sections(adata, missing_donor="guess")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s["A1"].obs.__setitem__("donor", ["A", "B"] * 36), "'A1' has observations of 2 donors"),
        (lambda s: s.__setitem__("A2", s["A1"].copy()), "library 'A1' occurs in two objects"),
        (lambda s: setattr(s["A1"], "X", s["A1"].X * 0.5), "wanted whole-number counts"),
        (lambda s: s["A1"].X.data.__setitem__(0, np.nan), "NaN or infinite"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(slides, spoil, message):
    spoil(slides)
    with pytest.raises(ValueError, match=message):
        sections.load_sections(slides)


def test_places_that_hold_nothing(tmp_path, slides):
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere, and no data set of that name; wanted .*'her2st'"):
        sections.load_sections(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"holds no \.h5ad file"):
        sections.load_sections(tmp_path)
    (tmp_path / "a.h5ad").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"a\.h5ad cannot be read.*take it out"):
        sections.load_sections(tmp_path)
    with pytest.raises(ValueError, match="There is no section"):
        sections.load_sections([])
    with pytest.raises(KeyError, match=r"adata\.obsm\['X_uni'\] is missing"):
        sections.load_sections(slides, features=["X_uni"])
