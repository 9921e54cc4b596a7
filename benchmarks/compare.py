"""Does `compare_checkpoints` say what checkpoints are to each other? Their genealogy is known.

    python benchmarks/compare.py --output benchmarks/results/compare
    python benchmarks/compare.py --ani torchani-2.0-py3-none-any.whl --output ...

Seven small networks are trained, four of them held out: nothing was tuned on them. Some thirty
checkpoints are made of each. They are compared two at a time, and then all at once.
"""

import argparse
import importlib
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from common import machine, machine_line, table, write
from compare_cases import Node, Setting, Truth, genealogy, judged, settings, truth
from slipstream.comparison import PairComparison, compare_checkpoints

SEEDS = {"mlp": 0, "conv": 0, "gpt2": 0}  # of the development; the others have one of their own
HELD_OUT_SEED = 7
STEPS = 1000  # of the longest fine-tune
MARKS = ("right", "partly", "open", "wrong")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="One network.")
    parser.add_argument("--ani", type=Path, help="The wheel of torchani 2.0.")
    parser.add_argument("--keep", type=Path, help="Where trained checkpoints are kept, to resume.")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    facts = machine()
    results = [run(setting, given.keep) for setting in settings(given.only)]
    if given.ani:
        results.append(run_ani(given.ani))
    data = {
        "machine": facts,
        "seconds": round(sum(r["seconds_training"] + r["seconds_comparing"] for r in results)),
        "networks": results,
    }
    text = report(data)
    for one in results:  # thousands of pairs: their number and what is wrong will do
        pairs = one["pairs"]["together"]
        one["together"] = Counter(pair["mark"] for pair in pairs)
        one["pairs"]["together"] = [pair for pair in pairs if pair["mark"] == "wrong"]
    write(given.output, text, data)


def run(setting: Setting, keep: Path | None = None) -> dict[str, Any]:
    """Compare all that was made of one network."""
    nodes, made = trained(setting, keep)
    given = {name: node.weights for name, node in nodes.items()}
    begun = time.process_time()
    together = compare_checkpoints(given, groups=setting.groups)
    alone = [
        compare_checkpoints({n: given[n] for n in pair}, groups=setting.groups).pairs[0]
        for pair in direct(nodes)
    ]
    marked = {"together": marks(nodes, together.pairs), "alone": marks(nodes, alone)}
    return {
        "network": setting.name,
        "held_out": setting.held_out,
        "checkpoints": len(nodes),
        "seconds_training": round(made, 1),
        "seconds_comparing": round(time.process_time() - begun, 1),
        "merges": list(together.merges),
        "tree": together.tree,
        "pairs": marked,
    }


def trained(setting: Setting, keep: Path | None) -> tuple[dict[str, Node], float]:
    """Return all that is made of a network, and the seconds that training took."""
    file = keep and keep / f"{setting.name.replace(' ', '-')}.pt"
    if file and file.is_file():
        held, seconds = torch.load(file)
        return {name: Node(*rest) for name, rest in held.items()}, seconds
    began = time.process_time()
    nodes = genealogy(setting, SEEDS.get(setting.name, HELD_OUT_SEED), most=STEPS)
    seconds = time.process_time() - began
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(({n: (x.weights, x.how, x.parents) for n, x in nodes.items()}, seconds), file)
    return nodes, seconds


def direct(nodes: Mapping[str, Node]) -> list[tuple[str, str]]:
    """Return each checkpoint with what it was made of, siblings, and strangers."""
    found = [(parent, name) for name, node in nodes.items() for parent in node.parents]
    found += [("100 steps", "other task"), ("10 steps", "1000 steps"), ("sgd", "adamw")]
    found += [(one, "other seed") for one in ("init", "base", "1000 steps", "int8", "pruned")]
    found += [("base", "distilled"), ("other seed", "distilled"), ("init", "base")]
    return [pair for pair in found if set(pair) <= set(nodes)]


def marks(nodes: Mapping[str, Node], pairs: Any) -> list[dict[str, Any]]:
    """Hold verdicts against the truth."""
    return [marked(pair, truth(nodes, pair.first, pair.second)) for pair in pairs]


