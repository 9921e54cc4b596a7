"""What an aggregation will do, as plain data."""

from dataclasses import dataclass

from slipstream.storage.plan_fields import option
from slipstream.training import TrainingPlan


@dataclass(frozen=True)
class AggregationPlan:
    """How strongly the aggregate is held to the sum, and how all are trained."""

    pull: float = option(1.0, "How strongly the aggregate is held to the sum of the specialists.")
    descent: TrainingPlan = option(factory=lambda: TrainingPlan.cosine(lr=0.02))

    def __post_init__(self) -> None:
        if not self.pull >= 0:
            raise ValueError(f"pull must not be negative, got {self.pull}.")
