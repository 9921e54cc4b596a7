"""Averages of a run with a constant learning rate, beside trainings whose rate was really decayed.

    python benchmarks/averages.py --cifar10 DATA --text FILE --output benchmarks/results/averages

Everything has the same number of steps. The run is recorded every hundredth of it; the real decays
continue its state, optimiser included, or begin at step 0. Test data is looked at once, by every
row; only the row "best on validation" chooses, on validation data. Each finished seed is kept
beside the output, so that an interrupted benchmark goes on where it stopped.
"""

import argparse
import copy
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common import machine, machine_line, table, write
from slipstream.averaging import (
    EMA,
    LAWA,
    SWA,
    AverageRule,
    Decay,
    PowerEMA,
    average_candidates,
    average_run,
    choose_average,
)
from slipstream.evaluation import Task, batches_of_epoch
from slipstream.named_task import NamedTask
from slipstream.testbed import Examples
from slipstream.trajectory import Trajectory
from slipstream.weights import weights_of
from transfer_cases import Gpt

STEPS, SNAPSHOTS, TESTED, WARM_UP = 500, 100, 1000, 40
DECAYED = 0.8  # of the steps done when the decay begins
Rate = Callable[[int], float]  # step -> share of the learning rate


def tasks(cifar10: str, text: str) -> dict[str, tuple[Callable[[int], Task], float]]:
    """Return how each task is built for a seed, and its learning rate for AdamW."""

    def conv(seed: int) -> Task:
        named = NamedTask("conv_net", f"cifar10:{cifar10}", width=0.25, batch_size=32, seed=seed)
        return named.build()

    def gpt(seed: int) -> Task:
        built = Gpt(text, width=48, batch_size=8, seed=seed).build()
        return replace(built, metrics={}, test=replace(built.test, size=64))

    found: dict[str, tuple[Callable[[int], Task], float]] = {}
    if cifar10:
        found["conv net, CIFAR-10"] = (conv, 2e-3)
    if text:
        found["character GPT"] = (gpt, 3e-3)
    return found


def batches(task: Task) -> Iterator[Any]:
    """Yield batches without end."""
    epoch = 0
    while True:
        yield from batches_of_epoch(task.data, epoch)
        epoch += 1


class Training:
    """A training that can be copied in the middle."""

    def __init__(self, task: Task, lr: float) -> None:
        self.task, self.lr, self.step = task, lr, 0
        self.optimizer = torch.optim.AdamW(task.model.parameters(), lr)
        self.batches = batches(task)

    def run(
        self, until: int, rate: Rate, on_step: Callable[[int], object] = lambda _: None
    ) -> None:
        """Train up to a step."""
        self.task.model.train()
        for step in range(self.step, until):
            for group in self.optimizer.param_groups:
                group["lr"] = self.lr * rate(step) * min(1.0, (step + 0.5) / WARM_UP)
            loss = self.task.loss(self.task.model, next(self.batches))
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            on_step(step + 1)
        self.step = until

    def forked(self) -> "Training":
        """Return a copy that sees the same batches from here on."""
        other = Training(replace(self.task, model=copy.deepcopy(self.task.model)), self.lr)
        other.optimizer.load_state_dict(copy.deepcopy(self.optimizer.state_dict()))
        for _ in range(self.step):
            next(other.batches)
        other.step = self.step
        return other


def falling(curve: Callable[[float], float], start: int, steps: int) -> Rate:
    """Return the rate of a decay from a step to the end, at the middle of each step."""
    return lambda n: curve((n + 0.5 - start) / (steps - start)) if n >= start else 1.0


