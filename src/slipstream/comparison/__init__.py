"""What checkpoints are to each other, which is the best start, and whether they are new."""

from typing import TYPE_CHECKING

from slipstream.lazy_names import lazy_names

if TYPE_CHECKING:
    from slipstream.comparison.compare import CheckpointComparison, compare_checkpoints
    from slipstream.comparison.layers import LayerComparison
    from slipstream.comparison.memorisation import (
        Memorisation,
        Nearest,
        NoveltyRow,
        measure_memorisation,
    )
    from slipstream.comparison.pair import Certainty, PairComparison, Relation
    from slipstream.comparison.plan import MemorisationPlan, StartPlan
    from slipstream.comparison.start import StartCandidate, StartChoice, choose_start

__all__ = [
    "Certainty",
    "CheckpointComparison",
    "LayerComparison",
    "Memorisation",
    "MemorisationPlan",
    "Nearest",
    "NoveltyRow",
    "PairComparison",
    "Relation",
    "StartCandidate",
    "StartChoice",
    "StartPlan",
    "choose_start",
    "compare_checkpoints",
    "measure_memorisation",
]

__getattr__ = lazy_names(__name__, __file__)
