"""Ways to train that give more than one network, or another one, for the price of a run."""

from slipstream.deprecated import moved_names
from slipstream.recipes.aggregation.controls import AggregationControls, aggregation_controls
from slipstream.recipes.aggregation.training import Aggregation, AggregationPlan, train_aggregation
from slipstream.recipes.few_shot.meta_training import (
    MetaTraining,
    TaskScores,
    judge_tasks,
    train_meta,
)
from slipstream.recipes.few_shot.plan import MetaPlan
from slipstream.recipes.lure.training import Lure, LurePlan, LureStage, train_lure
from slipstream.recipes.lure.unlearning import (
    least_salient,
    reset_weights_,
    resettable,
    weight_saliency,
)
from slipstream.recipes.masks.iterand import Iterand
from slipstream.recipes.masks.plan import IterandPlan
from slipstream.recipes.masks.selection import churn, select
from slipstream.recipes.masks.ticket import Ticket
from slipstream.recipes.masks.ticket_file import TicketSize, load_ticket, save_ticket, ticket_size
from slipstream.recipes.masks.training import IterandTraining, train_iterand
from slipstream.recipes.pseudo_transfer.consistency import Consistency
from slipstream.recipes.pseudo_transfer.controls import (
    DistilPlan,
    PseudoControls,
    SourceDistilled,
    distil_source,
    pseudo_controls,
)
from slipstream.recipes.pseudo_transfer.generator_quality import (
    GeneratorQuality,
    QualityPlan,
    generator_quality,
)
from slipstream.recipes.pseudo_transfer.pretraining import Pretrained, PretrainPlan, pseudo_pretrain
from slipstream.recipes.pseudo_transfer.sampling import (
    ConditionalGenerator,
    SyntheticBatches,
    pseudo_samples,
)
from slipstream.recipes.pseudo_transfer.semi_supervised import (
    PseudoPlan,
    PseudoTransferred,
    check_transfer,
    pseudo_semi_supervised,
)
from slipstream.recipes.side_tuning.controls import SideControls, side_controls
from slipstream.recipes.side_tuning.training import (
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
from slipstream.recipes.subspaces.folder import load_subspace
from slipstream.recipes.subspaces.subspace import Subspace, SubspacePlan
from slipstream.recipes.subspaces.training import train_subspace

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
    "distil_side",
    "distil_source",
    "features_of",
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

__getattr__ = moved_names("slipstream.recipes")
