"""Carrying a fine-tune from one base model to another."""

from slipstream.deprecated import moved_names
from slipstream.porting.checkpoints import checkpoint_task, port_checkpoint
from slipstream.porting.plan import PortMethod, PortPlan
from slipstream.porting.porting import port_fine_tune
from slipstream.porting.problem import FineTune
from slipstream.porting.result import PortCandidate, PortedLayer, PortResult

__all__ = [
    "FineTune",
    "PortCandidate",
    "PortMethod",
    "PortPlan",
    "PortResult",
    "PortedLayer",
    "checkpoint_task",
    "port_checkpoint",
    "port_fine_tune",
]

__getattr__ = moved_names("slipstream.porting")
