"""Every slot that a verb writes on simulated data stands in ``SLOTS``, under the verb that wrote it."""

import re
import tempfile
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import stimg
from stimg._core import keys
from stimg.model._slide_reading import SlideReading

CONTAINERS = ("obs", "var", "obsm", "varm", "obsp", "varp", "layers", "uns")


def slots(adata):
    """Return the slots of ``adata``, those of ``uns["stimg"]`` one by one."""
    found = {f'{where}["{name}"]' for where in CONTAINERS for name in getattr(adata, where).keys() if name is not None}
    return (found - {'uns["stimg"]'}) | {f'uns["stimg"]["{name}"]' for name in adata.uns.get("stimg", {})}


def documented():
    """Return (pattern of a slot, its writers), one pair for each name; what stands in angle brackets is any name."""
    pairs = []
    for slot in keys.SLOTS:
        for name in re.findall(r'\w+\["[^"]*"\](?:\["[^"]*"\])*', slot.where):
            pattern = re.sub(r"<\w+>", r"\\w+", re.escape(name))
            pairs.append((re.compile(pattern), slot.writer))
    return pairs


def undocumented(found, writer):
    """Return the slots of ``found`` that are not listed for ``writer``; records of parameters are one entry for all."""
    records = {name for name in found if name.startswith('uns["stimg"]') and "raster" != re.findall(r'"([^"]*)"', name)[1]}
    return {
        name for name in found - records if not any(pattern.fullmatch(name) and (writer in writers) for pattern, writers in documented())
    }


@pytest.fixture(scope="module")
def section():
    adata = stimg.datasets.simulate(technology="visium", shape=(14, 14), n_genes=40, n_donors=2, image=True, mpp=4.0, rng=0)
    assert not undocumented(slots(adata), "stimg.datasets")
    stimg.pp.rasterize(adata)
    return adata


@pytest.fixture(scope="module")
def model(section):
    adata = section.copy()
    stimg.model.STMAE.setup_anndata(adata)
    model = stimg.model.STMAE(adata, n_latent=8, n_layers=1, n_decoder_layers=0, n_heads=2, crop_size=(6, 6), n_axes=4)
    model.train(max_epochs=1, validation=None, enable_progress_bar=False, logger=False)
    return model


def blocks(adata):
    stimg.pp.spatial_blocks(adata, n_blocks=4, buffer_um=150.0)


def split(adata):
    stimg.pp.hold_out_blocks(adata, held=[adata.obs["stimg_block"].cat.categories[0]])


def read_embedding(adata):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "features.h5ad"
        ad.AnnData(np.ones((adata.n_obs, 2)), obs=pd.DataFrame(index=adata.obs_names)).write_h5ad(path)
        stimg.pp.read_embedding(adata, dict.fromkeys(adata.obs["library_id"].unique(), path), key_added="X_uni")


class Aligned:
    """As much of an alignment of image and expression as a verb asks for."""

    ledger = ()

    def get_image_embedding(self, adata):
        return adata.obsm["spatial"]

    def get_gene_embedding(self, adata):
        return adata.obsm["spatial"]

    def identity(self, adata):
        return {"model": "Aligned"}


class Classified:
    """As much of a classifier of slides as a verb asks for."""

    ledger = ()
    predict_proba = get_contribution = None

    def read_slides(self, adata):
        return SlideReading(pd.DataFrame(), pd.DataFrame(), np.zeros(adata.n_obs), pd.DataFrame(index=adata.obs_names))

    def identity(self, adata):
        return {"model": "Classified"}


VERBS = {
    "stimg.pp.select_genes": lambda adata: stimg.pp.select_genes(adata, rule="variance", n=10),
    "stimg.pp.spatial_blocks": blocks,
    "stimg.pp.split": lambda adata: stimg.pp.split(adata, by="block", n_blocks=4, test=0.25),
    "stimg.pp.check_slide": lambda adata: stimg.pp.check_slide(adata),
    "stimg.pp.set_mpp": lambda adata: stimg.pp.set_mpp(adata),
    "stimg.pp.colour_statistics": lambda adata: stimg.pp.colour_statistics(
        adata, image=dict.fromkeys(adata.obs["library_id"].unique(), np.full((4000, 4000, 3), 200, dtype=np.uint8)), windows_um=(40.0, 90.0)
    ),
    "stimg.pp.plan_tiles": lambda adata: stimg.pp.plan_tiles(adata, tile_um=112, mpp=4.0),
    "stimg.pp.read_embedding": lambda adata: read_embedding(adata),
    "stimg.tl.embed_genes": lambda adata: stimg.tl.embed_genes(adata, n_features=3),
    "stimg.tl.predict_expression": lambda adata: stimg.tl.predict_expression(adata, reference=adata, features="spatial"),
    "stimg.tl.retrieve": lambda adata: stimg.tl.retrieve(adata, image_key="spatial", gene_key="spatial"),
    "stimg.tl.align": lambda adata: stimg.tl.align(adata, model=Aligned()),
    "stimg.tl.classify_slides": lambda adata: stimg.tl.classify_slides(adata, model=Classified()),
    "stimg.pp.hold_out_blocks": lambda adata: (stimg.pp.spatial_blocks(adata, n_blocks=4), split(adata)),
    "stimg.pp.spatial_autocorr": lambda adata: [stimg.pp.spatial_autocorr(adata, mode=mode) for mode in ("moran", "geary")],
}


