"""Sections with one mistake made on purpose, simulated and real, and the same sections without it."""

import functools

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import stimg
from stimg import pp
from stimg.pp import _check_search as searching
from stimg.pp._check_placement import pooled

CHECKS = [
    "scale", "extent", "coordinates", "array", "tissue", "axis swap", "flip", "rotation", "shift", "coordinate scale", "section", "counts", "panel",
    "control probes", "observations", "depth",
]  # fmt: skip
GEOMETRY = CHECKS[:11]
MPP = 4.0


@functools.cache
def made(technology="visium", outline=True, seed=1):
    shape = (21, 19) if technology == "visium" else (15, 14)
    return stimg.datasets.simulate(
        technology=technology, shape=shape, n_genes=150, n_donors=2, image=True, mpp=MPP,
        tissue=stimg.datasets.TissueOptions(outline=outline), rng=seed,
    )  # fmt: skip


def one(adata, library):
    part = adata[adata.obs["library_id"] == library].copy()
    part.uns = {"spatial": {library: {k: dict(v) for k, v in adata.uns["spatial"][library].items()}}}
    return part


@pytest.fixture
def slide():
    return one(made(), "D1S1")


def entry(adata, library="D1S1"):
    return adata.uns["spatial"][library]


def status(adata, **options):
    """The status of every check of the only library."""
    table = pp.check_slide(adata, **options)
    assert table["check"].tolist() == CHECKS
    return dict(zip(table["check"], table["status"], strict=True))


def moved(adata, by):
    adata.obsm["spatial"] = by(np.asarray(adata.obsm["spatial"], dtype=float))
    return adata


def with_image(adata, change):
    images = entry(adata)["images"]
    for name in images:
        images[name] = np.ascontiguousarray(change(images[name]))
    return adata


def bare(adata):
    """Without array indices and without any scale but the image's."""
    adata.obs = adata.obs.drop(columns=["array_row", "array_col"])
    factors = entry(adata)["scalefactors"]
    entry(adata)["scalefactors"] = {k: v for k, v in factors.items() if k.startswith("tissue_")}
    return adata


@pytest.mark.parametrize(
    ("technology", "outline", "library"), [("visium", True, "D1S1"), ("visium", False, "D2S1"), ("st", True, "D1S1"), ("st", True, "D2S1")]
)
def test_a_good_slide_does_not_fail(technology, outline, library):
    found = status(one(made(technology, outline), library), pitch_um=None if technology == "visium" else 200.0)
    assert "fail" not in found.values()
    assert "warn" not in found.values()
    assert found["scale"] == found["extent"] == found["array"] == found["section"] == found["counts"] == found["flip"] == "pass"
    assert found["tissue"] == ("pass" if outline else "skip")


MISTAKES = {
    "axis swap": lambda a: moved(a, lambda p: p[:, ::-1]),
    "flip": lambda a: with_image(a, lambda i: i[:, ::-1]),
    "rotation": lambda a: with_image(a, lambda i: i[::-1, ::-1]),
    "shift": lambda a: moved(a, lambda p: p + np.array([200.0, -100.0]) / MPP),  # 2 and 1 steps
    "coordinate scale": lambda a: moved(a, lambda p: p * 1.1),
}


@pytest.mark.parametrize(("mistake", "alone"), [*((mistake, True) for mistake in MISTAKES), ("axis swap", False), ("shift", False)])
def test_a_mistake_is_found_and_named(slide, mistake, alone):
    adata = MISTAKES[mistake](slide)
    found = status(bare(adata) if alone else adata)
    assert found[mistake] == "fail"
    for other in MISTAKES:
        assert other == mistake or found[other] != "fail"
    assert found["section"] == "skip"


def test_a_mirrored_image_up_down_and_a_quarter_turn(slide):
    assert status(with_image(slide.copy(), lambda i: i[::-1]))["flip"] == "fail"
    turned = one(made(), "D1S1")
    assert status(with_image(turned, np.rot90))["rotation"] == "fail"


def test_a_mirrored_array_on_the_right_image(slide):
    middle = slide.obsm["spatial"][:, 0].min() + slide.obsm["spatial"][:, 0].max()
    found = status(bare(moved(slide, lambda p: np.column_stack([middle - p[:, 0], p[:, 1]]))))
    assert found["flip"] == "fail"


