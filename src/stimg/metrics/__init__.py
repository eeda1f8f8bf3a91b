"""Pure functions on arrays: scores, and the statistics behind them. Loads neither torch nor scanpy."""

from stimg.metrics.spatial import Autocorrelation, SpatialWeights, autocorrelation, gearys_c, morans_i

__all__ = ["Autocorrelation", "SpatialWeights", "autocorrelation", "gearys_c", "morans_i"]
