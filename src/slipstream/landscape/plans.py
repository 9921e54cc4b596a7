"""What is measured of a landscape, and how precisely, as plain data."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from slipstream.storage.plan_fields import option
from slipstream.training.plan import TrainingPlan

if TYPE_CHECKING:
    from torch import Tensor, nn

    Predict = Callable[[nn.Module, Any], Tensor]

AlignmentMethod = Literal["weights", "activations", "rotations"]
CurveName = Literal["bezier", "polyline"]
Extent = tuple[tuple[float, float], tuple[float, float]]  # lowest and highest x, and of y
Mode = Literal["eval", "own"]  # of BatchNorm and dropout, where a model is differentiated


@dataclass(frozen=True)
class AlignmentPlan:
    """How `align_then_barrier` matches neurons, and where it measures."""

    method: AlignmentMethod = option(
        "weights",
        "Match weights, or what neurons compute on data; rotations: that, by rotating the neurons "
        "that only linear layers and normalisations see, and permuting the others.",
    )
    points: int = option(25, "Evaluations of each line, both ends included.")
    restarts: int = option(0, "More matchings, with the groups in random order; the best is kept.")
    learn_steps: int = option(
        0, "Steps that train the rotations on the loss between the networks.", minimum=0
    )
    seed: int = option(0, "Seed of the restarts, and of the steps.")
    memory: int | None = None  # bytes that a chunk of points may take, as of `evaluate_points`

    def __post_init__(self) -> None:
        if self.method not in get_args(AlignmentMethod):
            raise ValueError(
                f"method must be weights, activations or rotations, got {self.method!r}."
            )
        if self.learn_steps and self.method != "rotations":
            raise ValueError('learn_steps needs method="rotations": an order is not trained.')
        if self.restarts and self.method == "rotations":
            raise ValueError("restarts are of permutations: rotations have one start.")


@dataclass(frozen=True)
class PlaneGrid:
    """Where `loss_plane` measures."""

    points: int = option(41, "Values of x, and of y.")
    margin: float = option(0.25, "How far to look beyond what is marked, as a share of its range.")
    extent: Extent | None = None  # lowest and highest x, and y, instead of what is marked

    def __post_init__(self) -> None:
        if self.points < 2:
            raise ValueError(f"points must be at least 2, got {self.points}.")


@dataclass(frozen=True)
class StudyPlan:
    """What `landscape_study` measures."""

    points: int = option(11, "Evaluations between two networks, both ends included.", minimum=2)
    plane_points: int = option(21, "Values of x, and of y, of the plane.", minimum=2)
    corners: Sequence[str] | None = None  # names of three networks: the plane through them
    layers: Sequence[str] | None = None  # that are compared, as of `representation_similarity`
    predict: "Predict | Literal['classes'] | None" = "classes"  # None compares none
    memory: int | None = None  # bytes that a chunk of points may take, as of `evaluate_points`


@dataclass(frozen=True)
class CurvaturePlan:
    """How `measure_curvature` measures."""

    iterations: int = option(60, "Iterations of Lanczos for the eigenvalues, at most.", minimum=1)
    tolerance: float = option(1e-2, "Residual of the eigenvalues, relative to the largest.")
    samples: int = option(10, "Random vectors for the trace.", minimum=2)
    radius: float = option(0.05, "Radius of the ball in which the sharpness is taken.")
    seed: int = option(0, "Seed of the random vectors, the same at every snapshot.")
    mode: Mode = option(
        "eval", "eval: with BatchNorm's running statistics and no dropout; own: as it is."
    )


@dataclass(frozen=True)
class CurvePlan:
    """What is fitted between two solutions, and how, as plain data."""

    shape: CurveName = option("bezier", "Shape of the curve.")
    bends: int = option(
        1, "Control weights between the ends; 1 of a bezier curve makes it quadratic.", minimum=1
    )
    descent: TrainingPlan = option(
        factory=lambda: TrainingPlan.cosine(50, lr=0.05), help="How the bends are trained."
    )
    points: int = option(11, "Where the loss is measured in the end, both ends included.")

    def __post_init__(self) -> None:
        if self.shape not in get_args(CurveName):
            raise ValueError(f"shape must be bezier or polyline, got {self.shape!r}.")
        if self.bends < 1:
            raise ValueError(f"bends must be at least 1, got {self.bends}.")
        if self.points < 2:
            raise ValueError(f"points must be at least 2 (the two ends), got {self.points}.")
