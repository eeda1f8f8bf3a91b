"""The parts that all loaders share, on small made-up files."""

import gzip
import subprocess
import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stimg.datasets.section import Section, affine_scale, assemble, check_image, open_image, read_count_table, reduced, select


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6), st.integers(1, 7), st.integers(0, 2**31 - 1), st.booleans(), st.sampled_from("\t,"))
def test_count_table_equals_pandas(tmp_path_factory, n, m, seed, packed, delimiter):
    values = np.random.default_rng(seed).poisson(0.7, (n, m)) * 3
    frame = pd.DataFrame(values, index=[f"{i}x{i + 1}" for i in range(n)], columns=[f"g{j}" for j in range(m)])
    path = tmp_path_factory.mktemp("t") / "c.tsv"
    data = frame.to_csv(sep=delimiter).encode()
    path.write_bytes(gzip.compress(data) if packed else data)
    counts, rows, columns = read_count_table(path, delimiter=delimiter)
    assert (counts.toarray() == values).all()
    assert counts.nnz == np.count_nonzero(values)
    assert rows == frame.index.tolist()
    assert columns == frame.columns.tolist()


def test_a_cut_count_table_names_the_line(tmp_path):
    (tmp_path / "c.tsv").write_text("\ta\tb\n1x1\t1\t2\n1x2\t3\n")
    with pytest.raises(ValueError, match="line 3: 1 numbers for 2 columns"):
        read_count_table(tmp_path / "c.tsv", delimiter="\t")


def test_affine_scale_of_a_turned_and_stretched_grid():
    grid = np.stack(np.meshgrid(np.arange(5.0), np.arange(7.0)), -1).reshape(-1, 2)
    turn = np.array([[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]])
    assert affine_scale(grid, grid @ (turn * 290) + [11, -7]) == pytest.approx(290)
    assert affine_scale(grid, grid * [4, 9]) == pytest.approx(6)


@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_reduced_image_equals_block_means_and_keeps_pillows_limit(tmp_path, kind, monkeypatch):
    y, x = np.mgrid[:1203, :907]
    array = np.stack([127 + 120 * np.sin(x / 90), 127 + 120 * np.cos(y / 70), (x + y) / 9], -1).astype(np.uint8)
    path = tmp_path / f"i.{kind}"
    Image.fromarray(array).save(path, quality=95)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    pixels, scale = reduced(path, (907, 1203), 150)
    assert pixels.shape == (150, 113, 3)
    assert scale == 150 / 1203
    for row, column in [(3, 5), (70, 60), (149, 112), (120, 9)]:
        block = array[int(row * 1203 / 150) : int((row + 1) * 1203 / 150), int(column * 907 / 113) : int((column + 1) * 907 / 113)]
        assert np.abs(pixels[row, column] - block.reshape(-1, 3).mean(0)).max() < 6
    assert Image.MAX_IMAGE_PIXELS == 1000
    with pytest.raises(Image.DecompressionBombError):
        Image.open(path)
    with pytest.raises(ValueError, match=r"expected \(910, 1203\)"), open_image(path, (910, 1203)):
        pass
    assert Image.MAX_IMAGE_PIXELS == 1000


def _section(library, genes, image=None):
    n = 3
    return Section(
        library=library,
        donor=library[0],
        counts=sp.csr_matrix(np.arange(n * len(genes)).reshape(n, -1)),
        names=[f"{i}x1" for i in range(n)],
        var=pd.DataFrame(index=pd.Index(genes)),
        obs=pd.DataFrame({"array_row": [1] * n, "array_col": range(n)}),
        xy=np.array([[10.0, 20], [30, 20], [50, 20]]),
        mpp=10.0,
        spot_um=100.0,
        image=image,
        image_size=(64, 40),
    )


