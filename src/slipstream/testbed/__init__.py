"""The small real data sets and networks of the demo, the tests and the benchmarks."""

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
from slipstream.testbed.recording import RecordedTraining, TrainingPlan, record_training
from slipstream.testbed.setup import Experiment, FewShot, Setup, rebuild
from slipstream.testbed.tasks import ClassTasks, SinusoidTasks, TaskForm, TaskSplit, load_tasks
from slipstream.testbed.training import TrainingResult, train

__all__ = [
    "NETWORKS",
    "Batches",
    "Characters",
    "ClassTasks",
    "DataSpec",
    "DataSplit",
    "Examples",
    "Experiment",
    "FewShot",
    "RecordedTraining",
    "Setup",
    "SinusoidTasks",
    "TaskForm",
    "TaskSplit",
    "TrainingPlan",
    "TrainingResult",
    "build_network",
    "conv8",
    "conv_net",
    "load_data",
    "load_tasks",
    "mlp",
    "read_omniglot",
    "rebuild",
    "record_training",
    "resnet18",
    "tapered_mlp",
    "train",
]
