"""What is shown, as plain data: drawn by the page's script, by matplotlib, or written as CSV.

A section answers one question with charts, tables and notes. None of them knows how it is drawn.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal

from torch import Tensor

Numbers = Sequence[float | None]  # None leaves a gap
Scale = Literal["linear", "log", "root"]
_DIGITS = 6  # significant; float32 holds seven


@dataclass(frozen=True)
class Series:
    """A line of a chart."""

    name: str  # written beside the end of the line
    x: Numbers
    y: Numbers
    colour: str
    low: Numbers = ()  # the band around it
    high: Numbers = ()
    dashed: bool = False
    steps: Sequence[int] = ()  # of the points, where x is not a step
    run: int | None = None  # the number of its run on the page


@dataclass(frozen=True)
class Mark:
    """A named point."""

    name: str
    x: float
    y: float


@dataclass(frozen=True)
class _Titled:
    """What all charts have."""

    key: str  # what `slipstream plot` calls it
    title: str
    reading: str  # one sentence: how to read it


@dataclass(frozen=True)
class _WithAxes(_Titled):
    x_label: str
    y_label: str


@dataclass(frozen=True)
class Lines(_WithAxes):
    """Lines over a common axis."""

    series: Sequence[Series]
    log: bool = False  # the y axis
    square: bool = False  # x and y in the same units: a path
    borders: Numbers = ()  # vertical lines
    marks: Sequence[Mark] = ()
    y_range: tuple[float, float] | None = None  # as far as the data reach if None
    run: int | None = None  # None if it is of several
    kind: str = "lines"


@dataclass(frozen=True)
class Panels(_Titled):
    """Small charts with the same axes."""

    panels: Sequence[Lines]
    run: int | None = None
    kind: str = "panels"


@dataclass(frozen=True)
class Colours:
    """What the colours of a chart mean: brighter is more."""

    label: str
    low: float  # the darkest; what is below has its colour
    high: float
    ticks: Sequence[float]  # values, far enough apart for their labels
    scale: Scale = "linear"  # root: of the distance from `low`, finer near it


@dataclass(frozen=True)
class HeatMap(_WithAxes):
    """A matrix of values as colours."""

    colours: Colours
    columns: Sequence[float | str]
    rows: Sequence[str]  # from the top; an empty name is not written
    values: Sequence[Numbers]  # [row][column]
    written: bool = False  # whether the values stand in the cells
    square: bool = False  # whether rows and columns are the same things
    borders: Numbers = ()  # vertical lines
    row_borders: Numbers = ()  # horizontal ones, by the number of the row
    run: int | None = None
    kind: str = "heatmap"


@dataclass(frozen=True)
class Contours(_WithAxes):
    """A quantity over a plane, with a path through it."""

    colours: Colours
    x: Numbers
    y: Numbers
    values: Sequence[Numbers]  # [y][x]; what is not finite has the brightest colour
    path: Sequence[tuple[float, float]] = ()
    steps: Sequence[int] = ()  # of the path
    marks: Sequence[Mark] = ()
    square: bool = False  # x and y in the same units
    run: int | None = None
    kind: str = "contours"


@dataclass(frozen=True)
class Cell:
    """A cell of a table, and what it is sorted by."""

    text: str
    value: float | None = None  # None sorts by the text


@dataclass(frozen=True)
class Table:
    """A table that can be sorted and copied."""

    title: str
    reading: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    folded: bool = False  # whether a reader opens it first
    run: int | None = None
    kind: str = "table"


@dataclass(frozen=True)
class Note:
    """A sentence: a summary, or why there is nothing to draw."""

    text: str
    command: str = ""  # what to type to get it
    lead: bool = False  # whether it sums up what follows
    run: int | None = None
    kind: str = "note"


Chart = Lines | Panels | HeatMap | Contours
Item = Chart | Table | Note


@dataclass(frozen=True)
class Section:
    """A question and its answer."""

    key: str
    question: str
    items: Sequence[Item]


def plain(value: Any) -> Any:
    """Return content as data for JSON: floats rounded to six digits, NaN and infinity as None.

    Args:
        value: Content, tensors, or sequences of them.

    Returns:
        Dictionaries, lists, texts, numbers and None.

    Example:
        >>> plain((1 / 3, float("nan"), 12345678, Mark("end", 0.0, 2.0)))
        [0.333333, None, 12345678, {'name': 'end', 'x': 0.0, 'y': 2.0}]
    """
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Tensor):
        return plain(value.tolist())
    if isinstance(value, dict):
        return {name: plain(entry) for name, entry in value.items()}
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    return value
