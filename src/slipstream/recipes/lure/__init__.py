"""LURE: resetting the least important weights before new data."""

from slipstream.recipes.lure.plan import LurePlan
from slipstream.recipes.lure.training import Lure, LureStage, train_lure
from slipstream.recipes.lure.unlearning import (
    least_salient,
    reset_weights_,
    resettable,
    weight_saliency,
)

__all__ = [
    "Lure",
    "LurePlan",
    "LureStage",
    "least_salient",
    "reset_weights_",
    "resettable",
    "train_lure",
    "weight_saliency",
]
