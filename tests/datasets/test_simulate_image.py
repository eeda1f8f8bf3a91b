"""The H&E measured from its pixels, and the SpatialData that carries it."""

import sys

import numpy as np
import pytest

from stimg.datasets import DonorOptions, GeneOptions, ImageOptions, TissueOptions, simulate


@pytest.fixture(scope="module")
def slide_and_cells():
    _, truth = simulate(size_um=500.0, n_genes=5, tissue=TissueOptions(n_types=4, purity=0.5), rng=0, return_truth=True)
    slide = truth.slides["D1S1"]
    return slide, slide.render(), truth.cells()


def optical_density(image: np.ndarray) -> np.ndarray:
    return -np.log(np.clip(image.astype(float), 1, None) / 246.0)


def test_pink_stroma_purple_nuclei(slide_and_cells):
    slide, image, cells = slide_and_cells
    assert image.shape == (1000, 1000, 3)
    assert image.dtype == np.uint8
    row, col = (np.clip(cells[axis] / slide.mpp, 0, 999).astype(int) for axis in ("y_um", "x_um"))
    nuclei = image[row, col].mean(axis=0)
    dark = np.zeros(image.shape[:2], dtype=bool)
    for r, c in zip(row, col, strict=True):
        dark[max(0, r - 16) : r + 17, max(0, c - 16) : c + 17] = True
    stroma = image[~dark].mean(axis=0)
    assert stroma[0] > stroma[2] > stroma[1]  # pink: red, then blue, least green
    assert stroma[0] > 190
    assert nuclei[2] > nuclei[0] > nuclei[1]  # purple
    assert nuclei.mean() < stroma.mean() - 60


def test_nuclei_look_like_their_type(slide_and_cells):
    from scipy import ndimage

    slide, image, cells = slide_and_cells
    haem = (optical_density(image) @ np.linalg.pinv(slide.stains))[..., 0]
    label, _ = ndimage.label(haem > 0.6)
    size = np.bincount(label.ravel()) * slide.mpp**2
    row, col = (np.clip(cells[axis] / slide.mpp, 0, 999).astype(int).to_numpy() for axis in ("y_um", "x_um"))
    inside = (row > 25) & (row < 975) & (col > 25) & (col < 975)
    found = label[row, col]
    once = np.bincount(found, minlength=len(size))[found] == 1
    boxes = ndimage.find_objects(label)
    measured = {}
    for name in cells["type"].cat.categories:
        chosen = np.flatnonzero((cells["type"] == name).to_numpy() & inside & once & (found > 0))
        ratio = []
        for i in chosen:
            y, x = np.nonzero(label[boxes[found[i] - 1]] == found[i])
            if len(y) > 5:
                spread = np.sqrt(np.clip(np.linalg.eigvalsh(np.cov(np.stack([y, x]))), 0, None))
                ratio.append(spread[0] / spread[1])
        assert len(chosen) > 20, name
        measured[name] = (np.median(size[found[chosen]]), np.median(ratio), np.median(haem[row[chosen], col[chosen]]))
    area, ratio, stain = (dict(zip(measured, values, strict=True)) for values in zip(*measured.values(), strict=True))
    assert area["tumour"] > 1.4 * area["epithelial"] > 1.4 * area["lymphocyte"]
    assert area["tumour"] == pytest.approx(np.pi * 5.0**2, rel=0.25)
    assert area["lymphocyte"] == pytest.approx(np.pi * 2.7**2, rel=0.25)
    assert ratio["fibroblast"] < 0.5
    assert ratio["lymphocyte"] > 0.8
    assert stain["lymphocyte"] > 1.4 * stain["tumour"]


def test_parts_are_the_same_as_the_whole(slide_and_cells):
    slide, image, _ = slide_and_cells
    for top, left, height, width in ((0, 0, 10, 10), (200, 250, 300, 20), (990, 3, 10, 997), (511, 513, 1, 1)):
        np.testing.assert_array_equal(slide.render(top, left, height, width), image[top : top + height, left : left + width])
    with pytest.raises(ValueError, match="not inside"):
        slide.render(990, 0, 20, 10)


@pytest.mark.parametrize("longest", [1000, 333, 300])
def test_thumbnail_is_the_mean(slide_and_cells, longest):
    slide, image, _ = slide_and_cells
    small, scale = slide.thumbnail(longest)
    factor = round(1 / scale)
    assert max(small.shape) <= longest
    for r, c in ((0, 0), (7, 50), (small.shape[0] - 1, small.shape[1] - 1)):
        block = image[r * factor : (r + 1) * factor, c * factor : (c + 1) * factor].reshape(-1, 3)
        np.testing.assert_allclose(small[r, c], block.mean(axis=0), atol=0.51)