def one(
    build: Callable[[int], Task], lr: float, seed: int, steps: int
) -> dict[str, dict[str, Any]]:
    """Train with one seed and return loss and accuracy on test data, by row."""
    torch.manual_seed(seed)
    task = build(seed)
    start, every = round(DECAYED * steps), max(1, steps // SNAPSHOTS)
    points, found = {0: kept(task)}, {}
    training = Training(task, lr)

    def record(step: int) -> None:
        if step % every == 0 or step == steps:
            points[step] = kept(task)

    training.run(start, lambda _: 1.0, record)
    for name, curve in (("1 - sqrt", lambda x: 1 - math.sqrt(x)), ("linear", lambda x: 1 - x)):
        fork = training.forked()
        fork.run(steps, falling(curve, start, steps))
        found[f"real decay, {name}, last fifth"] = judged(fork.task, None)
    training.run(steps, lambda _: 1.0, record)
    whole = Training(build(seed), lr)
    whole.run(steps, falling(lambda x: (1 + math.cos(math.pi * x)) / 2, 0, steps))
    found["real decay, cosine, from the start"] = judged(whole.task, None)
    run = Trajectory.from_weights(list(points.values()), steps=list(points))
    found["constant rate, last weights"] = judged(task, None)
    for name, rule in rules(start, steps).items():
        found[name] = judged(task, average_run(run, rule))
    choice = choose_average(
        average_candidates(run, modes=[], rules=rules(start, steps).values()), task
    )
    found["best on validation"] = {**judged(task, choice.weights), "choice": choice.best.name}
    return found


def rules(start: int, steps: int) -> dict[str, AverageRule]:
    """Return the averages by the names of their rows."""
    return {
        "emulated decay, 1 - sqrt, last fifth": Decay(start, "1-sqrt"),
        "emulated decay, linear, last fifth": Decay(start, "linear"),
        "emulated decay, cosine, last fifth": Decay(start, "cosine"),
        "emulated decay, 1 - sqrt, last half": Decay(steps // 2, "1-sqrt"),
        "LAWA, 3 % of the steps": LAWA(window=0.03),
        "SWA, last fifth": SWA(start),
        "EMA .9 of snapshots": EMA(0.9),
        "power EMA, width .1": PowerEMA(0.1),
    }


def kept(task: Task) -> dict[str, Tensor]:
    """Return a copy of the weights."""
    return {name: value.clone() for name, value in weights_of(task.model).items()}


def judged(task: Task, weights: dict[str, Tensor] | None) -> dict[str, Any]:
    """Return the metrics on test data; of an average with BatchNorm's statistics of its own."""
    if weights is not None:
        weights = weights | task.recalibrated(weights)
    return dict(task.evaluate(weights=weights, split="test"))


def shortened(build: Callable[[int], Task]) -> Callable[[int], Task]:
    """Judge images on the first test examples only."""

    def built(seed: int) -> Task:
        task = build(seed)
        held = getattr(task.test, "examples", None)
        if not isinstance(held, Examples):
            return task
        parts = {name: getattr(task, name).examples.take(TESTED).batches(500)
                 for name in ("validation", "test")}  # fmt: skip
        return replace(task, **parts)

    return built


def report(results: dict[str, Any], steps: int, facts: dict[str, Any]) -> str:
    """Return the tables of all tasks."""
    lines = ["# Averages of a run with a constant rate, beside real decays of the rate", ""]
    lines += [f"AdamW, {steps} steps, {SNAPSHOTS} snapshots of the constant run; mean over seeds ± "
              "standard deviation, on test data.", "", machine_line(facts), ""]  # fmt: skip
    for name in dict.fromkeys(key.rpartition("/")[0] for key in results):
        seeds = [value for key, value in results.items() if key.rpartition("/")[0] == name]
        metrics = [metric for metric in next(iter(seeds[0].values())) if metric != "choice"]
        rows = {row: [spread([s[row][m] for s in seeds]) for m in metrics] for row in seeds[0]}
        losses = {row: statistics.mean(s[row]["loss"] for s in seeds) for row in seeds[0]}
        best = min(losses, key=lambda row: losses[row])
        averaged = {row: v for row, v in losses.items() if not row.startswith("real")}
        lines += [f"## {name} ({len(seeds)} seeds)", ""]
        lines += [table(["", *metrics], [[row, *cells] for row, cells in rows.items()]), ""]
        chosen = ", ".join(s["best on validation"]["choice"] for s in seeds)
        nearest = min(averaged, key=lambda row: averaged[row])
        lines += [f"Lowest loss: {best}. Best without a real decay: {nearest}. Chosen on "
                  f"validation data: {chosen}.", ""]  # fmt: skip
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    """Return mean and standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else math.nan
    return f"{statistics.mean(values):.4f} ± {deviation:.4f}"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cifar10", default="", help="folder of CIFAR-10 in its usual layout")
    parser.add_argument("--text", default="", help="file of a text")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    facts = machine()
    stored = options.output.with_suffix(".partial.json") if options.output else None
    results = json.loads(stored.read_text()) if stored and stored.is_file() else {}
    began = time.process_time()
    for name, (build, lr) in tasks(options.cifar10, options.text).items():
        for seed in range(options.seeds):
            key = f"{name}/{seed}"
            if key not in results:
                results[key] = one(shortened(build), lr, seed, options.steps)
                if stored:
                    stored.parent.mkdir(parents=True, exist_ok=True)
                    stored.write_text(json.dumps(results))
    facts["processor seconds"] = round(time.process_time() - began)
    write(
        options.output, report(results, options.steps, facts), {"machine": facts, "test": results}
    )
    if stored:
        stored.unlink()


if __name__ == "__main__":
    main()
