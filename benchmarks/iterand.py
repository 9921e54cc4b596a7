"""Masks of random weights beside trained weights: edge-popup, IteRand and SGD, by width.

    python benchmarks/iterand.py --mnist DIR --output benchmarks/results/iterand

All ways see the same batches. The learning rate of each way at each width is chosen on validation
data, with seeds of its own; the tables show test data, differences in pairs of equal seeds.
Every finished run is kept beside the output, so that an interrupted benchmark goes on where it
stopped. `--case cifar10-conv6` takes two hours and is not run by default.
"""

import argparse
import json
import math
import statistics
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common import machine, machine_line, table, write
from slipstream.evaluation import Task, accuracy, evaluate
from slipstream.recipes import IterandPlan, ticket_size, train_iterand
from slipstream.testbed import load_data, mlp
from slipstream.testbed.datasets import DataSplit
from slipstream.training import TrainingPlan, train

INITIALS = {"KU": "kaiming-uniform", "SC": "signed-constant"}
CHOOSING = 1000  # the first of the seeds for the learning rates
ROUNDS = 117  # of randomisation in a training
ALL, DEFAULT = ("digits", "mnist", "cifar10-conv6"), ("digits", "mnist")


@dataclass(frozen=True)
class Case:
    """Networks of several widths on a data set, and how long they are trained."""

    data: str
    build: Callable[[float], nn.Module]
    widths: tuple[float, ...]
    reference: float  # the width of the sweeps
    epochs: int
    seeds: int
    rates: dict[str, tuple[float, ...]]  # to choose from: of sgd, of scores
    examples: int | None = None
    sweeps: tuple[str, ...] = ()  # questions, by their beginnings
    weight_decay: float = 1e-4
    choosing: int = 2  # seeds for the learning rates


@dataclass(frozen=True)
class Way:
    """How a network is trained: SGD on its weights, or on scores of random ones."""

    name: str
    initial: str = ""  # of random weights; none: SGD
    redrawn: float = 0.0
    rounds: int = 0

    @property
    def kind(self) -> str:
        """Which rates it chooses from."""
        return "scores" if self.initial else "sgd"


@dataclass(frozen=True)
class Result:
    """One training."""

    width: float
    way: str
    seed: int
    lr: float
    validation: float
    test: float
    seconds: float
    churn: tuple[float, ...] = ()
    bytes: int = 0  # as a seed and a mask
    weights: int = 0  # bytes as ordinary weights


def cases(mnist: str, cifar10: str) -> dict[str, Case]:
    """Return the cases by name."""
    rates = {"sgd": (0.03, 0.1, 0.3), "scores": (0.3, 1.0, 3.0, 10.0)}
    return {
        "digits": Case(
            "digits", lambda w: mlp(inputs=64, width=int(w)), (8, 16, 32, 64), 16, 100, 10, rates,
            sweeps=("share", "number"),
        ),
        "mnist": Case(
            f"mnist:{mnist}", lambda w: mlp(inputs=784, width=int(w)), (8, 16, 32, 64), 16, 10, 5,
            rates, examples=6000,
        ),
        "cifar10-conv6": Case(
            f"cifar10:{cifar10}", conv6, (0.25,), 0.25, 20, 5,
            {"sgd": (0.03, 0.1), "scores": (0.3, 1.0, 3.0)}, examples=5000, choosing=1,
            sweeps=("number of randomisations, SC",),
        ),
    }  # fmt: skip


def conv6(width: float) -> nn.Module:
    """Return three pairs of 3x3 convolutions, each pooled, and three linear layers."""
    sizes = [3, *(max(1, round(c * width)) for c in (64, 64, 128, 128, 256, 256))]
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, (before, after) in enumerate(pairwise(sizes), start=1):
        layers[f"conv{number}"] = nn.Conv2d(before, after, 3, padding=1)
        layers[f"relu{number}"] = nn.ReLU()
        if number % 2 == 0:
            layers[f"pool{number}"] = nn.MaxPool2d(2)
    layers["flatten"] = nn.Flatten()
    hidden = max(1, round(256 * width))
    for number, before in enumerate((sizes[-1] * 16, hidden), start=1):
        layers[f"linear{number}"] = nn.Linear(before, hidden)
        layers[f"linear_relu{number}"] = nn.ReLU()
    layers["head"] = nn.Linear(hidden, 10)
    return nn.Sequential(layers)


def ways() -> list[Way]:
    """Return what is compared at every width."""
    masks = [
        Way(f"{name} {short}", initial, redrawn, ROUNDS if redrawn else 0)
        for short, initial in INITIALS.items()
        for name, redrawn in (("edge-popup", 0.0), ("IteRand", 0.1))
    ]
    return [Way("SGD"), *masks]


