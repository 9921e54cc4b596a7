"""Carrying a learning trajectory to a new start."""

from slipstream.transfer.learning_transfer import transfer_to_many, transfer_trajectory
from slipstream.transfer.ledger import load_transfer
from slipstream.transfer.plan import SignWeights, TransferPlan
from slipstream.transfer.result import TransferCost, TransferResult, TransferStage

__all__ = [
    "SignWeights",
    "TransferCost",
    "TransferPlan",
    "TransferResult",
    "TransferStage",
    "load_transfer",
    "transfer_to_many",
    "transfer_trajectory",
]
