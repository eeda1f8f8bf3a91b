"""The masked autoencoder against loops over spots and genes that know nothing of packing, sparsity or matrix products."""

import numpy as np
import pytest
import torch
from scipy.stats import nbinom, poisson

from stimg.nn import MaskSpec, STMAEModule, draw_mask, pack
from stimg.nn import stmae as source
from stimg.nn.masking import Visibility, see_all
from stimg.nn.stmae import Offsets

V = 11
TERMS = ("loss", "hidden", "zeros", "nonzeros")


def offsets_of(seed=0, n_genes=V, double=True):
    rng = np.random.default_rng(seed)
    tables = rng.gamma(2.0, 1.0, (2, n_genes)), rng.dirichlet(np.ones(n_genes) * 2, 2)
    return Offsets(*(torch.from_numpy(t if double else t.astype(np.float32)) for t in tables))


def make(*, seed=0, n_genes=V, double=True, **options):
    torch.manual_seed(seed)
    settings = {"n_latent": 8, "n_layers": 1, "n_decoder_layers": 1, "n_heads": 2, "n_hidden": 12, **options}
    module = STMAEModule(n_genes, **settings).eval()
    rng = np.random.default_rng(seed)
    module.initialise(
        composition=torch.from_numpy(rng.dirichlet(np.ones(n_genes) * 2)),
        mean=torch.from_numpy(rng.gamma(2.0, 1.0, n_genes)),
        spread=torch.from_numpy(rng.uniform(0.3, 2.0, n_genes)),
    )
    torch.nn.init.normal_(module.beta, std=0.5)
    torch.nn.init.normal_(module.encoder.blocks[0].attention.own) if len(module.encoder.blocks) else None
    if module.likelihood != "mse":
        module.readout.weight.data *= 0.01  # rates are exp(f), and f is cut at 20
    if module.likelihood == "nb":
        torch.nn.init.normal_(module.log_theta)
    return module.double() if double else module


def as_double(batch):
    return {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}


def naive_embedding(module, batch, visible, offsets, counts):
    """Embeddings on the grid, (B, H * W, d): loops over spots and genes, then the transformer over all lattice points."""
    n, height, width, n_genes = counts.shape
    weight, spread, share = (p.detach().numpy() for p in (module.tokens.weight, module.spread, module.composition))
    z = np.zeros((n, height * width, weight.shape[1]))
    for b, y, x in np.ndindex(n, height, width):
        if not batch["seen"][b, y, x]:
            continue
        shown = [g for g in range(n_genes) if visible[b, y, x, g] and not np.isnan(counts[b, y, x, g])]
        total, expected = max(sum(counts[b, y, x, g] for g in shown), 1.0), sum(share[g] for g in shown)
        token = np.zeros(weight.shape[1])
        for g in shown:
            value = np.log1p(1e4 * counts[b, y, x, g] * expected / total)
            if module.tokens.kind == "mlp":
                if value > 0:
                    one = torch.tensor([[value]]).double()
                    scale, shift = ((f(one) - f(0 * one))[0].detach().numpy() for f in (module.tokens.scale, module.tokens.shift))
                    token += weight[g] * (value + scale) + shift
            else:
                token += (value - (offsets.mean[batch["library"][b], g].item() if module.centre else 0.0)) * weight[g]
        gain = (spread**2).sum() / max(sum(spread[g] ** 2 for g in shown), 1e-6 * (spread**2).sum())
        z[b, y * width + x] = module.lift.weight.detach().numpy() @ (token * gain) + module.lift.bias.detach().numpy()
    yx, seen = batch["yx"].reshape(n, -1, 2), batch["seen"].reshape(n, -1)
    return module.encoder(torch.from_numpy(z), yx, seen), yx, seen


def naive_errors(module, batch, visible, offsets, counts):
    """Loss of every hidden value in a seen spot, and whether its target is a zero."""
    h, yx, seen = naive_embedding(module, batch, visible, offsets, counts)
    out = (module.decoder(h, yx, seen) @ module.readout.weight.T).detach().numpy()
    weight, beta = module.tokens.weight.detach().numpy(), module.beta.detach().numpy()
    n, height, width, n_genes = counts.shape
    errors, zero = {}, {}
    for b, y, x, g in np.ndindex(n, height, width, n_genes):
        count = counts[b, y, x, g]
        if not batch["seen"][b, y, x] or np.isnan(count) or visible[b, y, x, g]:
            continue
        f = out[b, y * width + x] @ weight[g] + beta[g]
        depth, library = batch["depth"][b, y, x].item(), batch["library"][b]
        if module.likelihood == "mse":
            target = np.log1p(1e4 * count / depth) - (offsets.mean[library, g].item() if module.centre else 0.0)
            error = ((f - target) / module.spread[g].item()) ** 2
        else:
            rate = depth * offsets.composition[library, g].item() * np.exp(f)
            if module.likelihood == "poisson":
                error = -poisson.logpmf(count, rate)
            else:
                theta = np.exp(module.log_theta[g].item())
                error = -nbinom.logpmf(count, theta, theta / (theta + rate))
        errors[b, y, x, g], zero[b, y, x, g] = error, count == 0
    return errors, zero


