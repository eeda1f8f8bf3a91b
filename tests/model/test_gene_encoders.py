"""Gene encoders against scikit-learn on the training rows, against scvi-tools called by hand, and what they may not see."""

import gc
import json
import random
import sys
from types import ModuleType

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
import scvi
import torch
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

import stimg
from stimg._core.ledger import LeakageError
from stimg.model import GeneEncoder, _gene_maps
from stimg.model._gene_latent import n_epochs

QUICK = {"n_features": 3, "max_epochs": 2, "device": "cpu"}


@pytest.fixture(scope="module")
def slides():
    """Two donors; a control probe, and one observation without counts."""
    adata = stimg.datasets.simulate(technology="visium", shape=(10, 11), n_genes=30, n_donors=2, rng=0)
    adata.var["control"] = np.arange(30) == 7
    counts = adata.X.toarray()
    counts[4] = 0
    adata.X = sp.csr_matrix(counts)
    return adata


@pytest.fixture
def train(slides):
    return (slides.obs["donor"] == "D1").to_numpy()


def log_values(adata, genes):
    """log(1 + counts per 10,000 of all genes but control probes), dense."""
    counts = adata.X.toarray().astype(np.float64)
    depth = counts[:, ~adata.var["control"].to_numpy()].sum(axis=1, keepdims=True)
    return np.log1p(1e4 * counts[:, adata.var_names.get_indexer(genes)] / np.maximum(depth, 1))


def altered(adata, rows):
    """The same with other counts in ``rows``."""
    other = adata.copy()
    counts = other.X.toarray()
    counts[rows] = np.random.default_rng(9).poisson(30, size=counts[rows].shape)
    other.X = sp.csr_matrix(counts.astype(np.float32))
    return other


def with_counts(adata):
    """Which observations have a count, bool (n_obs,)."""
    return adata.X.toarray().any(axis=1)


def upright(axes):
    """Signs that make the largest weight of every column positive."""
    return np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])


class TestPCA:
    @pytest.mark.parametrize("scale", [False, True])
    @pytest.mark.parametrize("few", [False, True], ids=["rows", "few rows"])
    def test_is_that_of_scikit_learn_on_the_training_rows(self, slides, train, scale, few):
        if few:  # fewer observations than genes
            train = train & (np.arange(slides.n_obs) < 20)
        encoder = GeneEncoder.fit(slides, rows=train, n_features=5, scale=scale)
        genes = slides.var_names[~slides.var["control"]]
        assert encoder.genes.tolist() == genes.tolist()
        values = log_values(slides, genes)
        rows = train & with_counts(slides)
        if scale:
            values = StandardScaler().fit(values[rows]).transform(values)
        pca = PCA(5, svd_solver="full").fit(values[rows])
        wanted = pca.transform(values) * upright(pca.components_.T)
        found = encoder.transform(slides)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, wanted, atol=2e-5 * np.abs(wanted).max())
        np.testing.assert_allclose(encoder.map.share, pca.explained_variance_ratio_, rtol=1e-5)
        assert encoder.settings == {"n_fitted": rows.sum(), "scale": scale}

    def test_iterations_find_the_same_axes(self, slides, monkeypatch):
        exact = GeneEncoder.fit(slides, n_features=5)
        monkeypatch.setattr(_gene_maps, "EXACT", 0)
        assert np.abs(exact.transform(slides) - GeneEncoder.fit(slides, n_features=5).transform(slides)).max() < 1e-4
        assert np.abs(exact.map.axes - GeneEncoder.fit(slides, n_features=5, rng=3).map.axes).max() < 1e-6
        assert GeneEncoder.fit(slides, n_features=20).n_features == 20  # too many of them for iterations

    def test_as_many_axes_as_there_are(self, slides):
        assert GeneEncoder.fit(slides).n_features == 29
        assert GeneEncoder.fit(slides, rows=np.arange(10, 20)).n_features == 9
        twice = ad.concat([slides[10:13]] * 4, index_unique="-")
        twice.var = slides.var
        assert GeneEncoder.fit(twice).n_features == 2  # twelve observations of three kinds
        with pytest.raises(ValueError, match=r"the 12 training observations span 2 directions of 29 genes; wanted n_features=4"):
            GeneEncoder.fit(twice, n_features=4)
        with pytest.raises(ValueError, match=r"n_features=30 is more than the 29 axes that 219 observations of 29 genes have"):
            GeneEncoder.fit(slides, n_features=30)

    def test_genes_are_found_by_name(self, slides):
        encoder = GeneEncoder.fit(slides, genes=list(slides.var_names[[3, 1, 12, 20]]), n_features=2)
        assert encoder.genes.tolist() == slides.var_names[[3, 1, 12, 20]].tolist()
        turned = slides[:, ::-1].copy()
        np.testing.assert_array_equal(encoder.transform(turned), encoder.transform(slides))
        with pytest.raises(
            KeyError, match=r"1 of 4 genes of the PCA encoder are not in the object: \['Gene00012'\]. Fit it on genes that all"
        ):
            encoder.transform(slides[:, slides.var_names != "Gene00012"].copy())

    def test_selected_channels_and_who_chose_them(self, slides, train):
        adata = slides.copy()
        stimg.pp.select_genes(adata, rule="variance", n=6)
        encoder = GeneEncoder.fit(adata, rows=train)
        chosen = adata.var[adata.var["stimg_channel"]].sort_values("stimg_channel_order")
        assert encoder.genes.tolist() == chosen.index.tolist()
        assert [seen.kind for seen in encoder.ledger] == ["gene list", "PCA"]
        assert len(encoder.ledger[0]) > len(encoder.ledger[1])  # the genes were chosen on both donors

    def test_layers(self, slides):
        adata = slides.copy()
        adata.layers["raw"], adata.X = adata.X, adata.X * 0.5
        encoder = GeneEncoder.fit(adata, n_features=3, layer="raw")
        np.testing.assert_array_equal(encoder.transform(adata, layer="raw"), GeneEncoder.fit(slides, n_features=3).transform(slides))
        with pytest.raises(ValueError, match=r"fractional values .* wanted whole-number counts"):
            encoder.transform(adata)


