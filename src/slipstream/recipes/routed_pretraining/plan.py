"""What a routed pre-training will do, as plain data."""

from dataclasses import dataclass
from typing import Literal

from slipstream.recipes.patterns import as_patterns
from slipstream.storage.plan_fields import check_choices, option
from slipstream.training import TrainingPlan

SelfSupervision = Literal["simsiam", "masked"]


@dataclass(frozen=True)
class RoutedPlan:
    """What is learned of the images, when the data are divided, and what branches have apart.

    Example:
        >>> plan = RoutedPlan(whole=0.5, narrowing=0.25, descent=TrainingPlan(epochs=8))
        >>> plan.whole_epochs, [plan.foreign(epoch) for epoch in range(3, 8)]
        (4, [1.0, 0.6666666666666667, 0.33333333333333337, 0.0, 0.0])
    """

    clusters: int = option(4, "Clusters of the images; each gets a branch.", minimum=2)
    method: SelfSupervision = option(
        "simsiam", "What is learned: two views alike (simsiam), or hidden pixels (masked)."
    )
    routed: tuple[str, ...] = option(
        (),
        "Patterns of the tensors that each branch has its own of; repeatable.",
        shown="the second half",
    )
    whole: float = option(0.3, "Share of the epochs on all images; 1 never divides them.")
    narrowing: float = option(
        0.2, "Share of the epochs over which the images of other clusters fall to none."
    )
    distillation: float = option(
        0.5, "Weight, in [0, 1], of the distance from the network as it was before the division."
    )
    width: int = option(128, "Outputs of the projection that the loss is taken on.", minimum=1)
    hidden: float = option(0.6, "Share of an image's patches that `masked` hides.")
    patch: int = option(4, "Height and width of such a patch, in pixels.", minimum=1)
    descent: TrainingPlan = option(
        factory=lambda: TrainingPlan.cosine(30, lr=0.05, weight_decay=1e-4)
    )

    def __post_init__(self) -> None:
        check_choices(self)
        if self.clusters < 2:
            raise ValueError(f"clusters must be at least 2, got {self.clusters}.")
        if not 0 < self.whole <= 1:
            raise ValueError(f"whole must be above 0 and at most 1, got {self.whole}.")
        for name in ("narrowing", "distillation"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be between 0 and 1, got {getattr(self, name)}.")
        if not 0 < self.hidden < 1:
            raise ValueError(f"hidden must be above 0 and below 1, got {self.hidden}.")
        for name in ("width", "patch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        object.__setattr__(self, "routed", as_patterns(self.routed, name="routed"))

    @property
    def whole_epochs(self) -> int:
        """After how many epochs the images are divided; at least one."""
        return max(1, round(self.whole * self.descent.epochs))

    def foreign(self, epoch: int) -> float:
        """Return the share of a branch's images that come from all clusters in an epoch, from 0."""
        since = epoch - self.whole_epochs + 1
        if since <= 0:
            return 1.0
        return max(0.0, 1 - since / (round(self.narrowing * self.descent.epochs) + 1))
