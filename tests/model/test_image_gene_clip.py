"""What an alignment says, against what is known of the data and against plain numpy."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from stimg.metrics import retrieve
from stimg.model import ImageGeneCLIP, ImageGeneCLIPOptions

FIT = {"max_epochs": 40, "validation": "donors", "batch_size": 64, "lr": 5e-3, "rng": 0}


def recall(model, adata, k=5):
    found = retrieve(model.get_image_embedding(adata), model.get_gene_embedding(adata), group=adata.obs["library_id"], within="group")
    return found.recall(k), found.chance(k)


def without_counts(adata):
    return ad.AnnData(obs=adata.obs.copy(), obsm=dict(adata.obsm), uns=dict(adata.uns))


def log_values(adata):
    counts = adata.X.toarray()
    return np.log1p(1e4 * counts / np.maximum(counts.sum(1, keepdims=True), 1))


def test_it_finds_pairs_of_donors_it_has_not_seen(aligned, make_pairs):
    adata, model = aligned
    held = adata[np.sort(model.validation_indices)].copy()
    assert held.obs["donor"].nunique() == 1
    assert set(held.obs["donor"]).isdisjoint(adata.obs["donor"].iloc[model.train_indices])
    found, chance = recall(model, held)
    assert chance == pytest.approx(5 / 64)
    assert found > 6 * chance
    new = make_pairs(sections=1, seed=0)  # the maps are those of seed 0
    assert recall(model, new)[0] > 6 * chance


def test_shuffled_pairs_are_chance(make_pairs, make_clip):
    adata = make_pairs(shuffled=True)
    model = make_clip(adata)
    model.train(**FIT)
    found, chance = recall(model, adata[np.sort(model.validation_indices)].copy())
    assert found < 2 * chance


@pytest.mark.parametrize(
    "changes",
    [
        {"image_head": "mlp"},
        {"image_head": "residual", "gene_head": "residual"},
        {"gene_head": "mlp"},
        {"gene_encoder": "mlp", "n_hidden": 32},
        {"gene_encoder": "mlp", "n_hidden": 32, "n_layers": 2},
        {"gene_encoder": "linear"},
        {"gene_components": 6},
        {"image_components": 6},
        {"image_components": None},
        {"loss": "siglip"},
        {"normalise": False, "temperature": 1.0},
        {"label_smoothing": 0.1},
        {"batch": "centre"},
        {"batch": "within"},
        {"batch": "adversarial"},
        {"batch": ("centre", "within")},
        {"sampling": "balanced"},
        {"sampling": "within"},
        {"expression_weight": 1.0},
        {"expression_weight": 1.0, "decoder": "mlp"},
        {"expression_weight": 1.0, "batch": "centre"},
        {"depth": True},
        {"dropout": 0.0},
        {"temperature": 0.07},
    ],
    ids=str,
)
def test_every_option_changes_something_and_still_finds_pairs(make_pairs, make_clip, tmp_path, changes):
    adata = make_pairs()
    fit = {**FIT, "max_epochs": 25}
    model, plain = make_clip(adata, **changes), make_clip(adata)
    for each in (model, plain):
        each.train(**fit)
    values = model.get_image_embedding()
    assert values.shape == (adata.n_obs, 8)
    assert values.dtype == np.float32
    assert not np.allclose(values, plain.get_image_embedding(), atol=1e-4)
    found, chance = recall(model, adata)
    assert found > 3 * chance, (found, chance)
    model.save(tmp_path / "m")
    loaded = ImageGeneCLIP.load(tmp_path / "m")
    np.testing.assert_array_equal(loaded.get_image_embedding(adata), values)
    np.testing.assert_array_equal(loaded.get_gene_embedding(adata), model.get_gene_embedding())


def test_a_batch_effect_is_centred_away(make_pairs, make_clip):
    """A new section whose features are moved as a whole: without centring, its images point the wrong way."""
    adata = make_pairs(effect=4.0)
    scores = {}
    for batch in ("none", "centre"):
        model = make_clip(adata, batch=batch)
        model.train(**FIT)
        scores[batch] = recall(model, adata[np.sort(model.validation_indices)].copy())[0]
    assert scores["centre"] > 1.5 * scores["none"]


def test_centring_by_hand(make_pairs, make_clip):
    adata = make_pairs(effect=2.0)
    model = make_clip(adata, batch="centre")
    model.train(**{**FIT, "max_epochs": 2})
    own = adata[adata.obs["library_id"] == "S1"].copy()
    x = own.obsm["X_image"] - own.obsm["X_image"].mean(0)
    y = log_values(own)
    y = y - y.mean(0)
    net = model.module
    with torch.no_grad():
        image = net.embed_image(torch.from_numpy(x)).numpy()
        gene = net.embed_gene(torch.from_numpy(y.astype(np.float32))).numpy()
    np.testing.assert_allclose(model.get_image_embedding(own, normalise=False), image, atol=1e-4)
    np.testing.assert_allclose(model.get_gene_embedding(own, normalise=False), gene, atol=1e-4)
    moved = own.copy()
    moved.obsm["X_image"] = own.obsm["X_image"] + 7
    np.testing.assert_allclose(model.get_image_embedding(moved), model.get_image_embedding(own), atol=1e-4)


@pytest.mark.slow
def test_the_adversary_hides_batches(make_pairs, make_clip):
    """How well a section is told by the nearest mean of embeddings, with and without; mean over three trainings, for one alone varies by .1."""
    adata = make_pairs(effect=1.0, sections=3, donors=3)
    names = adata.obs["library_id"].to_numpy()
    told = {None: [], 3.0: []}
    for weight, found in told.items():
        changes = {} if weight is None else {"batch": "adversarial", "adversarial_weight": weight}
        for seed in range(3):
            model = make_clip(adata, **changes)
            model.train(**{**FIT, "validation": None, "max_epochs": 60, "rng": seed})
            x = model.get_image_embedding()
            means = np.stack([x[names == name].mean(0) for name in np.unique(names)])
            nearest = np.unique(names)[((x[:, None] - means) ** 2).sum(-1).argmin(1)]
            found.append((nearest == names).mean())
    assert np.mean(told[3.0]) < np.mean(told[None]) - 0.1


def test_embeddings_by_hand(aligned):
    """Standardise, project, multiply: numpy alone, from the saved tensors."""
    adata, model = aligned
    state = {k: v.numpy().astype(np.float64) for k, v in model.module.state_dict().items()}
    rows = np.sort(model.train_indices)
    x, y = adata.obsm["X_image"].astype(np.float64), log_values(adata)
    np.testing.assert_allclose(state["image_in.mean"], x[rows].mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state["image_in.scale"], x[rows].std(0), rtol=1e-4)
    np.testing.assert_allclose(state["gene_in.mean"], y[rows].mean(0), rtol=1e-4)
    z = (x - state["image_in.mean"]) / state["image_in.scale"]
    axes = np.linalg.svd(z[rows], full_matrices=False)[2].T
    cosine = (axes * state["image_axes.axes"]).sum(0) / np.linalg.norm(state["image_axes.axes"], axis=0)
    np.testing.assert_allclose(np.abs(cosine), 1, atol=1e-4)
    image = z @ state["image_axes.axes"] @ state["image_head.linear.weight"].T + state["image_head.linear.bias"]
    np.testing.assert_allclose(model.get_image_embedding(normalise=False), image, atol=1e-4)
    unit = image / np.linalg.norm(image, axis=1, keepdims=True)
    np.testing.assert_allclose(model.get_image_embedding(), unit, atol=1e-5)
    gene = ((y - state["gene_in.mean"]) / state["gene_in.scale"]) @ state["gene_encoder.axes"]
    gene = gene @ state["gene_head.linear.weight"].T + state["gene_head.linear.bias"]
    np.testing.assert_allclose(model.get_gene_embedding(normalise=False), gene, atol=1e-4)
    wanted = (unit * gene / np.linalg.norm(gene, axis=1, keepdims=True)).sum(1)
    np.testing.assert_allclose(model.score_pairs(), wanted, atol=1e-5)
    decoded = image @ state["decoder.linear.weight"].T + state["decoder.linear.bias"]
    decoded = np.maximum(decoded * state["expression_in.scale"] + state["expression_in.mean"], 0)
    np.testing.assert_allclose(model.predict_expression(head="trained"), decoded, atol=1e-4)


def test_retrieval_by_hand(aligned):
    adata, model = aligned
    query, reference = adata[:50].copy(), adata[50:200].copy()
    sides = {"image": model.get_image_embedding, "expression": model.get_gene_embedding}
    for direction in ("image to expression", "expression to image", "image to image", "expression to expression"):
        left, right = direction.split(" to ")
        scores = sides[left](query) @ sides[right](reference).T
        found = model.retrieve(query, reference, direction=direction, k=7)
        np.testing.assert_array_equal(found.index, np.argsort(-scores, axis=1, kind="stable")[:, :7])
        np.testing.assert_allclose(found.score, -np.sort(-scores, axis=1)[:, :7], atol=1e-6)
    own = model.retrieve(query, k=adata.n_obs)
    assert own.index.shape == (50, adata.n_obs)
    np.testing.assert_array_equal(np.sort(own.index, axis=1), np.tile(np.arange(adata.n_obs), (50, 1)))


def test_equal_scores_come_in_the_order_of_the_gallery(aligned):
    adata, model = aligned
    reference = adata[[3, 3, 3, 9]].copy()
    reference.obs_names_make_unique()
    found = model.retrieve(adata[3:4].copy(), reference, direction="expression to expression", k=2)
    assert found.index.tolist() == [[0, 1]]


@pytest.mark.parametrize("by", ["expression", "image"])
def test_predictions_by_retrieval_by_hand(aligned, by):
    adata, model = aligned
    query, reference = adata[:40].copy(), adata[64:].copy()
    found = model.predict_expression(query, head="retrieval", reference=reference, k=9, by=by, genes=["g5", "g2"])
    assert found.columns.tolist() == ["g5", "g2"]
    assert found.index.equals(query.obs_names)
    values = log_values(reference)[:, [5, 2]]
    right = (model.get_gene_embedding if by == "expression" else model.get_image_embedding)(reference)
    scores = model.get_image_embedding(query) @ right.T
    for i in range(40):
        best = np.argsort(-scores[i])[:9]
        weight = np.exp(model.scale * scores[i, best])
        np.testing.assert_allclose(found.iloc[i], weight @ values[best] / weight.sum(), rtol=1e-4)


def test_predictions_tell_new_sections(aligned):
    adata, model = aligned
    held = adata[np.sort(model.validation_indices)].copy()
    truth = log_values(held)
    for head in ("trained", "retrieval"):
        reference = adata[np.sort(model.train_indices)].copy()
        found = model.predict_expression(held, head=head, reference=reference).to_numpy()
        r = [np.corrcoef(found[:, g], truth[:, g])[0, 1] for g in range(held.n_vars)]
        assert np.mean(r) > 0.5, head


def test_genes_that_the_model_does_not_read_are_predicted_from_a_reference(make_pairs, make_clip):
    adata = make_pairs()
    model = make_clip(adata, [f"g{i}" for i in range(20)])
    model.train(**{**FIT, "max_epochs": 10})
    found = model.predict_expression(adata[:10].copy(), genes=["g23"], head="retrieval")
    assert found.shape == (10, 1)
    assert model.predict_expression(adata[:10].copy()).shape == (10, 20)


def test_images_alone_are_enough(aligned):
    adata, model = aligned
    bare = without_counts(adata)
    assert bare.n_vars == 0
    np.testing.assert_array_equal(model.get_image_embedding(bare), model.get_image_embedding())
    for head in ("trained", "retrieval"):
        pd.testing.assert_frame_equal(model.predict_expression(bare, head=head), model.predict_expression(head=head))
    np.testing.assert_array_equal(model.get_uncertainty(bare), model.get_uncertainty())
    assert model.identity(bare)["n_obs_seen_in_training"] == 0
    assert model.identity(adata)["n_obs_seen_in_training"] == adata.n_obs


def test_expression_alone_is_enough(aligned):
    adata, model = aligned
    bare = ad.AnnData(adata.X.copy(), obs=adata.obs.copy(), var=adata.var.copy())
    np.testing.assert_array_equal(model.get_gene_embedding(bare), model.get_gene_embedding())


def test_batches_of_inference_do_not_matter(aligned):
    _, model = aligned
    for call in (model.get_image_embedding, model.get_gene_embedding, model.score_pairs, model.predict_expression, model.get_uncertainty):
        np.testing.assert_allclose(np.asarray(call(batch_size=7)), np.asarray(call()), atol=1e-5)


def test_genes_in_another_order_and_dense_or_sparse(aligned):
    adata, model = aligned
    order = np.random.default_rng(0).permutation(adata.n_vars)
    for other in (adata[:, order].copy(), ad.AnnData(adata.X.toarray(), obs=adata.obs, var=adata.var, obsm=dict(adata.obsm))):
        np.testing.assert_allclose(model.get_gene_embedding(other), model.get_gene_embedding(), atol=1e-6)
        assert model.identity(other) == model.identity(adata)


def test_an_observation_without_counts_is_zero_not_nan(aligned):
    adata, model = aligned
    other = adata.copy()
    counts = other.X.tolil()
    counts[3] = 0
    other.X = counts.tocsr()
    found = model.get_gene_embedding(other)
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(np.delete(found, 3, axis=0), np.delete(model.get_gene_embedding(), 3, axis=0))


def test_control_probes_are_no_genes_and_no_depth(make_pairs, make_clip):
    adata = make_pairs(sections=2, donors=2)
    probes = ad.AnnData(sp.csr_matrix(np.full((adata.n_obs, 2), 50.0, dtype=np.float32)), obs=adata.obs[[]])
    probes.var_names = ["NegControlProbe_1", "BLANK_2"]
    both = ad.concat([adata, probes], axis=1, merge="first")
    both.obs, both.obsm = adata.obs.copy(), adata.obsm.copy()
    plain, controlled = make_clip(adata), make_clip(both)
    assert controlled.genes.tolist() == plain.genes.tolist()
    for model in (plain, controlled):
        model.train(**{**FIT, "max_epochs": 2, "validation": None})
    np.testing.assert_array_equal(plain.get_gene_embedding(), controlled.get_gene_embedding(both))


def test_depth_is_one_more_input(make_pairs, make_clip):
    adata = make_pairs()
    model = make_clip(adata, depth=True)
    model.train(**{**FIT, "max_epochs": 2})
    assert model.module.gene_in.mean.shape == (25,)
    deeper = adata.copy()
    deeper.X = deeper.X * 2
    plain = make_clip(adata)
    plain.train(**{**FIT, "max_epochs": 2})
    np.testing.assert_allclose(plain.get_gene_embedding(deeper), plain.get_gene_embedding(), atol=1e-5)
    assert not np.allclose(model.get_gene_embedding(deeper), model.get_gene_embedding(), atol=1e-3)


def test_several_slots_stand_beside_each_other(make_pairs, make_clip):
    adata = make_pairs()
    adata.obsm["X_first"], adata.obsm["X_second"] = adata.obsm["X_image"][:, :5], adata.obsm["X_image"][:, 5:].astype(np.float64)
    one, two = make_clip(adata), make_clip(adata, image=("X_first", "X_second"))
    for model in (one, two):
        model.train(**{**FIT, "max_epochs": 3})
    np.testing.assert_array_equal(one.get_image_embedding(), two.get_image_embedding())
    assert two.facts["widths"] == {"X_first": 5, "X_second": 7}


def test_a_finished_embedding_as_the_gene_side(make_pairs, make_clip, tmp_path):
    adata = make_pairs()
    y = log_values(adata)
    y = y - y.mean(0)
    adata.obsm["X_genes_pca"] = (y @ np.linalg.svd(y, full_matrices=False)[2][:6].T).astype(np.float32)
    model = make_clip(adata, gene="X_genes_pca", expression_weight=0.5)
    model.train(**FIT)
    assert model.module.gene_encoder is None
    assert recall(model, adata)[0] > 0.4
    bare = ad.AnnData(obs=adata.obs.copy(), obsm={"X_genes_pca": adata.obsm["X_genes_pca"]})
    np.testing.assert_array_equal(model.get_gene_embedding(bare), model.get_gene_embedding())
    assert model.predict_expression(head="trained").shape == adata.shape
    model.save(tmp_path / "m")
    np.testing.assert_array_equal(ImageGeneCLIP.load(tmp_path / "m").get_gene_embedding(bare), model.get_gene_embedding())


def test_uncertainty_by_hand(aligned):
    adata, model = aligned
    scores = model.get_image_embedding() @ model.get_gene_embedding().T * model.scale
    share = np.exp(scores - scores.max(1, keepdims=True))
    share /= share.sum(1, keepdims=True)
    wanted = -(share * np.log(share)).sum(1) / np.log(adata.n_obs)
    found = model.get_uncertainty()
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert ((found >= 0) & (found <= 1)).all()
    spread = model.get_uncertainty(kind="dropout", n_samples=30)
    assert ((spread > 0) & (spread < 1)).all()
    np.testing.assert_array_equal(spread, model.get_uncertainty(kind="dropout", n_samples=30))
    assert not np.array_equal(spread, model.get_uncertainty(kind="dropout", n_samples=30, rng=1))
    assert not model.module.training
    drop = model.module.image_head.drop
    drop.p, p = 0.01, drop.p
    try:
        assert model.get_uncertainty(kind="dropout", n_samples=30).mean() < 0.2 * spread.mean()
    finally:
        drop.p = p


def test_the_ledger(aligned, make_pairs, make_clip):
    import stimg

    adata, model = aligned
    assert model.ledger[-1].libraries == ("S0", "S1", "S2", "S3")
    assert model.ledger[-1].donors == ("D0", "D1", "D2", "D3")
    with pytest.raises(stimg.bench.LeakageError, match="the model 'ImageGeneCLIP' has seen"):
        stimg.bench.check_leakage(adata, model)
    fresh = make_pairs(seed=5)
    fresh.obs["donor"] = "X" + fresh.obs["donor"].astype(str)
    fresh.obs["library_id"] = "X" + fresh.obs["library_id"].astype(str)
    assert stimg.bench.check_leakage(fresh, model) == []
    other = make_pairs(seed=6)
    stimg.bench.remember(other, "X_image", stimg.bench.seen_of(fresh, who="image MAE", kind="encoder"))
    model = make_clip(other)
    assert [s.who for s in model.ledger] == ["image MAE", "ImageGeneCLIP"]


def test_options_and_summary(make_pairs, make_clip):
    adata = make_pairs()
    model = make_clip(adata, options=ImageGeneCLIPOptions(dropout=0.4), loss="siglip")
    assert (model.options.dropout, model.options.loss, model.options.n_dim) == (0.4, "siglip", 8)
    assert "ImageGeneCLIP of X_image (12 features) and 24 genes, loss: siglip, n_dim: 8" in model._model_summary_string
    assert model.scale == pytest.approx(5)
    assert model.module.bias.item() == -10
    chosen = make_clip(adata, ["g3", "g1"])
    assert chosen.genes.tolist() == ["g3", "g1"]


def test_spatialdata(make_pairs):
    sdata = pytest.importorskip("spatialdata").SpatialData(tables={"table": make_pairs()})
    ImageGeneCLIP.setup_spatialdata(sdata, image="X_image")
    model = ImageGeneCLIP(sdata.tables["table"], n_dim=4)
    model.train(max_epochs=1)
    assert model.get_image_embedding().shape == (256, 4)
