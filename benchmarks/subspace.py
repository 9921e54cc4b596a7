"""Lines, curves and simplices of networks beside single networks, SWA and early stopping.

    python benchmarks/subspace.py --output benchmarks/results/subspace

Every way takes the same number of optimiser steps on the same batches with the same schedule,
except that ways from two networks take two trainings. With noisy labels, a share of the training
labels is drawn anew at random; the test labels are clean. Nothing is chosen on test data. Finished
seeds are kept beside the output, so that an interrupted benchmark resumes where it stopped.
"""

import argparse
import json
import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common import machine, machine_line, table, write
from slipstream.averaging import SWA, Averages
from slipstream.evaluation import Ensemble, Task, accuracy, classification_loss, evaluate
from slipstream.landscape import CurvePlan, Shape, Span, evaluate_span, fit_curve
from slipstream.recipes import Subspace, SubspacePlan, train_subspace
from slipstream.testbed import Examples, build_network, load_data
from slipstream.training import TrainingPlan
from slipstream.weights import Weights, clone, weights_of

METRICS = {"accuracy": accuracy, "loss": classification_loss}
AVERAGED_FROM = 0.75  # of the epochs: from there on SWA averages, at a constant rate
SWA_RATE = 0.05
OTHER = 1000  # added to a seed: the second of two independent networks


@dataclass(frozen=True)
class Case:
    """A network on digits, and how it is trained."""

    network: str
    options: Mapping[str, Any]
    noise: float  # share of the training labels that are drawn anew
    descent: TrainingPlan
    batch_size: int = 128


MLP = {"width": 128, "hidden_layers": 2}
CONV = {"channels": (16, 32), "hidden": 64, "batchnorm": True}
CASES = {
    "clean": Case("mlp", MLP, 0.0, TrainingPlan.cosine(epochs=100)),
    "noisy": Case("mlp", MLP, 0.4, TrainingPlan.cosine(epochs=100)),
    "clean-batchnorm": Case("conv_net", CONV, 0.0, TrainingPlan.cosine(epochs=30)),
    "noisy-batchnorm": Case("conv_net", CONV, 0.4, TrainingPlan.cosine(epochs=30)),
}


class Bench:
    """Data and networks of a case with a seed."""

    def __init__(self, case: Case, seed: int) -> None:
        self.case, self.seed = case, seed
        data = load_data("digits")
        self.spec = data.spec
        self.train = noisy(data.train, case.noise, seed=seed).batches(case.batch_size, seed=seed)
        self.test = data.test.batches(500)
        self.validation = {
            "clean": data.validation.batches(500),
            "noisy": noisy(data.validation, case.noise, seed=seed + 1).batches(500),
        }
        self.model = self.network(seed)

    def network(self, seed: int) -> nn.Module:
        """A new network."""
        options = dict(self.case.options)
        return build_network(self.case.network, data=self.spec, seed=seed, **options)

    def calibrated(self, weights: Weights) -> dict[str, Tensor]:
        """The weights with BatchNorm statistics of their own."""
        return weights | Task(self.model, self.train).recalibrated(weights)

    def span(self, shape: Shape, corners: Iterable[Weights]) -> Span:
        """Points between some weights."""
        return Span(shape, tuple(corners), Task(self.model, self.train))

    def judge(self, weights: Weights) -> dict[str, float]:
        """Metrics on test data."""
        return evaluate(self.model, METRICS, weights=weights, data=self.test)

    def judge_together(self, members: list[dict[str, Tensor]]) -> dict[str, float]:
        """Metrics of the mean prediction on test data."""
        return evaluate(Ensemble(self.model, members), METRICS, data=self.test)

    def worst(self, span: Span) -> dict[str, float]:
        """The lowest accuracy and the highest loss between the corners."""
        points = 11 if len(span.corners) < 3 or span.shape.name == "bezier" else 5
        found = evaluate_span(span, Task(self.model, self.test), metrics=METRICS, points=points)
        return {"accuracy": found.worst("accuracy", highest=True), "loss": found.worst("loss")}


