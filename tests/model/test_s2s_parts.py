"""The parts of an imputation model against plain loops: kriging, tissue, symmetries, sparser maps, pictures; and values that must not be reached."""

import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from PIL import Image
from scipy.stats import multivariate_normal

import stimg
from stimg.image.spec import RasterSpec
from stimg.model import S2SImputerOptions, _s2s_base, _s2s_kriging, _s2s_natural
from stimg.model._s2s_lattice import plane_of, points_of, raster_of, rasterised, spread_out, steps_of, stride_of, surroundings, symmetries
from stimg.model._s2s_read import Section, sections
from stimg.model._s2s_samples import SparserDataset, batch_of, field_of, positions, sparser

OPTIONS = S2SImputerOptions(n_samples=3, natural=None, n_components=5)


def falling(a, b, length):
    return math.exp(-math.hypot(a[0] - b[0], a[1] - b[1]) / length)


def ordinary(points, depth, wanted, length, noise):
    """Ordinary kriging by its equations with a Lagrange multiplier, one place at a time."""
    n = len(points)
    system = np.zeros((n + 1, n + 1))
    for i in range(n):
        for j in range(n):
            system[i, j] = falling(points[i], points[j], length) + (noise / depth[i] if i == j else 0)
    system[n, :n] = system[:n, n] = 1
    weights, variances = [], []
    for place in wanted:
        right = np.array([falling(place, p, length) for p in points] + [1.0])
        solved = np.linalg.solve(system, right)
        weights.append(solved[:n])
        variances.append(1.0 - solved @ right)
    return np.array(weights), np.array(variances)


@pytest.fixture(scope="module")
def scattered():
    rng = np.random.default_rng(0)
    points = np.argwhere(rng.random((6, 7)) < 0.6).astype(float)
    return points, rng.uniform(0.3, 3, len(points)), rng.uniform(0, 6, (9, 2)), rng.normal(size=(len(points), 4))