@pytest.mark.parametrize("alone", [False, True])
def test_hires_coordinates_and_micrometres(slide, alone):
    scale = entry(slide)["scalefactors"]["tissue_hires_scalef"] / 3  # as if the image kept had a third of the pixels
    entry(slide)["scalefactors"]["tissue_hires_scalef"] = scale
    entry(slide)["images"] = {"hires": np.ascontiguousarray(entry(slide)["images"]["hires"][::3, ::3])}
    hires = moved(slide.copy(), lambda p: p * scale)
    table = pp.check_slide(bare(hires) if alone else hires).set_index("check")
    assert table.loc["coordinate scale", "status"] == "fail"
    assert "pixels of the hires image" in table.loc["coordinate scale", "found"]
    um = moved(slide.copy(), lambda p: p * MPP)
    table = pp.check_slide(um).set_index("check")
    assert table.loc["coordinate scale", "status"] == table.loc["scale", "status"] == "fail"
    assert "µm, x 0.25" in table.loc["coordinate scale", "found"]
    assert "look like µm" in table.loc["scale", "todo"]


@pytest.mark.parametrize(("off", "wanted"), [(1.02, "warn"), (0.98, "warn"), (1.1, "fail"), (0.9, "fail")])
def test_a_wrong_scale_is_seen_where_two_sources_state_it(slide, off, wanted):
    factors = entry(slide)["scalefactors"]
    factors["microns_per_pixel"] *= off
    table = pp.check_slide(slide).set_index("check")
    assert table.loc["scale", "status"] == wanted
    assert f"{off * MPP:.4g}" in table.loc["scale", "found"]
    assert "pitch 4 " in table.loc["scale", "found"]
    if wanted == "fail":
        assert status(slide, trust="pitch")["scale"] == "warn"


def test_a_wrong_scale_without_a_second_source_is_said_to_be_invisible(slide):
    adata = bare(slide)
    entry(adata)["scalefactors"]["microns_per_pixel"] = 1.02 * MPP
    row = pp.check_slide(adata).set_index("check").loc["scale"]
    assert row["status"] == "warn"
    assert "nothing confirms it, an error in it cannot be seen" in row["found"]
    del entry(adata)["scalefactors"]["microns_per_pixel"]
    row = pp.check_slide(adata).set_index("check").loc["scale"]
    assert row["status"] == "fail"
    assert "set_mpp" in row["todo"]


@pytest.mark.parametrize("off", [1.02, 0.98])
def test_coordinates_scaled_by_two_percent_are_seen_by_expression(off):
    adata = one(made("visium", True, 0), "D1S1")
    found = status(bare(moved(adata, lambda p: p * off)))
    assert found["coordinate scale"] in ("fail", "warn")


@pytest.mark.parametrize(("library", "other"), [("D1S1", "D2S1"), ("D2S1", "D1S1")])
def test_the_image_of_another_section(library, other):
    """Both fill the same square, so that nothing but expression can tell."""
    adata = one(made("st"), library)
    entry(adata, library)["images"] = made("st").uns["spatial"][other]["images"]
    assert status(adata, pitch_um=200.0)["section"] in ("fail", "warn")


