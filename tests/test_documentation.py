"""The documentation is true: its code runs, its links lead somewhere, its lists are complete."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer

import slipstream
from commands import slipstream as run_command
from slipstream.cli.app import app

ROOT = Path(__file__).parents[1]
TOP = [ROOT / f"{name}.md" for name in ("README", "CHANGELOG", "CONTRIBUTING", "SECURITY")]
BUILT = ("_build", "results")  # by `make docs`
DOCS = [
    p for p in sorted((ROOT / "docs").rglob("*.md")) if p.relative_to(ROOT).parts[1] not in BUILT
]
PAGES = [*TOP, *DOCS]
RESULTS = ROOT / "benchmarks" / "results"


def commands_of(group, before=""):
    """Every command by the words that call it: those of a group have two."""
    found = {}
    for name, command in group.commands.items():
        grouped = hasattr(command, "commands")
        found |= commands_of(command, f"{name} ") if grouped else {before + name: command}
    return found


COMMANDS = commands_of(typer.main.get_command(app))
REMARK = re.compile(r"^(\S.*?)  # (\[.*\]|True|False|[\d.]+)(?=$|: )", flags=re.MULTILINE)


def text_of(page):
    return page.read_text(encoding="utf-8")


def fences(page, kind):
    """The contents of the fenced blocks of a kind: ```python runs, ```python no-run does not."""
    return re.findall(rf"^```{kind}\n(.*?)^```", text_of(page), flags=re.DOTALL | re.MULTILINE)


def name_of(page):
    return str(page.relative_to(ROOT))


def shell_lines(page):
    """The lines that call slipstream, continued lines joined."""
    joined = "\n".join(fences(page, "console")).replace("\\\n", " ")
    return [shlex.split(line) for line in joined.splitlines() if line.startswith("slipstream ")]


# The code of the README has a test of its own.
WITH_CODE = [page for page in PAGES[1:] if fences(page, "python")]
WITH_COMMANDS = [page for page in PAGES if shell_lines(page)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder to work in; modules that a page writes there are forgotten afterwards."""
    before = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.parametrize("page", WITH_CODE, ids=name_of)
def test_the_code_of_a_page_runs_and_its_remarks_are_true(page, folder):
    names = {"__name__": "page"}
    torch.manual_seed(0)
    for file, content in re.findall(r"^```json (\S+)\n(.*?)^```", text_of(page), re.S | re.M):
        (folder / file).write_text(content, encoding="utf-8")
    for block in fences(page, "python"):
        exec(compile(block, name_of(page), "exec"), names)
        for expression, value in REMARK.findall(block):
            assert eval(expression, names) == eval(value, {"tensor": torch.tensor})


def test_the_example_of_the_readme_transfers_what_was_learned(folder, capsys):
    (block,) = fences(ROOT / "README.md", "python")
    names = {}
    exec(block, names)
    assert eval(capsys.readouterr().out)["accuracy"] > 0.9
    start = slipstream.evaluate(
        names["target"], {"accuracy": slipstream.accuracy}, data=names["test"]
    )
    assert start["accuracy"] < 0.3


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=name_of)
def test_commands_and_options_exist(page):
    for _, *words in shell_lines(page):
        name = " ".join(words[:2]) if " ".join(words[:2]) in COMMANDS else words[0]
        assert name in COMMANDS, f"there is no command {name}"
        known = {option for parameter in COMMANDS[name].params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known | {"--help"}


def test_the_session_of_the_readme_runs(folder):
    for _, *words in shell_lines(ROOT / "README.md"):
        if words[0] == "train":
            words += ["--epochs", "3"]
        run_command(*words)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_help_with_an_example(name):
    done = run_command(*name.split(), "--help", env={"COLUMNS": "200"})
    assert f"Example: slipstream {name}" in done.output


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    prose = re.sub(r"^```.*?^```", "", text_of(page), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        if there.parent == RESULTS and (ROOT / "benchmarks" / f"{there.stem}.py").is_file():
            continue  # that script makes it
        assert there.exists(), f"{target} leads nowhere"
        if anchor:
            assert anchor in anchors(there), f"{target}: there is no such heading"


def anchors(page):
    headings = re.findall(r"^#+ (.*)$", text_of(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_is_in_the_list():
    listed = set(re.findall(r"\]\(([^)\s]+\.md)\)", text_of(ROOT / "docs" / "README.md")))
    pages = {str(page.relative_to(ROOT / "docs")) for page in DOCS}
    api = {page for page in pages if page.startswith("api/")}  # listed by docs/api/index.md
    assert pages - api - {"README.md", "index.md"} <= listed


def test_the_reference_lists_every_public_name_once():
    rows = re.findall(r"^\| `(\w+)", text_of(ROOT / "docs" / "reference.md"), flags=re.MULTILINE)
    assert sorted(rows) == sorted(slipstream.__all__)


def test_the_architecture_names_every_room_that_there_is():
    page = text_of(ROOT / "docs" / "architecture.md")
    source = ROOT / "src" / "slipstream"
    rooms = {path.name for path in source.iterdir() if (path / "__init__.py").is_file()}
    rooms |= {path.name for path in source.glob("*.py")}
    assert not [room for room in rooms if not re.search(rf"^ *{re.escape(room)}\b", page, re.M)]


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted((ROOT / "examples").glob("*.py")), ids=name_of)
def test_an_example_runs(script, tmp_path):
    done = subprocess.run(
        [sys.executable, script],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    assert "accuracy" in done.stdout
