"""Points that have been computed, kept in a file so that an interrupted landscape resumes."""

import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from slipstream.storage.reading import parsing
from slipstream.storage.writing import write_whole

FORMAT = "slipstream landscape 1"
_PAUSE = 2.0  # seconds between two writes


class PointStore:
    """The values of a given count of points, filled in order; in a file if one is named."""

    def __init__(
        self, path: Path | None, *, metrics: Iterable[str], count: int, inputs: Mapping[str, str]
    ) -> None:
        self._path, self._inputs = path, dict(inputs)
        empty = torch.full((count,), torch.nan, dtype=torch.float64)
        self.values = {name: empty.clone() for name in metrics}
        self.done = 0
        self._written = time.monotonic()
        if path is not None and path.exists():
            self._read(path)
        else:
            self.save()  # a missing folder should be reported before the work

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Keep the values of the next points, (points,) by metric."""
        stop = self.done
        for name, value in values.items():
            stop = self.done + len(value)
            self.values[name][self.done : stop] = value
        self.done = stop
        if time.monotonic() - self._written > _PAUSE:
            self.save()

    def save(self) -> None:
        """Write what there is by now."""
        if self._path is None:
            return
        facts = {"format": FORMAT, "inputs": json.dumps(self._inputs), "done": str(self.done)}
        write_whole(self._path, [save(self.values, facts)])
        self._written = time.monotonic()

    def _read(self, path: Path) -> None:
        with parsing(path, "computed points"):
            with safe_open(path, framework="pt") as file:
                facts = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in list(file.keys())}
            if facts.get("format") != FORMAT:
                raise ValueError("give another path to resume from")
            before, done = dict(json.loads(facts["inputs"])), int(facts["done"])
        if changed := [name for name in self._inputs if before.get(name) != self._inputs[name]]:
            raise ValueError(
                f"The points in {path} were computed with other {' and other '.join(changed)}: "
                "resume with the same, or give another path."
            )
        for name, empty in self.values.items():
            value = tensors.get(name, torch.empty(0))
            fits = (value.shape, value.dtype) == (empty.shape, empty.dtype)
            if not fits or not 0 <= done <= len(value):
                raise ValueError(f"{path} is damaged: its {name} are missing, or not all there.")
        self.done, self.values = done, {name: tensors[name] for name in self.values}
