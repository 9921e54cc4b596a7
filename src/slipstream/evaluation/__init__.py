"""Loss, gradient and metrics over a data set; determinism; BatchNorm statistics."""

from slipstream.deprecated import moved_names
from slipstream.evaluation.batches import (
    Batch,
    Loss,
    Metric,
    TaskBatch,
    accuracy,
    batch_size,
    batches_of_epoch,
    classification_loss,
    device_of,
    inputs_of,
    squared_loss,
    to_device,
)
from slipstream.evaluation.batchnorm import (
    batch_statistics,
    batchnorm_layers,
    forward_inputs,
    recalibrate_batchnorm,
)
from slipstream.evaluation.determinism import DeterminismProbe, probe_determinism
from slipstream.evaluation.ensembles import Ensemble
from slipstream.evaluation.executors import spread_over
from slipstream.evaluation.metrics import evaluate, gradient
from slipstream.evaluation.swapped_weights import eval_mode, weights_in
from slipstream.evaluation.takes_task import takes_task
from slipstream.evaluation.task import Split, Task

__all__ = [
    "Batch", "DeterminismProbe", "Ensemble", "Loss", "Metric", "Split", "Task", "TaskBatch",
    "accuracy", "batch_size", "batch_statistics", "batches_of_epoch", "batchnorm_layers",
    "classification_loss", "device_of", "eval_mode", "evaluate", "forward_inputs", "gradient",
    "inputs_of", "probe_determinism", "recalibrate_batchnorm", "spread_over", "squared_loss",
    "takes_task", "to_device", "weights_in",
]  # fmt: skip

__getattr__ = moved_names("slipstream.evaluation")
