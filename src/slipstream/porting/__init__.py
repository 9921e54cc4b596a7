"""Carrying a fine-tune from one base model to another."""

from typing import TYPE_CHECKING

from slipstream.deprecated import moved_names
from slipstream.lazy_names import lazy_names

if TYPE_CHECKING:
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

__getattr__ = lazy_names(__name__, __file__, moved_names("slipstream.porting"))
