"""S2SImputer end to end on small slides: it trains on measured spots alone, fills holes, refines, comes back from disk, and knows what it has seen."""

import json
import random

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from lightning.pytorch.callbacks import Callback

import stimg
from stimg.data.ledger import remember, seen_of
from stimg.model import S2SImputer, S2SImputerOptions, _s2s_calibration, _s2s_inference, _s2s_training
from stimg.model._s2s_calibration import QUANTILE, calibrated, gated, judge, raw
from stimg.model._s2s_read import helpers_of, sections
from stimg.model._s2s_training import Donors, axes_of, divided, held_out

SMALL = {"n_samples": 4, "natural": None, "n_hidden": 4, "growth": 2, "n_stages": 2, "turns": 1, "window": 4}
FIT = {"max_epochs": 2, "steps_per_epoch": 3, "batch_size": 8, "rng": 0, "enable_progress_bar": False}
POISON = 54_321.0


def slide(technology="st", shape=(13, 12), n_genes=20, rng=0, **changes):
    """A whole slide, and which of its spots are measured."""
    adata = stimg.datasets.simulate(technology=technology, shape=shape, n_genes=n_genes, rng=rng, **changes)
    stimg.pp.rasterize(adata)
    return adata, np.random.default_rng(1).random(adata.n_obs) < 0.6


def model_of(adata, genes=None, setup=None, **changes):
    S2SImputer.setup_anndata(adata, **(setup or {}))
    return S2SImputer(adata, genes, **{**SMALL, **changes})


def trained_on(adata, genes=None, callbacks=(), changes=(), setup=None, **fit):
    model = model_of(adata, genes, setup, **dict(changes))
    torch.set_num_threads(1)  # numba's first parallel call, maybe in a fixture of the module, changes it, and with it the last bits
    model.train(**{**FIT, **fit}, callbacks=list(callbacks))
    return model


@pytest.fixture(scope="module")
def whole():
    return slide()


@pytest.fixture(scope="module")
def measured(whole):
    adata, keep = whole
    return adata[keep].copy()


@pytest.fixture(scope="module")
def hidden(whole):
    adata, keep = whole
    return adata[~keep].copy()


@pytest.fixture(scope="module")
def trained(measured):
    """To be read, not to be changed."""
    return trained_on(measured)


@pytest.fixture(scope="module")
def hexagonal():
    adata, keep = slide("visium", shape=(12, 12))
    part = adata[keep].copy()
    return part, adata[~keep].copy(), trained_on(part)


