"""Files that other modules keep beside the snapshots of a run, and that belong to it.

A module declares them before it writes the first one. They stand in `run.json`, so that a run is
overwritten as a whole, whichever modules are loaded by then.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from slipstream.storage.strict_json import read_checked_json
from slipstream.storage.writing import TEMPORARY
from slipstream.trajectory.run_files import DESCRIPTION, SNAPSHOTS, rewrite_description
from slipstream.trajectory.run_index import INDEX

KEY = "companions"  # in run.json, where there are any
# What version 0.1 could leave: its run.json does not say.
_UNDECLARED = (
    *("transfer.json", "permutations/*.safetensors", "gradients/*.safetensors"),
    *("recipe.pt", "ticket.safetensors", "scores.safetensors", "specialists/*.safetensors"),
    *("subspace.json", "corners/*.safetensors", "unfinished.pt"),
)
# A file beside run.json, or all files of a kind in one folder: a run.json of unknown origin must
# not make `overwrite` delete anything else.
_PATTERN = re.compile(r"[\w-]+(\.[\w-]+)+|[\w-]+/\*(\.[\w-]+)+", re.ASCII)


def declare_companions(folder: str | Path, *patterns: str) -> None:
    """Note in `run.json` that some files belong to a run; `overwrite` deletes them with it.

    Args:
        folder: A run folder.
        patterns: Files beside `run.json`, such as `transfer.json`, or all of a kind in a folder
            there, such as `permutations/*.safetensors`.

    Raises:
        ValueError: If a pattern is of another form, or one of the run's own files.

    Example:
        >>> import tempfile
        >>> from torch import nn
        >>> from slipstream.trajectory import create_run
        >>> folder = tempfile.mkdtemp()
        >>> with create_run(folder, model=nn.Linear(1, 1)):
        ...     declare_companions(folder, "notes.json")
        >>> (Path(folder) / "notes.json").touch()
        >>> with create_run(folder, model=nn.Linear(1, 1), overwrite=True):
        ...     (Path(folder) / "notes.json").exists()
        False
    """
    for pattern in patterns:
        if not _allowed(pattern):
            raise ValueError(
                f"A companion of a run must be named like notes.json or notes/*.json, "
                f"got {pattern!r}."
            )
    known = _declared(Path(folder))
    if not set(patterns) <= set(known):
        rewrite_description(Path(folder), **{KEY: list(dict.fromkeys((*known, *patterns)))})


def remove_companions(folder: Path) -> None:
    """Delete the files that a run declares, and their folders if nothing else is in them."""
    for file in list(_companions(folder)):
        file.unlink()
        if file.parent != folder and not any(file.parent.iterdir()):
            file.parent.rmdir()


def _companions(folder: Path) -> Iterator[Path]:
    for pattern in filter(_allowed, {*_UNDECLARED, *_declared(folder)}):
        for suffix in ("", TEMPORARY):
            for file in folder.glob(pattern + suffix):
                outside = file.parent != folder and file.parent.is_symlink()
                if not outside and (file.is_file() or file.is_symlink()):
                    yield file


def _declared(folder: Path) -> tuple[str, ...]:
    """The patterns in `run.json`; none if it is damaged."""
    try:
        description = read_checked_json((folder / DESCRIPTION).read_bytes())
        return tuple(map(str, description.get(KEY, ())))
    except (OSError, AttributeError, TypeError, ValueError):
        return ()


def _allowed(pattern: str) -> bool:
    own = pattern in (DESCRIPTION, INDEX) or pattern.startswith(f"{SNAPSHOTS}/")
    return bool(_PATTERN.fullmatch(pattern)) and not own
