"""What may be deleted in a run folder: what a writer that was killed, or an older run, left."""

import re
from collections.abc import Iterable
from pathlib import Path

from slipstream.storage.packed_header import SUFFIX as PACKED
from slipstream.storage.writing import TEMPORARY
from slipstream.trajectory.companions import remove_companions
from slipstream.trajectory.run_files import DESCRIPTION, SNAPSHOTS
from slipstream.trajectory.run_index import INDEX
from slipstream.trajectory.run_lock import LOCK

_SHARD = re.compile(r"\d{8,}-\d{5}-of-\d{5}\.safetensors")


def shard_name(step: int, rank: int, processes: int) -> str:
    """Return the name, in a run folder, of what one of several processes writes of a snapshot."""
    return f"{SNAPSHOTS}/{step:08d}-{rank + 1:05d}-of-{processes:05d}.safetensors"


def check_free(folder: Path, overwrite: bool) -> None:
    """Raise a FileExistsError if a new run would lie among other files."""
    if not folder.exists() or (overwrite and (folder / DESCRIPTION).is_file()):
        return
    # All that is left of a run whose making was broken off:
    unfinished = {INDEX: 0, DESCRIPTION + TEMPORARY: None, LOCK: None}
    for file in folder.iterdir():
        if file.name in unfinished and unfinished[file.name] in (None, file.stat().st_size):
            continue
        is_run = (folder / DESCRIPTION).is_file()
        raise FileExistsError(
            f"{folder} already holds a run: give another path, resume it, or pass overwrite=True."
            if is_run
            else f"{folder} is not empty (it holds {file.name}): give another path."
        )


def clear(folder: Path) -> None:
    """Remove the snapshots of an older run, and what else belongs to it."""
    if (folder / SNAPSHOTS).is_symlink():
        (folder / SNAPSHOTS).unlink()  # what it leads to is not the run's
    for suffix in (".safetensors", PACKED):
        for file in (folder / SNAPSHOTS).glob(f"*{suffix}"):
            file.unlink()
    remove_companions(folder)
    remove_temporary(folder)


def remove_own(folder: Path, files: Iterable[str]) -> None:
    """Remove snapshots that the run itself wrote, never linked files."""
    for name in files:
        if Path(name).parent == Path(SNAPSHOTS) and not (folder / SNAPSHOTS).is_symlink():
            (folder / name).unlink(missing_ok=True)


def remove_temporary(folder: Path) -> None:
    """Remove files that are not whole."""
    for name in (DESCRIPTION, INDEX):
        (folder / (name + TEMPORARY)).unlink(missing_ok=True)
    for file in (
        [] if (folder / SNAPSHOTS).is_symlink() else (folder / SNAPSHOTS).glob(f"*{TEMPORARY}")
    ):
        file.unlink()


def remove_unlisted_shards(folder: Path, listed: set[str]) -> None:
    """Remove what some processes had written of a snapshot when another was killed."""
    for file in (folder / SNAPSHOTS).glob("*-of-*.safetensors"):
        if _SHARD.fullmatch(file.name) and f"{SNAPSHOTS}/{file.name}" not in listed:
            remove_own(folder, [f"{SNAPSHOTS}/{file.name}"])