def by_hand(adata, rows, genes, *, seed, n, max_epochs, batch_size=128, batch=None):
    """Train scVI as its documentation does, and return the posterior mean of every observation."""
    counts = adata[:, genes].X
    table = ad.AnnData(counts[rows].copy())
    if batch is not None:
        table.obs["b"] = np.asarray(batch)[rows]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        scvi.model.SCVI.setup_anndata(table, batch_key=None if batch is None else "b")
        model = scvi.model.SCVI(table, n_latent=n, gene_likelihood="nb")
        model.train(max_epochs=max_epochs, accelerator="cpu", devices=1, train_size=1.0, shuffle_set_split=False, batch_size=batch_size, logger=False, enable_checkpointing=False, enable_progress_bar=False)  # fmt: skip
    with torch.no_grad():
        x = torch.from_numpy(counts.toarray().astype(np.float32))
        return model.module.z_encoder(torch.log1p(x))[0].loc.numpy()


class TestScVI:
    def test_is_scvi_called_by_hand(self, slides, train, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)
        before, seed = slides.copy(), 11
        states = (torch.random.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())  # noqa: NPY002
        encoder = GeneEncoder.fit(slides, "scvi", rows=train, rng=seed, **QUICK)
        found = encoder.transform(slides)
        assert torch.equal(states[0], torch.random.get_rng_state())
        assert np.array_equal(states[1], np.random.get_state()[1])  # noqa: NPY002
        assert states[2] == random.getstate()
        assert list(tmp_path.iterdir()) == []
        assert (slides.uns.keys(), slides.obs.columns.tolist()) == (before.uns.keys(), before.obs.columns.tolist())
        rows = train & with_counts(slides)
        wanted = by_hand(slides, rows, encoder.genes, seed=seed, n=3, max_epochs=2)
        np.testing.assert_allclose(found, wanted, atol=1e-5)
        assert found.std(axis=0).min() > 1e-3
        assert np.abs(found - GeneEncoder.fit(slides, "scvi", rows=train, rng=12, **QUICK).transform(slides)).max() > 1e-2

    def test_the_decoder_may_be_told_a_batch(self, slides):
        adata = slides.copy()
        adata.obs["half"] = np.where(np.arange(adata.n_obs) % 2, "odd", "even")
        rows = with_counts(adata)
        encoder = GeneEncoder.fit(adata, "scvi", batch_key="half", **QUICK)
        assert encoder.map.batches == ["even", "odd"]
        wanted = by_hand(adata, rows, encoder.genes, seed=0, n=3, max_epochs=2, batch=adata.obs["half"])
        np.testing.assert_allclose(encoder.transform(adata), wanted, atol=1e-5)
        new = adata[:5].copy()
        new.obs["half"] = "another"
        np.testing.assert_allclose(encoder.transform(new), wanted[:5], atol=1e-5)
        with pytest.raises(KeyError, match=r"adata.obs\['third'\] is missing"):
            GeneEncoder.fit(adata, "scvi", batch_key="third", **QUICK)
        adata.obs["half"] = adata.obs["half"].where(adata.obs["donor"] == "D1")  # others need not have one
        GeneEncoder.fit(adata, "scvi", rows=adata.obs["donor"] == "D1", batch_key="half", **QUICK)
        with pytest.raises(ValueError, match=r"adata.obs\['half'\] has 110 missing values"):
            GeneEncoder.fit(adata, "scvi", batch_key="half", **QUICK)

    @pytest.mark.parametrize("n", [129, 130])
    def test_a_last_batch_of_one_or_two(self, slides, n, recwarn):
        encoder = GeneEncoder.fit(slides, "scvi", rows=np.arange(10, 10 + n), **QUICK)
        assert encoder.settings["n_fitted"] == n
        assert not [w for w in recwarn if "batch" in str(w.message)]
        assert np.isfinite(encoder.transform(slides)).all()

    def test_counts_are_let_go(self, slides):
        some, part = slides[10:161].copy(), slides[10:87].copy()
        encoder = GeneEncoder.fit(some, "scvi", **QUICK)
        encoder.transform(part)
        del some, part
        gc.collect()
        held = [each.n_obs for each in gc.get_objects() if type(each) is ad.AnnData]
        assert 151 not in held
        assert 77 not in held

    def test_epochs(self):
        assert [n_epochs(n) for n in (2, 20_000, 40_000, 10**9)] == [400, 400, 200, 1]


