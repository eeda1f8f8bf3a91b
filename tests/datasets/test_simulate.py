"""The public function: slots, shapes of every technology, determinism, donors, molecules, truth."""

import dataclasses
import subprocess
import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from stimg.datasets import CountOptions, DonorOptions, GeneOptions, TissueOptions, simulate

SMALL = {"visium": (12, 12), "st": (10, 10), "visium_hd": (24, 24), "xenium": (20, 20)}
NEIGHBOURS = {"square": ((0, 1), (1, 0)), "hex": ((0, 2), (1, 1), (1, -1))}


def naive_moran(values: np.ndarray, row: np.ndarray, col: np.ndarray, lattice: str) -> float:
    """Moran's I over the pairs of lattice neighbours, by a loop."""
    place = {(int(r), int(c)): i for i, (r, c) in enumerate(zip(row, col, strict=True))}
    centred = values - values.mean()
    total = pairs = 0.0
    for (r, c), i in place.items():
        for dr, dc in NEIGHBOURS[lattice]:
            j = place.get((r + dr, c + dc))
            if j is not None:
                total += centred[i] * centred[j]
                pairs += 1
    return float(total / pairs / (centred**2).mean())


def logged(adata: ad.AnnData) -> np.ndarray:
    x = adata.X.toarray().astype(np.float64)
    return np.log1p(x / np.maximum(x.sum(axis=1, keepdims=True), 1) * np.median(x.sum(axis=1)))


@pytest.mark.parametrize("technology", list(SMALL))
def test_slots(technology, tmp_path):
    adata = simulate(
        technology=technology, shape=SMALL[technology], n_genes=40, genes=GeneOptions(n_controls=3), mpp=0.25, n_sections=2, rng=3
    )
    assert sp.isspmatrix_csr(adata.X)
    assert adata.X.dtype == np.float32
    assert adata.X.has_sorted_indices
    assert (adata.X.data > 0).all()
    assert (adata.X.data == np.rint(adata.X.data)).all()
    assert adata.obs_names.is_unique
    assert list(adata.obs["library_id"].cat.categories) == ["D1S1", "D1S2"]
    assert (adata.obs["domain"] == adata.obs["label"]).all()
    assert (adata.var["feature_types"] == "Negative Control Probe").sum() == 3
    proportions = np.asarray(adata.obsm["stimg_truth_proportions"])
    np.testing.assert_allclose(proportions.sum(axis=1), 1, atol=1e-5)
    factors = adata.uns["spatial"]["D1S2"]["scalefactors"]
    assert factors["microns_per_pixel"] == 0.25
    assert factors["spot_diameter_fullres"] == {"visium": 55, "st": 100, "visium_hd": 8, "xenium": 10}[technology] / 0.25
    assert adata.uns["spatial"]["D1S1"]["images"] == {}
    assert adata.uns["stimg"]["simulate"]["technology"] == technology
    adata.write_h5ad(tmp_path / "a.h5ad")
    again = ad.read_h5ad(tmp_path / "a.h5ad")
    assert (again.X != adata.X).nnz == 0
    pd.testing.assert_frame_equal(again.obsm["stimg_truth_proportions"], adata.obsm["stimg_truth_proportions"])


def test_visium_array():
    adata = simulate(technology="visium", shape=(7, 5), n_genes=10, mpp=2.0)
    row, col = adata.obs["array_row"].to_numpy(), adata.obs["array_col"].to_numpy()
    assert len(adata) == 35
    assert ((row + col) % 2 == 0).all()
    assert set(col[row == 0]) == {0, 2, 4, 6, 8}
    assert set(col[row == 1]) == {1, 3, 5, 7, 9}
    xy = adata.obsm["spatial"] * 2.0
    np.testing.assert_allclose(xy[:, 0] - xy[0, 0], col * 50.0)
    np.testing.assert_allclose(xy[:, 1] - xy[0, 1], row * 100 * np.sqrt(3) / 2)
    distance = np.linalg.norm(xy[:, None] - xy[None], axis=-1)
    np.testing.assert_allclose(np.min(distance + 1e9 * np.eye(35), axis=1), 100.0)


