"""The table of the README, from the results of `transfer.py methods`.

python benchmarks/summary.py            prints it
python benchmarks/summary.py README.md  puts it between the marks of a page
"""

import json
import re
import sys
from pathlib import Path

from common import table

RESULTS = Path(__file__).parent / "results"
CASES = {
    "digits-2": "digits, MLP 1 x 512",
    "digits-3": "digits, MLP 2 x 512",
    "mnist-mlp": "MNIST, MLP 1 x 1024",
    "mnist-conv": "MNIST, conv 64-128-256",
    "mnist-conv-bn": "MNIST, conv 32-64-128, BatchNorm",
    "cifar10-conv8": "CIFAR-10, narrow Conv8, BatchNorm",
    "cifar10-resnet18": "CIFAR-10, narrow ResNet-18",
}
ROWS = {
    "naive": "naive",
    "fgmt": "FGMT",
    "fgmt-signed": "FGMT + signs",
    "naive-signed": "signs, no permutation",
    "adam": "Adam, as many gradients",
    "oracle": "oracle",
    "trained target": "trained target",
}


def summary() -> str:
    """Return the table: a row for each case that has results."""
    rows = []
    for case, title in CASES.items():
        path = RESULTS / f"transfer_{case}.json"
        if path.is_file():
            found = json.loads(path.read_text(encoding="utf-8"))["rows"]
            pairs = len(next(iter(found.values())))
            cells = [_cell(found, name) for name in ROWS]
            rows.append([f"{title} ({pairs} pair{'s' * (pairs > 1)})", *cells])
    return table(["", *ROWS.values()], rows)


def _cell(found: dict[str, list[dict[str, float]]], name: str) -> str:
    if name == "adam":
        gradients = found["fgmt-signed"][0]["gradients"]
        name = f"adam, {gradients} steps"
    values = [row["test"] for row in found[name]]
    return f"{sum(values) / len(values):.3f}"


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
