"""Pictures of retrieval: curves against counted ranks, and the right observations marked and shown."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb

import stimg
from stimg.pl import _retrieval


@pytest.fixture
def found(section, joined):
    adata = joined(section(), section("square", name="B", seed=1))
    rng = np.random.default_rng(0)
    adata.obsm["X_a"] = rng.standard_normal((adata.n_obs, 6)).astype(np.float32)
    adata.obsm["X_b"] = (adata.obsm["X_a"] + rng.standard_normal((adata.n_obs, 6))).astype(np.float32)
    stimg.tl.retrieve(adata, image_key="X_a", gene_key="X_b", k=4)
    return adata


def curve(ax, gid):
    return [line for line in ax.lines if line.get_gid() == gid]


def test_recall_beside_chance(found):
    ax = stimg.pl.retrieval(found)
    rank, library = found.obs["stimg_retrieval_rank"].to_numpy(), found.obs["library_id"].to_numpy()
    for line, name in zip(curve(ax, "recall"), ("A", "B"), strict=True):
        k, share = line.get_data()
        np.testing.assert_allclose(share, [(rank[library == name] <= each).mean() for each in k])
        assert line.get_label() == f"{name} (n = {(library == name).sum()})"
        assert share[-1] == 1
    (line,) = curve(ax, "chance")
    k, share = line.get_data()
    np.testing.assert_allclose(share, k / found.n_obs)
    assert len(curve(stimg.pl.retrieval(found, library_id="B"), "recall")) == 1


def test_queries_and_what_was_found(found):
    name = found.obs_names[5]
    axes = stimg.pl.retrieval(found, kind="queries", queries=[name], k=3)
    assert list(axes) == [(name, "map")]
    ax = axes[name, "map"]
    (ring,) = [line for line in ax.lines if line.get_gid() == "query"]
    spec = stimg.image.RasterSpec.from_dict(found.uns["stimg"]["raster"]["A"])
    np.testing.assert_allclose(np.ravel(ring.get_data()), spec.centres_um(found.obsm["stimg_rc"][[5]])[0, ::-1])
    rows = np.flatnonzero((found.obs["library_id"] == "A").to_numpy())
    order = rows[np.lexsort(found.obsm["stimg_rc"][rows].T[::-1])]
    faces = ax.collections[0].get_facecolors()[:, :3]
    coloured = np.abs(faces - to_rgb(_retrieval.OTHERS)).max(axis=1) > 0.01
    here = [row for row in found.obsm["stimg_retrieval"][5, :3] if row in set(rows)]
    assert set(order[coloured]) == set(here)


def test_another_reference_has_a_map_of_its_own(found, section):
    reference = section("square", name="R", seed=7)
    reference.obsm["X_b"] = np.random.default_rng(2).standard_normal((reference.n_obs, 6)).astype(np.float32)
    stimg.tl.retrieve(found, reference=reference, image_key="X_a", gene_key="X_b", k=2)
    axes = stimg.pl.retrieval(found, kind="queries", queries=[0, 3], reference=reference)
    assert [what for _, what in axes] == ["map", "reference"] * 2
    for row in (0, 3):
        ax = axes[found.obs_names[row], "reference"]
        faces = ax.collections[0].get_facecolors()[:, :3]
        order = np.lexsort(reference.obsm["stimg_rc"].T[::-1])
        coloured = np.abs(faces - to_rgb(_retrieval.OTHERS)).max(axis=1) > 0.01
        assert set(order[coloured]) == set(found.obsm["stimg_retrieval"][row])
    with pytest.raises(ValueError, match=rf"holds rows of an object with {reference.n_obs} observations, which is not the reference given"):
        stimg.pl.retrieval(found, kind="queries")


def test_tiles_are_those_of_the_observations(section, tmp_path):
    from PIL import Image

    adata = section("square", shape=(5, 6), pitch_um=20.0)
    adata.obsm["X_a"] = np.random.default_rng(0).standard_normal((adata.n_obs, 4)).astype(np.float32)
    stimg.tl.retrieve(adata, image_key="X_a", gene_key="X_a", k=2)
    adata.obsm["spatial"] = np.rint(adata.obsm["spatial"] + 100 - adata.obsm["spatial"].min(axis=0))
    width, height = adata.obsm["spatial"].max(axis=0).astype(int) + 100
    pixels = np.random.default_rng(1).integers(0, 255, (height, width, 3), dtype=np.uint8)
    path = tmp_path / "slide.png"
    Image.fromarray(pixels).save(path)
    stimg.pp.plan_tiles(adata, tile_um=16.0, mpp=0.5, image=path)
    name = adata.obs_names[3]
    axes = stimg.pl.retrieval(adata, kind="queries", queries=[3], k=2)
    assert list(axes) == [(name, "map"), (name, "query"), (name, "1"), (name, "2")]
    for what, row in (("query", 3), ("1", adata.obsm["stimg_retrieval"][3, 0]), ("2", adata.obsm["stimg_retrieval"][3, 1])):
        y, x = adata.obsm["stimg_tiles"][row, :2].astype(int)
        np.testing.assert_array_equal(axes[name, what].images[0].get_array(), pixels[y - 16 : y + 16, x - 16 : x + 16])
    assert axes[name, "1"].get_title() == "1: 1.00 (partner)"
    assert list(stimg.pl.retrieval(adata, kind="queries", queries=[3], tiles=False)) == [(name, "map")]


def test_queries_drawn_by_chance_are_repeatable(found):
    a, b = (stimg.pl.retrieval(found, kind="queries", queries=2, library_id="B", rng=4) for _ in range(2))
    assert list(a) == list(b)
    assert all(name.startswith("B") for name, _ in a)


def test_errors(found):
    with pytest.raises(ValueError, match="kind='bars' is not known"):
        stimg.pl.retrieval(found, kind="bars")
    with pytest.raises(KeyError, match=r"adata\.obs\['mine_rank'\] is missing.*the reference to be the data itself"):
        stimg.pl.retrieval(found, key="mine")
    with pytest.raises(KeyError, match=r"adata\.obsm\['mine'\] is missing.*stimg\.tl\.retrieve"):
        stimg.pl.retrieval(found, kind="queries", key="mine")
    with pytest.raises(KeyError, match="1 of 1 queries are not in the object"):
        stimg.pl.retrieval(found, kind="queries", queries=["nobody"])
    with pytest.raises(ValueError, match=r"queries=\[999\]; wanted rows from 0"):
        stimg.pl.retrieval(found, kind="queries", queries=[999])
    with pytest.raises(KeyError, match=r"There is no library 'Z'\. Known: 'A', 'B'"):
        stimg.pl.retrieval(found, library_id="Z")
