"""Every verb does for the table of a SpatialData what it does for an AnnData, and leaves the other table alone."""

import tempfile
from importlib import import_module
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import stimg


def dense(values):
    return values.toarray() if sp.issparse(values) else np.asarray(values)


def assert_same(a, b, path="adata"):
    """Two objects are equal down to every array of ``obs``, ``var``, ``obsm``, ``layers`` and ``uns``."""
    if isinstance(a, ad.AnnData):
        assert a.shape == b.shape
        np.testing.assert_array_equal(dense(a.X), dense(b.X))
        for part in ("obs", "var"):
            pd.testing.assert_frame_equal(getattr(a, part), getattr(b, part))
        for part in ("obsm", "layers", "uns"):
            assert_same(dict(getattr(a, part)), dict(getattr(b, part)), f"{path}.{part}")
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_same(a[key], b[key], f"{path}[{key!r}]")
    elif isinstance(a, pd.DataFrame):
        pd.testing.assert_frame_equal(a, b)
    else:
        np.testing.assert_array_equal(dense(a), dense(b), err_msg=path)


@pytest.fixture(scope="module")
def slide():
    adata = stimg.datasets.simulate(technology="st", shape=(8, 9), n_genes=12, rng=0)
    stimg.pp.rasterize(adata)
    stimg.pp.spatial_blocks(adata, n_blocks=4)
    adata.obsm["X_stimg_stmae"] = np.random.default_rng(0).normal(size=(adata.n_obs, 4)).astype(np.float32)
    adata.layers["stimg_stmae"] = dense(adata.X) + 0.5
    return adata


IMAGE = np.random.default_rng(0).integers(0, 256, (6000, 6000, 3), dtype=np.uint8)
CALLS = {
    "pp.rasterize": lambda data, **k: stimg.pp.rasterize(data, **k),
    "pp.resample": lambda data, **k: stimg.pp.resample(data, pixel_um=400.0, **k),
    "pp.select_genes": lambda data, **k: stimg.pp.select_genes(data, rule="variance", n=5, **k),
    "pp.sparsify": lambda data, **k: tables_of(stimg.pp.sparsify(data, mask="quarter", phase=1, **k), **k),
    "pp.spatial_autocorr": lambda data, **k: stimg.pp.spatial_autocorr(data, n_perms=3, **k),
    "pp.spatial_blocks": lambda data, **k: stimg.pp.spatial_blocks(data, block_um=500.0, buffer_um=200.0, key_added="b", **k),
    "pp.hold_out_blocks": lambda data, **k: stimg.pp.hold_out_blocks(data, held=["D1S1/1"], **k),
    "pp.split": lambda data, **k: stimg.pp.split(data, by="block", test=["D1S1/1"], buffer_um=250.0, **k),
    "pp.check_slide": lambda data, **k: checked(data, stimg.pp.check_slide(data, pitch_um=200.0, **k), **k),
    "pp.colour_statistics": lambda data, **k: stimg.pp.colour_statistics(data, image=IMAGE, windows_um=(40.0, 90.0), **k),
    "pp.plan_tiles": lambda data, **k: stimg.pp.plan_tiles(data, image=IMAGE, image_mpp=0.5, tile_um=56, mpp=0.5, **k),
    "pp.set_mpp": lambda data, **k: checked(data, stimg.pp.set_mpp(data, pitch_um=200.0, **k), **k),
    "pp.spatial_context": lambda data, **k: stimg.pp.spatial_context(data, key="spatial", **k),
    "pp.read_embedding": lambda data, **k: read_embedding(data, **k),
    "tl.upsample": lambda data, **k: stimg.tl.upsample(data, factor=2, method="nearest", copy=True, **k),
    "tl.embed_genes": lambda data, **k: stimg.tl.embed_genes(data, n_features=3, **k),
    "pl.raster": lambda data, **k: stimg.pl.raster(data, color="label", **k),
    "pl.check_slide": lambda data, **k: (stimg.pp.check_slide(data, **k), checked(data, stimg.pl.check_slide(data, **k).axes[0], **k))[1],
    "pl.crops": lambda data, **k: stimg.pl.crops(data, genes=gene(data), n=2, spec=stimg.image.CropSpec((3, 3)), **k),
    "pl.reconstruction": lambda data, **k: stimg.pl.reconstruction(data, genes=gene(data), **k),
    "pl.embedding_map": lambda data, **k: stimg.pl.embedding_map(data, **k),
    "pl.tiles": lambda data, **k: tiles(data, **k),
    "pl.genes": lambda data, **k: stimg.pl.genes(data, genes=gene(data), predicted="stimg_stmae", **k),
    "pl.imputation": lambda data, **k: stimg.pl.imputation(data, genes=gene(data), **imputed(data, **k), **k),
    "pl.calibration": lambda data, **k: stimg.pl.calibration(data, **imputed(data, **k), **k),
    "pl.retrieval": lambda data, **k: (
        stimg.tl.retrieve(data, image_key="spatial", gene_key="spatial", **k),
        stimg.pl.retrieval(data, **k),
    )[1],
    "pl.alignment": lambda data, **k: (stimg.tl.align(data, model=Aligned(), **k), stimg.pl.alignment(data, **k))[1],
}
OTHER = {"pp.rasterize_points", "pl.history", "pl.scores", "pl.gene_scores", "pl.score_maps"}
"""Verbs that take no table: points, the record of a training, and reports."""


