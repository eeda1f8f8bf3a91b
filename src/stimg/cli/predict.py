"""``stimg predict``: from a slide image and a trained model to predicted genes and a picture."""

import json
import re
import warnings
from argparse import Namespace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stimg._core import keys, validate
from stimg._core.files import replacing
from stimg.cli.slide_image import image_element
from stimg.cli.walk import _quiet, say
from stimg.image.slide import Slide, open_slide

EMBED = "stimg.tl.embed_image"
PICTURED = 4
"""Genes of the picture."""
TOLD = (".*is not a valid key!.*", ".*area_threshold.*")
"""What packages below tell of themselves, which nobody can act on here."""


class Recipe(NamedTuple):
    """How a model's image features are made: the slot and encoder of each, and the tile that all of them are made of."""

    encoders: dict[str, str]
    tile_um: float
    mpp: float
    fields: tuple[float, ...]


def add(commands: Any) -> None:
    """Add the command to the parser."""
    predict = commands.add_parser("predict", help="genes of a slide image without expression, by a trained model")
    predict.add_argument("slide", type=Path, help="whole-slide image: .svs, .tif, .ome.tif, .png, .jpg, ...")
    predict.add_argument(
        "--model", type=Path, required=True, metavar="FOLDER", help="a saved stimg.model.ExpressionHead or stimg.model.ImageGeneCLIP"
    )
    predict.add_argument("--out", type=Path, required=True, metavar="OUT.zarr", help="SpatialData to write")
    predict.add_argument("--overwrite", action="store_true", help="replace it where it exists")
    predict.add_argument(
        "--mpp", type=float, metavar="X", help="µm per pixel of the slide's finest level, where the file does not state it"
    )
    predict.add_argument(
        "--step-um", type=float, metavar="X", help="distance of neighbouring tiles in µm (default: side of the model's tiles)"
    )
    predict.add_argument(
        "--min-tissue",
        type=float,
        default=0.5,
        metavar="X",
        help="least share of a tile that is tissue; 0 takes all (default: %(default)s)",
    )
    predict.add_argument(
        "--genes",
        default="predictable",
        metavar="NAMES",
        help="names with commas, a file with one a line, all, or predictable (default: %(default)s)",
    )
    predict.add_argument(
        "--min-predictability",
        type=float,
        default=0.1,
        metavar="R",
        help="what predictable means: least r on left-out donors (default: %(default)s)",
    )
    predict.add_argument("--coverage", type=float, default=0.9, metavar="C", help="of the intervals; 0 writes none (default: %(default)s)")
    predict.add_argument("--picture", type=Path, metavar="P.png", help="picture to write of the most predictable genes")
    predict.add_argument("--image-mpp", type=float, metavar="X", help="µm per pixel of the image that is kept (default: the finest level)")
    predict.add_argument("--no-image", action="store_true", help="keep no image, only a thumbnail")
    predict.add_argument("--upsample", action="store_true", help="interpolate where the slide is coarser than the model's tiles")
    predict.add_argument("--weights", type=Path, metavar="PATH", help="weights of the image encoder (default: as stimg finds them)")
    predict.add_argument("--batch-size", type=int, default=32, metavar="N", help="tiles at a time (default: %(default)s)")
    predict.add_argument("--workers", type=int, default=0, metavar="N", help="processes that read tiles (default: %(default)s)")
    predict.add_argument("--device", help="cpu, cuda, ... (default: a GPU where there is one)")


def predict(options: Namespace) -> int:
    """Do the command."""
    out, picture = options.out, options.picture
    if out.suffix != ".zarr":
        raise ValueError(f"--out {out} ends in {out.suffix!r}; wanted .zarr.")
    if picture is not None and picture.suffix.lower() != ".png":
        raise ValueError(f"--picture {picture} ends in {picture.suffix!r}; wanted .png.")
    for path in (each for each in (out, picture) if each is not None):
        if path.exists() and not options.overwrite:
            raise FileExistsError(f"{path} exists already. Choose another path, or pass --overwrite to replace it.")
    with open_slide(options.slide, mpp=options.mpp) as slide:
        if slide.mpp is None:
            raise ValueError(
                f"{options.slide} does not state how many µm a pixel measures, without which a tile has no size. Pass --mpp with µm per pixel of its finest "
                "level: about 0.25 for a scan at 40x, 0.5 at 20x."
            )
        with _quiet(), warnings.catch_warnings():  # loads torch, which takes a while
            for told in TOLD:
                warnings.filterwarnings("ignore", message=told)
            _predict(slide, options)
    return 0


def _predict(slide: Slide, options: Namespace) -> None:
    out, picture = options.out, options.picture
    head = load_head(options.model)
    recipe = recipe_of(head)
    genes, coverage = chosen_genes(head, options.genes, options.min_predictability), options.coverage or None
    size = slide.levels[0]
    say(f"slide      {size.width} x {size.height} px of {slide.mpp:.4g} µm (by {slide.mpp_source}), {len(slide.levels)} levels")
    sdata, name = _tiles(slide, recipe, options)
    table = sdata.tables[f"{name}_tiles"]
    say(f"tiles      {table.n_obs:,} of {recipe.tile_um:g} µm at {recipe.mpp:g} µm per pixel")
    _embed(table, recipe, options)
    from stimg import tl

    tl.predict_expression(
        sdata,
        model=head,
        genes=genes,
        coverage=coverage,
        table_key=f"{name}_tiles",
        library_key=keys.LIBRARY,
        key_added=f"{name}_genes",
    )
    say(f"genes      {len(genes):,} predicted by {head.identity()['head']}")
    if not options.no_image:
        sdata.images[name] = image_element(slide, options.image_mpp)
    with replacing(out, overwrite=options.overwrite) as temporary:
        sdata.write(temporary)
        if picture is not None:
            _picture(sdata.tables[f"{name}_genes"], picture, overwrite=options.overwrite)
    say(f"\nWritten to {out.resolve()}" + (f"; look at {picture.resolve()}" if picture is not None else ""))


