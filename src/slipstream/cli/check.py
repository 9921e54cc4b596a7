"""`slipstream check`."""

import typer

from slipstream.cli import options
from slipstream.cli.output import write_json

DAMAGED = 1  # the exit code


def check(run: options.Run, json: options.AsJson = False) -> None:
    """Read all files of a run and compare them with their checksums; say what is damaged.

    Runs of version 0.1 have no checksums: there headers and sizes are compared.

    Example: slipstream check run
    """
    from slipstream.trajectory.run_files import check_run, read_run

    folder = read_run(run)
    problems = check_run(run)
    if json:
        write_json({"path": str(run), "snapshots": len(folder.entries), "problems": problems})
    else:
        for problem in problems:
            typer.secho(problem, fg="red")
        typer.echo(_advice(run.name, len(folder.entries), len(problems)))
    if problems:
        _exit()


def _exit() -> None:
    raise typer.Exit(DAMAGED)


def _advice(run: str, snapshots: int, problems: int) -> str:
    if not problems:
        return f"{run}: {snapshots} snapshots, all as they were written"
    return (
        f"{run}: {problems} of {snapshots} snapshots or files are not as they were written. Copy "
        "them from a backup; or read the others: Trajectory.open(run)[:n] is the run before the "
        "n-th."
    )
