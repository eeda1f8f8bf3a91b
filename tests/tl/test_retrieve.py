"""Retrieval and alignment as they are written, beside full matrices of cosines."""

import anndata as ad
import numpy as np
import pytest

import stimg


def table(name, n=40, *, seed=0, dim=5, noise=0.7):
    rng = np.random.default_rng(seed)
    adata = ad.AnnData(rng.poisson(2.0, (n, 8)).astype(np.float32))
    adata.obs_names = [f"{name}-{i}" for i in range(n)]
    adata.obs["library_id"] = [f"{name}{i % 2}" for i in range(n)]
    a = rng.standard_normal((n, dim))
    adata.obsm["X_image"] = a.astype(np.float32)
    adata.obsm["X_genes"] = (a + noise * rng.standard_normal((n, dim))).astype(np.float32)
    return adata


def cosines(a, b):
    a, b = (np.asarray(x, dtype=np.float64) for x in (a, b))
    return (a / np.linalg.norm(a, axis=1, keepdims=True)) @ (b / np.linalg.norm(b, axis=1, keepdims=True)).T


@pytest.mark.parametrize(
    ("direction", "sides"), [("image to expression", ("X_image", "X_genes")), ("expression to image", ("X_genes", "X_image"))]
)
def test_another_object(direction, sides):
    adata, reference = table("a"), table("b", 30, seed=1)
    stimg.tl.retrieve(adata, reference=reference, image_key="X_image", gene_key="X_genes", direction=direction, k=4, chunk=7)
    scores = cosines(adata.obsm[sides[0]], reference.obsm[sides[1]])
    order = np.argsort(-scores, axis=1)[:, :4]
    assert adata.obsm["stimg_retrieval"].dtype == np.int64
    np.testing.assert_array_equal(adata.obsm["stimg_retrieval"], order)
    np.testing.assert_allclose(adata.obsm["stimg_retrieval_score"], np.take_along_axis(scores, order, axis=1), rtol=1e-5)
    assert "stimg_retrieval_rank" not in adata.obs
    record = adata.uns["stimg"]["stimg_retrieval"]
    assert record["direction"] == direction
    assert (record["reference"], record["n_reference"]) == ("another object", 30)


@pytest.mark.parametrize("within", [True, False])
def test_the_data_itself(within):
    adata = table("a")
    stimg.tl.retrieve(adata, image_key="X_image", gene_key="X_genes", k=25, within_library=within)
    scores = cosines(adata.obsm["X_image"], adata.obsm["X_genes"])
    if within:
        library = adata.obs["library_id"].to_numpy()
        scores[library[:, None] != library[None]] = -np.inf
    n = 20 if within else 40
    kept = min(25, n)
    np.testing.assert_array_equal(adata.obsm["stimg_retrieval"][:, :kept], np.argsort(-scores, axis=1)[:, :kept])
    assert (adata.obsm["stimg_retrieval"][:, kept:] == -1).all()
    rank = 1 + (scores > np.diag(scores)[:, None]).sum(axis=1)
    np.testing.assert_array_equal(adata.obs["stimg_retrieval_rank"], rank)
    assert (adata.obs["stimg_retrieval_gallery"] == n).all()
    record = adata.uns["stimg"]["stimg_retrieval"]
    assert record["recall_at_5"] == pytest.approx((rank <= 5).mean())
    assert record["chance_at_5"] == pytest.approx(5 / n)
    stimg.tl.retrieve(adata, reference=table("b"), image_key="X_image", gene_key="X_genes")
    assert "stimg_retrieval_rank" not in adata.obs  # of another call


def test_a_dot_product_and_a_name():
    adata = table("a")
    adata.obsm["X_genes"][3] *= 100
    stimg.tl.retrieve(adata, image_key="X_image", gene_key="X_genes", k=2, normalise=False, key_added="mine")
    scores = adata.obsm["X_image"].astype(np.float64) @ adata.obsm["X_genes"].astype(np.float64).T
    np.testing.assert_array_equal(adata.obsm["mine"], np.argsort(-scores, axis=1)[:, :2])
    np.testing.assert_allclose(adata.obsm["mine_score"][:, 0], scores.max(axis=1), rtol=1e-5)


def test_h5ad(tmp_path):
    adata = table("a")
    stimg.tl.retrieve(adata, image_key="X_image", gene_key="X_genes")
    adata.write_h5ad(tmp_path / "a.h5ad")
    back = ad.read_h5ad(tmp_path / "a.h5ad")
    np.testing.assert_array_equal(back.obsm["stimg_retrieval"], adata.obsm["stimg_retrieval"])
    assert back.uns["stimg"]["stimg_retrieval"]["similarity"] == "cosine"