class Stub(scvi.model.SCVI):
    """As much of DRVI as is asked for: a model of scvi-tools with another likelihood."""

    def __init__(self, adata=None, registry=None, n_latent=32, **options):
        super().__init__(adata, registry, n_latent=n_latent, gene_likelihood="poisson", **options)


class TestDRVI:
    @pytest.fixture
    def installed(self, monkeypatch):
        monkeypatch.delattr(scvi.external, "DRVI", raising=False)
        package, model = ModuleType("drvi"), ModuleType("drvi.model")
        package.model, model.DRVI = model, Stub
        monkeypatch.setitem(sys.modules, "drvi", package)
        monkeypatch.setitem(sys.modules, "drvi.model", model)

    def test_a_package_that_stands_in_for_it(self, slides, train, installed, tmp_path):
        encoder = GeneEncoder.fit(slides, "drvi", rows=train, **QUICK)
        assert type(encoder.map.model) is Stub
        assert encoder.map.model.module.gene_likelihood == "poisson"
        found = encoder.transform(slides)
        assert found.shape == (slides.n_obs, 3)
        encoder.save(tmp_path / "e")
        np.testing.assert_array_equal(GeneEncoder.load(tmp_path / "e").transform(slides), found)
        assert GeneEncoder.fit(slides, "drvi", max_epochs=1).n_features == 32

    def test_that_of_scvi_tools_comes_first(self, slides, installed, monkeypatch):
        class Later(Stub):
            pass

        monkeypatch.setattr(scvi.external, "DRVI", Later, raising=False)
        assert type(GeneEncoder.fit(slides, "drvi", **QUICK).map.model) is Later

    def test_neither_is_installed(self, slides, train, installed, monkeypatch, tmp_path):
        GeneEncoder.fit(slides, "drvi", rows=train, **QUICK).save(tmp_path / "e")
        monkeypatch.setitem(sys.modules, "drvi.model", None)
        for call in (lambda: GeneEncoder.fit(slides, "drvi", **QUICK), lambda: GeneEncoder.load(tmp_path / "e")):
            with pytest.raises(ImportError, match=r"drvi.model is needed \(for DRVI, .* has not\) .* Run `pip install 'stimg\[drvi\]'`"):
                call()

    def test_itself(self, slides, train):
        if not hasattr(scvi.external, "DRVI"):
            pytest.importorskip("drvi", reason="DRVI is in drvi-py, and in scvi-tools from 1.5 on; neither is installed")
        for batch_key in (None, "donor"):
            encoder = GeneEncoder.fit(slides, "drvi", rows=train if batch_key is None else None, batch_key=batch_key, **QUICK)
            found = encoder.transform(slides)
            assert found.std(axis=0).min() > 1e-3
            np.testing.assert_allclose(encoder.transform(slides[::-1].copy()), found[::-1], atol=1e-5)


