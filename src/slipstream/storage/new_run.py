"""Where a run is to be recorded, as plain data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class NewRun:
    """The run folder to make, and what to do if it is there already."""

    path: str | Path
    configuration: Mapping[str, Any] = field(default_factory=dict)  # plain data, kept in run.json
    overwrite: bool = False  # delete the snapshots of a run that is there
    resume: bool = False  # continue an interrupted one; begins if there is none

    @property
    def folder(self) -> Path:
        """The folder."""
        return Path(self.path)

    @classmethod
    def of(cls, given: "str | Path | NewRun") -> "NewRun":
        """Return it for a path, or as it is.

        Example:
            >>> NewRun.of("run")
            NewRun(path='run', configuration={}, overwrite=False, resume=False)
        """
        return given if isinstance(given, NewRun) else cls(given)
