"""The picture of predicted genes holds the values it should, and hides what it should."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import scipy.stats

import stimg

KEY = "stimg_ridge"
WORTH = {"ERBB2": 0.6, "COL1A1": 0.3, "IGKC": 0.05, "SNAP25": np.nan}


@pytest.fixture
def predicted(section):
    adata = section()
    rng = np.random.default_rng(3)
    truth = np.log1p(1e4 * adata.X.toarray() / adata.X.toarray().sum(axis=1, keepdims=True))
    adata.layers[KEY] = (truth + 0.5 * rng.standard_normal(truth.shape)).astype(np.float32)
    adata.layers[f"{KEY}_lower"] = adata.layers[KEY] - 1
    adata.layers[f"{KEY}_upper"] = adata.layers[KEY] + np.float32(1) + rng.random(truth.shape).astype(np.float32)
    adata.var[f"{KEY}_predictability"] = [WORTH[g] for g in adata.var_names]
    adata.uns["stimg"][KEY] = {"unit": "log1p_cp10k", "calibration_level": "donor"}
    return adata


def values(ax):
    """The numbers drawn on an Axes, in raster order."""
    return np.ma.filled(np.ma.asarray(ax.collections[0].get_array(), dtype=float), np.nan)


def in_raster_order(adata, column):
    order = np.lexsort(adata.obsm["stimg_rc"].T[::-1])
    return np.asarray(column)[order]


def test_what_is_drawn(predicted):
    axes = stimg.pl.genes(predicted, genes=["COL1A1", "ERBB2"])
    assert list(axes) == [(g, k) for g in ("COL1A1", "ERBB2") for k in ("truth", "prediction", "interval")]
    counts = predicted.X.toarray().astype(float)
    truth = np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))
    for gene in ("COL1A1", "ERBB2"):
        i = predicted.var_names.get_loc(gene)
        np.testing.assert_allclose(values(axes[gene, "truth"]), in_raster_order(predicted, truth[:, i]), rtol=1e-5)
        np.testing.assert_allclose(values(axes[gene, "prediction"]), in_raster_order(predicted, predicted.layers[KEY][:, i]), rtol=1e-6)
        width = predicted.layers[f"{KEY}_upper"][:, i] - predicted.layers[f"{KEY}_lower"][:, i]
        np.testing.assert_allclose(values(axes[gene, "interval"]), in_raster_order(predicted, width), rtol=1e-5)
        r = scipy.stats.pearsonr(truth[:, i], predicted.layers[KEY][:, i])[0]
        assert axes[gene, "prediction"].get_title() == f"predicted, r = {r:.2f} (n = {predicted.n_obs})"
        limits = [axes[gene, k].collections[0].norm for k in ("truth", "prediction")]
        assert (limits[0].vmin, limits[0].vmax) == (limits[1].vmin, limits[1].vmax)
        assert any(line.get_gid() == "scale bar" for line in axes[gene, "truth"].lines)


def test_genes_that_are_hardly_predictable_are_grey(predicted):
    axes = stimg.pl.genes(predicted, genes=["IGKC", "SNAP25"])
    assert np.isnan(values(axes["IGKC", "prediction"])).all()
    assert np.isnan(values(axes["IGKC", "interval"])).all()
    assert np.isfinite(values(axes["IGKC", "truth"])).all()
    assert "not shown" in axes["IGKC", "prediction"].texts[-1].get_text()
    assert "r = 0.05 where a\ndonor was left out" in axes["IGKC", "prediction"].texts[-1].get_text()
    assert np.isfinite(values(axes["SNAP25", "prediction"])).all()  # its worth is not known
    for least in (None, 0.05):
        shown = stimg.pl.genes(predicted, genes="IGKC", min_predictability=least)
        assert np.isfinite(values(shown["IGKC", "prediction"])).all()
    assert np.isnan(values(stimg.pl.genes(predicted, genes="ERBB2", min_predictability=0.7)["ERBB2", "prediction"])).all()


def test_the_most_predictable_genes_come_first(predicted):
    assert [g for g, k in stimg.pl.genes(predicted, n=3) if k == "truth"] == ["ERBB2", "COL1A1", "IGKC"]
    predicted.layers[KEY][:, predicted.var_names.get_loc("ERBB2")] = np.nan  # not among those predicted
    assert next(iter(stimg.pl.genes(predicted, n=1)))[0] == "COL1A1"
    with pytest.raises(ValueError, match=r"\['ERBB2'\] were not predicted"):
        stimg.pl.genes(predicted, genes=["ERBB2", "COL1A1"])


def test_a_table_of_predictions(predicted):
    table = predicted.copy()
    table.X = table.layers.pop(KEY)
    axes = stimg.pl.genes(table, genes="ERBB2")
    assert list(axes) == [("ERBB2", "prediction"), ("ERBB2", "interval")]
    assert axes["ERBB2", "prediction"].get_title() == "ERBB2, predicted"
    np.testing.assert_allclose(
        values(axes["ERBB2", "prediction"]), in_raster_order(table, table.X[:, table.var_names.get_loc("ERBB2")]), rtol=1e-6
    )
    no_bounds = stimg.pl.genes(table, genes="ERBB2", interval=False)
    assert list(no_bounds) == [("ERBB2", "prediction")]


def test_image_and_crop(predicted):
    axes = stimg.pl.genes(predicted, genes="ERBB2", image=True, crop_um=(0, 0, 300, 400))
    assert next(iter(axes)) == ("ERBB2", "image")
    assert len(axes["ERBB2", "image"].images) == 1
    assert axes["ERBB2", "truth"].get_xlim() == (0, 400)


def test_errors(predicted, section, joined):
    with pytest.raises(KeyError, match=r"adata\.layers\['stimg_none'\] is missing.*stimg\.tl\.predict_expression"):
        stimg.pl.genes(predicted, predicted="stimg_none")
    with pytest.raises(KeyError, match=r"'ERBB' is not a gene of this object.*Did you mean 'ERBB2'"):
        stimg.pl.genes(predicted, genes="ERBB")
    with pytest.raises(ValueError, match="genes is empty"):
        stimg.pl.genes(predicted, genes=[])
    two = joined(predicted, section(name="B"))
    with pytest.raises(ValueError, match="There are 2 libraries"):
        stimg.pl.genes(two)
    one = [plt.gca()]
    with pytest.raises(ValueError, match="ax holds 1 Axes for 3 panels"):
        stimg.pl.genes(predicted, genes="ERBB2", ax=one)
    predicted.X = predicted.X * 0.5
    with pytest.raises(ValueError, match="fractional values"):
        stimg.pl.genes(predicted, genes="ERBB2")
