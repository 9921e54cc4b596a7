"""The lock of a run folder: one writer at a time, on every system."""

import errno
import os
import time
from contextlib import suppress
from pathlib import Path

LOCK = ".lock"  # a file of the run folder, only there while the run is being written
_LOCKS = Path("/proc/locks")  # of Linux: who holds which file
_RECENT = 60  # seconds


class RunLock:
    """Held from its making until `release`; the system releases it when the process ends."""

    def __init__(self, folder: Path) -> None:
        """Take the lock.

        Args:
            folder: The run folder.

        Raises:
            BlockingIOError: If another writer has it.
        """
        from filelock import FileLock, Timeout  # here: most of those who read runs never need it

        self._file, self._process = folder / LOCK, os.getpid()
        self._lock = FileLock(self._file, thread_local=False)  # a recorder may end in a thread
        try:
            self._lock.acquire(blocking=False)
        except Timeout as error:
            raise BlockingIOError(
                errno.EAGAIN,
                f"{folder} is being written by another recorder: close it, or give another path.",
            ) from error

    def release(self) -> None:
        """Let others write; in a forked process nothing happens, the lock is its parent's."""
        if os.getpid() != self._process or not self._lock.is_locked:
            return
        # Whoever locks the removed file meanwhile notices that it is gone. Windows refuses to
        # remove what is open.
        with suppress(OSError):
            self._file.unlink()
        self._lock.release()


def is_locked(folder: Path, *, last_change: float) -> bool:
    """Return whether a writer holds the lock, without touching it.

    Args:
        folder: A run folder.
        last_change: When the run grew, in seconds since 1970; asked where the system does not tell
            who holds a lock.

    Returns:
        Whether a process on this machine holds the lock; where that is unknown, whether the
        run has grown within the last minute.
    """
    try:
        lock = (folder / LOCK).stat()
    except OSError:
        return False
    try:
        held = [line.split() for line in _LOCKS.read_text(encoding="ascii").splitlines()]
    except OSError:
        return time.time() - last_change < _RECENT
    # number: FLOCK ADVISORY WRITE process device:device:inode start end
    device = f"{os.major(lock.st_dev):02x}:{os.minor(lock.st_dev):02x}:{lock.st_ino}"
    return any(line[1:2] == ["FLOCK"] and line[5] == device for line in held)
