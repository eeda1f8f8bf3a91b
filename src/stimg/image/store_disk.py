"""A raster store in a folder: an AnnData in zarr format 3 whose ``X`` carries, beside the CSR arrays, the arrays of the blocks.

``anndata.read_zarr`` reads the CSR arrays and passes over the group ``X/raster_blocks``. The arrays in there are one uncompressed chunk
each, so that the chunk file is the bytes of the array and can be mapped into memory: windows then read only the pages they touch.
"""

import json
import os
import sys
import uuid
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import zarr

from stimg._core import files, keys
from stimg.image.blocks import Blocks
from stimg.image.request import Request
from stimg.image.store import RasterStore

VERSION = 1
GROUP = "raster_blocks"
"""Name of the group inside ``X``."""
CHUNK = 1 << 20
"""Elements in a chunk of the CSR arrays."""
_PIECE = 1 << 22


def save(
    store: RasterStore, path: Path, *, overwrite: bool, obs: Any, var: Any, obsm: Mapping[str, np.ndarray], uns: Mapping[str, Any]
) -> None:
    """Write ``store`` to the folder ``path``, whole or not at all.

    The folder is an AnnData (zarr format 3) with one observation per occupied lattice point, in raster order: ``X`` (CSR; observations on
    one lattice point are added up), ``obsm["stimg_rc"]``, names and columns of the first observation of each lattice point.

    Parameters
    ----------
    store
        What is written.
    path
        Folder; its name usually ends in ``.zarr``.
    overwrite
        Replace what stands there; a FileExistsError otherwise.
    obs, var
        Names (any sequence of strings) or a DataFrame for the rows and columns of the table that the store was made from; by default
        ``"<row>_<column>"`` and ``"gene_<i>"``. Columns may be numbers, booleans, strings or categories without missing values.
    obsm
        Arrays with one row per observation.
    uns
        Numbers, strings, arrays and nested dicts of them.
    """
    matrix, rc, rows = store.to_csr()
    obs_frame = _frame(obs, store.n_obs, "obs")
    var_frame = _frame(var, store.n_vars, "var")
    if obs_frame is None:
        obs_frame = pd.DataFrame(index=[f"{r}_{c}" for r, c in rc.tolist()])
    else:
        obs_frame = obs_frame.iloc[rows]
    if var_frame is None:
        var_frame = pd.DataFrame(index=[f"gene_{i}" for i in range(store.n_vars)])
    arrays = {keys.RC: rc}
    for name, array in obsm.items():
        if np.shape(array)[:1] != (store.n_obs,):
            raise ValueError(f"obsm[{name!r}] has shape {np.shape(array)}; wanted {store.n_obs} rows, one per observation.")
        arrays.setdefault(name, np.asarray(array)[rows])
    index = np.full(store.shape, -1, dtype=np.int32)
    index[rc[:, 0], rc[:, 1]] = np.arange(len(rc), dtype=np.int32)
    parts = store._blocks if store._resident else Blocks(*(np.asarray(part[...]) for part in store._blocks))
    raw = {**parts._asdict(), "index": index, "source_rows": store.source_rows[rows]}
    with files.replacing(path, overwrite=overwrite, directory=True) as temporary:
        root = zarr.open_group(str(temporary), mode="w", zarr_format=3)
        root.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        X = _group(root, "X", "csr_matrix", "0.1.0", shape=list(matrix.shape))
        for name in ("data", "indices", "indptr"):
            _array(X, name, getattr(matrix, name))
        _write_frame(root, "obs", obs_frame)
        _write_frame(root, "var", var_frame)
        _write_mapping(root, "obsm", arrays)
        _write_mapping(root, "uns", uns)
        for name in ("varm", "obsp", "varp", "layers"):
            _write_mapping(root, name, {})
        inner = X.create_group(GROUP)
        described: dict[str, Any] = {}
        for name, array in raw.items():
            array = np.ascontiguousarray(array)
            _array(inner, name, array, raw=True)
            described[name] = {"shape": list(array.shape), "dtype": array.dtype.str, "crc32": _crc(array)}
        inner.attrs.update(
            {
                "stimg-raster-store": VERSION,
                "token": uuid.uuid4().hex,
                "shift": store._shift,
                "max_value": store.max_value,
                "source_dtype": store.source_dtype.str,
                "arrays": described,
            }
        )


