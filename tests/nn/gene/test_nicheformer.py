"""Tokens against sorting by hand, and the network against numpy."""

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from stimg.nn.gene import Nicheformer
from stimg.nn.gene.nicheformer import PAD, rank_tokens, technology_mean

N_GENES, CONTEXT, HEADS = 30, 12, 2
WORDS = (5, 9, 4)


def make_weights(seed=0, prefix="", **more):
    """Weights as a checkpoint holds them, made without the class under test."""
    rng = np.random.default_rng(seed)
    dim, hidden = 8, 10
    shapes = {"embeddings.weight": (N_GENES + 35, dim), "positional_embedding.weight": (CONTEXT, dim)}
    for i in range(2):
        stem = f"encoder.layers.{i}."
        shapes |= {
            f"{stem}self_attn.in_proj_weight": (3 * dim, dim),
            f"{stem}self_attn.in_proj_bias": (3 * dim,),
            f"{stem}self_attn.out_proj.weight": (dim, dim),
            f"{stem}self_attn.out_proj.bias": (dim,),
            f"{stem}linear1.weight": (hidden, dim),
            f"{stem}linear1.bias": (hidden,),
            f"{stem}linear2.weight": (dim, hidden),
            f"{stem}linear2.bias": (dim,),
            **{f"{stem}norm{j}.{what}": (dim,) for j in (1, 2) for what in ("weight", "bias")},
        }
    shapes |= more
    return {prefix + name: torch.from_numpy(rng.normal(size=shape).astype(np.float32) * 0.7) for name, shape in shapes.items()}


def make(seed=0):
    return Nicheformer.from_weights(make_weights(seed), path=Path("made"), n_heads=HEADS)


def counts_of(seed=0, n=6):
    counts = np.random.default_rng(seed).poisson(0.2, size=(n, N_GENES))
    counts[1] = 0
    counts[2] = 1
    return counts


def mean_of():
    mean = np.random.default_rng(3).uniform(0.2, 3.0, N_GENES)
    mean[:5], mean[5:8] = 1.0, 2.0
    mean[8], mean[9] = 0.0, np.nan
    return mean


def naive_tokens(counts, mean, n_context):
    """Scale to 10,000, divide by the mean, sort what is above zero; ties in the order of the genes."""
    out = []
    for row in counts:
        scaled = []
        for gene, count in enumerate(row):
            by = mean[gene] if np.isfinite(mean[gene]) and mean[gene] != 0 else 1.0
            if count > 0:
                scaled.append((-(10_000 * count / row.sum()) / by, gene))
        tokens = [30 + gene for _, gene in sorted(scaled)][:n_context]
        out.append(tokens + [1] * (n_context - len(tokens)))
    return np.array(out)


@pytest.mark.parametrize("n_context", [40, 9, 4])
def test_tokens_are_ranks(n_context):
    counts, mean = counts_of(), mean_of()
    found = rank_tokens(sp.csr_matrix(counts), technology_mean(mean), n_context=n_context)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, naive_tokens(counts, mean, n_context))


def test_stored_zeros_are_no_tokens():
    matrix = sp.csr_matrix((np.array([0.0, 2.0]), np.array([3, 4]), np.array([0, 2])), shape=(1, N_GENES))
    assert rank_tokens(matrix, np.ones(N_GENES), n_context=3).tolist() == [[34, PAD, PAD]]


def test_technology_mean():
    given = np.array([np.nan, 0.0, 0.3, 0.5, 1.0, 1.49, 1.5, 7.2])
    np.testing.assert_array_equal(technology_mean(given), [1, 1, 0.3, 0.5, 1, 1.49, 1.5, 7.2])
    filled = np.nan_to_num(given)
    by_halves = np.where(filled % 1 >= 0.5, np.ceil(filled), np.floor(filled))
    np.testing.assert_array_equal(technology_mean(given, rounded=True), np.where(by_halves == 0, 1, by_halves))
    for bad in (np.ones((2, 2)), np.array([1.0, np.inf]), np.array([1.0, -1.0])):
        with pytest.raises(ValueError, match=r"the technology mean has shape .* wanted one finite value of zero or more"):
            technology_mean(bad)
    with pytest.raises(ValueError, match=r"counts have 30 genes and the technology mean has 29"):
        rank_tokens(sp.csr_matrix(counts_of()), np.ones(29))


