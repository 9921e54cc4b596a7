"""Carrying a fine-tune from one base model to another."""

from slipstream.transfer.porting.checkpoints import port_checkpoint
from slipstream.transfer.porting.plan import PortMethod, PortPlan
from slipstream.transfer.porting.porting import port_fine_tune
from slipstream.transfer.porting.result import Candidate, PortedLayer, PortResult

__all__ = [
    "Candidate",
    "PortMethod",
    "PortPlan",
    "PortResult",
    "PortedLayer",
    "port_checkpoint",
    "port_fine_tune",
]
