"""Floor 3: Lightning modules, one training step per method."""

from stimg.plan.bags import BagPlan
from stimg.plan.callbacks import EpochHistory, KeepCheckpoint, StopWhenStale
from stimg.plan.checkpoint import SafeCheckpointIO
from stimg.plan.contrastive import ContrastivePlan
from stimg.plan.masked import MaskedPlan
from stimg.plan.masked_tiles import MaskedTilePlan
from stimg.plan.steps import StepPlan

__all__ = [
    "BagPlan",
    "ContrastivePlan",
    "EpochHistory",
    "KeepCheckpoint",
    "MaskedPlan",
    "MaskedTilePlan",
    "SafeCheckpointIO",
    "StepPlan",
    "StopWhenStale",
]
