"""How the shared maps of a neuron are learned, as plain data."""

from dataclasses import dataclass
from typing import Literal

from slipstream.storage.plan_fields import check_choices, option
from slipstream.training import TrainingPlan

Search = Literal["gradient", "population"]
Order = Literal["class", "random"]


@dataclass(frozen=True)
class NeuronPlan:
    """What the maps are learned on, and by which search.

    Example:
        >>> NeuronPlan(search="population", population=5)
        Traceback (most recent call last):
        ...
        ValueError: population must be even and at least 2, got 5: the better half is copied.
    """

    search: Search = option(
        "gradient", "Gradients through truncated unrolls, or mutation and selection."
    )
    order: Order = option("class", "Order of a training stream: class by class, or random.")
    unroll: int = option(25, "Updates between two losses; gradients pass no further.", minimum=1)
    clip: float = option(1.0, "Largest norm of a gradient.")
    population: int = option(64, "Candidates of the population search.", minimum=2)
    mutation: float = option(0.02, "Deviation of a mutation.")
    descent: TrainingPlan = option(factory=lambda: TrainingPlan.cosine(30, "adam", 5e-3))

    def __post_init__(self) -> None:
        check_choices(self)
        if self.unroll < 1:
            raise ValueError(f"unroll must be at least 1 update, got {self.unroll}.")
        for name in ("clip", "mutation"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}.")
        if self.population < 2 or self.population % 2:
            raise ValueError(
                f"population must be even and at least 2, got {self.population}: the better half "
                "is copied."
            )
