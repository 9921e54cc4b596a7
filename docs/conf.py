"""The documentation site: `make docs` builds it into docs/_build/html."""

import re
import shutil
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE.parent / "benchmarks" / "results"

project = "Slipstream"
author = "Slipstream developers"
project_copyright = "Slipstream developers"
version = release = version_of("slipstream")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build", "README.md"]
myst_heading_anchors = 4

html_theme = "furo"
html_title = "Slipstream"
html_show_sphinx = False

default_role = "py:obj"  # a name in backticks links to what it names
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
suppress_warnings = ["ref.python"]  # a name that two classes have, such as `weights`

# The benchmark tables lie outside this folder; the site shows copies of them.
shutil.rmtree(HERE / "results", ignore_errors=True)
(HERE / "results").mkdir()
for table in RESULTS.glob("*.md"):
    text = table.read_text(encoding="utf-8")
    title = "" if text.startswith("# ") else f"# {table.stem.replace('_', ' ')}\n\n"
    (HERE / "results" / table.name).write_text(title + text, encoding="utf-8")
(HERE / "results" / "index.md").write_text(
    "# Benchmark results\n\n```{toctree}\n:glob:\n\n*\n```\n", encoding="utf-8"
)


def lead_inside(_: object, __: str, source: list[str]) -> None:
    """Let links to the README and the benchmark tables lead to their pages on the site."""
    text = re.sub(r"\]\((?:\.\./)+benchmarks/results/?\)", "](/results/index.md)", source[0])
    text = re.sub(r"\]\((?:\.\./)+benchmarks/results/", "](/results/", text)
    source[0] = re.sub(r"\]\((?:\.\./)*README\.md(#[\w-]+)?\)", "](/index.md)", text)


def escape_formulas(*event: Any) -> None:
    """Let asterisks and bars in a docstring be themselves, outside code."""
    lines: list[str] = event[-1]
    for number, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...")):
            parts = re.split(r"(`[^`]*`)", line)
            parts[::2] = [re.sub(r"(?<!\\)([*|])", r"\\\1", part) for part in parts[::2]]
            lines[number] = "".join(parts)


def setup(app: Any) -> None:
    """Connect both to the build."""
    app.connect("source-read", lead_inside)
    app.connect("autodoc-process-docstring", escape_formulas, priority=100)
