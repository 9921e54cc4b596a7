"""`slipstream demo`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from slipstream.cli import options
from slipstream.cli.output import write_json, write_table
from slipstream.cli.progress import pieces_bar

OUT = "The folder for the run and the figure."


def demo(
    out: Annotated[Path, typer.Option("-o", "--out", help=OUT)] = Path("demo"),
    targets: Annotated[int, typer.Option(min=1, help="How many new starts.")] = 3,
    seed: Annotated[int, typer.Option(help="Seed of the source; the targets follow.")] = 0,
    json: options.AsJson = False,
) -> None:
    """Train on digits, record the run, transfer it to new starts, and compare with training them.

    Example: slipstream demo --out demo
    """
    with pieces_bar("starting", hidden=json) as bar:
        from slipstream.demo import RIVALS, run_demo
        from slipstream.report.tables import comparison_rows

        result = run_demo(out, targets=targets, seed=seed, progress=bar)
    if json:
        write_json(asdict(result.comparison) | {"run": str(result.run)})
        return
    header, *rows = comparison_rows(result.comparison)
    typer.echo(
        f"A 3-layer MLP on scikit-learn's digits, trained once ({result.training_seconds:.1f} s) "
        f"and transferred to {targets} new initialisations. Test accuracy, mean ± deviation:"
    )
    write_table(header, rows)
    typer.echo("without a source, at a rate chosen on validation data: " + ", ".join(RIVALS))
    typer.echo("further training: one epoch, at the best of three rates by validation loss")
    typer.echo(f"run: {result.run}  figure: {result.figure}")
