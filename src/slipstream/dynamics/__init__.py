"""How a run moves: speed, direction and phases; what it says of the learned function."""

from typing import TYPE_CHECKING

from slipstream.lazy_names import lazy_names

if TYPE_CHECKING:
    from slipstream.dynamics.complexity import TrainingComplexity
    from slipstream.dynamics.complexity_meter import ComplexityMeter, complexity_of_run
    from slipstream.dynamics.first_layer import InputBias, with_input_bias
    from slipstream.dynamics.margin import MarginProgress, margin_progress
    from slipstream.dynamics.motion import Motion, measure_motion
    from slipstream.dynamics.phases import Phase, Phases, find_phases
    from slipstream.dynamics.prediction_plan import PredictionPlan
    from slipstream.dynamics.principal_path import PrincipalPath, principal_path
    from slipstream.dynamics.tangent_kernel import TangentKernel, tangent_kernel
    from slipstream.dynamics.training_time import (
        Arrival,
        PredictionCost,
        TrainingTime,
        Trust,
        predict_training_time,
    )

__all__ = [
    "Arrival", "ComplexityMeter", "InputBias", "MarginProgress", "Motion", "Phase", "Phases",
    "PredictionCost", "PredictionPlan", "PrincipalPath", "TangentKernel", "TrainingComplexity",
    "TrainingTime", "Trust", "complexity_of_run", "find_phases", "margin_progress",
    "measure_motion", "predict_training_time", "principal_path", "tangent_kernel",
    "with_input_bias",
]  # fmt: skip

__getattr__ = lazy_names(__name__, __file__)