@pytest.mark.parametrize(("name", "options"), [("pca", {"n_features": 3}), ("pca", {"n_features": 3, "scale": True}), ("scvi", QUICK)])
def test_held_out_rows_change_nothing_but_themselves(slides, train, name, options):
    other = altered(slides, ~train)
    first, second = (GeneEncoder.fit(each, name, rows=train, **options) for each in (slides, other))
    assert first.identity() == second.identity()
    found = second.transform(other)
    np.testing.assert_array_equal(found[train], first.transform(slides)[train])
    assert np.abs(found[~train] - first.transform(slides)[~train]).max() > 0.1
    alone = second.transform(other[~train][:1].copy())  # nor on who else is encoded
    np.testing.assert_allclose(alone, found[~train][:1], atol=1e-5)
    both = GeneEncoder.fit(other, name, **options)
    assert both.identity()["model_hash"] != first.identity()["model_hash"]


def test_training_observations_by_mask_names_and_positions(slides, train):
    wanted = GeneEncoder.fit(slides, rows=train, n_features=3).identity()
    at = np.flatnonzero(train)
    for rows in (slides.obs["donor"] == "D1", slides.obs_names[train], list(slides.obs_names[at[::-1]]), at[::-1], at.tolist()):
        assert GeneEncoder.fit(slides, rows=rows, n_features=3).identity() == wanted


def test_the_ledger_lists_what_was_read(slides, train):
    encoder = GeneEncoder.fit(slides, rows=train, n_features=3)
    (seen,) = encoder.ledger
    assert (seen.who, seen.kind, seen.donors) == ("PCA-3 of the counts", "PCA", ("D1",))
    assert len(seen) == train.sum() - 1  # one has no counts
    assert set(seen.genes) == set(encoder.genes)
    with pytest.raises(
        LeakageError, match=r"the PCA 'PCA-3 of the counts' has seen 109 of 110 test observations, recognised by library and name"
    ):
        stimg.bench.check_leakage(slides, encoder, test=train)
    assert stimg.bench.check_leakage(slides, encoder, test=~train) == []
    renamed = slides[train].copy()
    renamed.obs_names = [f"x{i}" for i in range(renamed.n_obs)]
    renamed.obs["library_id"], renamed.obs["donor"] = "new", "new"
    assert stimg.bench.check_leakage(renamed, encoder, allow_leakage=True)[0].by == "counts"
    latent = GeneEncoder.fit(slides, "scvi", rows=~train, **QUICK)
    assert [(s.who, s.kind, s.donors) for s in latent.ledger] == [("scVI-3 of the counts", "encoder", ("D2",))]


