"""Expression from H&E, donors apart, nothing smoothed, genes chosen on training donors."""

from stimg.bench.expression import ExpressionProtocol
from stimg.bench.gene_rules import Panel
from stimg.bench.protocol import add

PROTOCOL = add(
    ExpressionProtocol(
        name="her2st-strict",
        version="1.0",
        title="expression from H&E, each donor left out once, genes chosen on the others, full library, no smoothing",
        source="stimg; made for HER2ST (Andersson et al. 2021), usable on any sections with donors",
        level="donor",
        panels=(Panel("HEG250", "highest mean", 250), Panel("HVG500", "residual variance", 500)),
        nulls=(
            "training mean",
            "depth line",
            "coordinates, other donors",
            "neighbour mean",
            "labels permuted",
            "colour ridge",
        ),
    )
)