class TestKriging:
    def test_weights_and_variance(self, scattered):
        points, depth, wanted, _ = scattered
        found, variance = _s2s_kriging.kriging(points, depth, wanted, 2.2, 0.3)
        weights, wanted_variance = ordinary(points, depth, wanted, 2.2, 0.3)
        np.testing.assert_allclose(found, weights, atol=1e-8)
        np.testing.assert_allclose(variance, wanted_variance, atol=1e-8)
        np.testing.assert_allclose(found.sum(axis=1), 1.0)

    def test_many_points_are_kriged_from_the_nearest(self, scattered, monkeypatch):
        points, depth, wanted, _ = scattered
        monkeypatch.setattr(_s2s_kriging, "WHOLE", 5)
        monkeypatch.setattr(_s2s_kriging, "NEAR", 8)
        monkeypatch.setattr(_s2s_kriging, "BLOCK", 4)
        found, variance = _s2s_kriging.kriging(points, depth, wanted, 2.2, 0.3)
        assert sp.issparse(found)
        for i, place in enumerate(wanted):
            near = np.argsort(np.hypot(*(points - place).T))[:8]
            weights, one = ordinary(points[near], depth[near], [place], 2.2, 0.3)
            np.testing.assert_allclose(found.toarray()[i, near], weights[0], atol=1e-8)
            assert variance[i] == pytest.approx(one[0], abs=1e-8)

    def test_left_out_by_leaving_out(self, scattered):
        points, depth, _, values = scattered
        weights, _ = _s2s_kriging.kriging(points, depth, points, 2.2, 0.3)
        found = _s2s_kriging.left_out(weights, values)
        for i in range(len(points)):
            rest = np.arange(len(points)) != i
            without, _ = ordinary(points[rest], depth[rest], points[i : i + 1], 2.2, 0.3)
            np.testing.assert_allclose(found[i], without[0] @ values[rest], atol=1e-7)

    def test_the_choice_is_the_most_likely(self, scattered):
        """Restricted likelihood: that of contrasts, values less one spot's, whose covariance knows no mean."""
        points, depth, _, values = scattered
        n = len(points)
        contrast = np.concatenate([np.eye(n - 1), -np.ones((n - 1, 1))], axis=1)
        best = {}
        for length in _s2s_kriging.LENGTHS:
            for noise in _s2s_kriging.NOISES:
                full = np.array([[falling(a, b, length) for b in points] for a in points]) + np.diag(noise / depth)
                cov = contrast @ full @ contrast.T
                for k in range(values.shape[1]):
                    y = contrast @ values[:, k]
                    sigma = y @ np.linalg.solve(cov, y) / (n - 1)
                    value = multivariate_normal(np.zeros(n - 1), sigma * cov, allow_singular=True).logpdf(y)
                    if k not in best or value > best[k][0]:
                        best[k] = (value, length, noise)
        found = _s2s_kriging.choose(points, depth, values)
        np.testing.assert_allclose(found, [best[k][1:] for k in range(values.shape[1])])
        pooled = _s2s_kriging.choose(points, depth, values, pooled=True)
        assert len(np.unique(pooled, axis=0)) == 1

    def test_many_points_are_chosen_by_blocks(self, scattered, monkeypatch):
        """Likelihoods of contiguous blocks are added: that of a block alone, twice."""
        points, depth, _, values = scattered
        both = np.concatenate([points, points + np.array([0.0, 100.0])])
        monkeypatch.setattr(_s2s_kriging, "TOGETHER", len(points))
        found = _s2s_kriging.choose(both, np.tile(depth, 2), np.tile(values, (2, 1)))
        np.testing.assert_array_equal(found, _s2s_kriging.choose(points, depth, values))

    @pytest.mark.parametrize("shape", [(12, 20), (60, 20), (500, 450)])
    def test_components(self, shape):
        rng = np.random.default_rng(1)
        centred, root = rng.normal(size=(shape[0], 6)) * [9, 7, 5, 1, 1, 1] @ rng.normal(size=(6, shape[1])), rng.uniform(0.5, 2, shape[0])
        centred += 0.1 * rng.normal(size=shape)
        loadings, scores = _s2s_base.components(centred, root, 3)
        _, _, v = np.linalg.svd(root[:, None] * centred, full_matrices=False)
        np.testing.assert_allclose(np.abs(loadings @ v[:3].T), np.eye(3), atol=1e-6)
        np.testing.assert_allclose(scores, centred @ loadings.T)

    @pytest.mark.parametrize("shared", [False, True])
    def test_the_maps(self, scattered, shared):
        """Kriged components of three scalings, put together by hand, and the gene by itself."""
        points, depth, wanted, _ = scattered
        rng = np.random.default_rng(2)
        values, counts = np.log1p(rng.poisson(2, (len(points), 12)) * 3.0), 1000 * depth
        axes = rng.normal(size=(2, 12)) if shared else None
        base = _s2s_base.fit(points, values, counts, wanted, n_components=3, axes=axes)
        relative = counts / np.median(counts)
        share = relative / relative.sum()
        mean = share @ values
        np.testing.assert_allclose(base.mean, mean)
        spread = np.sqrt(share @ (values - mean) ** 2)
        cp10k = share @ np.expm1(values)
        noise = np.sqrt(cp10k / (1 + cp10k) ** 2 * 1e4 / np.median(counts))
        np.testing.assert_allclose(base.facts[:, 1], np.minimum(noise**2 / spread**2, 2), rtol=1e-5)
        each = []
        for scale in (np.ones(12), spread, noise, *([None] if shared else [])):
            if scale is None:
                scaled, loadings = (values - mean) / noise, axes
                scores = np.stack([np.linalg.lstsq((axes / noise).T, row, rcond=None)[0] for row in scaled])
            else:
                loadings, scores = _s2s_base.components((values - mean) / scale, np.sqrt(relative), 3)
                loadings = loadings * scale
            total = np.zeros((len(wanted), 12))
            for k, (length, tau) in enumerate(_s2s_kriging.choose(points, relative, scores)):
                total += np.outer(ordinary(points, relative, wanted, length, tau)[0] @ scores[:, k], loadings[k])
            each.append(total)
        ((length, tau),) = np.unique(_s2s_kriging.choose(points, relative, (values - mean) / spread, pooled=True), axis=0)
        each.append(ordinary(points, relative, wanted, length, tau)[0] @ (values - mean))
        genes = np.array([0, 5, 11])
        maps = base.maps(base.units(values[:, genes], genes), genes).transpose(1, 2, 0) * base.spread[genes]
        np.testing.assert_allclose(maps[0], np.mean(each, axis=0)[:, genes], atol=1e-4)
        np.testing.assert_allclose(maps[0] + maps[1], each[2][:, genes], atol=1e-4)
        np.testing.assert_allclose(maps[0] + maps[2], each[-1][:, genes], atol=1e-4)
        tenth = _s2s_base.fit(points, values, counts, wanted, n_components=3, axes=axes, standardise=False)
        again = tenth.maps(tenth.units(values[:, genes], genes), genes)[:, 0].T * 10
        np.testing.assert_allclose(again, maps[0] + mean[genes], atol=1e-4)

    def test_what_is_explained_by_leaving_out(self, scattered):
        """Leave-one-out R² of the kriged gene and components, spot by spot with the ranges of the whole."""
        points, depth, wanted, _ = scattered
        rng = np.random.default_rng(2)
        values, counts = np.log1p(rng.poisson(2, (len(points), 12)) * 3.0), 1000 * depth
        base = _s2s_base.fit(points, values, counts, wanted, n_components=3)
        relative = counts / np.median(counts)
        share = relative / relative.sum()
        centred = values - share @ values
        cp10k = share @ np.expm1(values)
        noise = np.sqrt(cp10k / (1 + cp10k) ** 2 * 1e4 / np.median(counts))
        loadings, scores = _s2s_base.components(centred / noise, np.sqrt(relative), 3)
        pairs = _s2s_kriging.choose(points, relative, scores)
        out = np.zeros_like(centred)
        for i in range(len(points)):
            rest = np.arange(len(points)) != i
            for k, (length, tau) in enumerate(pairs):
                weight = ordinary(points[rest], relative[rest], points[i : i + 1], length, tau)[0][0]
                out[i] += (weight @ scores[rest, k]) * loadings[k] * noise
        wanted_r2 = 1 - share @ (centred - out) ** 2 / (share @ centred**2)
        np.testing.assert_allclose(base.facts[:, 3], np.clip(wanted_r2, -0.5, 1), atol=1e-4)

    def test_shared_axes(self):
        """Of two sections about their own means, in units of noise: the axes of one table that is put together by hand."""
        rng = np.random.default_rng(4)
        tables = [(np.log1p(rng.poisson(3, (n, 9)) * 4.0), rng.uniform(500, 3000, n)) for n in (30, 40)]
        rows, scales = [], []
        for values, counts in tables:
            depth = np.clip(counts / np.median(counts), 0.05, 20)
            cp10k = np.average(np.expm1(values), axis=0, weights=depth)
            scales.append(np.sqrt(cp10k / (1 + cp10k) ** 2 * 1e4 / np.median(counts)))
            rows.append((values - np.average(values, axis=0, weights=depth)) / scales[-1] * np.sqrt(depth)[:, None])
        wanted = np.linalg.svd(np.concatenate(rows))[2][:3]
        found = _s2s_base.shared_axes(tables, 3) / np.sqrt(scales[0] * scales[1])
        np.testing.assert_allclose(np.abs(found @ wanted.T), np.eye(3), atol=1e-6)

    def test_nearest_and_none(self, scattered):
        points, depth, wanted, _ = scattered
        values = np.abs(np.random.default_rng(3).normal(size=(len(points), 2)))
        genes = np.arange(2)
        for kind in ("nearest", "none"):
            base = _s2s_base.fit(points, values, depth, wanted, kind=kind, standardise=False)
            maps = base.maps(base.units(values, genes), genes)
            near = [int(np.argmin(np.hypot(*(points - place).T))) for place in wanted]
            np.testing.assert_allclose(maps[:, 0].T, values[near] / 10 if kind == "nearest" else 0, atol=1e-6)
            assert not maps[:, 1:].any()

    def test_genes_without_counts_are_no_nan(self, scattered):
        points, depth, wanted, _ = scattered
        values = np.zeros((len(points), 3))
        values[:, 1] = np.random.default_rng(0).random(len(points))
        base = _s2s_base.fit(points, values, depth, wanted)
        assert np.isfinite(base.facts).all()
        assert np.isfinite(base.maps(base.units(values, np.arange(3)), np.arange(3))).all()


