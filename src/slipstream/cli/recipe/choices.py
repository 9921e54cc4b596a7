"""Options that several recipes have."""

from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

if TYPE_CHECKING:
    from torch import Tensor, nn

START = "A run folder whose last snapshot is the start; a transferred run works too."
Plan = TypeVar("Plan")

Start = Annotated[Path | None, typer.Option(help=START, show_default="a new initialisation")]
Controls = Annotated[bool, typer.Option(help="Also train simple baselines, and compare.")]


def seeded(plan: Plan, seed: int) -> Plan:
    """Return a recipe's plan with one seed for all that it draws."""
    held: Any = plan
    changed: dict[str, Any] = {"descent": replace(held.descent, seed=seed)}
    if "seed" in {field.name for field in fields(held)}:
        changed["seed"] = seed
    made: Plan = replace(held, **changed)
    return made


def open_start(model: "nn.Module", start: Path | None) -> "dict[str, Tensor] | None":
    """Return the last snapshot of a run folder, None without one."""
    from slipstream.cli.loading import open_weights

    return None if start is None else open_weights(model, run=start, step=None, file=None)