def sweeps() -> dict[str, list[Way]]:
    """Return what is compared at one width, by question; r = .1 and 117 times are in `ways`."""
    found: dict[str, list[Way]] = {}
    for short, initial in INITIALS.items():
        found[f"share drawn anew, r, {short}"] = [
            Way(f"IteRand {short} r={r}", initial, r, ROUNDS) for r in (0.01, 0.03, 0.3, 1.0)
        ]
        found[f"number of randomisations, {short}"] = [
            Way(f"IteRand {short} {n} times", initial, 0.1, n) for n in (4, 12, 40, 300)
        ]
    return found


@cache
def data_of(spec: str) -> DataSplit:
    """Return a data set, read once."""
    return load_data(spec)


def run(case: Case, way: Way, *, width: float, seed: int, lr: float) -> Result:
    """Train once."""
    data = data_of(case.data)
    examples = data.train if case.examples is None else data.train.take(case.examples)
    batches = examples.batches(128, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = case.build(width)
    began = time.perf_counter()
    how = TrainingPlan.cosine(
        case.epochs, "sgd", lr, weight_decay=case.weight_decay, warm_up=0.0, seed=seed
    )
    if way.kind == "sgd":
        train(Task(model, batches), how)
        weights, told = None, {}
    else:
        every = max(1, round(len(batches) * case.epochs / way.rounds)) if way.rounds else None
        plan = IterandPlan(
            initial=way.initial, redrawn=way.redrawn, every=every, seed=seed,
            descent=how,
        )  # fmt: skip
        found = train_iterand(Task(model, batches), plan=plan)
        weights, size = found.ticket.weights, ticket_size(found.ticket)
        told = {"churn": found.churn, "bytes": size.file, "weights": size.weights}
    seconds = time.perf_counter() - began
    at = [
        evaluate(model, {"accuracy": accuracy}, weights=weights, data=part.batches(500))["accuracy"]
        for part in (data.validation, data.test)
    ]
    return Result(width, way.name, seed, lr, at[0], at[1], seconds, **told)


def spread(values: list[float], pattern: str = "{:.2f}") -> str:
    """Return mean and deviation, in per cent."""
    mean = pattern.format(100 * statistics.mean(values))
    return f"{mean} ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else mean


def gain(first: dict[int, float], second: dict[int, float]) -> str:
    """Return the mean of second - first over equal seeds, in points, and in standard errors."""
    pairs = [100 * (second[seed] - first[seed]) for seed in first if seed in second]
    if len(pairs) < 2:
        return ""
    mean, error = statistics.mean(pairs), statistics.stdev(pairs) / math.sqrt(len(pairs))
    return f"{mean:+.2f} ({mean / error:+.1f} se)" if error else f"{mean:+.2f}"


def by_seed(results: list[Result], way: str, width: float) -> dict[int, float]:
    """Return the test accuracy of a way at a width, by seed."""
    return {r.seed: r.test for r in results if (r.way, r.width) == (way, width)}


def text_of(name: str, case: Case, kept: dict[str, Any]) -> str:
    """Return the tables of a case."""
    results = [Result(**r) for r in kept["runs"]]
    rows, kinds = [], [way.name for way in ways()]
    for width in case.widths:
        found = {way: by_seed(results, way, width) for way in kinds}
        if not all(found.values()):
            continue
        own = [r for r in results if r.width == width and r.way == "IteRand KU"]
        share = statistics.mean(r.bytes / r.weights for r in own)
        rows.append(
            (
                f"{width:g}", spread(list(found["SGD"].values())),
                *(
                    cell
                    for short in INITIALS
                    for cell in (
                        spread(list(found[f"edge-popup {short}"].values())),
                        spread(list(found[f"IteRand {short}"].values())),
                        gain(found[f"edge-popup {short}"], found[f"IteRand {short}"]),
                    )
                ),
                f"{share:.0%}", str(len(found["SGD"])),
            )
        )  # fmt: skip
    header = ["width", "SGD"]
    for short in INITIALS:
        header += [f"edge-popup {short}", f"IteRand {short}", "gain"]
    examples = f"the first {case.examples} training examples, " if case.examples else ""
    parts = [
        f"\n## {name}\n",
        f"Test accuracy in per cent, mean ± deviation over seeds; {examples}{case.epochs} epochs. "
        f"Half of the weights fall, r = .1, {ROUNDS} randomisations. Learning rates were chosen on "
        f"validation data at every width, from {_listed(case.rates['sgd'])} for SGD and "
        f"{_listed(case.rates['scores'])} for scores. The gain is that of IteRand over "
        "edge-popup in pairs of equal seeds, in points and in standard errors; the size that of "
        "IteRand KU as a seed and a mask, relative to its weights in float32.\n",
        table([*header, "size", "seeds"], rows),
    ]
    ran = {result.way for result in results}
    for question, tested in sweeps().items():
        if not ran.isdisjoint(way.name for way in tested):
            parts.append(sweep_text(question, tested, case, results))
    return "\n".join([*parts, churn_text(case, results)])


def sweep_text(question: str, tested: list[Way], case: Case, results: list[Result]) -> str:
    """Return a table of a sweep."""
    short = question[-2:]
    base = by_seed(results, f"edge-popup {short}", case.reference)
    default = Way(f"IteRand {short}", "", 0.1, ROUNDS)
    rows = []
    for way in sorted([*tested, default], key=lambda w: (w.redrawn, w.rounds)):
        found = by_seed(results, way.name, case.reference)
        if found:
            what = f"{way.redrawn:g}", str(way.rounds), spread(list(found.values()))
            rows.append((*what, gain(base, found), str(len(found))))
    header = ("r", "times", "test accuracy, %", "gain over edge-popup", "seeds")
    return f"\n### {question}, width {case.reference:g}\n\n" + table(header, rows)


def churn_text(case: Case, results: list[Result]) -> str:
    """Return how much the masks change in the course of the training."""
    rows = []
    for way in ways()[1:]:
        own = [r.churn for r in results if r.way == way.name and r.width == case.reference]
        if own:
            at = [0, case.epochs // 4 - 1, case.epochs // 2 - 1, case.epochs - 1]
            rows.append((way.name, *(f"{statistics.mean(c[e] for c in own):.2%}" for e in at)))
    header = ("", "first epoch", "after a quarter", "at half time", "last epoch")
    title = f"\n### Masks that change in an epoch, width {case.reference:g}\n\n"
    return title + table(header, rows)


def choose(case: Case, kept: dict[str, Any], way: Way, width: float) -> float:
    """Return the learning rate of a way at a width: the best on validation data, other seeds."""
    name = f"{way.name}, width {width:g}"
    if name not in kept["rates"]:
        means = {
            lr: statistics.mean(
                run(case, way, width=width, seed=seed, lr=lr).validation
                for seed in range(CHOOSING, CHOOSING + case.choosing)
            )
            for lr in case.rates[way.kind]
        }
        kept["rates"][name] = max(means, key=lambda lr: means[lr])
    return float(kept["rates"][name])


def jobs(case: Case, seeds: int, *, swept: bool) -> list[tuple[Way, float, int]]:
    """Return what is to run: seeds outermost, so that a part of them is a whole table."""
    if not swept:
        return [(way, w, seed) for seed in range(seeds) for w in case.widths for way in ways()]
    asked = {q: group for q, group in sweeps().items() if q.startswith(case.sweeps)}
    tested = [way for group in asked.values() for way in group]
    return [(way, case.reference, s) for s in range(min(seeds, 5)) for way in tested]


def main() -> None:
    """Run the cases that are named."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mnist", default="data", help="folder of MNIST")
    parser.add_argument("--cifar10", default="data", help="folder of CIFAR-10")
    parser.add_argument("--case", action="append", choices=ALL)
    parser.add_argument("--seeds", type=int, help="as many as the case says if not given")
    parser.add_argument("--tables", action="store_true", help="of what is there; run nothing")
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    known = cases(given.mnist, given.cifar10)
    file = given.output.with_suffix(".json")
    data = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"cases": {}}
    facts = data.setdefault("machine", machine())

    def save() -> None:
        pages = [text_of(n, known[n], kept) for n, kept in data["cases"].items() if kept["runs"]]
        text = ["# Masks of random weights: edge-popup and IteRand", "", machine_line(facts)]
        write(given.output, "\n".join([*text, *pages]), data)

    if given.tables:
        save()
        return
    for name, swept in [(n, swept) for swept in (False, True) for n in given.case or DEFAULT]:
        case, kept = known[name], data["cases"].setdefault(name, {"rates": {}, "runs": []})
        done = {(r["way"], r["width"], r["seed"]) for r in kept["runs"]}
        planned = jobs(case, given.seeds or case.seeds, swept=swept)
        for number, (way, width, seed) in enumerate(planned):
            if (way.name, width, seed) in done:
                continue
            lr = choose(case, kept, _default(way) if swept else way, width)
            result = run(case, way, width=width, seed=seed, lr=lr)
            kept["runs"].append(asdict(result))
            if number % 20 == 0 or result.seconds > 10:
                save()
        save()


def _listed(rates: tuple[float, ...]) -> str:
    return ", ".join(f"{rate:g}" for rate in rates)


def _default(way: Way) -> Way:
    """The way whose learning rate a sweep takes."""
    return next(w for w in ways() if w.initial == way.initial and w.redrawn)


if __name__ == "__main__":
    main()
