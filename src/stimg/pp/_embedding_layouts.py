"""Reading embeddings of tiles as other tools leave them: TRIDENT and HEST (HDF5), LazySlide (SpatialData), AnnData."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

LAYOUTS = ("trident", "hest", "lazyslide", "anndata")
KNOWN = f"Known layouts: {', '.join(LAYOUTS)}. Pass `layout=`, or bring the file to one of them."


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of the tiles of one slide.

    Parameters
    ----------
    values
        float32 (n, width).
    names
        Barcodes or names of the observations, (n,); None where there are none.
    corners
        (x, y) of the tiles' upper left corners in pixels of level 0, float64 (n, 2); None where there are none.
    side_px
        Side of a tile in pixels of level 0.
    tile_px
        Side of a tile in pixels as the encoder's transform received it.
    mpp
        µm per pixel of the tile as received, where the file says it.
    slide_mpp
        µm per pixel of level 0, where the file says it.
    """

    values: np.ndarray
    names: np.ndarray | None = None
    corners: np.ndarray | None = None
    side_px: float | None = None
    tile_px: float | None = None
    mpp: float | None = None
    slide_mpp: float | None = None


@contextmanager
def _readable(path: Path, what: str) -> Iterator[None]:
    """Say of a file that cannot be opened that it is damaged or of another kind."""
    try:
        yield
    except (OSError, RuntimeError) as err:
        said = str(err).splitlines()[0] if str(err) else type(err).__name__
        raise ValueError(
            f"{path} cannot be read as {what} ({said}). It is damaged, was not written to its end, or is of another kind: copy it again."
        ) from err


