"""The compiled readers, one at a time, against naive loops."""

import itertools

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from stimg.image import blocks, gather
from stimg.image.buffers import DenseBuffer, Lane, run_lanes


@given(genes=st.lists(st.integers(-2, 9), max_size=12), cut=st.integers(0, 12))
def test_the_first_wrong_gene_is_found(genes, cut):
    edges = np.array([0, min(cut, len(genes)), len(genes)])
    wanted = -1
    for begin, end in itertools.pairwise(edges):
        for k in range(begin, end):
            if wanted < 0 and (not 0 <= genes[k] < 8 or genes[k] in genes[begin:k]):
                wanted = k
    assert gather.check_genes(np.array(genes, dtype=np.int64), edges, 8) == wanted


@given(pixels=st.lists(st.integers(0, 300), max_size=40), wanted=st.integers(-5, 310))
def test_bisection_is_searchsorted(pixels, wanted):
    array = np.sort(np.array(pixels, dtype=np.uint16))
    assert gather._first_at(array, 0, array.size, wanted) == np.searchsorted(array.astype(int), wanted)


@given(pixels=st.lists(st.integers(0, 99), max_size=30, unique=True))
def test_both_sorts_order_by_pixel(pixels):
    pixel = np.array(pixels, dtype=np.int32)
    value = pixel.astype(np.float32) * 2
    ordered, values = pixel.copy(), value.copy()
    gather._insertion(ordered, values, 0, ordered.size)
    np.testing.assert_array_equal(ordered, np.sort(pixel))
    np.testing.assert_array_equal(values, np.sort(pixel) * 2)
    by_column = np.argsort(pixel % 10, kind="stable")
    tmp, tmp_value = pixel[by_column], value[by_column]
    out, out_value = np.zeros(pixel.size + 3, np.int32), np.zeros(pixel.size + 3, np.float32)
    gather._count_rows(np.empty(11, np.int64), 10, tmp, (tmp // 10).astype(np.int32), tmp_value, pixel.size, out, out_value, 3)
    np.testing.assert_array_equal(out[3:], np.sort(pixel))
    np.testing.assert_array_equal(out_value[3:], np.sort(pixel) * 2)


def test_a_reader_stops_where_there_is_no_room_and_goes_on_from_there():
    rng = np.random.default_rng(0)
    matrix = sp.random(400, 6, 0.5, format="csr", rng=rng, dtype=np.float32)
    matrix.data[:] = np.arange(1, matrix.nnz + 1)
    rc = np.stack(np.divmod(np.arange(400), 20), axis=1)
    parts, shift = blocks.from_csr(matrix, rc, (20, 20), 2)
    dense = matrix.toarray().reshape(20, 20, 6).transpose(2, 0, 1)
    lane = Lane(parts.value.dtype)
    lane.count, lane.end = np.empty(200, np.int64), np.empty(3, np.int64)
    tops, lefts = np.array([0, 7, 3]), np.array([0, 2, 9])
    genes, begin, end = np.arange(6), np.zeros(3, np.int64), np.full(3, 6)
    at, calls = 0, 0
    while at < 3:
        at, runs, entries = gather.gather_sparse(
            *parts, 20, 20, shift, tops, lefts, 9, 9, genes, begin, end, False, at, 3, lane.lo, lane.hi, lane.inside, lane.count,
            lane.tmp_pixel, lane.tmp_gene, lane.tmp_value, lane.pixel, lane.gene, lane.value, lane.end,
        )  # fmt: skip
        calls += 1
        if runs:
            assert runs > lane.lo.size
            lane.lo, lane.hi, lane.inside = (np.empty(runs, np.int64) for _ in range(3))
        if entries:
            used = int(lane.end[at - 1]) if at else 0
            for name in ("pixel", "gene", "value"):
                new = np.empty(entries, getattr(lane, name).dtype)
                new[:used] = getattr(lane, name)[:used]
                setattr(lane, name, new)
                setattr(lane, f"tmp_{name}", np.empty(entries, new.dtype))
    assert calls >= 4
    first = 0
    for i in range(3):
        wanted = dense[:, tops[i] : tops[i] + 9, lefts[i] : lefts[i] + 9].reshape(6, 81)
        gene, pixel = np.nonzero(wanted)
        np.testing.assert_array_equal(lane.gene[first : lane.end[i]], gene)
        np.testing.assert_array_equal(lane.pixel[first : lane.end[i]], pixel)
        np.testing.assert_array_equal(lane.value[first : lane.end[i]], wanted[gene, pixel])
        first = lane.end[i]


@pytest.mark.parametrize("block", [1, 2, 8, 64, 512])
def test_blocks_hold_every_entry_once_in_order(block):
    rng = np.random.default_rng(1)
    matrix = sp.random(300, 7, 0.3, format="csr", rng=rng, dtype=np.float64)
    matrix.data[:] = rng.integers(1, 9, matrix.nnz)
    rc = np.stack(np.divmod(rng.choice(900, 300, replace=False), 30), axis=1)
    parts, shift = blocks.from_csr(matrix, rc, (30, 30), block.bit_length() - 1)
    found = np.zeros((30, 30, 7))
    mask = block - 1
    for by, bx in np.argwhere(parts.block_map >= 0):
        b = parts.block_map[by, bx]
        assert parts.table[b, 0] == 0
        assert parts.start[b] + parts.table[b, -1] == parts.start[b + 1]
        for g in range(7):
            run = slice(parts.start[b] + parts.table[b, g], parts.start[b] + parts.table[b, g + 1])
            local = parts.pixel[run].astype(int)
            assert (np.diff(local) > 0).all()
            found[by * block + (local >> shift), bx * block + (local & mask), g] += parts.value[run]
    wanted = np.zeros((30, 30, 7))
    wanted[rc[:, 0], rc[:, 1]] = matrix.toarray()
    np.testing.assert_array_equal(found, wanted)
    assert parts.pixel.dtype == (np.uint16 if block <= 256 else np.uint32)
    assert parts.start[-1] == matrix.nnz


def test_block_edges_grow_until_the_tables_fit():
    rc = np.stack(np.divmod(np.arange(0, 1024 * 1024, 4), 1024), axis=1)
    assert blocks.choose_shift(rc, (1024, 1024), 10**9, 1000) == 6
    assert 4 * 64 * 1001 <= 300_000 < 4 * 256 * 1001
    assert blocks.choose_shift(rc, (1024, 1024), 300_000, 1000) == 7
    assert blocks.choose_shift(rc, (1024, 1024), 10, 1000) == 10
    assert blocks.choose_shift(rc[:1], (1024, 1024), 4004, 1000) == 6


def test_values_take_the_smallest_type_that_is_exact():
    assert blocks.smallest_dtype(0, 255, True) == np.uint8
    assert blocks.smallest_dtype(0, 2**32 - 1, True) == np.uint32
    assert blocks.smallest_dtype(-1, 3, True) == np.float32
    assert blocks.smallest_dtype(0, 0.5, False) == np.float32
    with pytest.raises(ValueError, match="cannot be stored exactly"):
        blocks.smallest_dtype(0, 2.0**32, True)


@given(n=st.integers(0, 20), threads=st.integers(1, 5))
@settings(deadline=None)
def test_lanes_share_all_work_once(n, threads):
    seen = []
    lanes = run_lanes(lambda lane, first, last: seen.extend(range(first, last)), n, threads)
    assert sorted(seen) == list(range(n))
    assert lanes == max(1, min(n, threads))


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_an_error_in_a_lane_reaches_the_caller_after_all_have_ended(failing):
    ended = []

    def work(lane, first, last):
        if lane == failing:
            raise ValueError(f"lane {lane}")
        ended.append(lane)

    with pytest.raises(ValueError, match=f"lane {failing}"):
        run_lanes(work, 3, 3)
    assert sorted(ended) == [lane for lane in range(3) if lane != failing]


def test_a_buffer_takes_known_types_only():
    with pytest.raises(ValueError, match="complex128 cannot hold windows"):
        DenseBuffer(np.complex128)
    buffer = DenseBuffer(np.int32)
    flat, _, _ = buffer.prepare((1, 2, 3, 4), 1, np.dtype(np.uint8))
    flat[:] = 3
    buffer.reset()
    assert not flat.any()
