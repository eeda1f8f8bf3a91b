"""The protocol of Stem and GenAR: one section left out, raw logs without any depth normalisation."""

from stimg.bench.expression import ExpressionProtocol, Target
from stimg.bench.gene_rules import Panel
from stimg.bench.protocol import add

PROTOCOL = add(
    ExpressionProtocol(
        name="stem",
        version="1.0",
        title="one section (B1 of HER2ST) left out, log2(1 + counts) of 200 genes chosen with it",
        source="Zhu et al. 2025 (Stem, ICLR) and its code; GenAR and others report under it",
        remarks=(
            "Raw logs: the depth of an observation alone predicts most genes.",
            "The genes are chosen with the test section, for high mean and high spread.",
            "The published PCC-10 and PCC-50 take the best genes by their test score; here `selected_r` shows that for 50.",
            "Other sections of the test donor are in training.",
        ),
        level="section",
        folds_by="one section",
        panels=(Panel("Stem-200", "mean and spread", 200, seen="all"),),
        target=Target("log2p", library="none"),
        nulls=("training mean", "depth line", "coordinates, same donor", "coordinates, other donors", "neighbour mean", "colour ridge"),
    )
)
