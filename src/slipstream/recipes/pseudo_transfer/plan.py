"""What a transfer without source data, and what it is compared with, will do, as plain data."""

from dataclasses import dataclass
from typing import Literal

from slipstream.recipes.pseudo_transfer.consistency import Consistency
from slipstream.storage.plan_fields import check_choices, option
from slipstream.training import TrainingPlan

Conditioning = Literal["soft", "sampled", "uniform"]


@dataclass(frozen=True)
class PseudoPlan:
    """How a network learns from labelled target data and synthetic inputs, as plain data."""

    weight: float = option(0.1, "Weight of the loss on synthetic inputs.")
    consistency: Consistency = option(factory=Consistency)
    conditioning: Conditioning = option("soft", "How the classes of synthetic inputs are chosen.")
    ratio: int = option(1, "Synthetic inputs per labelled one.")
    rise: float = option(0.0, "Share of the epochs over which the weight rises from 0.")
    descent: TrainingPlan = option(factory=lambda: TrainingPlan.cosine(60, lr=0.05))

    def __post_init__(self) -> None:
        check_choices(self)
        if not 0 <= self.weight < float("inf"):
            raise ValueError(f"weight must be at least 0 and finite, got {self.weight}.")
        if self.ratio < 1:
            raise ValueError(f"ratio must be at least 1, got {self.ratio}.")
        if not 0 <= self.rise <= 1:
            raise ValueError(f"rise must be at least 0 and at most 1, got {self.rise}.")

    def weight_at(self, epoch: int) -> float:
        """Return the weight of the loss on synthetic inputs in an epoch, counted from 0.

        Example:
            >>> plan = PseudoPlan(weight=2.0, rise=0.5, descent=TrainingPlan(epochs=8))
            >>> [plan.weight_at(epoch) for epoch in (0, 1, 4)]
            [0.0, 0.5, 2.0]
        """
        rising = self.rise * self.descent.epochs
        return self.weight * min(1.0, epoch / rising) if rising else self.weight


@dataclass(frozen=True)
class PretrainPlan:
    """How a network is pre-trained on what a generator makes, as plain data."""

    batches: int = option(100, "Batches per epoch.")
    batch_size: int = option(128, "Examples per batch.")
    descent: TrainingPlan = option(factory=lambda: TrainingPlan.cosine(10, lr=0.05))

    def __post_init__(self) -> None:
        for name in ("batches", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")


@dataclass(frozen=True)
class DistilPlan:
    """How a source classifier is distilled while a task is learned, as plain data."""

    weight: float = 1.0  # of the distillation
    temperature: float = 4.0
    descent: TrainingPlan = option(factory=lambda: TrainingPlan.cosine(60, lr=0.05))

    def __post_init__(self) -> None:
        if not 0 <= self.weight < float("inf"):
            raise ValueError(f"weight must be at least 0 and finite, got {self.weight}.")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}.")


@dataclass(frozen=True)
class QualityPlan:
    """How the quality of a generator is measured, as plain data."""

    batches: int = 100  # per epoch, other ones in each
    batch_size: int = 128
    descent: TrainingPlan = option(factory=lambda: TrainingPlan.cosine(10, lr=0.05))
