"""`slipstream landscape line`."""

from typing import Annotated

import typer

from slipstream.cli import options
from slipstream.cli.landscape import networks
from slipstream.cli.output import write_json, write_table
from slipstream.cli.progress import steps_bar


def line(
    weights: Annotated[list[str], typer.Argument(help=f"Two or more. {networks.PLACES}")],
    points: networks.Points = 25,
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
    """Measure the loss along the straight lines from each of several networks to the next.

    Example: slipstream landscape line run@0 run averaged.safetensors -o line.png
    """
    from slipstream.landscape import loss_along
    from slipstream.report.figures import plot_loss_line

    files = networks.check_outputs(out)
    opened = networks.open_networks(
        weights, split=split, batches=batchnorm_batches, model=model, data=data, loss=loss,
        width=width, option=option, device=device,
    )  # fmt: skip
    with steps_bar("measuring", hidden=json) as bar:
        found = loss_along(opened.weights, opened.task, points=points, resume=resume, progress=bar)
    told = {"names": list(opened.weights), "split": split, **found.to_json()}
    if files:
        networks.write_outputs(files, data=told, figure=plot_loss_line(found, metric=metric))
    if json:
        write_json(told)
        return
    rows = zip(found.positions.tolist(), *(v.tolist() for v in found.values.values()), strict=True)
    names = [f"{split} {name}" for name in found.values]
    write_table(["position", *names], [[f"{v:.4g}" for v in row] for row in rows])
