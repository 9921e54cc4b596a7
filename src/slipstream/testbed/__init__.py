"""The small real data sets and networks of the demo, the tests and the benchmarks."""

from slipstream.deprecated import moved_names
from slipstream.testbed.datasets import Batches, DataSpec, DataSplit, Examples, load_data
from slipstream.testbed.networks import (
    NETWORKS,
    build_network,
    conv8,
    conv_net,
    mlp,
    resnet18,
    tapered_mlp,
)
from slipstream.testbed.omniglot import Characters, read_omniglot
from slipstream.testbed.tasks import ClassTasks, SinusoidTasks, TaskForm, TaskSplit, load_tasks

__all__ = [
    "NETWORKS", "Batches", "Characters", "ClassTasks", "DataSpec", "DataSplit", "Examples",
    "SinusoidTasks", "TaskForm", "TaskSplit", "build_network", "conv8", "conv_net", "load_data",
    "load_tasks", "mlp", "read_omniglot", "resnet18", "tapered_mlp",
]  # fmt: skip

__getattr__ = moved_names("slipstream.testbed")
