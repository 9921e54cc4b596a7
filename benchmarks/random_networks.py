"""Neuron groups of random networks: how many are found, and whether one of them is wrong.

Run: python benchmarks/random_networks.py --count 2000 --output benchmarks/results/random_networks
     python benchmarks/random_networks.py --count 20

Every network is drawn from its seed: layers, views, joins, tied weights, several outputs, heads of
training only. Its groups are checked with other weights, inputs and sizes, in float64, in both
modes. Seeds that are in the output already are kept, so that many can be measured in parts.
"""

import argparse
import json
import logging
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from common import machine, machine_line, table
from oracles.random_networks import largest_error, random_network
from slipstream.symmetry.tracing import find_neuron_groups

WRONG = 1e-6  # of the largest value of an output
EVERY = 100  # networks after which the output is written


def measure(seed: int, *, prove: bool) -> dict[str, Any]:
    """One network: by the rules alone, and with the proof."""
    network, inputs = random_network(seed)
    begun = time.process_time()
    found = find_neuron_groups(network, inputs, prove=False)
    row: dict[str, Any] = {"seed": seed, "groups": len(found)}
    row["moved"] = found.coverage().moved
    row["signed"] = sum(group.signed for group in found.groups)
    row["seconds"] = time.process_time() - begun
    if prove:
        begun = time.process_time()
        proven = find_neuron_groups(network, inputs)
        reasons = [pin.reason for pin in proven.dropped]
        row["proof_seconds"] = time.process_time() - begun - row["seconds"]
        row["untested"] = sum("could not be tested" in reason for reason in reasons)
        row["refuted"] = len(reasons) - row["untested"]
    row["error"] = largest_error(network, found, seed)
    return row


def summary(rows: list[dict[str, Any]]) -> str:
    """The table of all networks."""
    proven = [row for row in rows if "refuted" in row]
    failed = [row for row in rows if "failure" in row]
    whole = [row for row in rows if "error" in row]
    facts = {
        "networks": len(rows),
        "refused by the tracer": len(failed),
        "groups": sum(row["groups"] for row in whole),
        "of them signed": sum(row["signed"] for row in whole),
        "networks without a group": sum(row["groups"] == 0 for row in whole),
        "parameters moved, mean": f"{sum(r['moved'] for r in whole) / max(len(whole), 1):.1%}",
        "largest error of the rules alone": f"{max(r['error'] for r in whole):.0e}",
        "networks where the rules alone are wrong": sum(r["error"] > WRONG for r in whole),
        "networks proven as well": len(proven),
        "groups that the proof refuted": sum(row["refuted"] for row in proven),
        "groups that could not be tested": sum(row["untested"] for row in proven),
        "seconds per network": f"{sum(r['seconds'] for r in whole) / max(len(whole), 1):.2f}",
    }
    return table(["", "count"], [[name, str(value)] for name, value in facts.items()])


def write(output: Path | None, rows: list[dict[str, Any]]) -> None:
    """Write what is known so far."""
    facts = machine()
    text = (
        "# Neuron groups of random networks\n\nGraphs of layers, views, joins, tied weights, with "
        "several outputs, each drawn from a seed. Groups are found by the rules alone, and checked "
        "in float64 with other weights, inputs and sizes, in evaluation and in training mode; a "
        f"network counts as wrong where an output moves by more than {WRONG:.0e} of its largest "
        "value. Every tenth network is proven as well. Seconds are processor seconds on one "
        f"thread.\n\n{machine_line(facts)}\n\n{summary(rows)}\n"
    )
    print(summary(rows), flush=True)
    wrong = [row["seed"] for row in rows if row.get("error", 0) > WRONG]
    failures = Counter(row["failure"] for row in rows if "failure" in row)
    print(f"wrong: {wrong or 'none'}", dict(failures) or "", flush=True)
    if output:
        output.with_suffix(".md").write_text(text, encoding="utf-8")
        data = json.dumps({"machine": facts, "rows": rows}, indent=None)
        output.with_suffix(".json").write_text(data.replace("}, ", "},\n") + "\n", encoding="utf-8")


def main() -> None:
    """Read the options and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=20, help="how many networks")
    parser.add_argument("--output", type=Path, help="without a suffix")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("slipstream").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    known = given.output.with_suffix(".json") if given.output else None
    rows = json.loads(known.read_text("utf-8"))["rows"] if known and known.exists() else []
    done = {row["seed"] for row in rows}
    for seed in range(given.count):
        if seed in done:
            continue
        try:
            rows.append(measure(seed, prove=seed % 10 == 0))
        except ValueError as error:
            rows.append({"seed": seed, "failure": str(error)[:100]})
        if len(rows) % EVERY == 0:
            write(given.output, rows)
    write(given.output, rows)


if __name__ == "__main__":
    main()
