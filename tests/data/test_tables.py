"""The table of whatever a verb was given."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from stimg.data.tables import is_spatialdata, table_of


def test_an_anndata_is_its_own_table():
    adata = ad.AnnData(np.ones((2, 1)))
    assert table_of(adata, "anything") is adata
    assert not is_spatialdata(adata)


def test_the_table_of_a_spatialdata_is_the_object_itself():
    from spatialdata import SpatialData

    sdata = SpatialData(tables={"table": ad.AnnData(np.ones((2, 1))), "other": ad.AnnData(np.ones((3, 1)))})
    assert is_spatialdata(sdata)
    table_of(sdata, "other").obs["written"] = 1
    assert list(sdata.tables["other"].obs) == ["written"]
    assert list(sdata.tables["table"].obs) == []
    with pytest.raises(KeyError, match=r"sdata\.tables\['cells'\] is missing \(found \['other', 'table'\]\)\. Pass `table_key=`"):
        table_of(sdata, "cells")


@pytest.mark.parametrize("wrong", [np.ones((2, 2)), pd.DataFrame(), "slide.h5ad", None])
def test_anything_else_is_a_type_error_with_its_type(wrong):
    with pytest.raises(TypeError, match=f"data is a {type(wrong).__name__}; wanted an AnnData or a SpatialData"):
        table_of(wrong, "table")
