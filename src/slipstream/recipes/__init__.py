"""Ways to train that give more than one network, or another one, for the price of a run."""

from slipstream.recipes.aggregation import Aggregation, AggregationPlan, train_aggregation
from slipstream.recipes.aggregation_controls import AggregationControls, aggregation_controls
from slipstream.recipes.consistency import (
    Consistency,
)
from slipstream.recipes.descending import descend
from slipstream.recipes.fresh import fresh_weights
from slipstream.recipes.generator_quality import (
    GeneratorQuality,
    QualityPlan,
    generator_quality,
)
from slipstream.recipes.iterand import Iterand
from slipstream.recipes.iterand_plan import IterandPlan
from slipstream.recipes.iterand_training import IterandTraining, train_iterand
from slipstream.recipes.lure import Lure, LurePlan, LureStage, train_lure
from slipstream.recipes.meta_plan import MetaPlan
from slipstream.recipes.meta_ticket import MetaTraining, TaskScores, judge_tasks, train_meta
from slipstream.recipes.pseudo_controls import (
    DistilPlan,
    PseudoControls,
    SourceDistilled,
    distil_source,
    pseudo_controls,
)
from slipstream.recipes.pseudo_pretraining import (
    Pretrained,
    PretrainPlan,
    pseudo_pretrain,
)
from slipstream.recipes.pseudo_sampling import (
    ConditionalGenerator,
    SyntheticBatches,
    pseudo_samples,
)
from slipstream.recipes.pseudo_transfer import (
    PseudoPlan,
    PseudoTransferred,
    check_transfer,
    pseudo_semi_supervised,
)
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
    "ConditionalGenerator",
    "Consistency",
    "DistilPlan",
    "DistilledSide",
    "GeneratorQuality",
    "Iterand",
    "IterandPlan",
    "IterandTraining",
    "Lure",
    "LurePlan",
    "LureStage",
    "MetaPlan",
    "MetaTraining",
    "PretrainPlan",
    "Pretrained",
    "PseudoControls",
    "PseudoPlan",
    "PseudoTransferred",
    "QualityPlan",
    "SideControls",
    "SideNetwork",
    "SidePlan",
    "SideTask",
    "SideTuned",
    "SourceDistilled",
    "Subspace",
    "SubspacePlan",
    "SyntheticBatches",
    "TaskScores",
    "Ticket",
    "TicketSize",
    "aggregation_controls",
    "check_transfer",
    "churn",
    "descend",
    "distil_side",
    "distil_source",
    "features_of",
    "fresh_weights",
    "generator_quality",
    "judge_tasks",
    "least_salient",
    "load_subspace",
    "load_ticket",
    "pseudo_controls",
    "pseudo_pretrain",
    "pseudo_samples",
    "pseudo_semi_supervised",
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
