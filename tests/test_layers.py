"""A module imports only from lower layers or its own folder, and no cycle exists."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "slipstream"
LAYERS = {
    "deprecated": 0,
    "lazy_names": 0,
    "sharded": 0,
    "weights": 0,
    "pretrained": 0,
    "evaluation": 0,
    "storage": 0,
    "trajectory": 1,
    "symmetry": 1,
    "training": 2,
    "matching": 2,
    "averaging": 3,
    "modes": 2,
    "dynamics": 2,
    "transfer": 3,
    "porting": 4,
    "landscape": 3,
    "testbed": 3,
    "integrations": 4,
    "federated": 4,
    "recipes": 5,
    "comparison": 5,
    "named_task": 6,
    "report": 7,
    "demo": 8,
    "cli": 9,
}


def room(module: str) -> str:
    return module.split(".")[1]


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("slipstream."):
            found.add(str(node.module))
        elif isinstance(node, ast.Import):
            found.update(a.name for a in node.names if a.name.startswith("slipstream."))
    return found


FILES = [p for p in SOURCE.rglob("*.py") if p.parent != SOURCE or p.stem in LAYERS]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_only_lower_layers_or_its_own_folder(path):
    own = path.relative_to(SOURCE).with_suffix("").parts[0]
    assert own in LAYERS, f"{own} has no layer"
    for module in imports(path):
        other = room(module)
        assert other == own or LAYERS[other] < LAYERS[own] or LAYERS[own] == 0 == LAYERS[other], (
            f"{own} (layer {LAYERS[own]}) imports {module} (layer {LAYERS[other]})"
        )


def test_no_module_imports_itself_through_others():
    graph = {
        "slipstream." + ".".join(p.relative_to(SOURCE).with_suffix("").parts): imports(p)
        for p in FILES
    }

    def visit(module, trail):
        assert module not in trail, f"cycle: {' -> '.join([*trail, module])}"
        for other in graph.get(module, ()):
            visit(other, [*trail, module])

    for module in graph:
        visit(module, [])