def fix_mask(monkeypatch, sight):
    monkeypatch.setattr(source, "draw_mask", lambda packed, spec, *, dense: sight)


def drawn(batch, scope="crop", seed=0):
    packed = pack(batch)
    return packed, draw_mask(packed, MaskSpec((0.4, 0.6), scope), dense=True, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("likelihood", ["mse", "poisson", "nb"])
@pytest.mark.parametrize("scope", ["cell", "crop"])
@pytest.mark.parametrize("centre", [True, False])
def test_dense_loss_is_the_loop(make_batch, counts_image, visible_image, monkeypatch, likelihood, scope, centre):
    batch, offsets = as_double(make_batch(hexagonal=scope == "cell")), offsets_of()
    module = make(likelihood=likelihood, centre=centre)
    packed, sight = drawn(batch, scope)
    fix_mask(monkeypatch, sight)
    errors, zero = naive_errors(module, batch, visible_image(packed, sight, V), offsets, counts_image(batch, V))
    terms = module(batch, offsets)
    assert module.is_dense(packed)
    assert set(terms) == set(TERMS)
    np.testing.assert_allclose(terms["loss"].item(), np.mean(list(errors.values())), rtol=2e-5)
    np.testing.assert_allclose(terms["hidden"].item(), terms["loss"].item())
    np.testing.assert_allclose(terms["zeros"].item(), np.mean([e for k, e in errors.items() if zero[k]]), rtol=2e-5)
    np.testing.assert_allclose(terms["nonzeros"].item(), np.mean([e for k, e in errors.items() if not zero[k]]), rtol=2e-5)


@pytest.mark.parametrize("technology", ["visium", "st"])
def test_dense_loss_is_the_loop_on_real_batches(simulated, counts_image, visible_image, monkeypatch, technology):
    batch, n_genes = simulated(technology, rule="weighted", n_channels=9)
    batch, offsets, module = as_double(batch), offsets_of(n_genes=n_genes), make(n_genes=n_genes)
    packed, sight = drawn(batch, "cell")
    fix_mask(monkeypatch, sight)
    errors, _ = naive_errors(module, batch, visible_image(packed, sight, n_genes), offsets, counts_image(batch, n_genes))
    np.testing.assert_allclose(module(batch, offsets)["loss"].item(), np.mean(list(errors.values())), rtol=2e-5)


@pytest.mark.parametrize(("token", "centre"), [("linear", True), ("linear", False), ("mlp", False)])
def test_embedding_is_the_loop(make_batch, counts_image, token, centre):
    batch, offsets, module = as_double(make_batch()), offsets_of(), make(token=token, centre=centre)
    wanted, _, seen = naive_embedding(module, batch, np.ones((3, 3, 4, V), dtype=bool), offsets, counts_image(batch, V))
    wanted = (wanted * seen[..., None]).reshape(3, 3, 4, -1).detach()
    np.testing.assert_allclose(module.embed(batch, offsets).detach(), wanted, atol=1e-9)


@pytest.mark.parametrize("likelihood", ["mse", "poisson"])
@pytest.mark.parametrize("centre", [True, False])
def test_reconstruct_is_the_loop(make_batch, counts_image, likelihood, centre):
    batch, offsets, module = as_double(make_batch()), offsets_of(), make(likelihood=likelihood, centre=centre)
    h, yx, seen = naive_embedding(module, batch, np.ones((3, 3, 4, V), dtype=bool), offsets, counts_image(batch, V))
    out = (module.decoder(h, yx, seen) @ module.readout.weight.T).detach().numpy().reshape(3, 3, 4, -1)
    genes = [7, 0, 4]
    got = module.reconstruct(batch, offsets, torch.tensor(genes)).detach().numpy()
    for b, y, x in np.ndindex(3, 3, 4):
        for k, g in enumerate(genes):
            f = out[b, y, x] @ module.tokens.weight[g].detach().numpy() + module.beta[g].item()
            library = batch["library"][b]
            if likelihood == "mse":
                wanted = f + (offsets.mean[library, g].item() if centre else 0.0)
            else:
                wanted = np.log1p(1e4 * offsets.composition[library, g].item() * np.exp(f))
            np.testing.assert_allclose(got[b, y, x, k], wanted if batch["seen"][b, y, x] else 0.0, atol=1e-6)


@pytest.mark.parametrize("centre", [True, False])
def test_sparse_encoder_is_the_dense_one(make_batch, centre):
    batch, offsets = as_double(make_batch()), offsets_of()
    dense, sparse = make(centre=centre), make(centre=centre, sparse_above=0)
    packed, sight = drawn(batch)
    assert dense.is_dense(packed)
    assert not sparse.is_dense(packed)
    own = offsets.of(batch["library"])
    for seen in (sight, see_all(packed)):
        np.testing.assert_allclose(sparse.encode(packed, seen, own).detach(), dense.encode(packed, seen, own).detach(), atol=1e-9)


@pytest.mark.parametrize("likelihood", ["mse", "nb"])
@pytest.mark.parametrize("most", [2**18, 30])
def test_sparse_loss_is_unbiased(make_batch, monkeypatch, likelihood, most):
    monkeypatch.setattr(source, "MAX_TARGETS", most)
    batch, offsets = make_batch(size=(5, 6), rate=4.0), offsets_of(double=False)
    dense, sparse = (make(likelihood=likelihood, sparse_above=n, double=False) for n in (2048, 0))
    packed, sight = drawn(batch)
    assert int((~sight.entry).sum()) > 30
    own = offsets.of(batch["library"])
    with torch.no_grad():
        fix_mask(monkeypatch, sight)
        exact = dense(batch, offsets)
        out = sparse.decode(sparse.encode(packed, sight, own), packed)
        draws = [sparse._sparse_loss(out, packed, sight, own) for _ in range(400 if most == 30 else 60)]
        assert abs(sparse(batch, offsets)["loss"] - exact["loss"]) < 0.5 * exact["loss"]
    for term in TERMS:
        values = np.array([d[term].item() for d in draws])
        error = values.std() / len(values) ** 0.5
        assert error < 0.05 * values.mean()
        assert abs(values.mean() - exact[term].item()) < 4 * error + 1e-5 * values.mean()
    assert np.std([d["nonzeros"].item() for d in draws]) > (1e-3 if most == 30 else -1)


def test_sparse_loss_is_unbiased_where_every_spot_hides_its_own(make_batch):
    """Against the expectation over masks: every value weighs as much as the share of its spot that is hidden."""
    batch, offsets, module = make_batch(size=(4, 5)), offsets_of(double=False), make(sparse_above=0, double=False)
    packed = pack(batch)
    own = offsets.of(batch["library"])
    spec = MaskSpec((0.25, 0.75), "cell")
    sight = draw_mask(packed, spec, dense=False, generator=torch.Generator().manual_seed(0))
    out = torch.randn(*packed.shape[:2], 8)
    numerator, denominator, counts = 0.0, 0.0, packed.dense()
    for b, t, c in np.ndindex(*packed.shape):
        g, ratio = int(packed.panel[b, c]), sight.ratio[b, t].item()
        if g < 0 or not packed.seen[b, t]:
            continue
        f = (out[b, t] @ module.tokens.weight[g] + module.beta[g]).item()
        target = np.log1p(1e4 * counts[b, t, c].item() / packed.depth[b, t].item()) - own.mean[b, g].item()
        numerator += ratio * ((f - target) / module.spread[g].item()) ** 2
        denominator += ratio
    values = []
    with torch.no_grad():
        for _ in range(300):
            keep = torch.rand(len(packed.cell)) >= sight.ratio.reshape(-1)[packed.cell]
            values.append(module._sparse_loss(out, packed, Visibility(keep, None, sight.ratio), own)["loss"].item())
    error = np.std(values) / len(values) ** 0.5
    assert error < 0.02 * np.mean(values)
    assert abs(np.mean(values) - numerator / denominator) < 4 * error


@pytest.mark.parametrize("sparse_above", [2048, 0])
def test_nothing_hidden_is_no_loss(make_batch, sparse_above):
    batch = make_batch(widths=(2, 1), filled=(0.8, 0.3))
    loss = make(sparse_above=sparse_above, double=False, mask=MaskSpec((0.4,), "crop"))(batch, offsets_of(double=False))["loss"]
    assert loss == 0
    loss.backward()


@pytest.mark.parametrize("sparse_above", [2048, 0])
@pytest.mark.parametrize("likelihood", ["mse", "poisson", "nb"])
def test_batch_without_spots(make_batch, sparse_above, likelihood):
    batch, module = make_batch(filled=(0.0, 0.0, 0.0)), make(likelihood=likelihood, sparse_above=sparse_above, double=False)
    loss = module(batch, offsets_of(double=False))["loss"]
    loss.backward()
    assert loss == 0
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in module.parameters())
    assert not module.embed(batch, offsets_of(double=False)).any()


@pytest.mark.parametrize("likelihood", ["mse", "nb"])
def test_depth_of_a_partial_panel(make_batch, likelihood):
    batch, offsets, module = make_batch(), offsets_of(double=False), make(likelihood=likelihood, double=False)
    coverage = torch.tensor([1.0, 0.25])
    deeper = dict(batch, depth=batch["depth"] / coverage[batch["library"]][:, None, None])
    for path in (2048, 0):
        module.sparse_above = path
        losses = []
        for one, known in ((batch, coverage), (deeper, None), (batch, None)):
            torch.manual_seed(0)
            losses.append(module(one, Offsets(offsets.mean, offsets.composition, known))["loss"].item())
        assert losses[0] == pytest.approx(losses[1], rel=1e-6)
        assert losses[0] != pytest.approx(losses[2], rel=1e-3)
