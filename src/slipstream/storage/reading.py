"""How files are opened that may come from anywhere."""

import stat
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from safetensors import SafetensorError

# What goes wrong when data that should be of one form is of another.
_WRONG = (
    *(ArithmeticError, AssertionError, AttributeError, BufferError, LookupError, RuntimeError),
    *(TypeError, ValueError, SafetensorError, zlib.error),
)


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
    check_regular(path)
    return FileIO(path)


def check_regular(path: str | Path) -> None:
    """Raise if `path` is missing, or is something else than a file.

    Args:
        path: The file.

    Raises:
        OSError: If it is missing.
        ValueError: If it is something else than a file.
    """
    if not stat.S_ISREG(Path(path).stat().st_mode):
        raise ValueError("it is not a regular file")


@contextmanager
def parsing(path: str | Path, what: str) -> Generator[None]:
    """Turn what goes wrong while a file of unknown origin is taken apart into one kind of error.

    Args:
        path: The file, for the message.
        what: What it should hold, such as "neuron groups".

    Yields:
        Nothing.

    Raises:
        OSError: If the file is missing.
        ValueError: If it holds something else, in one line that names the file.

    Example:
        >>> with parsing(__file__, "plan"):
        ...     {}["epochs"]
        Traceback (most recent call last):
        ...
        ValueError: ... holds no plan, or is damaged: KeyError('epochs').
    """
    try:
        check_regular(path)
        yield
    except OSError:
        raise
    except _WRONG as error:
        said, *_ = str(error).splitlines() or [""]
        if isinstance(error, ValueError) and str(path) in said:
            raise
        text = said.removesuffix(".") if isinstance(error, ValueError) else repr(error)[:200]
        raise ValueError(f"{path} holds no {what}, or is damaged: {text}.") from error
