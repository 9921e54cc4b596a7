"""Ways to train that give more than one network, or another one, for the price of a run."""

from typing import TYPE_CHECKING

from slipstream.deprecated import moved_names
from slipstream.lazy_names import lazy_names

if TYPE_CHECKING:
    from slipstream.recipes.aggregation.controls import AggregationControls, aggregation_controls
    from slipstream.recipes.aggregation.plan import AggregationPlan
    from slipstream.recipes.aggregation.training import Aggregation, train_aggregation
    from slipstream.recipes.checkpoint_prior.generation import Generated, generate
    from slipstream.recipes.checkpoint_prior.plan import GenerationPlan, PriorPlan
    from slipstream.recipes.checkpoint_prior.prior import CheckpointPrior, load_prior
    from slipstream.recipes.checkpoint_prior.training import train_prior
    from slipstream.recipes.few_shot.judging import TaskScores, judge_tasks
    from slipstream.recipes.few_shot.plan import MetaPlan
    from slipstream.recipes.few_shot.training import MetaTraining, train_meta
    from slipstream.recipes.lure.plan import LurePlan
    from slipstream.recipes.lure.training import Lure, LureStage, train_lure
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
    from slipstream.recipes.masks.ticket_file import (
        TicketSize,
        load_ticket,
        save_ticket,
        ticket_size,
    )
    from slipstream.recipes.masks.training import IterandTraining, train_iterand
    from slipstream.recipes.meta_neuron.lives import Life, LivingNetwork, live
    from slipstream.recipes.meta_neuron.neuron import MetaNeuron
    from slipstream.recipes.meta_neuron.plan import NeuronPlan
    from slipstream.recipes.meta_neuron.streams import AfterStream
    from slipstream.recipes.meta_neuron.training import NeuronTraining, train_neuron
    from slipstream.recipes.operators.averaging import (
        OperatorAverage,
        average_operators,
        operator_errors,
    )
    from slipstream.recipes.operators.physics import PhysicsProblem
    from slipstream.recipes.operators.plan import OperatorPlan, PhysicsPlan
    from slipstream.recipes.operators.pretraining import (
        OperatorPretraining,
        feed_functions,
        function_loss,
        pretrain_operators,
    )
    from slipstream.recipes.operators.training import (
        OperatorTuning,
        physics_metrics,
        tune_operator,
    )
    from slipstream.recipes.pseudo_transfer.consistency import Consistency
    from slipstream.recipes.pseudo_transfer.controls import (
        PseudoControls,
        SourceDistilled,
        distil_source,
        pseudo_controls,
    )
    from slipstream.recipes.pseudo_transfer.generator_quality import (
        GeneratorQuality,
        generator_quality,
    )
    from slipstream.recipes.pseudo_transfer.plan import (
        DistilPlan,
        PretrainPlan,
        PseudoPlan,
        QualityPlan,
    )
    from slipstream.recipes.pseudo_transfer.pretraining import Pretrained, pseudo_pretrain
    from slipstream.recipes.pseudo_transfer.sampling import (
        ConditionalGenerator,
        SyntheticBatches,
        pseudo_samples,
    )
    from slipstream.recipes.pseudo_transfer.semi_supervised import (
        PseudoTransferred,
        check_transfer,
        pseudo_semi_supervised,
    )
    from slipstream.recipes.pseudo_transfer.source import PseudoSource
    from slipstream.recipes.reconstruction.judging import Likeness, Pictures, likeness
    from slipstream.recipes.reconstruction.plan import ReconstructionPlan
    from slipstream.recipes.reconstruction.training import Attempt, Reconstruction, reconstruct
    from slipstream.recipes.routed_pretraining.plan import RoutedPlan
    from slipstream.recipes.routed_pretraining.training import RoutedPretraining, pretrain_routed
    from slipstream.recipes.side_tuning.controls import SideControls, side_controls
    from slipstream.recipes.side_tuning.networks import (
        SideNetwork,
        SideTask,
        features_of,
        small_side,
    )
    from slipstream.recipes.side_tuning.plan import SidePlan
    from slipstream.recipes.side_tuning.training import (
        DistilledSide,
        SideTuned,
        distil_side,
        side_tune,
    )
    from slipstream.recipes.subspaces.plan import SubspacePlan
    from slipstream.recipes.subspaces.stored import load_subspace
    from slipstream.recipes.subspaces.subspace import Subspace
    from slipstream.recipes.subspaces.training import train_subspace

__all__ = [
    "AfterStream", "Aggregation", "AggregationControls", "AggregationPlan", "Attempt",
    "CheckpointPrior", "ConditionalGenerator", "Consistency", "DistilPlan", "DistilledSide",
    "Generated", "GenerationPlan", "GeneratorQuality", "Iterand", "IterandPlan", "IterandTraining",
    "Life", "Likeness", "LivingNetwork", "Lure", "LurePlan", "LureStage", "MetaNeuron", "MetaPlan",
    "MetaTraining", "NeuronPlan", "NeuronTraining", "OperatorAverage", "OperatorPlan",
    "OperatorPretraining", "OperatorTuning", "PhysicsPlan", "PhysicsProblem", "Pictures",
    "PretrainPlan", "Pretrained", "PriorPlan", "PseudoControls", "PseudoPlan", "PseudoSource",
    "PseudoTransferred", "QualityPlan", "Reconstruction", "ReconstructionPlan", "RoutedPlan",
    "RoutedPretraining", "SideControls", "SideNetwork", "SidePlan", "SideTask", "SideTuned",
    "SourceDistilled", "Subspace", "SubspacePlan", "SyntheticBatches", "TaskScores", "Ticket",
    "TicketSize", "aggregation_controls", "average_operators", "check_transfer", "churn",
    "distil_side", "distil_source", "features_of", "feed_functions", "function_loss", "generate",
    "generator_quality", "judge_tasks", "least_salient", "likeness", "live", "load_prior",
    "load_subspace", "load_ticket", "operator_errors", "physics_metrics", "pretrain_operators",
    "pretrain_routed", "pseudo_controls", "pseudo_pretrain", "pseudo_samples",
    "pseudo_semi_supervised", "reconstruct", "reset_weights_", "resettable", "save_ticket",
    "select", "side_controls", "side_tune", "small_side", "ticket_size", "train_aggregation",
    "train_iterand", "train_lure", "train_meta", "train_neuron", "train_prior", "train_subspace",
    "tune_operator", "weight_saliency",
]  # fmt: skip

__getattr__ = lazy_names(__name__, __file__, moved_names(__name__))