def read_embeddings(path: Path, layout: str | None, *, features_key: str | None = None) -> tuple[Embeddings, str]:
    """Return the embeddings in ``path``, and the layout that was found.

    Raises
    ------
    FileNotFoundError
        Where there is no such file.
    KeyError
        Where the file lacks a part of its layout.
    ValueError
        For a damaged file, an unknown layout, lengths that differ, or values that are no numbers.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}. Check the path of the embeddings.")
    layout = layout or _layout_of(path)
    found = READERS[layout](path, features_key)
    values, n = found.values, len(found.values)
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(f"{path} holds features of shape {values.shape}; wanted (tiles, width), at least one of each.")
    for name, other in (("names", found.names), ("corners", found.corners)):
        if other is not None and len(other) != n:
            raise ValueError(
                f"{path} holds {n} embeddings and {len(other)} {name}. It was not written to its end: copy or compute it again."
            )
    return found, layout


def _layout_of(path: Path) -> str:
    """Return the layout of a file by what stands in it."""
    if path.is_dir():
        import zarr

        with _readable(path, "zarr"):
            try:
                group = zarr.open_group(path, mode="r")
            except (KeyError, ValueError) as err:  # what zarr raises for a folder without metadata depends on its version
                raise OSError(str(err)) from err
            if "tables" in group:
                return "lazyslide"
            if group.attrs.get("encoding-type") == "anndata":
                return "anndata"
            names = sorted(group)
        raise ValueError(f"{path} is a zarr folder of {names}, neither a SpatialData nor an AnnData. {KNOWN}")
    import h5py

    with _readable(path, "HDF5"), h5py.File(path, "r") as file:
        if file.attrs.get("encoding-type") == "anndata" or {"X", "obs"} <= set(file):
            return "anndata"
        if "embeddings" in file:
            return "hest"
        if {"features", "coords"} <= set(file):
            return "trident"
        names = sorted(file)
    raise ValueError(f"{path} holds {names}. {KNOWN}")


def _dataset(file: Any, names: tuple[str, ...], path: Path) -> str:
    for name in names:
        if name in file:
            return name
    raise KeyError(f"{path} has no dataset {names[0]!r} (found {sorted(file)}). {KNOWN}")


def _numbers(values: Any, path: Path) -> np.ndarray:
    values = np.asarray(values)
    if values.dtype.kind not in "iuf":
        raise ValueError(f"{path} holds features of dtype {values.dtype}; wanted numbers.")
    return values.astype(np.float32)


def _texts(values: Any) -> np.ndarray:
    flat = np.asarray(values).reshape(-1)
    return np.asarray([v.decode() if isinstance(v, bytes) else str(v) for v in flat], dtype=object)


def _number(attrs: Mapping[str, Any], name: str) -> float | None:
    """Return an attribute as a number above zero; None where it is missing, or the text "None" that TRIDENT writes."""
    value = attrs.get(name)
    if value is None or (isinstance(value, (str, bytes)) and _texts([value])[0] in ("None", "")):
        return None
    number = float(np.asarray(value).reshape(-1)[0])
    return number if np.isfinite(number) and number > 0 else None


def _trident(path: Path, features_key: str | None) -> Embeddings:
    import h5py

    with _readable(path, "HDF5"), h5py.File(path, "r") as file:
        features = file[_dataset(file, (features_key or "features",), path)]
        coords = file[_dataset(file, ("coords",), path)]
        attrs = dict(coords.attrs)
        values, corners = _numbers(features[()], path), np.asarray(coords[()], dtype=np.float64)
    if values.ndim == 3 and len(values) == 1:  # some versions keep the batch axis
        values = values[0]
    side, tile, wanted = _number(attrs, "patch_size_level0"), _number(attrs, "patch_size"), _number(attrs, "target_magnification")
    return Embeddings(values, None, corners, side, tile, None if wanted is None else 10.0 / wanted)


def _hest(path: Path, features_key: str | None) -> Embeddings:
    import h5py

    with _readable(path, "HDF5"), h5py.File(path, "r") as file:
        values = _numbers(file[_dataset(file, (features_key or "embeddings",), path)][()], path)
        names = _texts(file[_dataset(file, ("barcodes", "barcode"), path)][()])
        corners = np.asarray(file["coords"][()], dtype=np.float64).reshape(-1, 2) if "coords" in file else None
    return Embeddings(values, names, corners)


def _anndata(path: Path, features_key: str | None) -> Embeddings:
    import anndata

    with _readable(path, "AnnData"):
        adata = anndata.read_zarr(path) if path.is_dir() else anndata.read_h5ad(path)
    if features_key is not None and features_key not in adata.obsm:
        raise KeyError(
            f"{path}: obsm[{features_key!r}] is missing (found {sorted(adata.obsm)}). Pass another `features_key=`, or None for X."
        )
    values = _numbers(_dense(adata.X if features_key is None else adata.obsm[features_key]), path)
    spec = adata.uns.get("tile_spec")
    if spec is None or "spatial" not in adata.obsm:
        return Embeddings(values, _texts(adata.obs_names))
    corners = np.asarray(adata.obsm["spatial"], dtype=np.float64)[:, :2]
    return _with_spec(values, corners, dict(spec), dict(adata.uns.get("slide_properties", {})))


def _lazyslide(path: Path, features_key: str | None) -> Embeddings:
    import spatialdata

    with _readable(path, "SpatialData"):
        sdata = spatialdata.read_zarr(path, selection=("shapes", "tables"))
    known = {name: table for name, table in sdata.tables.items() if table.uns.get("spatialdata_attrs", {}).get("region") is not None}
    if features_key is None:
        if len(known) != 1:
            raise ValueError(
                f"{path} holds {len(known)} tables that annotate tiles: {sorted(known)}. Pass `features_key=`, the name of one."
            )
        features_key = next(iter(known))
    if features_key not in known:
        raise KeyError(f"{path}: no table {features_key!r} annotates tiles (found {sorted(known)}). Pass another `features_key=`.")
    table = known[features_key]
    attrs = table.uns["spatialdata_attrs"]
    region = attrs["region"] if isinstance(attrs["region"], str) else next(iter(attrs["region"]))
    tiles = sdata.shapes[region]
    at = (tiles["tile_id"] if "tile_id" in tiles else tiles.index.to_series()).to_numpy()
    order = {tile: i for i, tile in enumerate(at)}
    wanted = table.obs[attrs["instance_key"]].to_numpy()
    lost = [tile for tile in wanted if tile not in order]
    if lost:
        raise ValueError(
            f"{path}: {len(lost)} of {len(wanted)} rows of table {features_key!r} annotate no tile of {region!r}. Write the file again."
        )
    bounds = tiles.geometry.bounds.to_numpy()[[order[tile] for tile in wanted]]
    spec = {**dict(sdata.attrs.get("tile_spec", {})).get(region, {}), "base_width": float(np.median(bounds[:, 2] - bounds[:, 0]))}
    return _with_spec(_numbers(_dense(table.X), path), bounds[:, :2], spec, dict(sdata.attrs.get("slide_properties", {})))


def _with_spec(values: np.ndarray, corners: np.ndarray, spec: Mapping[str, Any], slide: Mapping[str, Any]) -> Embeddings:
    """Return embeddings with the scale that a tile specification of wsidata states."""
    width, down = _number(spec, "width"), _number(spec, "base_downsample")
    side = _number(spec, "base_width") or (float(int(width * down)) if width and down else None)
    return Embeddings(values, None, corners, side, width, _number(spec, "mpp"), _number(slide, "mpp"))


def _dense(values: Any) -> np.ndarray:
    if values is None:
        raise ValueError("the table has no X. Pass `features_key=`, the name of the slot that holds the features.")
    return values.toarray() if hasattr(values, "toarray") else np.asarray(values)


READERS: dict[str, Callable[[Path, str | None], Embeddings]] = {
    "trident": _trident,
    "hest": _hest,
    "lazyslide": _lazyslide,
    "anndata": _anndata,
}
