"""The small real data sets and networks of the demo, the tests and the benchmarks."""

from slipstream.testbed.datasets import Batches, DataSpec, DataSplit, Examples, load_data
from slipstream.testbed.networks import NETWORKS, build_network, conv8, conv_net, mlp, resnet18
from slipstream.testbed.recording import RecordedTraining, TrainingPlan, record_training
from slipstream.testbed.setup import Experiment, Setup, rebuild
from slipstream.testbed.training import TrainingResult, train

__all__ = [
    "NETWORKS",
    "Batches",
    "DataSpec",
    "DataSplit",
    "Examples",
    "Experiment",
    "RecordedTraining",
    "Setup",
    "TrainingPlan",
    "TrainingResult",
    "build_network",
    "conv8",
    "conv_net",
    "load_data",
    "mlp",
    "rebuild",
    "record_training",
    "resnet18",
    "train",
]
