"""Nicheformer and scFoundation from folders that the test makes: genes found by name, words, files that are missing or of another release."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from safetensors.torch import save_file

from stimg.model import GeneEncoder
from stimg.nn.gene import Nicheformer, ScFoundation
from stimg.nn.gene.nicheformer import ASSAYS, MODALITIES, SPECIES
from stimg.nn.gene.scfoundation import value_tokens

VOCABULARY = [f"ENSG{i:02d}" for i in range(24)]
SYMBOLS = [f"G{i}" for i in range(24)]
SCF_GENES = "OS_scRNA_gene_index.19264.tsv"


@pytest.fixture(scope="module")
def networks():
    """Small networks with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        niche = Nicheformer(n_tokens=60, dim=16, n_layers=2, n_heads=16, n_hidden=8, n_context=20).eval()
        return niche, ScFoundation(n_genes=24, dim=24, n_layers=2, n_heads=12, n_hidden=8, n_bins=5).eval()


@pytest.fixture
def niche(networks, tmp_path):
    """A folder as Nicheformer's authors have it."""
    torch.save({"state_dict": networks[0].state_dict()}, tmp_path / "nicheformer.ckpt")
    ad.AnnData(np.zeros((1, 24)), var=pd.DataFrame(index=VOCABULARY)).write_h5ad(tmp_path / "model.h5ad")
    for name, top in (("xenium", 3.0), ("dissociated", 9.0)):
        mean = np.random.default_rng(1).uniform(0, top, 24)
        mean[3] = np.nan
        np.save(tmp_path / f"{name}_mean_script.npy", mean)
    return tmp_path


@pytest.fixture
def foundation(networks, tmp_path):
    """A folder as scFoundation's authors have it."""
    config = {"model_config": {"mae_autobin": {"bin_alpha": 1.0, "encoder": {"heads": 12}}}}
    state = {f"model.{k}": v for k, v in networks[1].state_dict().items()}
    torch.save({"cell": {"state_dict": state, "config": config}, "gene": {"state_dict": {}}}, tmp_path / "models.ckpt")
    pd.DataFrame({"gene_name": SYMBOLS, "index": range(24)}).to_csv(tmp_path / SCF_GENES, sep="\t", index=False)
    return tmp_path


@pytest.fixture(scope="module")
def table():
    """Counts of some genes of the vocabularies in an order of their own, and of one gene that they do not know."""
    rng = np.random.default_rng(5)
    some = rng.permutation(24)[:15]
    var = pd.DataFrame({"ensembl": [*(VOCABULARY[i] for i in some), None]}, index=[*(SYMBOLS[i] for i in some), "OTHER"])
    return ad.AnnData(sp.csr_matrix(rng.poisson(1.0, (9, 16)).astype(np.float32)), var=var)


def in_order(adata, names, vocabulary):
    """The counts in the order of a vocabulary, 0 for what was not measured; by a loop."""
    out = np.zeros((adata.n_obs, len(vocabulary)))
    for j, name in enumerate(names):
        if name in vocabulary:
            out[:, vocabulary.index(name)] = adata.X.toarray()[:, j]
    return out


@pytest.mark.parametrize(
    ("options", "file", "words", "rounded"),
    [
        ({"technology": "xenium"}, "xenium", (5, 9, 4), False),
        ({"technology": "xenium", "round_mean": True}, "xenium", (5, 9, 4), True),
        ({"technology": "10x 3' v3", "modality": "dissociated", "species": "mouse"}, "dissociated", (6, 11, 3), False),
        ({"technology": "xenium", "pooling": "genes"}, "xenium", (5, 9, 4), False),
    ],
)
def test_nicheformer(niche, networks, table, options, file, words, rounded, tmp_path):
    encoder = GeneEncoder.pretrained("nicheformer", niche, **options)
    found = encoder.transform(table, gene_key="ensembl", batch_size=4)
    mean = np.nan_to_num(np.load(niche / f"{file}_mean_script.npy"))
    mean = np.floor(mean + 0.5) if rounded else mean
    mean[mean == 0] = 1
    tokens = []
    for row in in_order(table, table.var["ensembl"], VOCABULARY):
        order = sorted(np.flatnonzero(row), key=lambda g: -row[g] / mean[g])
        tokens.append([30 + g for g in order][:17] + [1] * (17 - len(order)))
    with torch.inference_mode():
        wanted = networks[0](torch.tensor(tokens), torch.tensor(words), pooling=options.get("pooling", "positions")).numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert found.dtype == np.float32
    assert (encoder.n_features, encoder.ledger, encoder.genes.tolist()) == (16, (), VOCABULARY)
    assert encoder.identity()["licence"] == "not confirmed (code: BSD-3-Clause)"
    encoder.save(tmp_path / "kept")
    kept = GeneEncoder.load(tmp_path / "kept")
    np.testing.assert_array_equal(kept.transform(table, gene_key="ensembl", batch_size=4), found)
    assert kept.identity() == encoder.identity()


