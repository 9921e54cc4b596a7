"""The rules of the house: names, sizes, signatures, and tests that lie where their modules do."""

import ast
import tokenize
from collections import Counter, defaultdict
from itertools import chain
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
SOURCE = TESTS.parent / "src" / "slipstream"
FILES = sorted(SOURCE.rglob("*.py"))
TEST_FILES = sorted(p for p in TESTS.rglob("*.py") if "fixtures" not in p.parts)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
# Each is the same thing for either library, which has its own kind of callback; a training uses
# one of the two, and its users look for the same name.
CALLBACKS = {"RecordingCallback", "AveragingCallback", "OnlineModesCallback", "NowcastingCallback"}
NO_ROOMS = {"fixtures", "oracles"}  # runs of older versions; other ways to the same results


def parsed(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def public(nodes, kinds):
    return [n for n in nodes if isinstance(n, kinds) and not n.name.startswith("_")]


def test_no_two_public_classes_share_a_name():
    found = defaultdict(list)
    for path in FILES:
        for node in public(parsed(path).body, ast.ClassDef):
            found[node.name].append(path.stem)
    twice = {name: modules for name, modules in found.items() if len(modules) > 1}
    assert twice.keys() == CALLBACKS
    assert {frozenset(modules) for modules in twice.values()} == {
        frozenset(("lightning", "transformers"))
    }


def test_no_public_function_has_more_than_seven_parameters():
    def wide(owner, nodes):
        for node in nodes:
            if isinstance(node, FUNCTIONS) and (
                not node.name.startswith("_") or node.name == "__init__"
            ):
                given = node.args
                every = [*given.posonlyargs, *given.args, *given.kwonlyargs]
                if len([a for a in every if a.arg not in ("self", "cls")]) > 7:
                    yield f"{owner}.{node.name}"
            elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                yield from wide(f"{owner}.{node.name}", node.body)

    # The parameters of a command are its options.
    checked = (p for p in FILES if "cli" not in p.parts)
    assert not list(chain.from_iterable(wide(p.stem, parsed(p).body) for p in checked))


def test_modules_and_functions_are_short():
    long = []
    for path in FILES:
        if path.read_text(encoding="utf-8").count("\n") > 400:
            long.append(path.stem)
        for node in ast.walk(parsed(path)):
            if isinstance(node, FUNCTIONS):
                body = node.body[1:] if ast.get_docstring(node) is not None else node.body
                if body and body[-1].end_lineno - body[0].lineno + 1 > 50:
                    long.append(f"{path.stem}.{node.name}")
    assert not long


def test_tests_lie_where_their_modules_do():
    folders = {p.name for p in TESTS.iterdir() if p.is_dir() and not p.name.startswith((".", "__"))}
    rooms = {p.name for p in SOURCE.iterdir() if p.is_dir() and not p.name.startswith("__")}
    assert folders - NO_ROOMS == rooms
    for path in TESTS.glob("*/test_*.py"):
        if path.parent.name not in NO_ROOMS:
            room = f"slipstream.{path.parent.name}"
            assert room in path.read_text(encoding="utf-8") or path.parent.name == "cli", path
    # Without packages, two modules of one name cannot be imported side by side.
    assert max(Counter(p.name for p in TEST_FILES).values()) == 1


def test_commands_are_called_through_one_helper():
    others = {
        path.relative_to(TESTS).as_posix()
        for path in TEST_FILES
        if any(
            isinstance(node, ast.ImportFrom) and node.module == "typer.testing"
            for node in ast.walk(parsed(path))
        )
    }
    # The second makes commands of its own, of plans that the package does not have.
    assert others == {"commands.py", "cli/test_plan_options.py"}


def is_private(name):
    return any(part.startswith("_") and not part.startswith("__") for part in name.split("."))


def private_uses(tree):
    """The statements that name something private of a module or class of the package."""
    own, uses = set(), []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("slipstream"):
            own |= {a.asname or a.name for a in node.names}
            uses += [node] * any(is_private(f"{node.module}.{a.name}") for a in node.names)
        elif isinstance(node, ast.Import):
            own |= {a.asname or a.name for a in node.names if a.name.startswith("slipstream")}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            owner = node.value
            while isinstance(owner, ast.Attribute | ast.Call):  # also of what a class makes
                owner = owner.func if isinstance(owner, ast.Call) else owner.value
            uses += [node] * (isinstance(owner, ast.Name) and owner.id in own)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".setattr"):
            first, *rest = (ast.unparse(a).strip("'") for a in node.args)
            if first.split(".")[0] in own:
                uses += [node] * (bool(rest) and is_private(rest[0]))
            elif first.startswith("slipstream."):
                uses += [node] * is_private(first)
    return uses


@pytest.mark.parametrize("path", TEST_FILES, ids=lambda p: str(p.relative_to(TESTS)))
def test_private_names_are_used_only_where_a_comment_says_why(path):
    with tokenize.open(path) as file:
        tokens = list(tokenize.generate_tokens(file.readline))
    explained = {t.start[0] for t in tokens if t.type == tokenize.COMMENT}
    explained |= {line + 1 for line in explained}
    tree = parsed(path)
    statements = [n for n in ast.walk(tree) if isinstance(n, ast.stmt) and not hasattr(n, "body")]
    for use in private_uses(tree):
        around = [s for s in statements if s.lineno <= use.lineno <= s.end_lineno] or [use]
        lines = range(around[-1].lineno, around[-1].end_lineno + 1)
        assert explained.intersection(lines), f"line {use.lineno}: {ast.unparse(use)}"
