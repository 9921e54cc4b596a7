"""The table of the README, from the results of `transfer.py methods`.

python benchmarks/summary.py            prints it
python benchmarks/summary.py README.md  puts it between the marks of a page
"""

import json
import re
import statistics
import sys
from pathlib import Path
from typing import Any

from common import table
from transfer_methods import DEFAULT, WITHOUT_SOURCE

RESULTS = Path(__file__).parent / "results"
CASES = {
    "digits-2": "digits, MLP 1 x 512",
    "digits-3": "digits, MLP 2 x 512",
    "mnist-mlp": "MNIST, MLP 1 x 1024",
    "mnist-conv": "MNIST, conv 64-128-256",
    "mnist-conv-bn": "MNIST, conv 32-64-128, BatchNorm",
    "mnist-vit": "MNIST, ViT",
    "cifar10-conv8": "CIFAR-10, narrow Conv8, BatchNorm",
    "cifar10-resnet18": "CIFAR-10, narrow ResNet-18",
    "text-gpt": "characters, GPT (loss)",
    "text-gpt-large": "characters, larger GPT (loss)",
}
HEADER = (
    *("", "pairs", "naive", "activations", "gradients", "default", "best rival"),
    *("shuffled source", "trained target"),
)


def summary() -> str:
    """Return the table: rows for each case that has results, at two numbers of gradients."""
    rows = []
    for case, title in CASES.items():
        path = RESULTS / f"transfer_{case}.json"
        if path.is_file():
            found = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(found["rows"], list):  # results of 0.1 have other rows
                rows += _rows(title, found)
    return table(HEADER, rows)


def _rows(title: str, found: dict[str, Any]) -> list[list[str]]:
    budgets, sign = found["case"]["budgets"], 1 if found["case"]["metric"] == "accuracy" else -1
    rows = []
    for gradients in (budgets[1], budgets[-1]):
        known = _complete(found, gradients)
        if not known:
            continue
        own = _values(found, DEFAULT, gradients, "test", known)
        rivals = {n: _values(found, n, gradients, "validation", known) for n in WITHOUT_SOURCE}
        best = max(rivals, key=lambda name: sign * statistics.fmean(rivals[name]))
        cells = [
            *(_values(found, name, 0, "test", known) for name in ("naive", "activations")),
            own,
            _values(found, best, gradients, "test", known),
            _values(found, "shuffled-signed", gradients, "test", known),
            _values(found, "trained target", 0, "test", known),
        ]
        naive, unsigned, default, rival, shuffled, trained = (_mean(values) for values in cells)
        start = [title if not rows else "", str(len(own)), naive, unsigned]
        rows.append([*start, str(gradients), default, f"{rival} ({best})", shuffled, trained])
    return rows


def _complete(found: dict[str, Any], budget: int) -> set[int]:
    """The pairs on which the default and every rival are known: the best may be the last."""
    names = (DEFAULT, *WITHOUT_SOURCE)
    return set.intersection(
        *(
            {r["pair"] for r in found["rows"] if (r["name"], r["budget"]) == (name, budget)}
            for name in names
        )
    )


def _values(
    found: dict[str, Any], name: str, budget: int, split: str, pairs: set[int]
) -> list[float]:
    return [
        row[split]
        for row in found["rows"]
        if (row["name"], row["budget"]) == (name, budget) and row["pair"] in pairs
    ]


def _mean(values: list[float]) -> str:
    return f"{statistics.fmean(values):.3f}" if values else ""


def main() -> None:
    """Print the table, or put it into a page."""
    text = summary()
    if len(sys.argv) == 1:
        print(text)
        return
    page = Path(sys.argv[1])
    marks = re.compile(r"(<!-- results -->\n).*?(<!-- /results -->)", re.DOTALL)
    old = page.read_text(encoding="utf-8")
    page.write_text(marks.sub(lambda m: f"{m[1]}{text}\n{m[2]}", old), encoding="utf-8")


if __name__ == "__main__":
    main()
