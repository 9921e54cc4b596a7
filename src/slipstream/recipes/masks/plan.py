"""What a training of masks will do, as plain data."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from slipstream.recipes.patterns import as_patterns, matching
from slipstream.storage.plan_fields import check_choices, option
from slipstream.training import TrainingPlan

Initial = Literal["kaiming-uniform", "signed-constant", "kaiming-normal", "constant"]
Selection = Literal["layer", "global"]
Ranking = Literal["raw", "absolute"]


@dataclass(frozen=True)
class IterandPlan:
    """Which weights are random, how many are pruned, and how pruned ones are re-initialised.

    With `redrawn=0` no weight is re-initialised: that is edge-popup.

    Example:
        >>> IterandPlan(pruned=1.0)
        Traceback (most recent call last):
        ...
        ValueError: pruned is the share of the weights to prune, at least 0 and below 1; got 1.0.
    """

    pruned: float = option(0.5, "Share of the weights that is pruned, from 0 to below 1.")
    pruned_in: Mapping[str, float] = option(
        factory=dict, help="Another share for the weights whose names match a pattern."
    )
    selection: Selection = option("layer", "A threshold of the scores for each layer, or for all.")
    ranking: Ranking = option("raw", "Rank scores by value, or by absolute value.")
    initial: Initial = option("kaiming-uniform", "Distribution of the random weights.")
    redrawn: float = option(
        0.1, "Share of the pruned weights that is re-initialised each time; 0 is edge-popup."
    )
    every: int | None = option(
        None, "Steps between re-initialisations.", shown="so that there are 117"
    )
    biases: Literal["zero", "frozen"] = option(
        "zero", "Set biases to 0 and gains of normalisation layers to 1, or leave them as they are."
    )
    exclude: tuple[str, ...] = option((), "Leave tensors alone whose names match a pattern.")
    seed: int = option(0, "Seed of weights and scores.")
    descent: TrainingPlan = option(factory=lambda: TrainingPlan.cosine(lr=1.0))

    def __post_init__(self) -> None:
        others = {f"pruned_in[{pattern!r}]": share for pattern, share in self.pruned_in.items()}
        for name, share in {"pruned": self.pruned, **others}.items():
            if not 0 <= share < 1:
                raise ValueError(
                    f"{name} is the share of the weights to prune, at least 0 and below 1; "
                    f"got {share}."
                )
        if self.every is not None and self.every < 1:
            raise ValueError(f"every must be at least 1 step, got {self.every}.")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}.")
        check_choices(self)
        check_redrawn(self.redrawn, self.initial)
        if self.selection == "global" and self.pruned_in:
            raise ValueError("pruned_in is for selection='layer': a global one has one share.")
        object.__setattr__(self, "exclude", as_patterns(self.exclude, name="exclude"))
        object.__setattr__(self, "pruned_in", dict(self.pruned_in))

    def shares(self, names: Iterable[str]) -> dict[str, float]:
        """Return the share to prune, by name; the last pattern that matches counts.

        Args:
            names: Of the masked weights.

        Returns:
            Name to share.

        Raises:
            ValueError: If a pattern of `pruned_in` matches nothing.

        Example:
            >>> IterandPlan(pruned_in={"head.*": 0.2}).shares(["body.weight", "head.weight"])
            {'body.weight': 0.5, 'head.weight': 0.2}
        """
        found = dict.fromkeys(names, self.pruned)
        for pattern, share in self.pruned_in.items():
            matched = matching(found, pattern, name="pruned_in")
            found |= dict.fromkeys(matched, share)
        return found


def check_redrawn(share: float, initial: Initial) -> None:
    """Raise unless a share of weights can be re-initialised from a distribution."""
    if not 0 <= share <= 1:
        raise ValueError(f"redrawn must be a share from 0 to 1, got {share}.")
    if share and initial == "constant":
        raise ValueError("redrawn must be 0 with initial='constant': there is nothing random.")
