"""Tokens against a loop over genes, and the network against numpy in the order of the authors' code."""

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from safetensors.torch import save_file

from stimg.nn.gene import ScFoundation
from stimg.nn.gene.scfoundation import read_checkpoint, value_tokens

N_GENES, HEADS, DIM, BINS = 20, 2, 8, 6


def make_weights(seed=0, prefix="", **more):
    """Weights as a checkpoint holds them, made without the class under test."""
    rng = np.random.default_rng(seed)
    shapes = {
        "token_emb.mlp.weight": (BINS, 1),
        "token_emb.mlp.bias": (BINS,),
        "token_emb.mlp2.weight": (BINS, BINS),
        "token_emb.mlp2.bias": (BINS,),
        "token_emb.emb.weight": (BINS, DIM),
        "pos_emb.weight": (N_GENES + 3, DIM),
        "encoder.norm.weight": (DIM,),
        "encoder.norm.bias": (DIM,),
    }
    for i in range(2):
        stem = f"encoder.transformer_encoder.{i}."
        shapes |= {
            f"{stem}self_attn.in_proj_weight": (3 * DIM, DIM),
            f"{stem}self_attn.in_proj_bias": (3 * DIM,),
            f"{stem}self_attn.out_proj.weight": (DIM, DIM),
            f"{stem}self_attn.out_proj.bias": (DIM,),
            f"{stem}linear1.weight": (12, DIM),
            f"{stem}linear1.bias": (12,),
            f"{stem}linear2.weight": (DIM, 12),
            f"{stem}linear2.bias": (DIM,),
            **{f"{stem}norm{j}.{what}": (DIM,) for j in (1, 2) for what in ("weight", "bias")},
        }
    shapes |= more
    return {prefix + name: torch.from_numpy(rng.normal(size=shape).astype(np.float32) * 0.7) for name, shape in shapes.items()}


def make(**options):
    return ScFoundation.from_weights(make_weights(), path=Path("made"), n_heads=HEADS, **options)


def counts_of(n=5):
    counts = np.random.default_rng(1).poisson(0.6, size=(n, N_GENES)) * 3
    counts[1] = 0
    counts[1, 7] = 4
    counts[2] = 1
    return counts


def test_tokens_are_those_of_a_loop():
    counts = counts_of()
    stored = sp.csr_matrix(counts).astype(float)
    stored.data[stored.indptr[0]] = 0.0  # a zero that is stored
    counts[0, stored.indices[0]] = 0
    values, genes, padding = value_tokens(stored, target=4.5)
    assert (values.dtype, genes.dtype, padding.dtype) == (np.float32, np.int64, bool)
    assert values.shape[1] == 2 + (counts > 0).sum(axis=1).max()
    for i, row in enumerate(counts):
        pairs = [(4.5, N_GENES), (np.log10(row.sum()), N_GENES + 1)]
        pairs += [(np.log(1 + 10_000 * c / row.sum()), g) for g, c in enumerate(row) if c > 0]
        n = len(pairs)
        np.testing.assert_allclose(values[i, :n], [v for v, _ in pairs], rtol=1e-6)
        assert genes[i, :n].tolist() == [g for _, g in pairs]
        assert padding[i].tolist() == [False] * n + [True] * (values.shape[1] - n)
        assert (genes[i, n:] == N_GENES + 2).all()


def test_an_observation_without_counts_has_no_depth():
    with pytest.raises(ValueError, match=r"2 of 5 observations have no count of the 20 genes of scFoundation, so no depth"):
        value_tokens(sp.csr_matrix(counts_of() * np.array([1, 0, 1, 0, 1])[:, None]))


def naive_embedding(weights, row, pooling, alpha, dense_layer, dense_norm, part_of, target=4.0):
    """Return the embedding of one observation: genes first, then T and S, and no padding."""
    w = {k: v.numpy().astype(np.float64) for k, v in weights.items()}
    at = np.flatnonzero(row)
    values = [*np.log1p(1e4 * row[at] / row.sum()), target, np.log10(row.sum())]
    x = []
    for value, place in zip(values, [*at, N_GENES, N_GENES + 1], strict=True):
        hidden = w["token_emb.mlp.weight"][:, 0] * value + w["token_emb.mlp.bias"]
        hidden = np.where(hidden > 0, hidden, 0.1 * hidden)
        share = np.exp(alpha * hidden + w["token_emb.mlp2.weight"] @ hidden + w["token_emb.mlp2.bias"])
        x.append(share / share.sum() @ w["token_emb.emb.weight"] + w["pos_emb.weight"][place])
    x = np.stack(x)
    for i in range(2):
        x = dense_layer(x, part_of(weights, f"encoder.transformer_encoder.{i}."), n_heads=HEADS, eps=1e-5)
    x = dense_norm(x, w, "encoder.norm", 1e-5)
    if pooling == "max":
        return x.max(axis=0)
    return np.concatenate([x[-1], x[-2], x[:-2].max(axis=0), x[:-2].mean(axis=0)])


