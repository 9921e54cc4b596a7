"""What a pre-training of operators, and a tuning to a new one, will do: as plain data."""

from dataclasses import dataclass
from typing import Literal

from slipstream.recipes.patterns import as_patterns
from slipstream.storage.plan_fields import check_choices, option
from slipstream.training import TrainingPlan

Begun = Literal["apart", "equal"]


@dataclass(frozen=True)
class OperatorPlan:
    """Which half each operator keeps for itself, and how often the other one is averaged."""

    local: tuple[str, ...] = option(
        ("trunk.*",), "Patterns of the tensors that each operator has its own of; repeatable."
    )
    begun: Begun = option(
        "apart", "Whether these begin from different initialisations, or from the same one."
    )
    local_steps: int = option(10, "Steps of each operator between two averages.", minimum=1)
    descent: TrainingPlan = option(
        factory=lambda: TrainingPlan.cosine(100, "adam", 2e-3, weight_decay=0.0, warm_up=0.02)
    )

    def __post_init__(self) -> None:
        check_choices(self)
        if self.local_steps < 1:
            raise ValueError(f"local_steps must be at least 1, got {self.local_steps}.")
        object.__setattr__(self, "local", as_patterns(self.local, name="local"))
        if not self.local:
            raise ValueError("local must name a pattern at least, such as 'trunk.*'.")


@dataclass(frozen=True)
class PhysicsPlan:
    """What the equation's loss is made of, and which weights are trained.

    Without `initial` every constant would fulfil the equation.
    """

    rank: int = option(
        0, "Rank of the change of each matrix (LoRA); 0 trains all weights.", minimum=0
    )
    points: int = option(256, "Points per step at which the equation is asked for.", minimum=1)
    initial: float = option(20.0, "Weight of the distance from the given function at time 0.")
    boundary: float = option(1.0, "Weight of the distance between both ends of the period.")
    rates: tuple[float, ...] = option(
        (),
        "Learning rates to try first; the one with the least held-out loss stays. Repeatable.",
        shown="--lr alone",
    )
    trial: float = option(0.1, "Share of the epochs for which each rate is tried.")
    descent: TrainingPlan = option(
        factory=lambda: TrainingPlan.cosine(100, "adam", 1e-3, weight_decay=0.0, warm_up=0.02)
    )

    def __post_init__(self) -> None:
        if self.rank < 0 or self.points < 1:
            raise ValueError(
                f"rank must be at least 0 and points at least 1, got {self.rank}, {self.points}."
            )
        if not self.initial > 0:
            raise ValueError(
                f"initial must be above 0, got {self.initial}: every constant fulfils the equation."
            )
        if not self.boundary >= 0:
            raise ValueError(f"boundary must be at least 0, got {self.boundary}.")
        if not 0 < self.trial <= 1:
            raise ValueError(f"trial must be above 0 and at most 1, got {self.trial}.")
        if any(not rate > 0 for rate in self.rates):
            raise ValueError(f"rates must be above 0, got {self.rates}.")
        object.__setattr__(self, "rates", tuple(self.rates))
