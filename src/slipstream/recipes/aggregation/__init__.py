"""Several specialists trained together, so that their weights add up."""

from slipstream.recipes.aggregation.controls import AggregationControls, aggregation_controls
from slipstream.recipes.aggregation.plan import AggregationPlan
from slipstream.recipes.aggregation.training import Aggregation, train_aggregation

__all__ = [
    "Aggregation",
    "AggregationControls",
    "AggregationPlan",
    "aggregation_controls",
    "train_aggregation",
]
