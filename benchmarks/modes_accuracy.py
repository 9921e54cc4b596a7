"""Whether modes are better weights than averages: test accuracy from the same recorded runs.

    python benchmarks/modes_accuracy.py --case cifar10-conv --cifar10 DIR --runs runs --output OUT

For each recipe and seed one run is recorded (kept in `--runs`, and not trained again), a snapshot
each epoch. What stands in OUT.json is not judged again.

Every way reads that same run. What a way leaves open is chosen on the validation data: the start
of SWA, the decay of EMA, the length of LAWA; for modes the number of epochs left out (F), the
number of modes (M), and for `shrunk` the share c of the way from the mean to the present value of
the references (SWA is c = 0, the others are c = 1). BatchNorm is recalibrated for each. Test data
are used once, for what was chosen.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common import machine, machine_line, table, write
from slipstream.averaging import EMA, LAWA, SWA, average_run, choose_average
from slipstream.evaluation import evaluate
from slipstream.modes import Modes, fit_modes
from slipstream.named_task import NamedTask, rebuild
from slipstream.storage.new_run import NewRun
from slipstream.training import TrainingPlan, record_training
from slipstream.trajectory import Trajectory
from slipstream.weights import Weights

Makers = dict[str, Callable[[], Weights]]
CALIBRATION = 20  # batches
MODES = (2, 5, 10)


@dataclass(frozen=True)
class Case:
    """A network with its data, and two recipes to train it."""

    setup: dict[str, Any]
    epochs: int
    plain: dict[str, Any]  # a constant rate and no weight decay, as in the paper
    strong: dict[str, Any]

    def plan(self, recipe: str) -> TrainingPlan:
        """Return how to train."""
        return TrainingPlan(epochs=self.epochs, **getattr(self, recipe))


CASES = {
    "digits": Case(
        {"model": "mlp", "data": "digits", "width": 64, "options": {"hidden_layers": 2}},
        epochs=60,
        plain={"lr": 0.1, "momentum": 0.0},
        strong={"lr": 0.1, "schedule": "cosine", "weight_decay": 5e-4},
    ),
    "cifar10-conv": Case(
        {"model": "conv_net", "data": "cifar10:{cifar10}", "width": 0.25,
         "options": {"batchnorm": True}, "examples": 10_000},
        epochs=30,
        plain={"lr": 0.05, "momentum": 0.9},
        strong={"lr": 0.1, "schedule": "cosine", "weight_decay": 5e-4},
    ),
    "mnist-mlp": Case(
        {"model": "mlp", "data": "mnist:{mnist}", "width": 64, "examples": 10_000},
        epochs=40,
        plain={"lr": 0.05, "momentum": 0.9},
        strong={"lr": 0.1, "schedule": "cosine", "weight_decay": 5e-4},
    ),
    "cifar10-mlp": Case(
        {"model": "mlp", "data": "cifar10:{cifar10}", "width": 128, "examples": 10_000},
        epochs=40,
        plain={"lr": 0.02, "momentum": 0.0},
        strong={"lr": 0.02, "schedule": "cosine", "weight_decay": 5e-4},
    ),
    "cifar10-resnet18": Case(
        {"model": "resnet18", "data": "cifar10:{cifar10}"},
        epochs=100,
        plain={"lr": 0.05, "momentum": 0.9},
        strong={"lr": 0.1, "schedule": "cosine", "weight_decay": 5e-4},
    ),
}  # fmt: skip


@dataclass(frozen=True)
class KernelRule:
    """An average with given shares: those by which a mode is one."""

    shares: tuple[float, ...]

    def kernel(self, steps: Sequence[int]) -> list[float]:
        """Return the shares, one for each step."""
        return list(self.shares)


def ways(run: Trajectory) -> dict[str, Makers]:
    """For each way, its candidates, made when they are called; the first snapshot is the start."""
    epochs = len(run) - 1
    late = sorted({epochs // 4, epochs // 2, 3 * epochs // 4})
    steps = run.steps
    modelled = {
        f"{reference} {grouping}": {
            f"F={start} M={count}": lambda s=start, m=count, r=reference, g=grouping: now(
                fit_modes(run[s:], modes=m, reference=r, grouping=g)
            )
            for start in late
            for count in MODES
        }
        for reference in ("member", "component")
        for grouping in ("complete", "k-means")
    }
    return {
        "last": {"last": lambda: run[-1].weights},
        "SWA": {f"from {s}": lambda s=s: average_run(run, SWA(steps[s])) for s in late},
        "EMA": {f"{d:g}": lambda d=d: average_run(run, EMA(d)) for d in (0.5, 0.8, 0.9, 0.95)},
        "LAWA": {f"{n}": lambda n=n: average_run(run, LAWA(n)) for n in (3, 5, 10, 20)},
        **{f"modes, {name}": makers for name, makers in modelled.items()},
        "modes, shrunk": {
            f"F={start} M={count} c={c}": lambda s=start, m=count, c=c: now(
                fit_modes(run[s:], modes=m, reference="component", grouping="k-means"), share=c
            )
            for start in late
            for count in MODES
            for c in (0.25, 0.5)
        },
        "one mode": {
            f"F={s}": lambda s=s: now(fit_modes(run[s:], modes=1, reference="component"))
            for s in late
        },
        "random groups": {f"F={s} M=10": lambda s=s: random_groups(run[s:]) for s in late},
    }


def now(modes: Modes, *, share: float = 1.0) -> Weights:
    """The modelled weights at the end, or only a share of the way from the mean to there."""
    return modes.weights_from(share * modes.references[:, -1])


def random_groups(run: Trajectory, *, count: int = 10) -> dict[str, Tensor]:
    """Each weight follows a mode drawn blindly: a mixture of averages, one kernel for each mode."""
    r = fit_modes(run, modes=count).references
    shares = 1 / len(run) + r[:, -1:] * r / r.square().sum(1, keepdim=True)
    averages = [average_run(run, KernelRule(tuple(row.tolist()))) for row in shares]
    generator = torch.Generator().manual_seed(0)
    mixed = dict(averages[0])
    for name, value in mixed.items():
        drawn = torch.randint(count, value.shape, generator=generator)
        for mode, average in enumerate(averages):
            mixed[name] = torch.where(drawn == mode, average[name], mixed[name])
    return mixed


def judge(folder: Path, device: str) -> Iterator[tuple[str, str, float]]:
    """For each way: its name, what was chosen on validation data, and its test accuracy."""
    run = Trajectory.open(folder)
    experiment = rebuild(run.description["configuration"], device=device)
    calibration = list(islice(experiment.data, CALIBRATION))
    validation, test = list(experiment.validation), list(experiment.test)
    for name, makers in ways(run).items():
        choice = choose_average(
            makers,
            replace(experiment, validation=validation, calibration=calibration),
            criterion="accuracy",
            highest=True,
        )
        metrics = evaluate(experiment.model, experiment.measured, weights=choice.weights, data=test)
        yield name, choice.best.name, metrics["accuracy"]


def recorded(case: Case, recipe: str, seed: int, runs: Path, options: argparse.Namespace) -> Path:
    """The run of a seed, trained if it is not there."""
    folder = runs / f"{options.case}-{recipe}-{seed}"
    plan = case.plan(recipe)
    if (folder / "run.json").is_file() and len(Trajectory.open(folder)) == plan.epochs + 1:
        return folder
    data = case.setup["data"].format(cifar10=options.cifar10, mnist=options.mnist)
    setup = NamedTask(**(case.setup | {"data": data}), seed=seed)
    task, plan = setup.build(device=options.device), replace(plan, seed=seed)
    record_training(task, plan, run_folder=NewRun(folder, overwrite=True))
    return folder


def earlier(output: Path | None, case: str) -> list[dict[str, Any]]:
    """What an interrupted comparison found by then."""
    file = output and output.with_suffix(".json")
    if not (file and file.is_file()):
        return []
    result = json.loads(file.read_text(encoding="utf-8"))
    if result["case"] != case:
        raise ValueError(f"{file} is of the case {result['case']}, not {case}.")
    return result["found"]


def summary(found: list[dict[str, Any]], recipe: str) -> str:
    """Mean accuracies, and paired differences to the best of the averages."""
    own = [row for row in found if row["recipe"] == recipe]
    names = list(dict.fromkeys(row["way"] for row in own))
    by_way = {name: [r["accuracy"] for r in own if r["way"] == name] for name in names}
    best = max(("SWA", "EMA", "LAWA"), key=lambda name: statistics.fmean(by_way[name]))
    rows = []
    for name, values in by_way.items():
        differences = [100 * (a - b) for a, b in zip(values, by_way[best], strict=True)]
        chosen = [r["chosen"] for r in own if r["way"] == name]
        rows.append(
            (
                name,
                f"{100 * statistics.fmean(values):.2f}",
                "" if name == best else f"{statistics.fmean(differences):+.2f}",
                "" if name == best else f"{standard_error(differences):.2f}",
                max(set(chosen), key=chosen.count),
            )
        )
    header = ("", "test accuracy, %", f"against {best}", "standard error", "chosen most often")
    return table(header, rows)


def standard_error(values: Iterable[float]) -> float:
    """Of the mean."""
    held = list(values)
    return statistics.stdev(held) / len(held) ** 0.5 if len(held) > 1 else 0.0


def main() -> None:
    """Record, judge, print the tables and write them after every run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=CASES, default="digits")
    parser.add_argument("--cifar10", help="folder of CIFAR-10")
    parser.add_argument("--mnist", help="folder of MNIST")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--runs", type=Path, help="where runs are kept (default: nowhere)")
    parser.add_argument("--output", type=Path, help="writes OUTPUT.md and OUTPUT.json")
    options = parser.parse_args()
    case, facts = CASES[options.case], machine()
    found = earlier(options.output, options.case)
    with tempfile.TemporaryDirectory() as temporary:
        runs = options.runs or Path(temporary)
        for seed in range(options.seeds):
            for recipe in ("plain", "strong"):
                if any(row["seed"] == seed and row["recipe"] == recipe for row in found):
                    continue
                folder = recorded(case, recipe, seed, runs, options)
                found += [
                    {"recipe": recipe, "seed": seed, "way": w, "chosen": c, "accuracy": a}
                    for w, c, a in judge(folder, options.device)
                ]
            result = {"machine": facts, "case": options.case, "found": found}
            write(options.output, as_markdown(result, case, seed + 1), result)


def as_markdown(result: dict[str, Any], case: Case, seeds: int) -> str:
    """The tables of both recipes."""
    parts = [
        f"# Modes against averages: {result['case']}",
        f"{machine_line(result['machine'])} `python benchmarks/modes_accuracy.py --case "
        f"{result['case']}`, {seeds} seeds.",
        *__doc__.strip().split("\n\n")[2:],
    ]
    for recipe in ("plain", "strong"):
        parts += [f"## {recipe}: {case.plan(recipe)}", summary(result["found"], recipe)]
    return "\n\n".join(parts)


if __name__ == "__main__":
    main()
