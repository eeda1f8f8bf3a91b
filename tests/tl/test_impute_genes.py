import numpy as np
import pandas as pd
import pytest

import stimg
from stimg._core import keys

LAYER = "stimg_stmae"


def test_a_layer_for_genes_that_were_measured(slide, model):
    genes = list(model.genes[[5, 2]])
    before = slide.X.copy()
    assert stimg.tl.impute_genes(slide, model=model, genes=genes) is None
    layer = slide.layers[LAYER]
    assert layer.dtype == np.float32
    at = slide.var_names.get_indexer(genes)
    np.testing.assert_array_equal(layer[:, at], model.impute_genes(slide, genes=genes).to_numpy())
    assert np.isnan(np.delete(layer, at, axis=1)).all()
    assert (slide.X != before).nnz == 0
    record = slide.uns[keys.UNS][LAYER]
    assert record["verb"] == "stimg.tl.impute_genes"
    assert record["unit"] == "log1p_cp10k"
    assert record["genes"].tolist() == genes
    assert record["model"] == "STMAE"
    assert record["n_shared_genes"] == 30
    stimg.tl.impute_genes(slide, model=model, genes=genes, key_added="mine", mode="centred")
    assert slide.uns[keys.UNS]["mine"]["mode"] == "centred"
    np.testing.assert_array_equal(slide.layers["mine"][:, at], model.impute_genes(slide, genes=genes, mode="centred").to_numpy())


def test_a_copy(slide, model):
    genes = list(model.genes[[5, 2]])
    found = stimg.tl.impute_genes(slide, model=model, genes=genes, copy=True)
    assert found.var_names.tolist() == genes
    assert found.X.dtype == np.float32
    np.testing.assert_array_equal(found.X, model.impute_genes(slide, genes=genes).to_numpy())
    pd.testing.assert_frame_equal(found.obs, slide.obs)
    assert LAYER not in slide.layers
    assert LAYER not in slide.uns[keys.UNS]
    assert found.uns[keys.UNS][LAYER]["genes"].tolist() == genes
    stimg.data.slots.raster_libraries(found)
    np.testing.assert_array_equal(found.obsm["spatial"], slide.obsm["spatial"])
    found.uns[keys.UNS][keys.RASTER]["D1S1"]["pitch_um"] = 1.0  # nothing is shared with the source
    found.obsm[keys.RC][:] = 0
    assert slide.uns[keys.UNS][keys.RASTER]["D1S1"]["pitch_um"] == pytest.approx(100.0)
    assert slide.obsm[keys.RC].max() > 0


def test_genes_that_were_not_measured(slide, model):
    lacking = slide[:, 3:].copy()
    missing = model.genes[:3].tolist()
    with pytest.raises(ValueError, match=r"3 of the genes to predict are not in adata\.var_names.*copy=True"):
        stimg.tl.impute_genes(lacking, model=model)
    assert LAYER not in lacking.layers
    found = stimg.tl.impute_genes(lacking, model=model, copy=True)
    assert found.var_names.tolist() == missing
    np.testing.assert_array_equal(found.X, model.impute_genes(slide, genes=missing).to_numpy())
    assert found.uns[keys.UNS][LAYER]["n_shared_genes"] == 27


def test_a_copy_is_written_and_read_back(slide, model, tmp_path):
    import anndata as ad

    found = stimg.tl.impute_genes(slide[:, 3:].copy(), model=model, copy=True)
    found.write_h5ad(tmp_path / "a.h5ad")
    found.write_zarr(tmp_path / "a.zarr")
    for back in (ad.read_h5ad(tmp_path / "a.h5ad"), ad.read_zarr(tmp_path / "a.zarr")):
        np.testing.assert_array_equal(back.X, found.X)
        assert back.uns[keys.UNS][LAYER]["model_hash"] == found.uns[keys.UNS][LAYER]["model_hash"]
        assert back.uns[keys.UNS][LAYER]["genes"].tolist() == found.var_names.tolist()


def test_spatialdata_layer_and_new_table(sdata, slide, model, tmp_path):
    from spatialdata import get_element_annotators, read_zarr

    genes = list(model.genes[:2])
    stimg.tl.impute_genes(sdata, model=model, genes=genes)
    assert set(sdata.tables) == {"table"}
    values = model.impute_genes(slide, genes=genes).to_numpy()
    np.testing.assert_array_equal(sdata.tables["table"].layers[LAYER][:, :2], values)
    sdata.tables["table"] = sdata.tables["table"][:, 2:].copy()
    assert stimg.tl.impute_genes(sdata, model=model) is None
    table = sdata.tables["stmae_table"]
    assert table.var_names.tolist() == genes
    np.testing.assert_allclose(table.X, values, atol=1e-5)
    assert table.uns["spatialdata_attrs"] == sdata.tables["table"].uns["spatialdata_attrs"]
    sdata.write(tmp_path / "s.zarr")
    back = read_zarr(tmp_path / "s.zarr")
    for name in ("D1S1", "D1S2"):
        assert {"table", "stmae_table"} <= get_element_annotators(back, name)
    np.testing.assert_array_equal(back.tables["stmae_table"].X, table.X)
    assert back.tables["stmae_table"].uns[keys.UNS][LAYER]["genes"].tolist() == genes
    np.testing.assert_allclose(model.impute_genes(back.tables["table"]).to_numpy(), values, atol=1e-5)
    copied = stimg.tl.impute_genes(sdata, model=model, copy=True)
    np.testing.assert_array_equal(copied.X, table.X)


def test_spatialdata_under_another_key(sdata, model):
    sdata.tables["other"] = sdata.tables["table"][:, 2:].copy()
    stimg.tl.impute_genes(sdata, model=model, table_key="other")
    assert set(sdata.tables) == {"table", "other", "stmae_other"}
    stimg.tl.impute_genes(sdata, model=model, table_key="other", key_added="mine")
    assert "mine" in sdata.tables


def test_errors(slide, model):
    with pytest.raises(KeyError, match="nothing"):
        stimg.tl.impute_genes(slide, model=model, genes=["nothing"], copy=True)
    with pytest.raises(ValueError, match="measured all 30 genes"):
        stimg.tl.impute_genes(slide, model=model)
    with pytest.raises(TypeError, match="wanted an AnnData"):
        stimg.tl.impute_genes(None, model=model)
    assert LAYER not in slide.layers
