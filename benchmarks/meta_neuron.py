"""A learned neuron on class-ordered streams against online SGD, replay and class means.

The maps are learned on training images of the digits alone. Streams of test images, and of test
images whose pixels were permuted, are each seen once; the last answers are counted.
"""

import argparse
import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from common import machine, machine_line, table, write
from slipstream import Task
from slipstream.recipes import AfterStream, MetaNeuron, NeuronPlan, judge_tasks, train_neuron
from slipstream.recipes.meta_neuron.controls import ClassMeans, OnlineSGD, equal_replay
from slipstream.testbed import load_data
from slipstream.testbed.tasks import ClassTasks, TaskForm, by_class
from slipstream.training import TrainingPlan

SIZES, SHOTS = (64, 32, 32, 10), 10
RATES = (0.003, 0.01, 0.03, 0.1, 0.3)
LEARNED_ON = TaskForm(ways=10, shots=5, queries=2, tasks=16, batches=20)
CHOSEN_ON = TaskForm(ways=10, shots=SHOTS, queries=4, tasks=20, batches=2)
JUDGED_ON = TaskForm(ways=10, shots=SHOTS, queries=10, tasks=20, batches=5)
DATA = {"digits": "unseen images", "digits+permuted": "their pixels permuted"}
ROWS = {
    "neuron": "learned neuron",
    "population": "neuron of a population search",
    "initial": "neuron before the search",
    "sgd": "online SGD, the best rate",
    "replay": "online SGD with replay of equal bytes, the best rate",
    "means": "streaming class means",
}
Found = dict[str, float]


def streams(data: str, part: str, form: TaskForm, seed: int) -> ClassTasks:
    """Return streams of a part of a data set."""
    return ClassTasks(by_class(getattr(load_data(data), part)), form, seed=seed)


def searched(seed: int, plan: NeuronPlan, tasks: int) -> tuple[MetaNeuron, float]:
    """Learn the maps; returns them and the seconds it took."""
    torch.manual_seed(seed)
    neuron = MetaNeuron(SIZES)
    own = streams("digits", "train", replace(LEARNED_ON, tasks=tasks), seed)
    plan = replace(plan, descent=replace(plan.descent, seed=seed))
    found = train_neuron(Task(neuron, own, AfterStream()), plan=plan)
    neuron.load_state_dict(found.weights)
    return neuron, found.seconds


def of_neuron(neuron: MetaNeuron, data: str, seed: int) -> Found:
    """Return the accuracy on test streams, in percent, by their order."""
    own = Task(neuron, streams(data, "test", JUDGED_ON, seed))
    return {
        order: 100 * judge_tasks(AfterStream(order, "accuracy", seed), own).mean
        for order in ("class", "random")
    }


def of_sgd(neuron: MetaNeuron, data: str, seed: int, replay: int) -> Found:
    """Return the same of SGD, at the rate that is best on validation streams of each order."""
    chosen = Task(neuron, streams(data, "validation", CHOSEN_ON, seed))
    own = Task(neuron, streams(data, "test", JUDGED_ON, seed))
    found: Found = {}
    for order in ("class", "random"):
        ways = [OnlineSGD(rate, order, replay, seed) for rate in RATES]
        best = max(ways, key=lambda way: judge_tasks(way, chosen).mean)
        found |= {order: 100 * judge_tasks(best, own).mean, f"rate {order}": best.rate}
    return found


