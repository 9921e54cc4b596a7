"""Files that a transfer writes beside its snapshots: each is there whole, or not at all."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError


@contextmanager
def whole_file(path: Path) -> Generator[Path]:
    """Write a file under another name, and give it its own when the `with` block is done.

    Args:
        path: The file's own name.

    Yields:
        The name to write to.

    Raises:
        OSError: If the disk is full or fails; nothing is left behind.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # else the name may outlive the content when the power fails
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise OSError(
            f"{path} could not be written: {error}. The stages before it are whole: make room, "
            "then resume the transfer."
        ) from error