@pytest.mark.parametrize(("options", "width"), [({}, 96), ({"pooling": "max"}, 24), ({"target_depth": 5.0}, 96)])
def test_scfoundation(foundation, networks, table, options, width, tmp_path):
    encoder = GeneEncoder.pretrained("scfoundation", foundation, **options)
    found = encoder.transform(table)
    counts = sp.csr_matrix(in_order(table, table.var_names, SYMBOLS))
    tokens = value_tokens(counts, target=options.get("target_depth", 4.0))
    with torch.inference_mode():
        wanted = networks[1](*map(torch.from_numpy, tokens), pooling=options.get("pooling", "all")).numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert found.shape == (9, width) == (9, encoder.n_features)
    np.testing.assert_allclose(encoder.transform(table, batch_size=5), found, atol=1e-5)
    encoder.save(tmp_path / "kept")
    np.testing.assert_array_equal(GeneEncoder.load(tmp_path / "kept").transform(table), found)
    none = table.copy()
    none.X = sp.csr_matrix(none.X.toarray() * (np.arange(9) != 2)[:, None])
    with pytest.raises(ValueError, match=r"1 of 1 observations have no count of the 24 genes of scFoundation"):
        encoder.transform(none)


def test_the_weights_of_the_cell_embedding_may_stand_alone(foundation, networks, table):
    wanted = GeneEncoder.pretrained("scfoundation", foundation).transform(table)
    (foundation / "models.ckpt").unlink()
    save_file(dict(networks[1].state_dict()), foundation / "cell.safetensors")
    np.testing.assert_allclose(GeneEncoder.pretrained("scfoundation", foundation).transform(table), wanted, atol=1e-6)


def test_words_are_those_of_the_authors():
    assert (MODALITIES["spatial"], SPECIES["human"], ASSAYS["xenium"]) == (4, 5, 9)  # as HESCAPE passes them
    words = [*MODALITIES.values(), *SPECIES.values(), *ASSAYS.values()]
    assert words == list(range(3, 19))


@pytest.mark.parametrize(
    ("change", "options", "error", "message"),
    [
        (None, {"technology": None}, ValueError, r"technology is None; Nicheformer has to be told it: one of .*'xenium'\]"),
        (None, {"technology": "visium"}, ValueError, r"technology='visium' is not known; wanted one of \['merfish', 'cosmx', 'xenium'"),
        (None, {"species": "rat"}, ValueError, r"species='rat' is not known; wanted one of \['human', 'mouse'\]"),
        (None, {"modality": "bulk"}, ValueError, "modality='bulk' is not known"),
        (None, {"pooling": "all"}, ValueError, r"pooling='all' is not known; wanted one of \['genes', 'positions'\]"),
        (
            None,
            {"technology": "cosmx"},
            FileNotFoundError,
            r"cosmx_mean_script.npy is missing \(found \['dissociated_mean_script.npy', 'model.h5ad'",
        ),
        (
            lambda p: (p / "model.h5ad").unlink(),
            {},
            FileNotFoundError,
            r"model.h5ad is missing .* Copy it from the repository of Nicheformer. Or compute",
        ),
        (
            lambda p: (p / "nicheformer.ckpt").unlink(),
            {},
            FileNotFoundError,
            r"holds 0 files of weights \(\[\]\); wanted one, with the ending .safetensors",
        ),
        (lambda p: (p / "b.pth").write_bytes(b""), {}, FileNotFoundError, r"holds 2 files of weights \(\['b.pth', 'nicheformer.ckpt'\]\)"),
        (lambda p: (p / "nicheformer.ckpt").write_bytes(b"x"), {}, ValueError, r"nicheformer.ckpt cannot be read as weights"),
        (
            lambda p: np.save(p / "xenium_mean_script.npy", np.ones(7)),
            {},
            ValueError,
            r"has shape \(7,\); wanted one mean for each of the 24 genes",
        ),
        (lambda p: (p / "xenium_mean_script.npy").write_bytes(b"x"), {}, ValueError, r"xenium_mean_script.npy holds no array of numbers"),
        (
            lambda p: torch.save({"embeddings.weight": torch.zeros(60, 16)}, p / "nicheformer.ckpt"),
            {},
            ValueError,
            r"does not hold the weights of Nicheformer: of 146, 145 are missing",
        ),
    ],
)
def test_what_nicheformer_refuses(niche, change, options, error, message):
    if change is not None:
        change(niche)
    with pytest.raises(error, match=message):
        GeneEncoder.pretrained("nicheformer", niche, **{"technology": "xenium", **options})


