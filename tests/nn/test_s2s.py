"""The cascade against plain loops: consistency, neighbours on both lattices, attention within windows, losses, and nothing from outside the tissue."""

import numpy as np
import pytest
import torch

from stimg.image.lattice import axial_to_offset, neighbours
from stimg.image.spec import RasterSpec
from stimg.model import S2SImputerOptions
from stimg.nn import S2SModule
from stimg.nn.s2s import n_weights
from stimg.nn.s2s_layers import AttentionBlock, ChannelBranch, DataConsistency, DenseBlock, LatticeConv, WindowAttention

SMALL = {"n_stages": 2, "n_hidden": 4, "growth": 2, "n_dense": 2, "window": 4, "n_heads": 2}


def make_batch(*, n=3, size=(7, 9), seed=0, n_guide=0, share=0.7, dtype=torch.float32):
    """Random maps with holes in the tissue; what lies outside is 0, as the data module has it."""
    rng = np.random.default_rng(seed)
    inside = rng.random(size) < share
    known = inside & (rng.random(size) < 0.5)
    real = rng.normal(size=(n, *size))
    arrays = {
        "measured": real * known,
        "base": rng.normal(size=(n, 3, *size)) * inside,
        "depth": np.where(known, rng.uniform(0.3, 3, size), 1.0),
        "far": rng.uniform(0, 1, size) * inside,
        "doubt": rng.normal(size=(n, *size)) * inside,
        "facts": rng.uniform(0.1, 1, (n, 4)),
        "guide": np.where(known, rng.normal(size=(n_guide, *size)), np.nan),
        "target": real * inside,
        "weight": rng.uniform(0.5, 2, (n, *size)) * (inside & ~known),
    }
    return {k: torch.from_numpy(v).to(dtype) for k, v in arrays.items()} | {
        "known": torch.from_numpy(known),
        "inside": torch.from_numpy(inside),
    }


def make_module(*, shaken=True, **changes):
    torch.manual_seed(0)
    module = S2SModule(**{**SMALL, **changes})
    if shaken:  # a new network adds nothing; here every weight is to matter
        with torch.no_grad():
            for p in module.parameters():
                p.add_(0.2 * torch.randn_like(p))
    return module.eval()


@pytest.fixture(autouse=True)
def _torch_state():
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)


class TestConsistency:
    @pytest.mark.parametrize("kind", ["soft", "hard", "none"])
    def test_against_a_loop(self, kind):
        rng = np.random.default_rng(1)
        x, y, noise = rng.normal(size=(2, 4, 5)), rng.normal(size=(2, 4, 5)), rng.uniform(0.1, 2, (2, 4, 5))
        known = rng.random((4, 5)) < 0.5
        layer = DataConsistency(kind)
        if kind == "soft":
            layer.raw.data.fill_(0.4)
        found = layer(*(torch.from_numpy(a) for a in (x, y, known, noise))).detach().numpy()
        s = np.log1p(np.exp(0.4))
        for b in range(2):
            for i in range(4):
                for j in range(5):
                    wanted = x[b, i, j]
                    if known[i, j] and kind == "hard":
                        wanted = y[b, i, j]
                    elif known[i, j] and kind == "soft":
                        v = s / noise[b, i, j]
                        wanted = (x[b, i, j] + v * y[b, i, j]) / (1 + v)
                    assert found[b, i, j] == pytest.approx(wanted, abs=1e-6)

    def test_little_noise_is_believed_and_much_is_not(self):
        layer = DataConsistency("soft")
        x, y = torch.zeros(1, 1, 2), torch.ones(1, 1, 2)
        sure, unsure = layer(x, y, torch.ones(1, 2, dtype=torch.bool), torch.tensor([[[1e-4, 1e4]]]))[0, 0].tolist()
        assert sure > 0.999
        assert unsure < 1e-3


class TestLatticeConv:
    @pytest.mark.parametrize("parity", [-1, 0, 1])
    def test_reads_the_point_and_its_neighbours(self, parity):
        """Neighbours come from ``stimg.image.lattice`` in offset rows; a response to one lit point is what each weight does."""
        lattice = "square" if parity < 0 else "hex"
        spec = RasterSpec(lattice, (40, 40), pitch_um=100.0, hex_parity=parity)
        layer = LatticeConv(1, 1, hexagonal=lattice == "hex")
        layer.bias.data.zero_()
        for centre in ((4, 5), (5, 4)):
            steps = np.argwhere(np.ones((9, 10), dtype=bool))
            lit = torch.zeros(1, 1, 9, 10)
            lit[0, 0, centre[0], centre[1]] = 1.0
            touched = {tuple(p) for p, v in zip(steps, layer(lit).detach().flatten(), strict=True) if v != 0}
            if lattice == "square":
                near = {(centre[0] + dy, centre[1] + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)}
            else:
                offset = {tuple(axial_to_offset(np.array([[q, r]]), parity)[0]): (r, q) for r, q in steps.tolist()}
                here = axial_to_offset(np.array([[centre[1], centre[0]]]), parity)[0]
                moves = neighbours(spec)[int(here[0]) % 2]
                near = {offset[tuple(here + m)] for m in moves} | {centre}
                assert len(near) == 7
            assert touched == near