def weights(model):
    return {k: v.clone() for k, v in model.module.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class Fails(Callback):
    def __init__(self, epoch, error=RuntimeError):
        self.epoch, self.error = epoch, error

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == self.epoch:
            raise self.error("stopped here")


class TestTraining:
    def test_history_and_indices(self, trained, measured):
        assert set(trained.history) == {"train_loss", "validation_loss", "validation_base_loss"}
        assert trained.epochs() == 2
        assert trained.is_finite()
        train, val = trained.train_indices_, trained.validation_indices_
        assert not np.intersect1d(train, val).size
        assert len(train) + len(val) == measured.n_obs
        assert len(val) == round(0.15 * measured.n_obs)

    @pytest.mark.parametrize("n_genes", [20, 8])
    def test_held_out_spots_are_not_learned_from(self, measured, n_genes):
        """Other counts of the held-out spots: the losses of training stay as they are to the last bit, and those of validation do not.

        With 8 genes of interest the others help; which of them do is not told by held-out spots either.
        """
        genes = list(measured.var_names[:n_genes])
        trained = trained_on(measured, genes)
        other = measured.copy()
        counts = other.X.toarray()
        counts[trained.validation_indices_] = POISON
        other.X = sp.csr_matrix(counts)
        again = trained_on(other, genes)
        assert again.history["train_loss"].equals(trained.history["train_loss"])
        assert not again.history["validation_loss"].equals(trained.history["validation_loss"])

    def test_hidden_spots_are_not_there(self, whole, hidden, trained):
        """Poisoned counts of the hidden spots change no number: neither of the training nor of the prediction."""
        adata, keep = whole
        poisoned = adata.copy()
        counts = poisoned.X.toarray()
        counts[~keep] = POISON
        poisoned.X = sp.csr_matrix(counts)
        again = trained_on(poisoned[keep].copy())
        assert same(weights(again), weights(trained))
        wanted, found = trained.impute(targets=hidden), again.impute(targets=poisoned[~keep].copy())
        np.testing.assert_array_equal(found.values, wanted.values)
        np.testing.assert_array_equal(found.sd, wanted.sd)

    def test_it_learns(self):
        """A gene whose map is a checkerboard, which kriging smooths away: the network finds it from held-in spots."""
        rng = np.random.default_rng(0)
        adata, keep = slide(shape=(16, 16), n_genes=12)
        sign = 2 * (adata.obsm["stimg_rc"].sum(axis=1) % 2) - 1
        counts = rng.poisson(40 * np.exp(0.8 * np.outer(sign, np.where(np.arange(12) < 6, 1, -1))))
        adata.X = sp.csr_matrix(counts.astype(np.float32))
        model = trained_on(adata[keep].copy(), changes={"n_hidden": 8, "n_stages": 1}, max_epochs=8, steps_per_epoch=10, lr=8e-3)
        truth = np.log1p(1e4 * counts[~keep] / counts[~keep].sum(axis=1, keepdims=True))
        values, _ = model.impute(targets=adata[~keep].copy())
        model.module.gate.fill_(0.0)
        base, _ = model.impute(targets=adata[~keep].copy())
        assert ((values - truth) ** 2).mean() < 0.5 * ((base - truth) ** 2).mean()
        assert model.judged_["used"] < 0.5 * model.judged_["base"]

    def test_a_useless_network_is_not_used(self, measured):
        model = trained_on(measured, lr=1e-12, max_epochs=1)
        with torch.no_grad():
            for stage in model.module.stages:
                stage.out.bias.fill_(3.0)
        gated(model, judge(model, fields_of(model)), choose=True)
        assert float(model.module.gate) == 0.0
        assert model.judged_["used"] == model.judged_["base"] < model.judged_["network"]

    def test_how_much_of_the_network_is_used(self, measured):
        """By the formula, spot by spot; and the squared errors by what is predicted with this gate and without it."""
        trained = trained_on(measured)
        judged = judge(trained, fields_of(trained))
        start, found, truth = (
            np.concatenate([getattr(each, name) for each in judged]).astype(float) for name in ("start", "found", "truth")
        )
        assert len(start) == 20
        a = np.mean((found - start) ** 2)
        spots = ((truth - start) * (found - start)).mean(axis=0)
        b, variance = spots.mean(), spots.var(ddof=1) / len(spots)
        for scale in (1.0, 60.0):  # a larger correction in the right direction would be used in part
            several = [
                each._replace(found=each.start + scale * np.abs(each.found - each.start) * np.sign(each.truth - each.start))
                for each in judged
            ]
            gated(trained, several, choose=True)
            assert 0 <= float(trained.module.gate) <= 1
            again = np.concatenate([each.found for each in several])
            wanted = ((start + trained.judged_["gate"] * (again - start) - truth) ** 2).mean()
            assert trained.judged_["used"] == pytest.approx(wanted, rel=1e-4)
            assert trained.judged_["network"] == pytest.approx(((again - truth) ** 2).mean(), rel=1e-4)
        gated(trained, judged, choose=True)
        wanted = 0.0 if b <= 0 else np.clip(b / a * max(0, 1 - variance / b**2), 0, 1)
        assert float(trained.module.gate) == pytest.approx(wanted, abs=1e-5)
        assert trained.judged_["base"] == pytest.approx(((start - truth) ** 2).mean(), rel=1e-5)

    def test_chunks_of_genes_change_nothing(self, measured, monkeypatch):
        trained = trained_on(measured)
        fields = fields_of(trained)
        before = [np.array(trained.calibration), dict(trained.judged_)]
        for size in (64, 7):
            monkeypatch.setattr(_s2s_calibration, "CHUNK", size)
            judged = judge(trained, fields)
            gated(trained, judged, choose=True)
            calibrated(trained, judged)
            np.testing.assert_allclose(trained.calibration, before[0], rtol=1e-4)
            assert trained.judged_ == pytest.approx(before[1], rel=1e-3, abs=1e-6)

    def test_with_nothing_of_the_network_it_is_tl_impute(self, measured, hidden):
        """The default of ``tl.impute``, helping genes and all."""
        genes = list(measured.var_names[4:12])
        model = trained_on(measured, genes, max_epochs=1)
        model.module.gate.fill_(0.0)
        wanted = stimg.tl.impute(measured, targets=hidden, genes=genes, uncertainty=False)
        values = wanted[hidden.obs_names].layers["stimg_ensemble"]
        np.testing.assert_allclose(model.impute(targets=hidden).values, values, atol=1e-4)

    def test_with_a_guide_it_starts_from_tl_impute_with_that_guide(self, measured, hidden):
        part, rest = measured.copy(), hidden.copy()
        for each in (part, rest):
            each.obsm["X_guide"] = np.asarray(each.obsm["stimg_truth_proportions"], dtype=np.float32)[:, :-1]
        genes = list(part.var_names[4:12])
        model = trained_on(part, genes, max_epochs=1, setup={"guide": "X_guide"})
        model.module.gate.fill_(0.0)
        wanted, plain = (
            stimg.tl.impute(part, targets=rest, genes=genes, uncertainty=False, guide=guide)[rest.obs_names].layers["stimg_ensemble"]
            for guide in ("X_guide", None)
        )
        np.testing.assert_allclose(model.impute(targets=rest).values, wanted, atol=1e-4)
        assert np.abs(wanted - plain).max() > 1e-2

    @pytest.mark.parametrize("validation", ["spots", "blocks", None])
    def test_what_stops_it(self, measured, validation):
        model = trained_on(measured, max_epochs=1, validation=validation, validation_fraction=0.25)
        assert (len(model.validation_indices_) > 0) == (validation is not None)
        assert ("validation_loss" in model.history) == (validation is not None)
        assert model.judged_["gate"] == 1.0 or validation is not None
        assert np.isfinite(model.calibration).all()

    def test_the_same_rng_gives_the_same_whatever_the_workers(self, measured, trained):
        assert same(weights(trained_on(measured, num_workers=2)), weights(trained))
        assert not same(weights(trained_on(measured, rng=1)), weights(trained))

    def test_the_global_random_state_stays(self, measured):
        before = torch.get_rng_state(), random.getstate()
        trained_on(measured, max_epochs=1, changes={"natural": "skimage"}).impute()
        assert torch.equal(before[0], torch.get_rng_state())
        assert before[1] == random.getstate()

    def test_a_stopped_training_goes_on(self, measured, trained, tmp_path):
        model = model_of(measured)
        before = weights(model)
        with pytest.raises(RuntimeError, match="stopped here"):
            model.train(**FIT, checkpoint_dir=tmp_path, callbacks=[Fails(1)])
        assert same(weights(model), before)
        assert not model.is_trained_
        model.train(**FIT, checkpoint_dir=tmp_path)
        assert same(weights(model), weights(trained))
        assert model.history["train_loss"].equals(trained.history["train_loss"])
        np.testing.assert_array_equal(model.calibration, trained.calibration)
        with pytest.raises(ValueError, match=r"belongs to another training: .*n_stages was 2 and is 1"):
            model_of(measured, n_stages=1).train(**FIT, checkpoint_dir=tmp_path)

    def test_an_interrupted_second_training_loses_nothing(self, measured):
        model = trained_on(measured)
        before, calibration, judged = weights(model), model.calibration, model.judged_
        with pytest.raises(KeyboardInterrupt):
            model.train(**FIT, callbacks=[Fails(1, KeyboardInterrupt)])
        assert same(weights(model), before)
        assert model.calibration is calibration
        assert model.judged_ is judged
        assert model.epochs() == 2

    def test_the_default_length(self, measured, monkeypatch):
        monkeypatch.setattr(_s2s_training, "STEPS", 7)
        assert trained_on(measured, max_epochs=None).epochs() == 3

    def test_bfloat16(self, measured, trained):
        model = trained_on(measured, precision="bf16-mixed")
        wanted = trained.history["train_loss"]["train_loss"].iloc[0]
        assert model.history["train_loss"]["train_loss"].iloc[0] == pytest.approx(wanted, rel=0.05)

    def test_released_design_of_one_gene(self, measured):
        """Small in width and depth, but with all its parts: L1, hard consistency, nearest values, both losses, pictures."""
        S2SImputer.setup_anndata(measured)
        options = S2SImputerOptions.released(n_hidden=4, growth=2, n_blocks=1, n_dense=1, window=4, n_samples=2)
        model = S2SImputer(measured, [measured.var_names[3]], options=options)
        model.train(**FIT)
        values, sd = model.impute()
        assert values.shape[1] == 1
        assert np.isfinite(values).all()
        assert (sd > 0).all()


def fields_of(model):
    """The held-out points of a model that was trained on one donor, as its training made them."""
    split = divided(model, model._loop(_defaults()))
    helpers = helpers_of(model.adata, model.genes, rows=split.train)
    return held_out(model, split, helpers, Donors(None, {}))


def _defaults():
    arguments = {"validation": "spots", "validation_fraction": 0.15, "early_stopping": True, "patience": 8, "batch_size": 8, "lr": 1e-3}
    return {**arguments, "max_epochs": 1, "weight_decay": 0.0, "rng": 0, "checkpoint_dir": None}


class TestUncertainty:
    def test_nine_in_ten_held_out_values_are_inside(self, trained):
        (field,) = fields_of(trained)
        genes = np.arange(len(trained.genes))
        _, found, sd = raw(trained, field, genes, field.wanted_at)
        truth = field.base.units(field.section.dense(genes)[field.wanted], genes)
        inside = np.abs(truth - found) <= QUANTILE * sd * trained.calibration[:, None]
        assert inside.mean() == pytest.approx(0.9, abs=0.005)

    def test_a_gene_with_large_errors_is_less_sure(self, trained):
        """Factors follow the squared errors of each gene, shrunk to the pooled ones as if these were 20 values."""
        (field,) = fields_of(trained)
        genes = np.arange(len(trained.genes))
        _, found, sd = raw(trained, field, genes, field.wanted_at)
        z = ((field.base.units(field.section.dense(genes)[field.wanted], genes) - found) / sd) ** 2
        factor = np.sqrt((20 * z.mean() + z.sum(axis=1)) / (20 + z.shape[1]))
        np.testing.assert_allclose(trained.calibration / trained.calibration[0], factor / factor[0], rtol=1e-4)


class TestPlaces:
    def test_rows_and_columns_or_an_object(self, trained, hidden):
        by_object = trained.impute(targets=hidden)
        by_place = trained.impute(targets=hidden.obsm["stimg_rc"])
        assert by_object.values.shape == (hidden.n_obs, 20)
        assert by_object.values.dtype == np.float32
        np.testing.assert_allclose(by_place.values, by_object.values, atol=1e-5)
        order = np.random.default_rng(0).permutation(hidden.n_obs)
        turned = trained.impute(targets=hidden[order].copy())
        np.testing.assert_allclose(turned.values, by_object.values[order], atol=1e-5)
        np.testing.assert_allclose(turned.sd, by_object.sd[order], atol=1e-5)

    def test_holes(self, trained, hidden, measured):
        places = trained.places()
        values, sd = trained.impute()
        assert len(places) == len(values) == len(sd)
        rc = places[["row", "col"]].to_numpy()
        assert not {tuple(p) for p in rc} & {tuple(p) for p in measured.obsm["stimg_rc"]}
        assert len({tuple(p) for p in rc} & {tuple(p) for p in hidden.obsm["stimg_rc"]}) > 0.6 * hidden.n_obs
        at = {tuple(p): i for i, p in enumerate(hidden.obsm["stimg_rc"])}
        xy = hidden.obsm["spatial"]
        for _, place in places.iterrows():
            if (place["row"], place["col"]) in at:
                np.testing.assert_allclose([place["x"], place["y"]], xy[at[place["row"], place["col"]]], atol=1e-6)
        shared = [i for i, p in enumerate(rc) if tuple(p) in at]
        by_place = trained.impute(targets=rc[shared])
        np.testing.assert_allclose(by_place.values, values[shared], atol=0.05)

    @pytest.mark.parametrize("factor", [2, 4])
    def test_finer_lattices(self, trained, hexagonal, measured, factor):
        for model, adata in ((trained, measured), (hexagonal[2], hexagonal[0])):
            adata = adata[(adata.obsm["stimg_rc"] < 8).all(axis=1)].copy()
            places = model.places(adata, factor)
            values, sd = model.impute(adata, factor, genes=list(adata.var_names[:6]))
            assert len(places) == len(values)
            assert len(places) > (factor**2 - 2) * adata.n_obs
            assert np.isfinite(values).all()
            assert (sd > 0).all()
            (spec,) = (r.spec for r in stimg.data.raster_libraries(adata).values())
            measured_xy = adata.obsm["spatial"]
            apart = np.hypot(*(places[["x", "y"]].to_numpy()[:, None] - measured_xy[None]).transpose(2, 0, 1)).min(axis=1)
            pitch = spec.pitch_um / spec.mpp
            assert apart.min() == pytest.approx(pitch / factor, rel=0.05)
            assert apart.max() < 2.4 * pitch

    def test_hexagons(self, hexagonal):
        """Counts that rise along the rows: what is imputed rises with them, on shifted rows and on others."""
        adata, hidden, model = hexagonal
        assert model.lattice == "hex"
        parts = []
        for part in (adata.copy(), hidden.copy()):
            x = part.obsm["spatial"][:, 0]
            rate = np.exp(2.0 * (x - x.min()) / np.ptp(x))[:, None] * np.where(np.arange(20) < 10, 50, 0) + 200.0
            part.X = sp.csr_matrix(np.random.default_rng(0).poisson(rate).astype(np.float32))
            counts = part.X.toarray()
            parts.append((part, np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))))
        (part, _), (rest, truth) = parts
        values, sd = model.impute(part, rest)
        assert values.shape == sd.shape == truth.shape
        assert ((values - truth) ** 2).sum() < 0.7 * ((truth - truth.mean(axis=0)) ** 2).sum()

    def test_measured_points_as_measured_by_option(self, measured, trained):
        final = trained_on(measured, changes={"final_consistency": True})
        counts = measured.X.toarray()
        truth = np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))
        np.testing.assert_allclose(final.impute(targets=measured.obsm["stimg_rc"]).values, truth, rtol=1e-4, atol=1e-4)
        assert not np.allclose(trained.impute(targets=measured.obsm["stimg_rc"]).values, truth, atol=0.05)

    def test_genes_that_it_was_not_trained_on(self, measured, hidden):
        few = trained_on(measured, list(measured.var_names[:8]))
        values, sd = few.impute(targets=hidden, genes=list(measured.var_names[5:15]))
        assert values.shape == (hidden.n_obs, 10)
        np.testing.assert_array_equal(few._calibration_of(measured.var_names[5:15])[3:], np.median(few.calibration))
        assert (sd > 0).all()

    def test_genes_at_a_time_change_nothing(self, trained, hidden):
        np.testing.assert_allclose(trained.impute(targets=hidden, batch_size=3).values, trained.impute(targets=hidden).values, atol=1e-4)

    def test_another_section(self, trained):
        adata, keep = slide(rng=5)
        values, _ = trained.impute(adata[keep].copy(), adata[~keep].copy())
        assert values.shape == ((~keep).sum(), 20)

    def test_large_slides_are_read_in_windows(self, measured, hidden, monkeypatch):
        """From a base that looks no farther than the nearest spot, windows give what the whole gives."""
        model = trained_on(
            measured, changes={"base": "nearest", "standardise": False, "count_aware": False, "context": False}, max_epochs=1
        )
        model.module.gate.fill_(0.0)
        wanted = model.impute(targets=hidden)
        for name, value in (("MOST", 20), ("SIDE", 9), ("HALO", 3)):
            monkeypatch.setattr(_s2s_inference, name, value)
        np.testing.assert_allclose(model.impute(targets=hidden).values, wanted.values, atol=1e-4)


