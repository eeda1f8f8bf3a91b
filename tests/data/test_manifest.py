"""The manifest of a split: what it refuses, what survives a file, and what of the data it recognises."""

import dataclasses
import json
import os

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import stimg
from stimg.data import SplitManifest
from stimg.data.manifest import Division, ManifestSection

SECTIONS = [ManifestSection("A1", "A"), ManifestSection("A2", "A"), ManifestSection("B1", "B"), ManifestSection("C1", "C")]


def divided(**parts):
    return Division("split", *(tuple(parts.get(part, "").split()) for part in ("train", "validation", "test")))


@pytest.fixture
def adata():
    rng = np.random.default_rng(0)
    library = np.repeat(["A1", "A2", "B1", "C1"], [5, 7, 6, 4])
    counts = sp.csr_matrix(rng.poisson(2.0, (22, 6)).astype(np.float32))
    obs = pd.DataFrame({"library_id": pd.Categorical(library), "donor": pd.Categorical([lib[0] for lib in library])})
    obs.index = [f"{lib}_{i}" for i, lib in enumerate(library)]
    return ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(6)]))


@pytest.fixture
def manifest(adata):
    stimg.pp.split(adata, test=["A"], validation=["B"])
    return SplitManifest.from_anndata(adata)


@pytest.fixture
def blocks():
    """A section in blocks with a buffer, and its manifest."""
    slide = stimg.datasets.simulate(technology="st", shape=(10, 10), n_genes=8, rng=0)
    stimg.pp.rasterize(slide)
    stimg.pp.split(slide, by="block", n_blocks=4, test=0.25, buffer_um=250.0)
    return slide, SplitManifest.from_anndata(slide)


# ---- what cannot be


@pytest.mark.parametrize(
    ("level", "sections", "division", "message"),
    [
        (
            "donor",
            SECTIONS,
            divided(train="A1 C1", test="A2 B1"),
            r"sections of the donor 'A' in train and in test; wanted each donor on one side",
        ),
        (
            "donor",
            SECTIONS,
            divided(train="A1 A2", validation="B1", test="C1 B1"),
            r"has 'B1' in validation and in test; wanted each section once",
        ),
        ("section", SECTIONS, divided(train="A1 A2", test="C1"), r"leaves out \['B1'\]"),
        ("section", SECTIONS, divided(train="A1 A2 C1", test="B1 X9"), r"Division 'split', test, names 1 unknown sections: \['X9'\]"),
        ("section", SECTIONS, divided(train="A1 A2", test="B1C1"), r"'B1C1' is 'B1' and 'C1' written together: is a comma missing\?"),
        ("section", SECTIONS, divided(test="A1 A2 B1 C1"), r"has 0 sections to train on and 4 held out"),
        ("section", SECTIONS, divided(train="A1 A2 B1 C1"), r"has 4 sections to train on and 0 held out"),
        ("donor", [*SECTIONS, ManifestSection("D1")], divided(train="A1 A2 D1", test="B1 C1"), r"Section 'D1' has no donor"),
        ("section", [*SECTIONS, SECTIONS[0]], divided(train="A1 A2", test="B1 C1"), r"1 duplicated sections of the manifest"),
        ("spot", SECTIONS, divided(train="A1 A2", test="B1 C1"), r"level='spot' is not known"),
        ("section", SECTIONS, divided(train="A1 A2", test="B1 C1")._replace(buffer={"A1": ("x",)}), r"there is one at level 'block' alone"),
    ],
)
def test_a_split_that_contradicts_itself_cannot_be_made(level, sections, division, message):
    with pytest.raises(ValueError, match=message):
        SplitManifest(level, sections, [division])


def test_folds_test_each_section_once():
    a, b = divided(train="A1 A2", test="B1 C1"), divided(train="B1 C1", test="A1 A2")._replace(name="other")
    assert [d.name for d in SplitManifest("donor", SECTIONS, [a, b], folded=True).folds()] == ["split", "other"]
    with pytest.raises(ValueError, match=r"2 divisions and folded=False"):
        SplitManifest("donor", SECTIONS, [a, b])
    with pytest.raises(ValueError, match=r"\['B1', 'C1'\] are tested in several folds"):
        SplitManifest("donor", SECTIONS, [a, a._replace(name="again")], folded=True)


