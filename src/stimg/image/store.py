"""The counts of one library as an image that is never dense: windows of it are read sparse, or dense for chosen genes."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from stimg._core import validate
from stimg.image import blocks as blocks_
from stimg.image import gather
from stimg.image.blocks import Blocks
from stimg.image.buffers import DenseBuffer, Workspace, as_buffer, limit_of, run_lanes
from stimg.image.request import Request, SparseWindow, SparseWindows, check

ORDERS = ("gene", "pixel")
MODES = ("disk", "memory")


class RasterStore:
    """Counts of one library on its raster, gene-major inside square blocks of lattice points; read-only.

    Memory grows with the number of non-zeros (plus one int32 per lattice point for :attr:`index`), never with rows x columns x genes.
    A window touches only the blocks it overlaps, and in each of them only the genes asked for. Made by :meth:`from_csr` or :meth:`open`;
    several threads and processes may read one store at the same time.

    Attributes
    ----------
    shape
        (rows, columns) of the raster.
    n_vars, n_obs, nnz
        Number of genes, of rows of the table that :attr:`index` points into, and of non-zeros.
    dtype
        Of the values: uint8, uint16 or uint32 for counts, float32 for anything else.
    block
        Edge of the blocks in lattice steps.
    index
        int32 (rows, columns): row of the table of the first observation at each lattice point, -1 where there is none. For a store that
        was opened, the table is the AnnData saved with it.
    source_rows
        int64 (n_obs,): row, in the table from which the store was made, of each row of the table that was saved with it.
    max_value
        Highest value.
    path, mode
        Folder of a store that was opened (else None), and ``"disk"`` or ``"memory"``.
    """

    def __init__(
        self,
        blocks: Blocks,
        *,
        shift: int,
        index: np.ndarray,
        source_rows: np.ndarray,
        source_dtype: np.dtype,
        max_value: float,
        path: Path | None = None,
        mode: str = "memory",
        token: str = "",
        resident: bool = True,
    ) -> None:
        self._blocks = blocks
        self._shift = shift
        self._token = token
        self._resident = resident
        self._rows: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
        self.index = index
        self.source_rows = source_rows
        self.source_dtype = np.dtype(source_dtype)
        self.shape: tuple[int, int] = (int(index.shape[0]), int(index.shape[1]))
        self.n_obs = int(source_rows.size)
        self.n_vars = int(blocks.table.shape[1]) - 1
        self.nnz = int(blocks.pixel.shape[0])
        self.dtype = np.dtype(blocks.value.dtype)
        self.block = 1 << shift
        self.max_value = max_value
        self.path = path
        self.mode = mode

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays, whether in memory or on disk."""
        return sum(
            int(np.prod(a.shape, dtype=np.int64)) * np.dtype(a.dtype).itemsize for a in (*self._blocks, self.index, self.source_rows)
        )

    def __repr__(self) -> str:
        where = f", {self.mode} {str(self.path)!r}" if self.path is not None else ""
        return f"RasterStore({self.shape[0]} x {self.shape[1]}, {self.n_vars} genes, {self.nnz} non-zeros {self.dtype}, block {self.block}{where})"

    @classmethod
    def from_csr(cls, X: Any, rc: np.ndarray, shape: tuple[int, int], *, block: int | None = None) -> "RasterStore":
        """Return the store of ``X``.

        Parameters
        ----------
        X
            Sparse (n_obs, n_vars), finite. Whole non-negative numbers are kept as the smallest unsigned integers that hold them, anything
            else as float32.
        rc
            int (n_obs, 2): (row, column) of each observation; (-1, -1) for one that is not on the raster. Several observations on one
            lattice point add up.
        shape
            (rows, columns) of the raster.
        block
            Edge of the blocks in lattice steps, a power of two; by default the smallest from 64 on whose offset tables have at
            most a quarter as many elements as ``X`` has non-zeros.
        """
        if not sp.issparse(X):
            raise TypeError(f"X is {type(X).__name__}; wanted a scipy sparse matrix. Convert it with scipy.sparse.csr_matrix.")
        matrix = sp.csr_matrix(X)
        rc = np.asarray(rc)
        if rc.shape != (matrix.shape[0], 2) or rc.dtype.kind not in "iu":
            raise ValueError(f"rc is {rc.dtype} {rc.shape}; wanted integers ({matrix.shape[0]}, 2), the (row, column) of each row of X.")
        if len(shape) != 2 or min(shape) < 1:
            raise ValueError(f"shape={shape} is not a raster; wanted (rows, columns), each at least 1.")
        on = (rc >= 0).all(axis=1)
        off = ~on & ~(rc == -1).all(axis=1) | (rc >= np.asarray(shape)).any(axis=1)
        if off.any():
            first = int(np.flatnonzero(off)[0])
            raise ValueError(
                f"{int(off.sum())} observations are outside the raster of shape {tuple(shape)} (for example row {first} at {rc[first].tolist()}); "
                "wanted 0 <= rc < shape, or (-1, -1) for an observation that is not on the raster."
            )
        if matrix.nnz and not np.isfinite(matrix.data).all():
            raise ValueError(
                f"X has {int((~np.isfinite(matrix.data)).sum())} NaN or infinite values; wanted finite ones. Remove or repair them."
            )
        shift = None
        if block is not None:
            shift = int(block).bit_length() - 1
            if block < 1 or 1 << shift != block or shift > blocks_.LARGEST_SHIFT:
                raise ValueError(f"block={block} is not a power of two between 1 and {1 << blocks_.LARGEST_SHIFT}.")
        parts, shift = blocks_.from_csr(matrix, rc, (int(shape[0]), int(shape[1])), shift)
        index = np.full(shape, -1, dtype=np.int32)
        rows = np.flatnonzero(on)[::-1]
        index[rc[rows, 0], rc[rows, 1]] = rows
        top = float(parts.value.max()) if parts.value.size else 0.0
        return cls(parts, shift=shift, index=index, source_rows=np.arange(matrix.shape[0]), source_dtype=matrix.dtype, max_value=top)

    def window(
        self,
        top: int,
        left: int,
        height: int,
        width: int,
        genes: Sequence[int] | np.ndarray | None = None,
        *,
        order: str = "gene",
        workspace: Workspace | None = None,
    ) -> SparseWindow:
        """Return the non-zeros of one window; see :meth:`windows`."""
        found = self.windows([top], [left], height, width, genes, order=order, workspace=workspace)
        return SparseWindow(found.pixel, found.gene, found.value)

    def windows(
        self,
        tops: Sequence[int] | np.ndarray,
        lefts: Sequence[int] | np.ndarray,
        height: int,
        width: int,
        genes: Sequence[int] | np.ndarray | Sequence[np.ndarray] | None = None,
        *,
        order: str = "gene",
        threads: int = 1,
        workspace: Workspace | None = None,
    ) -> SparseWindows:
        """Return the non-zeros of several windows of one size.

        Parameters
        ----------
        tops, lefts
            Lattice row and column of each window's corner; parts of a window outside the raster are empty.
        height, width
            Of the windows, in lattice steps.
        genes
            Distinct positions in the panel of the store: one list for all windows, or one per window (2-D, or a list of arrays, of any
            lengths). None: all genes.
        order
            ``"gene"``: entries of a window ordered by (gene, pixel); ``"pixel"``: by (pixel, gene). Windows of all genes by pixel are
            copied from a bin-major twin of the counts, made at the first such call of a store in memory (as large again).
        threads
            Number of threads; the result does not depend on it.
        workspace
            Memory to use again; the arrays returned are then views that the next call with it overwrites.
        """
        validate.one_of(order, ORDERS, "order")
        request = check(tops, lefts, height, width, genes, self.n_vars)
        rows = self._bin_major() if genes is None and order == "pixel" and self.mode == "memory" else None
        parts = self._blocks_for(request) if rows is None else self._blocks
        n = request.tops.size
        recycled = workspace is not None
        workspace = workspace if workspace is not None else Workspace()
        lanes = workspace.lanes(max(1, min(threads, n)), self.dtype)
        counters = height * width + 1 if order == "pixel" else height + 1

        def work(number: int, first: int, last: int) -> None:
            lane, at = lanes[number], 0
            if lane.count.size < counters:
                lane.count = np.empty(counters, np.int64)
            if lane.end.size < last - first:
                lane.end = np.empty(last - first, np.int64)
            while rows is not None and at < last - first:
                at, entries = gather.gather_rows(
                    *rows, *self.shape, request.tops[first:last], request.lefts[first:last], height, width, at, last - first,
                    lane.pixel, lane.gene, lane.value, lane.end,
                )  # fmt: skip
                lane.entries(entries, int(lane.end[at - 1]) if at else 0)
            while at < last - first:
                at, runs, entries = gather.gather_sparse(
                    *parts, *self.shape, self._shift, request.tops[first:last], request.lefts[first:last], height, width, request.genes,
                    request.gene_from[first:last], request.gene_to[first:last], order == "pixel", at, last - first, lane.lo, lane.hi,
                    lane.inside, lane.count, lane.tmp_pixel, lane.tmp_gene, lane.tmp_value, lane.pixel, lane.gene, lane.value, lane.end,
                )  # fmt: skip
                lane.runs(runs)
                lane.entries(entries, int(lane.end[at - 1]) if at else 0)

        used = run_lanes(work, n, threads)
        edges = [n * lane // used for lane in range(used + 1)]
        indptr = np.zeros(n + 1, np.int64)
        for lane, first, last in zip(lanes, edges, edges[1:], strict=False):
            indptr[first + 1 : last + 1] = lane.end[: last - first] + indptr[first]
        total = int(indptr[-1])
        if used == 1:
            outputs = (lanes[0].pixel, lanes[0].gene, lanes[0].value)
            return SparseWindows(indptr, *(array[:total] if recycled else array[:total].copy() for array in outputs))
        joined = workspace.joined(total)

        def join(number: int, first: int, last: int) -> None:
            begin, end = indptr[edges[number]], indptr[edges[number + 1]]
            for to, array in zip(joined, (lanes[number].pixel, lanes[number].gene, lanes[number].value), strict=True):
                to[begin:end] = array[: end - begin]

        run_lanes(join, used, used)
        return SparseWindows(indptr, *(array[:total] for array in joined))

    def window_dense(
        self,
        top: int,
        left: int,
        height: int,
        width: int,
        genes: Sequence[int] | np.ndarray | None,
        *,
        dtype: np.typing.DTypeLike | None = None,
        out: DenseBuffer | np.ndarray | None = None,
        clip: bool = False,
    ) -> np.ndarray:
        """Return one window as (gene, y, x); see :meth:`windows_dense`."""
        if isinstance(out, np.ndarray):
            out = out[None]
        return self.windows_dense([top], [left], height, width, genes, dtype=dtype, out=out, clip=clip)[0]

    def windows_dense(
        self,
        tops: Sequence[int] | np.ndarray,
        lefts: Sequence[int] | np.ndarray,
        height: int,
        width: int,
        genes: Sequence[int] | np.ndarray | None,
        *,
        dtype: np.typing.DTypeLike | None = None,
        out: DenseBuffer | np.ndarray | None = None,
        clip: bool = False,
        threads: int = 1,
    ) -> np.ndarray:
        """Return several windows as (window, gene, y, x), zero outside the raster.

        Parameters
        ----------
        tops, lefts, height, width, genes, threads
            As in :meth:`windows`; where each window has its own genes, all have the same number (2-D).
        dtype
            Of the result: an integer type, float32 (the default) or float64.
        out
            A :class:`DenseBuffer` to use again (the result is a view that the next read with it overwrites), or a C-contiguous array of
            the right shape.
        clip
            What happens to a value above the range of ``dtype``: it becomes the highest one, or, by default, is a ValueError.
            float32 counts as holding whole numbers up to 2**24.
        """
        request = check(tops, lefts, height, width, genes, self.n_vars)
        n = request.tops.size
        sizes = np.unique(request.gene_to - request.gene_from)
        if sizes.size > 1:
            raise ValueError("The windows have different numbers of genes; wanted the same number for all. Read them with `windows`.")
        n_genes = int(sizes[0]) if n else (self.n_vars if genes is None else np.shape(genes)[-1])
        shape = (n, n_genes, height, width)
        buffer = as_buffer(out, dtype, shape)
        flat, lanes, pending = buffer.prepare(shape, max(1, min(threads, n)), self.dtype)
        bounded, limit = limit_of(buffer.dtype, self.dtype, self.max_value)
        parts = self._blocks_for(request)

        def work(number: int, first: int, last: int) -> None:
            lane = lanes[number]
            if pending:
                buffer.clear(lane)
            while first < last:
                first, runs, places, lane.n_touched, excess = gather.gather_dense(
                    *parts, *self.shape, self._shift, request.tops, request.lefts, height, width, request.genes,
                    request.gene_from, request.gene_to, bounded, limit, clip, first, last, lane.lo, lane.hi, lane.inside,
                    lane.tmp_pixel, lane.tmp_gene, lane.tmp_value, flat, lane.touched, lane.n_touched,
                )  # fmt: skip
                if excess:
                    raise ValueError(
                        f"A window holds the value {excess}, above the highest of {buffer.dtype}, {limit}. Pass a wider `dtype`, or `clip=True` to cut it off."
                    )
                lane.runs(runs)
                lane.places(places)

        run_lanes(work, n, threads)
        return flat[: int(np.prod(shape, dtype=np.int64))].reshape(shape)

    def obs(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Return int32 (height, width): the row of the table at each lattice point of the window, -1 where there is none."""
        return self.obs_windows([top], [left], height, width)[0]

    def obs_windows(self, tops: Sequence[int] | np.ndarray, lefts: Sequence[int] | np.ndarray, height: int, width: int) -> np.ndarray:
        """Return int32 (window, height, width): :meth:`obs` of several windows."""
        request = check(tops, lefts, height, width, np.zeros(0, np.int64), self.n_vars)
        out = np.empty((request.tops.size, height, width), np.int32)
        gather.gather_index(self.index, request.tops, request.lefts, height, width, out)
        return out

    def occupancy(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Return bool (height, width): whether there is an observation at each lattice point of the window."""
        return self.obs(top, left, height, width) >= 0

    def to_csr(self) -> tuple[sp.csr_matrix, np.ndarray, np.ndarray]:
        """Return (CSR with one row per occupied lattice point in raster order, int32 (n, 2) of their (row, column), their rows of the table)."""
        occupied = self.index >= 0
        rank = np.cumsum(occupied, dtype=np.int32).reshape(self.shape) - 1
        rc = np.argwhere(occupied).astype(np.int32)
        dtype = self.source_dtype
        if dtype.kind == "b" or (dtype.kind in "iu" and (self.dtype.kind == "f" or self.max_value > np.iinfo(dtype).max)):
            dtype = np.dtype(np.float32)
        parts = self._blocks if self._resident else Blocks(*(np.asarray(array[...]) for array in self._blocks))
        return blocks_.to_csr(parts, self._shift, rank, len(rc), dtype), rc, self.index[occupied].astype(np.int64)

    def save(
        self,
        path: str | os.PathLike,
        *,
        overwrite: bool = False,
        obs: Any = None,
        var: Any = None,
        obsm: Mapping[str, np.ndarray] | None = None,
        uns: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the store to a folder that :meth:`open` and ``anndata.read_zarr`` read; see :func:`stimg.image.store_disk.save`."""
        from stimg.image import store_disk

        store_disk.save(self, Path(path), overwrite=overwrite, obs=obs, var=var, obsm=obsm or {}, uns=uns or {})

    @classmethod
    def open(cls, path: str | os.PathLike, *, mode: str = "disk", verify: bool = True) -> "RasterStore":
        """Return a store written by :meth:`save`; see :func:`stimg.image.store_disk.open_store`."""
        from stimg.image import store_disk

        validate.one_of(mode, MODES, "mode")
        return store_disk.open_store(Path(path), mode=mode, verify=verify)

    def __reduce__(self) -> tuple[Any, ...]:
        if self.path is not None and self.mode == "disk":
            return _reopen, (str(self.path), self._token)
        state = {"shift": self._shift, "index": self.index, "source_rows": self.source_rows, "source_dtype": self.source_dtype}
        return _rebuild, (tuple(self._blocks), {**state, "max_value": self.max_value, "path": self.path, "token": self._token})

    def _bin_major(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return CSR with one row per lattice point (made at the first use): what windows of all genes by pixel are copied from."""
        if self._rows is None:
            n = self.shape[0] * self.shape[1]
            matrix = blocks_.to_csr(self._blocks, self._shift, np.arange(n).reshape(self.shape), n, self.dtype)
            self._rows = (matrix.indptr.astype(np.int64), matrix.indices, matrix.data)
        return self._rows

    def _blocks_for(self, request: Request) -> Blocks:
        if self._resident:
            return self._blocks
        from stimg.image import store_disk

        return store_disk.fetch(self._blocks, self._shift, self.shape, request)


def _rebuild(blocks: tuple[np.ndarray, ...], state: dict[str, Any]) -> RasterStore:
    return RasterStore(Blocks(*(np.require(array, requirements=["C", "W"]) for array in blocks)), **state)


def _reopen(path: str, token: str) -> RasterStore:
    store = RasterStore.open(path, mode="disk", verify=False)
    if store._token != token:
        raise ValueError(f"{path} was replaced by another store after this one was opened. Open it again.")
    return store
