"""Every slot name that stimg reads or writes, once. The documentation's page of outputs is generated from ``SLOTS``."""

from typing import NamedTuple

SPATIAL = "spatial"
"""``obsm``: (x, y) in full-resolution pixels, the scverse convention; never changed by stimg."""
RC = "stimg_rc"
"""``obsm``: int32 (row, col) of each observation on its library's raster."""
UNS = "stimg"
RASTER = "raster"
CHANNELS = "channels"
LIBRARY = "library_id"
DONOR = "donor"
SPLIT = "stimg_split"
BLOCK = "stimg_block"
CHANNEL = "stimg_channel"
CHANNEL_ORDER = "stimg_channel_order"
MORAN = "moranI"
GEARY = "gearyC"
PANEL_COMPLETED = "imputed"


def embedding_key(model: str) -> str:
    """Name of the ``obsm`` slot that holds the embedding of ``model``."""
    return f"X_stimg_{model}"


def layer_key(model: str) -> str:
    """Name of the ``layers`` slot that holds the values predicted by ``model``."""
    return f"stimg_{model}"


class Slot(NamedTuple):
    """One documented slot: where it is, who writes it, what it holds."""

    where: str
    writer: str
    holds: str


SLOTS: tuple[Slot, ...] = (
    Slot(f'obs["{LIBRARY}"]', "stimg.datasets, stimg.pp.rasterize", "one capture area"),
    Slot(f'obs["{DONOR}"]', "stimg.datasets", "donor of the section"),
    Slot(f'obs["{BLOCK}"]', "stimg.pp.spatial_blocks", "contiguous spatial block of the observation"),
    Slot(f'obs["{BLOCK}_border"]', "stimg.pp.spatial_blocks", "True within the buffer of another block"),
    Slot(f'obs["{SPLIT}"]', "stimg.pp.hold_out_blocks", "train, test or buffer"),
    Slot(f'obsm["{SPATIAL}"]', "readers", "(x, y) in full-resolution pixels"),
    Slot(f'obsm["{RC}"]', "stimg.pp.rasterize", "int32 (row, col) on the raster of the observation's library"),
    Slot(f'uns["{UNS}"]["{RASTER}"]', "stimg.pp.rasterize", "one RasterSpec per library, as plain values"),
    Slot(f'var["{CHANNEL}"]', "stimg.pp.select_genes", "True for the genes chosen as image channels"),
    Slot(f'var["{CHANNEL_ORDER}"]', "stimg.pp.select_genes", "rank of the channel, -1 where not chosen"),
    Slot(f'uns["{UNS}"]["{CHANNELS}"]', "stimg.pp.select_genes", "rule, parameters and hash of the observations it was fitted on"),
    Slot(f'uns["{MORAN}"]', "stimg.pp.spatial_autocorr", "Moran's I of every gene, a table as squidpy writes it"),
    Slot(f'uns["{GEARY}"]', "stimg.pp.spatial_autocorr", "Geary's C of every gene, a table as squidpy writes it"),
    Slot('obsm["X_stimg_<model>"]', "stimg.tl.embed", "float32 embedding, n_obs x dim"),
    Slot('layers["stimg_<model>"]', "stimg.tl.impute_genes", "float32 predicted values; the unit stands in the provenance record"),
    Slot(f'uns["{UNS}"]["<key>"]', "every verb", "parameters, version, seed, unit, hashes of what was read"),
)
