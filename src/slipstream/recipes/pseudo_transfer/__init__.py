"""Transfer without the source's data: pseudo pre-training and pseudo semi-supervision."""

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
from slipstream.recipes.pseudo_transfer.source import PseudoSource

__all__ = [
    "ConditionalGenerator",
    "Consistency",
    "DistilPlan",
    "GeneratorQuality",
    "PretrainPlan",
    "Pretrained",
    "PseudoControls",
    "PseudoPlan",
    "PseudoSource",
    "PseudoTransferred",
    "QualityPlan",
    "SourceDistilled",
    "SyntheticBatches",
    "check_transfer",
    "distil_source",
    "generator_quality",
    "pseudo_controls",
    "pseudo_pretrain",
    "pseudo_samples",
    "pseudo_semi_supervised",
]
