"""What checkpoints are to each other, and which of them is the best start."""

from typing import TYPE_CHECKING

from slipstream.lazy_names import lazy_names

if TYPE_CHECKING:
    from slipstream.comparison.compare import CheckpointComparison, compare_checkpoints
    from slipstream.comparison.layers import LayerComparison
    from slipstream.comparison.pair import Certainty, PairComparison, Relation
    from slipstream.comparison.plan import StartPlan
    from slipstream.comparison.start import StartCandidate, StartChoice, choose_start

__all__ = [
    "Certainty",
    "CheckpointComparison",
    "LayerComparison",
    "PairComparison",
    "Relation",
    "StartCandidate",
    "StartChoice",
    "StartPlan",
    "choose_start",
    "compare_checkpoints",
]

__getattr__ = lazy_names(__name__, __file__)
