"""The path that is carried: a run cut into segments, each a line or its own snapshots."""

from collections.abc import Collection
from itertools import pairwise

from slipstream.trajectory import Trajectory
from slipstream.transfer.plan import TransferPlan
from slipstream.weights import first_nonfinite


def paths(source: Trajectory, plan: TransferPlan) -> list[Trajectory]:
    """Cut a run into the segments of a plan.

    Args:
        source: The run to transfer.
        plan: Says how many segments and stages, and whether lines or snapshots.

    Returns:
        For each segment a trajectory of `plan.stages + 1` points; it starts where the one before
        it ends.

    Raises:
        ValueError: If the run has too few snapshots.
    """
    needed = plan.total_stages + 1 if plan.path == "recorded" else plan.segments + 1
    if len(source) < needed:
        raise ValueError(
            f"The run has {len(source)} snapshots; {plan.segments} segments of {plan.stages} "
            f"stages along path={plan.path!r} need at least {needed}. Use fewer"
            + (" stages, or path='line'." if plan.path == "recorded" else " segments.")
        )
    if plan.path == "recorded":
        points = source.resample(needed)
        cuts = range(0, needed, plan.stages)
        return [points[a : b + 1] for a, b in pairwise(cuts)]
    ends = source.resample(plan.segments + 1)
    return [
        Trajectory.line(ends[k], ends[k + 1], stages=plan.stages, schedule=plan.schedule)
        for k in range(plan.segments)
    ]


def check_finite(segments: list[Trajectory], plan: TransferPlan, names: Collection[str]) -> None:
    """Raise if a point that the path is made of holds a NaN or an infinity.

    Args:
        segments: The path.
        plan: Says whether its inner points are snapshots or lie on lines.
        names: The tensors that are carried.

    Raises:
        ValueError: Naming the tensor and the step.
    """
    for path in segments:
        for snapshot in path if plan.path == "recorded" else (path[0], path[-1]):
            weights = snapshot.weights
            bad = first_nonfinite({name: weights[name] for name in names})
            if bad is not None:
                raise ValueError(
                    f"The source holds a NaN or an infinity in {bad!r} at step {snapshot.step}: "
                    "transfer only the part of the run before it (trajectory[:n])."
                )
