"""The verb against naive windows of numpy, and where it finds the image."""

import numpy as np
import pytest
from PIL import Image

import stimg
from stimg._core import keys


@pytest.fixture
def slide():
    adata = stimg.datasets.simulate(technology="visium", shape=(9, 8), n_genes=20, image=True, rng=0)
    stimg.pp.rasterize(adata)
    return adata


def full_image(adata, seed=0):
    rng = np.random.default_rng(seed)
    height, width = (np.asarray(adata.obsm["spatial"])[:, ::-1].max(0) + 300).astype(int)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def mpp_of(adata, library):
    return adata.uns["spatial"][library]["scalefactors"]["microns_per_pixel"]


def test_columns_are_those_of_naive_windows(slide):
    library = slide.obs["library_id"].iloc[0]
    image = full_image(slide)
    stimg.pp.colour_statistics(slide, image=image, windows_um=(60, 150))
    found, record = slide.obsm[keys.COLOUR], slide.uns["stimg"][keys.COLOUR]
    assert found.dtype == np.float32
    assert list(record["columns"][:5]) == ["60um_red_mean", "60um_red_sd", "60um_red_p10", "60um_red_p90", "60um_green_mean"]
    density = -np.log10((image.astype(float) + 1) / 256)
    for i in (0, 5, slide.n_obs - 1):
        wanted = []
        for side_um in (60, 150):
            side = round(side_um / mpp_of(slide, library))
            y, x = (int(np.floor(c - side / 2 + 0.5)) for c in slide.obsm["spatial"][i, ::-1])
            window = density[max(y, 0) : y + side, max(x, 0) : x + side].reshape(-1, 3)
            for channel in window.T:
                wanted += [channel.mean(), channel.std(), *np.percentile(channel, [10, 90])]
        np.testing.assert_allclose(found[i], wanted, rtol=2e-5, atol=2e-5)
    assert stimg.bench.recall(slide, only=[keys.COLOUR]) == []  # nothing was fitted


def test_a_file_is_read_where_the_object_names_one_and_the_reduced_image_elsewhere(slide, tmp_path):
    library = slide.obs["library_id"].iloc[0]
    other = slide.copy()
    stimg.pp.colour_statistics(slide)  # the image kept in uns
    reduced = slide.obsm[keys.COLOUR].copy()
    scale = slide.uns["spatial"][library]["scalefactors"]["tissue_hires_scalef"]
    pixels = np.asarray(slide.uns["spatial"][library]["images"]["hires"])
    Image.fromarray(pixels).save(tmp_path / "a.png")
    metadata = other.uns["spatial"][library].setdefault("metadata", {})
    metadata["source_image_path"], metadata["source_image_scale"] = str(tmp_path / "a.png"), scale
    stimg.pp.colour_statistics(other)
    np.testing.assert_array_equal(other.obsm[keys.COLOUR], reduced)
    as_float = slide.copy()
    as_float.uns["spatial"][library]["images"]["hires"] = pixels / 255.0
    stimg.pp.colour_statistics(as_float)
    np.testing.assert_array_equal(as_float.obsm[keys.COLOUR], reduced)


def test_what_cannot_be_read_is_refused_and_nothing_is_written(slide, tmp_path):
    library = slide.obs["library_id"].iloc[0]
    bare = slide.copy()
    bare.uns["spatial"][library]["images"] = {}
    with pytest.raises(KeyError, match="names no image file that exists and holds no 'hires' image"):
        stimg.pp.colour_statistics(bare)
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="cannot be read as an image"):
        stimg.pp.colour_statistics(bare, image=tmp_path / "a.png")
    with pytest.raises(FileNotFoundError, match="there is no image"):
        stimg.pp.colour_statistics(bare, image=tmp_path / "b.png")
    with pytest.raises(KeyError, match=r"image has nothing for library .* \(found \['other'\]\)"):
        stimg.pp.colour_statistics(bare, image={"other": tmp_path / "a.png"})
    with pytest.raises(ValueError, match=r"no pixel|outside"):
        stimg.pp.colour_statistics(bare, image=np.zeros((20, 20, 3), dtype=np.uint8))
    raw = stimg.datasets.simulate(technology="visium", shape=(9, 8), n_genes=20, rng=0)
    raw.uns.pop("stimg", None)
    raw.obsm.pop("stimg_rc", None)
    with pytest.raises(KeyError, match=r"stimg\.pp\.rasterize"):
        stimg.pp.colour_statistics(raw, image=full_image(raw))
    assert keys.COLOUR not in bare.obsm


def test_one_image_for_several_libraries_is_refused():
    adata = stimg.datasets.simulate(technology="visium", shape=(6, 6), n_genes=10, n_sections=2, rng=0)
    stimg.pp.rasterize(adata)
    with pytest.raises(ValueError, match="One image for several libraries"):
        stimg.pp.colour_statistics(adata, image=full_image(adata))
