"""The gene encoders that stimg can fit or load."""

from stimg.zoo.card import GENE, GeneCard

__all__ = ["GENE"]

LOG = "log(1 + counts per 10,000)"

CARDS = (
    GeneCard(
        name="pca",
        title="PCA",
        n_features=None,
        unit=LOG,
        licence="BSD-3-Clause",
        commercial=True,
        gated=False,
        loader="stimg",
        citation="Pearson 1901, On lines and planes of closest fit to systems of points in space. Philosophical Magazine 2:559. "
        "doi 10.1080/14786440109462720",
        notes="Principal axes of the training observations; 50 where nothing is said.",
    ),
    GeneCard(
        name="mlp",
        title="MLP",
        n_features=None,
        unit=LOG,
        licence="BSD-3-Clause",
        commercial=True,
        gated=False,
        loader="stimg",
        citation="Gindra et al. 2025, HESCAPE: a large-scale benchmark for cross-modal learning in spatial transcriptomics. arXiv 2508.01490",
        notes='`stimg.nn.gene.GeneMLP`, trained with the alignment (`stimg.model.ImageGeneCLIP` with `gene_encoder="mlp"`). HESCAPE has batch normalisation '
        "and counts scaled to the median of the batch; here nothing depends on who else is in the batch.",
    ),
    GeneCard(
        name="scvi",
        title="scVI",
        n_features=None,
        unit="counts",
        licence="BSD-3-Clause",
        commercial=True,
        gated=False,
        loader="scvi-tools",
        citation="Lopez et al. 2018, Deep generative modeling for single-cell transcriptomics. Nature Methods 15:1053. doi 10.1038/s41592-018-0229-2",
        notes="Posterior mean of `scvi.model.SCVI`, trained on the training observations; 30 dimensions where nothing is said.",
    ),
    GeneCard(
        name="drvi",
        title="DRVI",
        n_features=None,
        unit="counts",
        licence="BSD-3-Clause",
        commercial=True,
        gated=False,
        loader="drvi-py",
        citation="Moinfar and Theis 2024, Unsupervised deep disentangled representation of single-cell omics. bioRxiv. doi 10.1101/2024.11.06.622266",
        notes="Posterior mean of `scvi.external.DRVI` where scvi-tools has it (from 1.5 on), else of the package `drvi-py` (`pip install 'stimg[drvi]'`); 32 dimensions "
        "where nothing is said. HESCAPE fits it to log values with 128 dimensions; here it is fitted to counts.",
    ),
    GeneCard(
        name="stmae",
        title="STMAE",
        n_features=None,
        unit="counts on a raster",
        licence="BSD-3-Clause",
        commercial=True,
        gated=False,
        loader="stimg",
        citation="Zhu et al. 2026, Spatial transcriptomics as images for large-scale pretraining. arXiv 2603.13432",
        notes="A trained `stimg.model.STMAE`: it sees what is around an observation, too.",
    ),
    GeneCard(
        name="nicheformer",
        title="Nicheformer",
        n_features=512,
        unit="counts, Ensembl identifiers, as ranks over the mean of a technology",
        licence="not confirmed (code: BSD-3-Clause)",
        commercial=False,
        gated=False,
        loader="stimg",
        parameters_m=36.4,
        n_genes=20310,
        citation="Schaar, Tejada-Lapuerta et al. 2024, Nicheformer: a foundation model for single-cell and spatial omics. bioRxiv. "
        "doi 10.1101/2024.04.15.589472",
        fitted=False,
        notes="Human and mouse; dissociated cells, MERFISH, CosMx and Xenium. Trained on neither Visium nor legacy ST, which have no mean of their own. Needs `path=`, a folder with "
        "the checkpoint (Mendeley Data 87gm9hrgm8), `model.h5ad` and the mean of the technology (both in theislab/nicheformer). Not run on the published weights here.",
    ),
    GeneCard(
        name="scfoundation",
        title="scFoundation",
        n_features=3072,
        unit="counts, gene symbols, as log(1 + counts per 10,000) and two tokens of depth",
        licence="scFoundation License, for non-commercial research (code: Apache-2.0)",
        commercial=False,
        gated=False,
        loader="stimg",
        parameters_m=99.9,
        n_genes=19264,
        citation="Hao et al. 2024, Large-scale foundation model on single-cell transcriptomics. Nature Methods 21:1481. doi 10.1038/s41592-024-02305-7",
        fitted=False,
        notes="Human, dissociated cells. Needs `path=`, a folder with `models.ckpt` and `OS_scRNA_gene_index.19264.tsv` (see biomap-research/scFoundation). Not run on "
        "the published weights here.",
    ),
)
"""Facts from the authors' papers and repositories; parameters of what embeddings need, without heads and decoders."""
for _card in CARDS:
    GENE.add(_card.name, _card)
