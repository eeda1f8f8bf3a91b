"""The picture of a joint space: axes against scikit-learn, histograms against numpy."""

import numpy as np
import pytest
from sklearn.decomposition import PCA

import stimg
from stimg.pl import _alignment


@pytest.fixture
def aligned(section, joined):
    adata = joined(section(), section("square", name="B", seed=1))
    rng = np.random.default_rng(0)
    a = rng.standard_normal((adata.n_obs, 5))
    b = a + 0.5 * rng.standard_normal((adata.n_obs, 5))
    adata.obsm["X_stimg_clip_image"], adata.obsm["X_stimg_clip_genes"] = a.astype(np.float32), b.astype(np.float32)
    cosine = lambda p, q: (p * q).sum(axis=1) / np.linalg.norm(p, axis=1) / np.linalg.norm(q, axis=1)  # noqa: E731
    adata.obs["stimg_pair_score"] = cosine(a, b)
    adata.uns["stimg"]["stimg_pair_score"] = {"shuffled": cosine(a, np.roll(b, 1, axis=0)).astype(np.float32)}
    return adata


def points(ax):
    """Points of a scatter in the order in which they were given."""
    drawn = next(c for c in ax.collections if c.get_gid() == "points")
    return drawn.get_offsets().data, drawn.get_facecolors()


def test_axes_are_principal_components_of_directions(aligned):
    axes = stimg.pl.alignment(aligned)
    assert list(axes) == ["modality", "library_id", "score"]
    both = np.concatenate([aligned.obsm["X_stimg_clip_image"], aligned.obsm["X_stimg_clip_genes"]]).astype(float)
    both /= np.linalg.norm(both, axis=1, keepdims=True)
    model = PCA(2).fit(both)
    wanted = model.transform(both)
    drawn, colors = points(axes["modality"])
    order = lambda x: x[np.lexsort(np.abs(x).round(5).T)]  # noqa: E731
    np.testing.assert_allclose(order(np.abs(drawn)), order(np.abs(wanted)), atol=1e-5)
    assert axes["modality"].get_xlabel() == f"PC1, {100 * model.explained_variance_ratio_[0]:.0f} % of variance"
    assert len(np.unique(colors, axis=0)) == 2
    n_image = (np.abs(colors[:, :3] - np.array(_alignment._style.mpl.colors.to_rgb(_alignment.IMAGE))).max(axis=1) < 1e-6).sum()
    assert n_image == aligned.n_obs


def test_histograms_and_what_stands_above_them(aligned):
    ax = stimg.pl.alignment(aligned, bins=17)["score"]
    score, shuffled = aligned.obs["stimg_pair_score"].to_numpy(), aligned.uns["stimg"]["stimg_pair_score"]["shuffled"]
    higher = (score[:, None] > shuffled[None]).mean()
    assert ax.get_title(loc="left") == f"pair score: true above shuffled in {100 * higher:.0f} %"
    heights = [p.get_height() for p in ax.patches if hasattr(p, "get_height")]
    edges = np.linspace(min(score.min(), shuffled.min()), max(score.max(), shuffled.max()) + 1e-12, 18)
    np.testing.assert_allclose(heights[:17], np.histogram(shuffled, edges, density=True)[0], rtol=1e-6)


def test_numbers_and_many_points(aligned, monkeypatch):
    monkeypatch.setattr(_alignment, "MOST_POINTS", 20)
    axes = stimg.pl.alignment(aligned, color="depth")
    assert len(points(axes["modality"])[0]) == 40
    assert len(axes["depth"].collections[0].get_array()) == 40


def test_errors(aligned):
    with pytest.raises(KeyError, match=r"adata\.obsm\['X_stimg_none_image'\] is missing.*stimg\.tl\.align"):
        stimg.pl.alignment(aligned, key="none")
    with pytest.raises(KeyError, match=r"adata\.obs\['none'\] is missing.*`color=`"):
        stimg.pl.alignment(aligned, color="none")
    aligned.obsm["X_stimg_clip_image"][2:] = np.nan
    with pytest.raises(ValueError, match="2 observations have both embeddings; wanted at least 3"):
        stimg.pl.alignment(aligned)
