"""`slipstream motion`."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from slipstream.cli import options
from slipstream.cli.output import OutputFiles, write_json, write_table
from slipstream.cli.plan_options import Adjusted
from slipstream.cli.progress import pieces_bar

if TYPE_CHECKING:
    from slipstream.dynamics import Motion

FIGURE = "Draw speed, direction, parts and path: PNG, SVG or PDF by the ending."
FILES = Adjusted(skip=("out",), help={"figure": FIGURE})
TENSORS = "A row per tensor instead of one per layer."
PHASES = "The most phases to look for."


def motion(
    run: options.Run,
    files: Annotated[OutputFiles, FILES],
    tensors: Annotated[bool, typer.Option("--tensors", help=TENSORS)] = False,
    phases: Annotated[int, typer.Option(min=1, help=PHASES)] = 6,
    json: options.AsJson = False,
) -> None:
    """Measure how the weights of a run move: speed, turns, phases, share per layer.

    Example: slipstream motion run --figure motion.png
    """
    from slipstream.dynamics import find_phases, measure_motion, principal_path
    from slipstream.report.figures import plot_motion
    from slipstream.trajectory import Trajectory

    trajectory = Trajectory.open(run)
    with pieces_bar("reading the run", hidden=json) as bar:
        by_tensor = measure_motion(trajectory, progress=bar)
        path = principal_path(trajectory, components=min(2, len(trajectory) - 1), progress=bar)
    parts = by_tensor if tensors else by_tensor.by_layer()
    enough = len(trajectory) > 3
    found = find_phases(by_tensor, most=phases) if enough else None
    files.draw(lambda: plot_motion(parts, phases=found, path=path))
    if json:
        described = describe(parts) | {"all": describe(by_tensor.combined())["parts"][0]}
        described["phases"] = [vars(phase) for phase in found.phases] if found else []
        described["path"] = {
            "coordinates": path.coordinates.tolist(), "shares": path.shares.tolist()
        }  # fmt: skip
        write_json(described)
        return
    write_table(["", "share", "path", "distance", "straight", "speed"], _rows(parts))
    typer.echo(f"\n{found}" if found else "\nToo few snapshots for phases.")
    shares = ", ".join(f"{share:.1%}" for share in path.shares.tolist())
    typer.echo(f"principal components: {shares} of the squared distances from the mean")


def describe(motion: "Motion") -> dict[str, Any]:
    """Return a motion as plain data."""
    fields = ("speeds", "relative_speeds", "distances", "cosines", "angles", "curvatures", "shares")
    totals = ("share", "path_lengths", "straightness")
    columns = {name: getattr(motion, name).tolist() for name in (*fields, *totals)}
    parts = [
        {"name": name, **{column: values[number] for column, values in columns.items()}}
        for number, name in enumerate(motion.names)
    ]
    return {"steps": list(motion.steps), "parts": parts}


def _rows(parts: "Motion") -> list[list[str]]:
    whole = parts.combined()
    rows = []
    for found in (parts, whole):
        for number, name in enumerate(found.names):
            speeds = found.speeds[number]
            rows.append([
                name, f"{found.share[number]:.1%}", f"{found.path_lengths[number]:.4g}",
                f"{found.distances[number, -1]:.4g}", f"{found.straightness[number]:.3f}",
                f"{speeds[0]:.3g} to {speeds[-1]:.3g}",
            ])  # fmt: skip
    return rows
