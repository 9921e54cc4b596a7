"""A line, a curve or a simplex of networks: what a training gives."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from slipstream.evaluation import Ensemble
from slipstream.evaluation.ensembles import Average
from slipstream.landscape.span import Position, Span
from slipstream.recipes.subspaces.plan import SubspacePlan
from slipstream.weights import Weights


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
        """The corners; on a curve start, bend, end, of which the bend is not on the curve."""
        return self.span.corners

    @property
    def midpoint(self) -> dict[str, Tensor]:
        """The weights in the middle: the one network to use."""
        return self.span.midpoint

    def at(self, position: Position) -> dict[str, Tensor]:
        """Return the weights at a position, BatchNorm's statistics recalibrated for it.

        Args:
            position: A value from 0 to 1 on a line or a curve; in a simplex of more corners, as
                many values as corners, none negative, that sum to 1.

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
            average: Whether to average class probabilities, or the outputs.

        Returns:
            A module whose outputs are the mean over the points; see `Ensemble`.
        """
        chosen = self.span.shape.positions(2) if positions is None else positions
        return Ensemble(model, [self.at(position) for position in chosen], average=average)
