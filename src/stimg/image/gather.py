"""Compiled readers of windows from block-ordered counts; they release the GIL, so that threads read side by side.

Words used here: a *block* is a square of ``2**shift`` lattice steps; a *run* is what one gene has in one block, ``pixel[lo:hi]`` and
``value[lo:hi]``, ordered by the local pixel ``(y << shift) | x``. Every function takes the arrays of :class:`stimg.image.blocks.Blocks`
in this order: ``block_map, start, table, pixel, value``.
"""

import numpy as np
from numba import njit

SHORT = 20
"""Runs of one gene up to this length are sorted by insertion, longer ones by counting rows."""


@njit(cache=True, nogil=True)
def check_genes(genes: np.ndarray, edges: np.ndarray, n_vars: int) -> int:
    """Return the first place whose gene is out of range or comes again in its list ``edges[i]:edges[i + 1]``, else -1."""
    last_seen = np.full(n_vars, -1, np.int32)
    for i in range(edges.size - 1):
        for k in range(edges[i], edges[i + 1]):
            g = genes[k]
            if g < 0 or g >= n_vars or last_seen[g] == i:
                return k
            last_seen[g] = i
    return -1


@njit(cache=True, nogil=True)
def _locate(
    block_map: np.ndarray, start: np.ndarray, table: np.ndarray, pixel: np.ndarray, value: np.ndarray, rows: int, cols: int, shift: int,
    top: int, left: int, height: int, width: int, genes: np.ndarray, begin: int, end: int, lo: np.ndarray, hi: np.ndarray,
    inside: np.ndarray,
) -> tuple[int, int, int]:  # fmt: skip
    """Fill ``lo``/``hi`` (gene-major: gene * blocks + block) for one window; return (blocks, block columns, entries at most).

    All loads of this pass are independent of each other, and it loads the head of each run too, so that the misses of a window overlap.
    Where ``lo``, ``hi`` or ``inside`` are too small, the number of blocks is -1 and the second number is the room that is wanted.
    """
    y0, y1 = max(top, 0), min(top + height, rows)
    x0, x1 = max(left, 0), min(left + width, cols)
    if y0 >= y1 or x0 >= x1 or begin == end:
        return 0, 0, 0
    by0, by1, bx0, bx1 = y0 >> shift, ((y1 - 1) >> shift) + 1, x0 >> shift, ((x1 - 1) >> shift) + 1
    n_blocks, n_genes = 0, end - begin
    room = (by1 - by0) * (bx1 - bx0)
    if max(room * n_genes, room * 3 + 1) > lo.size:
        return -1, max(room * n_genes, room * 3 + 1), 0
    for by in range(by0, by1):
        for bx in range(bx0, bx1):
            if block_map[by, bx] >= 0:
                inside[3 * n_blocks] = block_map[by, bx]
                inside[3 * n_blocks + 1] = by << shift
                inside[3 * n_blocks + 2] = bx << shift
                n_blocks += 1
    total = 0
    for j in range(n_blocks):
        b = inside[3 * j]
        base = start[b]
        for k in range(n_genes):
            g = genes[begin + k]
            first, last = base + table[b, g], base + table[b, g + 1]
            lo[k * n_blocks + j] = first
            hi[k * n_blocks + j] = last
            total += last - first
    touched = 0.0
    for i in range(n_genes * n_blocks):
        if lo[i] < hi[i]:
            touched += pixel[lo[i]] + value[lo[i]]
    inside[inside.size - 1] = np.int64(touched)  # keeps the loads from being optimised away
    return n_blocks, bx1 - bx0, total


@njit(cache=True, nogil=True)
def _first_at(pixel: np.ndarray, lo: int, hi: int, wanted: int) -> int:
    """Return the first place in ``lo .. hi`` whose pixel is at least ``wanted``."""
    while lo < hi:
        middle = (lo + hi) >> 1
        if pixel[middle] < wanted:
            lo = middle + 1
        else:
            hi = middle
    return lo


@njit(cache=True, nogil=True)
def _collect(
    pixel: np.ndarray, value: np.ndarray, shift: int, top: int, left: int, height: int, width: int, lo: np.ndarray, hi: np.ndarray,
    inside: np.ndarray, row: int, n_blocks: int, out_pixel: np.ndarray, out_row: np.ndarray, out_value: np.ndarray, at: int,
) -> int:  # fmt: skip
    """Append what one gene (``row`` of lo/hi) has in the window to the outputs from ``at`` on; return the new end.

    Rows above and below the window are skipped by bisection. An entry beside it is written and then overwritten by the next: a branch
    there would be guessed wrong half of the time.
    """
    edge = np.int64(1) << shift
    mask = edge - 1
    to, one = np.uint64(at), np.uint64(1)
    for j in range(n_blocks):
        first, last = lo[row * n_blocks + j], hi[row * n_blocks + j]
        if first == last:
            continue
        dy, dx = inside[3 * j + 1] - top, inside[3 * j + 2] - left
        if last - first > 4:
            if dy < 0:
                first = _first_at(pixel, first, last, -dy << shift)
            if dy + edge > height:
                last = _first_at(pixel, first, last, (height - dy) << shift)
            if dx >= 0 and dx + edge <= width:
                for i in range(np.uint64(first), np.uint64(last)):
                    p = np.int64(pixel[i])
                    y = (p >> shift) + dy
                    out_pixel[to] = y * width + (p & mask) + dx
                    out_row[to] = y
                    out_value[to] = value[i]
                    to += one
                continue
        for i in range(np.uint64(first), np.uint64(last)):
            p = np.int64(pixel[i])
            y, x = (p >> shift) + dy, (p & mask) + dx
            out_pixel[to] = y * width + x
            out_row[to] = y
            out_value[to] = value[i]
            to += np.uint64((np.uint64(y) < np.uint64(height)) & (np.uint64(x) < np.uint64(width)))
    return np.int64(to)  # type: ignore[return-value]


