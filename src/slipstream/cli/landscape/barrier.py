"""`slipstream landscape barrier`."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from slipstream.cli import options
from slipstream.cli.landscape import networks
from slipstream.cli.output import write_json, write_table
from slipstream.cli.progress import steps_bar

if TYPE_CHECKING:
    from slipstream.landscape import Barrier

MATCH = "Also match the neurons of the source to the target's: by weights or by activations."


def barrier(
    source: Annotated[str, typer.Argument(help="A run folder, RUN@STEP or a .safetensors file.")],
    target: Annotated[str, typer.Argument(help="The same, of the same model.")],
    match: Annotated[Literal["none", "weights", "activations"], typer.Option(help=MATCH)] = "none",
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
    """Measure how far the loss rises between two networks, and what matching does about it.

    Example: slipstream landscape barrier run other --match weights -o barrier.png
    """
    from slipstream.report.figures import plot_loss_line

    files = networks.check_outputs(out)
    opened = networks.open_networks(
        [source, target], split=split, batches=batchnorm_batches, model=model, data=data, loss=loss,
        width=width, option=option, device=device,
    )  # fmt: skip
    with steps_bar("measuring", hidden=json) as bar:
        found = _measured(opened, match, points, {"resume": resume, "progress": bar})
    told = {"split": split, **{name: value.to_json() for name, value in found.items()}}
    if files:
        networks.write_outputs(files, data=told, figure=plot_loss_line(found, metric=metric))
    if json:
        write_json(told)
        return
    rows = [
        [name, kind, *(f"{getattr(value, kind)(m):.4g}" for m in value.line.values)]
        for name, value in found.items()
        for kind in ("rise", "drop")
    ]
    write_table(["neurons", "from the chord", *opened.experiment.measured], rows)


def _measured(
    opened: networks.Networks, match: str, points: int, given: dict[str, Any]
) -> "dict[str, Barrier]":
    from slipstream.evaluation import inputs_of
    from slipstream.landscape import AlignmentPlan, align_then_barrier, loss_barrier
    from slipstream.symmetry.tracing import find_neuron_groups

    task, (start, end) = opened.task, opened.weights.values()
    if match == "none":
        return {"as they are": loss_barrier(start, end, task, points=points, **given)}
    groups = find_neuron_groups(task.model, inputs_of(opened.calibration[0]))
    method: Literal["weights", "activations"] = "weights" if match == "weights" else "activations"
    plan = AlignmentPlan(method=method, points=points)
    found = align_then_barrier(start, end, task, groups=groups, plan=plan, **given)
    return {"as they are": found.before, "matched": found.after}