def naive_embedding(weights, tokens, words, pooling, dense_layer, part_of):
    """Return the embedding of one observation; the whole context is computed, padding included, and no key is padding."""
    sentence = [*words, *tokens][:CONTEXT]
    x = np.stack(
        [weights["embeddings.weight"][t].numpy() + weights["positional_embedding.weight"][i].numpy() for i, t in enumerate(sentence)]
    ).astype(np.float64)
    keys = [i for i, t in enumerate(sentence) if t != 1]
    for i in range(2):
        x = dense_layer(x, part_of(weights, f"encoder.layers.{i}."), n_heads=HEADS, eps=1e-12, keys=keys)
    if pooling == "positions":
        return x[3:].mean(axis=0)
    genes = [i for i in keys if i >= 3]
    return x[genes].mean(axis=0) if genes else np.zeros(x.shape[1])


@pytest.mark.parametrize("pooling", ["positions", "genes"])
def test_embedding_is_that_of_numpy(pooling, dense_layer, part_of):
    weights, network = make_weights(), make()
    tokens = rank_tokens(sp.csr_matrix(counts_of()), technology_mean(mean_of()), n_context=CONTEXT)
    assert (tokens == PAD).any(axis=1).sum() > 2
    assert (tokens[2] != PAD).all()
    with torch.inference_mode():
        found = network(torch.from_numpy(tokens), torch.tensor(WORDS), pooling=pooling).numpy()
    wanted = [naive_embedding(weights, row, WORDS, pooling, dense_layer, part_of) for row in tokens]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    assert found.shape == (6, network.n_features)


def test_words_of_their_own_and_batches():
    network = make()
    tokens = torch.from_numpy(rank_tokens(sp.csr_matrix(counts_of()), np.ones(N_GENES), n_context=CONTEXT - 3))
    words = torch.tensor([WORDS, (6, 7, 4)] * 3)
    with torch.inference_mode():
        for pooling in ("positions", "genes"):
            together = network(tokens, words, pooling=pooling)
            alone = torch.cat([network(tokens[i : i + 1], words[i], pooling=pooling) for i in range(len(tokens))])
            torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
        assert (network(tokens, words[1]) - network(tokens, words[0])).abs().max() > 1e-2


def test_what_surrounds_the_weights_does_not_matter():
    more = {
        "encoder_layer.linear1.weight": (10, 8),
        "classifier_head.weight": (65, 8),
        "pooler_head.bias": (8,),
        "cls_head.weight": (4, 8),
        "pos": (3,),
    }
    state = torch.random.get_rng_state()
    network = Nicheformer.from_weights(make_weights(prefix="backbone.", **more), path=Path("made"), n_heads=HEADS)
    assert torch.equal(state, torch.random.get_rng_state())
    assert not network.training
    for name, value in make().state_dict().items():
        torch.testing.assert_close(network.state_dict()[name], value, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: w.pop("embeddings.weight"),
            r"made does not hold the weights of Nicheformer: there is no 'embeddings.weight' \(found .* more\)",
        ),
        (lambda w: w.pop("encoder.layers.1.norm1.bias"), r"of 26, 1 are missing \(such as 'encoder.layers.1.norm1.bias'\)"),
        (lambda w: w.update({"gate.weight": w["encoder.layers.1.norm1.bias"]}), r"1 are unknown \(such as 'gate.weight'\)"),
        (
            lambda w: w.update({"encoder.layers.0.linear2.weight": torch.zeros(8, 11)}),
            r"1 have another shape \('encoder.layers.0.linear2.weight': \(8, 11\), wanted \(8, 10\)\). Or compute",
        ),
        (lambda w: w.pop("positional_embedding.weight"), r"1 are missing \(such as 'positional_embedding.weight'\)"),
    ],
)
def test_other_weights_are_refused(change, message):
    weights = make_weights()
    change(weights)
    with pytest.raises(ValueError, match=message):
        Nicheformer.from_weights(weights, path=Path("made"), n_heads=HEADS)


def test_the_released_size():
    network = Nicheformer()
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 1) == 36.4
    assert network.n_context == 1500
