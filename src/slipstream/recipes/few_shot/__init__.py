"""Meta-learning on few-shot tasks, with its engine: MAML, ANIL, BOIL and Meta-ticket."""

from typing import TYPE_CHECKING

from slipstream.lazy_names import lazy_names

if TYPE_CHECKING:
    from slipstream.recipes.few_shot.adaptation import AfterAdaptation, adapt
    from slipstream.recipes.few_shot.inner_loop import head_of
    from slipstream.recipes.few_shot.judging import TaskScores, judge_tasks
    from slipstream.recipes.few_shot.plan import Adaptation, MetaPlan
    from slipstream.recipes.few_shot.training import MetaTraining, train_meta

__all__ = [
    "Adaptation", "AfterAdaptation", "MetaPlan", "MetaTraining", "TaskScores", "adapt", "head_of",
    "judge_tasks", "train_meta",
]  # fmt: skip

__getattr__ = lazy_names(__name__, __file__)
