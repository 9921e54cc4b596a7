"""Training with ever fewer numbers, beside full training: accuracy, trained numbers, memory.

    python benchmarks/embedded.py --mnist DIR --output benchmarks/results/embedded

Every way starts from the same weights and sees the same batches. How many weights are embedded
when was chosen on validation data; the tables show test data. Every finished run is kept beside the
output, so that an interrupted benchmark resumes where it stopped.
"""

import argparse
import json
import statistics
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from common import machine, machine_line, table, write
from slipstream.evaluation import evaluate
from slipstream.modes.embedded import EmbeddedModes, EmbeddingReport
from slipstream.modes.growth import Growth
from slipstream.named_task import NamedTask
from slipstream.training import TrainingPlan, train

LAST = 3  # epochs whose metrics are averaged: one alone is noisy


@dataclass(frozen=True)
class Case:
    """A network on a data set, and how it is trained and embedded."""

    setup: NamedTask
    training: TrainingPlan
    growth: Growth


@dataclass(frozen=True)
class Result:
    """One training."""

    way: str
    seed: int
    validation: dict[str, float]
    test: dict[str, float]
    trained_on_average: float  # numbers trained, mean over the epochs, relative to all weights
    report: dict[str, Any] | None


def cases(mnist: str) -> dict[str, Case]:
    """Return the cases by name."""
    small = {"channels": [16, 32, 64], "hidden": 64}
    return {
        "digits-mlp": Case(
            NamedTask("mlp", "digits", width=128, options={"hidden_layers": 2}, batch_size=32),
            TrainingPlan(epochs=40, lr=0.02),
            Growth(warm_up=8, every=4, share=0.12),
        ),
        # Most weights are embedded long before the training is done: modes must carry it on.
        "digits-mlp-early": Case(
            NamedTask("mlp", "digits", width=128, options={"hidden_layers": 2}, batch_size=32),
            TrainingPlan(epochs=25, lr=0.02),
            Growth(warm_up=2, every=1, share=0.2),
        ),
        "mnist-conv": Case(
            NamedTask("conv_net", f"mnist:{mnist}", options=small, examples=3000, batch_size=64),
            TrainingPlan(epochs=12, lr=0.01),
            Growth(warm_up=4, every=2, share=0.2),
        ),
    }


def ways(growth: Growth) -> dict[str, Growth | None]:
    """Return full training, the embedding, the controls and the other criteria."""
    return {
        "full": None,
        "modes": growth,
        "random groups": replace(growth, groups="random"),
        "held where they are": replace(growth, modes=0),
        "modes, any weights": replace(growth, criterion="random"),
        "held, any weights": replace(growth, modes=0, criterion="random"),
        "modes, by stability": replace(growth, criterion="stability"),
        "modes, the paper's criterion": replace(growth, criterion="coefficients"),
    }


def run(case: Case, way: str, growth: Growth | None, *, seed: int) -> Result:
    """Train once."""
    experiment = replace(case.setup, seed=seed).build()
    found: list[EmbeddedModes] = []
    metrics: list[tuple[dict[str, float], dict[str, float]]] = []
    shares: list[float] = []

    def embed(optimizer: Any) -> None:
        if growth:
            found.append(EmbeddedModes(experiment.model, optimizer, growth=growth))

    def look(epoch: int, _: float) -> None:
        report = found[0].report() if found else None
        shares.append(report.trained / report.weights if report else 1.0)
        if epoch > case.training.epochs - LAST:
            parts = (experiment.validation, experiment.test)
            found_now = [evaluate(experiment.model, experiment.measured, data=p) for p in parts]
            metrics.append((found_now[0], found_now[1]))
        if found:
            found[0].observe()

    train(experiment, case.training, on_optimizer=embed, on_epoch=look)
    means = [_mean([pair[part] for pair in metrics]) for part in (0, 1)]
    report = asdict(found[0].report()) if found else None
    return Result(way, seed, means[0], means[1], statistics.mean(shares), report)


def rows(results: list[Result]) -> list[tuple[str, ...]]:
    """Return a row for each way, means over the seeds."""
    full = {r.seed: r for r in results if r.way == "full"}
    results = [r for r in results if r.seed in full]
    found = []
    for way in dict.fromkeys(result.way for result in results):
        own = [result for result in results if result.way == way]
        reports = [EmbeddingReport(**r.report) for r in own if r.report]
        less = [100 * (r.test["accuracy"] - full[r.seed].test["accuracy"]) for r in own]
        found.append(
            (
                way,
                _spread([100 * r.test["accuracy"] for r in own], "{:.2f}"),
                _spread(less, "{:+.2f}") if reports else "",
                f"{statistics.mean(r.test['loss'] for r in own):.3f}",
                f"{statistics.mean(r.trained / r.weights for r in reports):.1%}" if reports else "",
                f"{statistics.mean(r.trained_on_average for r in own):.1%}",
                f"{statistics.mean(_memory(r) for r in reports):.1%}" if reports else "",
                str(len(own)),
            )
        )
    return found


def text_of(name: str, case: Case, results: list[Result]) -> str:
    """Return the table of a case."""
    growth = case.growth
    weights = next((r.report["weights"] for r in results if r.report), "?")
    return "\n".join(
        [
            f"\n## {name}\n",
            f"{weights} weights, {case.training.epochs} epochs of {case.training.optimizer} with "
            f"momentum at {case.training.lr}. From epoch {growth.warm_up} on, at intervals of "
            f"{growth.every}, {growth.share:.0%} of the weights are embedded.\n",
            table(
                (
                    "",
                    "test accuracy, %",
                    "beside full",
                    "test loss",
                    "trained at the end",
                    "on average",
                    "optimiser memory",
                    "seeds",
                ),
                rows(results),
            ),
        ]
    )


def save(
    output: Path, facts: dict[str, Any], known: dict[str, Case], found: dict[str, list[Result]]
) -> None:
    """Write the page, and all runs beside it."""
    pages = [text_of(name, case, found[name]) for name, case in known.items() if found.get(name)]
    text = "\n".join(["# Training with ever fewer numbers", "", machine_line(facts), *pages])
    data = {name: [asdict(result) for result in results] for name, results in found.items()}
    write(output, text, {"machine": facts, "cases": data})


def _memory(report: EmbeddingReport) -> float:
    return report.optimizer_bytes / report.optimizer_bytes_before


def _mean(found: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.mean(one[name] for one in found) for name in found[0]}


def _spread(values: list[float], pattern: str) -> str:
    mean = pattern.format(statistics.mean(values))
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean


def main() -> None:
    """Run the cases that are named, all if none is."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mnist", default="data", help="folder of MNIST")
    parser.add_argument("--case", action="append", choices=list(cases("")))
    parser.add_argument("--way", action="append", choices=list(ways(Growth())))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    kept = given.output.with_suffix(".json")
    data = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {"cases": {}}
    facts = data.get("machine") or machine()
    found = {name: [Result(**run) for run in runs] for name, runs in data["cases"].items()}
    for name, case in cases(given.mnist).items():
        if given.case and name not in given.case:
            continue
        results = found.setdefault(name, [])
        done = {(result.way, result.seed) for result in results}
        for seed in range(given.seeds):
            for way, growth in ways(case.growth).items():
                named = not given.way or way in given.way or way == "full"
                if named and (way, seed) not in done:
                    results.append(run(case, way, growth, seed=seed))
                    save(given.output, facts, cases(given.mnist), found)
    save(given.output, facts, cases(given.mnist), found)


if __name__ == "__main__":
    main()
