"""Carrying a learning trajectory to a new start."""

from typing import TYPE_CHECKING

from slipstream.lazy_names import lazy_names

if TYPE_CHECKING:
    from slipstream.transfer.comparison import (
        Comparison,
        ContinuedTransfer,
        Outcome,
        at_gradients,
        compare_methods,
    )
    from slipstream.transfer.learning_transfer import Target, transfer_to_many, transfer_trajectory
    from slipstream.transfer.plan import SignSteps, SignWeights, TransferPlan
    from slipstream.transfer.rivals import (
        Descent,
        DescentPlan,
        descend,
        rivals,
        shuffled_source,
    )
    from slipstream.transfer.savings import Reached, Saving, Savings
    from slipstream.transfer.stage_log import (
        TransferCost,
        TransferResult,
        TransferStage,
        find_source,
        load_transfer,
        source_reference,
    )

__all__ = [
    "Comparison", "ContinuedTransfer", "Descent", "DescentPlan", "Outcome", "Reached", "Saving",
    "Savings", "SignSteps", "SignWeights", "Target", "TransferCost", "TransferPlan",
    "TransferResult", "TransferStage", "at_gradients", "compare_methods", "descend", "find_source",
    "load_transfer", "rivals", "shuffled_source", "source_reference", "transfer_to_many",
    "transfer_trajectory",
]  # fmt: skip

__getattr__ = lazy_names(__name__, __file__)