@pytest.mark.parametrize("mpp", [0.25, 1.7, 5.0, 40.0])
def test_blocks_do_not_matter(mpp, monkeypatch):
    _, truth = simulate(
        size_um=min(1000.0, max(300.0, 200 * mpp)), n_genes=5, tissue=TissueOptions(outline=True), rng=1, mpp=mpp, return_truth=True
    )
    slide = truth.slides["D1S1"]
    part = (slide.shape[0] // 3, slide.shape[1] // 3, min(90, slide.shape[0] // 2), min(120, slide.shape[1] // 2))
    whole = slide.render(*part)
    assert whole.std() > 5
    monkeypatch.setattr(sys.modules[type(slide).__module__], "BLOCK", 19)
    np.testing.assert_array_equal(slide.render(*part), whole)


def test_coarse_pixels_are_means():
    fine, coarse = (
        simulate(size_um=400.0, n_genes=5, rng=0, mpp=mpp, stain=ImageOptions(noise=0.0), return_truth=True)[1].slides["D1S1"].render()
        for mpp in (1.0, 8.0)
    )
    means = fine.reshape(50, 8, 50, 8, 3).mean(axis=(1, 3))
    assert np.abs(means - coarse).mean() < 6
    assert np.corrcoef(means[..., 0].ravel(), coarse[..., 0].ravel())[0, 1] > 0.9


def test_outside_is_white_and_domains_differ():
    tissue = TissueOptions(outline=True, holes=0.05)
    adata = simulate(technology="visium_hd", shape=(50, 50), n_genes=5, tissue=tissue, image=True, mpp=1.0, rng=1)
    image = adata.uns["spatial"]["D1S1"]["images"]["hires"]
    assert image.shape == (400, 400, 3)
    on = np.zeros((50, 50), dtype=bool)
    on[adata.obs["array_row"], adata.obs["array_col"]] = True
    grey = image.reshape(50, 8, 50, 8, 3).mean(axis=(1, 3, 4))
    assert np.median(grey[~on]) > 235
    assert np.median(grey[on]) < 215
    scale = adata.uns["spatial"]["D1S1"]["scalefactors"]["tissue_hires_scalef"]
    assert scale == 1.0
    xy = adata.obsm["spatial"] * scale
    assert image[xy[:, 1].astype(int), xy[:, 0].astype(int)].mean() < 215
    domain = adata.obs["domain"].cat.codes.to_numpy()
    value = grey[on]
    between = np.array([value[domain == d].mean() if (domain == d).any() else 0 for d in range(5)])[domain]
    assert between.var() > 0.1 * value.var()


def test_stain_effects():
    options = {"size_um": 200.0, "n_genes": 5, "n_donors": 3, "rng": 0, "return_truth": True}
    _, on = simulate(**options, donors=DonorOptions(stain_sd=0.1))
    _, off = simulate(**options, donors=DonorOptions.none())
    colour = {
        key: np.stack([np.median(s.render(), axis=(0, 1)) for s in truth.slides.values()]) for key, truth in (("on", on), ("off", off))
    }
    assert np.ptp(colour["on"], axis=0).max() > 12
    base = off.slides["D1S1"].stains
    np.testing.assert_allclose(np.linalg.norm(base, axis=1), 1)
    assert all((s.stains == base).all() for s in off.slides.values())
    assert (on.slides["D1S1"].stains == base).all()


def test_flat_options():
    plain = simulate(size_um=200.0, n_genes=5, stain=ImageOptions(texture=0.0, noise=0.0), image=True, mpp=1.0)
    rough = simulate(size_um=200.0, n_genes=5, image=True, mpp=1.0)
    images = [np.asarray(a.uns["spatial"]["D1S1"]["images"]["hires"], dtype=float) for a in (plain, rough)]
    assert np.abs(np.diff(images[0], axis=0)).mean() < 0.8 * np.abs(np.diff(images[1], axis=0)).mean()
    with pytest.raises(ValueError, match="eosin"):
        ImageOptions(eosin=(0.0, 0.0, 0.0))


@pytest.mark.parametrize("technology", ["visium", "st", "visium_hd", "xenium"])
def test_sdata(technology, tmp_path):
    import spatialdata as sd
    from spatialdata.transformations import get_transformation

    arguments = {"technology": technology, "size_um": 400.0, "n_genes": 12, "genes": GeneOptions(n_controls=2), "mpp": 1.0, "rng": 0}
    sdata, truth = simulate(**arguments, n_sections=2, image=True, as_sdata=True, return_truth=True)
    plain = simulate(**arguments, n_sections=2)
    assert (sdata["table"].X != plain.X).nnz == 0
    image = sdata["D1S2_full_image"]
    assert image.shape == (3, 400, 400)
    np.testing.assert_array_equal(np.moveaxis(image.values, 0, -1), truth.slides["D1S2"].render())
    for library in ("D1S1", "D1S2"):
        rows = sdata["table"][sdata["table"].obs["region"] == library]
        shapes = sdata[library].loc[rows.obs["instance_id"]]
        centre = np.stack([shapes.geometry.centroid.x, shapes.geometry.centroid.y], axis=1)
        np.testing.assert_allclose(centre, rows.obsm["spatial"])
        assert set(get_transformation(sdata[library], get_all=True)) == {library}
        if technology == "xenium":
            molecules = sdata[f"{library}_transcripts"].compute()
            assert (molecules["cell_id"] != "UNASSIGNED").sum() == rows.X.sum()
    sdata.write(tmp_path / "s.zarr")
    again = sd.read_zarr(tmp_path / "s.zarr")
    assert (again["table"].X != plain.X).nnz == 0
    assert again["D1S1_full_image"].shape == (3, 400, 400)
