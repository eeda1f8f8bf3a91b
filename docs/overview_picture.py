"""Makes docs/_static/overview.png, the picture of the README: one real section as an image, its crops, and what a model made of them.

python docs/overview_picture.py
"""

from pathlib import Path

import matplotlib.pyplot as plt

import stimg


def main() -> None:
    adata = stimg.datasets.dlpfc("151673")
    stimg.pp.rasterize(adata)
    stimg.pp.select_genes(adata, rule="highly_variable", n=512)
    stimg.model.STMAE.setup_anndata(adata)
    model = stimg.model.STMAE(adata)
    model.train(25, validation=None, batch_size=8)
    stimg.tl.embed(adata, model=model)

    figure = plt.figure(figsize=(16, 4.6), layout="constrained")
    grid = figure.add_gridspec(3, 5, width_ratios=[1, 1, 0.32, 1, 1])
    whole = [figure.add_subplot(grid[:, i]) for i in (0, 1, 3, 4)]
    small = [figure.add_subplot(grid[i, 2]) for i in range(3)]
    stimg.pl.raster(adata, color="MBP", transform="log1p", ax=whole[0])
    crops = [("151673", 8, 20), ("151673", 30, 26), ("151673", 50, 4)]
    stimg.pl.crops(adata, genes=["MBP", "PCP4", "ENC1"], crops=crops, spec=stimg.image.CropSpec((16, 16)), ax=[whole[1], *small])
    stimg.pl.embedding_map(adata, obsm_key="X_stimg_stmae", ax=whole[2])
    stimg.pl.raster(adata, color="label", ax=whole[3])
    for axes in small:
        axes.set_title("", loc="right")
    for axes, title in zip(
        whole,
        ["MBP: one channel of the image", "three channels, three crops", "STMAE embedding (no label used)", "expert layers"],
        strict=True,
    ):
        axes.set_title(title, fontsize=11)
    figure.savefig(Path(__file__).parent / "_static" / "overview.png", dpi=110)


if __name__ == "__main__":
    main()