@njit(cache=True, nogil=True)
def _insertion(pixel: np.ndarray, value: np.ndarray, begin: int, end: int) -> None:
    for i in range(begin + 1, end):
        p, v = pixel[i], value[i]
        j = i - 1
        while j >= begin and pixel[j] > p:
            pixel[j + 1] = pixel[j]
            value[j + 1] = value[j]
            j -= 1
        pixel[j + 1] = p
        value[j + 1] = v


@njit(cache=True, nogil=True)
def _count_rows(
    count: np.ndarray, height: int, tmp_pixel: np.ndarray, tmp_row: np.ndarray, tmp_value: np.ndarray, n: int, out_pixel: np.ndarray,
    out_value: np.ndarray, at: int,
) -> None:  # fmt: skip
    """Move ``n`` entries to the outputs, ordered by row and, within a row, as they came (blocks come from left to right)."""
    count[: height + 1] = 0
    for i in range(n):
        count[tmp_row[i] + 1] += 1
    for y in range(height):
        count[y + 1] += count[y]
    for i in range(n):
        y = tmp_row[i]
        to = at + count[y]
        count[y] += 1
        out_pixel[to] = tmp_pixel[i]
        out_value[to] = tmp_value[i]


@njit(cache=True, nogil=True)
def gather_sparse(
    block_map: np.ndarray, start: np.ndarray, table: np.ndarray, pixel: np.ndarray, value: np.ndarray, rows: int, cols: int, shift: int,
    tops: np.ndarray, lefts: np.ndarray, height: int, width: int, genes: np.ndarray, gene_from: np.ndarray, gene_to: np.ndarray,
    by_pixel: bool, first: int, last: int, lo: np.ndarray, hi: np.ndarray, inside: np.ndarray, count: np.ndarray, tmp_pixel: np.ndarray,
    tmp_gene: np.ndarray, tmp_value: np.ndarray, out_pixel: np.ndarray, out_gene: np.ndarray, out_value: np.ndarray, out_end: np.ndarray,
) -> tuple[int, int, int]:  # fmt: skip
    """Read windows ``first .. last`` one after another into the outputs; ``out_end[i]`` is where window ``i`` ends.

    Entries are ordered by (gene, pixel), or by (pixel, gene) where ``by_pixel``. Returns (next window, room for runs, room for entries):
    the next window is ``last`` when all is read, else the arrays must grow to the stated room before the call is repeated from there.
    """
    at: int = out_end[first - 1] if first else 0
    for w in range(first, last):
        top, left, begin, end = tops[w], lefts[w], gene_from[w], gene_to[w]
        n_blocks, n_columns, total = _locate(
            block_map, start, table, pixel, value, rows, cols, shift, top, left, height, width, genes, begin, end, lo, hi, inside
        )  # fmt: skip
        if n_blocks < 0:
            return w, n_columns, 0
        if at + total > out_pixel.size or total > tmp_pixel.size:
            return w, 0, at + total
        if by_pixel:
            n = 0
            for k in range(end - begin):
                stop = _collect(
                    pixel, value, shift, top, left, height, width, lo, hi, inside, k, n_blocks, tmp_pixel, tmp_gene, tmp_value, n
                )
                tmp_gene[n:stop] = k
                n = stop
            count[: height * width + 1] = 0
            for i in range(n):
                count[tmp_pixel[i] + 1] += 1
            for p in range(height * width):
                count[p + 1] += count[p]
            for i in range(n):
                p = tmp_pixel[i]
                to = at + count[p]
                count[p] += 1
                out_pixel[to] = p
                out_gene[to] = tmp_gene[i]
                out_value[to] = tmp_value[i]
            at += n
        else:
            for k in range(end - begin):
                bound = 0
                for j in range(n_blocks):
                    bound += hi[k * n_blocks + j] - lo[k * n_blocks + j]
                if bound == 0:
                    continue
                if n_columns == 1 or bound <= SHORT:
                    stop = _collect(
                        pixel, value, shift, top, left, height, width, lo, hi, inside, k, n_blocks, out_pixel, out_gene, out_value, at
                    )
                    if n_columns > 1:
                        _insertion(out_pixel, out_value, at, stop)
                else:
                    n = _collect(
                        pixel, value, shift, top, left, height, width, lo, hi, inside, k, n_blocks, tmp_pixel, tmp_gene, tmp_value, 0
                    )
                    _count_rows(count, height, tmp_pixel, tmp_gene, tmp_value, n, out_pixel, out_value, at)
                    stop = at + n
                out_gene[at:stop] = k
                at = stop
        out_end[w] = at
    return last, 0, 0