def read_embedding(data, **options):
    """Read a file with one embedding for each name."""
    names = (data if isinstance(data, ad.AnnData) else data.tables["cells"]).obs_names
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "features.h5ad"
        ad.AnnData(np.arange(2.0 * len(names)).reshape(-1, 2), obs=pd.DataFrame(index=names)).write_h5ad(path)
        stimg.pp.read_embedding(data, path, key_added="X_uni", **options)


def tables_of(parts, table_key="table"):
    """Return the tables of several objects, by number."""
    return {str(i): part if isinstance(part, ad.AnnData) else part.tables[table_key] for i, part in enumerate(parts)}


def checked(data, result, table_key="table"):
    """Return the result after taking the coordinate system out of what was found and recorded: an AnnData has none."""
    records = (data if isinstance(data, ad.AnnData) else data.tables[table_key]).uns["stimg"]
    for found in [
        result,
        *(r.get("table") for k, r in records.items() if k in ("check_slide", "set_mpp") and r.pop("coordinate_system", 1)),
    ]:
        if isinstance(found, pd.DataFrame):
            found["found"] = found["found"].str.replace("unit of 'global'", "pixel")
    return result


def tiles(data, **options):
    """Plan tiles and draw two of them."""
    stimg.pp.plan_tiles(data, image=IMAGE, image_mpp=0.5, tile_um=56, mpp=0.5, **options)
    return stimg.pl.tiles(data, n=2, image=IMAGE, **options)


def imputed(data, table_key="table"):
    """Say of every second observation that it was imputed, and return the layer and the truth of these."""
    table = stimg.data.tables.table_of(data, table_key)
    status = np.arange(table.n_obs) % 2
    table.obs["stimg_status"] = pd.Categorical.from_codes(status, ["measured", "imputed"])
    table.layers["stimg_stmae_sd"] = np.ones(table.shape, dtype=np.float32)
    return {"key": "stimg_stmae", "truth": table[status == 1].copy()}


class Aligned:
    """As much of an alignment of image and expression as ``tl.align`` asks for."""

    ledger = ()

    def get_image_embedding(self, adata):
        return adata.obsm["X_stimg_stmae"]

    get_gene_embedding = get_image_embedding

    def identity(self, adata):
        return {"model": "Aligned"}