def test_a_vocabulary_of_another_release(niche):
    ad.AnnData(np.zeros((1, 31)), var=pd.DataFrame(index=[f"E{i}" for i in range(31)])).write_h5ad(niche / "model.h5ad")
    np.save(niche / "xenium_mean_script.npy", np.ones(31))
    with pytest.raises(
        ValueError, match=r"model.h5ad has 31 genes and the checkpoint 60 tokens, 30 of them reserved. Take both from one release"
    ):
        GeneEncoder.pretrained("nicheformer", niche, technology="xenium")


@pytest.mark.parametrize(
    ("change", "options", "error", "message"),
    [
        (None, {"pooling": "genes"}, ValueError, r"pooling='genes' is not known; wanted one of \['all', 'max'\]"),
        (None, {"target_depth": 0}, ValueError, "target_depth=0 is not above zero"),
        (
            lambda p: (p / SCF_GENES).unlink(),
            {},
            FileNotFoundError,
            r"OS_scRNA_gene_index.19264.tsv is missing \(found \['models.ckpt'\]\)",
        ),
        (lambda p: (p / SCF_GENES).write_text("gene\nA\n"), {}, ValueError, r"has columns \['gene'\]; wanted gene_name"),
        (lambda p: (p / SCF_GENES).write_text("gene_name\nA\n"), {}, ValueError, r"lists 1 genes and the checkpoint knows 24. Take both"),
        (
            lambda p: (p / SCF_GENES).write_text("gene_name\n" + "A\n" * 24),
            {},
            ValueError,
            r"23 duplicated genes of the vocabulary in .*, the first is 'A'. Copy the files again",
        ),
        (lambda p: torch.save({"gene": {"state_dict": {}}}, p / "models.ckpt"), {}, ValueError, r"models.ckpt has no part 'cell'"),
    ],
)
def test_what_scfoundation_refuses(foundation, change, options, error, message):
    if change is not None:
        change(foundation)
    with pytest.raises(error, match=message):
        GeneEncoder.pretrained("scfoundation", foundation, **options)


def test_no_folder_and_no_such_encoder(tmp_path):
    for name, files in (("nicheformer", "the checkpoint, model.h5ad"), ("scfoundation", "models.ckpt and OS_scRNA")):
        options = {"technology": "xenium"} if name == "nicheformer" else {}
        with pytest.raises(
            FileNotFoundError, match=rf"nowhere' does not exist. Pass a folder with the files of .*: {files}.*read_embedding"
        ):
            GeneEncoder.pretrained(name, tmp_path / "nowhere", **options)
        (tmp_path / "file").write_text("")
        with pytest.raises(NotADirectoryError, match=r"is a file; .* needs a folder"):
            GeneEncoder.pretrained(name, tmp_path / "file", **options)
    with pytest.raises(
        ValueError, match=r"encoder='scvi' has no weights in a folder; wanted one of \['nicheformer', 'scfoundation'\]. Fit it with"
    ):
        GeneEncoder.pretrained("scvi", tmp_path)


def test_tables_that_do_not_fit(niche, table):
    encoder = GeneEncoder.pretrained("nicheformer", niche, technology="xenium")
    with pytest.raises(
        ValueError, match=r"none of the 16 genes \(such as 'G\d+'\) is among the 24 of Nicheformer \(such as 'ENSG00'\). Pass `gene_key=`"
    ):
        encoder.transform(table)
    with pytest.raises(KeyError, match=r"adata.var\['gene_ids'\] is missing \(found \['ensembl'\]\)"):
        encoder.transform(table, gene_key="gene_ids")
    twice = table.copy()
    twice.var["ensembl"] = "ENSG03"
    with pytest.raises(ValueError, match=r"15 duplicated names in adata.var\['ensembl'\]"):
        encoder.transform(twice, gene_key="ensembl")
