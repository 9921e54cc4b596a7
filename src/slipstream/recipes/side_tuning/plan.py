"""What side-tuning will do, as plain data."""

from dataclasses import dataclass

from slipstream.storage.plan_fields import option
from slipstream.training import TrainingPlan


@dataclass(frozen=True)
class SidePlan:
    """How a side network, its blend and its head are trained."""

    descent: TrainingPlan = option(factory=lambda: TrainingPlan.cosine(60, "adamw", 0.005))
