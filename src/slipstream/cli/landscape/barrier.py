"""`slipstream landscape barrier`."""

from dataclasses import replace
from itertools import islice
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
    from slipstream.landscape import AlignmentPlan, Barrier

MATCH = (
    "Also match the neurons of the source to the target's: by weights, by activations, or by "
    "rotations, which transformers need."
)
LEARN = "Steps that train the rotations on the loss between the networks, on training batches."
Match = Literal["none", "weights", "activations", "rotations"]


def barrier(
    source: Annotated[str, typer.Argument(help=ONE)],
    target: Annotated[str, typer.Argument(help="The same, of the same model.")],
    files: MeasureOptions,
    task: TaskOptions,
    match: Annotated[Match, typer.Option(help=MATCH)] = "none",
    learn_steps: Annotated[int, typer.Option(min=0, help=LEARN)] = 0,
    points: options.Points = 25,
    json: options.AsJson = False,
) -> None:
    """Measure how far the loss rises between two networks, and what matching does about it.

    Example: slipstream landscape barrier run other --match weights --figure barrier.png
    """
    from slipstream.report.figures import plot_loss_line

    plan = _plan(match, points, learn_steps)
    opened = open_networks([source, target], task, files)
    with steps_bar("measuring", hidden=json) as bar:
        found = _measured(opened, plan, points, resume=files.begin(), progress=bar)
    values = {name: value.to_json() for name, value in found.items()}
    if files.finish(values, lambda: plot_loss_line(found, metric=files.metric), json=json):
        write_table(["neurons", "from the chord", *opened.task.measured], barrier_rows(found))


def _plan(match: Match, points: int, learn_steps: int) -> "AlignmentPlan | None":
    from slipstream.landscape import AlignmentPlan

    if learn_steps and match != "rotations":
        raise ValueError("--learn-steps needs --match rotations.")
    return None if match == "none" else AlignmentPlan(match, points, learn_steps=learn_steps)


def _measured(
    opened: Networks, plan: "AlignmentPlan | None", points: int, **given: Any
) -> "dict[str, Barrier]":
    from slipstream.landscape import align_then_barrier, loss_barrier
    from slipstream.symmetry.tracing import find_neuron_groups

    task, (start, end) = opened.task, opened.weights.values()
    if plan is None:
        return {"as they are": loss_barrier(start, end, task, points=points, **given)}
    groups = find_neuron_groups(task.model, opened.training.example())
    if plan.learn_steps:  # a batch for each step, as far as an epoch goes
        seen = islice(opened.training.data, plan.learn_steps)
        task = replace(task, calibration=list(seen))
    found = align_then_barrier(start, end, task, groups=groups, plan=plan, **given)
    return {"as they are": found.before, "matched": found.after}
