"""How a basis is matched, as plain data."""

from dataclasses import dataclass
from typing import Literal, get_args

from slipstream.storage.plan_fields import option

BasisMethod = Literal["weights", "activations"]


@dataclass(frozen=True)
class BasisPlan:
    """How `match_basis` finds a rotation."""

    method: BasisMethod = option(
        "activations", "Find it by what the neurons compute on data, or by the weights alone."
    )
    batches: int = option(8, "Batches for activations.", minimum=1)
    max_sweeps: int = option(30, "Passes over all groups, for weights.", minimum=1)
    learn_steps: int = option(
        0, "Steps that then lower the loss between the networks, on training batches.", minimum=0
    )
    lr: float = option(0.01, "The learning rate of these steps.")
    seed: int = option(0, "Seed of these steps.")

    def __post_init__(self) -> None:
        if self.method not in get_args(BasisMethod):
            raise ValueError(f"method must be weights or activations, got {self.method!r}.")
        if not self.lr > 0:
            raise ValueError(f"lr must be above 0, got {self.lr}.")
