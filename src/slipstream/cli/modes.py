"""`slipstream modes`."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from slipstream.cli import options
from slipstream.cli.command import old_flags
from slipstream.cli.output import OutputFiles, write_json, write_table
from slipstream.cli.plan_options import Adjusted
from slipstream.cli.progress import pieces_bar

if TYPE_CHECKING:
    from slipstream.modes import Modes

REFERENCE = "What a mode follows: one of its weights, or the mean direction of all."
GROUPING = "How sampled weights are clustered by their correlations."
COMPARE = "Compare with PCA and with random groups."
FILES = Adjusted(
    help={
        "out": "Write the modes to this .safetensors file.",
        "figure": "Draw references, shares of the motion and correlations: PNG, SVG or PDF.",
    }
)


@old_flags({"--save": "--out"})
def modes(
    run: options.Run,
    files: Annotated[OutputFiles, FILES],
    modes: Annotated[int, typer.Option(help="Number of modes.")] = 10,
    samples: Annotated[int, typer.Option(help="How many weights are clustered.")] = 1000,
    reference: Annotated[Literal["member", "component"], typer.Option(help=REFERENCE)] = "member",
    grouping: Annotated[
        Literal["complete", "average", "k-means"], typer.Option(help=GROUPING)
    ] = "complete",
    seed: Annotated[int, typer.Option(help="Seed of the sample.")] = 0,
    compare: Annotated[bool, typer.Option("--compare", help=COMPARE)] = False,
    json: options.AsJson = False,
) -> None:
    """Decompose a run into modes: groups of weights that move together, or against each other.

    Example: slipstream modes run --modes 5 --compare -o modes.safetensors --figure modes.png
    """
    from slipstream.modes import compare_modes, fit_modes
    from slipstream.report.figures import plot_modes
    from slipstream.trajectory import Trajectory

    how: Any = {"modes": modes, "samples": samples, "grouping": grouping, "seed": seed}
    with pieces_bar("reading the run", hidden=json) as progress:
        trajectory = Trajectory.open(run)
        found = fit_modes(trajectory, **how, reference=reference, progress=progress)
        compared = compare_modes(trajectory, **how, progress=progress) if compare else None
    if files.out is not None:
        found.save(files.out)
    files.draw(lambda: plot_modes(found))
    described = describe(found) | (asdict(compared) if compared else {})
    if json:
        write_json(described)
        return
    typer.echo(str(found))
    numbered = enumerate(described["modes"])
    rows = [[str(number), f"{m['weights']:,}", f"{m['share']:.1%}"] for number, m in numbered]
    write_table(["mode", "weights", "of all motion"], rows)
    if compared is not None:
        typer.echo(f"\n{compared}")


def describe(found: "Modes") -> dict[str, Any]:
    """Return what a decomposition found, as plain data."""
    counts, shares = found.weights_by_mode().tolist(), found.share_by_mode().tolist()
    return {
        "steps": list(found.steps),
        "share": found.share,
        "relative_error": found.relative_error,
        "modes": [{"weights": n, "share": s} for n, s in zip(counts, shares, strict=True)],
        "tensors": found.share_by_tensor(),
        "bytes": found.nbytes,
    }
