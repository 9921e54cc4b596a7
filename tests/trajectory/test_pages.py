"""The code on the pages about snapshots and trajectories runs."""

import re
from pathlib import Path

import pytest
import torch

DOCS = Path(__file__).parents[2] / "docs"
PAGES = [
    "concepts/snapshot.md",
    "concepts/trajectory.md",
    "how-to/record-your-own-loop.md",
    "how-to/bring-your-checkpoints.md",
]


@pytest.mark.parametrize("page", PAGES)
def test_the_code_runs_and_its_remarks_are_true(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    text = (DOCS / page).read_text(encoding="utf-8")
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        exec(block, names)
        for expression, value in re.findall(r"^(\S.*?)  # (\[.*\]|\d+)", block, flags=re.MULTILINE):
            assert eval(expression, names) == eval(value, {"tensor": torch.tensor})
