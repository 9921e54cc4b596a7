"""What LURE will do, as plain data."""

from dataclasses import dataclass
from typing import Literal

from slipstream.storage.plan_fields import check_choices, option
from slipstream.training import TrainingPlan

Choice = Literal["saliency", "random", "none"]


@dataclass(frozen=True)
class LurePlan:
    """What is forgotten before each new chunk of data, and how the network is trained.

    Example:
        >>> LurePlan(share=0.3).choice
        'saliency'
    """

    share: float = option(
        0.2, "Share of the weights that is re-initialised before each new chunk, from 0 to below 1."
    )
    choice: Choice = option(
        "saliency", "Which weights: the least salient; random and none are for comparison."
    )
    slice_batches: int | None = option(
        None, "Batches of the new chunk that the saliency is taken on.", shown="all"
    )
    descent: TrainingPlan = option(
        factory=lambda: TrainingPlan.cosine(20, lr=0.05)
    )  # on each chunk

    def __post_init__(self) -> None:
        check_share(self.share)
        check_choices(self)
        if self.slice_batches is not None and self.slice_batches < 1:
            raise ValueError(f"slice_batches must be at least 1, got {self.slice_batches}.")


def check_share(share: float) -> None:
    """Raise unless a share is in [0, 1)."""
    if not 0 <= share < 1:
        raise ValueError(f"share must be at least 0 and below 1, got {share}.")
