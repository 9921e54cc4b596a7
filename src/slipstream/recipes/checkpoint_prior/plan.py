"""What a generative model of checkpoints learns, and what it is asked for, as plain data."""

from dataclasses import dataclass
from typing import Literal

from slipstream.storage.plan_fields import check_choices, option
from slipstream.training import TrainingPlan

Symmetry = Literal["augment", "align", "none"]


@dataclass(frozen=True)
class PriorPlan:
    """How the transformer is built and trained.

    Example:
        >>> PriorPlan(symmetry="align").metric
        'validation_loss'
    """

    metric: str = option(
        "validation_loss", "The recorded metric by which later weights are asked for."
    )
    symmetry: Symmetry = option(
        "augment",
        "What is done about the order of neurons: augment permutes them at random, align brings "
        "all runs into the order of the first one.",
    )
    positions: bool = option(
        False, "Whether the transformer knows which neuron a token is, not only of which layer."
    )
    width: int = option(96, "Width of the transformer.", minimum=1)
    layers: int = option(3, "Layers of the transformer.", minimum=1)
    heads: int = option(4, "Attention heads; the width is a multiple.", minimum=1)
    chunk: int = option(512, "Parameters per token, of tensors without permutable neurons.")
    levels: int = option(100, "Noise levels of the diffusion.", minimum=2)
    batch_size: int = option(128, "Pairs of checkpoints per step.", minimum=1)
    steps: int = option(100, "Steps per epoch.", minimum=1)
    from_start: float = option(
        0.5,
        "Share of the pairs that begin at a run's first checkpoint: what unseen starts are like.",
    )
    held_out: float = option(0.1, "Share of the runs that it is measured on, not trained.")
    decay: float = option(0.99, "Decay of the average of the transformer's weights.")
    descent: TrainingPlan = option(
        factory=lambda: TrainingPlan.cosine(10, "adamw", lr=1e-3, weight_decay=0.01)
    )

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("width", "layers", "heads", "chunk", "batch_size", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.levels < 2:
            raise ValueError(f"levels must be at least 2, got {self.levels}.")
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads={self.heads}, got {self.width}.")
        if not 0 <= self.from_start <= 1:
            raise ValueError(f"from_start must be between 0 and 1, got {self.from_start}.")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out must be between 0 and 1, got {self.held_out}.")


@dataclass(frozen=True)
class GenerationPlan:
    """What is asked for, and how often."""

    wanted: float | None = option(
        None, "The metric to ask for.", shown="what the best tenth of the runs ended with"
    )
    updates: int = option(1, "How many times the result is taken as the start.", minimum=1)
    seed: int = option(0, "Seed of the noise.", minimum=0)

    def __post_init__(self) -> None:
        if self.updates < 1:
            raise ValueError(f"updates must be at least 1, got {self.updates}.")