def load_head(folder: Path) -> Any:
    """Return the head of a folder; of an ImageGeneCLIP its decoder, which knows neither predictability nor intervals."""
    from stimg import model

    record = folder / "model.json"
    if not record.is_file():
        raise FileNotFoundError(f"{record} is missing. Pass the folder that `save` of a stimg.model.ExpressionHead or ImageGeneCLIP wrote.")
    try:
        kind = json.loads(record.read_text(encoding="utf-8")).get("class")
    except (ValueError, AttributeError) as err:
        raise ValueError(f"{record} is damaged ({err}). Save the model again, or copy the folder anew.") from err
    if kind == "ExpressionHead":
        return model.ExpressionHead.load(folder)
    if kind == "ImageGeneCLIP":
        return model.ExpressionHead.of_model(model.ImageGeneCLIP.load(folder))
    raise ValueError(f"{folder} holds a {kind}; wanted an ExpressionHead or an ImageGeneCLIP, which predict genes from images.")


def recipe_of(head: Any) -> Recipe:
    """Return how the features of a head are made; a ValueError where that is not known, or cannot be done here."""
    known = head.recipe if head.network is None else head.network.facts["sources"]
    encoders, tiles = {}, {}
    read = head.options.features if head.network is None else head.network.image_keys
    for key in read:
        record = known.get(key, {})
        numbers = {name: np.ravel(record[name]).astype(float).tolist() for name in ("tile_um", "mpp", "fields") if name in record}
        if (key != keys.TILES and ("encoder" not in record or record.get("verb", EMBED) != EMBED)) or len(numbers) < 3:
            raise ValueError(
                f"the model reads obsm[{key!r}], of which it does not know that it was made by {EMBED} (known: {sorted(record)}), so it cannot be made here. "
                "Make the features in Python and call stimg.tl.predict_expression, or fit the model on features of stimg.tl.embed_image."
            )
        encoders[key], tiles[key] = str(record.get("encoder", "")), (numbers["tile_um"][0], numbers["mpp"][0], tuple(numbers["fields"]))
    if len(set(tiles.values())) != 1:
        raise ValueError(
            f"the model reads features of different tiles, {tiles}; wanted one tile for all. Call stimg.tl.predict_expression in Python."
        )
    return Recipe({key: name for key, name in encoders.items() if key != keys.TILES}, *next(iter(tiles.values())))


def chosen_genes(head: Any, wanted: str, least: float) -> list[str]:
    """Return the genes that ``--genes`` means."""
    if wanted == "all":
        return list(head.genes)
    if wanted == "predictable":
        worth = head.predictability
        if worth.isna().all():
            return list(head.genes)  # nothing is known of any
        kept = worth[worth >= least].sort_values(ascending=False, kind="stable").index.tolist()
        if not kept:
            raise ValueError(
                f"no gene of the model has a predictability of {least:g} or more; the best is {worth.idxmax()} with {worth.max():.2f}. Lower "
                "--min-predictability, or name genes with --genes."
            )
        return kept
    listed = Path(wanted)
    names = listed.read_text(encoding="utf-8").split() if listed.is_file() else [name.strip() for name in wanted.split(",") if name.strip()]
    names = list(dict.fromkeys(names))
    validate.genes(names, head.genes, what="genes of --genes", todo="The model predicts its own genes alone; `all` takes all of them.")
    if not names:
        raise ValueError(f"--genes {wanted} names no gene; wanted at least one.")
    return names


def _tiles(slide: Slide, recipe: Recipe, options: Namespace) -> tuple[Any, str]:
    """Return a SpatialData with the squares and the table of a grid of tiles, on a raster, and the name of the slide."""
    from spatialdata import SpatialData

    from stimg import pp

    sdata = SpatialData()
    name = re.sub(r"[^0-9A-Za-z_.-]+", "_", options.slide.name.split(".")[0]).strip("_.-") or "slide"
    pp.plan_tiles(
        sdata,
        tile_um=recipe.tile_um,
        mpp=recipe.mpp,
        fields=recipe.fields,
        around="grid",
        step_um=options.step_um,
        image=slide,
        image_key=name,
        min_tissue=options.min_tissue,
        upsample=options.upsample,
    )
    pp.rasterize(sdata.tables[f"{name}_tiles"], lattice="square")
    return sdata, name


def _embed(table: Any, recipe: Recipe, options: Namespace) -> None:
    from stimg import tl

    for key, encoder in recipe.encoders.items():
        tl.embed_image(
            table,
            encoder=encoder,
            path=options.weights,
            key_added=key,
            batch_size=options.batch_size,
            num_workers=options.workers,
            device=options.device,
        )
        say(f"features   obsm[{key!r}], {table.obsm[key].shape[1]:,} columns of {encoder}")


def _picture(table: Any, path: Path, *, overwrite: bool) -> None:
    import matplotlib.pyplot as plt

    from stimg import pl

    predicted = next(key for key, record in table.uns[keys.UNS].items() if record.get("verb") == "stimg.tl.predict_expression")
    figure: Any = pl.genes(table, predicted=predicted, n=min(PICTURED, table.n_vars), image=True, return_fig=True)
    try:
        with replacing(path, overwrite=overwrite) as temporary:
            figure.savefig(temporary, dpi=110, facecolor="white", bbox_inches="tight", format="png")
    finally:
        plt.close(figure)
