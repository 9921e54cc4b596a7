"""How the best start among checkpoints is found, as plain data."""

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