def one_seed(seed: int, plan: NeuronPlan, generations: int) -> dict[str, Any]:
    """Search, and judge everything on the same streams."""
    torch.manual_seed(seed)
    initial = MetaNeuron(SIZES)
    neuron, seconds = searched(seed, plan, LEARNED_ON.tasks)
    replay = equal_replay(neuron, example_bytes=65)
    row: dict[str, Any] = {"seed": seed, "seconds": {"neuron": seconds}, "replay": replay}
    others = {"neuron": neuron, "initial": initial}
    if generations:
        bred = replace(
            plan,
            search="population",
            descent=TrainingPlan(max(1, generations // LEARNED_ON.batches)),
        )
        others["population"], row["seconds"]["population"] = searched(seed, bred, 2)
    for data in DATA:
        own = streams(data, "test", JUDGED_ON, seed)
        mean = 100 * judge_tasks(ClassMeans(), Task(neuron, own)).mean
        row[data] = {way: of_neuron(maps, data, seed) for way, maps in others.items()}
        row[data] |= {
            "sgd": of_sgd(neuron, data, seed, 0),
            "replay": of_sgd(neuron, data, seed, replay),
            "means": {"class": mean, "random": mean},
        }
    row["maps"] = {name: value.tolist() for name, value in neuron.state_dict().items()}
    return row


def spread(values: list[float]) -> str:
    """Return mean and sample deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.1f} ± {deviation:.1f}"


def demands(rows: list[dict[str, Any]]) -> str:
    """Return what was asked for beforehand, and what came out."""
    lines = []
    for data, words in DATA.items():
        mean = {
            (way, order): statistics.fmean(row[data][way][order] for row in rows)
            for way in ("neuron", "sgd", "means")
            for order in ("class", "random")
        }
        gap = abs(mean["neuron", "random"] - mean["neuron", "class"])
        lost = mean["sgd", "random"] - mean["sgd", "class"]
        ratio = mean["neuron", "class"] / mean["sgd", "class"]
        behind = mean["means", "class"] - mean["neuron", "class"]
        kept = "met" if gap <= 5 and lost >= 25 else "not met"
        double = "met" if ratio >= 2 else "not met"
        lines.append(
            f"- {words}: the order of the stream changes the neuron's accuracy by {gap:.1f} points "
            f"(at most 5 asked) and costs SGD {lost:.1f} (at least 25 asked): {kept}. Class by "
            f"class it is {ratio:.1f} times online SGD (at least 2 asked): {double}. Streaming "
            f"class means are {behind:+.1f} points above it."
        )
    return "\n".join(lines)


def as_text(found: dict[str, Any]) -> str:
    """Return the tables."""
    rows = found["rows"]
    cells = []
    for way, words in ROWS.items():
        having = [row for row in rows if way in row["digits"]]
        if having:
            values = [
                spread([row[data][way][order] for row in having])
                for data in DATA
                for order in ("class", "random")
            ]
            cells.append([words if len(having) == len(rows) else f"{words} (1 seed)", *values])
    header = [f"{words}, {order}" for words in DATA.values() for order in ("by class", "random")]
    took = [f"{row['seconds']['neuron']:.0f}" for row in rows]
    bred = [f"{row['seconds']['population']:.0f}" for row in rows if "population" in row["seconds"]]
    search = (
        f" The population search: 32 candidates, {found['generations']} generations, {bred[0]} s."
        if bred
        else ""
    )
    return "\n\n".join(
        [
            "# A learned neuron on class-ordered streams",
            machine_line(found["machine"]),
            f"{len(rows)} searches on training images of the digits, by gradient through unrolls "
            f"of 25 updates, {found['epochs'] * LEARNED_ON.batches} steps ({', '.join(took)} s, on "
            f"a loaded machine).{search} Networks 64-32-32-10. A test stream holds {SHOTS} images "
            "of each of ten classes, seen once; class by class or in random order. Accuracy in "
            "percent on images that no stream holds, over "
            f"{JUDGED_ON.tasks * JUDGED_ON.batches} streams per search. SGD's rates are chosen on "
            f"validation streams, for each order; replay keeps {rows[0]['replay']} images at a "
            "byte per pixel, as many bytes as the states of the neuron's units. Permuted pixels "
            "were in no search.",
            table(["test accuracy", *header], cells),
            demands(rows),
        ]
    )


def main() -> None:
    """Measure and print; searches that the output's last run holds are kept."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--generations", type=int, default=100, help="of the first seed")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {"machine": machine(), "epochs": arguments.epochs, "rows": []}
    found["generations"] = arguments.generations
    if arguments.output and arguments.output.with_suffix(".json").is_file():
        found = json.loads(arguments.output.with_suffix(".json").read_text(encoding="utf-8"))
    plan = NeuronPlan(population=32, descent=TrainingPlan.cosine(arguments.epochs, "adam", 5e-3))
    for seed in range(len(found["rows"]), arguments.seeds):
        bred = arguments.generations if seed == arguments.seeds - 1 else 0
        found["rows"].append(one_seed(seed, plan, bred))
        write(arguments.output, as_text(found), found)


if __name__ == "__main__":
    main()