@pytest.mark.parametrize(("pooling", "alpha"), [("all", 1.0), ("max", 1.0), ("all", 0.3)])
def test_embedding_is_that_of_numpy(pooling, alpha, dense_layer, dense_norm, part_of):
    counts, network = counts_of(), make(alpha=alpha)
    with torch.inference_mode():
        found = network(*map(torch.from_numpy, value_tokens(sp.csr_matrix(counts))), pooling=pooling).numpy()
    wanted = [naive_embedding(make_weights(), row, pooling, alpha, dense_layer, dense_norm, part_of) for row in counts]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    assert found.shape == (5, DIM * (4 if pooling == "all" else 1))


def test_what_surrounds_the_weights_does_not_matter():
    more = {
        "decoder.norm.weight": (4,),
        "norm.bias": (4,),
        "to_final.weight": (1, 4),
        "token_emb.emb_mask.weight": (1, DIM),
        "decoder_embed.bias": (4,),
    }
    state = torch.random.get_rng_state()
    network = ScFoundation.from_weights(make_weights(prefix="model.", **more), path=Path("made"), n_heads=HEADS)
    assert torch.equal(state, torch.random.get_rng_state())
    for name, value in make().state_dict().items():
        torch.testing.assert_close(network.state_dict()[name], value, rtol=0, atol=0)
    weights = make_weights()
    del weights["pos_emb.weight"], weights["encoder.norm.bias"]
    with pytest.raises(
        ValueError, match=r"made does not hold the weights of scFoundation: of 32, 2 are missing \(such as 'pos_emb.weight'\)"
    ):
        ScFoundation.from_weights(weights, path=Path("made"), n_heads=HEADS)


CONFIG = {"model": "mae_autobin", "model_config": {"mae_autobin": {"bin_alpha": 0.5, "encoder": {"heads": 2}}}}


def test_checkpoints(tmp_path):
    parts = {key: {"state_dict": make_weights(i, prefix="model."), "config": CONFIG} for i, key in enumerate(("gene", "cell"))}
    torch.save(parts, tmp_path / "models.ckpt")
    weights, config = read_checkpoint(tmp_path / "models.ckpt")
    assert config == CONFIG["model_config"]["mae_autobin"]
    torch.testing.assert_close(weights["model.pos_emb.weight"], make_weights(1)["pos_emb.weight"])
    torch.save({"cell": {"state_dict": make_weights()}}, tmp_path / "bare.ckpt")
    assert read_checkpoint(tmp_path / "bare.ckpt")[1] == {}
    save_file(make_weights(), tmp_path / "cell.safetensors")
    weights, config = read_checkpoint(tmp_path / "cell.safetensors")
    assert config == {}
    assert set(weights) == set(make_weights())
    torch.save({"gene": parts["gene"]}, tmp_path / "gene.ckpt")
    with pytest.raises(ValueError, match=r"gene.ckpt has no part 'cell' \(found \['gene'\]\). Pass the file models.ckpt"):
        read_checkpoint(tmp_path / "gene.ckpt")


class Surprise:
    """Something that only code can load."""


def test_code_is_not_unpickled(tmp_path):
    torch.save({"cell": {"state_dict": {}, "config": Surprise()}}, tmp_path / "models.ckpt")
    with pytest.raises(
        ValueError, match=r"models.ckpt cannot be read as tensors and plain values .*pickled code is not loaded. Open it once"
    ):
        read_checkpoint(tmp_path / "models.ckpt")
    (tmp_path / "broken.ckpt").write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match=r"broken.ckpt cannot be read"):
        read_checkpoint(tmp_path / "broken.ckpt")


def test_the_released_size():
    with torch.device("meta"):
        network = ScFoundation()
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 1) == 99.9
