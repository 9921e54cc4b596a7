"""Neuron groups of random networks: how many are found, and whether one of them is wrong.

Run: python benchmarks/random_networks.py --count 10000 --output benchmarks/results/random_networks
     python benchmarks/random_networks.py --count 20

Every network is drawn from its seed: layers, views, joins, tied weights, several outputs, heads of
training only. Its groups are checked with other weights, inputs and sizes, in float64, in both
modes. What is written are sums over blocks of a hundred seeds, and the seeds that went wrong; the
blocks that are in the output already are kept, so that many networks can be measured in parts.
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
BLOCK = 100  # seeds per line of the output


def measure(seed: int, *, prove: bool) -> dict[str, Any]:
    """One network: by the rules alone, and with the proof."""
    network, inputs = random_network(seed)
    begun = time.process_time()
    found = find_neuron_groups(network, inputs, prove=False)
    row: dict[str, Any] = {"networks": 1, "seconds": time.process_time() - begun}
    row["groups"] = len(found)
    row["signed"] = sum(group.signed for group in found.groups)
    row["without"] = int(not len(found))
    row["moved"] = found.coverage().moved
    if prove:
        begun = time.process_time()
        proven = find_neuron_groups(network, inputs)
        reasons = [pin.reason for pin in proven.dropped]
        row["proven"], row["proof_seconds"] = 1, time.process_time() - begun
        row["untested"] = sum("could not be tested" in reason for reason in reasons)
        row["refuted"] = len(reasons) - row["untested"]
    row["error"] = largest_error(network, found, seed)
    return row


def measure_block(first: int, last: int) -> dict[str, Any]:
    """All networks of some seeds: sums, the largest error, and the seeds that went wrong."""
    sums: Counter[str] = Counter()
    error, wrong, refused = 0.0, [], {}
    for seed in range(first, last + 1):
        try:
            row = measure(seed, prove=seed % 10 == 0)
        except ValueError as failure:
            refused[seed] = str(failure)[:100]
            continue
        found = row.pop("error")
        error = max(error, found)
        if not found <= WRONG:  # NaN is wrong as well
            wrong.append(seed)
        sums.update(row)
    counts = {name: round(value, 4) for name, value in sums.items()}
    return {"seeds": [first, last], **counts, "error": error, "wrong": wrong, "refused": refused}


def summary(blocks: list[dict[str, Any]]) -> str:
    """The table of all networks."""
    total: Counter[str] = Counter()
    for block in blocks:
        total.update({n: v for n, v in block.items() if isinstance(v, int | float)})
    networks, proven = max(total["networks"], 1), max(total["proven"], 1)
    facts = {
        "networks": total["networks"],
        "refused by the tracer": sum(len(block["refused"]) for block in blocks),
        "groups": total["groups"],
        "of them signed": total["signed"],
        "networks without a group": total["without"],
        "parameters moved, mean": f"{total['moved'] / networks:.1%}",
        "largest error of the rules alone": f"{max(block['error'] for block in blocks):.0e}",
        "networks where the rules alone are wrong": sum(len(block["wrong"]) for block in blocks),
        "networks proven as well": total["proven"],
        "groups that the proof refuted": total["refuted"],
        "groups that could not be tested": total["untested"],
        "seconds per network": f"{total['seconds'] / networks:.2f}",
        "seconds per network, proof included": f"{total['proof_seconds'] / proven:.2f}",
    }
    return table(["", "count"], [[name, str(value)] for name, value in facts.items()])


def write(output: Path | None, blocks: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    """Write what is known so far."""
    text = (
        "# Neuron groups of random networks\n\nGraphs of layers, views, joins, tied weights, with "
        "several outputs, each drawn from a seed. Groups are found by the rules alone, and checked "
        "in float64 with other weights, inputs and sizes, in evaluation and in training mode; a "
        f"network counts as wrong where an output moves by more than {WRONG:.0e} of its largest "
        "value. Every tenth network is proven as well. Seconds are processor seconds on one "
        f"thread.\n\n{machine_line(facts)}\n\n{summary(blocks)}\n"
    )
    print(summary(blocks), flush=True)
    wrong = [seed for block in blocks for seed in block["wrong"]]
    refused = {seed: why for block in blocks for seed, why in block["refused"].items()}
    print(f"wrong: {wrong or 'none'}", refused or "", flush=True)
    if output:
        output.with_suffix(".md").write_text(text, encoding="utf-8")
        lines = ",\n".join(json.dumps(block) for block in blocks)
        data = f'{{"machine": {json.dumps(facts)},\n"blocks": [\n{lines}\n]}}\n'
        output.with_suffix(".json").write_text(data, encoding="utf-8")


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
    facts = machine()
    known = given.output.with_suffix(".json") if given.output else None
    blocks = json.loads(known.read_text("utf-8"))["blocks"] if known and known.exists() else []
    done = {seed for block in blocks for seed in range(block["seeds"][0], block["seeds"][1] + 1)}
    for first in range(0, given.count, BLOCK):
        missing = [s for s in range(first, min(first + BLOCK, given.count)) if s not in done]
        if missing:
            blocks.append(measure_block(missing[0], missing[-1]))
            write(given.output, blocks, facts)
    if not blocks:
        parser.error(f"--count must be at least 1, got {given.count}")


if __name__ == "__main__":
    main()
