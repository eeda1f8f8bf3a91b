"""Draws the pictures of the page on the simulator: ``python docs/simulator_pictures.py`` writes them to ``docs/_static``."""

from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("agg")
import matplotlib.pyplot as plt

from stimg.datasets import CountOptions, DonorOptions, TissueOptions, simulate

HERE = Path(__file__).parent / "_static"
TISSUE = TissueOptions(outline=True, holes=0.02, domain_um=900)
SIZE_UM = 2400.0
MARKER = {"st": 260, "visium": 62, "visium_hd": 0, "xenium": 1.6}
TITLES = {"st": "st", "visium": "visium", "visium_hd": "visium_hd, 16 µm bins", "xenium": "xenium, cells"}


def share(adata, gene: int) -> np.ndarray:
    """Share of one gene in the counts of its observation."""
    total = np.maximum(np.asarray(adata.X.sum(axis=1)).ravel(), 1)
    return adata.X[:, [gene]].toarray().ravel() / total


def technologies() -> None:
    """One tissue under four technologies: its domains, a marker gene and a gradient gene."""
    figure, axes = plt.subplots(3, 4, figsize=(12, 9), constrained_layout=True)
    for column, technology in enumerate(MARKER):
        adata, truth = simulate(technology=technology, size_um=SIZE_UM, n_genes=400, bin_um=16, tissue=TISSUE, rng=8, return_truth=True)
        abundance = truth.loadings.mean(axis=0)
        chosen = [np.flatnonzero(adata.var["programme"] == name) for name in ("type:tumour", "gradient:1")]
        best = [genes[np.argmax(abundance[genes])] for genes in chosen]
        x, y = adata.obsm["spatial"].T * 0.5
        rows = [
            ("domain", adata.obs["domain"].cat.codes, "Set2"),
            *[(adata.var["programme"].iloc[g], share(adata, g), "viridis") for g in best],
        ]
        for axis, (label, value, colours) in zip(axes[:, column], rows, strict=True):
            style = {"cmap": colours, "vmin": 0, "vmax": 7 if label == "domain" else max(np.quantile(value, 0.98), 1e-9)}
            if technology == "visium_hd":
                raster = np.full((150, 150), np.nan)
                raster[adata.obs["array_row"], adata.obs["array_col"]] = value
                axis.imshow(raster, extent=(0, SIZE_UM, SIZE_UM, 0), interpolation="nearest", **style)
            else:
                axis.scatter(x, y, c=value, s=MARKER[technology], linewidths=0, **style)
            axis.set(xlim=(0, SIZE_UM), ylim=(SIZE_UM, 0), aspect="equal", xticks=[], yticks=[])
            if not column:
                axis.set_ylabel(label)
        axes[0, column].set_title(TITLES[technology])
    axes[2, 0].plot([100, 600], [2300, 2300], color="black", linewidth=3)
    axes[2, 0].text(350, 2270, "500 µm", ha="center", va="bottom")
    figure.savefig(HERE / "simulator-technologies.jpg", dpi=75, pil_kwargs={"quality": 85})
    plt.close(figure)


def histology() -> None:
    """The H&E of one section, parts of it, and the same part from three donors."""
    _, truth = simulate(size_um=SIZE_UM, n_genes=5, tissue=TISSUE, rng=8, return_truth=True)
    slide = truth.slides["D1S1"]
    whole, _ = slide.thumbnail(800)
    corners = [(1500, 1900), (1500, 600), (2700, 2400), (3300, 1500)]
    figure, axes = plt.subplot_mosaic("AABC\nAADE", figsize=(12, 6), constrained_layout=True)
    axes["A"].imshow(whole, extent=(0, SIZE_UM, SIZE_UM, 0))
    for name, (top, left) in zip("BCDE", corners, strict=True):
        axes[name].imshow(slide.render(top, left, 400, 400))
        axes["A"].add_patch(plt.Rectangle((left * 0.5, top * 0.5), 200, 200, fill=False, color="black"))
        axes["A"].text(left * 0.5 + 215, top * 0.5 + 100, name, va="center")
        axes[name].set_title(name, loc="left", fontsize=10)
    axes["E"].plot([20, 120], [380, 380], color="black", linewidth=3)
    axes["E"].text(70, 370, "50 µm", ha="center", va="bottom")
    for axis in axes.values():
        axis.set(xticks=[], yticks=[])
    figure.savefig(HERE / "simulator-histology.jpg", dpi=85, pil_kwargs={"quality": 85})
    plt.close(figure)


def donors() -> None:
    """Three donors with two sections each: domains, and a part of the stain."""
    effects = DonorOptions(stain_sd=0.08)
    adata, truth = simulate(
        shape=(24, 24), n_genes=50, n_donors=3, n_sections=2, donors=effects, counts=CountOptions(depth=500), rng=4, return_truth=True
    )
    figure, axes = plt.subplots(2, 6, figsize=(12, 4.2), constrained_layout=True)
    for column, library in enumerate(truth.libraries.index):
        part = adata[adata.obs["library_id"] == library]
        axes[0, column].scatter(*(part.obsm["spatial"] * 0.5).T, c=part.obs["domain"].cat.codes, s=11, cmap="Set2", vmin=0, vmax=7)
        axes[0, column].set(aspect="equal", xticks=[], yticks=[], title=library)
        axes[0, column].invert_yaxis()
        axes[1, column].imshow(truth.slides[library].render(1800, 1800, 300, 300))
        axes[1, column].set(xticks=[], yticks=[])
    figure.savefig(HERE / "simulator-donors.jpg", dpi=80, pil_kwargs={"quality": 85})
    plt.close(figure)


if __name__ == "__main__":
    HERE.mkdir(exist_ok=True)
    technologies()
    histology()
    donors()
