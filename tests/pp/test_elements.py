"""Centroids of annotated shapes against spatialdata's, and the errors of tables that annotate something else."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from stimg.pp import _elements


def sdata_of(n=12):
    from spatialdata import SpatialData
    from spatialdata.models import Labels2DModel, ShapesModel, TableModel
    from spatialdata.transformations import Affine

    rng = np.random.default_rng(0)
    matrix = np.array([[0.5, 0.2, 7], [-0.1, 0.8, 3], [0, 0, 1]])
    systems = {"global": Affine(matrix, input_axes=("x", "y"), output_axes=("x", "y"))}
    a, b = (ShapesModel.parse(rng.uniform(0, 100, (n, 2)), geometry=0, radius=1.0, transformations=systems) for _ in range(2))
    table = ad.AnnData(np.ones((2 * n, 1)))
    table.obs["region"] = pd.Categorical(["a"] * n + ["b"] * n)
    table.obs["id"] = np.concatenate([rng.permutation(n), rng.permutation(n)])
    table = table[rng.permutation(2 * n)].copy()
    table = TableModel.parse(table, region=["a", "b"], region_key="region", instance_key="id")
    labels = Labels2DModel.parse(np.zeros((4, 4), dtype=int), dims=("y", "x"))
    return SpatialData(shapes={"a": a, "b": b}, labels={"cells": labels}, tables={"table": table}), matrix


def test_centroids_of_two_regions():
    sdata, matrix = sdata_of()
    table = sdata.tables["table"]
    yx, unit = _elements.centroids(sdata, table, table_key="table", coordinate_system="global")
    for i in range(table.n_obs):
        shape = sdata.shapes[table.obs["region"].iloc[i]].geometry.loc[table.obs["id"].iloc[i]]
        x, y, _ = matrix @ [shape.x, shape.y, 1]
        assert np.allclose(yx[i], [y, x])
    assert np.allclose(unit, np.sqrt(0.42))


def test_errors():
    sdata, _ = sdata_of()
    table = sdata.tables["table"]
    with pytest.raises(KeyError, match=r"sdata.shapes\['a'\] has no transformation to 'x' \(found \['global'\]\)"):
        _elements.centroids(sdata, table, table_key="table", coordinate_system="x")
    table.obs["region"] = table.obs["region"].cat.rename_categories({"a": "cells"})
    with pytest.raises(KeyError, match="to_circles"):
        _elements.centroids(sdata, table, table_key="table", coordinate_system="global")
    with pytest.raises(KeyError, match="annotates no element"):
        _elements.region_column(ad.AnnData(np.ones((2, 1))), table_key="t")
