"""How injected faults are counted."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Result:
    """What became of one kind of fault."""

    kind: str
    injected: int
    noticed: int  # refused with a one-line error, or stopped in the middle
    faults: int
    examples: tuple[str, ...]  # of faults


class Count:
    """Counts the faults of one kind."""

    def __init__(self, kind: str) -> None:
        self.kind, self.injected, self.noticed, self.found = kind, 0, 0, list[str]()

    def add(self, *, noticed: bool, fault: str = "") -> None:
        """Count one; `fault` says what is wrong."""
        self.injected += 1
        self.noticed += noticed
        self.found += [fault] if fault else []

    def result(self) -> Result:
        """Return the counts."""
        return Result(
            self.kind, self.injected, self.noticed, len(self.found), tuple(self.found[:5])
        )


def forked(work: Callable[[], str], *, kill_after: float | None = None) -> tuple[str, int]:
    """Return what `work` returned in a process of its own, and that process's exit code."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        os.close(reader)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        os.write(writer, work().encode())
        os._exit(0)
    os.close(writer)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    with os.fdopen(reader, "rb") as told:
        text = told.read().decode()
    return text, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def outcome(work: Callable[[], object]) -> tuple[object, str, bool]:
    """What came of it: the result, what is wrong with the error, and whether there was one."""
    try:
        return work(), "", False
    except (OSError, ValueError) as error:
        return None, "an error of many lines" if "\n" in str(error).strip() else "", True
    except Exception as error:  # ruff: ignore[blind-except] - any other kind is a fault
        return None, repr(error)[:200], True