# ---- files


def test_a_file_gives_the_same_manifest_and_the_same_bytes(tmp_path, manifest, blocks):
    for each in (manifest, blocks[1]):
        path = tmp_path / f"{each.hash}.json"
        each.save(path)
        back = SplitManifest.load(path)
        assert back == each
        assert back.hash == each.hash
        text = path.read_bytes()
        back.save(path, overwrite=True)
        assert path.read_bytes() == text
        assert text.endswith(b"}\n")
        assert b"\r" not in text
        values = json.loads(text)
        assert list(values) == sorted(values)
        with pytest.raises(FileExistsError, match="overwrite=True"):
            each.save(path)


def test_one_change_is_one_line(manifest):
    moved = dataclasses.replace(manifest, divisions=[divided(train="B1", validation="C1", test="A1 A2")])
    a, b = manifest.to_json().splitlines(), moved.to_json().splitlines()
    assert len(a) == len(b)
    assert sum(x != y for x, y in zip(a, b, strict=True)) == 3  # the hash, and the two names that moved
    assert manifest.hash != moved.hash


@pytest.mark.parametrize(
    "edit",
    [
        lambda v: v["parts"]["train"].append(v["parts"]["test"].pop()),
        lambda v: v["sections"][0].update(contents="0" * 16),
        lambda v: v["sections"][0].update(donor="Z"),
        lambda v: v["parameters"].update(rng=1),
        lambda v: v.update(near_duplicates=[{"library_a": "A1"}]),
        lambda v: v.update(shared_donors=["A"]),
        lambda v: v.update(note="hello"),
        lambda v: v.pop("hash"),
    ],
)
def test_an_edited_file_is_noticed(tmp_path, manifest, edit):
    values = json.loads(manifest.to_json())
    edit(values)
    path = tmp_path / "split.json"
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"split.json was edited or damaged: it says hash .*, and its content has .*\. Restore the file"):
        SplitManifest.load(path)


def test_a_file_laid_out_anew_is_no_edited_file(tmp_path, manifest):
    path = tmp_path / "split.json"
    path.write_text(json.dumps(json.loads(manifest.to_json())))
    assert SplitManifest.load(path) == manifest


def test_files_that_are_no_manifest(tmp_path, manifest):
    path = tmp_path / "split.json"
    with pytest.raises(FileNotFoundError, match=r"There is no split manifest at .*split.json"):
        SplitManifest.load(path)
    path.write_text(manifest.to_json()[:300])
    with pytest.raises(ValueError, match=r"split.json is no JSON .*Restore the file"):
        SplitManifest.load(path)
    path.write_bytes(b"\x89HDF\r\n\xff\xfe")
    with pytest.raises(ValueError, match=r"split.json is no text"):
        SplitManifest.load(path)
    for other in ("[1]", '{"folds": 5}'):
        path.write_text(other)
        with pytest.raises(ValueError, match=r"is no split manifest; wanted one written by `SplitManifest.save`"):
            SplitManifest.load(path)
    path.write_text(manifest.to_json().replace('"format_version": 1', '"format_version": 99'))
    with pytest.raises(ValueError, match=r"format version 99; this version of stimg reads 1"):
        SplitManifest.load(path)


def test_a_write_that_fails_leaves_what_was_there(tmp_path, manifest, monkeypatch):
    path = tmp_path / "split.json"
    manifest.save(path)
    before = path.read_bytes()

    def broken(*args):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="nothing was changed"):
        manifest.save(path, overwrite=True)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["split.json"]


def test_a_missing_record_says_who_writes_it(adata):
    with pytest.raises(KeyError, match=r"\['manifest'\] is missing .*Run `stimg.pp.split` first"):
        SplitManifest.from_anndata(adata)


# ---- data


