"""What LURE, side-tuning and aggregation bring on digits, beside their controls.

    python benchmarks/recipes.py --output benchmarks/results/recipes

All settings are fixed beforehand and the same for every row of a table; nothing is chosen on test
data. Accuracies are on the test part, means and deviations over seeds; each seed draws weights,
batches, chunks and the examples of a task anew. Differences are paired by seed, with intervals of
95 % by Student's t.
"""

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from scipy import stats
from torch import nn

from common import machine, machine_line, table, write
from slipstream.evaluation import Task, accuracy, evaluate
from slipstream.recipes import (
    AggregationPlan,
    LurePlan,
    SidePlan,
    aggregation_controls,
    distil_side,
    features_of,
    side_controls,
    side_tune,
    small_side,
    train_aggregation,
    train_lure,
)
from slipstream.testbed import Examples, load_data, mlp
from slipstream.testbed.clients import split_among_clients
from slipstream.training import TrainingPlan, trained_copy
from slipstream.weights import Weights, clone, weights_of

PARTS = ("lure", "side-tuning", "aggregation")
TASKS = ("turned", "inverted", "permuted")
EXAMPLES = 100  # of a task of side-tuning
Rows = list[dict[str, float]]


def right(model: nn.Module, weights: Weights | None, examples: Examples) -> float:
    """Return the accuracy in percent."""
    data = examples.batches(500)
    return 100 * evaluate(model, {"a": accuracy}, weights=weights, data=data)["a"]


def network(seed: int, *, width: int = 128) -> nn.Module:
    """Return an MLP with two hidden layers and the initial weights of a seed."""
    torch.manual_seed(seed)
    return mlp(inputs=64, width=width, hidden_layers=2)


def lure(seed: int) -> dict[str, float]:
    """Train on four chunks by LURE, with random resets, warm and from scratch."""
    data = load_data("digits")
    chunks = [part.batches(32, seed=seed) for part in split_among_clients(data.train, 4, seed=seed)]
    model = network(seed)
    plan = LurePlan(share=0.2, descent=TrainingPlan.cosine(epochs=15, lr=0.05, seed=seed))
    found = {}
    for choice in ("saliency", "random", "none"):
        way = train_lure(Task(model), chunks=chunks, plan=replace(plan, choice=choice))
        found[choice] = right(model, way.weights, data.test)
        found[f"resets {choice}"] = sum(stage.reset for stage in way.stages)
    train = data.train.batches(32, seed=seed)
    for name, epochs in (("scratch", 15), ("longer", 38)):  # 15 (1 + 2 + 3 + 4) / 4 is 37.5
        how = replace(plan.descent, epochs=epochs)
        found[name] = right(trained_copy(Task(model, train), how), None, data.test)
    return found


def side_tuning(seed: int) -> dict[str, float]:
    """Learn three tasks one after another beside a network for digits, and in it."""
    data = load_data("digits")
    how = TrainingPlan.cosine(epochs=60, optimizer="adamw", lr=0.005, seed=seed)
    train = data.train.batches(64, seed=seed)
    old = trained_copy(Task(network(seed), train), replace(how, epochs=20, lr=0.003))
    base = features_of(old, head="head")
    small = small_side(base, data.train.inputs[:1], width=32, seed=seed)
    side = distil_side(small, Task(base, train), descent=how).side
    before, weights = right(old, None, data.test), clone(weights_of(old))
    found: dict[str, float] = {"base": before, "examples": EXAMPLES}
    learned, body = [], weights
    for number, task in enumerate(TASKS):
        split = load_data(f"digits+{task}")
        chosen = torch.randperm(len(split.train), generator=torch.Generator().manual_seed(seed))
        part = Examples(split.train.inputs[chosen], split.train.labels[chosen]).take(EXAMPLES)
        few = part.batches(25, seed=seed)
        model = network(1000 + 10 * seed + number)
        head, own = model.get_submodule("head"), Task(base, few)
        beside = side_tune(own, side=side, head=head, plan=SidePlan(how))
        whole = Task(model, few)
        others = side_controls(whole, base=base, weights=body, head="head", descent=how)
        fresh = small_side(base, data.train.inputs[:1], width=32, seed=500 + seed)
        undistilled = side_tune(own, side=fresh, head=head, plan=SidePlan(how))
        alone = trained_copy(Task(nn.Sequential(side, head), few), how)
        body = others.overwritten
        learned.append((beside.network, others.fine_tuned, split.test))
        found |= {
            f"{task} side": right(beside.network, None, split.test),
            f"{task} features": right(others.features, None, split.test),
            f"{task} fine": right(others.fine_tuned, None, split.test),
            f"{task} scratch": right(others.scratch, None, split.test),
            f"{task} undistilled": right(undistilled.network, None, split.test),
            f"{task} alone": right(alone, None, split.test),
            f"{task} blend": beside.blend,
        }
    return found | forgotten(found, learned, old, body, data.test)


