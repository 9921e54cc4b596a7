"""The page of commands lists them and their shared options as `--help` does."""

import re
from pathlib import Path

import pytest
import typer.main

from commands import slipstream
from slipstream.cli.app import app

PAGE = (Path(__file__).parents[2] / "docs" / "commands.md").read_text(encoding="utf-8")


def leaves(command, name=""):
    for own, inner in getattr(command, "commands", {}).items():
        yield from leaves(inner, f"{name} {own}".strip())
    if not hasattr(command, "commands"):
        yield name, command


COMMANDS = dict(leaves(typer.main.get_command(app)))
VISIBLE = {
    name: {flag for p in command.params if not getattr(p, "hidden", False) for flag in p.opts}
    for name, command in COMMANDS.items()
}
SHARED = (
    "--out", "--figure", "--overwrite", "--resume", "--seed", "--device", "--split", "--model",
    "--data", "--loss", "--metrics", "--width", "--option", "--task", "--json",
)  # fmt: skip


def rows(heading):
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    cells = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in cells[2:]]


def test_every_command_is_listed_with_what_it_does():
    listed = {row[0].strip("`").removeprefix("slipstream "): row[1] for row in rows("Commands")}
    said = {name: command.help.split("\n")[0] for name, command in COMMANDS.items()}
    assert listed == said


def test_every_shared_option_is_listed_with_its_commands():
    listed = {re.search(r"--[\w-]+", row[0])[0]: row[2] for row in rows("Shared options")}
    assert tuple(listed) == SHARED
    for flag, text in listed.items():
        have = [name for name in COMMANDS if flag in VISIBLE[name]]
        expected = "all" if len(have) == len(COMMANDS) else ", ".join(sorted(have))
        if text.startswith("all but "):
            lack = sorted(set(COMMANDS) - set(have))
            expected = "all but " + ", ".join(lack)
        assert text == expected, flag


@pytest.mark.parametrize("name", COMMANDS)
def test_shared_options_are_spelled_alike(name):
    for parameter in COMMANDS[name].params:
        if "--out" in parameter.opts:
            assert "-o" in parameter.opts
        if "--resume" in parameter.opts or "--overwrite" in parameter.opts:
            assert parameter.is_flag
            assert not parameter.secondary_opts


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_is_in_plain_words_and_has_an_example(name):
    text = " ".join(slipstream(*name.split(), "--help").stdout.replace("│", " ").split())
    assert f"Example: slipstream {name}" in text
    for words in ("drawn anew", "go on", "told", "lays over", "noughts", "dear", "overwrite="):
        assert not re.search(rf"\b{words}\b", text), words
    assert not re.search(r"\bOf the\b", text), "a sentence about an option begins with its noun"


def test_version_is_printed():
    assert re.fullmatch(r"slipstream \d+\.\d+\.\d+\S*\n", slipstream("--version").stdout)
