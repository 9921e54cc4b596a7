"""What a meta-training will do, as plain data."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

from slipstream.recipes.few_shot.adaptation import Adaptation, Batching
from slipstream.recipes.masks.plan import check_redrawn
from slipstream.recipes.masks.random_weights import Initial
from slipstream.training import Descent

Method = Literal["ticket", "ticket-boil", "maml", "anil", "boil"]
Threshold = Literal["fixed", "top-k"]


@dataclass(frozen=True)
class MetaPlan:
    """How weights, or a mask of random weights, are meta-learned.

    `maml` learns weights from which a few inner steps lead to every task; `anil` moves only the
    head in these steps, `boil` only the body. `ticket` learns no weight but which of random ones
    stay; `ticket-boil` moves only the body of these.

    Source: "Meta-ticket: Finding optimal subnetworks for few-shot learning within randomly
    initialized neural networks" (Chijiwa, Yamaguchi, Kumagai, Ida, 2022), algorithm 1; "Rapid
    Learning or Feature Reuse? Towards Understanding the Effectiveness of MAML" (Raghu et al.,
    2020); "BOIL: Towards Representation Change for Few-shot Learning" (Oh et al., 2021).

    Example:
        >>> MetaPlan("anil").adaptation.adapted, MetaPlan("ticket").masked
        ('head', True)
    """

    method: Method = "ticket"
    rate: float = 0.4  # of the inner steps
    steps: int = 1  # inner steps in training
    second_order: bool = True
    head: tuple[str, ...] = ()  # patterns of its tensors; the last layer with weights if empty
    batching: Batching = "auto"
    initial: Initial = "kaiming-normal"  # from where a ticket's weights are drawn
    threshold: Threshold = "fixed"  # of the scores: that of the start, or so that a share falls
    pruned: float = 0.0  # share that falls: at the start if the threshold is fixed, or always
    redrawn: float = 0.0  # share of the fallen weights that are drawn anew each time
    every: int = 300  # steps from one time to the next
    exclude: tuple[str, ...] = ()  # patterns of tensors that are not masked, besides the head
    seed: int = 0  # of a ticket's weights and scores
    descent: Descent | None = None  # of the outer loop; see `outer`

    def __post_init__(self) -> None:
        for name, kind in _CHOICES.items():
            if getattr(self, name) not in get_args(kind):
                known = ", ".join(get_args(kind))
                raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)!r}.")
        if not 0 <= self.pruned < 1:
            raise ValueError(
                "pruned is the share of the weights that fall, at least 0 and below 1; "
                f"got {self.pruned}."
            )
        if self.threshold == "top-k" and not self.pruned:
            raise ValueError("threshold='top-k' needs the share that falls: pruned above 0.")
        check_redrawn(self.redrawn, self.initial)
        if self.every < 1:
            raise ValueError(f"every must be at least 1 step, got {self.every}.")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}.")
        if isinstance(self.exclude, str):
            raise ValueError(
                f"exclude must list patterns, got a text: write exclude=({self.exclude!r},)."
            )
        object.__setattr__(self, "exclude", tuple(self.exclude))
        object.__setattr__(self, "head", self.adaptation.head)  # checks the rest, too

    @property
    def masked(self) -> bool:
        """Whether scores are learned instead of weights."""
        return self.method.startswith("ticket")

    @property
    def adaptation(self) -> Adaptation:
        """The inner loop."""
        moved: Any = {"anil": "head", "boil": "body", "ticket-boil": "body"}
        return Adaptation(
            self.rate,
            self.steps,
            moved.get(self.method, "all"),
            self.head,
            self.second_order,
            batching=self.batching,
        )

    @property
    def outer(self) -> Descent:
        """The outer loop: as given, or SGD at a rate of 10 for scores, AdamW at 1e-3 for weights.

        An epoch has as many batches of tasks as the data say; the rate rises over a thirtieth of
        the training, and falls to 0.
        """
        if self.descent:
            return self.descent
        if self.masked:
            return Descent(30, "sgd", 10.0, 0.9, 0.0, 1 / 30, self.seed)
        return Descent(30, "adamw", 1e-3, weight_decay=0.01, warm_up=1 / 30, seed=self.seed)


_CHOICES: dict[str, Any] = {"method": Method, "threshold": Threshold, "initial": Initial}
