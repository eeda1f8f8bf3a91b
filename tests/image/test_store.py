"""Windows of a raster store against a dense array of the same counts."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from stimg.image import DenseBuffer, RasterStore, Workspace


def image(seed, rows, cols, n_vars, density=0.3, high=6, repeats=0, fractional=False):
    """Return (CSR, rc, dense image (row, col, gene)); ``repeats`` observations share lattice points with others, some are off the raster."""
    rng = np.random.default_rng(seed)
    points = np.argwhere(rng.random((rows, cols)) < 0.7)
    rng.shuffle(points)
    if repeats and len(points):
        points = np.concatenate([points, points[rng.integers(len(points), size=repeats)], np.full((2, 2), -1)])
    counts = rng.integers(1, high + 1, (len(points), n_vars)) * (rng.random((len(points), n_vars)) < density)
    values = counts.astype(np.float32) * (rng.choice([0.5, -1.25], counts.shape).astype(np.float32) if fractional else 1)
    dense = np.zeros((rows, cols, n_vars))
    for (r, c), row in zip(points, values, strict=True):
        if r >= 0:
            dense[r, c] += row
    return sp.csr_matrix(values.astype(np.float32)), points.astype(np.int64), dense


def cut(dense, top, left, height, width, genes):
    """Return the window as (gene, y, x), one lattice point at a time."""
    out = np.zeros((len(genes), height, width))
    for y in range(height):
        for x in range(width):
            if 0 <= top + y < dense.shape[0] and 0 <= left + x < dense.shape[1]:
                out[:, y, x] = dense[top + y, left + x, genes]
    return out


def assert_window(found, wanted, order="gene"):
    keys = (found.pixel.astype(np.int64), found.gene.astype(np.int64))
    major, minor = keys[::-1] if order == "gene" else keys
    key = major * (1 << 40) + minor
    assert (np.diff(key) > 0).all()
    assert (found.value != 0).all()
    flat = np.zeros((wanted.shape[0], wanted.shape[1] * wanted.shape[2]))
    flat[found.gene, found.pixel] = found.value
    np.testing.assert_array_equal(flat.reshape(wanted.shape), wanted)


cases = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 10_000),
        "rows": st.integers(1, 40),
        "cols": st.integers(1, 40),
        "n_vars": st.integers(1, 30),
        "density": st.sampled_from([0.0, 0.02, 0.3, 1.0]),
        "high": st.sampled_from([1, 255, 256, 70_000]),
        "repeats": st.sampled_from([0, 5, 60]),
        "fractional": st.booleans(),
    }
)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(
    case=cases,
    block=st.sampled_from([None, 1, 2, 4, 16]),
    window=st.tuples(st.integers(-30, 45), st.integers(-30, 45), st.integers(1, 50), st.integers(1, 50)),
    share=st.floats(0, 1),
    order=st.sampled_from(["gene", "pixel"]),
)
def test_any_window_is_what_the_dense_image_holds(case, block, window, share, order):
    matrix, rc, dense = image(**case)
    store = RasterStore.from_csr(matrix, rc, dense.shape[:2], block=block)
    assert store.nnz == np.count_nonzero(dense)
    assert store.dtype == (np.float32 if case["fractional"] and (dense < 0).any() else store.dtype)
    rng = np.random.default_rng(case["seed"])
    genes = rng.permutation(case["n_vars"])[: int(share * case["n_vars"])]
    wanted = cut(dense, *window, genes)
    assert_window(store.window(*window, genes, order=order), wanted, order)
    assert_window(store.window(*window, order=order), cut(dense, *window, np.arange(case["n_vars"])), order)
    np.testing.assert_array_equal(store.window_dense(*window, genes), wanted)


@settings(max_examples=40, deadline=None)
@given(
    case=cases,
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    n=st.integers(0, 7),
    threads=st.integers(1, 3),
    kind=st.sampled_from(["shared", "array", "ragged", "all"]),
    order=st.sampled_from(["gene", "pixel"]),
)
def test_batches_equal_single_windows_whatever_the_threads_and_the_memory(case, size, n, threads, kind, order):
    matrix, rc, dense = image(**case)
    store = RasterStore.from_csr(matrix, rc, dense.shape[:2], block=8)
    rng = np.random.default_rng(case["seed"] + 1)
    workspace, buffer = Workspace(), DenseBuffer(np.float64)
    for _ in range(3):
        tops, lefts = rng.integers(-10, dense.shape[0] + 5, n), rng.integers(-10, dense.shape[1] + 5, n)
        n_genes = int(rng.integers(0, case["n_vars"] + 1))
        each = [rng.permutation(case["n_vars"])[: n_genes if kind == "array" else rng.integers(0, n_genes + 1)] for _ in range(n)]
        stacked = np.array(each, dtype=np.int64).reshape(n, n_genes) if kind == "array" else None
        genes = {"shared": np.arange(n_genes)[::-1], "array": stacked, "ragged": each, "all": None}[kind]
        lists = {"shared": [genes] * n, "all": [np.arange(case["n_vars"])] * n}.get(kind, each)
        for space in (None, workspace):
            found = store.windows(tops, lefts, *size, genes, threads=threads, workspace=space, order=order)
            assert found.indptr.shape == (n + 1,)
            assert found.indptr[-1] == len(found.pixel) == len(found.gene) == len(found.value)
            for i in range(n):
                at = slice(found.indptr[i], found.indptr[i + 1])
                part = type(store.window(0, 0, 1, 1))(found.pixel[at], found.gene[at], found.value[at])
                assert_window(part, cut(dense, tops[i], lefts[i], *size, lists[i]), order)
        if kind != "ragged":
            for out in (buffer, None):
                got = store.windows_dense(tops, lefts, *size, genes, out=out, threads=threads)
                assert got.shape[0] == n
                for i in range(n):
                    np.testing.assert_array_equal(got[i], cut(dense, tops[i], lefts[i], *size, lists[i]))


def test_a_recycled_buffer_holds_nothing_of_the_window_before():
    matrix, rc, dense = image(3, 64, 64, 40, density=0.02)
    store = RasterStore.from_csr(matrix, rc, dense.shape[:2])
    buffer = DenseBuffer(np.uint8)
    first = store.window_dense(0, 0, 20, 20, np.arange(40), out=buffer)
    assert first.any()
    again = store.window_dense(30, 30, 20, 20, np.arange(40), out=buffer)
    assert np.shares_memory(first, again)
    np.testing.assert_array_equal(again, cut(dense, 30, 30, 20, 20, np.arange(40)))
    smaller = store.windows_dense([5, 9], [1, 2], 7, 9, [3, 1], out=buffer)
    np.testing.assert_array_equal(smaller, [cut(dense, 5, 1, 7, 9, [3, 1]), cut(dense, 9, 2, 7, 9, [3, 1])])
    far = store.window_dense(500, 500, 20, 20, np.arange(40), out=buffer)
    assert not far.any()
    other = RasterStore.from_csr(matrix * np.float32(0.5), rc, dense.shape[:2])
    fractions = DenseBuffer()
    for each, factor in ((store, 1), (other, 0.5), (store, 1)):
        np.testing.assert_array_equal(each.window_dense(4, 4, 9, 9, [7, 0], out=fractions), cut(dense, 4, 4, 9, 9, [7, 0]) * factor)


def test_an_array_of_the_caller_is_filled_and_checked():
    matrix, rc, dense = image(4, 12, 9, 5)
    store = RasterStore.from_csr(matrix, rc, dense.shape[:2])
    out = np.full((2, 6, 6), 7, np.int16)
    assert np.shares_memory(store.window_dense(-1, 2, 6, 6, [4, 2], out=out), out)
    np.testing.assert_array_equal(out, cut(dense, -1, 2, 6, 6, [4, 2]))
    with pytest.raises(ValueError, match="wanted \\(1, 3, 6, 6\\)"):
        store.window_dense(0, 0, 6, 6, [0, 1, 2], out=out)
    with pytest.raises(ValueError, match="contradict"):
        store.window_dense(0, 0, 6, 6, [0, 1], out=out, dtype=np.float32)
    with pytest.raises(ValueError, match="C-contiguous"):
        store.window_dense(0, 0, 6, 6, [0, 1], out=np.zeros((6, 6, 2), np.float32).transpose(2, 0, 1))


@pytest.mark.parametrize(("high", "dtype"), [(255, np.uint8), (256, np.uint16), (65_536, np.uint32)])
def test_counts_are_kept_in_the_smallest_type_that_holds_them(high, dtype):
    matrix = sp.csr_matrix(np.array([[high, 0], [1, 2]], dtype=np.int64))
    store = RasterStore.from_csr(matrix, np.array([[0, 0], [3, 2]]), (4, 3))
    assert store.dtype == dtype
    assert store.max_value == high
    assert store.window(0, 0, 4, 3).value.tolist() == [high, 1, 2]


def test_values_that_do_not_fit_are_an_error_or_clipped():
    matrix = sp.csr_matrix(np.array([[300, 0], [1, 2]], dtype=np.int64))
    store = RasterStore.from_csr(matrix, np.array([[0, 0], [3, 2]]), (4, 3))
    buffer = DenseBuffer(np.uint8)
    with pytest.raises(ValueError, match="value 300, above the highest of uint8, 255"):
        store.window_dense(0, 0, 4, 3, [0, 1], out=buffer)
    assert store.window_dense(0, 0, 4, 3, [0, 1], out=buffer, clip=True)[0, 0, 0] == 255
    assert store.window_dense(1, 0, 3, 3, [0, 1], out=buffer).sum() == 3
    with pytest.raises(ValueError, match="value 300"):
        store.windows_dense([1, 0, 0], [0, 0, 0], 4, 3, [0, 1], dtype=np.int8, threads=2)
    fractions = RasterStore.from_csr(matrix * 0.5, np.array([[0, 0], [3, 2]]), (4, 3))
    with pytest.raises(ValueError, match="fractional"):
        fractions.window_dense(0, 0, 4, 3, [0], dtype=np.uint16)
    assert fractions.window_dense(0, 0, 4, 3, [0])[0, 3, 2] == 0.5


def test_repeated_observations_add_up_even_where_the_sum_needs_a_wider_type_or_is_zero():
    matrix = sp.csr_matrix(np.array([[200, 1, 0], [100, -1, 0], [0, 0, 5]], dtype=np.float32))
    rc = np.array([[1, 1], [1, 1], [0, 2]])
    store = RasterStore.from_csr(matrix, rc, (2, 3))
    assert store.nnz == 2
    assert store.dtype == np.uint16
    np.testing.assert_array_equal(store.window_dense(0, 0, 2, 3, [0, 1, 2]).sum(axis=(1, 2)), [300, 0, 5])
    assert store.index.tolist() == [[-1, -1, 2], [-1, 0, -1]]
    repeated = sp.csr_matrix((np.ones(4, np.float32), np.array([2, 0, 2, 2]), np.array([0, 4])), shape=(1, 3))
    found = RasterStore.from_csr(repeated, np.array([[0, 0]]), (1, 1)).window(0, 0, 1, 1)
    assert found.gene.tolist() == [0, 2]
    assert found.value.tolist() == [1, 3]


def test_occupancy_and_rows_of_observations():
    matrix, rc, dense = image(5, 11, 13, 3, density=0.1, repeats=7)
    store = RasterStore.from_csr(matrix, rc, dense.shape[:2])
    wanted = np.full((20, 20), -1)
    for i in range(len(rc) - 1, -1, -1):
        if rc[i, 0] >= 0:
            wanted[rc[i, 0] + 4, rc[i, 1] + 3] = i
    assert store.obs(-4, -3, 20, 20).dtype == np.int32
    np.testing.assert_array_equal(store.obs(-4, -3, 20, 20), wanted)
    np.testing.assert_array_equal(store.occupancy(-4, -3, 20, 20), wanted >= 0)
    np.testing.assert_array_equal(store.obs_windows([-4, 0], [-3, 2], 5, 6), [wanted[:5, :6], wanted[4:9, 5:11]])


def test_csr_comes_back_in_raster_order():
    matrix, rc, dense = image(6, 40, 37, 9, repeats=5)
    back, points, rows = RasterStore.from_csr(matrix, rc, dense.shape[:2], block=8).to_csr()
    assert back.has_canonical_format
    assert back.dtype == matrix.dtype
    np.testing.assert_array_equal(back.toarray(), dense[points[:, 0], points[:, 1]])
    assert (np.diff(points[:, 0] * 37 + points[:, 1]) > 0).all()
    np.testing.assert_array_equal(rc[rows], points)


@pytest.mark.slow
@pytest.mark.parametrize(("side", "n_vars", "n"), [(4000, 20_000, 50), (3000, 3, 20_000), (300, 2000, 20_000)])
def test_memory_follows_the_non_zeros(side, n_vars, n):
    rng = np.random.default_rng(0)
    rc = np.stack(np.divmod(rng.choice(side * side, n, replace=False), side), axis=1)
    matrix = sp.csr_matrix((np.ones(2 * n, np.float32), rng.integers(0, n_vars, 2 * n), np.arange(n + 1) * 2), shape=(n, n_vars))
    store = RasterStore.from_csr(matrix, rc, (side, side))
    assert store.nbytes - store.index.nbytes <= 24 * n + 10 * store.nnz + 8 * n_vars + 4 * (side / 64 + 1) ** 2
    at = rc[n // 2]
    assert_window(
        store.window(at[0] - 3, at[1] - 3, 7, 7), cut_sparse(matrix, rc, at[0] - 3, at[1] - 3, 7, 7),
    )  # fmt: skip


def cut_sparse(matrix, rc, top, left, height, width):
    out = np.zeros((matrix.shape[1], height, width))
    for i in np.flatnonzero((rc[:, 0] >= top) & (rc[:, 0] < top + height) & (rc[:, 1] >= left) & (rc[:, 1] < left + width)):
        out[:, rc[i, 0] - top, rc[i, 1] - left] += matrix[i].toarray().ravel()
    return out


def test_a_store_without_any_count_has_empty_windows():
    store = RasterStore.from_csr(sp.csr_matrix((3, 4), dtype=np.float32), np.array([[0, 0], [1, 1], [-1, -1]]), (2, 2))
    assert store.nnz == 0
    assert len(store.window(0, 0, 2, 2).pixel) == 0
    assert store.window_dense(0, 0, 2, 2, [3, 0]).shape == (2, 2, 2)
    assert store.windows_dense([], [], 2, 2, [3, 0, 1]).shape == (0, 3, 2, 2)
    assert store.occupancy(0, 0, 2, 2).tolist() == [[True, False], [False, True]]


def test_what_cannot_be_read_is_an_error():
    matrix, rc, dense = image(7, 6, 6, 4)
    store = RasterStore.from_csr(matrix, rc, (6, 6))
    with pytest.raises(ValueError, match="genes holds 4, which is not one of the store's 4 genes"):
        store.window(0, 0, 2, 2, [0, 4])
    with pytest.raises(ValueError, match="genes holds -1"):
        store.window(0, 0, 2, 2, [-1])
    with pytest.raises(ValueError, match="genes holds 2, which stands there twice"):
        store.window(0, 0, 2, 2, [2, 1, 2])
    with pytest.raises(TypeError, match="genes are bool"):
        store.window(0, 0, 2, 2, np.array([True, False, True, False]))
    with pytest.raises(ValueError, match="A window of 0 x 2"):
        store.window(0, 0, 0, 2)
    with pytest.raises(ValueError, match="lengths 1 and 2"):
        store.windows([0], [0, 1], 2, 2)
    with pytest.raises(ValueError, match="3 lists for 2 windows"):
        store.windows([0, 1], [0, 1], 2, 2, np.array([[0], [1], [2]]))
    with pytest.raises(ValueError, match="different numbers of genes"):
        store.windows_dense([0, 1], [0, 1], 2, 2, [np.array([0]), np.array([0, 1])])
    with pytest.raises(ValueError, match="order='row'"):
        store.window(0, 0, 2, 2, order="row")
    with pytest.raises(ValueError, match=r"1 observations are outside the raster of shape \(6, 6\)"):
        RasterStore.from_csr(matrix, np.where(np.arange(len(rc))[:, None] == 0, 6, rc), (6, 6))
    with pytest.raises(ValueError, match="NaN"):
        RasterStore.from_csr(sp.csr_matrix(np.array([[np.nan, 1]])), np.array([[0, 0]]), (1, 1))
    with pytest.raises(TypeError, match="sparse"):
        RasterStore.from_csr(dense, rc, (6, 6))
    with pytest.raises(ValueError, match="power of two"):
        RasterStore.from_csr(matrix, rc, (6, 6), block=12)


def test_a_pickled_store_and_threads_that_share_one_read_the_same():
    matrix, rc, dense = image(8, 70, 66, 12)
    store = RasterStore.from_csr(matrix, rc, dense.shape[:2], block=16)
    copy = pickle.loads(pickle.dumps(store))
    for array in (*copy._blocks, copy.index):
        assert array.flags.writeable

    def read(i):
        each = copy if i % 2 else store
        return each.window_dense(i, i, 30, 30, [i % 12, 5 if i % 12 != 5 else 6])

    with ThreadPoolExecutor(4) as pool:
        for i, got in enumerate(pool.map(read, range(24))):
            np.testing.assert_array_equal(got, cut(dense, i, i, 30, 30, [i % 12, 5 if i % 12 != 5 else 6]))
