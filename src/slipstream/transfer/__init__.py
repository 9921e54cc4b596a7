"""Carrying a learning trajectory to a new start."""

from typing import TYPE_CHECKING

from slipstream.lazy_names import lazy_names

if TYPE_CHECKING:
    from slipstream.transfer.comparison import Comparison, Outcome, compare_methods
    from slipstream.transfer.learning_transfer import Target, transfer_to_many, transfer_trajectory
    from slipstream.transfer.plan import SignSteps, SignWeights, TransferPlan
    from slipstream.transfer.stage_log import (
        TransferCost,
        TransferResult,
        TransferStage,
        find_source,
        load_transfer,
        source_reference,
    )

__all__ = [
    "Comparison", "Outcome", "SignSteps", "SignWeights", "Target", "TransferCost", "TransferPlan",
    "TransferResult", "TransferStage", "compare_methods", "find_source", "load_transfer",
    "source_reference", "transfer_to_many", "transfer_trajectory",
]  # fmt: skip

__getattr__ = lazy_names(__name__, __file__)
