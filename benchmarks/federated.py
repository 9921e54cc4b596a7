"""Bytes and accuracy of federated training, by what is exchanged and how it is written.

    python benchmarks/federated.py --output benchmarks/results/federated
    python benchmarks/federated.py --data mnist:DIR --width 128 --examples 6000 --output ...

Flower's own apps over an in-process grid; 10 clients, 100 rounds. Rates and schedules were chosen
on validation data; the tables show test data, the mean of the last five rounds. Every finished run
is kept beside the output, so that an interrupted benchmark resumes where it stopped.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from common import machine, machine_line, table, write
from slipstream.federated import Exact, GrowingModes
from slipstream.federated.training import (
    METHODS,
    FederatedPlan,
    FederatedRun,
    Method,
    train_federated,
)
from slipstream.modes.growth import Growth
from slipstream.named_task import NamedTask

SPLITS = {"iid": None, "Dirichlet 0.3": 0.3}
CONTROLS: dict[str, Method] = {
    "held where they are": lambda: (GrowingModes(Growth(modes=0)), Exact()),
    "random groups": lambda: (GrowingModes(Growth(groups="random")), Exact()),
    "modes, by stability": lambda: (
        GrowingModes(replace(Growth(), criterion="stability")),
        Exact(),
    ),
    "modes, the paper's schedule": lambda: (
        GrowingModes(Growth(warm_up=20, every=10, share=0.1, criterion="coefficients")),
        Exact(),
    ),
}


@dataclass(frozen=True)
class Result:
    """One federated training."""

    method: str
    split: str
    failing: float
    seed: int
    accuracy: float  # test
    loss: float  # test
    validation_accuracy: float
    validation_loss: float
    bytes_down: int
    bytes_up: int
    replies: int
    everything: int  # how often a client was sent everything


def result_of(run: FederatedRun, key: dict[str, Any]) -> Result:
    """Return what the tables show of a run."""
    return Result(
        **key,
        accuracy=run.final(run.test),
        loss=run.final(run.test, "loss"),
        validation_accuracy=run.final(run.validation),
        validation_loss=run.final(run.validation, "loss"),
        bytes_down=run.bytes_down,
        bytes_up=run.bytes_up,
        replies=sum(len(done.accepted) for done in run.rounds),
        everything=sum(len(done.everything) for done in run.rounds),
    )


def rows(results: list[Result], base: list[Result]) -> list[tuple[str, ...]]:
    """Return a row for each method: means over the seeds, beside FedAvg of the same seed."""
    plain = {one.seed: one for one in base}
    found = []
    for method in dict.fromkeys(result.method for result in results):
        own = [result for result in results if result.method == method]
        less = [100 * (one.accuracy - plain[one.seed].accuracy) for one in own]
        found.append(
            (
                method,
                str(len(own)),
                _spread([100 * one.accuracy for one in own], "{:.2f}"),
                _spread(less, "{:+.2f}"),
                f"{statistics.mean(one.loss for one in own):.3f}",
                *(
                    f"{statistics.mean(share(one, plain[one.seed]) for one in own):.1%}"
                    for share in (_up, _down, _both)
                ),
            )
        )
    return found


def text_of(
    results: list[Result], facts: dict[str, Any], setup: NamedTask, plan: FederatedPlan
) -> str:
    """Return the whole page."""
    shares = ("up", "down", "both ways")
    header = ("", "seeds", "test accuracy, %", "beside FedAvg", "test loss", *shares)
    parts = [
        "# Federated training: bytes and accuracy",
        f"\n{machine_line(facts)}\n",
        f"{setup.model} of width {setup.width:g} on {setup.data.partition(':')[0]}; "
        f"{plan.clients} clients, {plan.rounds} rounds, {plan.epochs} epoch a round of SGD with "
        f"momentum {plan.momentum:g} at {plan.lr:g}. "
        "Bytes beside those of FedAvg without failures.",
    ]
    for split in SPLITS:
        base = [r for r in results if (r.method, r.split, r.failing) == ("fedavg", split, 0)]
        for failing in sorted({r.failing for r in results}):
            own = [r for r in results if (r.split, r.failing) == (split, failing)]
            own = [r for r in own if r.seed in {b.seed for b in base}]
            if own:
                fails = f", {failing:.0%} of the messages lost" if failing else ""
                parts.append(f"\n## {split}{fails}\n\n{table(header, rows(own, base))}")
    return "\n".join(parts)


def _up(one: Result, base: Result) -> float:
    return one.bytes_up / base.bytes_up


def _down(one: Result, base: Result) -> float:
    return one.bytes_down / base.bytes_down


def _both(one: Result, base: Result) -> float:
    return (one.bytes_up + one.bytes_down) / (base.bytes_up + base.bytes_down)


def _spread(values: list[float], pattern: str) -> str:
    mean = pattern.format(statistics.mean(values))
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean


def keys(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Return what is to be run, the most important first."""
    named = given.method or [*METHODS, *CONTROLS]
    wanted = [(m, 0.0, seed) for seed in range(given.seeds) for m in METHODS if m in named]
    wanted += [(m, 0.3, 0) for m in METHODS if m in named]
    wanted += [(m, 0.0, seed) for seed in range(given.seeds) for m in CONTROLS if m in named]
    return [
        {"method": method, "split": split, "failing": failing, "seed": seed}
        for method, failing, seed in wanted
        for split in SPLITS
    ]


def main() -> None:
    """Run what is missing, and write the table after every run."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", default="digits", help="digits or mnist:DIR")
    parser.add_argument("--width", type=float, default=64)
    parser.add_argument("--examples", type=int, help="of the training data: the first ones")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--method", action="append", choices=[*METHODS, *CONTROLS])
    parser.add_argument("--limit", type=int, help="stop after so many new runs")
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    kept = given.output.with_suffix(".json")
    data = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {"runs": []}
    results = [Result(**run) for run in data["runs"]]
    done = [(r.method, r.split, r.failing, r.seed) for r in results]
    facts = data.get("machine") or machine()
    options = {"hidden_layers": 2}
    setup = NamedTask(
        "mlp", given.data, width=given.width, options=options, examples=given.examples
    )
    plan = FederatedPlan(rounds=given.rounds, lr=given.lr)
    every: dict[str, Callable[[], Any]] = {**METHODS, **CONTROLS}
    missing = [key for key in keys(given) if tuple(key.values()) not in done]
    for key in missing[: given.limit]:
        policy, encoding = every[key["method"]]()
        own = replace(plan, alpha=SPLITS[key["split"]], failing=key["failing"], seed=key["seed"])
        seeded = replace(setup, seed=key["seed"])
        run = train_federated(seeded, own, policy=policy, encoding=encoding)
        results.append(result_of(run, key))
        save(given.output, text_of(results, facts, setup, plan), facts, results)
    save(given.output, text_of(results, facts, setup, plan), facts, results)


def save(output: Path, text: str, facts: dict[str, Any], results: list[Result]) -> None:
    """Write the page, and all runs beside it."""
    write(output, text, {"machine": facts, "runs": [asdict(result) for result in results]})


if __name__ == "__main__":
    main()
