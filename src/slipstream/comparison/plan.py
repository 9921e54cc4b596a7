"""How starts are tried, and what checkpoints are compared with, as plain data."""

from dataclasses import dataclass

from slipstream.storage.plan_fields import option
from slipstream.training.plan import OptimizerName

FEWEST = 2  # batches: one to fit and one to judge on


@dataclass(frozen=True)
class StartPlan:
    """How long each start is tried."""

    batches: int = option(8, "Labelled batches to use, from the first.", minimum=FEWEST)
    steps: int = option(20, "Steps of the optimiser per trial; 0 judges the start as it is.")
    rates: tuple[float, ...] = option(
        (3e-3, 1e-3, 3e-4), "A learning rate to try; repeatable. The best one of each start counts."
    )
    optimizer: OptimizerName = option("adam", "Optimiser of the trials.")
    seed: int = option(0, "Seed of what the trials draw, such as dropout.")

    def __post_init__(self) -> None:
        if self.batches < FEWEST:
            raise ValueError(f"batches must be at least 2, got {self.batches}.")
        if self.steps < 0:
            raise ValueError(f"steps must not be negative, got {self.steps}.")
        if not self.rates or min(self.rates) <= 0:
            raise ValueError(f"rates must be above 0, got {self.rates}.")


@dataclass(frozen=True)
class MemorisationPlan:
    """What a set of checkpoints is compared with, besides the known ones themselves."""

    noise: tuple[float, ...] = option(
        (0.1, 0.3, 1.0),
        "Noise added to known checkpoints, over the root mean square of each tensor; repeatable.",
    )
    averaged: int = option(2, "How many known checkpoints an average is of.", minimum=2)
    controls: int = option(10, "Checkpoints per baseline.", minimum=1)
    seed: int = option(0, "Seed of the noise, and of which known checkpoints are taken.")

    def __post_init__(self) -> None:
        if self.averaged < 2:
            raise ValueError(f"averaged must be at least 2, got {self.averaged}.")
        if self.controls < 1:
            raise ValueError(f"controls must be at least 1, got {self.controls}.")
        if min(self.noise, default=0) < 0:
            raise ValueError(f"noise must not be negative, got {self.noise}.")
