"""A bar on the standard error while something takes its time."""

from collections.abc import Callable, Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


@contextmanager
def steps_bar(what: str, *, hidden: bool = False) -> Generator[Callable[..., None]]:
    """Show a bar for the length of a `with` block.

    Args:
        what: What takes its time.
        hidden: Whether to show nothing.

    Yields:
        A function to call with the steps done, their number if it is known, and what is done now.
    """
    console = Console(stderr=True)
    shown = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=hidden or not console.is_terminal,
        transient=True,
    )
    with shown:
        task = shown.add_task(what, total=None)

        def update(done: int, total: int | None = None, now: str | None = None) -> None:
            shown.update(task, completed=done, total=total, description=now)

        yield update


@contextmanager
def pieces_bar(what: str, *, hidden: bool = False) -> Generator[Callable[[str, int, int], None]]:
    """Show a bar for work in named pieces.

    Args:
        what: What is done before the first piece is named.
        hidden: Whether to show nothing.

    Yields:
        A function to call with the name of the next piece, its number, and how many there are.
    """
    with steps_bar(what, hidden=hidden) as bar:
        yield lambda name, done, total: bar(done, total, name)