def test_order_does_not_matter_and_content_does(adata, manifest):
    assert manifest.check(adata[::-1].copy()[:, [3, 1, 5, 0, 2, 4]].copy()) == ()
    changed = adata.copy()
    changed.X.data[0] += 1
    with pytest.raises(
        ValueError, match=r"Section 'A1' is not the one of the manifest: 5 observations with contents \w{16}; wanted 5 with \w{16}"
    ):
        manifest.check(changed)
    fewer = adata[[i for i in range(22) if i != 13]].copy()
    with pytest.raises(ValueError, match=r"Section 'B1' is not the one .* 5 observations .* wanted 6"):
        manifest.check(fewer, strict=False)
    renamed = adata.copy()
    renamed.var_names = [f"x{g}" for g in adata.var_names]
    with pytest.raises(ValueError, match=r"'A1' is not the one of the manifest"):
        manifest.check(renamed)
    scaled = adata.copy()
    scaled.layers["counts"] = scaled.X.copy()
    scaled.X = np.log1p(scaled.X.toarray())
    with pytest.raises(ValueError, match=r"pass raw counts \(`layer=`\)"):
        manifest.check(scaled)
    assert manifest.check(scaled, layer="counts") == ()


def test_missing_and_unknown_sections(adata, manifest):
    some = adata[adata.obs["library_id"].isin(["A1", "C1"])].copy()
    with pytest.raises(ValueError, match=r"2 of the 4 sections of the manifest are not in adata: \['A2', 'B1'\].*strict=False"):
        manifest.check(some)
    assert manifest.check(some, strict=False) == ()
    assert set(manifest.apply(some)) == {"test", "train"}
    more = adata.copy()
    more.obs["library_id"] = more.obs["library_id"].astype(str).replace("C1", "D9")
    for call in (manifest.check, manifest.apply):
        with pytest.raises(ValueError, match=r"names 1 unknown sections: \['D9'\]"):
            call(more)
    with pytest.raises(KeyError, match=r"obs\['slide'\] is missing"):
        manifest.check(adata, library_key="slide")


def test_other_names_and_other_donors(adata, manifest):
    renamed = adata.copy()
    renamed.obs_names = [f"spot{i}" for i in range(22)]
    with pytest.raises(ValueError, match=r"Section 'A1' has the counts of the manifest, and other names of observations.*strict=False"):
        manifest.check(renamed)
    assert manifest.check(renamed, strict=False) == ()
    adopted = adata.copy()
    adopted.obs["donor"] = adopted.obs["donor"].astype(str).replace("C", "A")
    with pytest.raises(ValueError, match=r"Section 'C1' has the donor \['A'\], in the manifest 'C'"):
        manifest.check(adopted)


def test_blocks_are_known_by_the_names_of_their_observations(blocks):
    slide, manifest = blocks
    np.testing.assert_array_equal(manifest.apply(slide[::-1].copy()), slide.obs["stimg_split"].to_numpy()[::-1])
    (masks,) = manifest.masks(slide)
    np.testing.assert_array_equal(masks.train.astype(int) + masks.validation + masks.test + masks.buffer, 1)
    assert set(slide.obs_names[masks.buffer]) == set(manifest.divisions[0].buffer["D1S1"])
    assert manifest.shared_donors == ("D1",)
    renamed = slide.copy()
    renamed.obs_names = ["new", *slide.obs_names[1:]]
    with pytest.raises(ValueError, match=r"other names of observations. Give them their old names, or make the split again"):
        manifest.check(renamed, strict=False)
    with pytest.raises(ValueError, match=r"1 observations of section 'D1S1' are in no block of the manifest, the first is 'new'"):
        manifest.apply(renamed)
    twice = slide.copy()
    twice.obs_names = [*slide.obs_names[:-1], slide.obs_names[0]]
    with pytest.raises(ValueError, match=r"1 duplicated observations in section 'D1S1'"):
        stimg.pp.split(twice, by="block", n_blocks=4, test=0.25)


def test_a_manifest_written_by_hand_has_nothing_to_compare(adata):
    manifest = SplitManifest("donor", SECTIONS, [divided(train="A1 A2 C1", test="B1")])
    assert manifest.check(adata) == ("A1", "A2", "B1", "C1")
    assert set(adata.obs["library_id"][(manifest.apply(adata) == "test").to_numpy()]) == {"B1"}
    assert SplitManifest.from_json(manifest.to_json()) == manifest
    stimg.pp.split(adata, manifest=manifest)
    assert adata.uns["stimg"]["stimg_split"]["split_hash"] == manifest.hash
