"""Control probes are told from genes by name, by feature type, and by what a reader says."""

import numpy as np
import pandas as pd
import pytest

from stimg._core.panel import is_control

CONTROLS = [
    "NegControlProbe_00042",
    "NegControlCodeword_0500",
    "antisense_PROKR2",
    "BLANK_0006",
    "Blank-12",
    "UnassignedCodeword_0001",
    "DeprecatedCodeword_0321",
    "Intergenic_Region_1145",
    "NegPrb3",
    "SystemControl12",
    "FalseCode7",
]
GENES = ["NEGR1", "EPCAM", "Epcam", "AS3MT", "ENSG00000141510", "Blnk", "BLNK", "DEPDC1", "control", "Il1b", "MT-ND1", "UNC5A"]


def test_names():
    np.testing.assert_array_equal(is_control(pd.DataFrame(index=CONTROLS)), True)
    np.testing.assert_array_equal(is_control(pd.DataFrame(index=GENES)), False)
    assert is_control(pd.DataFrame(index=[])).shape == (0,)


def test_columns_add_to_names():
    var = pd.DataFrame(
        {"control": [True, False, False], "feature_types": ["Gene Expression", "Negative Control Probe", "Gene Expression"]},
        index=["A", "B", "C"],
    )
    np.testing.assert_array_equal(is_control(var), [True, True, False])
    np.testing.assert_array_equal(is_control(var.astype({"feature_types": "category", "control": "boolean"})), [True, True, False])


@pytest.mark.parametrize("column", [["yes", "no"], [1, 0], pd.array([True, None], dtype="boolean")])
def test_a_column_that_is_not_boolean_is_an_error(column):
    with pytest.raises(TypeError, match="wanted booleans"):
        is_control(pd.DataFrame({"control": column}, index=["A", "B"]))