def reference_of(part, model):
    """The training points alone, as the axes of the model have seen them."""
    return part[np.sort(model.train_indices_)].copy()


class TestRegimes:
    def test_several_sections(self):
        adata, keep = slide(n_sections=2, shape=(11, 10))
        part = adata[keep].copy()
        names = sorted(part.obs["library_id"].astype(str).unique())
        model = trained_on(part, validation=[names[1]])
        assert set(part.obs["library_id"].iloc[model.validation_indices_].astype(str)) == {names[1]}
        values, _ = model.impute(targets=adata[~keep].copy())
        assert values.shape[0] == (~keep).sum()
        assert len(model.places()) == len(model.impute().values)
        with pytest.raises(ValueError, match="adata has 2 libraries"):
            model.impute(targets=np.array([[1, 1]]))

    def test_what_donors_share(self, tmp_path):
        """Components of the other donors are kriged beside a section's own; those used for a donor in training do not depend on that donor."""
        adata, keep = slide(n_donors=3, shape=(10, 9))
        donor = adata.obs["donor"].astype(str).to_numpy()
        names = sorted(set(donor))
        part = adata[keep & (donor != names[2])].copy()
        model = trained_on(part)
        assert model.axes.shape == (20, 20)
        found = sections(part, model.genes, **model._reading())
        whole, without = axes_of(model, found, model.genes)
        assert sorted(without) == names[:2]
        poisoned = part.copy()
        counts = poisoned.X.toarray()
        counts[(poisoned.obs["donor"] == names[0]).to_numpy()] += 7
        poisoned.X = sp.csr_matrix(counts)
        other_whole, other = axes_of(model, sections(poisoned, model.genes, **model._reading()), model.genes)
        np.testing.assert_array_equal(other[names[0]], without[names[0]])
        assert not np.allclose(other_whole, whole)
        third, rest = adata[keep & (donor == names[2])].copy(), adata[~keep & (donor == names[2])].copy()
        values, _ = model.impute(third, rest)
        gate = float(model.module.gate)
        model.module.gate.fill_(0.0)
        base = stimg.tl.impute(third, method="donor_ensemble", targets=rest, reference=reference_of(part, model), uncertainty=False)
        wanted = base[rest.obs_names].layers["stimg_donor_ensemble"]
        np.testing.assert_allclose(model.impute(third, rest).values, wanted, atol=1e-4)
        model.module.gate.fill_(gate)
        model.save(tmp_path / "m")
        again = S2SImputer.load(tmp_path / "m", third)
        np.testing.assert_array_equal(again.impute(targets=rest).values, values)
        few = again.impute(targets=rest, genes=list(model.genes[:4])).values
        np.testing.assert_allclose(few, values[:, :4], atol=1e-4)
        again.train(**FIT)  # fine-tuned on one donor: what others shared stays
        np.testing.assert_array_equal(again.axes.to_numpy(), model.axes.to_numpy())
        again.axes = None
        assert not np.allclose(again.impute(targets=rest).values, values, atol=1e-3)

    def test_fine_tuning(self, trained, tmp_path):
        adata, keep = slide(rng=7)
        part = adata[keep].copy()
        trained.save(tmp_path / "m")
        again = S2SImputer.load(tmp_path / "m", part)
        again.train(**FIT)
        assert again.epochs() == 4
        assert not same(weights(again), weights(trained))
        assert len(again.ledger[-1].contents) > 1.9 * len(trained.ledger[-1].contents)

    def test_a_guide(self, whole, tmp_path):
        adata, keep = whole
        adata = adata.copy()
        adata.obsm["X_guide"] = np.random.default_rng(0).normal(3.0, 2.0, (adata.n_obs, 5)).astype(np.float32)
        part, rest = adata[keep].copy(), adata[~keep].copy()
        encoder = seen_of(slide(rng=9)[0], who="an encoder", kind="encoder")
        remember(part, "X_guide", encoder)
        model = trained_on(part, setup={"guide": "X_guide"})
        assert [each.who for each in model.ledger].count("an encoder") == 1
        train = np.sort(model.train_indices_)
        np.testing.assert_allclose(model.module.guide_mean.numpy(), part.obsm["X_guide"][train].mean(axis=0), rtol=1e-4)
        first = model.impute(targets=rest).values
        rest.obsm["X_guide"] = rest.obsm["X_guide"] + 9
        model.module.gate.fill_(1.0)
        assert not np.allclose(model.impute(targets=rest).values, first, atol=1e-4)
        model.save(tmp_path / "m")
        np.testing.assert_array_equal(S2SImputer.load(tmp_path / "m", part).impute(targets=rest).values, model.impute(targets=rest).values)
        for targets in (None, 2, np.array([[1, 1]])):
            with pytest.raises(ValueError, match="guide, which has to be known at the places too"):
                model.impute(targets=targets)
        other = part.copy()
        other.obsm["X_guide"] = other.obsm["X_guide"][:, :3]
        with pytest.raises(ValueError, match="another width than the 5"):
            S2SImputer.load(tmp_path / "m", other)


