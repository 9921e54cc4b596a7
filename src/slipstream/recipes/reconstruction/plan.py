"""What a reconstruction looks for, and how, as plain data."""

import math
from dataclasses import dataclass, replace
from typing import Literal

from slipstream.storage.plan_fields import check_choices, option
from slipstream.training import TrainingPlan

EquationName = Literal["margin", "decay", "displacement"]


@dataclass(frozen=True)
class ReconstructionPlan:
    """Which equation the weights fulfil, and how inputs are fitted to it.

    Example:
        >>> ReconstructionPlan(candidates=20).equation
        'decay'
    """

    equation: EquationName = option(
        "decay",
        "What the weights are made of: gradients that weight decay holds in balance, those of a "
        "largest margin (homogeneous networks only), or the steps between two snapshots.",
    )
    candidates: int = option(
        20, "Inputs that are looked for; about twice as many as were trained on.", minimum=1
    )
    attempts: int = option(
        3, "Starts with other settings; the least residual decides, and all are listed.", minimum=1
    )
    scale: float = option(0.3, "Deviation of the first candidates.")
    smoothness: float = option(
        10.0, "ReLU's derivative is differentiated as that of sigmoid(smoothness x)."
    )
    least: float = option(0.1, "Below it a coefficient is penalised; 1 is that of the start.")
    prior: float = option(0.1, "Weight of the penalty on values beyond low and high.")
    splits: int = option(2, "How often candidates of much weight are split in two.", minimum=0)
    low: float | None = option(None, "The least value of an input.", shown="that of held-out data")
    high: float | None = option(None, "The largest value.", shown="that of held-out data")
    descent: TrainingPlan = option(
        factory=lambda: TrainingPlan.cosine(60, "adam", 0.02, weight_decay=0.0)
    )  # of each attempt; an epoch has 100 steps

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("scale", "smoothness"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}.")
        if not 0 <= self.least < 1:
            raise ValueError(f"least must be at least 0 and below 1, got {self.least}.")
        for name, fewest in (("candidates", 1), ("attempts", 1), ("splits", 0)):
            if getattr(self, name) < fewest:
                raise ValueError(f"{name} must be at least {fewest}, got {getattr(self, name)}.")

    def attempt(self, number: int) -> "ReconstructionPlan":
        """Return the settings of an attempt: the first as given, others drawn around them.

        Example:
            >>> plan = ReconstructionPlan()
            >>> plan.attempt(0) == plan, plan.attempt(1) == plan.attempt(1) != plan
            (True, True)
        """
        import numpy as np  # which is slow to import, and only needed here

        if number == 0:
            return self
        drawn = np.random.default_rng((self.descent.seed, number)).uniform(-1, 1, 3).tolist()
        return replace(
            self,
            scale=self.scale * 10 ** drawn[0],
            smoothness=self.smoothness * 5 ** drawn[1],
            descent=replace(self.descent, lr=self.descent.lr * 3 ** drawn[2]),
        )