class TestWindowAttention:
    @pytest.mark.parametrize("shift", [0, 2])
    def test_against_a_dense_reference(self, shift):
        torch.manual_seed(2)
        layer = WindowAttention(6, n_heads=2, window=4, shift=shift).double()
        layer.bias.data.normal_()
        x = torch.randn(2, 7, 9, 6, dtype=torch.float64)
        inside = torch.rand(7, 9) < 0.6
        found = layer(x, inside)
        points = [(i, j) for i in range(7) for j in range(9) if inside[i, j]]
        for b in range(2):
            qkv = {p: layer.qkv(x[b, p[0], p[1]]).view(3, 2, 3) for p in points}
            for p in points:
                mates = [q for q in points if all((p[a] + shift) // 4 == (q[a] + shift) // 4 for a in (0, 1))]
                heads = []
                for head in range(2):
                    logits = torch.stack(
                        [
                            qkv[p][0, head] @ qkv[q][1, head] / 3**0.5 + layer.bias[head, (p[0] - q[0] + 3) * 7 + p[1] - q[1] + 3]
                            for q in mates
                        ]
                    )
                    heads.append(torch.softmax(logits, 0) @ torch.stack([qkv[q][2, head] for q in mates]))
                torch.testing.assert_close(found[b, p[0], p[1]], layer.out(torch.cat(heads)), atol=1e-9, rtol=1e-7)

    def test_windows_come_back(self):
        layer = WindowAttention(4, n_heads=1, window=4, shift=3)
        x = torch.randn(2, 6, 11, 4)
        assert torch.equal(layer.unwindowed(layer.windows(x), 6, 11), x)

    def test_heads_have_to_fit(self):
        with pytest.raises(ValueError, match="5 channels cannot be shared among 2 heads"):
            WindowAttention(5, n_heads=2, window=4)


class TestBlocks:
    def test_channel_branch_averages_over_the_tissue(self):
        torch.manual_seed(3)
        layer = ChannelBranch(8, compress=4, squeeze=8, hexagonal=False)
        inside = (torch.rand(5, 6) < 0.5).float()
        x = torch.randn(1, 8, 5, 6) * inside
        convolved = torch.nn.functional.gelu(layer.down(x)) * inside
        convolved = layer.up(convolved) * inside
        mean = torch.stack([convolved[0, c][inside > 0].mean() for c in range(8)])
        weight = torch.sigmoid(layer.second(torch.relu(layer.first(mean))))
        torch.testing.assert_close(layer(x, inside), convolved * weight[None, :, None, None])

    def test_dense_block_against_plain_convolutions(self):
        torch.manual_seed(4)
        layer = DenseBlock(4, n_layers=2, growth=3, hexagonal=False)
        inside = (torch.rand(5, 6) < 0.7).float()
        x = torch.randn(2, 4, 5, 6) * inside
        conv = torch.nn.functional.conv2d
        one = torch.relu(conv(x, layer.layers[0].weight, layer.layers[0].bias, padding=1)) * inside
        two = torch.relu(conv(torch.cat([x, one], 1), layer.layers[1].weight, layer.layers[1].bias, padding=1)) * inside
        joined = torch.einsum("oi,bihw->bohw", layer.join.weight[:, :, 0, 0], torch.cat([x, one, two], 1)) + layer.join.bias[:, None, None]
        torch.testing.assert_close(layer(x, inside), joined * inside)

    def test_attention_block_is_zero_outside(self):
        layer = AttentionBlock(4, n_heads=2, window=4, shift=2, ratio=2.0, branch=0.5, hexagonal=True)
        inside = torch.rand(6, 6) < 0.5
        found = layer(torch.randn(2, 4, 6, 6), inside.float())
        assert (found[:, :, ~inside] == 0).all()
        assert found[:, :, inside].abs().min() > 0


class TestCascade:
    def test_a_new_network_gives_its_base(self):
        batch = make_batch()
        maps = make_module(shaken=False).cascade(batch)
        hidden = batch["inside"] & ~batch["known"]
        for found in maps:
            torch.testing.assert_close(found[:, hidden], batch["base"][:, 0][:, hidden])

    @pytest.mark.parametrize("changes", [{}, {"hexagonal": True}, {"context": False, "consistency": "hard"}, {"branch": 0.3, "n_guide": 3}])
    def test_nothing_outside_the_tissue_is_read(self, changes):
        module = make_module(**changes)
        batch = make_batch(n_guide=changes.get("n_guide", 0))
        poisoned = {k: v.clone() for k, v in batch.items()}
        for name in ("measured", "base", "target", "far", "doubt"):
            poisoned[name][..., ~batch["inside"]] = 1e6
        with torch.no_grad():
            wanted, found = module.cascade(batch)[-1], module.cascade(poisoned)[-1]
        assert torch.equal(found[:, batch["inside"]], wanted[:, batch["inside"]])
        assert (wanted[:, ~batch["inside"]] == 0).all()

    def test_values_at_points_that_are_not_known_are_not_read(self):
        module, batch = make_module(), make_batch()
        poisoned = {**batch, "measured": torch.where(batch["known"], batch["measured"], torch.tensor(1e6))}
        poisoned["target"] = torch.full_like(batch["target"], 1e6)
        with torch.no_grad():
            assert torch.equal(module.predict(poisoned)[0], module.predict(batch)[0])
            assert torch.equal(module.predict(poisoned)[1], module.predict(batch)[1])

    def test_empty_margins_change_nothing(self):
        """A margin of whole windows around the map: the same points lie in the same windows."""
        module, batch = make_module(), make_batch()
        wide = {k: v if k == "facts" else torch.nn.functional.pad(v, (4, 4, 8, 4)) for k, v in batch.items()}
        wide["depth"] = torch.where(wide["depth"] == 0, 1.0, wide["depth"])
        with torch.no_grad():
            torch.testing.assert_close(module.cascade(wide)[-1][:, 8:-4, 4:-4], module.cascade(batch)[-1], atol=1e-5, rtol=1e-5)

    def test_each_gene_is_filled_by_itself(self):
        module, batch = make_module(branch=0.3), make_batch(n=4)
        per_gene = ("measured", "base", "doubt", "facts", "target", "weight")
        with torch.no_grad():
            together = module.cascade(batch)[-1]
            for g in range(4):
                alone = module.cascade({k: v[g : g + 1] if k in per_gene else v for k, v in batch.items()})[-1]
                torch.testing.assert_close(alone[0], together[g], atol=1e-5, rtol=1e-5)

    def test_hard_consistency_between_and_at_the_end(self):
        module, batch = make_module(consistency="hard", n_stages=3), make_batch()
        free, _ = module.predict(batch)
        final, _ = module.predict(batch, final=True)
        known = batch["known"]
        assert torch.equal(final[:, known], batch["measured"][:, known])
        assert not torch.allclose(free[:, known], batch["measured"][:, known], atol=1e-3)
        assert torch.equal(final[:, ~known], free[:, ~known])

    def test_the_gate_is_a_mixture_with_the_base(self):
        module, batch = make_module(), make_batch()
        full = module.predict(batch)[0]
        module.gate.fill_(0.25)
        torch.testing.assert_close(module.predict(batch)[0], 0.75 * batch["base"][:, 0] + 0.25 * full, atol=1e-5, rtol=1e-5)
        module.gate.fill_(0.0)
        torch.testing.assert_close(module.predict(batch)[0], batch["base"][:, 0], atol=1e-6, rtol=0)

    def test_the_guide_is_used_and_may_be_missing(self):
        module, batch = make_module(n_guide=3), make_batch(n_guide=3)
        assert torch.isfinite(module.predict(batch)[0]).all()
        other = {**batch, "guide": batch["guide"] + 1.0}
        assert not torch.allclose(module.predict(other)[0], module.predict(batch)[0])
        moved = make_module(n_guide=3)
        moved.guide_mean.fill_(1.0)
        torch.testing.assert_close(moved.predict(other)[0], module.predict(batch)[0], atol=1e-5, rtol=1e-5)

    def test_size_of_the_released_design(self):
        """About 1.10 million weights for each of three networks, counted by hand from the layers that the paper's code lists."""
        options = S2SImputerOptions.released()
        names = ("n_stages", "n_hidden", "n_blocks", "n_dense", "growth", "n_attention", "n_heads", "window", "ratio", "branch", "context")
        module = S2SModule(**{name: getattr(options, name) for name in names})
        each = n_weights(module.stages[0])
        assert 1.05e6 < each < 1.15e6
        assert n_weights(module.stages) == 3 * each


class TestLoss:
    @pytest.mark.parametrize("loss", ["l1", "l2"])
    def test_against_loops(self, loss):
        module, batch = make_module(loss=loss, n_stages=3), make_batch()
        with torch.no_grad():
            found, maps, log_variance = module(batch), module.cascade(batch), module.log_variance(batch)
        weight, target = batch["weight"].numpy(), batch["target"].numpy()
        errors = []
        for each in maps:
            total = 0.0
            for index in np.ndindex(*weight.shape):
                away = float(each[index]) - target[index]
                total += weight[index] * (abs(away) if loss == "l1" else away**2)
            errors.append(total / weight.sum())
        fit = (1 / 3 * errors[0] + 2 / 3 * errors[1] + errors[2]) / 2
        square = (maps[-1].numpy() - target) ** 2
        v = log_variance.numpy()
        likelihood = (weight * 0.5 * (v + square * np.exp(-v))).sum() / weight.sum()
        assert float(found["error"]) == pytest.approx(errors[-1], rel=1e-4)
        assert float(found["loss"]) == pytest.approx(fit + 0.1 * likelihood, rel=1e-4)

    @pytest.mark.parametrize(
        ("wide", "some"),
        [
            (True, ("stages.0.first.weight", "stages.1.out.bias", "agree.1.raw", "stages.0.attention.0.attention.bias")),
            (False, ("spread.0.weight", "spread.2.bias")),
        ],
    )
    def test_gradients_against_differences(self, wide, some):
        """A weight of each kind is moved a little. The networks do not learn from the variance; a very large one takes it out of the loss."""
        module, batch = make_module().double(), make_batch(dtype=torch.float64)
        if wide:
            module.log_variance = lambda batch: torch.full_like(batch["target"], 60.0)
        module(batch)["loss"].backward()
        parameters = dict(module.named_parameters())
        for name in some:
            p = parameters[name]
            at = int(p.grad.abs().argmax())
            values = []
            for move in (1e-3, -1e-3):
                with torch.no_grad():
                    p.view(-1)[at] += move
                    values.append(float(module(batch)["loss"]))
                    p.view(-1)[at] -= move
            assert float(p.grad.view(-1)[at]) == pytest.approx((values[0] - values[1]) / (2 * 1e-3), rel=2e-2), name

    def test_the_variance_is_that_of_the_base_times_a_factor(self):
        """By the formula of the two layers, point by point; the base's own where the second layer gives 0."""
        module, batch = make_module(), make_batch()
        found = module.log_variance(batch)
        first, _, second = module.spread
        for g, r, c in [(0, 1, 2), (2, 6, 8), (1, 3, 3)]:
            given = torch.cat([batch["facts"][g], batch["far"][r, c][None]])
            hidden = torch.nn.functional.gelu(first.weight @ given + first.bias)
            wanted = batch["doubt"][g, r, c] + (second.weight[0] @ hidden + second.bias[0])
            assert float(found[g, r, c]) == pytest.approx(float(wanted.clamp(-6, 4)), abs=1e-5)
        with torch.no_grad():
            second.weight.zero_()
            second.bias.zero_()
        torch.testing.assert_close(module.log_variance(batch), batch["doubt"].clamp(-6, 4))

    def test_the_variance_teaches_the_networks_nothing(self):
        module, batch = make_module(), make_batch()
        before = {n: g for n, g in _gradients(module, batch).items() if n.startswith("stages")}
        with torch.no_grad():
            module.spread[2].bias += 1.0
        after = _gradients(module, batch)
        assert all(torch.equal(before[n], after[n]) for n in before)

    def test_nothing_to_predict_is_no_nan(self):
        batch = make_batch()
        batch["weight"] = torch.zeros_like(batch["weight"])
        assert torch.isfinite(make_module()(batch)["loss"])

    def test_bfloat16(self):
        module, batch = make_module(), make_batch()
        with torch.autocast("cpu", torch.bfloat16):
            low = module(batch)
        low["loss"].backward()
        assert all(torch.isfinite(p.grad).all() for p in module.parameters() if p.grad is not None)
        assert float(low["error"]) == pytest.approx(float(module(batch)["error"]), rel=0.05)


def _gradients(module, batch):
    module.zero_grad()
    module(batch)["loss"].backward()
    return {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