class TestFiles:
    def test_what_is_saved_comes_back(self, measured, hidden, trained, tmp_path):
        trained.save(tmp_path / "m")
        wanted = trained.impute(targets=hidden)
        for back in (S2SImputer.load(tmp_path / "m"), S2SImputer.load(tmp_path / "m", measured.copy())):
            found = back.impute(measured, hidden)
            np.testing.assert_array_equal(found.values, wanted.values)
            np.testing.assert_array_equal(found.sd, wanted.sd)
            assert back.options == trained.options
            assert back.judged_ == pytest.approx(trained.judged_)
            assert back.history["train_loss"].equals(trained.history["train_loss"])
            assert back.identity(measured) == trained.identity(measured)
        assert json.loads((tmp_path / "m" / "model.json").read_text())["lattice"] == "square"
        assert "invented" in (tmp_path / "m" / "README.md").read_text()
        with pytest.raises(ValueError, match="no adata to train on"):
            S2SImputer.load(tmp_path / "m").train()

    def test_another_class_is_refused(self, trained, tmp_path):
        trained.save(tmp_path / "m")
        with pytest.raises(ValueError, match="holds a S2SImputer; wanted a STMAE"):
            stimg.model.STMAE.load(tmp_path / "m")


class TestLedger:
    def test_measured_spots_were_seen_and_hidden_ones_were_not(self, whole, measured, trained):
        adata, keep = whole
        few = trained_on(measured, list(measured.var_names[:8]), max_epochs=1)
        helping = few.ledger[-2]
        assert (helping.who, set(helping.genes)) == ("the genes that help S2SImputer", set(measured.var_names[8:]))
        assert set(helping.ids) == set(few.ledger[-1].ids)
        few.train(**FIT)
        assert [each.who for each in few.ledger].count(helping.who) == 1
        own = trained.ledger[-1]
        assert (own.who, own.kind, len(own.ids)) == ("S2SImputer", "model", measured.n_obs)
        assert trained.identity(measured)["n_obs_seen_in_training"] == measured.n_obs
        assert stimg.bench.check_leakage(adata[~keep].copy(), trained, level="observation") == []
        with pytest.raises(stimg.bench.LeakageError, match="the model 'S2SImputer' has seen"):
            stimg.bench.check_leakage(measured, trained, level="observation")