@njit(cache=True, nogil=True)
def gather_rows(
    indptr: np.ndarray, indices: np.ndarray, data: np.ndarray, rows: int, cols: int, tops: np.ndarray, lefts: np.ndarray, height: int,
    width: int, first: int, last: int, out_pixel: np.ndarray, out_gene: np.ndarray, out_value: np.ndarray, out_end: np.ndarray,
) -> tuple[int, int]:  # fmt: skip
    """Copy windows ``first .. last`` with all genes from CSR rows, one per lattice point; order (pixel, gene).

    Returns (next window, room for entries), as :func:`gather_sparse` does.
    """
    at: int = out_end[first - 1] if first else 0
    for w in range(first, last):
        y0, y1 = max(tops[w], 0), min(tops[w] + height, rows)
        x0, x1 = max(lefts[w], 0), min(lefts[w] + width, cols)
        total = 0
        if x0 < x1:
            for y in range(y0, y1):
                total += indptr[y * cols + x1] - indptr[y * cols + x0]
        if at + total > out_pixel.size:
            return w, at + total
        if x0 < x1:
            for y in range(y0, y1):
                for x in range(x0, x1):
                    p = (y - tops[w]) * width + x - lefts[w]
                    for i in range(indptr[y * cols + x], indptr[y * cols + x + 1]):
                        out_pixel[at] = p
                        out_gene[at] = indices[i]
                        out_value[at] = data[i]
                        at += 1
        out_end[w] = at
    return last, 0


@njit(cache=True, nogil=True)
def gather_dense(
    block_map: np.ndarray, start: np.ndarray, table: np.ndarray, pixel: np.ndarray, value: np.ndarray, rows: int, cols: int, shift: int,
    tops: np.ndarray, lefts: np.ndarray, height: int, width: int, genes: np.ndarray, gene_from: np.ndarray, gene_to: np.ndarray,
    bounded: bool, limit: int, clip: bool, first: int, last: int, lo: np.ndarray, hi: np.ndarray, inside: np.ndarray,
    tmp_pixel: np.ndarray, tmp_row: np.ndarray, tmp_value: np.ndarray, out: np.ndarray, touched: np.ndarray, n_touched: int,
) -> tuple[int, int, int, int, int]:  # fmt: skip
    """Write windows ``first .. last`` into ``out``, the flat (window, gene, y, x) array that is zero there; note each place in ``touched``.

    ``bounded`` says that values above ``limit`` do not fit the dtype of ``out``: they are clipped, or the reading stops.
    Returns (next window, room for runs, room for touched places, places touched, value that does not fit or 0).
    """
    for w in range(first, last):
        top, left, begin, end = tops[w], lefts[w], gene_from[w], gene_to[w]
        n_blocks, n_columns, total = _locate(
            block_map, start, table, pixel, value, rows, cols, shift, top, left, height, width, genes, begin, end, lo, hi, inside
        )  # fmt: skip
        if n_blocks < 0:
            return w, n_columns, 0, n_touched, 0
        if n_touched + total > touched.size or total > tmp_pixel.size:
            return w, 0, n_touched + total, n_touched, 0
        for k in range(end - begin):
            plane = (np.int64(w) * (end - begin) + k) * height * width
            n = _collect(pixel, value, shift, top, left, height, width, lo, hi, inside, k, n_blocks, tmp_pixel, tmp_row, tmp_value, 0)
            for i in range(n):
                touched[n_touched + i] = plane + tmp_pixel[i]
            n_touched += n
            if bounded:
                for i in range(n):
                    if tmp_value[i] > limit and not clip:
                        return w, 0, 0, n_touched, np.int64(tmp_value[i])  # type: ignore[return-value]
                    out[plane + tmp_pixel[i]] = min(np.int64(tmp_value[i]), limit)
            else:
                for i in range(n):
                    out[plane + tmp_pixel[i]] = tmp_value[i]
    return last, 0, 0, n_touched, 0


@njit(cache=True, nogil=True)
def clear(out: np.ndarray, touched: np.ndarray, n_touched: int) -> None:
    """Set the touched places of ``out`` to zero."""
    for i in range(n_touched):
        out[touched[i]] = 0


@njit(cache=True, nogil=True)
def gather_index(index: np.ndarray, tops: np.ndarray, lefts: np.ndarray, height: int, width: int, out: np.ndarray) -> None:
    """Copy windows of ``index`` (rows, columns) into ``out`` (window, y, x); -1 outside the raster."""
    rows, cols = index.shape
    for w in range(tops.size):
        for y in range(height):
            r = tops[w] + y
            for x in range(width):
                c = lefts[w] + x
                out[w, y, x] = index[r, c] if 0 <= r < rows and 0 <= c < cols else -1
