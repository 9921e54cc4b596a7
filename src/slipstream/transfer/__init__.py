"""Carrying a learning trajectory to a new start."""

from slipstream.transfer.comparison import Comparison, Outcome, Target, compare_methods
from slipstream.transfer.learning_transfer import transfer_to_many, transfer_trajectory
from slipstream.transfer.plan import SignWeights, TransferPlan
from slipstream.transfer.result import TransferCost, TransferResult, TransferStage
from slipstream.transfer.stage_log import load_transfer

__all__ = [
    "Comparison",
    "Outcome",
    "SignWeights",
    "Target",
    "TransferCost",
    "TransferPlan",
    "TransferResult",
    "TransferStage",
    "compare_methods",
    "load_transfer",
    "transfer_to_many",
    "transfer_trajectory",
]