def open_store(path: Path, *, mode: str, verify: bool) -> RasterStore:
    """Return the store in the folder ``path``.

    Parameters
    ----------
    path
        Folder written by :func:`save`.
    mode
        ``"disk"``: arrays are mapped into memory and windows read the pages they touch (where somebody has compressed or re-chunked the
        arrays, the blocks they touch); ``"memory"``: everything is loaded.
    verify
        Compare checksums, which reads the block arrays once. Presence, version, types and lengths are compared always.

    Raises
    ------
    FileNotFoundError
        Where there is no folder.
    ValueError
        Where it is not a store, of another version, incomplete, cut short or changed.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"There is no store at {path}. Write one with `RasterStore.save`.")
    folder = path / "X" / GROUP
    try:
        attributes = json.loads((folder / "zarr.json").read_text())["attributes"]
        version = attributes["stimg-raster-store"]
    except (OSError, ValueError, KeyError) as err:
        raise ValueError(f"{path} holds no raster store (X/{GROUP} is missing or unreadable). Write one with `RasterStore.save`.") from err
    if version != VERSION:
        raise ValueError(
            f"The raster store {path} has version {version!r}; this version of stimg reads {VERSION}. Write it again with `RasterStore.save`."
        )
    try:
        described, shift = attributes["arrays"], int(attributes["shift"])
        options = {
            "max_value": float(attributes["max_value"]),
            "source_dtype": np.dtype(attributes["source_dtype"]),
            "token": attributes["token"],
        }
        wanted = {name: described[name] for name in (*Blocks._fields, "index", "source_rows")}
    except (KeyError, TypeError) as err:
        raise ValueError(
            f"The description of the raster store {path} is incomplete ({err}). Write it again with `RasterStore.save`."
        ) from err
    arrays = {name: _read(folder / name, entry, mode=mode, verify=verify) for name, entry in wanted.items()}
    resident = all(isinstance(array, np.ndarray) for array in arrays.values())
    for name in ("block_map", "start", "index", "source_rows"):
        arrays[name] = np.asarray(arrays[name][...])
    blocks = Blocks(*(arrays[name] for name in Blocks._fields))
    if not (
        blocks.start.size == blocks.table.shape[0] + 1
        and blocks.start[0] == 0
        and (np.diff(blocks.start) >= 0).all()
        and blocks.start[-1] == blocks.pixel.shape[0] == blocks.value.shape[0]
        and blocks.block_map.max(initial=-1) < blocks.table.shape[0]
    ):
        raise ValueError(f"The arrays of the raster store {path} contradict each other. Write it again with `RasterStore.save`.")
    return RasterStore(
        blocks,
        shift=shift,
        index=arrays["index"],
        source_rows=arrays["source_rows"],
        path=path.resolve(),
        mode=mode,
        resident=resident,
        **options,
    )


def fetch(blocks: Blocks, shift: int, shape: tuple[int, int], request: Request) -> Blocks:
    """Return a small copy of the blocks that the windows of ``request`` overlap, read through zarr (compressed or re-chunked arrays)."""
    wanted = np.zeros(blocks.block_map.shape, dtype=bool)
    for top, left in zip(request.tops.tolist(), request.lefts.tolist(), strict=True):
        y0, y1 = max(top, 0), min(top + request.height, shape[0])
        x0, x1 = max(left, 0), min(left + request.width, shape[1])
        if y0 < y1 and x0 < x1:
            wanted[y0 >> shift : ((y1 - 1) >> shift) + 1, x0 >> shift : ((x1 - 1) >> shift) + 1] = True
    numbers = np.unique(blocks.block_map[wanted & (blocks.block_map >= 0)])
    edges = [(int(blocks.start[b]), int(blocks.start[b + 1])) for b in numbers]
    block_map = np.full(blocks.block_map.shape, -1, dtype=np.int32)
    kept = np.isin(blocks.block_map, numbers) & wanted
    block_map[kept] = np.searchsorted(numbers, blocks.block_map[kept])

    def joined(array: Any, pieces: list[Any]) -> np.ndarray:
        return np.concatenate([np.zeros((0, *array.shape[1:]), array.dtype), *pieces])

    return Blocks(
        block_map,
        np.concatenate([np.zeros(1, np.int64), np.cumsum([last - first for first, last in edges], dtype=np.int64)]),
        joined(blocks.table, [blocks.table[b : b + 1] for b in numbers.tolist()]),
        joined(blocks.pixel, [blocks.pixel[first:last] for first, last in edges]),
        joined(blocks.value, [blocks.value[first:last] for first, last in edges]),
    )


def _crc(array: np.ndarray) -> int:
    return zlib.crc32(array.reshape(-1).view(np.uint8).data) if array.size else 0


def _read(folder: Path, entry: Mapping[str, Any], *, mode: str, verify: bool) -> Any:
    """Return one array of the store, mapped, loaded, or (re-coded arrays in mode "disk") as a zarr array.

    Arrays as :func:`save` wrote them are read without zarr, whose background thread does not live on in a forked process.
    """
    again = "Write the store again with `RasterStore.save`."
    shape, dtype, crc = tuple(entry["shape"]), np.dtype(entry["dtype"]), entry["crc32"]
    try:
        described = json.loads((folder / "zarr.json").read_text())
        found = (tuple(described["shape"]), np.dtype(described["data_type"]))
        raw = _raw_file(folder, described)
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise ValueError(f"The array {folder} is missing or unreadable ({err}). {again}") from err
    if found != (shape, dtype):
        raise ValueError(f"The array {folder} is {found[1]} {found[0]}; wanted {dtype} {shape}. {again}")
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if not size:
        return np.zeros(shape, dtype)
    if raw is None:
        array = zarr.open_array(str(folder), mode="r")
        incomplete = array.nchunks_initialized < array.nchunks
        if mode == "disk" and not verify and not incomplete:
            return array
        whole = np.ascontiguousarray(array[...])
        if (verify or incomplete) and _crc(whole) != crc:
            raise ValueError(f"The array {folder} was changed (checksum). {again}")
        return whole if mode == "memory" else array
    length = raw.stat().st_size if raw.exists() else 0
    if length != size:
        raise ValueError(f"{raw} has {length} bytes; wanted {size}: it was cut short or changed. {again}")
    if mode == "memory":
        whole = np.fromfile(raw, dtype).reshape(shape)
        computed = _crc(whole) if verify else crc
    else:
        # Copy-on-write, so that the array counts as writable and one compiled version of each kernel serves memory and disk.
        whole = np.asarray(np.memmap(raw, dtype=dtype, mode="c", shape=shape))
        computed = _crc_of_file(raw) if verify else crc
    if computed != crc:
        raise ValueError(f"{raw} was changed (checksum). {again}")
    return whole


def _crc_of_file(path: Path) -> int:
    """Return the checksum of a file, read in pieces and not through the mapping, whose pages would count as resident."""
    crc = 0
    with path.open("rb") as stream:
        while piece := stream.read(_PIECE):
            crc = zlib.crc32(piece, crc)
    return crc


def _raw_file(folder: Path, described: Mapping[str, Any]) -> Path | None:
    """Return the file whose bytes are the array, or None where it is compressed, in several chunks or of foreign byte order."""
    codecs, grid, keys_ = described["codecs"], described["chunk_grid"], described["chunk_key_encoding"]
    plain = len(codecs) == 1 and codecs[0]["name"] == "bytes" and codecs[0].get("configuration", {}).get("endian", "little") == "little"
    if not plain or sys.byteorder != "little" or keys_["name"] != "default" or grid["name"] != "regular":
        return None
    if grid["configuration"]["chunk_shape"] != [max(1, extent) for extent in described["shape"]]:
        return None
    separator = keys_.get("configuration", {}).get("separator", "/")
    return folder / separator.join(["c"] + ["0"] * len(described["shape"])).replace("/", os.sep)


def _group(parent: zarr.Group, name: str, encoding: str, version: str, **attributes: Any) -> zarr.Group:
    group = parent.create_group(name)
    group.attrs.update({"encoding-type": encoding, "encoding-version": version, **attributes})
    return group


def _array(parent: zarr.Group, name: str, array: np.ndarray, *, raw: bool = False, attributes: Mapping[str, Any] | None = None) -> None:
    """Write a numeric or boolean array; ``raw`` in one uncompressed chunk."""
    chunks = tuple(max(1, extent) for extent in array.shape)
    if not raw and array.ndim and array.size > CHUNK:
        chunks = (max(1, CHUNK // max(1, array.size // array.shape[0])), *chunks[1:])
    options: dict[str, Any] = {"compressors": None, "filters": None} if raw else {}
    made = parent.create_array(
        name,
        shape=array.shape,
        dtype=array.dtype,
        chunks=chunks,
        attributes=dict(attributes or {}),
        config={"write_empty_chunks": True},
        **options,
    )
    if array.size:
        made[...] = array


def _strings(parent: zarr.Group, name: str, values: Any, encoding: str = "string-array") -> None:
    values = np.asarray(values, dtype=object)
    attributes: dict[str, Any] = {"encoding-type": encoding, "encoding-version": "0.2.0"}
    made = parent.create_array(name, shape=values.shape, dtype=str, chunks=tuple(max(1, e) for e in values.shape), attributes=attributes)
    if values.size:
        made[...] = values


def _write_element(parent: zarr.Group, name: str, value: Any) -> None:
    """Write one value in anndata's encoding."""
    if isinstance(value, Mapping):
        _write_mapping(parent, name, value)
        return
    array = np.asarray(value)
    if array.dtype.kind in "biuf":
        encoding = "array" if array.ndim else "numeric-scalar"
        _array(parent, name, array, attributes={"encoding-type": encoding, "encoding-version": "0.2.0"})
    elif array.dtype.kind in "UT" or (array.size and all(isinstance(each, str) for each in array.reshape(-1))):
        _strings(parent, name, array, "string-array" if array.ndim else "string")
    else:
        raise TypeError(
            f"{parent.name}/{name} is {type(value).__name__} of {array.dtype}; wanted numbers, booleans, strings, arrays or dicts of them."
        )