SPECS = [("square", -1), ("hex", 0), ("hex", 1)]


def place_of(rc, lattice, parity):
    """From the definition of the lattice."""
    return (
        (float(rc[0]), float(rc[1])) if lattice == "square" else (rc[0] * math.sqrt(3) / 2, rc[1] + (0.5 if rc[0] % 2 == parity else 0.0))
    )


class TestLattice:
    @pytest.mark.parametrize(("lattice", "parity"), SPECS)
    def test_steps_and_places(self, lattice, parity):
        spec = RasterSpec(lattice, (7, 8), pitch_um=100.0, hex_parity=parity)
        rc = np.argwhere(np.ones((7, 8), dtype=bool))
        steps = steps_of(spec, rc)
        np.testing.assert_array_equal(raster_of(spec, steps), rc)
        np.testing.assert_allclose(points_of(spec, steps), [place_of(p, lattice, parity) for p in rc], atol=1e-12)
        np.testing.assert_allclose(points_of(spec, 2 * steps, 2), points_of(spec, steps))

    @pytest.mark.parametrize("hexagonal", [False, True])
    def test_symmetries_keep_distances_and_are_a_group(self, hexagonal):
        every = symmetries(hexagonal)
        assert len({each.tobytes() for each in every}) == (12 if hexagonal else 8)
        np.testing.assert_array_equal(every[0], np.eye(2))
        steps = np.random.default_rng(0).integers(-9, 9, (40, 2))
        long = np.hypot(*plane_of(hexagonal, steps).T)
        for each in every:
            np.testing.assert_allclose(np.hypot(*plane_of(hexagonal, steps @ each.T).T), long)
        products = {(a @ b).tobytes() for a in every for b in every}
        assert products == {each.tobytes() for each in every}
        assert len(spread_out(4, hexagonal)) == 4
        assert len(spread_out(99, hexagonal)) == len(every)

    @pytest.mark.parametrize(("lattice", "parity"), SPECS)
    @pytest.mark.parametrize("factor", [1, 2])
    def test_surroundings_by_brute_force(self, lattice, parity, factor):
        spec = RasterSpec(lattice, (7, 8), pitch_um=100.0, hex_parity=parity)
        rc = np.argwhere(np.random.default_rng(1).random((7, 8)) < 0.45)
        measured = steps_of(spec, rc)
        steps, between = surroundings(spec, measured, factor)
        found = {tuple(s): bool(b) for s, b in zip(steps.tolist(), between, strict=True)}
        known = plane_of(lattice == "hex", measured)
        wanted = {}
        for r in range(-4, 7 * factor + 4):
            for q in range(-8 * factor, 12 * factor):
                y, x = plane_of(lattice == "hex", np.array([[r, q]]))[0] / factor
                if not any(math.hypot(y - a, x - b) <= 1.5 + 1e-9 for a, b in known):
                    continue
                true_y, true_x = points_of(spec, np.array([[r, q]]), factor)[0]
                height, width = (6 * math.sqrt(3) / 2, 7.5) if lattice == "hex" else (6, 7)
                if not (-1e-9 <= true_y <= height + 1e-9 and -1e-9 <= true_x <= width + 1e-9):
                    continue
                near = [(a - y, b - x) for a, b in known if math.hypot(y - a, x - b) <= 2.3]
                here = any(math.hypot(*d) < 1e-9 for d in near)
                directions = np.linspace(0, 2 * np.pi, 721)[:-1] + 1e-4
                free = any(all(dy * math.cos(t) + dx * math.sin(t) > 1e-9 for dy, dx in near) for t in directions)
                wanted[r, q] = here or not free
        assert found == wanted

    def test_stride(self):
        grid = np.argwhere(np.ones((4, 4), dtype=bool))
        assert [stride_of(k * grid + 1) for k in (1, 2, 4)] == [1, 2, 4]
        assert stride_of(np.concatenate([2 * grid, [[1, 1]]])) == 1

    def test_positions(self):
        among = np.array([[3, 4], [0, 1], [5, 5]])
        np.testing.assert_array_equal(positions(np.array([[5, 5], [0, 1], [9, 9], [-2, 0]]), among), [2, 1, -1, -1])


