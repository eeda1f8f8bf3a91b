import numpy as np
import pytest
from matplotlib.collections import PolyCollection

import stimg


def cells_in(ax):
    return next(c for c in ax.collections if isinstance(c, PolyCollection))


def order_of(adata, library):
    rows = [i for i in range(adata.n_obs) if adata.obs["library_id"].iloc[i] == library]
    return sorted(rows, key=lambda i: tuple(adata.obsm["stimg_rc"][i]))


def reference(z):
    """Components from the singular value decomposition, signed by the largest loading, scaled from their 1st to 99th percentile."""
    z = np.asarray(z, dtype=np.float64)
    centred = z - z.mean(axis=0)
    _, s, vt = np.linalg.svd(centred, full_matrices=False)
    scores = np.empty((len(z), 3))
    for k in range(3):
        sign = 1.0 if vt[k][np.argmax(np.abs(vt[k]))] > 0 else -1.0
        scores[:, k] = sign * (centred @ vt[k])
    low, high = np.percentile(scores, [1, 99], axis=0)
    return scores, np.clip((scores - low) / (high - low), 0, 1), s[:3] ** 2 / (s**2).sum()


@pytest.mark.parametrize("lattice", ["hex", "square"])
def test_colours_are_the_scaled_components(section, lattice):
    adata = section(lattice)
    ax = stimg.pl.embedding_map(adata)
    _, rgb, _ = reference(adata.obsm["X_stimg_stmae"])
    np.testing.assert_allclose(cells_in(ax).get_facecolors()[:, :3], rgb[order_of(adata, "A")], atol=1e-6)


def test_components_of_all_libraries_together(section, joined):
    adata = joined(section(name="A"), section("square", name="B", seed=5))
    panels = stimg.pl.embedding_map(adata, components=True)
    scores, rgb, share = reference(adata.obsm["X_stimg_stmae"])
    assert list(panels) == [(lib, kind) for lib in "AB" for kind in ("RGB", "PC1", "PC2", "PC3")]
    for lib in "AB":
        order = order_of(adata, lib)
        np.testing.assert_allclose(cells_in(panels[lib, "RGB"]).get_facecolors()[:, :3], rgb[order], atol=1e-6)
        for k in range(3):
            ax = panels[lib, f"PC{k + 1}"]
            np.testing.assert_allclose(cells_in(ax).get_array(), scores[order, k], atol=1e-6)
            assert f"{100 * share[k]:.0f} % of variance" in ax.get_title()
            assert cells_in(ax).norm.vmax == pytest.approx(np.percentile(scores[:, k], 99))


def test_incomplete_rows_are_grey_and_change_nothing_else(section):
    adata = section()
    adata.obsm["X_stimg_stmae"][4] = np.nan
    ax = stimg.pl.embedding_map(adata)
    order = order_of(adata, "A")
    faces = cells_in(ax).get_facecolors()[:, :3]
    _, rgb, _ = reference(np.delete(adata.obsm["X_stimg_stmae"], 4, axis=0))
    want = np.insert(rgb, 4, 0xD4 / 255, axis=0)[order]
    np.testing.assert_allclose(faces, want, atol=1e-6)


def test_errors(section):
    adata = section()
    with pytest.raises(KeyError, match=r"stimg\.tl\.embed"):
        stimg.pl.embedding_map(adata, obsm_key="X_nothere")
    adata.obsm["two"] = np.ones((adata.n_obs, 2))
    with pytest.raises(ValueError, match="at least 3"):
        stimg.pl.embedding_map(adata, obsm_key="two")
    adata.obsm["nan"] = np.full((adata.n_obs, 3), np.nan)
    with pytest.raises(ValueError, match="0 complete rows"):
        stimg.pl.embedding_map(adata, obsm_key="nan")
    with pytest.raises(KeyError, match="no library 'B'"):
        stimg.pl.embedding_map(adata, library_id="B")
