"""Whether memory and disk are enough for what is about to begin."""

import errno
import shutil
from pathlib import Path


def check_memory(needed: int, what: str) -> None:
    """Raise if there is too little memory, where the system tells how much there is (Linux).

    Args:
        needed: Bytes, besides what is in use now.
        what: What needs them, for the message, and how to need less.

    Raises:
        MemoryError: Saying how much is needed, and how much there is.
    """
    free = free_memory()
    if free is not None and needed > free:
        raise MemoryError(f"{what} needs {_text(needed)} of memory; {_text(free)} are free.")


def check_room(folder: Path, needed: int, what: str) -> None:
    """Raise if there is too little room on the disk of a folder that may not exist yet.

    Args:
        folder: Where files will be written.
        needed: Bytes.
        what: What needs them, for the message.

    Raises:
        OSError: Saying how much is needed, and how much there is.
    """
    place = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        told = f"{what} needs {_text(needed)} of disk; {_text(free)} are free"
        raise OSError(errno.ENOSPC, told, str(folder))


def free_memory() -> int | None:
    """Return the bytes that can be had without ending anything, swap included; None if unknown."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    sizes = dict(line.split()[:2] for line in lines)
    if "MemAvailable:" not in sizes:
        return None
    return 1024 * (int(sizes["MemAvailable:"]) + int(sizes.get("SwapFree:", "0")))


def _text(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