@pytest.mark.parametrize(("technology", "pitch"), [("st", 200.0), ("visium_hd", 8.0)])
def test_square_array(technology, pitch):
    adata = simulate(technology=technology, shape=(4, 6), n_genes=10, mpp=0.5)
    xy = adata.obsm["spatial"] * 0.5
    np.testing.assert_allclose(xy[:, 0], (adata.obs["array_col"] + 0.5) * pitch)
    np.testing.assert_allclose(xy[:, 1], (adata.obs["array_row"] + 0.5) * pitch)


@pytest.mark.parametrize(("technology", "shape"), [("st", (5, 5)), ("visium", (11, 9)), ("visium_hd", (125, 125))])
def test_size_um(technology, shape):
    adata = simulate(technology=technology, size_um=1000.0, n_genes=5)
    assert tuple(adata.uns["stimg"]["simulate"]["shape"]) == shape
    diameter = adata.uns["spatial"]["D1S1"]["scalefactors"]["spot_diameter_fullres"] * 0.5
    xy = adata.obsm["spatial"] * 0.5
    assert (xy - diameter / 2).min() >= 0
    assert (xy + diameter / 2).max() <= 1000.0


def test_same_tissue_for_every_technology():
    hd = simulate(technology="visium_hd", size_um=1200.0, n_genes=5, rng=5)
    bins = hd.obs["domain"].cat.codes.to_numpy().reshape(150, 150)
    assert len(np.unique(bins)) >= 3
    for technology in ("st", "visium", "xenium"):
        other = simulate(technology=technology, size_um=1200.0, n_genes=5, rng=5)
        x, y = (np.clip(other.obsm["spatial"] * 0.5 // 8, 0, 149).astype(int)).T
        assert (bins[y, x] == other.obs["domain"].cat.codes).mean() > 0.97, technology
    different = simulate(technology="visium_hd", size_um=1200.0, n_genes=5, rng=6)
    assert (different.obs["domain"].cat.codes.to_numpy().reshape(150, 150) == bins).mean() < 0.6


def test_deterministic_and_alone():
    np.random.seed(7)  # noqa: NPY002 (the global state is what is watched)
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first, second = (simulate(shape=(8, 8), n_genes=30, rng=11) for _ in range(2))
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002
    assert (first.X != second.X).nnz == 0
    pd.testing.assert_frame_equal(first.obs, second.obs)
    pd.testing.assert_frame_equal(first.var, second.var)
    other = simulate(shape=(8, 8), n_genes=30, rng=12)
    assert (first.X != other.X).nnz > 500
    image = simulate(shape=(8, 8), n_genes=30, rng=11, image=True, mpp=4.0)
    assert (first.X != image.X).nnz == 0


def test_chunks_do_not_matter(monkeypatch):
    arguments = {"technology": "visium_hd", "shape": (30, 30), "n_genes": 50, "tissue": TissueOptions(outline=True), "rng": 2}
    whole = simulate(**arguments)
    import stimg.datasets._simulate_cells as cells

    monkeypatch.setattr(sys.modules["stimg.datasets._simulate"], "_CHUNK", 37)
    monkeypatch.setattr(cells, "PAIRS", 500)
    pieces = simulate(**arguments)
    assert (whole.X != pieces.X).nnz == 0
    np.testing.assert_array_equal(whole.obsm["stimg_truth_proportions"], pieces.obsm["stimg_truth_proportions"])


@pytest.mark.parametrize(
    ("technology", "shape", "lattice"),
    [
        ("visium", (8, 8), "hex"),
        ("st", (8, 8), "square"),
        ("visium", (64, 64), "hex"),
        ("visium_hd", (64, 64), "square"),
        ("visium_hd", (256, 256), "square"),
    ],
)
def test_structure_at_every_size(technology, shape, lattice):
    found, shuffled, flat = [], [], []
    for seed in range(4 if shape == (8, 8) else 1):
        adata, truth = simulate(
            technology=technology,
            shape=shape,
            n_genes=60,
            counts=CountOptions(depth=400),
            genes=GeneOptions(second_programme=0),
            rng=seed,
            return_truth=True,
        )
        row, col = adata.obs["array_row"].to_numpy(), adata.obs["array_col"].to_numpy()
        share = adata.X.toarray() / truth.depth[:, None]
        size = np.bincount(adata.obs["domain"].cat.codes, minlength=5)
        assert (size > 0).sum() >= 3
        named = adata.var["programme"].to_numpy().astype(str)
        wanted = np.flatnonzero([p.startswith("domain:") and size[int(p.split(":")[1])] > len(adata) / 12 for p in named])
        house = np.flatnonzero(adata.var["category"] == "housekeeping")
        wanted, house = (g[np.argsort(-share[:, g].mean(axis=0))][:4] for g in (wanted, house))
        order = np.random.default_rng(seed).permutation(len(adata))
        found += [naive_moran(share[:, g], row, col, lattice) for g in wanted]
        shuffled += [naive_moran(share[order, g], row, col, lattice) for g in wanted]
        flat += [naive_moran(share[:, g], row, col, lattice) for g in house]
    assert np.median(found) > (0.2 if shape == (8, 8) else 0.3), found
    assert abs(np.mean(shuffled)) < (0.1 if shape == (8, 8) else 0.03), shuffled
    assert np.median(found) > 0.15 + np.median(flat), flat


def test_gradients_are_smooth():
    adata, truth = simulate(shape=(32, 32), n_genes=200, genes=GeneOptions(second_programme=0), rng=4, return_truth=True)
    row, col = adata.obs["array_row"].to_numpy(), adata.obs["array_col"].to_numpy()
    gradient = np.flatnonzero(adata.var["category"] == "gradient")
    rate = truth.rate(genes=gradient) / truth.depth[:, None]
    assert np.median([naive_moran(rate[:, g], row, col, "hex") for g in range(len(gradient))]) > 0.8
    domain = adata.obs["domain"].cat.codes.to_numpy()
    within = np.mean([rate[domain == d].std(axis=0) for d in np.unique(domain)], axis=0)
    assert np.median(within / rate.std(axis=0)) > 0.5  # they do not follow the domains


@pytest.mark.parametrize("layout", ["patches", "layers"])
def test_domains_are_recovered(layout):
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA
    from sklearn.metrics import adjusted_rand_score

    adata = simulate(shape=(32, 32), n_genes=300, tissue=TissueOptions(layout=layout), rng=0)
    scores = PCA(10, random_state=0).fit_transform(logged(adata))
    found = KMeans(5, n_init=5, random_state=0).fit_predict(scores)
    assert adjusted_rand_score(adata.obs["domain"], found) > 0.5
    assert abs(adjusted_rand_score(adata.obs["domain"], np.random.default_rng(0).permutation(found))) < 0.05


def test_markers_mark_their_type():
    adata = simulate(technology="xenium", shape=(60, 60), n_genes=120, genes=GeneOptions(second_programme=0), rng=0)
    share = adata.X.toarray() / np.maximum(adata.X.toarray().sum(axis=1, keepdims=True), 1)
    for name in adata.obs["cell_type"].cat.categories:
        own = (adata.var["programme"] == f"type:{name}").to_numpy()
        inside = (adata.obs["cell_type"] == name).to_numpy()
        assert share[inside][:, own].sum(axis=1).mean() > 2 * share[~inside][:, own].sum(axis=1).mean()


def test_outline_and_holes():
    full = simulate(shape=(30, 30), n_genes=5, rng=1)
    cut = simulate(shape=(30, 30), n_genes=5, tissue=TissueOptions(outline=True, holes=0.1), rng=1)
    assert len(full) == 900
    assert 450 < len(cut) < 860
    same = full[[n for n in full.obs_names if n in set(cut.obs_names)]]
    assert (same.obs["domain"].to_numpy() == cut.obs["domain"].to_numpy()).all()
    with pytest.raises(ValueError, match="lies on tissue"):
        simulate(technology="st", shape=(1, 1), n_genes=5, tissue=TissueOptions(holes=0.9, outline=True), rng=0)


def test_donors_on_and_off():
    arguments = {"shape": (16, 16), "n_genes": 100, "n_donors": 2, "n_sections": 2, "rng": 0, "return_truth": True}
    on, truth = simulate(**arguments, donors=DonorOptions(gene_sd=0.5, section_gene_sd=0.05, depth_sd=0.5))
    off, truth_off = simulate(**arguments, donors=DonorOptions.none())
    assert list(on.obs["library_id"].cat.categories) == ["D1S1", "D1S2", "D2S1", "D2S2"]
    assert list(on.obs["donor"].cat.categories) == ["D1", "D2"]
    assert (truth.gene_shift[0] == 0).all()
    assert (truth_off.gene_shift == 0).all()
    assert (truth_off.libraries["log_depth"] == 0).all()
    stains = [c for c in truth.libraries if c.startswith(("haematoxylin", "eosin"))]
    assert np.ptp(truth_off.libraries[stains].to_numpy(), axis=0).max() == 0
    assert np.ptp(truth.libraries[stains].to_numpy(), axis=0).min() > 0
    assert np.std(truth.gene_shift[2]) == pytest.approx(0.5, rel=0.2)
    assert np.std(truth.gene_shift[3] - truth.gene_shift[2]) == pytest.approx(0.05, rel=0.3)

    def between(adata):
        mean = np.stack([np.asarray(adata[adata.obs["donor"] == d].X.sum(axis=0)).ravel() + 1 for d in ("D1", "D2")])
        house = (adata.var["category"] == "housekeeping").to_numpy()
        return np.std(np.diff(np.log(mean / mean.sum(axis=1, keepdims=True)), axis=0)[:, house])

    assert between(on) > 2.5 * between(off)


def test_serial_sections_are_alike():
    adata = simulate(shape=(24, 24), n_genes=5, n_donors=2, n_sections=2, rng=0)
    label = {n: g["domain"].cat.codes.to_numpy() for n, g in adata.obs.groupby("library_id", observed=True)}
    same = (label["D1S1"] == label["D1S2"]).mean()
    assert 0.75 < same < 1
    assert (label["D1S1"] == label["D2S1"]).mean() < 0.5
    still = simulate(shape=(24, 24), n_genes=5, n_sections=2, donors=DonorOptions(deformation_um=0, rotation_deg=0), rng=0)
    assert (still.obs["domain"].to_numpy()[:576] == still.obs["domain"].to_numpy()[576:]).all()
    assert (still.X[:576] != still.X[576:]).nnz > 0


def test_molecules_equal_the_table():
    adata, truth = simulate(technology="xenium", shape=(25, 30), n_genes=30, n_sections=2, return_truth=True, rng=2)
    for library in ("D1S1", "D1S2"):
        table = adata[adata.obs["library_id"] == library]
        molecules = truth.molecules(library)
        assert molecules["x"].between(0, 300).all()
        assert molecules["y"].between(0, 250).all()
        inside = molecules[molecules["cell_id"] != "UNASSIGNED"]
        assert 0.04 < 1 - len(inside) / len(molecules) < 0.11
        counted = pd.crosstab(inside["cell_id"].astype(str), inside["feature_name"].astype(str))
        counted = counted.reindex(index=table.obs_names, columns=table.var_names, fill_value=0).to_numpy()
        np.testing.assert_array_equal(counted, table.X.toarray())
        centre = pd.DataFrame(table.obsm["spatial"] * 0.5, index=table.obs_names).loc[inside["cell_id"].astype(str)].to_numpy()
        assert np.hypot(*(inside[["x", "y"]].to_numpy() - centre).T).max() < 5.01
        cells = truth.cells(library)
        np.testing.assert_allclose(cells[["x_um", "y_um"]], table.obsm["spatial"] * 0.5)
        assert (cells["type"].to_numpy() == table.obs["cell_type"].to_numpy()).all()
    with pytest.raises(KeyError, match="D1S1"):
        truth.molecules()
    _, visium = simulate(shape=(4, 4), n_genes=5, return_truth=True)
    with pytest.raises(ValueError, match="xenium"):
        visium.molecules()


@pytest.mark.parametrize("options", [{}, {"counts": CountOptions(depth=8.0, dropout=0.3, capture=0.5)}])
def test_rate_is_the_mean_of_replicates(options):
    adata, truth = simulate(shape=(6, 6), n_genes=60, n_donors=2, rng=0, return_truth=True, **options)
    n = 400
    total = sum((truth.sample(seed) for seed in range(1, n)), start=adata.X.copy()).toarray()
    rate = truth.rate()
    mean = rate / (1 - truth.dropout)
    variance = (1 - truth.dropout) * (mean + (1 + truth.dispersion) * mean**2) - rate**2
    z = (total / n - rate) / np.sqrt(variance / n)
    assert abs(z.mean()) < 0.06
    assert z.std() == pytest.approx(1, abs=0.06)
    assert np.abs(z).max() < 6
    rows, genes = [5, 40], [3, 7, 1]
    np.testing.assert_allclose(truth.rate(rows, genes), rate[np.ix_(rows, genes)])
    loop = truth.depth[40] * sum(
        truth.activity[40, k]
        * truth.loadings[k, 7]
        * np.exp(truth.gene_shift[1, 7])
        / (truth.loadings[k] * np.exp(truth.gene_shift[1])).sum()
        for k in range(len(truth.programmes))
    )
    assert rate[40, 7] == pytest.approx(loop * (1 - truth.dropout), rel=1e-5)


def test_controls_are_flat():
    genes = GeneOptions(n_controls=20, control_fraction=0.02)
    adata, truth = simulate(shape=(20, 20), n_genes=100, genes=genes, counts=CountOptions(depth=2000), rng=0, return_truth=True)
    control = (adata.var["feature_types"] == "Negative Control Probe").to_numpy()
    assert adata.var_names[control].str.startswith("NegControlProbe_").all()
    assert adata.X[:, control].sum() / adata.X.sum() == pytest.approx(0.02, rel=0.1)
    rate = truth.rate(genes=control) / truth.depth[:, None]
    np.testing.assert_allclose(rate, np.broadcast_to(rate[0], rate.shape), rtol=1e-5)


def test_light_import():
    code = (
        "import sys; from stimg.datasets import simulate; simulate(shape=(4, 4), n_genes=5, image=True, mpp=4.0); "
        "print([m for m in ('torch', 'scvi', 'spatialdata', 'matplotlib', 'squidpy') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"technology": "merfish"}, "merfish"),
        ({"shape": (3, 3), "size_um": 500.0}, "both given"),
        ({"shape": (0, 3)}, "rows, columns"),
        ({"size_um": 10.0}, "holds no capture area"),
        ({"size_um": (10.0, 20.0, 30.0)}, "not a side"),
        ({"technology": "visium_hd", "bin_um": 5.0}, "bin_um"),
        ({"n_genes": 0}, "n_genes"),
        ({"mpp": 0.0}, "mpp"),
    ],
)
def test_bad_arguments(arguments, match):
    with pytest.raises(ValueError, match=match):
        simulate(**arguments)


@pytest.mark.parametrize(
    ("cls", "field", "value"),
    [
        (TissueOptions, "layout", "rings"),
        (TissueOptions, "n_types", 0),
        (TissueOptions, "holes", 0.99),
        (GeneOptions, "marker_fraction", 0.9),
        (CountOptions, "capture", 0.0),
        (CountOptions, "dispersion", -1.0),
        (DonorOptions, "gene_sd", float("nan")),
    ],
)
def test_bad_options(cls, field, value):
    with pytest.raises(ValueError, match=field):
        cls(**{field: value})
    assert dataclasses.is_dataclass(cls)