def noisy(examples: Examples, share: float, *, seed: int) -> Examples:
    """Draw the labels of a share of the examples anew, any class alike."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(examples), generator=generator)[: round(share * len(examples))]
    labels = examples.labels.clone()
    labels[chosen] = torch.randint(10, (len(chosen),), generator=generator)
    return replace(examples, labels=labels)


@dataclass
class Ordinary:
    """What the training of one network gives."""

    last: dict[str, Tensor]
    averaged: dict[str, Tensor]
    stopped: dict[str, dict[str, Tensor]]  # by the labels of the validation data


def train_one(bench: Bench, *, seed: int, rate_from: float = 1.0) -> Ordinary:
    """Train one network as the corners are trained; from a share of the epochs at SWA's rate."""
    descent, model = bench.case.descent, bench.network(seed)
    optimizer = descent.build(list(model.parameters()))
    first = int(rate_from * descent.epochs)
    averages = Averages(model, [SWA(start=0)])
    stopped: dict[str, tuple[float, dict[str, Tensor]]] = {}
    torch.manual_seed(seed)
    data = replace(bench.train, seed=seed)  # an order of its own, as for an independent network
    for epoch in range(descent.epochs):
        model.train()
        for number, batch in enumerate(data.epoch(epoch)):
            rate = SWA_RATE if epoch >= first else descent.rate(epoch + (number + 0.5) / len(data))
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad()
            classification_loss(model, batch).backward()
            optimizer.step()
        if epoch >= first:
            averages.update()
        for labels, part in bench.validation.items():
            found = evaluate(model, {"accuracy": accuracy}, data=part)["accuracy"]
            if labels not in stopped or found > stopped[labels][0]:
                stopped[labels] = (found, clone(weights_of(model)))
    averaged = averages.weights(SWA(start=0)) if first < descent.epochs else {}
    return Ordinary(
        clone(weights_of(model)), averaged, {name: kept for name, (_, kept) in stopped.items()}
    )


def single_networks(bench: Bench) -> Iterator[tuple[str, dict[str, float]]]:
    """One network, two networks, and the usual averages."""
    first, second = (train_one(bench, seed=bench.seed + more) for more in (0, OTHER))
    swa = train_one(bench, seed=bench.seed, rate_from=AVERAGED_FROM)
    yield "standard", bench.judge(first.last)
    yield "SWA", bench.judge(bench.calibrated(swa.averaged))
    yield "early stopping, clean validation labels", bench.judge(first.stopped["clean"])
    if bench.case.noise:
        yield "early stopping, noisy validation labels", bench.judge(first.stopped["noisy"])
    line = bench.span(Shape("simplex", 2), (first.last, second.last))
    yield "two networks: midpoint", bench.judge(line.midpoint)
    yield "two networks: worst point", bench.worst(line)
    yield "two networks: ensemble", bench.judge_together([first.last, second.last])
    yield from curve_between(bench, first.last, second.last)


