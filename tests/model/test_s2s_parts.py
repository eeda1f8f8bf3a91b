"""The parts of an imputation model against plain loops: kriging, tissue, symmetries, sparser maps, pictures; and values that must not be reached."""

import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from PIL import Image

import stimg
from stimg.image.interpolate import METHODS, Measured
from stimg.image.spec import RasterSpec
from stimg.model import S2SImputerOptions, _s2s_base, _s2s_natural, _s2s_read
from stimg.model._s2s_fields import batch_of, field_of
from stimg.model._s2s_lattice import (
    plane_of,
    points_of,
    positions,
    raster_of,
    rasterised,
    spread_out,
    steps_of,
    stride_of,
    surroundings,
    symmetries,
)
from stimg.model._s2s_read import Section, helpers_of, sections
from stimg.model._s2s_samples import SparserDataset, compressed, is_full, sparser

OPTIONS = S2SImputerOptions(n_samples=3, natural=None)


@pytest.fixture(scope="module")
def scattered():
    """Places, counts, places wanted, and values of 12 genes on 22 places."""
    rng = np.random.default_rng(0)
    points = np.argwhere(rng.random((6, 7)) < 0.6).astype(float)
    counts = 1000 * rng.uniform(0.3, 3, len(points))
    return points, counts, rng.uniform(0, 6, (9, 2)), np.log1p(rng.poisson(2, (len(points), 12)) * 3.0)


