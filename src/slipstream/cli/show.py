"""`slipstream show`."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.filesize import decimal

from slipstream.cli import options
from slipstream.cli.output import write_json, write_table

ROWS = 12


def show(
    run: options.Run,
    everything: Annotated[bool, typer.Option("--all", help="List every snapshot.")] = False,
    json: options.AsJson = False,
) -> None:
    """Show what a run holds: its model, snapshots and metrics, and what is wrong with it.

    Example: slipstream show run
    """
    described = describe(run)
    if json:
        write_json(described)
    else:
        _print(described, everything=everything)


def _print(described: dict[str, Any], *, everything: bool) -> None:
    size = decimal(described["bytes"])
    model = described["model"] or "weights"
    typer.echo(f"{model}, {described['parameters']:,} parameters; {size} in all snapshots")
    if described["recipe"]:
        typer.echo(f"recipe: {described['recipe']}")
    snapshots = described["snapshots"]
    every = 1 if everything else math.ceil(len(snapshots) / ROWS)
    chosen = snapshots[:-1:every] + snapshots[-1:]
    names = list(dict.fromkeys(name for snapshot in chosen for name in snapshot["metrics"]))
    write_table(
        ["step", "epoch", *(name.replace("_", " ") for name in names)],
        [
            [str(s["step"]), _plain(s["epoch"]), *(_plain(s["metrics"].get(n)) for n in names)]
            for s in chosen
        ],
    )
    if len(chosen) < len(snapshots):
        typer.echo(f"{len(chosen)} of {len(snapshots)} snapshots; --all lists every one")
    for problem in described["problems"]:
        typer.secho(f"problem: {problem}", fg="red")


def describe(run: Path) -> dict[str, Any]:
    """Return what a run folder holds and what is wrong with it, as plain data."""
    from slipstream.trajectory.run_files import check_run, read_run

    folder = read_run(run)
    forms = folder.layout.tensors.values()
    return {
        "path": str(run),
        "model": folder.layout.model,
        "tensors": len(forms),
        "parameters": sum(math.prod(form.shape) for form in forms),
        "bytes": sum(entry.bytes for entry in folder.entries),
        "configuration": folder.description["configuration"],
        "recipe": _recipe(folder.description),
        "snapshots": [
            {"step": entry.step, "epoch": entry.epoch, "metrics": dict(entry.metrics)}
            for entry in folder.entries
        ],
        "problems": check_run(run, values=False),
    }


def _recipe(description: Mapping[str, Any]) -> str | None:
    """The recipe that a run was trained by, with its own settings, in words."""
    recipes = description["configuration"].get("recipe")
    if not isinstance(recipes, dict) or "transfer" in description["provenance"]:
        return None
    name, plan = next(iter(recipes.items()))
    settings = [f"{n} {v}" for n, v in plan.items() if isinstance(v, (str, int, float))]
    return ", ".join([name.replace("_", "-"), *settings]).replace("_", " ")


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
