"""`slipstream landscape plane`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slipstream.cli import options
from slipstream.cli.landscape import networks
from slipstream.cli.output import write_json, write_table
from slipstream.cli.progress import steps_bar

if TYPE_CHECKING:
    from slipstream.landscape import Plane

WHICH = (
    f"One run: the plane of its principal components. One file: random directions around it. Three "
    f"or more: the plane through the first three, the others marked. {networks.PLACES}"
)
RANDOM = "Random directions around the first, drawn with this seed."


def plane(
    weights: Annotated[list[str], typer.Argument(help=WHICH)],
    random: Annotated[int | None, typer.Option(help=RANDOM)] = None,
    points: Annotated[int, typer.Option(min=2, help="Values of x, and of y.")] = 41,
    margin: Annotated[float, typer.Option(help="Beyond what is marked, as a share.")] = 0.25,
    split: networks.Split = "test",
    metric: networks.Metric = "loss",
    out: networks.Outputs = None,
    resume: networks.Resume = None,
    batchnorm_batches: networks.BatchNormBatches = 100,
    model: options.OtherModel = None,
    data: options.OtherData = None,
    loss: options.Loss = None,
    width: options.Width = None,
    option: options.Option = None,
    device: options.Device = "cpu",
    json: options.AsJson = False,
) -> None:
    """Measure the loss over a plane of weight space.

    Example: slipstream landscape plane run -o plane.png -o plane.json --resume plane.points
    """
    from slipstream.landscape import PlaneGrid, loss_plane
    from slipstream.report.figures import plot_loss_plane

    files = networks.check_outputs(out)
    opened = networks.open_networks(
        weights, split=split, batches=batchnorm_batches, model=model, data=data, loss=loss,
        width=width, option=option, device=device,
    )  # fmt: skip
    chosen = _plane(opened, weights, random)
    with steps_bar("measuring", hidden=json) as bar:
        found = loss_plane(
            chosen,
            opened.task,
            grid=PlaneGrid(points, margin),
            resume=resume,
            progress=bar,
        )
    told = {"split": split, **found.to_json()}
    if files:
        networks.write_outputs(files, data=told, figure=plot_loss_plane(found, metric=metric))
    if json:
        write_json(told)
        return
    typer.echo(f"x: {chosen.labels[0]}; y: {chosen.labels[1]}")
    marks = [[n, f"{p.x:.4g}", f"{p.y:.4g}", f"{p.outside:.4g}"] for n, p in chosen.marks.items()]
    write_table(["", "x", "y", "outside"], marks)
    sides = [[n, f"{float(v.min()):.4g}", f"{float(v.max()):.4g}"] for n, v in found.values.items()]
    write_table([split, "lowest", "highest"], sides)


def _plane(opened: networks.Networks, weights: list[str], random: int | None) -> "Plane":
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