def test_an_image_whose_tissue_lies_elsewhere(slide):
    found = status(with_image(slide, lambda i: np.roll(i, len(i) // 2, axis=0)))
    assert found["tissue"] == "fail"


@pytest.mark.slow
def test_exchanged_images_of_two_libraries():
    both = made().copy()
    a, b = (both.uns["spatial"][n]["images"] for n in ("D1S1", "D2S1"))
    both.uns["spatial"]["D1S1"]["images"], both.uns["spatial"]["D2S1"]["images"] = b, a
    table = pp.check_slide(both)
    section = table[table["check"] == "section"].set_index("library_id")
    assert section["status"].tolist() == ["fail", "fail"]
    assert "on the image of 'D2S1'" in section.loc["D1S1", "found"]
    both.uns["spatial"]["D2S1"]["images"] = both.uns["spatial"]["D1S1"]["images"] = a
    table = pp.check_slide(both)
    assert "the very image of library 'D2S1'" in table[table["check"] == "section"].set_index("library_id").loc["D1S1", "found"]


def test_alternatives_are_maps_between_the_given_and_the_true_placement():
    """The best map found for a shifted slide is the shift back, whatever the rest of the pipeline does."""
    from stimg.image.alignment import expression_values, image_maps

    adata = one(made("visium", False), "D1S1")
    image = entry(adata)["images"]["hires"]
    yx = adata.obsm["spatial"][:, ::-1] * entry(adata)["scalefactors"]["tissue_hires_scalef"]
    step = float(np.sort(np.hypot(*(yx - yx[30]).T))[1])
    off = np.array([1.5 * step, -step])
    found = searching.search(image_maps(image, step_px=step), yx + off, expression_values(adata.X), step_px=step)
    best = found.best["shift"]
    np.testing.assert_allclose(best.transform.offset, [-1.5 * step, step])
    assert found.cause is best
    assert found.chance.structured
    np.testing.assert_allclose(best.transform(yx + off), yx)


# ---- the table


@pytest.mark.parametrize(
    ("check", "wanted", "words", "change"),
    [
        ("counts", "fail", "are fractions, such as", lambda a: setattr(a, "X", a.X * 0.3)),
        ("counts", "fail", "negative values, the least is -1", lambda a: a.X.data.__setitem__(0, -1)),
        ("counts", "fail", "1 NaN or infinite", lambda a: a.X.data.__setitem__(0, np.nan)),
        ("counts", "fail", "all values are zero", lambda a: setattr(a, "X", sp.csr_matrix(a.shape, dtype=np.float32))),
        ("panel", "fail", "1 duplicated gene names", lambda a: setattr(a, "var_names", [a.var_names[1], *a.var_names[1:]])),
        ("panel", "fail", "gene names are numbers", lambda a: setattr(a, "var_names", [str(i) for i in range(a.n_vars)])),
        ("panel", "warn", "several species", lambda a: setattr(a, "var_names", [f"{'mm10' if i % 2 else 'GRCh38'}_{n}" for i, n in enumerate(a.var_names)])),
        ("panel", "warn", "Ensembl identifiers, the rest", lambda a: setattr(a, "var_names", [f"ENSG{i:011d}" if i < 50 else f"G{i}" for i in range(a.n_vars)])),
        ("control probes", "fail", "probes with ", lambda a: a.var.__setitem__("control", a.X.sum(axis=0).A1 > np.median(a.X.sum(axis=0).A1) * 2)),
        ("control probes", "fail", "has dtype", lambda a: a.var.__setitem__("control", "no")),
        ("observations", "fail", "1 duplicated names in the table", lambda a: setattr(a, "obs_names", [a.obs_names[1], *a.obs_names[1:]])),
        ("observations", "fail", "1 observations have the coordinates", lambda a: a.obsm["spatial"].__setitem__(0, a.obsm["spatial"][1])),
        ("observations", "fail", "1 observations have the counts of another", lambda a: setattr(a, "X", sp.vstack([a.X[1], a.X[1:]]).tocsr())),
        ("coordinates", "fail", "1 of 399 have NaN", lambda a: a.obsm["spatial"].__setitem__(0, np.nan)),
        ("depth", "fail", "nothing|median 0", lambda a: setattr(a, "X", a.X.multiply(np.arange(a.n_obs)[:, None] < 100).tocsr())),
        ("depth", "warn", "1 of 399 observations without any count", lambda a: setattr(a, "X", a.X.multiply(np.arange(a.n_obs)[:, None] > 0).tocsr())),
        ("depth", "warn", "mitochondrial", lambda a: setattr(a, "var_names", [f"MT-{i}" if i < 100 else f"G{i}" for i in range(a.n_vars)])),
        ("array", "fail", "do not lie on the", lambda a: a.obs.__setitem__("array_row", a.obs["array_row"].to_numpy()[np.random.default_rng(0).permutation(a.n_obs)] // 2 * 2 + a.obs["array_row"] % 2)),
        ("extent", "fail", "observations lie outside the image", lambda a: moved(a, lambda p: p + np.array([2000.0, 0]))),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_table_is_told(check, wanted, words, change):
    adata = one(made("visium", False), "D1S1")
    if check != "extent":
        entry(adata)["images"] = {}  # nothing is compared with an image here
    assert status(adata)[check] == "pass"
    change(adata)
    row = pp.check_slide(adata).set_index("check").loc[check]
    assert row["status"] == wanted
    assert pd.Series([row["found"]]).str.contains(words).all(), row["found"]
    assert row["todo"]


def test_without_image_positions_or_enough_observations(slide):
    alone = slide.copy()
    entry(alone)["images"] = {}
    found = status(alone)
    assert {found[c] for c in CHECKS[4:11]} == {"skip"}
    unplaced = slide.copy()
    del unplaced.obsm["spatial"]
    assert status(unplaced)["coordinates"] == "fail"
    few = one(slide[:30].copy(), "D1S1")
    table = pp.check_slide(few).set_index("check")
    assert table.loc["shift", "found"] == "30 observations with counts; wanted 50 or more"
    grey = with_image(slide.copy(), lambda i: i[..., 0])
    assert "has shape" in pp.check_slide(grey).set_index("check").loc["shift", "found"]


def test_observations_beside_the_tissue_are_told_from_a_wrong_place():
    """The whole array, background included: in_tissue decides, and where it is missing the few counts do."""
    adata = one(made(), "D1S1")
    full = one(made("visium", False), "D1S1")
    here = set(zip(adata.obs["array_row"], adata.obs["array_col"], strict=True))
    on = np.array([pair in here for pair in zip(full.obs["array_row"], full.obs["array_col"], strict=True)])
    full.X = full.X.multiply(np.where(on, 1, 0)[:, None]).tocsr()
    full.X = sp.csr_matrix(full.X + (np.random.default_rng(0).random(full.shape) < 0.02), dtype=np.float32)
    full.uns["spatial"] = adata.uns["spatial"]
    full.obs["in_tissue"] = on.astype(int)
    assert status(full)["tissue"] == "pass"
    full.obs = full.obs.drop(columns="in_tissue")
    row = pp.check_slide(full).set_index("check").loc["tissue"]
    assert row["status"] == "warn"
    assert "those beside it have fewer counts" in row["found"]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"trust": "nobody"}, ValueError, r"trust='nobody' is not known"),
        ({"trust": "bins"}, ValueError, r"trust='bins', but it says nothing"),
        ({"layer": "raw"}, KeyError, r"adata.layers\['raw'\] is missing"),
        ({"image_key": "huge"}, KeyError, r"has no image 'huge'.*found \['hires', 'lowres'\]"),
        ({"image": "nowhere.jpg"}, FileNotFoundError, r"there is no image nowhere.jpg"),
        ({"image": np.zeros((9, 9), np.uint8)}, ValueError, r"wanted \(y, x, 3\)"),
        ({"image": np.zeros((9, 9, 3))}, TypeError, r"wanted uint8"),
        ({"image": {"other": np.zeros((9, 9, 3), np.uint8)}}, KeyError, r"image names \['other'\], which are no libraries"),
        ({"mpp": "1"}, TypeError, r"mpp='1' is a str"),
        ({"mpp": 0}, ValueError, r"mpp=0 is not above zero"),
        ({"pitch_um": {"D1S1": -5}}, ValueError, r"pitch_um=-5 is not above zero"),
        ({"library_key": "batch"}, None, ""),
        ({"coordinate_system": "global"}, ValueError, r"goes with a SpatialData"),
        ({"table_key": "other"}, None, ""),
    ],
)
def test_options_that_cannot_be_used_are_refused(slide, options, error, words):
    if error is None:  # one library: its name is that of uns, and an AnnData has no table
        assert len(pp.check_slide(slide, **options)) == len(CHECKS)
        return
    with pytest.raises(error, match=words):
        pp.check_slide(slide, **options)
    assert "stimg" not in slide.uns


def test_one_image_for_two_libraries_and_no_library_are_refused():
    with pytest.raises(ValueError, match="One image for 2 libraries"):
        pp.check_slide(made().copy(), image=np.zeros((9, 9, 3), np.uint8))
    with pytest.raises(KeyError, match=r"adata.obs\['batch'\] is missing"):
        pp.check_slide(made().copy(), library_key="batch")
    with pytest.raises(ValueError, match="0 observations"):
        pp.check_slide(made()[:0].copy())
    with pytest.raises(TypeError, match="wanted an AnnData or a SpatialData"):
        pp.check_slide([1])


# ---- where the image comes from, and what is kept


@pytest.mark.slow
def test_a_full_image_a_file_and_the_reduced_one_say_the_same(slide, tmp_path):
    from PIL import Image

    kept = status(slide.copy())
    full = np.asarray(entry(slide)["images"]["hires"])
    assert entry(slide)["scalefactors"]["tissue_hires_scalef"] == 1.0
    entry(slide)["images"] = {}
    assert status(slide.copy(), image=full) == kept
    Image.fromarray(full).save(tmp_path / "a.png")
    assert status(slide.copy(), image={"D1S1": tmp_path / "a.png"}) == kept
    Image.fromarray(full).save(tmp_path / "a.jpg", quality=95)
    assert status(slide.copy(), image=tmp_path / "a.jpg")["shift"] == "pass"
    entry(slide)["metadata"]["source_image_path"] = str(tmp_path / "a.png")
    assert status(slide) == kept


def test_coordinates_of_the_reduced_image_on_the_full_one(slide):
    full = np.asarray(entry(slide)["images"]["hires"])
    entry(slide)["scalefactors"]["tissue_hires_scalef"] = 0.25
    row = pp.check_slide(moved(slide, lambda p: p * 0.25), image=full).set_index("check").loc["coordinate scale"]
    assert row["status"] == "fail"
    assert "pixels of the hires image, x 4" in row["found"]


def test_the_record_can_be_written_and_read(slide, tmp_path):
    table = pp.check_slide(slide, key_added="examined")
    assert list(table.columns) == ["library_id", "check", "status", "found", "wanted", "todo"]
    slide.write_h5ad(tmp_path / "a.h5ad")
    record = ad.read_h5ad(tmp_path / "a.h5ad").uns["stimg"]["examined"]
    pd.testing.assert_frame_equal(record["table"], table, check_dtype=False)
    sketch = record["libraries"]["D1S1"]
    assert max(sketch["image"].shape) <= 600
    scale = max(sketch["image"].shape) / max(entry(slide)["images"]["hires"].shape)
    np.testing.assert_allclose(sketch["xy"], slide.obsm["spatial"] * scale, rtol=3e-3)
    np.testing.assert_allclose(sketch["depth"], slide.X.sum(axis=1).A1)
    assert sketch["mpp"] == pytest.approx(MPP / scale, rel=3e-3)


def test_nothing_but_the_record_changes(slide):
    before = slide.copy()
    pp.check_slide(slide)
    np.testing.assert_array_equal(slide.obsm["spatial"], before.obsm["spatial"])
    assert (slide.X != before.X).nnz == 0
    pd.testing.assert_frame_equal(slide.obs, before.obs)
    assert set(slide.uns) == {"spatial", "stimg"}
    assert set(slide.uns["stimg"]) == {"check_slide"}


@pytest.mark.slow
@pytest.mark.parametrize("mistake", [None, "axis swap", "flip"])
def test_elements_of_spatialdata(mistake):
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Affine, Scale, set_transformation

    sdata = stimg.datasets.simulate(
        technology="st",
        shape=(16, 15),
        n_genes=150,
        image=True,
        mpp=4.0,
        tissue=stimg.datasets.TissueOptions(outline=True),
        rng=1,
        as_sdata=True,
    )
    name = "D1S1_full_image"
    pixels = np.asarray(sdata.images[name].data)
    if mistake == "flip":
        sdata.images[name] = Image2DModel.parse(
            pixels[:, :, ::-1],
            dims=("c", "y", "x"),
            c_coords=["r", "g", "b"],
            scale_factors=[2],
            transformations={"D1S1": Scale([1, 1], axes=("x", "y"))},
        )
    else:  # a pyramid of twice as large pixels
        half = pixels[:, ::2, ::2]
        sdata.images[name] = Image2DModel.parse(half, dims=("c", "y", "x"), c_coords=["r", "g", "b"], scale_factors=[2], transformations={"D1S1": Scale([2, 2], axes=("x", "y"))})  # fmt: skip
    if mistake == "axis swap":
        swap = Affine([[0, 1, 0], [1, 0, 0], [0, 0, 1]], input_axes=("x", "y"), output_axes=("x", "y"))
        set_transformation(sdata.shapes["D1S1"], swap, "D1S1")
    table = pp.check_slide(sdata, pitch_um=200.0)
    failed = table.loc[table["status"] == "fail", "check"].tolist()
    assert failed == ([] if mistake is None else ["array", "axis swap"] if mistake == "axis swap" else [mistake])
    assert sdata.tables["table"].uns["stimg"]["check_slide"]["coordinate_system"] == {"D1S1": "D1S1"}
    with pytest.raises(KeyError, match=r"sdata.images\['none'\] is missing"):
        pp.check_slide(sdata, image_key="none")


@pytest.mark.slow
@pytest.mark.parametrize("technology", ["xenium", "visium_hd"])
def test_cells_and_bins_are_added_up_first(technology):
    adata = stimg.datasets.simulate(
        technology=technology, size_um=(640, 560), n_genes=100, image=True, mpp=0.5, bin_um=8.0, tissue=stimg.datasets.TissueOptions(outline=True, domain_um=150.0), rng=0
    )  # fmt: skip
    assert "fail" not in set(pp.check_slide(adata)["status"])
    swapped = moved(adata, lambda p: p[:, ::-1])
    table = pp.check_slide(swapped)
    assert "fail" in set(table.loc[table["check"].isin(GEOMETRY), "status"])


def test_pooling_conserves_counts_and_averages_positions():
    rng = np.random.default_rng(0)
    yx, values = rng.uniform(0, 10, (200, 2)), sp.csr_matrix(rng.poisson(1.0, (200, 5)))
    centres, sums = pooled(yx, values, 2.5)
    assert sums.sum() == values.sum()
    cell = np.floor((yx - yx.min(axis=0)) / 2.5).astype(int)
    for i, pair in enumerate(sorted(set(map(tuple, cell)))):
        mask = (cell == pair).all(axis=1)
        np.testing.assert_allclose(centres[i], yx[mask].mean(axis=0))
        np.testing.assert_array_equal(sums[i].toarray().ravel(), np.asarray(values[mask].sum(axis=0)).ravel())


# ---- real sections


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize(
    ("read", "section"), [("her2st", s) for s in ("B4", "C2", "C3", "C4", "C5")] + [("dlpfc", "151673"), ("dlpfc", "151674"), ("mob", "1")]
)
def test_real_sections_do_not_fail_and_their_mistakes_do(mirror, read, section):
    adata = getattr(stimg.datasets, read)(section, image="hires")
    (library,) = adata.uns["spatial"]
    if adata.n_obs > 2000:  # half of it is enough, and takes a quarter of the time
        adata = adata[adata.obsm["spatial"][:, 0] < np.median(adata.obsm["spatial"][:, 0])].copy()
    good = status(adata.copy())
    assert "fail" not in good.values()
    assert not {c for c in GEOMETRY if good[c] == "warn"}
    if adata.n_obs < 500:
        upper = adata.obsm["spatial"][:, 1] < np.median(adata.obsm["spatial"][:, 1])
        for half in (upper, ~upper):  # some 90 spots: weak evidence at most
            assert "fail" not in status(adata[half].copy()).values()
    width = entry(adata, library)["images"]["hires"].shape[1] / entry(adata, library)["scalefactors"]["tissue_hires_scalef"]
    step = np.sort(np.hypot(*(adata.obsm["spatial"] - adata.obsm["spatial"][0]).T))[1]
    scale = entry(adata, library)["scalefactors"]["tissue_hires_scalef"]
    mpp = entry(adata, library)["scalefactors"]["microns_per_pixel"]
    changes = {
        "swapped": lambda p: p[:, ::-1],
        "mirrored": lambda p: np.column_stack([width - p[:, 0], p[:, 1]]),
        "10 %": lambda p: p * 1.1,
        "µm": lambda p: p * mpp,
        "shifted": lambda p: p + np.array([2.0, 3.0]) * step,
    }
    if abs(scale - 1) > 0.1:
        changes["hires"] = lambda p: p * scale
    for name, change in changes.items():
        if section == "151674" and name == "shifted":  # its layers run along the shift: measured in benchmarks/slide_doctor.py
            continue
        found = status(moved(adata.copy(), change))
        assert "fail" in {found[c] for c in GEOMETRY}, name
    assert status(moved(adata.copy(), lambda p: p * 1.02))["scale"] == "warn"