@pytest.fixture(scope="module", params=["st", "visium"])
def section(request):
    adata = stimg.datasets.simulate(technology=request.param, shape=(12, 11), n_genes=25, rng=1)
    stimg.pp.rasterize(adata)
    keep = np.random.default_rng(0).random(adata.n_obs) < 0.7
    return sections(adata, list(adata.var_names), rows=keep)[0]


class TestReading:
    def test_values(self, make_slide):
        adata = make_slide("st", n_genes=10)
        adata.var_names = [*adata.var_names[:-1], "NegPrb1"]
        (found,) = sections(adata, list(adata.var_names[:6]))
        counts = adata.X.toarray()
        total = counts[:, :9].sum(axis=1)
        order = found.rows
        np.testing.assert_allclose(found.dense(), np.log1p(1e4 * counts[order, :6] / total[order, None]), rtol=1e-5)
        np.testing.assert_allclose(found.counts, total[order])
        np.testing.assert_array_equal(found.steps, adata.obsm["stimg_rc"][order])

    def test_observations_on_one_point_are_added_up(self, make_slide):
        adata = make_slide("st", n_genes=10)
        adata.obsm["stimg_rc"][1] = adata.obsm["stimg_rc"][0]
        (found,) = sections(adata, list(adata.var_names))
        at = int(np.flatnonzero((found.steps == adata.obsm["stimg_rc"][0]).all(axis=1))[0])
        both = adata.X[:2].toarray().sum(axis=0)
        np.testing.assert_allclose(found.dense()[at], np.log1p(1e4 * both / both.sum()), rtol=1e-5)
        assert len(found.steps) == adata.n_obs - 1