def gene(data):
    return str((data if isinstance(data, ad.AnnData) else data.tables["cells"]).var_names[0])


def drawn(axes):
    """What stands on the axes: titles, labels and the values of every collection and image."""
    return [
        (ax.get_title(), ax.get_xlabel(), [np.ma.filled(np.ma.asarray(c.get_array(), dtype=float), np.nan) for c in ax.collections if c.get_array() is not None])
        for ax in (axes.values() if isinstance(axes, dict) else [axes])
    ]  # fmt: skip


def shaped(table):
    """A SpatialData with ``table`` annotating circles, and a second table that is nobody's business."""
    from spatialdata import SpatialData
    from spatialdata.models import ShapesModel, TableModel

    table = table.copy()
    table.obs["region"], table.obs["instance"] = pd.Categorical(["spots"] * table.n_obs), np.arange(table.n_obs)
    spots = ShapesModel.parse(table.obsm["spatial"], geometry=0, radius=1.0, index=np.arange(table.n_obs))
    parsed = TableModel.parse(table, region="spots", region_key="region", instance_key="instance")
    return SpatialData(shapes={"spots": spots}, tables={"cells": parsed, "table": ad.AnnData(np.ones((1, 1)))})


@pytest.mark.parametrize("verb", sorted(CALLS))
def test_the_table_of_a_spatialdata_is_treated_as_an_anndata(slide, verb):
    sdata = shaped(slide)
    adata, other = sdata.tables["cells"].copy(), sdata.tables["table"].copy()
    alone, within = CALLS[verb](adata), CALLS[verb](sdata, table_key="cells")
    if verb == "pp.rasterize":  # where the coordinates came from is all that may differ
        assert sdata.tables["cells"].uns["stimg"]["rasterize"].pop("coordinate_system") == {"D1S1": "global"}
        assert adata.uns["stimg"]["rasterize"].pop("coordinate_system") == "none"
    assert_same(adata, sdata.tables["cells"])
    assert_same(other, sdata.tables["table"])
    if verb in ("pp.resample", "pp.check_slide", "pp.sparsify", "tl.upsample"):
        assert_same(alone, within)
    elif verb.startswith("pl."):
        np.testing.assert_equal(drawn(within), drawn(alone))
        import matplotlib.pyplot as plt

        plt.close("all")
    else:
        assert alone is None
        assert within is None


@pytest.mark.parametrize("verb", sorted(CALLS))
def test_a_wrong_table_key_names_the_tables(slide, verb):
    sdata = shaped(slide)
    call = CALLS[verb]
    with pytest.raises(KeyError, match=r"sdata\.tables\['nothing'\] is missing \(found \['cells', 'table'\]\)\. Pass `table_key=`"):
        call(sdata, table_key="nothing")


def test_every_verb_on_tables_is_here():
    public = {f"{part}.{name}" for part in ("pp", "pl") for name in import_module(f"stimg.{part}").__all__}
    assert public - OTHER == {name for name in CALLS if not name.startswith("tl.")}


def test_a_model_is_set_up_on_the_table(slide):
    sdata = shaped(slide)
    stimg.model.STMAE.setup_spatialdata(sdata, table_key="cells")
    model = stimg.model.STMAE(sdata.tables["cells"], crop_size=(4, 4), n_latent=8, n_layers=1, n_heads=2)
    assert model.adata is sdata.tables["cells"]
    assert model.genes.tolist() == slide.var_names.tolist()
    model.train(max_epochs=1, validation=None, accelerator="cpu", enable_progress_bar=False)
    values = model.get_latent_representation()
    stimg.tl.embed(sdata, model=model, table_key="cells")
    np.testing.assert_array_equal(sdata.tables["cells"].obsm["X_stimg_stmae"], values)
    with pytest.raises(KeyError, match=r"sdata\.tables\['nothing'\] is missing"):
        stimg.model.STMAE.setup_spatialdata(sdata, table_key="nothing")