def _write_mapping(parent: zarr.Group, name: str, values: Mapping[str, Any]) -> None:
    group = _group(parent, name, "dict", "0.1.0")
    for key, value in values.items():
        _write_element(group, str(key), value)


def _frame(given: Any, n: int, what: str) -> pd.DataFrame | None:
    """Return names or a table as a DataFrame of ``n`` rows."""
    if given is None:
        return None
    frame = given if isinstance(given, pd.DataFrame) else pd.DataFrame(index=pd.Index(list(given)))
    if len(frame) != n:
        raise ValueError(
            f"{what} has {len(frame)} rows; the store's table has {n}. Pass the {what} of the AnnData that the store was made from."
        )
    if wrong := [str(c) for c in frame.columns if not isinstance(c, str) or c == "_index" or "/" in c]:
        raise ValueError(f"{what} has columns that cannot be written: {wrong}. Rename them.")
    if frame.isna().any(axis=None):
        missing = [c for c in frame.columns if frame[c].isna().any() and not pd.api.types.is_float_dtype(frame[c].dtype)]
        if missing:
            raise ValueError(f"{what} has missing values in {missing}; wanted complete columns. Fill or drop them.")
    return frame


def _write_frame(parent: zarr.Group, name: str, frame: pd.DataFrame) -> None:
    group = _group(parent, name, "dataframe", "0.2.0", **{"_index": "_index", "column-order": [str(c) for c in frame.columns]})
    _strings(group, "_index", [str(label) for label in frame.index])
    for column in frame.columns:
        values = frame[column]
        if isinstance(values.dtype, pd.CategoricalDtype):
            inner = _group(group, column, "categorical", "0.2.0", ordered=bool(values.cat.ordered))
            _write_element(inner, "codes", values.cat.codes.to_numpy())
            _write_element(inner, "categories", values.cat.categories.to_numpy())
        elif pd.api.types.is_bool_dtype(values.dtype) or pd.api.types.is_numeric_dtype(values.dtype):
            _write_element(group, column, values.to_numpy())
        else:
            _strings(group, column, [str(value) for value in values])