class TestSparserMaps:
    def test_random_and_lattice(self, section):
        rng = np.random.default_rng(0)
        low, high = OPTIONS.keep
        shares = [sparser(section, replace(OPTIONS, sampling="random"), rng).mean() for _ in range(30)]
        assert low - 0.02 <= min(shares) < max(shares) <= high + 0.02
        phases = set()
        for _ in range(20):
            kept = section.steps[sparser(section, replace(OPTIONS, sampling="lattice"), rng)]
            assert stride_of(kept) >= 2
            phases.add(tuple(kept[0] % 2))
        assert len(phases) == 4

    def test_of_a_lattice_its_lattice(self, section):
        on = section.part(np.flatnonzero((section.steps % 2 == 1).all(axis=1)))
        kept = sparser(on, replace(OPTIONS, sampling="lattice"), np.random.default_rng(0))
        assert 0 < kept.sum() < len(kept)

    def test_turned_maps_hold_the_same_values(self, section):
        """Augmentation comes after the sparser map was drawn: it moves points, and shows no other."""
        data = SparserDataset([section], OPTIONS, n_maps=6, n_items=2, seed=0)
        field, genes = data.field(0, 0), np.array([1, 4, 7])
        plain, at = batch_of(field, genes, OPTIONS)
        for turn in symmetries(section.hexagonal):
            turned, to = batch_of(field, genes, OPTIONS, turn=turn)
            for name in ("measured", "base", "target", "weight", "known", "inside", "depth", "far"):
                a, b = (torch.as_tensor(x[name]).flatten(-2)[..., torch.from_numpy(p)] for x, p in ((plain, at), (turned, to)))
                assert torch.equal(a, b), name
            assert int(turned["known"].sum()) == len(field.known)
            moved = rasterised(field.steps, turn)
            assert turned["known"].shape == moved.shape

    def test_hidden_values_are_not_reached(self, section):
        """Other values at the points that are asked for: inputs of the network stay as they are to the last bit, and targets do not."""
        data = SparserDataset([section], OPTIONS, n_maps=6, n_items=2, seed=0)
        field = data.field(0, 1)
        values = section.dense()
        values[field.wanted] = 987_654.0
        counts = section.counts.copy()
        counts[field.wanted] = 1e9
        poisoned = Section(section.name, section.spec, section.steps, sp.csr_matrix(values), counts, None, section.rows)
        other = field_of(poisoned, field.known, field.wanted, OPTIONS, places=field.steps)
        a, _ = batch_of(field, np.arange(25), OPTIONS)
        b, _ = batch_of(other, np.arange(25), OPTIONS)
        for name in ("measured", "base", "known", "inside", "depth", "far", "facts"):
            assert torch.equal(a[name], b[name]), name
        assert not torch.equal(a["target"], b["target"])

    def test_targets_and_weights(self, section):
        data = SparserDataset([section], OPTIONS, n_maps=6, n_items=2, seed=0)
        field, genes = data.field(0, 2), np.array([2, 3])
        batch, at = batch_of(field, genes, OPTIONS)
        hidden = at[field.wanted_at]
        assert not set(field.known) & set(field.wanted)
        for g, gene in enumerate(genes):
            wanted = (section.dense()[field.wanted, gene] - field.base.mean[gene]) / field.base.spread[gene]
            np.testing.assert_allclose(batch["target"][g].flatten()[hidden], wanted, rtol=1e-4, atol=1e-5)
            noise = min(field.base.facts[gene, 1], 0.95)
            relative = np.clip(section.counts[field.wanted] / np.median(section.counts[field.known]), 0.05, 20)
            np.testing.assert_allclose(batch["weight"][g].flatten()[hidden], 1 / (1 - noise + noise / relative), rtol=1e-4)
        assert float(batch["weight"].flatten(1)[:, np.setdiff1d(np.arange(batch["weight"][0].numel()), hidden)].abs().sum()) == 0

    def test_items_depend_on_seed_epoch_and_index_alone(self, section):
        first, second = (SparserDataset([section], OPTIONS, n_maps=4, n_items=3, seed=5) for _ in range(2))
        second[1, 2], second[0, 0]
        a, b, c = first[1, 1], second[1, 1], first[2, 1]
        assert all(torch.equal(a[k], b[k]) for k in a if k != "guide")
        assert not torch.equal(a["measured"], c["measured"]) if a["measured"].shape == c["measured"].shape else True

    def test_a_large_slide_is_read_in_windows(self, section):
        data = SparserDataset([section], replace(OPTIONS, crop=8), n_maps=4, n_items=2, seed=0)
        for sample in range(3):
            assert (np.ptp(data.field(0, sample).steps, axis=0) < 8).all()

    def test_the_second_loss_shows_all_points(self, section):
        data = SparserDataset([section], replace(OPTIONS, cycle_weight=0.3), n_maps=4, n_items=4, seed=0)
        one, two = data[0, 0], data[0, 1]
        assert float(one["importance"]) == 1.0
        assert float(two["importance"]) == pytest.approx(0.3)
        assert int(two["known"].sum()) == len(section.steps) > int(one["known"].sum())
        assert torch.equal(two["weight"][0] > 0, two["known"])


