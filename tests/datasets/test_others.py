"""Olfactory bulb, cortex, the four tumour layers and gene lists, against pandas, anndata and h5py on the same files."""

import io
import pickle

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from stimg import datasets
from stimg.datasets.genes import _ArrayUnpickler

pytestmark = pytest.mark.data


def test_mob(mirror):
    adata = datasets.mob(1)
    table = pd.read_csv(mirror / "mob/MOB1.tsv.gz", sep="\t", index_col=0)
    spots = pd.read_csv(mirror / "mob/alignment_table_MOB1.tsv", sep="\t").set_index(["x", "y"])
    tissue = spots[spots["selected"] == 1]
    assert adata.shape == (379, 1000)
    assert adata.X.sum() == table.loc[[f"{x}x{y}" for x, y in tissue.index]].to_numpy().sum()
    x, y = (int(v) for v in adata.obs_names[7].removeprefix("MOB1_").split("x"))
    assert adata.obsm["spatial"][7].tolist() == spots.loc[(x, y), ["pixel_x", "pixel_y"]].tolist()
    assert (adata.obs["array_col"].iloc[7], adata.obs["array_row"].iloc[7]) == (x, y)
    assert ((adata.obs["array_row"] + adata.obs["array_col"]) % 2 == 0).all()
    assert adata.var["gene_ids"].tolist() == table.columns.tolist()
    assert adata.var_names[0] == "ENSMUSG00000064339"
    every = datasets.mob(1, tissue_only=False)
    assert every.n_obs == sum(f"{x}x{y}" in table.index for x, y in spots.index)
    assert every.obs["in_tissue"].sum() == 379
    step = 141 / np.sqrt(2) / adata.uns["spatial"]["MOB1"]["scalefactors"]["microns_per_pixel"]
    assert step == pytest.approx(np.sqrt(21.62 * 24.05), rel=0.002)


def test_stahl(mirror):
    merged = datasets.stahl()
    tables = [pd.read_csv(mirror / f"stahl_bc/slice{i}.csv.gz", index_col=0) for i in range(1, 5)]
    common = set.intersection(*(set(t.columns) for t in tables))
    shared = [g for g in tables[0].columns if g in common]
    assert merged.shape == (1031, len(shared))
    assert merged.X.sum() == sum(t[shared].to_numpy().sum() for t in tables)
    layer = merged[merged.obs["library_id"] == "layer3"]
    coordinates = pd.read_csv(mirror / "stahl_bc/slice3_coor.csv.gz", header=None).to_numpy()
    assert np.asarray(layer.obsm["spatial"]) == pytest.approx(coordinates * 200)
    assert layer.obs["array_row"].tolist() == np.rint(coordinates[:, 1]).astype(int).tolist()


def test_dlpfc(mirror):
    adata = datasets.dlpfc(151673, image="hires")
    source = ad.read_h5ad(mirror / "dlpfc/151673.h5ad")
    assert (adata.X != source.X).nnz == 0
    assert adata.obs["label"].astype(str).tolist() == source.obs["layer_guess_reordered"].astype(str).tolist()
    assert (adata.obsm["spatial"] == source.obsm["spatial"]).all()
    assert adata.obs["array_row"].tolist() == source.obs["array_row"].tolist()
    row = adata.obs["array_row"] == 40
    gaps = np.diff(np.sort(adata.obsm["spatial"][row, 0]))
    factors = adata.uns["spatial"]["151673"]["scalefactors"]
    assert factors["microns_per_pixel"] == pytest.approx(100 / np.median(gaps), rel=0.01)
    image = adata.uns["spatial"]["151673"]["images"]["hires"]
    assert image.shape == (600, 600, 3)
    at = (adata.obsm["spatial"] * factors["tissue_hires_scalef"]).astype(int)
    assert image[at[:, 1], at[:, 0]].mean() < image[:20, :20].mean() - 20


