"""The state of an unfinished training in a file, and whose it is."""

import io
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from slipstream.storage.writing import write_whole

SHARE = 0.05  # of the time, at most, goes into the file
LONG = 60  # characters: a digest says nothing to anybody


class ResumableState:
    """Keeps a state in a file, and gives it only to the training that it belongs to."""

    def __init__(
        self,
        path: str | Path,
        identity: Mapping[str, Any],
        *,
        before: Mapping[str, Any] | None = None,
    ) -> None:
        """Name the file and what makes the training.

        Args:
            path: The file; made when there is something to keep.
            identity: What must be the same to resume, as plain data.
            before: What a file stands for that was written before a field existed: the last part
                of its name to the value.
        """
        self.path = Path(path)
        self._identity, self._before = dict(_flat(identity)), dict(before or {})
        self._began, self._spent = time.monotonic(), 0.0

    def read(self) -> dict[str, Any] | None:
        """Return the state to resume from, or None if there is none.

        Raises:
            ValueError: If the file is something else, or of another training.
        """
        if not self.path.exists():
            return None
        try:
            kept = torch.load(self.path, map_location="cpu", weights_only=True)
            identity, state = kept["identity"], kept["state"]
        except Exception as error:
            said, *_ = str(error).splitlines() or [type(error).__name__]
            raise ValueError(f"{self.path} holds no state to resume from: {said}") from error
        unknown = object()
        for name, value in self._identity.items():
            earlier = self._before.get(name.rpartition(".")[2], unknown)
            if identity.get(name, earlier) != value:
                raise ValueError(
                    f"{self.path} is of another training: {_differs(name, identity, value)}. "
                    "Resume it with the same settings, or give another path."
                )
        return dict(state)

    def offer(self, state: Callable[[], dict[str, Any]], *, last: bool = False) -> None:
        """Write the state, unless that has taken too much of the time so far.

        Args:
            state: Called only if it is written.
            last: Whether to write it in any case.
        """
        began = time.monotonic()
        if not last and self._spent > SHARE * (began - self._began):
            return
        buffer = io.BytesIO()
        torch.save({"identity": self._identity, "state": state()}, buffer)
        write_whole(self.path, [buffer.getbuffer()])
        self._spent += time.monotonic() - began


def _differs(name: str, before: Mapping[str, Any], now: Any) -> str:
    if name not in before:
        return f"it has no {name}"
    if len(str(now)) > LONG:
        return f"its {name} is another"
    return f"its {name} is {before[name]}, here it is {now}"


def _flat(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value by its own name, `plan.descent.lr`, so that a message can name it."""
    for name, value in data.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
