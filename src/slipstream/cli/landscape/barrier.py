"""`slipstream landscape barrier`."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from slipstream.cli import options
from slipstream.cli.landscape.networks import (
    ONE,
    MeasureOptions,
    Networks,
    barrier_rows,
    open_networks,
)
from slipstream.cli.output import write_table
from slipstream.cli.progress import steps_bar
from slipstream.cli.task_options import TaskOptions

if TYPE_CHECKING:
    from slipstream.landscape import Barrier

MATCH = "Also match the neurons of the source to the target's: by weights or by activations."
Match = Literal["none", "weights", "activations"]


def barrier(
    source: Annotated[str, typer.Argument(help=ONE)],
    target: Annotated[str, typer.Argument(help="The same, of the same model.")],
    files: MeasureOptions,
    task: TaskOptions,
    match: Annotated[Match, typer.Option(help=MATCH)] = "none",
    points: options.Points = 25,
    json: options.AsJson = False,
) -> None:
    """Measure how far the loss rises between two networks, and what matching does about it.

    Example: slipstream landscape barrier run other --match weights --figure barrier.png
    """
    from slipstream.report.figures import plot_loss_line

    opened = open_networks([source, target], task, files)
    with steps_bar("measuring", hidden=json) as bar:
        found = _measured(opened, match, points, resume=files.begin(), progress=bar)
    values = {name: value.to_json() for name, value in found.items()}
    if files.finish(values, lambda: plot_loss_line(found, metric=files.metric), json=json):
        write_table(["neurons", "from the chord", *opened.task.measured], barrier_rows(found))


def _measured(opened: Networks, match: Match, points: int, **given: Any) -> "dict[str, Barrier]":
    from slipstream.landscape import AlignmentPlan, align_then_barrier, loss_barrier
    from slipstream.symmetry.tracing import find_neuron_groups

    task, (start, end) = opened.task, opened.weights.values()
    if match == "none":
        return {"as they are": loss_barrier(start, end, task, points=points, **given)}
    groups = find_neuron_groups(task.model, opened.training.example())
    plan = AlignmentPlan(method=match, points=points)
    found = align_then_barrier(start, end, task, groups=groups, plan=plan, **given)
    return {"as they are": found.before, "matched": found.after}
