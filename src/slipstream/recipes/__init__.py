"""Ways to train that give more than one network, or another one, for the price of a run."""

from slipstream.recipes.aggregation import Aggregation, AggregationPlan, train_aggregation
from slipstream.recipes.aggregation_controls import AggregationControls, aggregation_controls
from slipstream.recipes.descending import descend
from slipstream.recipes.fresh import fresh_weights
from slipstream.recipes.iterand import Iterand
from slipstream.recipes.iterand_plan import IterandPlan
from slipstream.recipes.iterand_training import IterandTraining, train_iterand
from slipstream.recipes.lure import Lure, LurePlan, LureStage, train_lure
from slipstream.recipes.meta_plan import MetaPlan
from slipstream.recipes.meta_ticket import MetaTraining, TaskScores, judge_tasks, train_meta
from slipstream.recipes.selection import churn, select
from slipstream.recipes.side_controls import SideControls, side_controls
from slipstream.recipes.side_tuning import (
    DistilledSide,
    SideNetwork,
    SidePlan,
    SideTask,
    SideTuned,
    distil_side,
    features_of,
    side_tune,
    small_side,
)
from slipstream.recipes.subspace import Subspace, SubspacePlan
from slipstream.recipes.subspace_folder import load_subspace
from slipstream.recipes.subspace_training import train_subspace
from slipstream.recipes.ticket import Ticket
from slipstream.recipes.ticket_file import TicketSize, load_ticket, save_ticket, ticket_size
from slipstream.recipes.unlearning import (
    least_salient,
    reset_weights_,
    resettable,
    weight_saliency,
)

__all__ = [
    "Aggregation",
    "AggregationControls",
    "AggregationPlan",
    "DistilledSide",
    "Iterand",
    "IterandPlan",
    "IterandTraining",
    "Lure",
    "LurePlan",
    "LureStage",
    "MetaPlan",
    "MetaTraining",
    "SideControls",
    "SideNetwork",
    "SidePlan",
    "SideTask",
    "SideTuned",
    "Subspace",
    "SubspacePlan",
    "TaskScores",
    "Ticket",
    "TicketSize",
    "aggregation_controls",
    "churn",
    "descend",
    "distil_side",
    "features_of",
    "fresh_weights",
    "judge_tasks",
    "least_salient",
    "load_subspace",
    "load_ticket",
    "reset_weights_",
    "resettable",
    "save_ticket",
    "select",
    "side_controls",
    "side_tune",
    "small_side",
    "ticket_size",
    "train_aggregation",
    "train_iterand",
    "train_lure",
    "train_meta",
    "train_subspace",
    "weight_saliency",
]
