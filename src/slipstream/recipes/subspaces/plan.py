"""What a subspace will be, as plain data."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from slipstream.storage.plan_fields import check_choices, option
from slipstream.training import TrainingPlan

if TYPE_CHECKING:
    from slipstream.landscape.span import Shape

SubspaceShape = Literal["line", "curve", "simplex"]
FEWEST, MOST = 2, 6  # corners


@dataclass(frozen=True)
class SubspacePlan:
    """Which networks are trained together, and how.

    Example:
        >>> SubspacePlan("simplex", corners=4).corners
        4
        >>> SubspacePlan("curve").corners
        3
    """

    shape: SubspaceShape = option(
        "line", "A line between 2 corners, a quadratic curve, or a simplex of --corners."
    )
    corners: int = option(0, "Corners of a simplex, 2 to 6.", shown="3")
    repulsion: float = option(1.0, "How strongly corners are pushed towards right angles.")
    layerwise: bool = option(False, "Draw a position for each layer instead of one for all.")
    descent: TrainingPlan = option(factory=TrainingPlan.cosine)

    def __post_init__(self) -> None:
        check_choices(self)
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
    def family(self) -> "Shape":
        """How the corners make a point."""
        from slipstream.landscape.span import Shape

        return Shape("bezier" if self.shape == "curve" else "simplex", self.corners)
