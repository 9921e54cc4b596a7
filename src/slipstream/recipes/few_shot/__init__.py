"""Meta-learning on few-shot tasks, with its engine: MAML, ANIL, BOIL and Meta-ticket."""

from slipstream.recipes.few_shot.adaptation import AfterAdaptation, adapt
from slipstream.recipes.few_shot.inner_loop import Adaptation, head_of
from slipstream.recipes.few_shot.judging import TaskScores, judge_tasks
from slipstream.recipes.few_shot.plan import MetaPlan
from slipstream.recipes.few_shot.training import MetaTraining, train_meta

__all__ = [
    "Adaptation",
    "AfterAdaptation",
    "MetaPlan",
    "MetaTraining",
    "TaskScores",
    "adapt",
    "head_of",
    "judge_tasks",
    "train_meta",
]
