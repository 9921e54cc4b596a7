"""`slipstream landscape plane`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slipstream.cli import options
from slipstream.cli.landscape.networks import PATHS, MeasureOptions, Networks, open_networks
from slipstream.cli.output import write_table
from slipstream.cli.progress import steps_bar
from slipstream.cli.task_options import TaskOptions
from slipstream.landscape.plans import PlaneGrid

if TYPE_CHECKING:
    from slipstream.landscape import Plane

WHICH = (
    f"One run: the plane of its principal components. One file: random directions around it. Three "
    f"or more: the plane through the first three, the others marked. {PATHS}"
)
RANDOM = "Use random directions around the first network instead, with this seed."


def plane(
    weights: Annotated[list[str], typer.Argument(help=WHICH)],
    files: MeasureOptions,
    task: TaskOptions,
    grid: PlaneGrid,
    random: Annotated[int | None, typer.Option(help=RANDOM)] = None,
    json: options.AsJson = False,
) -> None:
    """Measure the loss over a plane of weight space.

    Example: slipstream landscape plane run -o plane.json --figure plane.png
    """
    from slipstream.landscape import loss_plane
    from slipstream.report.figures import plot_loss_plane

    opened = open_networks(weights, task, files)
    chosen = _plane(opened, weights, random)
    with steps_bar("measuring", hidden=json) as bar:
        found = loss_plane(chosen, opened.task, grid=grid, resume=files.begin(), progress=bar)
    values = found.to_json()
    if not files.finish(values, lambda: plot_loss_plane(found, metric=files.metric), json=json):
        return
    typer.echo(f"x: {chosen.labels[0]}; y: {chosen.labels[1]}")
    marks = [[n, f"{p.x:.4g}", f"{p.y:.4g}", f"{p.outside:.4g}"] for n, p in chosen.marks.items()]
    write_table(["", "x", "y", "outside"], marks)
    sides = [[n, f"{float(v.min()):.4g}", f"{float(v.max()):.4g}"] for n, v in found.values.items()]
    write_table([files.split, "lowest", "highest"], sides)


def _plane(opened: Networks, weights: list[str], random: int | None) -> "Plane":
    from slipstream.landscape import plane_through, random_plane, trajectory_plane
    from slipstream.trajectory import Trajectory

    named = opened.weights
    first = dict(list(named.items())[:3])
    if random is None and len(named) == 1 and Path(weights[0], "run.json").is_file():
        return trajectory_plane(Trajectory.open(weights[0]))
    if random is None and len(named) == 2:
        raise ValueError("Two networks span no plane, but a line: use `slipstream landscape line`.")
    if random is None and len(named) > 2:
        found = plane_through(first)
    else:
        found = random_plane(named[next(iter(named))], seed=random or 0)
    return found.marked({name: value for name, value in named.items() if name not in found.marks})
