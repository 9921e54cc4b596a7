"""How complex the learned function is, from how the first layer's bias moves during training."""

from dataclasses import dataclass

import torch
from torch import Tensor

_ROUNDINGS = 1e4  # how many of them a gradient may be off, relative to itself


@dataclass(frozen=True, eq=False)
class TrainingComplexity:
    """How the first layer's bias moves, step by step, and what bounds it.

    With `W` the first layer's matrix, `b` its bias, `x` the example of a step, `a` the learning
    rate, `e = |d loss / d f(x)|` and `l = |d f(x) / d x|`, a step of plain SGD on one example obeys

        s_min(W) |b' - b|  <=  a e l  <=  s_max(W) |b' - b|,

    because a bias enters like the input. So the length of the bias's path, by the sum of `a e`,
    gives the mean of `l`, the function's slope at the examples, up to the singular values of `W`.
    An output of several values is looked at in the direction of the loss's gradient.

    Source: "What training reveals about neural network complexity" (Loukas, Poiitis, Jegelka,
    2021), the bounds close to the training data.
    """

    layer: str  # whose bias it is
    moves: Tensor  # (S,) |b' - b| of each step, float64 like the others
    exposures: Tensor  # (S,) a e; NaN where it is unknown
    slopes: Tensor  # (S,) a e l
    largest: Tensor  # (S,) the largest singular value of W before the step; NaN without a matrix
    smallest: Tensor  # (S,) the smallest; 0 where W is wider than its input and bounds nothing
    rounding: Tensor  # (S,) what rounding alone may add to a move
    precision: float  # the smallest relative difference in the model's dtype
    violations: tuple[str, ...]  # broken assumptions, in words; empty if all hold

    @property
    def length(self) -> float:
        """The length of the bias's path: the sum of the moves."""
        return float(self.moves.sum())

    @property
    def lipschitz(self) -> Tensor:
        """The slope `l` of the function at the example of each step; NaN where `e` is 0: (S,)."""
        return torch.where(self.exposures > 0, self.slopes / self.exposures, torch.nan)

    @property
    def mean_lipschitz(self) -> float:
        """The mean of `l` over the steps, weighted by `a e`."""
        return float(self.slopes.sum() / self.exposures.sum())

    @property
    def mean_lipschitz_bounds(self) -> tuple[float, float]:
        """The least and the largest `mean_lipschitz` that the moves allow."""
        low, high = ((s * self.moves).sum() for s in (self.smallest, self.largest))
        return float(low / self.exposures.sum()), float(high / self.exposures.sum())

    @property
    def outside(self) -> int:
        """The number of steps that break the bounds by more than rounding."""
        slack = _ROUNDINGS * self.precision
        over = self.slopes > self.largest * (self.moves * (1 + slack) + self.rounding)
        under = self.slopes < self.smallest * (self.moves * (1 - slack) - self.rounding)
        return int((over | under).sum())

    @property
    def identity_error(self) -> float:
        """The largest relative error of `s |b' - b| = a e l`, where both singular values are s.

        That is so where `W` is the identity, or a rotation; elsewhere it is NaN. Moves that are
        hardly more than rounding are left out.
        """
        tight = (self.largest - self.smallest).abs() <= 1e-9 * self.largest
        counted = tight & (self.moves > _ROUNDINGS * self.rounding) & ~self.slopes.isnan()
        if not bool(tight.all()) or not bool(counted.any()):
            return torch.nan
        moved = (self.largest * self.moves)[counted]
        return float(((moved - self.slopes[counted]).abs() / moved).max())

    def __str__(self) -> str:
        low, high = self.mean_lipschitz_bounds
        said = (
            f"The bias of {self.layer!r} moved {self.length:.4g} in {len(self.moves)} steps. "
            f"Mean slope of the function: {self.mean_lipschitz:.4g}; "
            f"from the length alone, {low:.4g} to {high:.4g}. "
            f"Steps outside the bounds: {self.outside}."
        )
        return "\n".join([said, *(f"violated: {violation}" for violation in self.violations)])
