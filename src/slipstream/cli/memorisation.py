"""`slipstream memorisation`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from slipstream.cli import options
from slipstream.cli.output import OutputFiles, write_json, write_table
from slipstream.cli.plan_options import Adjusted
from slipstream.cli.progress import steps_bar
from slipstream.cli.task_options import TaskOptions
from slipstream.comparison.plan import MemorisationPlan

CHECKPOINTS = "Runs, RUN@STEP, or files of weights: what may be new or a copy."
KNOWN = "A folder of run folders, or a run, RUN@STEP or file, repeatable: what was learned from."
UNSEEN = "A real run that was not learned from, to compare with; repeatable."
FILES = Adjusted(skip=("figure",), help={"out": "Write it as JSON to this file too."})
RUN = "that of the first known run"
TASK = Adjusted(skip=("metrics",), shown={"model": RUN, "data": RUN})


def memorisation(
    checkpoints: Annotated[list[str], typer.Argument(help=CHECKPOINTS)],
    known: Annotated[list[str], typer.Option(help=KNOWN)],
    plan: MemorisationPlan,
    files: Annotated[OutputFiles, FILES],
    task: Annotated[TaskOptions, TASK],
    unseen: Annotated[list[str] | None, typer.Option(help=UNSEEN)] = None,
    groups: options.Groups = None,
    split: options.Split = "test",
    json: options.AsJson = False,
) -> None:
    """Say whether checkpoints are new, or copies of known ones: by errors and by weights.

    Overlap is that of the wrong answers, with the known checkpoint that shares most. Distance is to
    the nearest known one, after the neurons are brought into its order.

    Example: slipstream memorisation generated --known runs
    """
    from slipstream.comparison import measure_memorisation
    from slipstream.symmetry.neuron_groups import NeuronGroups
    from slipstream.trajectory.run_files import DESCRIPTION, run_folders_in

    first, *_ = run_folders_in(known[0]) or [Path(known[0].partition("@")[0])]
    opened = task.open(first if Path(first, DESCRIPTION).is_file() else None)
    sets = {"given": checkpoints} | ({"unseen": unseen} if unseen else {})
    with steps_bar("comparing", hidden=json) as bar:
        found = measure_memorisation(
            sets,
            known,
            opened.on(split),
            groups=NeuronGroups.load(groups) if groups else None,
            plan=plan,
            progress=bar,
        )
    files.write_data(asdict(found))
    if json:
        write_json(asdict(found))
        return
    for row in found.rows[0].each:
        typer.echo(
            f"{row.name}: overlap {row.overlap:.3f} with {row.same_errors}, distance "
            f"{row.distance:.3f} to {row.same_weights}"
        )
    write_table(
        ["", "checkpoints", "accuracy", "overlap", "distance", "copies"],
        [
            [
                row.name,
                str(len(row.each)),
                *(f"{value:.3f}" for value in (row.accuracy, row.overlap, row.distance)),
                str(found.copies(row.name)),
            ]
            for row in found.rows
        ],
    )
    typer.echo(f"copies: nearer to one of the {found.known} known ones than all that were left out")
