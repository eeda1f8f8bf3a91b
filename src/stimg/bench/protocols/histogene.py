"""The protocol of HisToGene, Hist2ST and their successors: sections left out, other sections of the donor in training."""

from stimg.bench.expression import ExpressionProtocol, Target
from stimg.bench.gene_rules import Panel
from stimg.bench.protocol import add

PROTOCOL = add(
    ExpressionProtocol(
        name="histogene",
        version="1.0",
        title="785 genes of a published list, each section left out while the donor's other sections train, library of the panel",
        source="Pang et al. 2021 (HisToGene) and Zeng et al. 2022 (Hist2ST) and their code; THItoGene, mclSTExp and others report under it",
        remarks=(
            "Serial sections of the test donor are in training: spots nearly mirror each other, and row and column alone predict.",
            "The list of genes was chosen with all sections.",
            "Counts are divided by the counts of the panel alone, scaled to the section's median, log10.",
            "The published figures leave undefined correlations out (`defined_r`), use the test section for validation, and some choose the epoch by it.",
        ),
        level="section",
        folds_by="section",
        panels=(Panel("785", "published list", 785, seen="all", argument="her_hvg_cut_1000"),),
        target=Target("scprep", library="panel"),
        nulls=("training mean", "depth line", "coordinates, same donor", "coordinates, other donors", "neighbour mean", "colour ridge"),
    )
)
