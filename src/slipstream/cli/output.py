"""What commands write to the standard output: lines for people, or JSON for machines."""

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import typer
from rich.console import Console
from rich.table import Table


def write_json(value: Any) -> None:
    """Write JSON, as of `json_text`."""
    typer.echo(json_text(value))


def json_text(value: Any) -> str:
    """Return JSON; what is no finite number becomes null, as JSON has none of these."""
    return json.dumps(_finite(value), indent=1, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """Write a table, all to the right."""
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def in_words(metrics: Mapping[str, float]) -> str:
    """Return metrics in a line.

    Example:
        >>> in_words({"loss": 0.25, "accuracy": 0.9})
        'loss 0.2500, accuracy 0.9000'
    """
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