def forgotten(
    found: dict[str, float],
    learned: Sequence[tuple[nn.Module, nn.Module, Examples]],
    old: nn.Module,
    body: Weights,
    test: Examples,
) -> dict[str, float]:
    """Return how many points were lost after the last task: a task keeps the head it was given."""
    lost = {"base fine": found["base"] - right(old, body, test), "base side": 0.0}
    lost["base side"] = found["base"] - right(old, None, test)
    for task, (beside, tuned, examples) in zip(TASKS, learned, strict=True):
        head = {n: v for n, v in weights_of(tuned).items() if n.startswith("head.")}
        now = {n: v for n, v in body.items() if not n.startswith("head.")} | head
        lost[f"{task} side"] = found[f"{task} side"] - right(beside, None, examples)
        lost[f"{task} fine"] = found[f"{task} fine"] - right(tuned, now, examples)
    return {f"lost {name}": value for name, value in lost.items()}


def with_groupnorm(seed: int, *, width: int = 64) -> nn.Module:
    """Return an MLP with two hidden layers, each with GroupNorm."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, width), nn.GroupNorm(8, width), nn.ReLU(),
        nn.Linear(width, width), nn.GroupNorm(8, width), nn.ReLU(),
        nn.Linear(width, 10),
    )  # fmt: skip


def aggregation(seed: int) -> dict[str, float]:
    """Train specialists for digits and for digits with permuted pixels, jointly and apart."""
    splits = [load_data("digits"), load_data("digits+permuted")]
    model, how = with_groupnorm(seed), TrainingPlan.cosine(epochs=20, lr=0.02, seed=seed)
    tasks = [Task(model, split.train.batches(64, seed=seed)) for split in splits]
    joint = train_aggregation(tasks, plan=AggregationPlan(1.0, how))
    others = aggregation_controls(tasks, descent=how)
    ways = {
        "sum": joint.sum,
        "aggregate": joint.aggregate,
        "specialist 1": joint.specialists[0],
        "specialist 2": joint.specialists[1],
        "aggregate less specialist 2": joint.remainders[1],
        "aggregate less specialist 1": joint.remainders[0],
        "sum of networks trained apart": others.sum,
        "mean of those": others.mean,
        "apart 1": others.apart[0],
        "apart 2": others.apart[1],
        "one network for both": others.together,
    }
    found = {
        f"{way} {number}": right(model, weights, split.test)
        for way, weights in ways.items()
        for number, split in enumerate(splits, start=1)
    }
    return found | {"gap": joint.gap}


def spread(rows: Rows, name: str) -> str:
    """Return mean and sample deviation."""
    values = [row[name] for row in rows]
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.1f} ± {deviation:.1f}"


def interval(rows: Rows, first: str, second: str) -> tuple[float, float, float]:
    """Return the mean of the paired difference, and the ends of its interval of 95 %."""
    values = [row[first] - row[second] for row in rows]
    mean = statistics.fmean(values)
    half = statistics.stdev(values) / math.sqrt(len(values)) * stats.t.ppf(0.975, len(values) - 1)
    return mean, mean - half, mean + half


def difference(rows: Rows, first: str, second: str) -> str:
    """Return the paired difference in words."""
    mean, low, high = interval(rows, first, second)
    says = "excludes 0" if low > 0 or high < 0 else "holds 0: no difference is shown"
    return f"{mean:+.2f} points [{low:+.2f}, {high:+.2f}], which {says}"


def lure_text(rows: Rows) -> str:
    """Return the table of LURE."""
    names = {
        "saliency": "LURE: the least salient 20 % drawn anew",
        "random": "random resets of as many",
        "none": "warm start",
        "scratch": "from scratch on all data, 15 epochs",
        "longer": "from scratch on all data, as many steps as LURE in all",
    }
    cells = [[words, spread(rows, name)] for name, words in names.items()]
    against = [
        f"LURE less {names[other]}: {difference(rows, 'saliency', other)}."
        for other in ("none", "random")
    ]
    return (
        f"## LURE: four chunks of digits, {len(rows)} seeds\n\nMLP 2 x 128, 15 epochs on all data "
        "so far after each chunk, SGD with momentum.\n\n"
        f"{table(['', 'test accuracy'], cells)}\n\n" + "\n\n".join(against)
    )


def side_text(rows: Rows) -> str:
    """Return the tables of side-tuning."""
    names = {
        "features": "features of the base under a new head",
        "side": "side-tuning",
        "undistilled": "side-tuning, the side not distilled",
        "alone": "the distilled side alone, without the base",
        "fine": "fine-tuning, from the task before",
        "scratch": "from scratch",
    }
    cells = [
        [words, *(spread(rows, f"{task} {name}") for task in TASKS)]
        for name, words in names.items()
    ]
    blend = ["blend a, in percent"]
    percent = [{f"{task} blend": 100 * row[f"{task} blend"] for task in TASKS} for row in rows]
    cells.append(blend + [spread(percent, f"{task} blend") for task in TASKS])
    lost = [
        [words, *(spread(rows, f"lost {task} {name}") for task in ("base", *TASKS))]
        for name, words in (("side", "side-tuning"), ("fine", "fine-tuning"))
    ]
    against = [
        f"Side-tuning less {words}, {task}: {difference(rows, f'{task} side', f'{task} {name}')}."
        for name, words in (("features", "features"), ("alone", "the side alone"))
        for task in TASKS
    ]
    return (
        f"## Side-tuning: three tasks of {EXAMPLES} images each, {len(rows)} seeds\n\n"
        "The base is an MLP 2 x 128 for digits "
        f"({spread(rows, 'base')}); the side has one hidden layer of 32. The tasks come one after "
        f"another.\n\n{table(['test accuracy', *TASKS], cells)}\n\n" + "\n\n".join(against) + "\n\n"
        f"{table(['points lost after the last task', 'digits', *TASKS], lost)}"
    )


def aggregation_text(rows: Rows) -> str:
    """Return the table of aggregation."""
    ways = dict.fromkeys(name[:-2] for name in rows[0] if name != "gap")
    cells = [[way, *(spread(rows, f"{way} {number}") for number in (1, 2))] for way in ways]
    gap = max(row["gap"] for row in rows)
    return (
        f"## Aggregation: digits and digits with permuted pixels, {len(rows)} seeds\n\n"
        "MLP 2 x 64 with GroupNorm, 20 epochs. The specialists are trained jointly, with the "
        f"aggregate; its distance from their sum is at most {gap:.2g} of the sum's norm. Chance is "
        f"10.\n\n{table(['test accuracy', 'digits', 'permuted'], cells)}\n\nThe sum less one "
        f"network for both: {difference(rows, 'sum 1', 'one network for both 1')} on digits; "
        f"{difference(rows, 'sum 2', 'one network for both 2')} on permuted digits."
    )


def as_text(found: dict[str, Any]) -> str:
    """Return all tables."""
    texts = {"lure": lure_text, "side-tuning": side_text, "aggregation": aggregation_text}
    parts = [f"# Recipes\n\n{machine_line(found['machine'])}"]
    return "\n\n".join([*parts, *(texts[part](found[part]) for part in PARTS if part in found)])


def main() -> None:
    """Measure and print; parts that are not measured anew are kept from the output's last run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=PARTS, action="append")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if arguments.seeds < 2:
        parser.error("--seeds must be at least 2: a spread needs two")
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    if arguments.output and arguments.output.with_suffix(".json").is_file():
        found = json.loads(arguments.output.with_suffix(".json").read_text(encoding="utf-8"))
    found["machine"] = machine()
    measure = {"lure": lure, "side-tuning": side_tuning, "aggregation": aggregation}
    for part in arguments.only or PARTS:
        rows = []
        for seed in range(arguments.seeds):
            rows.append(measure[part](seed))
            print(part, seed, rows[-1], flush=True)
        found[part] = rows
        write(arguments.output, as_text(found), found)


if __name__ == "__main__":
    main()