class TestBase:
    @pytest.mark.parametrize("donors", [False, True])
    def test_it_is_the_ensemble_of_tl_impute(self, scattered, donors):
        points, counts, wanted, values = scattered
        axes = np.linalg.qr(np.random.default_rng(2).normal(size=(12, 2)))[0].T if donors else None
        asked = np.array([1, 4, 5, 9])
        base = _s2s_base.fit(points, values, counts, wanted, asked=asked, axes=axes)
        measured = Measured(points, values, columns=asked, depth=counts, loadings=axes)
        whole = METHODS["donor_ensemble" if donors else "ensemble"](measured, wanted)
        start = base.maps[:, 0].T * base.spread + base.mean
        np.testing.assert_allclose(start, whole.values, atol=1e-5)
        np.testing.assert_allclose(np.exp(base.doubt.T) * base.spread**2, np.maximum(whole.variance, 1e-3 * base.spread**2), rtol=1e-4)
        for i, name in ((1, "pca_kriging_by_depth"), (2, "kriging")):
            alone = METHODS[name](measured, wanted).values
            np.testing.assert_allclose(base.maps[:, i].T * base.spread, alone - whole.values, atol=1e-5)
        explained = 1 - (whole.variance / base.spread**2).mean(axis=0)
        np.testing.assert_allclose(base.facts[:, 3], np.clip(explained, 0, 1), atol=1e-5)
        nearest = np.array([min(np.hypot(*(p - q)) for p in points) for q in wanted])
        np.testing.assert_allclose(base.far, 1 - np.exp(-nearest))

    def test_scales(self, scattered):
        """Mean, spread and noise of each gene, spots counting by their depth."""
        points, counts, wanted, values = scattered
        base = _s2s_base.fit(points, values, counts, wanted)
        share = counts / counts.sum()
        mean = np.array([sum(share * v) for v in values.T])
        np.testing.assert_allclose(base.mean, mean)
        spread = np.sqrt([sum(share * (v - m) ** 2) for v, m in zip(values.T, mean, strict=True)])
        np.testing.assert_allclose(base.spread, spread)
        cp10k = np.array([sum(share * np.expm1(v)) for v in values.T])
        noise = cp10k / (1 + cp10k) ** 2 * 1e4 / np.median(counts)
        np.testing.assert_allclose(base.facts[:, 1], np.minimum(noise / spread**2, 2), rtol=1e-5)
        np.testing.assert_allclose(base.units(values, np.arange(12)), ((values - mean) / spread).T, rtol=1e-4, atol=1e-5)

    def test_tenths(self, scattered):
        points, counts, wanted, values = scattered
        plain, tenth = (_s2s_base.fit(points, values, counts, wanted, standardise=each) for each in (True, False))
        np.testing.assert_allclose(tenth.maps[:, 0].T * 10, plain.maps[:, 0].T * plain.spread + plain.mean, atol=1e-4)
        np.testing.assert_allclose(np.exp(tenth.doubt) * 100, np.exp(plain.doubt) * plain.spread[:, None] ** 2, rtol=1e-4)

    def test_depth_is_heeded_or_not(self, scattered):
        points, counts, wanted, values = scattered
        other = counts[::-1].copy()
        aware, unaware = (
            [_s2s_base.fit(points, values, c, wanted, count_aware=flag).maps for c in (counts, other)] for flag in (True, False)
        )
        assert not np.allclose(*aware, atol=1e-3)
        np.testing.assert_array_equal(*unaware)

    @pytest.mark.parametrize("kind", ["nearest", "mean"])
    def test_other_methods_have_one_opinion(self, scattered, kind):
        points, counts, wanted, values = scattered
        base = _s2s_base.fit(points, values, counts, wanted, kind=kind, standardise=False)
        near = [int(np.argmin(np.hypot(*(points - place).T))) for place in wanted]
        np.testing.assert_allclose(
            base.maps[:, 0].T * 10, values[near] if kind == "nearest" else np.tile(values.mean(axis=0), (9, 1)), atol=1e-5
        )
        assert not base.maps[:, 1:].any()

    def test_genes_without_counts_are_no_nan(self, scattered):
        points, counts, wanted, _ = scattered
        values = np.zeros((len(points), 3))
        values[:, 1] = np.random.default_rng(0).random(len(points))
        base = _s2s_base.fit(points, values, counts, wanted)
        assert all(np.isfinite(each).all() for each in (base.facts, base.maps, base.doubt))


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

    def test_helping_genes(self, make_slide, monkeypatch):
        """The genes with most counts in the rows that may be read, in order; behind the genes of interest in a section."""
        adata = make_slide("st", n_genes=12)
        adata.var_names = [*adata.var_names[:-1], "NegPrb1"]
        rows = np.arange(adata.n_obs) % 2 == 0
        genes = list(adata.var_names[3:6])
        monkeypatch.setattr(_s2s_read, "HELPERS", 7)
        total = adata.X.toarray()[rows].sum(axis=0)
        total[-1] = -1
        wanted = [adata.var_names[i] for i in np.argsort(-total, kind="stable")[:7] if adata.var_names[i] not in genes]
        assert helpers_of(adata, genes, rows=rows) == wanted
        other = adata.copy()
        counts = other.X.toarray()
        counts[~rows, 8] = 1e6
        other.X = sp.csr_matrix(counts)
        assert helpers_of(other, genes, rows=rows) == wanted
        (found,) = sections(adata, genes, helpers=wanted)
        assert (found.n_genes, found.values.shape[1]) == (3, 3 + len(wanted))


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
        few = section.part(np.flatnonzero(np.random.default_rng(0).random(len(section.steps)) < 0.6))
        assert not is_full(few.steps)
        assert all(stride_of(few.steps[sparser(few, OPTIONS, rng)]) == 1 for _ in range(20))
        assert is_full(np.argwhere(np.ones((5, 6))))

    @pytest.mark.parametrize("stride", [2, 4])
    def test_a_lattice_is_made_sparser_as_it_is_to_be_filled(self, section, stride):
        """Of every second point: the sparser map lies on that lattice as that lattice does on the finer one, and places are as far apart."""
        phase = np.array([1, 0])
        on = section.part(np.flatnonzero((section.steps % stride == phase).all(axis=1)))
        small = compressed(on)
        np.testing.assert_array_equal(small.steps * stride + phase, on.steps)
        assert small.spec.pitch_um == stride * section.spec.pitch_um
        assert compressed(section) is section
        if stride == 2:
            data = SparserDataset([on], replace(OPTIONS, sampling="lattice"), n_maps=6, n_items=2, seed=0)
            field = data.field(0, 0)
            assert stride_of(field.section.steps[field.known]) == 2
            assert stride_of(field.section.steps) == 1
            dense = data.field(0, 0, dense=True)
            np.testing.assert_array_equal(dense.section.steps, on.steps)
            assert len(dense.steps) > 2 * len(on.steps)

    def test_turned_maps_hold_the_same_values(self, section):
        """Augmentation comes after the sparser map was drawn: it moves points, and shows no other."""
        data = SparserDataset([section], OPTIONS, n_maps=6, n_items=2, seed=0)
        field, genes = data.field(0, 0), np.array([1, 4, 7])
        plain, at = batch_of(field, genes, OPTIONS)
        for turn in symmetries(section.hexagonal):
            turned, to = batch_of(field, genes, OPTIONS, turn=turn)
            for name in ("measured", "base", "doubt", "target", "weight", "known", "inside", "depth", "far"):
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
        poisoned = Section(section.name, section.spec, section.steps, sp.csr_matrix(values), 25, counts, None, section.rows)
        other = field_of(poisoned, field.known, field.wanted, OPTIONS, places=field.steps)
        a, _ = batch_of(field, np.arange(25), OPTIONS)
        b, _ = batch_of(other, np.arange(25), OPTIONS)
        for name in ("measured", "base", "doubt", "known", "inside", "depth", "far", "facts"):
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
            ({"base": "spline"}, "spline"),
            ({"base": "donor_kriging"}, "reads other donors"),
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
