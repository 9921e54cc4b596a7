"""Record a training run's trajectory, transfer it to another start, and measure it.

The names below are the whole public interface at a glance; they load on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slipstream.evaluation import (
        accuracy,
        classification_loss,
        evaluate,
        gradient,
        probe_determinism,
        recalibrate_batchnorm,
    )
    from slipstream.matching import match_activations, match_gradients, match_weights
    from slipstream.modes import Averages, OnlineModes, average_run, fit_modes
    from slipstream.symmetry.neuron_groups import NeuronGroups
    from slipstream.symmetry.permutation import Permutation
    from slipstream.symmetry.tracing import find_neuron_groups
    from slipstream.trajectory import Recorder, Schedule, Snapshot, Trajectory, import_run
    from slipstream.transfer import (
        SignWeights,
        TransferPlan,
        TransferResult,
        compare_methods,
        load_transfer,
        transfer_to_many,
        transfer_trajectory,
    )
    from slipstream.transfer.porting import port_fine_tune
    from slipstream.weights import weights_of

_ROOMS = {
    # record
    "Recorder": "trajectory",
    "Schedule": "trajectory",
    "Snapshot": "trajectory",
    "Trajectory": "trajectory",
    "import_run": "trajectory",
    # match
    "NeuronGroups": "symmetry.neuron_groups",
    "Permutation": "symmetry.permutation",
    "find_neuron_groups": "symmetry.tracing",
    "match_activations": "matching",
    "match_gradients": "matching",
    "match_weights": "matching",
    # transfer
    "SignWeights": "transfer",
    "TransferPlan": "transfer",
    "TransferResult": "transfer",
    "compare_methods": "transfer",
    "load_transfer": "transfer",
    "transfer_to_many": "transfer",
    "transfer_trajectory": "transfer",
    "port_fine_tune": "transfer.porting",
    # decompose
    "Averages": "modes",
    "OnlineModes": "modes",
    "average_run": "modes",
    "fit_modes": "modes",
    # measure
    "accuracy": "evaluation",
    "classification_loss": "evaluation",
    "evaluate": "evaluation",
    "gradient": "evaluation",
    "probe_determinism": "evaluation",
    "recalibrate_batchnorm": "evaluation",
    "weights_of": "weights",
}

__all__ = [
    "Averages",
    "NeuronGroups",
    "OnlineModes",
    "Permutation",
    "Recorder",
    "Schedule",
    "SignWeights",
    "Snapshot",
    "Trajectory",
    "TransferPlan",
    "TransferResult",
    "accuracy",
    "average_run",
    "classification_loss",
    "compare_methods",
    "evaluate",
    "find_neuron_groups",
    "fit_modes",
    "gradient",
    "import_run",
    "load_transfer",
    "match_activations",
    "match_gradients",
    "match_weights",
    "port_fine_tune",
    "probe_determinism",
    "recalibrate_batchnorm",
    "transfer_to_many",
    "transfer_trajectory",
    "weights_of",
]


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(
            f"slipstream has no public name {name!r}; it has {', '.join(__all__)}."
        )
    return getattr(import_module(f"slipstream.{_ROOMS[name]}"), name)
