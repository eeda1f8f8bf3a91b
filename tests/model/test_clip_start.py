"""Heads that start at the canonical correlation of the training pairs."""

import numpy as np
import pytest
import scipy.linalg
import torch

from stimg.metrics import retrieve
from stimg.model import ImageGeneCLIPOptions
from stimg.model._clip_start import canonical

STILL = {"max_epochs": 1, "validation": None, "lr": 1e-12, "rng": 0}


def pairs(n=200, p=7, q=5, rng=0):
    generator = np.random.default_rng(rng)
    shared = generator.normal(size=(n, 2))
    x = shared @ generator.normal(size=(2, p)) + generator.normal(size=(n, p))
    y = shared @ generator.normal(size=(2, q)) + generator.normal(size=(n, q))
    return x - x.mean(0), y - y.mean(0)


@pytest.mark.parametrize("penalty", [1e-6, 0.5, 10.0])
def test_against_the_generalised_eigenproblem(penalty):
    """Correlations and directions are those of the pencil ([0, C], [C', 0]) against the two ridged products (Hardoon et al. 2004)."""
    x, y = pairs()
    squares = [s.T @ s + penalty * np.trace(s.T @ s) / s.shape[1] * np.eye(s.shape[1]) for s in (x, y)]
    zero, cross = np.zeros((7, 7)), x.T @ y
    values, vectors = scipy.linalg.eigh(np.block([[zero, cross], [cross.T, np.zeros((5, 5))]]), scipy.linalg.block_diag(*squares))
    left, right = (each.numpy() for each in canonical(torch.from_numpy(x), torch.from_numpy(y), 3, penalty))
    assert (left.shape, right.shape) == ((7, 3), (5, 3))
    for i in range(3):
        a, b = vectors[:7, -1 - i], vectors[7:, -1 - i]
        assert np.sqrt(left[:, i] @ squares[0] @ left[:, i]) ** 2 == pytest.approx(values[-1 - i], rel=1e-6)
        for found, wanted in ((left[:, i], a), (right[:, i], b)):
            assert abs(found @ wanted) / np.linalg.norm(found) / np.linalg.norm(wanted) == pytest.approx(1, abs=1e-8)
        assert (left[:, i] @ a) * (right[:, i] @ b) > 0  # the two sides of a direction point the same way


def test_fewer_columns_than_directions():
    x, y = pairs(q=2)
    assert [tuple(each.shape) for each in canonical(torch.from_numpy(x), torch.from_numpy(y), 8, 1.0)] == [(7, 2), (2, 2)]


@pytest.mark.parametrize(
    "changes", [{}, {"image_head": "residual", "gene_head": "residual"}, {"image_components": None, "gene_encoder": "linear"}]
)
def test_a_model_finds_pairs_before_it_has_learned(make_pairs, make_clip, changes):
    adata, new = make_pairs(), make_pairs(sections=1, seed=0)
    found = {}
    for init in ("random", "cca"):
        model = make_clip(adata, n_dim=16, init=init, **changes)
        model.train(**STILL)
        image, gene = model.get_image_embedding(new), model.get_gene_embedding(new)
        found[init] = retrieve(image, gene).recall(5)
        if init == "cca":
            rows = model.get_image_embedding(adata, normalise=False), model.get_gene_embedding(adata, normalise=False)
            for side in rows:
                assert (side**2).sum(1).mean() == pytest.approx(1, rel=1e-3)
                assert side[:, :8].any(axis=0).all()
                assert not side[:, 8:].any()
    assert found["cca"] > 6 * 5 / new.n_obs
    assert found["random"] < 3 * 5 / new.n_obs


def test_training_goes_on_from_there(make_pairs, make_clip):
    adata = make_pairs()
    model = make_clip(adata, init="cca", init_components=4)
    model.train(**STILL)
    before = {k: v.clone() for k, v in model.module.state_dict().items()}
    model = make_clip(adata, init="cca", init_components=4)
    model.train(**{**STILL, "lr": 1e-3, "max_epochs": 3})
    after = model.module.state_dict()
    assert not torch.equal(before["image_head.linear.weight"], after["image_head.linear.weight"])
    same = torch.nn.functional.cosine_similarity(
        before["image_head.linear.weight"].flatten(), after["image_head.linear.weight"].flatten(), dim=0
    )
    assert same > 0.9


def test_a_finished_gene_side(make_pairs, make_clip):
    from stimg.model import ImageGeneCLIP

    adata = make_pairs()
    adata.obsm["X_genes"] = np.log1p(adata.X.toarray())[:, :6].astype(np.float32)
    ImageGeneCLIP.setup_anndata(adata, image="X_image", gene="X_genes")
    model = ImageGeneCLIP(adata, n_dim=8, init="cca")
    model.train(**STILL)
    side = model.get_gene_embedding(normalise=False)
    assert side.shape[1] == 8
    assert side[:, :6].any(axis=0).all()
    assert not side[:, 6:].any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init": "pca"}, "init='pca'"),
        ({"init": "cca", "image_head": "mlp"}, "starts linear maps"),
        ({"init": "cca", "gene_head": "mlp"}, "starts linear maps"),
        ({"init_components": 0}, "init_components"),
        ({"init_penalty": 0.0}, "init_penalty"),
    ],
)
def test_bad_options(changes, message):
    with pytest.raises(ValueError, match=message):
        ImageGeneCLIPOptions(**changes)


def test_an_encoder_that_learns_has_no_start(make_pairs, make_clip):
    with pytest.raises(ValueError, match="needs a gene side that is there before the training"):
        make_clip(make_pairs(), init="cca", gene_encoder="mlp")
