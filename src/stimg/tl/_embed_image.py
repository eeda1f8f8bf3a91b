"""Features of the image tile around each observation."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stimg._core import keys, provenance, validate
from stimg.data.ledger import remember
from stimg.data.tables import table_of

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from stimg.image.spec import TileSpec
    from stimg.nn.image.encoder import ImageEncoder
    from stimg.zoo.card import ImageCard

logger = logging.getLogger(__name__)
PRECISIONS = ("32", "bf16")


def embed_image(
    data: "AnnData | SpatialData",
    *,
    encoder: Any = "efficientnet_lite0",
    path: str | Path | None = None,
    image: Any = None,
    key_added: str | None = None,
    tiles_key: str = keys.TILES,
    batch_size: int = 32,
    num_workers: int = 0,
    device: str | None = None,
    precision: str = "32",
    mpp_tolerance: float = 0.05,
    offline: bool | None = None,
    table_key: str = "table",
) -> None:
    """Write ``obsm["X_<encoder>"]`` (float32, n_obs x (fields x width)): features of the planned tiles of each observation.

    Parameters
    ----------
    data
        Observations with planned tiles (:func:`stimg.pp.plan_tiles`); an AnnData, or a SpatialData, whose image elements are then read too.
    encoder
        Name of a card (:func:`stimg.zoo.list`), a :class:`stimg.nn.image.ImageEncoder`, or a trained ``stimg.model.ImageMAE``.
    path, offline
        Where the weights are; see :func:`stimg.nn.image.load_image_encoder`. With ``encoder="image_mae"`` the folder of a saved model.
    image
        Image of each library, where it is another one than planned.
    key_added
        Slot to write; ``"X_<name of the card>"`` where None.
    tiles_key
        Name of the plan in ``uns["stimg"]``.
    batch_size
        Observations at a time.
    num_workers
        Processes that read tiles; 0 reads in this one. The result is the same.
    device
        As torch names it; None: a GPU where there is one, else the CPU.
    precision
        ``"32"``, or ``"bf16"``: bfloat16 where torch's autocast uses it, twice to four times as fast on a GPU. What is written is float32.
    mpp_tolerance
        Largest relative difference between the planned µm per pixel and those of the card.
    table_key
        Table of a SpatialData.

    Raises
    ------
    KeyError
        Where tiles are not planned.
    ValueError
        Where the plan has another scale or size than the encoder expects; the message gives the call that plans them right. For NaN features.
    ImportError, FileNotFoundError, PermissionError
        Where the package or the weights are missing, or access to them was not granted.

    Notes
    -----
    Several fields of a plan are embedded one by one and stand beside each other, the first field first. The scale of a card is compared with that of
    the field of relative side 1: wider fields are coarser by intent. Nothing is fitted here. A model of stimg brings the record of what it has seen.

    Examples
    --------
    >>> import stimg
    >>> adata = stimg.datasets.simulate(technology="visium", shape=(4, 4), n_genes=10, image=True, rng=0)
    >>> stimg.pp.plan_tiles(adata, tile_um=112, mpp=4.0)  # doctest: +SKIP
    >>> stimg.tl.embed_image(adata)  # doctest: +SKIP
    """
    from stimg.data.tile_plan import tile_plan

    adata = table_of(data, table_key)
    batch_size, num_workers = validate.whole(batch_size, "batch_size"), validate.whole(num_workers, "num_workers", least=0)
    validate.one_of(precision, PRECISIONS, "precision")
    spec = tile_plan(adata, tiles_key).spec
    if isinstance(encoder, str):
        _check_card(encoder, spec, mpp_tolerance)  # before weights are read
    network, ledger = _network(encoder, path, offline)
    _check_plan(network.card, spec, mpp_tolerance)
    values = _embed(data, network, image, tiles_key, table_key, batch_size, num_workers, device, precision)
    validate.finite(values, f"the features of {network.card.title}", todo='Use `precision="32"`, or check the weights.')
    key = key_added or f"X_{network.card.name}"
    adata.obsm[key] = values
    provenance.record(
        adata,
        key,
        verb="stimg.tl.embed_image",
        unit="embedding",
        encoder=network.card.name,
        weights=network.source,
        weights_hash=network.weights_hash(),
        licence=network.card.licence,
        commercial=network.card.commercial,
        n_features=network.n_features,
        tile_um=spec.tile_um,
        mpp=spec.mpp,
        fields=list(spec.fields),
        size_px=spec.size_px,
        upsample=spec.upsample,
        precision=precision,
        tiles_key=tiles_key,
    )
    remember(adata, key, *ledger)
    logger.info("Wrote adata.obsm[%r]: %d observations x %d features of %s", key, *values.shape, network.card.title)


def _check_card(name: str, spec: "TileSpec", tolerance: float) -> None:
    from stimg.zoo.image import IMAGE

    _check_plan(IMAGE[name], spec, tolerance)


def _check_plan(card: "ImageCard", spec: "TileSpec", tolerance: float) -> None:
    """Raise a ValueError with the call that plans tiles as the card wants them."""
    validate.positive(tolerance, "mpp_tolerance")
    mpp = card.mpp
    if mpp is not None and not card.accepts_mpp(spec.mpp, tolerance=tolerance):
        said = f"{mpp:g}" + (f" (or {', '.join(f'{m:g}' for m in card.other_mpp)})" if card.other_mpp else "")
        size = card.size_px or spec.size_px
        raise ValueError(
            f"the tiles are planned at {spec.mpp:g} µm per pixel; {card.title} expects {said}. Run `stimg.pp.plan_tiles(..., tile_um={size * mpp:g}, mpp={mpp:g})`, "
            "with `upsample=True` where the slide is coarser, or pass a larger `mpp_tolerance=`."
        )
    if not card.accepts_size(spec.size_px):
        what = f"{card.size_px} px" + (f" or a multiple of {card.multiple_of}" if card.multiple_of else "")
        raise ValueError(
            f"the tiles are planned with {spec.size_px} px ({spec.tile_um:g} µm at {spec.mpp:g}); {card.title} takes {what}. Run "
            f"`stimg.pp.plan_tiles(..., tile_um={card.size_px * spec.mpp:g}, mpp={spec.mpp:g})`."  # type: ignore[operator]
        )


def _network(encoder: Any, path: str | Path | None, offline: bool | None) -> "tuple[ImageEncoder, list[Any]]":
    """Return an encoder, and the records of what it has seen."""
    from stimg.nn.image.encoder import ImageEncoder, load_image_encoder

    if isinstance(encoder, str):
        if encoder != "image_mae":
            return load_image_encoder(encoder, path=path, offline=offline), []
        if path is None:
            raise ValueError(
                "'image_mae' has no weights of its own. Pass `path=`, the folder of a saved `stimg.model.ImageMAE`, or the model itself."
            )
        from stimg.model import ImageMAE

        encoder = ImageMAE.load(str(path))
    if isinstance(encoder, ImageEncoder):
        return encoder, list(getattr(encoder, "ledger", []))
    if hasattr(encoder, "get_image_encoder"):
        return encoder.get_image_encoder(), list(encoder.ledger)
    raise TypeError(
        f"encoder is a {type(encoder).__name__}; wanted the name of a card, an ImageEncoder, or a trained stimg.model.ImageMAE."
    )


def _embed(
    data: "AnnData | SpatialData",
    network: "ImageEncoder",
    image: Any,
    tiles_key: str,
    table_key: str,
    batch_size: int,
    num_workers: int,
    device: str | None,
    precision: str,
) -> np.ndarray:
    """Return the features of all fields beside each other, float32 (n_obs, fields x width)."""
    import torch
    from torch.utils.data import DataLoader

    from stimg.data.tiles import TileDataset, collate

    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dataset = TileDataset(data, image=image, key=tiles_key, table_key=table_key)
    loader = DataLoader(
        dataset,
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=where.type == "cuda",
        generator=torch.Generator(),  # workers are seeded from it; the global one is left alone
    )
    before, training = next((p.device for p in network.parameters()), torch.device("cpu")), network.training
    out: np.ndarray | None = None
    n_obs = table_of(data, table_key).n_obs
    seen = np.zeros(n_obs, dtype=bool)
    network.to(where).eval()
    try:
        with torch.inference_mode(), torch.autocast(where.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            for batch in loader:
                tiles = batch["image"].to(where, non_blocking=True)
                n, fields = tiles.shape[:2]
                features = network(tiles.flatten(0, 1)).reshape(n, -1).cpu().numpy()
                if out is None:
                    out = np.zeros((n_obs, fields * network.n_features), dtype=np.float32)
                rows = batch["row"].numpy()
                out[rows], seen[rows] = features, True
    finally:
        network.to(before).train(training)
    if out is None or not seen.all():
        raise ValueError(f"{int((~seen).sum())} of {n_obs} observations have no planned tile. Run `stimg.pp.plan_tiles` again.")
    return out
