"""`slipstream modes`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from slipstream.cli import options
from slipstream.cli.output import write_json, write_table
from slipstream.cli.progress import pieces_bar

if TYPE_CHECKING:
    from slipstream.modes import Modes

FIGURE = "Draw references, shares of the motion and correlations: PNG, SVG or PDF by its ending."


def modes(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    modes: Annotated[int, typer.Option(help="Number of modes.")] = 10,
    samples: Annotated[int, typer.Option(help="Weights that are grouped.")] = 1000,
    reference: Annotated[Literal["member", "component"], typer.Option()] = "member",
    grouping: Annotated[Literal["complete", "average", "k-means"], typer.Option()] = "complete",
    seed: Annotated[int, typer.Option(help="Of the sample.")] = 0,
    compare: Annotated[bool, typer.Option("--compare", help="Show controls, and PCA.")] = False,
    save: Annotated[Path | None, typer.Option(help="Write the modes to this file.")] = None,
    figure: Annotated[
        Path | None, typer.Option("-o", "--figure", help=FIGURE, callback=options.new_figure)
    ] = None,
    json: options.AsJson = False,
) -> None:
    """Decompose a run into modes: groups of weights that move in step, or against each other.

    Example: slipstream modes run --modes 5 --compare --save modes.safetensors --figure modes.png
    """
    from slipstream.modes import compare_modes, fit_modes
    from slipstream.report.figures import plot_modes
    from slipstream.trajectory import Trajectory

    how: Any = {"modes": modes, "samples": samples, "grouping": grouping, "seed": seed}
    with pieces_bar("reading the run", hidden=json) as progress:
        trajectory = Trajectory.open(run)
        found = fit_modes(trajectory, **how, reference=reference, progress=progress)
        compared = compare_modes(trajectory, **how, progress=progress) if compare else None
    if save is not None:
        found.save(save)
    if figure is not None:
        plot_modes(found).savefig(figure, dpi=150)
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
