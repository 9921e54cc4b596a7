"""`slipstream landscape curve`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from slipstream.cli import options
from slipstream.cli.landscape import networks
from slipstream.cli.output import write_json, write_table
from slipstream.cli.progress import steps_bar

if TYPE_CHECKING:
    from slipstream.landscape import FittedCurve

BENDS = "Control weights between the ends; 1 of a bezier curve makes it quadratic."
SAVE = "Write the midpoint of the curve to this .safetensors file."
RESUME = "Keep the state of the training here, and go on from it."


def curve(
    start: Annotated[str, typer.Argument(help="A run folder, RUN@STEP or a .safetensors file.")],
    end: Annotated[str, typer.Argument(help="The same, of the same model.")],
    shape: Annotated[Literal["bezier", "polyline"], typer.Option(help="Of the curve.")] = "bezier",
    bends: Annotated[int, typer.Option(min=1, help=BENDS)] = 1,
    epochs: Annotated[int, typer.Option(min=1, help="To train the bends for.")] = 50,
    lr: Annotated[float, typer.Option(help="Learning rate, before it falls to 0.")] = 0.05,
    weight_decay: Annotated[float, typer.Option(help="Of the bends.")] = 1e-4,
    seed: Annotated[int, typer.Option(help="Of the random positions.")] = 0,
    points: networks.Points = 11,
    split: networks.Split = "test",
    metric: networks.Metric = "loss",
    out: networks.Outputs = None,
    save: Annotated[Path | None, typer.Option(help=SAVE)] = None,
    resume: Annotated[Path | None, typer.Option(help=RESUME)] = None,
    batchnorm_batches: networks.BatchNormBatches = 100,
    model: options.OtherModel = None,
    data: options.OtherData = None,
    loss: options.Loss = None,
    width: options.Width = None,
    option: options.Option = None,
    device: options.Device = "cpu",
    json: options.AsJson = False,
) -> None:
    """Fit a curve of low loss between two networks, and measure it beside the straight line.

    Example: slipstream landscape curve run other -o curve.png --save midpoint.safetensors
    """
    from slipstream.landscape import CurvePlan, fit_curve
    from slipstream.report.figures import plot_loss_line
    from slipstream.training import TrainingPlan

    files = networks.check_outputs(out)
    opened = networks.open_networks(
        [start, end], split=split, batches=batchnorm_batches, model=model, data=data, loss=loss,
        width=width, option=option, device=device,
    )  # fmt: skip
    descent = TrainingPlan.cosine(epochs=epochs, lr=lr, weight_decay=weight_decay, seed=seed)
    first, last = opened.weights.values()
    with steps_bar("training", hidden=json) as bar:
        fitted = fit_curve(
            first,
            last,
            opened.task.on(opened.experiment.data),
            plan=CurvePlan(shape, bends, descent, points),
            measured_on=opened.data,
            checkpoint=resume,
            progress=bar,
        )
    found = {"straight": fitted.straight, "curve": fitted.along}
    told = {"split": split, **{name: value.to_json() for name, value in found.items()}}
    if files:
        networks.write_outputs(files, data=told, figure=plot_loss_line(found, metric=metric))
    if save is not None:
        _save(fitted, save)
    if json:
        write_json(told)
        return
    rows = [
        [name, kind, *(f"{getattr(value, kind)(m):.4g}" for m in value.line.values)]
        for name, value in found.items()
        for kind in ("rise", "drop")
    ]
    write_table(["way", "from the chord", *opened.experiment.measured], rows)


def _save(fitted: "FittedCurve", file: Path) -> None:
    from slipstream.storage.tensor_file import tensor_chunks
    from slipstream.storage.writing import write_whole

    middle = {name: value.cpu() for name, value in fitted.at(0.5).items()}
    write_whole(file, tensor_chunks(middle))
