"""Whose result a chart shows: its name, colour, and what its steps count."""

from dataclasses import dataclass

from slipstream.report.palette import BLUE


@dataclass(frozen=True)
class Subject:
    """A run, as charts name it."""

    name: str = ""  # empty where it is the only one
    colour: str = BLUE
    clock: str = "step"  # what the steps count: `stage` in a transferred run
    run: int | None = None  # its number on a page

    def titled(self, text: str) -> str:
        """Return a title that says whose chart it is, where there are others."""
        return f"{text}: {self.name}" if self.name else text