def marked(pair: PairComparison, known: Truth) -> dict[str, Any]:
    """Return a pair with the mark of its verdict."""
    mark = judged(pair, known)
    told = {"told": pair.relation, "parent": pair.parent, "certainty": pair.certainty}
    true = {"true": sorted(known.relations), "true_parent": known.parent}
    why = {"evidence": list(pair.evidence)} if mark == "wrong" else {}
    return {"first": pair.first, "second": pair.second, **told, **true, "mark": mark, **why}


def run_ani(wheel: Path) -> dict[str, Any]:
    """Compare the sixteen networks of ANI: 1ccx_i is a fine-tune of 1x_i."""
    reader = importlib.import_module("ani_networks")
    resources = reader.Resources(wheel)
    began = time.process_time()
    given, nodes = {}, {}
    for kind, short in ((reader.BASES, "1x"), (reader.FINE_TUNES, "1ccx")):
        for n, member in enumerate(resources.members(kind)):
            name = f"{short}_{n}"
            given[name] = resources.weights(kind, member)
            parents = (f"1x_{n}",) if kind == reader.FINE_TUNES else ()
            nodes[name] = Node(given[name], "train" if parents else "init", parents)
    found = compare_checkpoints(given)
    alone = [
        compare_checkpoints({n: given[n] for n in pair}).pairs[0]
        for pair in combinations(given, 2)
        if pair[0][-1] == pair[1][-1]
    ]
    return {
        "network": "ANI",
        "held_out": True,
        "checkpoints": len(nodes),
        "seconds_training": 0.0,
        "seconds_comparing": round(time.process_time() - began, 1),
        "merges": list(found.merges),
        "tree": found.tree,
        "pairs": {"together": marks(nodes, found.pairs), "alone": marks(nodes, alone)},
    }


def report(data: dict[str, Any]) -> str:
    """Return the tables."""
    lines = ["# What are these checkpoints to each other?", "", machine_line(data["machine"])]
    spent = [
        sum(one[f"seconds_{k}"] for one in data["networks"]) for k in ("training", "comparing")
    ]
    lines += [f"Processor time: {spent[0]:.0f} s to train, {spent[1]:.0f} s to compare.", ""]
    for way in ("alone", "together"):
        rows = []
        for one in data["networks"]:
            counted = Counter(pair["mark"] for pair in one["pairs"][way])
            name = one["network"] + (" (held out)" if one["held_out"] else "")
            pairs = len(one["pairs"][way])
            rows.append([name, str(pairs), *(str(counted[mark]) for mark in MARKS)])
        rows.append(["all", *(str(sum(int(row[n]) for row in rows)) for n in range(1, 6))])
        title = "Two at a time" if way == "alone" else "All checkpoints of a network at once"
        header = ["network", "pairs", "right", "fine-tune or siblings", "cannot tell", "wrong"]
        lines += [f"## {title}", "", table(header, rows), ""]
    lines += ["## By what is true, two at a time", "", by_kind(data["networks"]), ""]
    lines += ["## Wrong verdicts", "", *(wrong(data["networks"]) or ["None."])]
    return "\n".join(lines)


def by_kind(networks: list[dict[str, Any]]) -> str:
    """Return a table of the derivations."""
    counted: dict[str, Counter[str]] = defaultdict(Counter)
    for one in networks:
        for pair in one["pairs"]["alone"]:
            counted[f"{pair['first']} - {pair['second']}" if one["network"] != "ANI" else "ANI"][
                pair["mark"]
            ] += 1
    rows = [[kind, *(str(marks[mark]) for mark in MARKS)] for kind, marks in counted.items()]
    return table(["pair", "right", "fine-tune or siblings", "cannot tell", "wrong"], rows)


def wrong(networks: list[dict[str, Any]]) -> list[str]:
    """Return a line for each wrong verdict."""
    return [
        f"- {one['network']}, {way}: {pair['first']}, {pair['second']}: {pair['told']} of "
        f"{pair['parent']}, but it is {', '.join(pair['true'])} of {pair['true_parent']}"
        for one in networks
        for way, pairs in one["pairs"].items()
        for pair in pairs
        if pair["mark"] == "wrong"
    ]


if __name__ == "__main__":
    main()
