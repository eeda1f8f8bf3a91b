"""Floor 3: Lightning modules, one training step per method."""

from stimg.plan.callbacks import EpochHistory, KeepCheckpoint, StopWhenStale
from stimg.plan.checkpoint import SafeCheckpointIO
from stimg.plan.masked import MaskedPlan

__all__ = ["EpochHistory", "KeepCheckpoint", "MaskedPlan", "SafeCheckpointIO", "StopWhenStale"]
