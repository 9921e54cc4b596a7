"""`slipstream choose-start`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from slipstream.cli import options
from slipstream.cli.output import write_json, write_table
from slipstream.cli.plan_options import Adjusted
from slipstream.cli.progress import pieces_bar
from slipstream.cli.task_options import TaskOptions
from slipstream.comparison.plan import StartPlan

STARTS = "Runs, RUN@STEP, files of weights or folders: the starts to choose from."
PLAN = Adjusted(rename={"rates": "rate"})
TASK = Adjusted(
    skip=("metrics",),
    help={"data": "The new data: digits, mnist:DIR, ..., or package.module:function."},
    shown={"model": "that of the first run", "data": "that of the first run"},
)


def choose_start(
    starts: Annotated[list[str], typer.Argument(help=STARTS)],
    task: Annotated[TaskOptions, TASK],
    plan: Annotated[StartPlan, PLAN],
    split: options.Split = "train",
    json: options.AsJson = False,
) -> None:
    """Find which of some runs is the best start for new data, by a few labelled batches.

    Each is fine-tuned a little on one half of them and judged on the other; the model's own
    untrained weights are tried too. The cost is printed.

    Example: slipstream choose-start run-a run-b --data digits+turned --batches 4
    """
    from slipstream.comparison import choose_start as choose

    run = next(
        (Path(start.rpartition("@")[0] or start) for start in starts if _is_run(start)), None
    )
    opened = task.open(run)
    with pieces_bar("trying", hidden=json) as bar:
        choice = choose(
            starts,
            opened.on(split),
            plan=plan,
            progress=lambda number, total, name: bar(name, number, total),
        )
    if json:
        write_json(asdict(choice))
        return
    write_table(
        ["start", "loss", "as it is", "rate"],
        [
            [one.name, f"{one.loss:.4g}", f"{one.loss_before:.4g}", f"{one.rate or 0:g}"]
            for one in choice.candidates
        ],
    )
    typer.echo(str(choice).splitlines()[-1])


def _is_run(start: str) -> bool:
    paths = [Path(text) for text in (start, start.rpartition("@")[0]) if text]
    return any((path / "run.json").is_file() for path in paths)
