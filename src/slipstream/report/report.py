"""From runs to one page: what `slipstream report` writes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from slipstream.evaluation import takes_task
from slipstream.report.page import page_of
from slipstream.report.recorded_run import MODES, RecordedRun, shown
from slipstream.report.sections import QUESTIONS, Extras, build_section
from slipstream.storage.writing import write_whole


@dataclass(frozen=True)
class Report:
    """Result of `write_report`."""

    path: Path
    bytes: int
    runs: tuple[str, ...]  # their names on the page


@takes_task(extras=Extras)
def write_report(
    runs: Sequence[str | Path],
    path: str | Path,
    *,
    title: str | None = None,
    modes: int = MODES,
    extras: Extras | None = None,
    overwrite: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> Report:
    """Write one self-contained HTML page about some runs: what they learned, and how they moved.

    The page needs no network. Where a run is empty, too short, or holds a NaN, a sentence on the
    page says so. A run that is being recorded is shown as it is now.

    Args:
        runs: One or more run folders; several are compared side by side.
        path: The file to write.
        title: Its heading; by default the names of the runs.
        modes: The number of modes that each run is decomposed into.
        extras: What to show besides the runs: a comparison of transfer methods, landscapes;
            None measures nothing on data.
        overwrite: Whether to replace a file that is there.
        progress: Called before each section with its question, its number, and how many there are.

    Returns:
        Where the page is, and its size.

    Raises:
        ValueError: If there are no runs, or one is named twice.
        FileNotFoundError: If a folder is not a run.
        FileExistsError: If the file is there and may not be replaced.

    Example:
        >>> import tempfile, torch
        >>> from slipstream.trajectory import create_run
        >>> folder = Path(tempfile.mkdtemp())
        >>> with create_run(folder / "run", model=torch.nn.Linear(2, 1)):
        ...     pass
        >>> write_report([folder / "run"], folder / "report.html").runs
        ('run',)
    """
    page = Path(path)
    if page.exists() and not overwrite:
        raise FileExistsError(f"{page} is already there: give another file, or pass overwrite.")
    opened = open_runs(runs, modes=modes)
    on_page = shown(opened)
    sections = []
    for number, (key, question) in enumerate(QUESTIONS.items()):
        if progress is not None:
            progress(question, number, len(QUESTIONS))
        sections.append(build_section(key, on_page, extras or Extras()))
    names = tuple(one.name for one in on_page)
    text = page_of(title or " and ".join(names), on_page, sections)
    page.parent.mkdir(parents=True, exist_ok=True)
    size = write_whole(page, [text.encode()])
    return Report(page, size, names)


def open_runs(runs: Sequence[str | Path], *, modes: int = MODES) -> list[RecordedRun]:
    """Open run folders, each once.

    Args:
        runs: One or more folders.
        modes: The number of modes that each is decomposed into.

    Returns:
        The runs in the same order.

    Raises:
        ValueError: If there are none, or one is named twice.
    """
    if not runs:
        raise ValueError("runs must name at least one run folder, got none.")
    seen: set[Path] = set()
    for path in map(Path, runs):
        if path.resolve() in seen:
            raise ValueError(f"runs names {path} twice: a run is compared with others.")
        seen.add(path.resolve())
    return [RecordedRun.open(path, modes=modes) for path in runs]