def curve_between(
    bench: Bench, start: Weights, end: Weights
) -> Iterator[tuple[str, dict[str, float]]]:
    """A curve between two networks: what the loss does on the way, and what its middle is worth."""
    plan = CurvePlan(descent=replace(bench.case.descent, epochs=bench.case.descent.epochs // 2))
    curve = fit_curve(start, end, Task(bench.model, bench.train), plan=plan)
    yield "curve between two networks: midpoint", bench.judge(curve.at(0.5))
    yield "curve between two networks: worst point", bench.worst(curve.span)
    yield "barrier of the training loss: straight", {"loss": curve.straight.height}
    yield "barrier of the training loss: curve", {"loss": curve.along.height}


def subspaces(bench: Bench) -> Iterator[tuple[str, dict[str, float]]]:
    """Lines, curves and simplices, with and without repulsion."""
    for repulsion in (1.0, 0.0):
        plans = {
            "line": SubspacePlan("line", repulsion=repulsion),
            "line, layer by layer": SubspacePlan("line", repulsion=repulsion, layerwise=True),
            "curve": SubspacePlan("curve", repulsion=repulsion),
            "simplex of 3": SubspacePlan("simplex", corners=3, repulsion=repulsion),
        }
        for name, plan in plans.items():
            found = train_subspace(
                Task(bench.model, bench.train),
                plan=replace(plan, descent=replace(bench.case.descent, seed=bench.seed)),
                initial=[
                    weights_of(bench.network(bench.seed + corner * OTHER))
                    for corner in range(plan.corners)
                ],
            )
            yield from judged(bench, found, f"{name}, beta {repulsion:g}")


def judged(bench: Bench, found: Subspace, name: str) -> Iterator[tuple[str, dict[str, float]]]:
    """Midpoint, worst point and ensembles of a subspace."""
    yield f"{name}: midpoint", bench.judge(found.midpoint) | {"cosine": found.cosine}
    yield f"{name}: worst point", bench.worst(found.span)
    places = found.span.shape.positions(2)
    members = [found.at(position) for position in places]
    yield f"{name}: ensemble of {len(members)} ends", bench.judge_together(members)
    yield f"{name}: ensemble with the midpoint", bench.judge_together([*members, found.midpoint])


def rows_of_ways(seeds: list[dict[str, dict[str, float]]]) -> list[list[str]]:
    """A row for each way that is no subspace: means over the seeds."""
    rows = []
    for name in seeds[0]:
        if "beta" in name or "barrier" in name:
            continue
        rows.append(
            [
                name,
                accuracies(seeds, name),
                beside(seeds, name) if name != "standard" else "",
                spread([seed[name]["loss"] for seed in seeds], "{:.3f}"),
                "2" if name.startswith("two") else "2.5" if "between two" in name else "1",
            ]
        )
    return rows


def rows_of_subspaces(seeds: list[dict[str, dict[str, float]]]) -> list[list[str]]:
    """A row for each subspace: means over the seeds."""
    rows = []
    for name in seeds[0]:
        if not name.endswith(": midpoint") or "beta" not in name:
            continue
        own = name.partition(":")[0]
        ends = next(other for other in seeds[0] if other.startswith(f"{own}: ensemble of"))
        rows.append(
            [
                own,
                accuracies(seeds, name),
                beside(seeds, name),
                spread([seed[name]["loss"] for seed in seeds], "{:.3f}"),
                beside(seeds, f"{own}: worst point"),
                beside(seeds, ends),
                beside(seeds, f"{own}: ensemble with the midpoint"),
                spread([seed[name]["cosine"] for seed in seeds], "{:.2f}"),
            ]
        )
    return rows


def accuracies(seeds: list[dict[str, dict[str, float]]], name: str) -> str:
    """Test accuracy in per cent."""
    return spread([100 * seed[name]["accuracy"] for seed in seeds], "{:.1f}")


def beside(seeds: list[dict[str, dict[str, float]]], name: str) -> str:
    """Test accuracy less that of the standard network of the same seed, in points."""
    return spread(
        [100 * (seed[name]["accuracy"] - seed["standard"]["accuracy"]) for seed in seeds], "{:+.1f}"
    )


def text_of(name: str, case: Case, seeds: list[dict[str, dict[str, float]]]) -> str:
    """The tables of a case."""
    straight, curved = (
        spread([seed[f"barrier of the training loss: {way}"]["loss"] for seed in seeds], "{:.3f}")
        for way in ("straight", "curve")
    )
    noise = f"{case.noise:.0%} of the training labels at random" if case.noise else "clean labels"
    ways = ("", "test accuracy, %", "beside standard", "test loss", "trainings")
    subspaces = (
        "",
        "midpoint, %",
        "midpoint",
        "its test loss",
        "worst point",
        "ensemble of the ends",
        "with the midpoint",
        "cosine",
    )
    return "\n".join(
        [
            f"\n## {name}\n",
            f"{case.network} {dict(case.options)}, {noise}, {case.descent.epochs} epochs, "
            f"{len(seeds)} seeds: mean ± sample standard deviation.\n",
            table(ways, rows_of_ways(seeds)),
            "\nOne training each; test accuracy of the midpoint, then points beside standard:\n",
            table(subspaces, rows_of_subspaces(seeds)),
            f"\nBetween two independent networks the training loss rises by {straight} on the "
            f"straight line, by {curved} on a quadratic curve fitted in half as many epochs.",
        ]
    )


def spread(values: list[float], pattern: str) -> str:
    """The mean, and the deviation if there are several values."""
    mean = pattern.format(statistics.mean(values))
    own = pattern.replace("+", "")
    return f"{mean} ± {own.format(statistics.stdev(values))}" if len(values) > 1 else mean


def save(output: Path, facts: dict[str, Any], found: dict[str, dict[str, Any]]) -> None:
    """Write the page, and all figures beside it."""
    pages = [
        text_of(name, CASES[name], list(seeds.values())) for name, seeds in found.items() if seeds
    ]
    text = "\n".join(["# Subspaces of networks", "", machine_line(facts), *pages])
    cases = {name: asdict(CASES[name]) for name in found}
    write(output, text, {"machine": facts, "settings": cases, "cases": found})


def main() -> None:
    """Run the cases that are named, those of the MLP if none is."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--case", action="append", choices=list(CASES))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    kept = given.output.with_suffix(".json")
    data = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {"cases": {}}
    facts = data.get("machine") or machine()
    found: dict[str, dict[str, Any]] = data["cases"]
    for name in given.case or ("clean", "noisy"):
        seeds = found.setdefault(name, {})
        for seed in range(given.seeds):
            if str(seed) in seeds:
                continue
            bench = Bench(CASES[name], seed)
            seeds[str(seed)] = dict([*single_networks(bench), *subspaces(bench)])
            save(given.output, facts, found)
    save(given.output, facts, found)


if __name__ == "__main__":
    main()