@pytest.mark.parametrize("verb", VERBS)
def test_verbs_write_documented_slots(section, verb):
    adata = section.copy()
    before = slots(adata)
    VERBS[verb](adata)
    new = slots(adata) - before
    if verb == "stimg.pp.hold_out_blocks":
        new -= {'obs["stimg_block"]'}
    assert new
    assert not undocumented(new, verb)


def test_rasterize_writes_documented_slots(section):
    adata = section[section.obs["library_id"] == "D1S1"].copy()
    del adata.obs["library_id"], adata.obsm["stimg_rc"], adata.uns["stimg"]
    adata.uns["spatial"] = {"A": adata.uns["spatial"]["D1S1"]}
    before = slots(adata)
    stimg.pp.rasterize(adata)
    new = slots(adata) - before
    assert {'obs["library_id"]', 'obsm["stimg_rc"]', 'uns["stimg"]["raster"]', 'uns["stimg"]["rasterize"]'} == new
    assert not undocumented(new, "stimg.pp.rasterize")


def test_resample_writes_documented_slots(section):
    new = slots(stimg.pp.resample(section, pixel_um=150.0))
    copied = {name for name in slots(section) if name.startswith(("obs[", "var["))}
    assert {'obs["n_merged"]', 'obsm["stimg_rc"]', 'uns["spatial"]'} <= new
    assert not undocumented(new - copied | {'obs["library_id"]', 'obs["array_row"]'}, "stimg.pp.resample")


def test_upsample_writes_documented_slots(section):
    made = stimg.tl.upsample(section, factor=2, method="nearest", genes=section.var_names[:2])
    copied = {name for name in slots(section) if name.startswith(("obs[", "var["))}
    new = slots(made) - copied | {'obs["array_row"]', 'obs["array_col"]'}
    assert {'layers["stimg_nearest"]', 'layers["stimg_nearest_sd"]', 'obs["stimg_status"]', 'obsm["stimg_rc"]'} <= new
    assert not undocumented(new, "stimg.tl.upsample")


def test_models_write_documented_slots(section, model):
    adata = section.copy()
    before = slots(adata)
    stimg.tl.embed(adata, model=model)
    embedded = slots(adata)
    assert embedded - before == {'obsm["X_stimg_stmae"]', 'uns["stimg"]["X_stimg_stmae"]'}
    assert not undocumented(embedded - before, "stimg.tl.embed")
    stimg.tl.impute_genes(adata, model=model, genes=list(adata.var_names[:3]))
    assert slots(adata) - embedded == {'layers["stimg_stmae"]', 'uns["stimg"]["stimg_stmae"]'}
    assert not undocumented(slots(adata) - embedded, "stimg.tl.impute_genes")
    assert np.isnan(adata.layers["stimg_stmae"][:, 3:]).all()


@pytest.mark.parametrize("kind", ["xenium", "points", "sdata", "tiles"])
def test_new_tables_hold_documented_slots(kind):
    if kind == "sdata":
        table = stimg.datasets.simulate(technology="visium", shape=(8, 8), n_genes=20, rng=0, as_sdata=True).tables["table"]
        assert not undocumented(slots(table) - {'uns["spatialdata_attrs"]'}, "stimg.datasets") - {'obs["region"]', 'obs["instance_id"]'}
        return
    if kind == "tiles":
        sdata = stimg.datasets.simulate(technology="visium", shape=(8, 8), n_genes=20, image=True, rng=0, as_sdata=True)
        stimg.pp.plan_tiles(sdata, tile_um=112, mpp=0.5, around="grid", min_tissue=0.2)
        (name,) = set(sdata.tables) - {"table"}
        assert 'obs["tissue"]' in slots(sdata.tables[name])
        assert not undocumented(slots(sdata.tables[name]) - {'uns["spatialdata_attrs"]'}, "stimg.pp.plan_tiles")
        return
    if kind == "xenium":
        adata = stimg.datasets.simulate(technology="xenium", shape=(10, 10), n_genes=20, rng=0)
        assert 'obs["cell_type"]' in slots(adata)
        assert not undocumented(slots(adata), "stimg.datasets")
        return
    sdata = stimg.datasets.simulate(technology="xenium", shape=(10, 10), n_genes=20, rng=0, as_sdata=True)
    known = set(sdata.tables)
    (points,) = sdata.points
    stimg.pp.rasterize_points(sdata, points_key=points, pixel_um=20.0, mpp=0.5, coordinate_system="D1S1")
    (name,) = set(sdata.tables) - known
    new = slots(sdata.tables[name]) - {'uns["spatialdata_attrs"]'}
    assert 'var["control"]' in new
    assert not undocumented(new, "stimg.pp.rasterize_points")


def test_a_slot_that_is_not_listed_is_found():
    assert undocumented({'obs["stimg_rc"]'}, "stimg.pp.rasterize") == {'obs["stimg_rc"]'}
    assert undocumented({'obsm["stimg_rc"]'}, "stimg.tl.embed") == {'obsm["stimg_rc"]'}
    assert not undocumented({'obsm["X_stimg_other"]'}, "stimg.tl.embed")


def test_names_that_models_give_are_those_listed():
    assert any(pattern.fullmatch(f'obsm["{keys.embedding_key("stmae")}"]') for pattern, _ in documented())
    assert any(pattern.fullmatch(f'layers["{keys.layer_key("stmae")}"]') for pattern, _ in documented())