class TestPictures:
    def test_photographs_of_scikit_image(self):
        found = _s2s_natural.pictures("skimage")
        assert len(found) >= 2 * len(_s2s_natural.PHOTOGRAPHS)
        assert all(p.dtype == np.float32 and p.ndim == 2 and p.min() >= 0 and p.max() <= 1 and max(p.shape) <= 256 for p in found)

    def test_a_folder(self, tmp_path):
        ramp = np.tile(np.arange(40, dtype=np.uint8) * 6, (40, 1))
        Image.fromarray(np.dstack([ramp, ramp, ramp])).save(tmp_path / "a.png")
        (found,) = _s2s_natural.pictures(str(tmp_path))
        np.testing.assert_allclose(found, ramp / 255, atol=1e-3)
        values = _s2s_natural.sampled(str(tmp_path), np.argwhere(np.ones((9, 9))).astype(float), 5, np.random.default_rng(0))
        assert values.shape == (5, 81)
        np.testing.assert_allclose(values.mean(axis=1), 0, atol=1e-5)

    def test_bad_folders(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="is not a folder with pictures"):
            _s2s_natural.pictures(str(tmp_path / "none"))
        Image.fromarray(np.zeros((8, 90), dtype=np.uint8)).save(tmp_path / "small.png")
        with pytest.raises(ValueError, match="8 x 90 pixels; wanted at least 16"):
            _s2s_natural.pictures(str(tmp_path))
        (tmp_path / "small.png").write_text("no picture")
        _s2s_natural.pictures.cache_clear()
        with pytest.raises(ValueError, match="cannot be read as a picture"):
            _s2s_natural.pictures(str(tmp_path))

    def test_they_come_behind_the_genes(self, section):
        options = replace(OPTIONS, natural="skimage", natural_fraction=0.5)
        batch = SparserDataset([section], options, n_maps=8, n_items=1, seed=0)[0, 0]
        hidden = batch["inside"] & ~batch["known"]
        assert (batch["weight"][4:, hidden] > 0).all()  # of a picture the whole truth is known
        assert (batch["weight"][4:, ~hidden] == 0).all()
        assert (batch["weight"][:4, hidden] > 0).sum() < 4 * hidden.sum()
        noisy = (batch["measured"] - batch["target"])[4:, batch["known"]]
        assert noisy.abs().mean() > 0.1
        clean = SparserDataset([section], replace(options, natural_noise=False), n_maps=8, n_items=1, seed=0)[0, 0]
        torch.testing.assert_close(clean["measured"][4:, clean["known"]], clean["target"][4:, clean["known"]])


class TestOptions:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"base": "cubic"}, "base='cubic'"),
            ({"consistency": "firm"}, "consistency='firm'"),
            ({"loss": "l3"}, "loss='l3'"),
            ({"score": "some"}, "score='some'"),
            ({"sampling": "grid"}, "sampling='grid'"),
            ({"n_hidden": 15, "n_heads": 2}, "n_hidden=15 is not a multiple of n_heads=2"),
            ({"keep": (0.9, 0.5)}, r"keep=\(0.9, 0.5\)"),
            ({"cycle_weight": -1.0}, "cycle_weight=-1.0 is not a weight"),
            ({"natural_fraction": 1.0}, "natural_fraction=1.0"),
            ({"window": 1}, "window"),
            ({"n_stages": 0}, "n_stages"),
        ],
    )
    def test_bad_values(self, changes, message):
        with pytest.raises(ValueError, match=message):
            S2SImputerOptions(**changes)

    def test_released(self):
        options = S2SImputerOptions.released(natural=None)
        assert (options.n_stages, options.n_blocks, options.loss, options.base, options.natural) == (3, 8, "l1", "nearest", None)
        assert S2SImputerOptions.from_dict(options.to_dict()) == options
