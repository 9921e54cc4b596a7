"""`slipstream view`."""

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from slipstream.cli import options
from slipstream.cli.output import write_json
from slipstream.cli.task_options import TaskOptions

PORT = "The port on this machine; 0 takes one that is free."
LANDSCAPE = "Also measure the loss around the runs, and baselines of transfers; this takes longer."
SECONDS = "About how long each line or plane of the landscape may take."


def view(
    folder: Annotated[Path, typer.Argument(help="A folder with run folders in it.")],
    task: TaskOptions,
    port: Annotated[int, typer.Option(min=0, max=65535, help=PORT)] = 8265,
    modes: Annotated[int, typer.Option(min=1, help="Number of modes.")] = 6,
    landscape: Annotated[bool, typer.Option(help=LANDSCAPE)] = False,
    seconds: Annotated[float, typer.Option(min=0, help=SECONDS)] = 5,
    open_browser: Annotated[bool, typer.Option("--open", help="Open it in a browser.")] = False,
    json: options.AsJson = False,
) -> None:
    """Show a folder of runs in the browser, and follow them while they are recorded.

    Only this machine can open the page. Nothing is written. Ctrl-C ends it.

    Example: slipstream view runs --port 8265
    """
    from slipstream.cli.loading import landscapes_of
    from slipstream.report.gallery import Gallery
    from slipstream.report.sections import Extras
    from slipstream.report.view import serve

    def ready(address: str) -> None:
        if json:
            write_json({"address": address})
        else:
            typer.echo(f"{folder} at {address} (Ctrl-C ends it)")
        if open_browser:
            webbrowser.open(address)

    extras = Extras(landscapes=landscapes_of(task, seconds) if landscape else None)
    try:
        serve(Gallery(folder, modes, extras), port=port, ready=ready)
    except KeyboardInterrupt:
        typer.echo("Ended.", err=True)
