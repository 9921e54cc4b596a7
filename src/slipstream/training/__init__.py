"""One plan, one loop, one recorded training that can be interrupted and resumed."""

from typing import TYPE_CHECKING

from slipstream.lazy_names import lazy_names

if TYPE_CHECKING:
    from slipstream.training.loop import (
        DivergedError,
        Loop,
        Progress,
        TrainingResult,
        check_sized,
        loss_value,
        train,
        trained_copy,
    )
    from slipstream.training.optimizers import Lion, Muon
    from slipstream.training.plan import OptimizerName, ScheduleName, TrainingPlan
    from slipstream.training.recorded_training import (
        RecordedTraining,
        RecordingOptions,
        record_training,
        recorded,
    )
    from slipstream.training.reinitialise import fresh_weights

__all__ = [
    "DivergedError", "Lion", "Loop", "Muon", "OptimizerName", "Progress", "RecordedTraining",
    "RecordingOptions", "ScheduleName", "TrainingPlan", "TrainingResult", "check_sized",
    "fresh_weights", "loss_value", "record_training", "recorded", "train", "trained_copy",
]  # fmt: skip

__getattr__ = lazy_names(__name__, __file__)
