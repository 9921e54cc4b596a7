"""`slipstream landscape study`."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slipstream.cli import options
from slipstream.cli.landscape.networks import PATHS, MeasureOptions, Networks, open_networks
from slipstream.cli.output import write_table
from slipstream.cli.progress import steps_bar
from slipstream.cli.task_options import TaskOptions
from slipstream.landscape.plans import StudyPlan

if TYPE_CHECKING:
    from torch import Tensor

    from slipstream.landscape import LandscapeStudy

WHICH = f"A transferred run, whose networks are collected; or two and more. {PATHS}"
CORNERS = "Three names with commas between: also measure the plane through them."
TRAINED = "With a transferred run: the end of the target's own training, a run or a file."


def study(
    weights: Annotated[list[str], typer.Argument(help=WHICH)],
    files: MeasureOptions,
    task: TaskOptions,
    plan: StudyPlan,
    trained_target: Annotated[str | None, typer.Option(help=TRAINED)] = None,
    corners: Annotated[str | None, typer.Option(help=CORNERS)] = None,
    json: options.AsJson = False,
) -> None:
    """Compare networks: barriers between all, agreement of predictions, CKA, a plane.

    Example: slipstream landscape study transferred --trained-target trained --figure study.png
    """
    from slipstream.landscape import landscape_study
    from slipstream.report.figures import plot_study

    paths = [*weights, *([trained_target] if trained_target else [])]
    opened = _of_a_transfer(open_networks(paths, task, files), weights, trained_target)
    classes = "accuracy" in opened.task.measured
    plan = replace(
        plan,
        corners=corners.split(",") if corners else None,
        predict="classes" if classes else None,
    )
    with steps_bar("measuring", hidden=json) as bar:
        found = landscape_study(
            opened.weights, opened.task, plan=plan, resume=files.begin(), progress=bar
        )

    def figure() -> object:
        return plot_study(found, metric=files.metric, falls=files.metric == "accuracy")

    if files.finish(found.to_json(), figure, json=json):
        _print(found)


def _of_a_transfer(opened: Networks, weights: list[str], trained_target: str | None) -> Networks:
    """The networks of a transfer, if the only run is one."""
    from slipstream.landscape import networks_of_transfer
    from slipstream.trajectory import Trajectory
    from slipstream.transfer import load_transfer

    folder = Path(weights[0])
    if len(weights) > 1 or not (folder / "transfer.json").is_file():
        if trained_target:
            raise ValueError("--trained-target goes with one transferred run, and nothing else.")
        return opened
    result = load_transfer(folder)
    source = _source_of(folder, result.trajectory.description["configuration"].get("source"))
    trained = list(opened.weights.values())[1] if trained_target else None
    collected = networks_of_transfer(
        Trajectory.open(source),
        result.trajectory[: result.chosen + 1],
        source_to_target=result.source_to_target,
        trained_target=trained,
    )
    return replace(opened, weights=collected)


def _source_of(folder: Path, source: str | None) -> Path:
    """The run that a transferred one came from."""
    from slipstream.transfer import find_source

    if source is None:
        raise ValueError(
            f"{folder} does not say which run it was transferred from: name the networks one by "
            "one, as in slipstream landscape study target source."
        )
    if (found := find_source(folder)) is not None:
        return found
    raise ValueError(
        f"{folder} was transferred from {source}, where there is no run now: move the run back "
        "there, or name the networks one by one."
    )


def _print(found: "LandscapeStudy") -> None:
    values = {metric: found.values(metric).tolist() for metric in found.lines}
    rows = [
        [name, *(f"{v[number]:.4f}" for v in values.values())]
        for number, name in enumerate(_numbered(found))
    ]
    write_table(["", *values], rows)
    for metric in found.lines:
        falls = metric == "accuracy"
        what = "fall below" if falls else "rise above"
        barriers = found.drops(metric) if falls else found.rises(metric)
        _table(f"{metric}: {what} the chord", found, barriers)
    if found.agreement is not None:
        _table("share of examples with the same prediction", found, found.agreement)
    for layer, value in found.similarity.items():
        _table(f"linear CKA of {layer}", found, value)


def _table(title: str, found: "LandscapeStudy", table: "Tensor") -> None:
    typer.echo(f"\n{title}")
    named = zip(_numbered(found), table.tolist(), strict=True)
    rows = [[name, *(f"{value:.3f}" for value in row)] for name, row in named]
    write_table(["", *map(str, range(len(rows)))], rows)


def _numbered(found: "LandscapeStudy") -> list[str]:
    return [f"{name} {number}" for number, name in enumerate(found.names)]
