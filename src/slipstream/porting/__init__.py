"""Carrying a fine-tune from one base model to another."""

from slipstream.porting.checkpoints import port_checkpoint
from slipstream.porting.plan import PortMethod, PortPlan
from slipstream.porting.porting import port_fine_tune
from slipstream.porting.result import Candidate, PortedLayer, PortResult

__all__ = [
    "Candidate",
    "PortMethod",
    "PortPlan",
    "PortResult",
    "PortedLayer",
    "port_checkpoint",
    "port_fine_tune",
]
