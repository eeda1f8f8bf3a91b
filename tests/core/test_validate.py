"""Numbers, names and matrices that are refused, and those that are not."""

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from stimg._core import validate


@given(st.one_of(st.integers(-(10**6), 10**6), st.floats(allow_nan=False, allow_infinity=False, width=32)), st.integers(-3, 3))
def test_whole_numbers_are_those_that_python_calls_so(value, least):
    for given_value in (value, np.float64(value)):
        if value == int(value) and value >= least:
            assert validate.whole(given_value, "n", least=least) == int(value)
        else:
            with pytest.raises(ValueError, match=rf"n=.* is not usable; wanted a whole number of at least {least}\."):
                validate.whole(given_value, "n", least=least)


@pytest.mark.parametrize("value", [True, np.True_, "3", None, 3j, np.complex64(3), [3], np.array([3])])
def test_what_is_no_number_is_a_type_error(value):
    for check in (validate.number, validate.whole, validate.positive):
        with pytest.raises(TypeError, match=rf"width=.* is a {type(value).__name__}; wanted a number"):
            check(value, "width")


@pytest.mark.parametrize("value", [3, 3.5, np.int8(3), np.uint64(3), np.float32(0.5)])
def test_numbers_of_every_kind_are_numbers(value):
    assert validate.number(value, "width", "µm") == value
    validate.positive(value, "width", "µm")


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf")])
def test_what_is_not_above_zero_is_a_value_error(value):
    with pytest.raises(ValueError, match=r"width=.* is not above zero; wanted a positive number of µm"):
        validate.positive(value, "width", "µm")


def test_a_string_is_one_name():
    assert validate.names("ACTB") == ["ACTB"]
    assert validate.names(("A", 1)) == ["A", "1"]
    assert validate.names(np.array(["A", "B"])) == ["A", "B"]


@pytest.mark.parametrize("make", [sp.csr_matrix, sp.csc_matrix, sp.csr_array, np.asarray])
@pytest.mark.parametrize("dtype", [np.int32, np.uint16, np.float32, np.float64])
def test_counts_come_back_as_csr(make, dtype):
    dense = np.random.default_rng(0).poisson(1.0, (5, 4)).astype(dtype)
    found = validate.counts(ad.AnnData(make(dense)))
    assert isinstance(found, sp.csr_matrix)
    assert found.has_sorted_indices
    np.testing.assert_array_equal(found.toarray(), dense)


@pytest.mark.parametrize(
    ("bad", "error", "match"),
    [
        (np.nan, ValueError, "adata.X has 1 NaN or infinite values; wanted raw counts"),
        (np.inf, ValueError, "adata.X has 1 NaN or infinite values"),
        (-2.0, ValueError, r"adata.X has 1 negative values \(minimum -2\)"),
        (0.25, ValueError, r"adata.X has 1 fractional values of \d+ \(for example 0.25\)"),
        (1j, TypeError, "adata.X has dtype complex128; wanted raw counts"),
    ],
)
@pytest.mark.parametrize("make", [sp.csr_matrix, np.asarray])
def test_one_bad_value_is_counted(bad, error, match, make):
    dense = np.ones((3, 3), dtype=np.result_type(np.float64, type(bad)))
    dense[1, 2] = bad
    adata = ad.AnnData(sp.csr_matrix((3, 3)))
    adata.X = make(dense)
    with pytest.raises(error, match=match):
        validate.counts(adata)


def test_normalised_values_need_only_be_finite_and_real():
    adata = ad.AnnData(np.array([[-0.5, 0.25]]))
    assert validate.finite_matrix(adata) is adata.X
    adata.layers["bad"] = np.array([[np.nan, np.inf]])
    with pytest.raises(ValueError, match=r"adata.layers\['bad'\] has 2 NaN or infinite values; wanted finite values"):
        validate.finite_matrix(adata, "bad")
