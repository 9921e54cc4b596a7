"""Side-tuning: learning a task beside a network that is never changed."""

from slipstream.recipes.side_tuning.controls import SideControls, side_controls
from slipstream.recipes.side_tuning.networks import (
    SideNetwork,
    SideTask,
    features_of,
    small_side,
)
from slipstream.recipes.side_tuning.plan import SidePlan
from slipstream.recipes.side_tuning.training import (
    DistilledSide,
    SideTuned,
    distil_side,
    side_tune,
)

__all__ = [
    "DistilledSide",
    "SideControls",
    "SideNetwork",
    "SidePlan",
    "SideTask",
    "SideTuned",
    "distil_side",
    "features_of",
    "side_controls",
    "side_tune",
    "small_side",
]