@pytest.mark.parametrize(("name", "options"), [("pca", {"n_features": 3, "scale": True}), ("scvi", {**QUICK, "batch_key": "donor"})])
def test_save_and_load(slides, name, options, tmp_path):
    encoder = GeneEncoder.fit(slides, name, rows=np.arange(10, 190), **options)
    encoder.save(tmp_path / "e")
    loaded = GeneEncoder.load(tmp_path / "e")
    np.testing.assert_array_equal(loaded.transform(slides), encoder.transform(slides))
    assert (loaded.name, loaded.n_features, loaded.settings) == (name, 3, encoder.settings)
    assert loaded.identity() == encoder.identity()
    assert [s.to_dict().keys() for s in loaded.ledger] == [s.to_dict().keys() for s in encoder.ledger]
    np.testing.assert_array_equal(loaded.ledger[0].contents, encoder.ledger[0].contents)
    assert sorted(p.name for p in (tmp_path / "e").iterdir()) == ["model.json", "model.safetensors"]
    with pytest.raises(FileExistsError, match="overwrite"):
        encoder.save(tmp_path / "e")
    encoder.save(tmp_path / "e", overwrite=True)
    loaded.save(tmp_path / "again")
    assert GeneEncoder.load(tmp_path / "again").identity() == encoder.identity()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class": "STMAE"}, "holds a STMAE; wanted a GeneEncoder"),
        ({"name": "umap"}, "holds an encoder 'umap' that this version of stimg does not know"),
        ({"facts": {}}, "lacks 'batches'"),
        ({"genes": ["a", "b"]}, "the list of genes does not match its hash"),
        (
            {"n_features": 4, "facts": {"batches": ["all"], "scvi-tools": "0.9"}},
            r"the weights do not fit the scvi of the installed scvi-tools \(written with 0.9\): .* Install that version, or fit the encoder again",
        ),
    ],
)
def test_damaged_files(slides, change, message, tmp_path):
    GeneEncoder.fit(slides, "scvi", rows=np.arange(10, 40), **QUICK).save(tmp_path / "e")
    record = json.loads((tmp_path / "e" / "model.json").read_text())
    (tmp_path / "e" / "model.json").write_text(json.dumps({**record, **change}))
    with pytest.raises(ValueError, match=message):
        GeneEncoder.load(tmp_path / "e")
    with pytest.raises(FileNotFoundError, match=r"nowhere.* is missing \(found no such folder\)"):
        GeneEncoder.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"encoder": "mlp"}, ValueError, r"MLP is trained with the alignment, not before it. Pass gene_encoder='mlp'"),
        ({"encoder": "stmae"}, ValueError, r"STMAE is a model of its own"),
        (
            {"encoder": "nicheformer"},
            ValueError,
            r"Nicheformer is not fitted; its weights come from a folder. Use `GeneEncoder.pretrained\('nich",
        ),
        ({"encoder": "scvy"}, ValueError, r"no gene encoder named 'scvy'. Did you mean 'scvi'\?"),
        ({"rows": [True, False]}, ValueError, r"rows is a mask of 2 values; wanted 220, one for each observation"),
        ({"rows": [0, 220]}, ValueError, r"rows has positions of 0 to 220; wanted 0 to 219"),
        (
            {"rows": ["nobody"]},
            KeyError,
            r"1 of 1 training observations are not in the object: \['nobody'\]. Pass names of adata.obs_names",
        ),
        ({"rows": "D1"}, ValueError, r"rows has shape \(\); wanted a mask \(220,\), positions or names"),
        ({"rows": []}, ValueError, r"0 training observations have counts of the 29 genes; wanted at least 2. Check `fit=`"),
        ({"rows": [4, 5]}, ValueError, r"1 training observations have counts"),
        ({"n_features": 0}, ValueError, r"n_features=0 is not usable"),
        ({"genes": ["a", "b"]}, KeyError, r"2 of 2 genes of the vocabulary are not in the object"),
        ({"layer": "raw"}, KeyError, r"adata.layers\['raw'\] is missing"),
        ({"batch_key": "donor"}, ValueError, r"batch_key and max_epochs are for 'scvi' and 'drvi'"),
        ({"max_epochs": 3}, ValueError, r"batch_key and max_epochs are for 'scvi' and 'drvi'"),
        ({"encoder": "scvi", "scale": True}, ValueError, r"scale=True is for 'pca'; 'scvi' reads counts"),
        ({"encoder": "scvi", "max_epochs": 0}, ValueError, r"max_epochs=0 is not usable"),
    ],
)
def test_bad_arguments(slides, options, error, message):
    with pytest.raises(error, match=message):
        GeneEncoder.fit(slides, **options)


def test_bad_tables(slides):
    encoder = GeneEncoder.fit(slides, n_features=3)
    for change, message in (
        (lambda a: a[:, [0, 1, 1]], r"1 duplicated gene names, the first is 'Gene00001'"),
        (lambda a: a[:0], r"adata has 0 observations and 30 genes"),
        (lambda a: ad.AnnData(-a.X.toarray(), obs=a.obs, var=a.var), r"negative values"),
    ):
        for call in (GeneEncoder.fit, encoder.transform):
            with pytest.raises(ValueError, match=message):
                call(change(slides))
    empty = encoder.transform(slides[4:5].copy())
    np.testing.assert_allclose(empty, -(encoder.map.mean @ encoder.map.axes)[None], rtol=1e-5)  # that of an empty profile
