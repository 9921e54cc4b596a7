"""Options from the fields of plans: names, help, choices, defaults, and messages in flags."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
import typer
from typer.testing import CliRunner

from slipstream.cli.plan_options import Adjusted, with_plan_options
from slipstream.storage.plan_fields import option


@dataclass(frozen=True)
class Inner:
    lr: float = option(0.1, "Learning rate.")
    hidden: int = 3  # made without `option`: not on the command line

    def __post_init__(self):
        if self.lr <= 0:
            raise ValueError(f"lr must be above 0, got {self.lr}.")


@dataclass(frozen=True)
class Plan:
    method: Literal["fast", "exact"] = option("fast", "How.")
    batches_per_gradient: int = option(1, "Batches for each gradient.", minimum=1)
    warm: bool = option(True, "Whether to start warm.")
    cold: bool = option(False, "Whether to start cold.")
    exclude: tuple[str, ...] = option((), "Patterns.")
    shares: Mapping[str, float] = option(factory=dict, help="PATTERN=SHARE.")
    rate: float | None = option(None, "A rate.", shown="of the method")
    inner: Inner = option(Inner(lr=0.5), "How it is trained.")
    seed: int = option(0, "Seed.")


def run(*arguments, code=0, adjusted=Adjusted()):  # ruff: ignore[function-call-in-default-argument]
    found = []

    @with_plan_options
    def command(run: str, plan: Annotated[Plan, adjusted], json: bool = False) -> None:
        found.append((run, plan, json))
        if run == "wrong":
            raise ValueError("exclude: nothing is left. Pass overwrite=True or rate=0.5.")

    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, (result.output, result.exception)
    return (found[0] if found else None), result


def test_defaults_are_those_of_the_plan():
    assert run("folder")[0] == ("folder", Plan(), False)


def test_each_kind_of_field_is_read():
    text = (
        "folder --method exact --batches-per-gradient 2 --no-warm --cold --exclude a --exclude b.* "
        "--shares head.*=0.2 --rate 0.1 --lr 2 --seed 7 --json"
    )
    expected = Plan(
        "exact", 2, False, True, ("a", "b.*"), {"head.*": 0.2}, 0.1, Inner(lr=2.0), seed=7
    )
    assert run(*text.split())[0] == ("folder", expected, True)


def test_what_is_inside_an_inner_plan_stays_as_its_default_has_it():
    @dataclass(frozen=True)
    class Outer:
        inner: Inner = option(Inner(hidden=9), "Inner.")

    @with_plan_options
    def command(plan: Outer) -> Outer:
        return plan

    assert command(lr=0.25).inner == Inner(0.25, hidden=9)


def test_fields_can_be_renamed_and_skipped():
    adjusted = Adjusted(("seed", "cold"), {"batches_per_gradient": "batches"})
    assert run("folder", "--batches", "4", adjusted=adjusted)[0][1] == Plan(batches_per_gradient=4)
    assert "--seed" not in run("--help", adjusted=adjusted)[1].output
    run("folder", "--seed", "1", code=2, adjusted=adjusted)


def test_help_says_what_the_fields_say():
    text = " ".join(run("--help")[1].output.replace("│", " ").split())
    for part in ("How.", "fast|exact", "[default: fast]", "of the method", "x>=1"):
        assert part in text
    assert "--hidden" not in text
    assert "--no-warm" in text
    assert "--no-cold" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("folder", "--lr", "0"), "--lr must be above 0, got 0.0."),
        (("wrong",), "--exclude: nothing is left. Pass overwrite=True or --rate 0.5."),
        (("folder", "--shares", "head"), "--shares must be NAME=VALUE"),
    ],
)
def test_messages_name_the_options(arguments, message):
    assert message in str(run(*arguments, code=1)[1].exception)


def test_a_missing_file_is_named_by_its_option():
    @with_plan_options
    def command(to_base: str) -> None:
        raise FileNotFoundError("to_base c does not exist.")

    with pytest.raises(FileNotFoundError, match="--to-base c does not exist"):
        command(to_base="c")


def test_two_options_of_one_name_are_refused():
    with pytest.raises(TypeError, match=r"several options .'seed'"):

        @with_plan_options
        def command(plan: Plan, seed: int = 1) -> None:
            """Twice."""