class TestBadInput:
    def test_setup(self, measured):
        with pytest.raises(ValueError, match="is a view"):
            S2SImputer.setup_anndata(measured[:20])
        other = measured.copy()
        other.X = other.X * 0.5
        with pytest.raises(ValueError, match="counts"):
            S2SImputer.setup_anndata(other)
        bare = measured.copy()
        del bare.obsm["stimg_rc"]
        with pytest.raises(KeyError, match=r"stimg.pp.rasterize"):
            S2SImputer.setup_anndata(bare)
        with pytest.raises(KeyError, match="X_none"):
            S2SImputer.setup_anndata(measured, guide="X_none")
        other = measured.copy()
        other.obsm["X_g"] = np.full((other.n_obs, 2), np.nan)
        with pytest.raises(ValueError, match="X_g"):
            S2SImputer.setup_anndata(other, guide="X_g")
        other.obsm["X_g"] = np.zeros(other.n_obs)[:, None].astype(str)
        with pytest.raises(ValueError, match="wanted numbers of shape"):
            S2SImputer.setup_anndata(other, guide="X_g")

    def test_too_few_spots(self, measured):
        few = measured[:12].copy()
        with pytest.raises(ValueError, match="12 measured points, too few to hold out"):
            trained_on(few)
        with pytest.raises(ValueError, match="7 measured points on its raster; wanted at least 8"):
            trained_on(measured[:7].copy(), validation=None)
        with pytest.raises(ValueError, match=r"validation_fraction=0\.8"):
            trained_on(measured, validation_fraction=0.8)

    def test_no_counts(self, measured):
        empty = measured.copy()
        empty.X = sp.csr_matrix(empty.shape, dtype=np.float32)
        with pytest.raises(ValueError, match="no counts at all"):
            trained_on(empty, validation=None)

    def test_not_trained(self, measured):
        with pytest.raises(RuntimeError, match="not trained"):
            model_of(measured).impute()

    def test_targets(self, trained, hidden):
        with pytest.raises(ValueError, match="targets=3; wanted a lattice 2 or 4 times finer"):
            trained.impute(targets=3)
        with pytest.raises(ValueError, match="1 of 2 targets are outside the raster of 13 x 12, such as \\[99, 1\\]"):
            trained.impute(targets=np.array([[1, 1], [99, 1]]))
        with pytest.raises(ValueError, match=r"wanted whole \(row, column\)"):
            trained.impute(targets=np.array([[1.5, 1.0]]))
        other = hidden.copy()
        other.obs["library_id"] = pd.Categorical(["Z"] * other.n_obs)
        with pytest.raises(ValueError, match=r"libraries that adata has not: \['Z'\]"):
            trained.impute(targets=other)
        with pytest.raises(KeyError, match="nogene"):
            trained.impute(targets=hidden, genes=["nogene"])

    def test_lattices(self, trained, hexagonal):
        with pytest.raises(ValueError, match="lies on a hex lattice; the model was made for a square one"):
            trained.impute(hexagonal[0])

    def test_options(self, measured):
        with pytest.raises(TypeError, match=r"S2SImputer has no option \['stages'\]"):
            model_of(measured, stages=3)
        with pytest.raises(ValueError, match="steps_per_epoch"):
            model_of(measured).train(**{**FIT, "steps_per_epoch": 0})
