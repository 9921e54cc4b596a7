"""`slipstream margin`."""

from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from slipstream.cli import options
from slipstream.cli.output import OutputFiles, write_json, write_table
from slipstream.cli.plan_options import Adjusted
from slipstream.cli.progress import steps_bar
from slipstream.cli.task_options import TaskOptions

if TYPE_CHECKING:
    from slipstream.dynamics import MarginProgress

FIGURE = "Draw residuals and margins: PNG, SVG or PDF by the ending."
FILES = Adjusted(skip=("out",), help={"figure": FIGURE})
STEP = "A step of the run; repeatable."
DECAY = "Weight decay of the training, by sgd or adam."
_NAMED = 10  # support vectors


def margin(
    run: options.Run,
    task: TaskOptions,
    files: Annotated[OutputFiles, FILES],
    step: Annotated[list[int] | None, typer.Option(help=STEP, show_default="ten of them")] = None,
    weight_decay: Annotated[
        float | None, typer.Option(help=DECAY, show_default="as recorded")
    ] = None,
    batches: options.Batches = 1,
    json: options.AsJson = False,
) -> None:
    """Measure how far the weights of a run are a sum of gradients of its training examples.

    The residual is 0 at a largest margin; the balance is 0 where weight decay holds all gradients.
    Both say that training data could be read from the weights: see `recipe reconstruction`.

    Example: slipstream margin run --figure margin.png
    """
    from slipstream.dynamics import margin_progress
    from slipstream.report.figures import plot_margin
    from slipstream.trajectory import Trajectory

    opened = task.open(run)
    with steps_bar("snapshots", hidden=json) as bar:
        found = margin_progress(
            Trajectory.open(run),
            replace(opened, data=list(islice(opened.data, batches))),
            steps=step or None,
            weight_decay=weight_decay,
            progress=bar,
        )
    files.draw(lambda: plot_margin(found))
    if json:
        values = {n: v.tolist() for n, v in vars(found).items() if n != "steps"}
        write_json({"steps": found.steps, **values, "support": found.support()})
        return
    _print(found)


def _print(found: "MarginProgress") -> None:
    columns = {
        "least margin": found.margins.amin(1), "normalised": found.normalised,
        "residual": found.residuals, "balance of decay": found.decay_residuals,
    }  # fmt: skip
    rows = [
        [
            str(step),
            *(f"{values[n]:.3g}" for values in columns.values()),
            str(len(found.support(n))),
        ]
        for n, step in enumerate(found.steps)
    ]
    write_table(["step", *columns, "support"], rows)
    own = found.support()
    more = f" and {len(own) - _NAMED} more" if len(own) > _NAMED else ""
    typer.echo(f"support vectors in the end: {', '.join(map(str, own[:_NAMED]))}{more}")
    if not found.homogeneous:
        typer.echo(
            "The network is not homogeneous (such as with biases behind the first layer): without "
            "weight decay nothing makes its residual fall to 0."
        )