def _published(mirror, path, change):
    """Write a 10x matrix that holds the known counts among other spots and genes, in another order."""
    source = ad.read_h5ad(mirror / "dlpfc/151673.h5ad")
    positions = pd.read_csv(mirror / "dlpfc/151673/tissue_positions_list.txt", header=None)[0]
    known = source.obs_names.str.replace(r"\.\d+$", "", regex=True)
    others = [b for b in positions if b not in set(known)][:50]
    rng = np.random.default_rng(0)
    dense = sp.csr_matrix(rng.poisson(20, (50, source.n_vars)))
    counts = sp.vstack([source.X, dense]).tocsr()
    rare = sp.csr_matrix((np.array([99.0]), ([3], [1])), shape=(counts.shape[0], 2))  # 99 counts, and none
    counts = sp.hstack([rare, counts]).tocsr()
    at = counts.indptr[5]
    counts.data[at] += change
    order = rng.permutation(counts.shape[0])
    counts = counts[order]
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        group["barcodes"] = np.array([*known, *others])[order].astype("S")
        group["data"], group["indices"], group["indptr"] = counts.data.astype(np.int32), counts.indices, counts.indptr
        group["shape"] = np.array(counts.shape[::-1])
        group["features/id"] = np.array(["ENSG1", "ENSG2", *source.var["gene_ids"]]).astype("S")
        group["features/name"] = np.array(["R1", "R2", *source.var_names]).astype("S")
    layers = pd.DataFrame(
        {"b": known, "s": "151673", "l": source.obs["layer_guess_reordered"].astype(str).str.replace("Layer", "L").to_numpy()}
    )
    return source, pd.concat([layers, layers.assign(s="151507", l="L1")])


@pytest.mark.slow
@pytest.mark.parametrize("change", [0, 1])
def test_a_published_cortex_matrix_is_reduced_and_compared(mirror, monkeypatch, tmp_path, change):
    module = datasets.dlpfc.__globals__
    real = module["fetch_file"]
    source, layers = _published(mirror, tmp_path / "m.h5", change)
    layers.to_csv(tmp_path / "l.tsv", sep="\t", header=False, index=False)
    local = {"dlpfc/counts/151673": tmp_path / "m.h5", "dlpfc/layers/all": tmp_path / "l.tsv"}
    monkeypatch.setitem(module, "fetch_file", lambda name, **kwargs: local.get(name) or real(name, **kwargs))
    if change:
        with pytest.raises(ValueError, match=r"m\.h5 does not hold the counts of 151673.*\(2929, 11381\)"):
            datasets.dlpfc("151673")
        return
    adata = datasets.dlpfc("151673")
    mirrored = source[[f"{n}" for n in source.obs_names]]
    names = "151673_" + mirrored.obs_names.str.replace(r"\.\d+$", "", regex=True)
    assert adata.shape == source.shape
    assert (adata[names, source.var_names].X != source.X).nnz == 0
    assert adata[names].obs["label"].astype(str).tolist() == source.obs["layer_guess_reordered"].astype(str).tolist()
    layers.assign(l="L1").to_csv(tmp_path / "l.tsv", sep="\t", header=False, index=False)
    with pytest.raises(ValueError, match="does not hold the layers"):
        datasets.dlpfc("151673")


@pytest.mark.parametrize(("name", "n"), [("her_hvg_cut_1000", 785), ("skin_hvg_cut_1000", 171)])
def test_gene_lists(mirror, name, n):
    genes = datasets.gene_list(name)
    assert genes == np.load(mirror / f"genes/{name}.npy", allow_pickle=True).tolist()
    assert len(set(genes)) == n


def test_a_gene_list_cannot_run_code():
    class Evil:
        def __reduce__(self):
            return (print, ("run",))

    with pytest.raises(pickle.UnpicklingError, match=r"refused to load builtins\.print"):
        _ArrayUnpickler(io.BytesIO(pickle.dumps(Evil()))).load()
