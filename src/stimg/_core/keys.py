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
FOLD = "stimg_fold"
BLOCK = "stimg_block"
CHANNEL = "stimg_channel"
CHANNEL_ORDER = "stimg_channel_order"
COLOUR = "X_stimg_colour"
TILES = "tiles"
CHECK_SLIDE = "check_slide"
MORAN = "moranI"
GEARY = "gearyC"
STATUS = "stimg_status"
"""``obs``: whether an observation was measured, imputed or invented."""


def embedding_key(model: str) -> str:
    """Name of the ``obsm`` slot that holds the embedding of ``model``."""
    return f"X_stimg_{model}"


def tiles_key(key: str = TILES) -> str:
    """Name of the ``obsm`` slot that holds the tiles planned under ``uns["stimg"][key]``."""
    return f"stimg_{key}"


def layer_key(model: str) -> str:
    """Name of the ``layers`` slot that holds the values predicted by ``model``."""
    return f"stimg_{model}"


class Slot(NamedTuple):
    """One documented slot: where it is, who writes it, what it holds."""

    where: str
    writer: str
    holds: str


_READERS, _TABLES = "stimg.datasets", "stimg.pp.resample, stimg.pp.rasterize_points, stimg.tl.upsample"
_GRID = "stimg.pp.plan_tiles of a grid"
SLOTS: tuple[Slot, ...] = (
    Slot(
        f'obs["{LIBRARY}"]',
        f"{_READERS}, stimg.pp.rasterize where there is one library, {_TABLES}, {_GRID}",
        "one capture area, categorical",
    ),
    Slot(f'obs["{DONOR}"]', _READERS, "donor of the section, categorical"),
    Slot('obs["section"]', "stimg.datasets.simulate", "number of the section among those of its donor"),
    Slot(
        'obs["array_row"], obs["array_col"]',
        f"{_READERS}, {_TABLES}, {_GRID}",
        "array indices (Visium: Space Ranger's, array_col = 2 x column + row parity)",
    ),
    Slot('obs["in_tissue"]', _READERS, "1 under tissue, as Space Ranger writes it; where the source says so"),
    Slot('obs["label"]', _READERS, "known region or layer, categorical; where the source has any"),
    Slot('obs["domain"]', "stimg.datasets.simulate", "domain of the simulated tissue, categorical"),
    Slot('obs["cell_type"]', "stimg.datasets.simulate of Xenium", "type of the simulated cell, categorical"),
    Slot(f'obs["{BLOCK}"]', "stimg.pp.spatial_blocks", "contiguous spatial block of the observation, categorical"),
    Slot(f'obs["{BLOCK}_border"]', "stimg.pp.spatial_blocks with buffer_um", "True within the buffer of another block"),
    Slot(f'obs["{SPLIT}"]', "stimg.pp.split, stimg.pp.hold_out_blocks", "train, validation, test or buffer, categorical"),
    Slot(f'obs["{FOLD}"]', "stimg.pp.split with n_folds", "int32, number of the fold in which the observation is tested, -1 for none"),
    Slot('obs["n_merged"]', "stimg.pp.resample", "number of observations that contributed to the pixel"),
    Slot(
        'obs["region"], obs["instance_id"], obs["spot_id"]',
        f"stimg.pp.rasterize_points, {_GRID}, stimg.datasets as SpatialData",
        "element and instance of SpatialData that the row annotates",
    ),
    Slot('obs["tissue"]', _GRID, "share of the tile that is tissue, where it was asked for"),
    Slot(f'obsm["{SPATIAL}"]', f"{_READERS}, {_TABLES}, {_GRID}", "float64 (x, y) in full-resolution pixels"),
    Slot(
        f'obsm["{RC}"]',
        f"stimg.pp.rasterize, {_TABLES}",
        "int32 (row, col) on the raster of the observation's library, (-1, -1) where not on it",
    ),
    Slot('obsm["stimg_truth_proportions"]', "stimg.datasets.simulate", "share of each cell type under the observation, a table"),
    Slot(f'obsm["{COLOUR}"]', "stimg.pp.colour_statistics", "float32 optical density of the image around the observation, n_obs x 48"),
    Slot(
        'obsm["stimg_<tiles>"]',
        "stimg.pp.plan_tiles",
        "float64 y, x of the tile's centre in pixels of the image's finest level, then the share of each field outside the image",
    ),
    Slot('obsm["X_stimg_<model>"]', "stimg.tl.embed", "float32 embedding, n_obs x dim; NaN where not on the raster"),
    Slot(
        'obsm["X_<encoder>"]',
        "stimg.tl.embed_image, stimg.pp.read_embedding",
        "float32 features of the image tile around the observation, n_obs x (fields x width)",
    ),
    Slot(
        'obsm["<key>_context"]',
        "stimg.pp.spatial_context",
        "float32 mean of obsm[key] over rings around the observation, n_obs x (rings x columns)",
    ),
    Slot(
        'obsm["X_genes_<encoder>"]',
        "stimg.tl.embed_genes",
        "float32 embedding of the expression of the observation, n_obs x width",
    ),
    Slot('layers["stimg_<model>"]', "stimg.tl.impute_genes", "float32 log(1 + counts per 10,000) of the genes asked for, NaN elsewhere"),
    Slot(
        'layers["stimg_<method>"], layers["stimg_<method>_sd"]',
        "stimg.tl.impute, stimg.tl.upsample",
        "float32 log(1 + counts per 10,000), measured or predicted, and standard deviation of a new measurement, NaN where measured; in a table of its own",
    ),
    Slot(
        f'obs["{STATUS}"]',
        "stimg.tl.impute, stimg.tl.upsample",
        "measured, imputed (a point of the measured lattice) or invented, categorical",
    ),
    Slot(
        'tables["<table_key>_imputed"], shapes["<library>_<table>"]',
        "stimg.tl.impute on SpatialData",
        "the table of measured observations and predicted places, and the circles that it annotates",
    ),
    Slot(
        'tables["<table_key>_upsampled"], shapes["<library>_<table>"]',
        "stimg.tl.upsample on SpatialData",
        "the same on a finer raster, which the table has as its own",
    ),
    Slot(
        'layers["stimg_<head>"], layers["stimg_<head>_lower"], layers["stimg_<head>_upper"]',
        "stimg.tl.predict_expression",
        "float32 predicted log(1 + counts per 10,000) and bounds of conformal intervals, NaN for genes not asked for",
    ),
    Slot(
        'var["stimg_<head>_predictability"]',
        "stimg.tl.predict_expression",
        "float32 Pearson's r of the gene on observations that were left out of the fit, NaN where it is not known",
    ),
    Slot(
        'tables["<head>_<table_key>"]',
        "stimg.tl.predict_expression on SpatialData",
        "the same for genes that were not measured: values in X, a table of its own",
    ),
    Slot(
        'obsm["stimg_retrieval"], obsm["stimg_retrieval_score"]',
        "stimg.tl.retrieve",
        "int64 rows of the reference whose other side is most similar, best first, and float32 similarities, n_obs x k",
    ),
    Slot(
        'obs["stimg_retrieval_rank"], obs["stimg_retrieval_gallery"]',
        "stimg.tl.retrieve where the reference is the data itself",
        "rank of the true partner, and among how many",
    ),
    Slot(
        'obsm["X_stimg_clip_image"], obsm["X_stimg_clip_genes"]',
        "stimg.tl.align",
        "float32 embeddings of image and expression in one space, n_obs x dim",
    ),
    Slot('obs["stimg_pair_score"]', "stimg.tl.align", "cosine of the two embeddings of the observation"),
    Slot(
        'obs["stimg_slide_attention"], obsm["stimg_slide_contribution"]',
        "stimg.tl.classify_slides",
        "float32 weight of the tile in its slide, summing to 1, and a float32 table of what it adds to each class, n_obs x classes",
    ),
    Slot(f'uns["{UNS}"]["stimg_slide"]["table"]', "stimg.tl.classify_slides", "probabilities, a table, slides x classes"),
    Slot(
        'tables["<model>_<table_key>"]',
        "stimg.tl.impute_genes on SpatialData",
        "the same for genes that were not measured, a table of its own",
    ),
    Slot(f'var["{CHANNEL}"]', "stimg.pp.select_genes", "True for the genes chosen as image channels"),
    Slot(f'var["{CHANNEL_ORDER}"]', "stimg.pp.select_genes", "int32 rank of the channel, -1 where not chosen"),
    Slot('var["control"]', "stimg.pp.rasterize_points", "True for control probes and codewords, which are no genes"),
    Slot('var["gene_ids"], var["feature_types"]', _READERS, "Ensembl identifier, kind of feature; where the source has them"),
    Slot(
        'var["category"], var["programme"], var["second_programme"]',
        "stimg.datasets.simulate",
        "what the simulated gene marks, and the gene programmes it belongs to",
    ),
    Slot(
        'tables["<image_key>_tiles"], shapes["<image_key>_squares"]',
        _GRID,
        "a table without genes that annotates the squares of a grid over an image of a SpatialData",
    ),
    Slot(
        'uns["spatial"][<library>]["scalefactors"]["microns_per_pixel"]',
        "stimg.pp.set_mpp",
        'µm per full-resolution pixel, after all that states it was compared; uns["stimg"]["set_mpp"] names the sources',
    ),
    Slot('uns["spatial"][<library>]', f"{_READERS}, {_TABLES}, {_GRID}", "images, scalefactors and metadata, the scverse convention"),
    Slot(f'uns["{UNS}"]["{RASTER}"][<library>]', f"stimg.pp.rasterize, {_TABLES}", "the RasterSpec of the library, as plain values"),
    Slot(f'uns["{UNS}"]["{CHANNELS}"]', "stimg.pp.select_genes", "rule, parameters and hash of the observations it was fitted on"),
    Slot(
        f'uns["{UNS}"]["{SPLIT}"]["manifest"], uns["{UNS}"]["{FOLD}"]["manifest"]', "stimg.pp.split", "the manifest of the split, JSON text"
    ),
    Slot(
        f'uns["{UNS}"]["{CHECK_SLIDE}"]["table"], uns["{UNS}"]["{CHECK_SLIDE}"]["libraries"]',
        "stimg.pp.check_slide",
        "the examination, a table (library, check, status, found, wanted, todo), and the sketch of each slide that is drawn",
    ),
    Slot(f'uns["{MORAN}"]', "stimg.pp.spatial_autocorr", "Moran's I of every gene, a table as squidpy writes it"),
    Slot(f'uns["{GEARY}"]', "stimg.pp.spatial_autocorr", "Geary's C of every gene, a table as squidpy writes it"),
    Slot(
        f'uns["{UNS}"][<key>]',
        "every writer",
        "parameters, version, seed, unit, hashes; <key> is the slot's name, or the verb's where it writes several",
    ),
)
