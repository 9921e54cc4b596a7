"""The path that is carried: a run cut into segments, each a line or its own snapshots."""

from itertools import pairwise

from slipstream.trajectory import Trajectory
from slipstream.transfer.plan import TransferPlan


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