def test_errors():
    adata = table("a")
    keys = {"image_key": "X_image", "gene_key": "X_genes"}
    with pytest.raises(ValueError, match="wanted both, or a trained model"):
        stimg.tl.retrieve(adata, image_key="X_image")
    with pytest.raises(KeyError, match=r"adata\.obsm\['X_none'\] is missing.*stimg\.tl\.align"):
        stimg.tl.retrieve(adata, image_key="X_none", gene_key="X_genes")
    with pytest.raises(ValueError, match="direction='up' is not known"):
        stimg.tl.retrieve(adata, direction="up", **keys)
    with pytest.raises(ValueError, match="the image side has 5 columns and the gene side 3"):
        stimg.tl.retrieve(adata, reference=table("b", dim=3), **keys)
    with pytest.raises(TypeError, match="model is a str"):
        stimg.tl.retrieve(adata, model="clip")
    with pytest.raises(ValueError, match="wanted one or the other"):
        stimg.tl.retrieve(adata, model=object(), **keys)
    with pytest.raises(ValueError, match="k=0 is not usable"):
        stimg.tl.retrieve(adata, k=0, **keys)
    other = table("b")
    del other.obs["library_id"]
    with pytest.raises(KeyError, match=r"adata\.obs\['library_id'\] is missing"):
        stimg.tl.retrieve(adata, reference=other, within_library=True, **keys)
    assert "stimg_retrieval" not in adata.obsm


class TestModel:
    def test_align_writes_what_the_model_says(self, clip):
        model, adata = clip
        stimg.tl.align(adata, model=model)
        image, genes = adata.obsm["X_stimg_clip_image"], adata.obsm["X_stimg_clip_genes"]
        np.testing.assert_array_equal(image, model.get_image_embedding(adata))
        np.testing.assert_array_equal(genes, model.get_gene_embedding(adata))
        np.testing.assert_allclose(adata.obs["stimg_pair_score"], np.diag(cosines(image, genes)), atol=1e-6)
        record = adata.uns["stimg"]["stimg_pair_score"]
        assert record["model"] == "ImageGeneCLIP"
        shuffled = record["shuffled"]
        assert len(shuffled) == adata.n_obs
        library = adata.obs["library_id"].to_numpy()
        others = cosines(image, genes)
        others = others[(library[:, None] == library[None]) & ~np.eye(adata.n_obs, dtype=bool)]
        assert np.abs(shuffled[:, None] - others[None]).min(axis=1).max() < 1e-6  # each is a score of two observations of one library
        with pytest.raises(ValueError, match="Leakage: the model 'ImageGeneCLIP' has seen"):
            stimg.bench.check_leakage(adata, adata)

    def test_align_is_repeatable_and_named(self, clip):
        model, adata = clip
        a, b = adata.copy(), adata.copy()
        stimg.tl.align(a, model=model, rng=3)
        stimg.tl.align(b, model=model, rng=3, key_added="other")
        np.testing.assert_array_equal(a.uns["stimg"]["stimg_pair_score"]["shuffled"], b.uns["stimg"]["stimg_other_pair_score"]["shuffled"])
        assert {"X_stimg_other_image", "X_stimg_other_genes"} <= set(b.obsm)
        with pytest.raises(TypeError, match="model is a int"):
            stimg.tl.align(a, model=3)

    def test_retrieve_by_the_model_is_by_what_align_writes(self, clip):
        model, adata = clip
        stimg.tl.align(adata, model=model)
        stimg.tl.retrieve(adata, model=model, k=6)
        by_model = adata.obsm["stimg_retrieval"].copy()
        np.testing.assert_array_equal(by_model, model.retrieve(adata, adata, k=6).index)
        stimg.tl.retrieve(adata, image_key="X_stimg_clip_image", gene_key="X_stimg_clip_genes", k=6)
        np.testing.assert_array_equal(adata.obsm["stimg_retrieval"], by_model)
        with pytest.raises(ValueError, match="Leakage: the model 'ImageGeneCLIP' has seen"):
            stimg.bench.check_leakage(adata, stimg.bench.recall(adata, only=["stimg_retrieval"]))


@pytest.fixture(scope="module")
def clip():
    adata = stimg.datasets.simulate(technology="visium", shape=(8, 8), n_genes=20, n_donors=2, rng=0)
    adata.obsm["X_some"] = np.asarray(adata.obsm["stimg_truth_proportions"], dtype=np.float32)
    stimg.model.ImageGeneCLIP.setup_anndata(adata, image="X_some")
    model = stimg.model.ImageGeneCLIP(adata, n_dim=6, n_hidden=16)
    model.train(max_epochs=3, validation=None, enable_progress_bar=False)
    return model, adata
