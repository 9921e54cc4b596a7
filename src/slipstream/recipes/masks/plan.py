"""What a training of masks will do, as plain data."""

import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from slipstream.recipes.masks.random_weights import Initial
from slipstream.recipes.masks.selection import Ranking, Selection
from slipstream.training.plan import Descent


@dataclass(frozen=True)
class IterandPlan:
    """Which weights are random, how many of them fall, and how they are drawn anew.

    With `redrawn=0` nothing is drawn anew: that is edge-popup.

    Example:
        >>> IterandPlan(pruned=1.0)
        Traceback (most recent call last):
        ...
        ValueError: pruned is the share of the weights that fall, at least 0 and below 1; got 1.0.
    """

    pruned: float = 0.5  # share of the weights that fall, p
    pruned_in: Mapping[str, float] = field(default_factory=dict)  # other shares, by pattern of name
    selection: Selection = "layer"  # a threshold for each layer, or one for all: global
    ranking: Ranking = "raw"  # of the scores as they are, or of their size: absolute
    initial: Initial = "kaiming-uniform"  # from where weights are drawn
    redrawn: float = 0.1  # share of the fallen weights that are drawn anew each time, r
    every: int | None = None  # steps from one time to the next; by default 117 times in all
    biases: Literal["zero", "frozen"] = "zero"  # zero: and gains of normalisation layers 1
    exclude: tuple[str, ...] = ()  # patterns of tensors that are left alone
    seed: int = 0  # of weights and scores
    descent: Descent = field(default_factory=lambda: Descent(lr=1.0))  # of `train_iterand`

    def __post_init__(self) -> None:
        others = {f"pruned_in[{pattern!r}]": share for pattern, share in self.pruned_in.items()}
        for name, share in {"pruned": self.pruned, **others}.items():
            if not 0 <= share < 1:
                raise ValueError(
                    f"{name} is the share of the weights that fall, at least 0 and below 1; "
                    f"got {share}."
                )
        if self.every is not None and self.every < 1:
            raise ValueError(f"every must be at least 1 step, got {self.every}.")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}.")
        for name, kind in _CHOICES.items():
            if getattr(self, name) not in get_args(kind):
                known = " or ".join(get_args(kind))
                raise ValueError(f"{name} must be {known}, got {getattr(self, name)!r}.")
        check_redrawn(self.redrawn, self.initial)
        if self.selection == "global" and self.pruned_in:
            raise ValueError("pruned_in is for selection='layer': a global one has one share.")
        if isinstance(self.exclude, str):
            raise ValueError(
                f"exclude must list patterns, got a text: write exclude=({self.exclude!r},)."
            )
        object.__setattr__(self, "exclude", tuple(self.exclude))
        object.__setattr__(self, "pruned_in", dict(self.pruned_in))

    def shares(self, names: Iterable[str]) -> dict[str, float]:
        """Return the share that falls, by name; the last pattern that matches counts.

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
            matching = fnmatch.filter(found, pattern)
            if not matching:
                raise ValueError(
                    f"pruned_in: {pattern!r} matches no masked weight; there are "
                    f"{', '.join(found)}."
                )
            found |= dict.fromkeys(matching, share)
        return found


def check_redrawn(share: float, initial: Initial) -> None:
    """Raise unless a share of weights can be drawn anew from a distribution."""
    if not 0 <= share <= 1:
        raise ValueError(f"redrawn must be a share from 0 to 1, got {share}.")
    if share and initial == "constant":
        raise ValueError("redrawn must be 0 with initial='constant': there is nothing to draw.")


_CHOICES: dict[str, Any] = {
    "selection": Selection,
    "ranking": Ranking,
    "initial": Initial,
    "biases": Literal["zero", "frozen"],
}
