"""The protocol of HEST-Benchmark: 50 variable genes, raw logs, test sections of a fold under each other; with PCA before the ridge, and without."""

from dataclasses import replace

from stimg.bench.expression import ExpressionProtocol, Target
from stimg.bench.gene_rules import Panel
from stimg.bench.protocol import add

PROTOCOL = ExpressionProtocol(
    name="hest",
    version="1.0",
    title="50 most variable genes, log(1 + counts), donors apart, all test observations of a fold correlated together, PCA-256 + ridge",
    source="Jaume et al. 2024 (HEST-1k, NeurIPS) and its code",
    remarks=(
        "The genes are the most variable over all sections, test sections included.",
        "Raw logs: the depth of an observation alone predicts most genes.",
        "Sections of a fold are correlated together, so that differences between sections count as success.",
        "The released ridge has no intercept and a fixed penalty; here the penalty is chosen on training donors.",
        "The folds of the published tasks are in `stimg.bench.published_split('hest')`; here each donor is left out once.",
    ),
    level="donor",
    average="fold",
    panels=(Panel("var50", "variance of logs", 50, seen="all"),),
    target=Target("log1p", library="none"),
    n_components=256,
    nulls=("training mean", "depth line", "coordinates, other donors", "neighbour mean", "colour ridge"),
)
NO_PCA = replace(
    PROTOCOL,
    name="hest-no-pca",
    title="50 most variable genes, log(1 + counts), donors apart, all test observations of a fold correlated together, ridge on all features",
    n_components=None,
)
for each in (PROTOCOL, NO_PCA):
    add(each)
