"""A line, a curve or a simplex of networks: what is to be trained, and what came of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from torch import Tensor, nn

from slipstream.evaluation import Ensemble
from slipstream.evaluation.ensembles import Average
from slipstream.landscape.span import Position, Shape, Span
from slipstream.training.plan import TrainingPlan
from slipstream.weights import Weights

SubspaceShape = Literal["line", "curve", "simplex"]
FEWEST, MOST = 2, 6  # corners


@dataclass(frozen=True)
class SubspacePlan:
    """Which networks are trained together, and how, as plain data.

    Example:
        >>> SubspacePlan("simplex", corners=4).corners
        4
        >>> SubspacePlan("curve").corners
        3
    """

    shape: SubspaceShape = "line"
    corners: int = 0  # of a simplex, 2 to 6, 3 by default; a line has 2, a curve 3
    repulsion: float = 1.0  # beta: how strongly corners are pushed towards right angles
    layerwise: bool = False  # whether each layer draws a position of its own
    descent: TrainingPlan = field(default_factory=TrainingPlan.cosine)

    def __post_init__(self) -> None:
        if self.shape not in get_args(SubspaceShape):
            raise ValueError(f"shape must be line, curve or simplex, got {self.shape!r}.")
        usual = {"line": 2, "curve": 3, "simplex": 3}[self.shape]
        corners = self.corners or usual
        if self.shape == "simplex" and not FEWEST <= corners <= MOST:
            raise ValueError(f"corners of a simplex must be {FEWEST} to {MOST}, got {corners}.")
        if self.shape != "simplex" and corners != usual:
            raise ValueError(f"A {self.shape} has {usual} corners, got corners={corners}.")
        if self.repulsion < 0:
            raise ValueError(f"repulsion must not be negative, got {self.repulsion}.")
        object.__setattr__(self, "corners", corners)

    @property
    def family(self) -> Shape:
        """How the corners make a point."""
        return Shape("bezier" if self.shape == "curve" else "simplex", self.corners)


@dataclass(frozen=True)
class Subspace:
    """Result of `train_subspace`: networks between corners, each of them ordinary weights."""

    plan: SubspacePlan
    span: Span  # the corners, and how they make a point
    losses: tuple[float, ...]  # mean training loss of each epoch, at random positions
    cosine: float  # between two corners, mean over the pairs, without biases and gains
    steps: int
    seconds: float  # of the training

    @property
    def corners(self) -> tuple[Weights, ...]:
        """The corners; on a curve start, bend, end, of which the bend lies beside the curve."""
        return self.span.corners

    @property
    def midpoint(self) -> dict[str, Tensor]:
        """The weights in the middle: one network to use, as good as the subspace has."""
        return self.span.midpoint

    def at(self, position: Position) -> dict[str, Tensor]:
        """Return the weights at a position, BatchNorm's statistics recalibrated for it.

        Args:
            position: A number from 0 to 1 on a line or a curve; in a simplex of more corners, as
                many numbers as corners, none negative, that sum to 1.

        Returns:
            Ordinary weights of the model.
        """
        return self.span.at(position)

    def ensemble(
        self,
        model: nn.Module,
        *,
        positions: Sequence[Position] | None = None,
        average: Average = "probabilities",
    ) -> Ensemble:
        """Return the ensemble of several points of the subspace, a module like any other.

        Args:
            model: What the weights belong to.
            positions: Which points; by default the ends of a line or a curve, or all corners.
            average: Whether to average class probabilities, or what the model gives out.

        Returns:
            A module that answers with the mean over the points; see `Ensemble`.
        """
        chosen = self.span.shape.positions(2) if positions is None else positions
        return Ensemble(model, [self.at(position) for position in chosen], average=average)
