"""How files are opened that may come from anywhere."""

import stat
from io import FileIO
from pathlib import Path


def open_regular(path: Path) -> FileIO:
    """Open a file to read; what is not a file, such as a pipe, would wait for ever.

    Args:
        path: The file.

    Returns:
        The file, unbuffered.

    Raises:
        OSError: If it is missing.
        ValueError: If it is something else than a file.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("it is not a regular file")
    return FileIO(path)
