"""Loss, gradient and metrics over a data set; determinism; BatchNorm statistics."""

from slipstream.evaluation.adaptation import Adaptation, AfterAdaptation, adapt, head_of
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
from slipstream.evaluation.borrowing import eval_mode, weights_in
from slipstream.evaluation.determinism import DeterminismProbe, probe_determinism
from slipstream.evaluation.ensembles import Ensemble
from slipstream.evaluation.means import evaluate, gradient

__all__ = [
    "Adaptation",
    "AfterAdaptation",
    "Batch",
    "DeterminismProbe",
    "Ensemble",
    "Loss",
    "Metric",
    "TaskBatch",
    "accuracy",
    "adapt",
    "batch_size",
    "batch_statistics",
    "batches_of_epoch",
    "batchnorm_layers",
    "classification_loss",
    "device_of",
    "eval_mode",
    "evaluate",
    "forward_inputs",
    "gradient",
    "head_of",
    "inputs_of",
    "probe_determinism",
    "recalibrate_batchnorm",
    "squared_loss",
    "to_device",
    "weights_in",
]
