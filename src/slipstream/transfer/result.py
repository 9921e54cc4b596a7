"""What a transfer returns: every stage, what it cost, and where the weights are."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from slipstream.symmetry.permutation import Permutation
from slipstream.trajectory import Trajectory
from slipstream.transfer.plan import TransferPlan


@dataclass(frozen=True)
class TransferStage:
    """One stage: how it was reached, and how good it is."""

    stage: int  # 0 is the target's start
    objective: float | None = None  # of the matching that led here; None where none was solved
    gain: float | None = None  # over the identity
    sweeps: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)  # on the validation data


@dataclass(frozen=True)
class TransferCost:
    """What a transfer cost."""

    gradient_evaluations: int  # of source and target together, a stage's batches counting as one
    seconds: Mapping[str, float]  # by kind of work
    resumed_gradients: int = 0  # that an interrupted transfer had left behind
    kept_bytes: int = 0  # of the gradient pairs that had to be kept for the last matching

    @property
    def total_seconds(self) -> float:
        """Seconds of all kinds together."""
        return sum(self.seconds.values())


@dataclass(frozen=True)
class TransferResult:
    """Result of `transfer_trajectory`."""

    plan: TransferPlan
    trajectory: Trajectory  # the transferred one: a snapshot for each stage, read on access
    stages: tuple[TransferStage, ...]
    permutations: Mapping[int, Permutation]  # source to target, by the stage it led to
    chosen: int  # the stage that `weights` returns
    cost: TransferCost

    @property
    def weights(self) -> dict[str, Tensor]:
        """The weights to go on with: those of the last stage, or of the best one if asked for."""
        return dict(self.trajectory[self.chosen].weights)

    @property
    def source_to_target(self) -> Permutation:
        """The permutation of the last stage."""
        return self.permutations[max(self.permutations)]

    def to_json(self) -> dict[str, Any]:
        """Return plan, stages and cost as plain data."""
        return {
            "plan": asdict(self.plan),
            "stages": [asdict(stage) for stage in self.stages],
            "chosen": self.chosen,
            "cost": {**asdict(self.cost), "total_seconds": self.cost.total_seconds},
        }
