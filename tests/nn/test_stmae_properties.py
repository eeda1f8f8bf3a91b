"""What must hold of the masked autoencoder whatever its numbers are: nothing leaks, order does not matter, options do."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch

from stimg.nn import MaskSpec, STMAEModule, draw_mask, pack
from stimg.nn import stmae as source
from stimg.nn.masking import Visibility, see_all
from stimg.nn.stmae import Offsets

V = 11
BASE = {"n_latent": 8, "n_layers": 1, "n_decoder_layers": 1, "n_heads": 2, "n_hidden": 12}


def tables(seed=0, n_genes=V):
    rng = np.random.default_rng(seed)
    mean, share, spread = rng.gamma(2.0, 1.0, (2, n_genes)), rng.dirichlet(np.ones(n_genes), 2), rng.uniform(0.3, 2.0, n_genes)
    return [torch.from_numpy(t.astype(np.float32)) for t in (mean, share, spread)]


def offsets_of(n_genes=V):
    return Offsets(*tables(n_genes=n_genes)[:2])


def make(*, n_genes=V, **options):
    torch.manual_seed(0)
    module = STMAEModule(n_genes, **{**BASE, **options}).eval()
    mean, share, spread = tables(n_genes=n_genes)
    module.initialise(composition=share.mean(0), mean=mean.mean(0), spread=spread)
    torch.nn.init.normal_(module.beta, std=0.5)
    if module.likelihood != "mse":
        module.readout.weight.data *= 0.01
    return module


def loss_of(module, batch, offsets=None, seed=0):
    torch.manual_seed(seed)
    return module(batch, offsets or offsets_of())["loss"]


def with_counts(packed, dense):
    """The packed batch with other counts, float (B, T, C)."""
    b, t, c = dense.nonzero(as_tuple=True)
    return dataclasses.replace(
        packed, cell=b * packed.shape[1] + t, column=c, channel=packed.panel[b, c], value=dense[b, t, c], depth=packed.depth + 0.0
    )


@pytest.mark.parametrize("sparse_above", [2048, 0])
@pytest.mark.parametrize("scope", ["cell", "crop"])
@pytest.mark.parametrize("options", [{}, {"centre": False}, {"token": "mlp", "centre": False}])
def test_hidden_counts_do_not_reach_the_encoder(make_batch, scope, sparse_above, options):
    packed, module = pack(make_batch()), make(sparse_above=sparse_above, **options)
    mask = draw_mask(packed, MaskSpec((0.5,), scope), dense=True, generator=torch.Generator().manual_seed(0))
    hidden = ~mask.mask & (packed.panel >= 0)[:, None] & packed.seen[..., None]
    own, embeddings = offsets_of().of(torch.arange(3) % 2), []
    for poison in (0.0, 1.0, 1e4, 1e4 * torch.rand(packed.shape).round()):
        poisoned = with_counts(packed, torch.where(hidden, torch.as_tensor(poison), packed.dense()))
        crop, spot = poisoned.cell // packed.shape[1], poisoned.cell % packed.shape[1]
        entry = mask.mask[crop, spot if scope == "cell" else 0, poisoned.column]
        embeddings.append(module.encode(poisoned, Visibility(entry, mask.mask, mask.ratio), own))
    for embedding in embeddings[1:]:
        torch.testing.assert_close(embedding, embeddings[0], rtol=0, atol=1e-5)
    seen_poison = with_counts(packed, torch.where(~hidden & packed.seen[..., None] & (packed.panel >= 0)[:, None], 50.0, packed.dense()))
    assert not torch.allclose(module.encode(seen_poison, see_all(seen_poison), own), embeddings[0], atol=1e-2)


def test_depth_does_not_reach_the_encoder(make_batch):
    batch, module = make_batch(), make()
    other = dict(batch, depth=batch["depth"] * 7)
    torch.testing.assert_close(module.embed(other, offsets_of()), module.embed(batch, offsets_of()))


@pytest.mark.parametrize("options", [{}, {"likelihood": "nb"}, {"token": "mlp", "centre": False}, {"smooth_weight": 1.0}])
def test_permuted_vocabulary(make_batch, monkeypatch, options):
    batch, module, moved = make_batch(), make(**options), make(**options)
    order = torch.from_numpy(np.random.default_rng(3).permutation(V))

    def permute(values, dim):
        return torch.empty_like(values).index_copy_(dim, order, values)

    per_gene = {"tokens.weight", "beta", "log_theta", "composition", "mean", "spread"}
    moved.load_state_dict({k: permute(v, 0) if k in per_gene else v for k, v in module.state_dict().items()})
    offsets = Offsets(*(permute(t, 1) for t in (offsets_of().mean, offsets_of().composition)))
    panel, column = torch.where(batch["panel"] >= 0, order[batch["panel"].clamp(min=0)], V).sort(1)
    channel = order[batch["channel"]]
    place = (batch["pixel"] * V + channel).argsort()
    other = dict(batch, panel=torch.where(panel == V, -1, panel), channel=channel[place], value=batch["value"][place])
    packed, again = pack(batch), pack(other)
    sight = draw_mask(packed, MaskSpec((0.5,), "cell"), dense=True, generator=torch.Generator().manual_seed(0))
    mask = sight.mask.gather(2, column[:, None].expand(-1, packed.shape[1], -1))
    entry = mask[again.cell // packed.shape[1], again.cell % packed.shape[1], again.column]
    torch.testing.assert_close(moved.embed(other, offsets), module.embed(batch, offsets_of()), rtol=1e-4, atol=1e-5)
    if module.tokens.kind == "linear":
        monkeypatch.setattr(source, "draw_mask", lambda *_, **__: sight)
        loss = module(batch, offsets_of())["loss"]
        monkeypatch.setattr(source, "draw_mask", lambda *_, **__: Visibility(entry, mask, sight.ratio))
        torch.testing.assert_close(moved(other, offsets)["loss"], loss, rtol=1e-4, atol=1e-5)


def test_moved_and_mirrored_crop(make_batch):
    batch, module = make_batch(), make()
    flipped = dict(batch, yx=batch["yx"] * torch.tensor([1.0, -1.0]) + 3.0)
    torch.testing.assert_close(module.embed(flipped, offsets_of()), module.embed(batch, offsets_of()), atol=1e-5, rtol=1e-4)


def test_a_spot_alone_and_crops_of_other_sizes(make_batch):
    batch, module = make_batch(filled=(1.0, 1.0, 0.5)), make()
    alone = dict(batch, seen=torch.zeros_like(batch["seen"]))
    alone["seen"][:, 1, 2] = batch["seen"][:, 1, 2]
    keep = alone["seen"].reshape(-1)[batch["pixel"]]
    alone.update({k: batch[k][keep] for k in ("pixel", "channel", "value")})
    got = module.embed(alone, offsets_of())
    single = {k: batch[k][:, 1:2, 2:3] for k in ("seen", "depth", "yx")} | {k: alone[k] for k in ("channel", "value", "panel", "library")}
    single["pixel"] = alone["pixel"] // 12
    torch.testing.assert_close(got[:, 1, 2], module.embed(single, offsets_of())[:, 0, 0], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(got[:2, 1, 2], module.embed(batch, offsets_of())[:2, 1, 2], atol=1e-3)


def test_gene_and_value_are_bound(make_batch):
    """Which value goes with which gene matters: the defect of the released network is not here."""
    batch, module = make_batch(widths=(V, V), filled=(1.0, 1.0)), make()
    swapped = dict(batch, value=batch["value"].clone())
    first = batch["pixel"] == 5
    assert batch["value"][first].unique().numel() > 1
    swapped["value"][first] = batch["value"][first].flip(0)
    assert (module.embed(swapped, offsets_of()) - module.embed(batch, offsets_of())).abs().max() > 0.01


@pytest.mark.parametrize("k", [4, 8])
@pytest.mark.parametrize("options", [{}, {"centre": False}, {"token": "mlp", "centre": False}, {"sparse_above": 0}])
def test_untrained_module_is_shrunken_pca(make_batch, k, options):
    batch = make_batch(size=(5, 6), widths=(V, V), filled=(1.0, 0.6), extra=False, rate=5.0)
    packed = pack(batch)
    counts = packed.dense().numpy()[packed.seen.numpy()].astype(np.float64)
    values = np.log1p(1e4 * counts / np.maximum(counts.sum(1, keepdims=True), 1))
    mean, spread, share = values.mean(0), values.std(0), counts.sum(0) / counts.sum()
    _, singular, vt = np.linalg.svd(values - mean, full_matrices=False)
    shrinkage = (singular**2 / (singular**2 + singular[-1] ** 2))[:k]
    torch.manual_seed(0)
    module = STMAEModule(V, **{**BASE, "n_layers": 0, "n_decoder_layers": 0, **options}).eval()
    share, mean_, spread, loadings, factor = (torch.from_numpy(np.float32(a)) for a in (share, mean, spread, vt[:k].T, shrinkage))
    module.initialise(composition=share, mean=mean_, spread=spread, loadings=loadings, shrinkage=factor)
    wanted = mean + ((values - mean) @ vt[:k].T * shrinkage) @ vt[:k]
    offsets = Offsets(mean_.expand(2, -1), share.expand(2, -1))
    got = module.reconstruct(batch, offsets, torch.arange(V))[batch["seen"]].detach().numpy()
    # axes beyond the k given start at a hundredth of their size
    np.testing.assert_allclose(got, wanted, atol=2e-4 if k == 8 else 0.05)
    torch.manual_seed(0)
    deep = STMAEModule(V, **{**BASE, **options}).eval()
    deep.initialise(composition=share, mean=mean_, spread=spread, loadings=loadings, shrinkage=factor)
    near = deep.reconstruct(batch, offsets, torch.arange(V))[batch["seen"]].detach().numpy()
    assert 0 < np.abs(near - wanted).mean() < 0.15 * np.abs(wanted - mean).mean() + 0.02


@pytest.mark.parametrize("likelihood", ["mse", "poisson", "nb"])
@pytest.mark.parametrize("options", [{}, {"centre": False}, {"token": "mlp", "centre": False}])
@pytest.mark.parametrize("smooth_weight", [0.0, 0.1])
@pytest.mark.parametrize("layers", [(1, 1), (1, 0), (0, 0)])
@pytest.mark.parametrize("sparse_above", [2048, 0])
@pytest.mark.parametrize("scope", ["cell", "crop"])
def test_every_parameter_gets_a_gradient(make_batch, likelihood, options, smooth_weight, layers, sparse_above, scope):
    module = make(
        likelihood=likelihood,
        smooth_weight=smooth_weight,
        n_layers=layers[0],
        n_decoder_layers=layers[1],
        sparse_above=sparse_above,
        mask=MaskSpec(scope=scope),
        **options,
    ).train()
    loss_of(module, make_batch(rate=4.0)).backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.any(), name


CHANGES = [
    {"n_layers": 2},
    {"n_decoder_layers": 2},
    {"n_decoder_layers": 0},
    {"n_heads": 4},
    {"n_hidden": 16},
    {"n_hidden": None},
    {"n_latent": 12},
    {"dropout": 0.5},
    {"token": "mlp", "centre": False},
    {"likelihood": "poisson"},
    {"likelihood": "nb"},
    {"centre": False},
    {"smooth_weight": 0.1},
    {"mask": MaskSpec((0.5,))},
    {"mask": MaskSpec(scope="cell")},
    {"mask": MaskSpec(scope="crop")},
    {"sparse_above": 5},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_every_option_changes_the_loss(make_batch, change):
    batch = make_batch(seed=2, filled=(1.0, 1.0, 1.0))
    base, same, other = (loss_of(make(**options).train(), batch).item() for options in ({}, {}, change))
    assert base == same
    assert abs(other - base) > 1e-5 * abs(base)


def test_initialise_changes_the_loss(make_batch):
    batch, module = make_batch(), make()
    before = loss_of(module, batch)
    for name in ("composition", "mean", "spread"):
        values = dict(zip(("mean", "composition", "spread"), (t.mean(0) if t.ndim > 1 else t for t in tables()), strict=True))
        values[name] = values[name].flip(0)
        other = make(centre=name != "mean")
        beta = other.beta.detach().clone()
        other.initialise(**values)
        if name == "mean":
            assert torch.equal(other.beta, values["mean"])
            assert not torch.equal(other.beta, beta)
        else:
            assert loss_of(other, batch) != before


def test_library_offsets_matter(make_batch):
    batch, module = make_batch(), make()
    other = dict(batch, library=1 - batch["library"])
    assert loss_of(module, other) != loss_of(module, batch)
    counts = make(likelihood="poisson", centre=False)
    assert loss_of(counts, other) != loss_of(counts, batch)


@pytest.mark.parametrize(
    "options", [{}, {"sparse_above": 0}, {"token": "mlp", "centre": False}, {"likelihood": "nb", "smooth_weight": 0.1}]
)
def test_bfloat16_is_close(make_batch, options):
    batch, module, offsets = make_batch(), make(**options), offsets_of()
    offsets = Offsets(offsets.mean + 4.0, offsets.composition)
    wanted, embedding = loss_of(module, batch, offsets), module.embed(batch, offsets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, low = loss_of(module, batch, offsets), module.embed(batch, offsets)
    loss.backward()
    assert loss.dtype == torch.float32
    assert abs(loss - wanted) < 0.03 * abs(wanted)
    assert (low - embedding).abs().max() < 0.03 * embedding.abs().max()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in module.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("sparse_above", [2048, 0])
def test_compiled_is_the_same(make_batch, sparse_above):
    if not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        pytest.skip("torch.compile needs a C++ compiler, and there is none on this machine")
    from torch._inductor import config

    module = make(sparse_above=sparse_above)
    with config.patch(fallback_random=True, compile_threads=1):
        torch._dynamo.reset()
        compiled = torch.compile(module, dynamic=True)
        for seed, size in ((0, (3, 4)), (1, (4, 5))):
            batch = make_batch(seed=seed, size=size)
            wanted, got = loss_of(module, batch, seed=seed), loss_of(compiled, batch, seed=seed)
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
        got.backward()
    assert all(p.grad is not None for p in module.parameters())
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("options", "message"), [({"likelihood": "zinb"}, "'zinb' is not known"), ({"token": "mlp"}, "wanted centre=False")]
)
def test_options_that_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        STMAEModule(V, **{**BASE, **options})
