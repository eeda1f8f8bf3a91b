import numpy as np
import pytest
from matplotlib.collections import PolyCollection

import stimg


def cells_in(ax):
    return next(c for c in ax.collections if isinstance(c, PolyCollection))


def order_of(adata):
    return sorted(range(adata.n_obs), key=lambda i: tuple(adata.obsm["stimg_rc"][i]))


@pytest.mark.parametrize("lattice", ["hex", "square"])
def test_the_three_maps_show_what_they_say_on_one_scale(section, lattice):
    adata = section(lattice)
    panels = stimg.pl.reconstruction(adata, genes=["IGKC", "ERBB2"], truth_layer="log", masked="hidden", percentile=(0, 100))
    order = order_of(adata)
    for gene in ("IGKC", "ERBB2"):
        j = adata.var_names.get_loc(gene)
        truth, guess = adata.layers["log"][order, j], adata.layers["stimg_stmae"][order, j]
        drawn = {kind: cells_in(panels[gene, kind]) for kind in ("truth", "masked", "prediction")}
        np.testing.assert_allclose(drawn["truth"].get_array(), truth)
        np.testing.assert_allclose(drawn["prediction"].get_array(), guess)
        np.testing.assert_array_equal(drawn["masked"].get_array().mask, adata.obs["hidden"].to_numpy()[order])
        shown = ~adata.obs["hidden"].to_numpy()[order]
        np.testing.assert_allclose(drawn["masked"].get_array().compressed(), truth[shown])
        both = np.concatenate([truth, guess])
        for artist in drawn.values():
            assert (artist.norm.vmin, artist.norm.vmax) == pytest.approx((both.min(), both.max()))


def test_a_table_in_another_order_is_aligned_by_name(section):
    adata = section()
    other = adata[::-1].copy()
    other.X = other.layers["stimg_stmae"]
    a = stimg.pl.reconstruction(adata, genes="IGKC", truth_layer="log", predicted=other)
    b = stimg.pl.reconstruction(adata, genes="IGKC", truth_layer="log")
    np.testing.assert_array_equal(cells_in(a["IGKC", "prediction"]).get_array(), cells_in(b["IGKC", "prediction"]).get_array())
    assert ("IGKC", "masked") not in a


def test_scores_are_written_only_where_given(section):
    adata = section()
    adata.var["pearson"] = [0.1, 0.2, 0.345, 0.4]
    for scores in ("pearson", {"IGKC": 0.345}):
        panels = stimg.pl.reconstruction(adata, genes="IGKC", truth_layer="log", scores=scores)
        assert panels["IGKC", "prediction"].get_title() == f"prediction, r = {0.345:.2f}"
    assert stimg.pl.reconstruction(adata, genes="IGKC", truth_layer="log")["IGKC", "prediction"].get_title() == "prediction"


def test_errors(section, joined):
    adata = section()
    with pytest.raises(KeyError, match=r"stimg\.tl\.impute_genes"):
        stimg.pl.reconstruction(adata, genes="IGKC", predicted="nothere")
    with pytest.raises(KeyError, match="scores holds no number"):
        stimg.pl.reconstruction(adata, genes="IGKC", scores={"ERBB2": 1.0})
    with pytest.raises(ValueError, match="wanted booleans"):
        stimg.pl.reconstruction(adata, genes="IGKC", masked="depth")
    with pytest.raises(ValueError, match="wanted booleans"):
        stimg.pl.reconstruction(adata, genes="IGKC", masked=np.ones(3, bool))
    with pytest.raises(ValueError, match="are not among them"):
        stimg.pl.reconstruction(adata, genes="IGKC", predicted=adata[:5].copy())
    with pytest.raises(TypeError, match="wanted the name of a layer or an AnnData"):
        stimg.pl.reconstruction(adata, genes="IGKC", predicted=np.ones(3))
    with pytest.raises(KeyError, match="not a gene"):
        stimg.pl.reconstruction(adata, genes="NOPE")
    adata.uns["stimg"]["log"] = {"unit": "log1p_cp10k"}
    adata.uns["stimg"]["stimg_stmae"] = {"unit": "counts"}
    with pytest.raises(ValueError, match="wanted one scale"):
        stimg.pl.reconstruction(adata, genes="IGKC", truth_layer="log")
    two = joined(section(name="A"), section(name="B"))
    with pytest.raises(ValueError, match="There are 2 libraries"):
        stimg.pl.reconstruction(two, genes="IGKC")
    assert len(stimg.pl.reconstruction(two, genes="IGKC", library_id="B")) == 2
