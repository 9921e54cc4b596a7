"""How few-shot tasks are learned, and what a meta-training will do, as plain data."""

from dataclasses import dataclass
from typing import Any, Literal

from slipstream.recipes.masks.plan import Initial, check_redrawn
from slipstream.recipes.patterns import as_patterns
from slipstream.storage.plan_fields import check_choices, option
from slipstream.training import TrainingPlan

Adapted = Literal["all", "head", "body"]
Batching = Literal["auto", "together", "vmap", "none"]  # none: one task after another
Method = Literal["ticket", "ticket-boil", "maml", "anil", "boil"]
Threshold = Literal["fixed", "top-k"]


@dataclass(frozen=True)
class Adaptation:
    """The inner loop, as plain data: plain gradient steps on the examples of one task.

    Example:
        >>> Adaptation(adapted="tail")
        Traceback (most recent call last):
        ...
        ValueError: adapted must be all, head or body, got 'tail'.
    """

    rate: float = 0.4  # of the inner steps, alpha
    steps: int = 1
    adapted: Adapted = "all"  # all is MAML; only the head, ANIL; only the body, BOIL
    head: tuple[str, ...] = ()  # patterns of its tensors; the last layer with weights if empty
    second_order: bool = True  # whether the meta-gradient passes through the inner gradients
    sparse: bool = False  # weights that are 0 in a matrix that is not all 0 stay 0
    batching: Batching = "auto"  # of the tasks: the first of the others that is proven

    def __post_init__(self) -> None:
        if not self.rate > 0:
            raise ValueError(f"rate must be above 0, got {self.rate}.")
        if self.steps < 0:
            raise ValueError(f"steps must not be negative, got {self.steps}.")
        check_choices(self)
        object.__setattr__(self, "head", as_patterns(self.head, name="head"))


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

    method: Method = option("ticket", "What is learned: a mask (ticket), or weights.")
    rate: float = option(0.4, "Learning rate of the inner steps.")
    steps: int = option(1, "Inner steps in training.")
    second_order: bool = option(True, "Differentiate through the inner gradients.")
    head: tuple[str, ...] = option((), "Patterns of the head's tensors.", shown="the last layer")
    batching: Batching = option("auto", "How the tasks of a batch are computed.")
    initial: Initial = option("kaiming-normal", "Distribution of a ticket's random weights.")
    threshold: Threshold = option(
        "fixed",
        "Keep the scores' initial threshold, or prune the same share at every step (top-k).",
    )
    pruned: float = option(0.0, "Share pruned: at the start if the threshold is fixed, or always.")
    redrawn: float = option(0.0, "Share of the pruned weights that is re-initialised each time.")
    every: int = option(300, "Steps between re-initialisations.")
    exclude: tuple[str, ...] = option((), "Leave tensors unmasked whose names match a pattern.")
    seed: int = option(0, "Seed of a ticket's weights and scores.")
    descent: TrainingPlan | None = None  # of the outer loop; see `outer`

    def __post_init__(self) -> None:
        check_choices(self)
        if not 0 <= self.pruned < 1:
            raise ValueError(
                "pruned is the share of the weights to prune, at least 0 and below 1; "
                f"got {self.pruned}."
            )
        if self.threshold == "top-k" and not self.pruned:
            raise ValueError("threshold='top-k' needs a share to prune: pruned above 0.")
        check_redrawn(self.redrawn, self.initial)
        if self.every < 1:
            raise ValueError(f"every must be at least 1 step, got {self.every}.")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}.")
        object.__setattr__(self, "exclude", as_patterns(self.exclude, name="exclude"))
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
    def outer(self) -> TrainingPlan:
        """The outer loop: as given, or SGD at a rate of 10 for scores, AdamW at 1e-3 for weights.

        An epoch is a pass over the data; the rate rises over a thirtieth of
        the training, and falls to 0.
        """
        if self.descent:
            return self.descent
        if self.masked:
            return TrainingPlan.cosine(30, "sgd", 10.0, 0.9, 0.0, 1 / 30, self.seed)
        return TrainingPlan.cosine(
            30, "adamw", 1e-3, weight_decay=0.01, warm_up=1 / 30, seed=self.seed
        )