def test_several_sections_share_the_genes_all_of_them_list():
    merged = assemble([_section("A1", ["a", "b", "c"]), _section("B1", ["c", "a"])], image="none", as_sdata=False)
    assert merged.var_names.tolist() == ["a", "c"]
    assert merged.obs_names.tolist() == ["A1_0x1", "A1_1x1", "A1_2x1", "B1_0x1", "B1_1x1", "B1_2x1"]
    assert merged.X.toarray().tolist() == [[0, 2], [3, 5], [6, 8], [1, 0], [3, 2], [5, 4]]
    assert merged.X.dtype == np.float32
    assert isinstance(merged.obs["library_id"].dtype, pd.CategoricalDtype)
    assert isinstance(merged.obs["donor"].dtype, pd.CategoricalDtype)
    assert sorted(merged.uns["spatial"]) == ["A1", "B1"]
    assert merged.uns["spatial"]["B1"]["scalefactors"]["spot_diameter_fullres"] == 10


def test_repeated_genes_are_refused():
    with pytest.raises(ValueError, match="duplicated genes in A1"):
        assemble([_section("A1", ["a", "a"])], image="none", as_sdata=False)


def test_it_can_be_written(tmp_path):
    merged = assemble([_section("A1", ["a", "b"])], image="none", as_sdata=False)
    merged.write_h5ad(tmp_path / "a.h5ad")
    again = ad.read_h5ad(tmp_path / "a.h5ad")
    assert (again.X.toarray() == merged.X.toarray()).all()


@pytest.mark.parametrize("image", ["hires", "full"])
def test_spatialdata_elements_lie_on_each_other(tmp_path, image):
    from spatialdata import get_extent
    from spatialdata.transformations import get_transformation

    array = np.zeros((40, 64, 3), np.uint8)
    array[20, 30] = 255
    Image.fromarray(array).save(tmp_path / "i.png")
    sections = [_section("A1", ["a", "b"], tmp_path / "i.png"), _section("A2", ["a", "b"])]
    both = assemble(sections, image=image, as_sdata=True)
    assert sorted(both.images) == ["A1_image"]
    assert sorted(both.coordinate_systems) == ["A1", "A1_um", "A2", "A2_um"]
    one = assemble(sections[:1], image=image, as_sdata=True)
    assert sorted(one.coordinate_systems) == ["A1", "A1_um", "global", "um"]
    assert (one.images["A1_image"].transpose("y", "x", "c").to_numpy() == array).all()
    extent = get_extent(one.shapes["A1_spots"], coordinate_system="um")
    assert extent["x"] == pytest.approx((50, 550))  # 10 px x 10 um, radius 50 um
    assert extent["y"] == pytest.approx((150, 250))
    um = get_transformation(one.images["A1_image"], "um").to_affine_matrix(("x", "y"), ("x", "y"))
    assert um == pytest.approx(np.diag([10.0, 10, 1]))
    table = one["table"]
    assert table.uns["spatialdata_attrs"]["region"] in ("A1_spots", ["A1_spots"])
    assert table.obs["spot_id"].tolist() == one.shapes["A1_spots"].index.tolist()


def test_choices_are_checked():
    with pytest.raises(ValueError, match="as_sdata=True"):
        check_image("full", False)
    with pytest.raises(ValueError, match="image='big'"):
        check_image("big", True)
    with pytest.raises(ValueError, match=r"\['Z9'\] is not registered.*B1"):
        select(["B1", "Z9"], ["B1", "B2"], "HER2ST section")
    with pytest.raises(ValueError, match="twice"):
        select(["B1", "B1"], ["B1", "B2"], "HER2ST section")
    with pytest.raises(ValueError, match="is not registered"):
        select([], ["B1", "B2"], "HER2ST section")


def test_importing_is_light():
    code = "import sys, stimg.datasets; print([m for m in ('torch', 'scvi', 'spatialdata', 'scanpy', 'squidpy', 'PIL', 'pooch') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_the_documentation_shows_the_registry():
    from pathlib import Path

    from stimg.datasets.registry import markdown

    page = (Path(__file__).parents[2] / "docs" / "datasets.md").read_text(encoding="utf-8")
    table = page.split("markdown() -->\n")[1].split("<!-- end of table")[0]
    assert table == f"\n{markdown()}\n"
