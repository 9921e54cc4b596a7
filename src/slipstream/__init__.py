"""Record a training run's trajectory, transfer it to another start, and measure it.

The names below are the whole public interface at a glance; they load on first use.
"""

import sys
from typing import TYPE_CHECKING, Any

from slipstream.deprecated import NAMES, MovedModules, moved_names
from slipstream.lazy_names import lazy_names

if TYPE_CHECKING:
    from slipstream.averaging import Averages, average_run
    from slipstream.dynamics import predict_training_time
    from slipstream.evaluation import Task, accuracy, classification_loss, evaluate
    from slipstream.landscape import loss_barrier, loss_plane
    from slipstream.matching import match_activations, match_gradients, match_weights
    from slipstream.modes import OnlineModes, fit_modes
    from slipstream.porting import port_fine_tune
    from slipstream.report.report import write_report
    from slipstream.symmetry.neuron_groups import NeuronGroups
    from slipstream.symmetry.permutation import Permutation
    from slipstream.symmetry.tracing import find_neuron_groups
    from slipstream.trajectory import Recorder, Schedule, Trajectory, import_run
    from slipstream.transfer import (
        TransferPlan,
        TransferResult,
        compare_methods,
        load_transfer,
        transfer_to_many,
        transfer_trajectory,
    )
    from slipstream.weights import weights_of

sys.meta_path.append(MovedModules())  # last: only for what is not found

__all__ = [
    "Averages", "NeuronGroups", "OnlineModes", "Permutation", "Recorder", "Schedule", "Task",
    "Trajectory", "TransferPlan", "TransferResult", "accuracy", "average_run",
    "classification_loss", "compare_methods", "evaluate", "find_neuron_groups", "fit_modes",
    "import_run", "load_transfer", "loss_barrier", "loss_plane", "match_activations",
    "match_gradients", "match_weights", "port_fine_tune", "predict_training_time",
    "transfer_to_many", "transfer_trajectory", "weights_of", "write_report",
]  # fmt: skip


def _missing(name: str) -> Any:
    if name in NAMES["slipstream"]:
        return moved_names("slipstream")(name)
    raise AttributeError(f"slipstream has no public name {name!r}; it has {', '.join(__all__)}.")


__getattr__ = lazy_names(__name__, __file__, _missing)
