"""Pure functions on arrays: scores, and the statistics behind them. Loads neither torch nor scanpy, and each module when it is first used."""

from typing import TYPE_CHECKING

from stimg._core.lazy import attach

if TYPE_CHECKING:
    from stimg.metrics._nearest import Nearest, nearest
    from stimg.metrics._ridge import RidgePath, SeparateRidge, separate_ridge
    from stimg.metrics.agreement import MoranAgreement, moran_agreement
    from stimg.metrics.batch import BatchEffects, batch_effects
    from stimg.metrics.calibration import (
        ClassificationCalibration,
        Coverage,
        ErrorBySd,
        IntervalCalibration,
        classification_calibration,
        coverage,
        error_by_sd,
        interval_coverage_error,
    )
    from stimg.metrics.clusters import Agreement, cluster, cluster_agreement
    from stimg.metrics.expression import (
        RelativeError,
        Scores,
        depth_residual_pearson,
        flattened_pearson,
        fraction_of_ceiling,
        per_gene_pearson,
        per_gene_spearman,
        per_spot_pearson,
        per_spot_spearman,
        relative_mse,
    )
    from stimg.metrics.image import psnr, ssim
    from stimg.metrics.nulls import (
        Ceiling,
        Linear,
        RidgePrediction,
        constant,
        coordinate_neighbours,
        depth_line,
        embedding_ridge,
        neighbour_mean,
        noise_ceiling,
        permute_blocks,
        permute_labels,
        random_embedding,
        ridge,
    )
    from stimg.metrics.probes import Classification, classification, probe
    from stimg.metrics.resampling import Interval, Permutation, Spread, block_permutation_p, cluster_bootstrap, seed_spread
    from stimg.metrics.retrieval import ClassMap, Retrieval, RetrievalGap, class_map, retrieval_gap, retrieve, retrieve_in_batches
    from stimg.metrics.spatial import Autocorrelation, SpatialWeights, autocorrelation, gearys_c, morans_i

_NAMES = {
    "Agreement": "clusters",
    "Autocorrelation": "spatial",
    "BatchEffects": "batch",
    "Ceiling": "nulls",
    "ClassMap": "retrieval",
    "Classification": "probes",
    "ClassificationCalibration": "calibration",
    "Coverage": "calibration",
    "ErrorBySd": "calibration",
    "Interval": "resampling",
    "IntervalCalibration": "calibration",
    "Linear": "nulls",
    "MoranAgreement": "agreement",
    "Nearest": "_nearest",
    "Permutation": "resampling",
    "RelativeError": "expression",
    "Retrieval": "retrieval",
    "RetrievalGap": "retrieval",
    "RidgePath": "_ridge",
    "RidgePrediction": "nulls",
    "Scores": "expression",
    "SeparateRidge": "_ridge",
    "SpatialWeights": "spatial",
    "Spread": "resampling",
    "autocorrelation": "spatial",
    "batch_effects": "batch",
    "block_permutation_p": "resampling",
    "class_map": "retrieval",
    "classification": "probes",
    "classification_calibration": "calibration",
    "cluster": "clusters",
    "cluster_agreement": "clusters",
    "cluster_bootstrap": "resampling",
    "constant": "nulls",
    "coordinate_neighbours": "nulls",
    "coverage": "calibration",
    "depth_line": "nulls",
    "depth_residual_pearson": "expression",
    "embedding_ridge": "nulls",
    "error_by_sd": "calibration",
    "flattened_pearson": "expression",
    "fraction_of_ceiling": "expression",
    "gearys_c": "spatial",
    "interval_coverage_error": "calibration",
    "moran_agreement": "agreement",
    "morans_i": "spatial",
    "nearest": "_nearest",
    "neighbour_mean": "nulls",
    "noise_ceiling": "nulls",
    "per_gene_pearson": "expression",
    "per_gene_spearman": "expression",
    "per_spot_pearson": "expression",
    "per_spot_spearman": "expression",
    "permute_blocks": "nulls",
    "permute_labels": "nulls",
    "probe": "probes",
    "psnr": "image",
    "random_embedding": "nulls",
    "relative_mse": "expression",
    "retrieval_gap": "retrieval",
    "retrieve": "retrieval",
    "retrieve_in_batches": "retrieval",
    "ridge": "nulls",
    "seed_spread": "resampling",
    "separate_ridge": "_ridge",
    "ssim": "image",
}
"""Public name to the module of this package that defines it."""
__getattr__, __dir__, __all__ = attach(__name__, _NAMES)
