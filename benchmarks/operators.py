"""Is an average of operator networks a start for an unseen equation that is tuned without data?

    python benchmarks/operators.py --work work --output benchmarks/results/operators

Three equations, u_t + c u u_x = nu u_xx, are pre-trained: together with a shared branch and local
trunks that began apart or equal, and each alone. Every start is tuned to a fourth equation by its
residual, all weights or low ranks. Rates and steps are chosen by the loss of the equation on
held-out functions; errors are for reporting. Each result is kept in the work folder, from which an
interrupted benchmark goes on; the table holds what is there.
"""

import argparse
import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common import machine, machine_line, table, write
from slipstream.evaluation import Task
from slipstream.recipes import (
    OperatorPlan,
    PhysicsPlan,
    PhysicsProblem,
    average_operators,
    feed_functions,
    function_loss,
    operator_errors,
    physics_metrics,
    pretrain_operators,
    tune_operator,
)
from slipstream.testbed.deeponet import DeepONet
from slipstream.testbed.equations import FlowEquation, points_of, random_functions, solution_batches
from slipstream.training import TrainingPlan, trained_copy
from slipstream.weights import Weights, load_weights_, weights_of

SOURCES = (FlowEquation(1.0, 0.02), FlowEquation(0.5, 0.05), FlowEquation(0.0, 0.05))
TARGET, SENSORS, WAVES = FlowEquation(1.0, 0.01), 64, 3
FUNCTIONS, BATCH, INSTANTS, TESTED = 200, 50, 9, 50
RATES, RANK, POINTS, INPUTS = (1e-3, 3e-3), 8, 64, 2500
ROWS = {
    "random": "random",
    "matched": "average, begun apart, matched",
    "single": "best single operator, trained alone",
    "equal": "average, begun equal",
    "unmatched": "average, begun apart, not matched",
    "trunk 1": "trunk of c 1, nu .02",
    "trunk 2": "trunk of c .5, nu .05",
    "trunk 3": "trunk of c 0, nu .05",
}
MAIN = ("random", "matched", "single", "equal")
ORDER = [
    *((row, 0) for row in (*MAIN, "unmatched")),
    *((row, RANK) for row in MAIN),
    *((row, 0) for row in ROWS if row.startswith("trunk")),
    *((row, RANK) for row in ROWS if row not in MAIN),
]


def functions(count: int, seed: int) -> Tensor:
    """Return input functions."""
    return random_functions(count, positions=SENSORS, waves=WAVES, seed=seed)


def network(seed: int) -> DeepONet:
    """Return a new network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DeepONet(sensors=SENSORS)


def pretrained(seed: int, epochs: int) -> dict[str, Any]:
    """Return all starts of a seed, what they cost, and which single one was taken."""
    data = [
        solution_batches(
            equation, functions(FUNCTIONS, 100 * seed + number), instants=INSTANTS, batch_size=BATCH
        )
        for number, equation in enumerate(SOURCES)
    ]
    model, task = network(seed), tuning_task(seed)
    descent = TrainingPlan.cosine(epochs, "adam", 3e-3, weight_decay=0.0, seed=seed, warm_up=0.02)
    plans = {begun: OperatorPlan(begun=begun, descent=descent) for begun in ("apart", "equal")}
    found = {
        begun: pretrain_operators(Task(model, loss=function_loss), operators=data, plan=plan)
        for begun, plan in plans.items()
    }
    alone = [trained_copy(Task(model, own, function_loss), descent) for own in data]
    problem = PhysicsProblem.even(TARGET.residual, SENSORS)
    losses = [physics_metrics(one, task, problem=problem)["physics"] for one in alone]
    best = min(range(len(alone)), key=lambda number: losses[number])
    seen = Task(model, seen_batches(seed), forward=feed_functions)
    apart, equal = (found[begun].operators for begun in ("apart", "equal"))
    starts: dict[str, Weights] = {
        "random": weights_of(network(seed + 1000)),
        "single": weights_of(alone[best]),
        "equal": average_operators(equal, seen, match=False).weights,
        "unmatched": average_operators(apart, seen, match=False).weights,
        "matched": average_operators(apart, seen).weights,
        **{f"trunk {number}": weights for number, weights in enumerate(apart, start=1)},
    }
    own = [
        [float(operator_errors(model, batches, weights=w).mean()) for w in (apart[n], equal[n])]
        + [float(operator_errors(alone[n], batches).mean())]
        for n, batches in enumerate(data)
    ]
    return {
        "starts": {n: {k: v.detach().clone() for k, v in w.items()} for n, w in starts.items()},
        "facts": {
            "best": best + 1, "single losses": losses, "training errors": own,
            "bytes up": found["apart"].bytes_up, "bytes down": found["apart"].bytes_down,
            "rounds": len(found["apart"].rounds) - 1, "steps": found["apart"].steps,
        },
    }  # fmt: skip


def seen_batches(seed: int) -> list[Any]:
    """Return functions and points on which neurons are matched."""
    points = points_of(torch.linspace(0, 1, INSTANTS), SENSORS)
    return [((functions(BATCH, 100 * seed + 50), points), None)]


def tuning_task(seed: int) -> Task:
    """Return input functions without solutions."""
    own = torch.split(functions(INPUTS, 100 * seed + 60), BATCH)
    return Task(network(seed), list(own), validation=[functions(BATCH, 100 * seed + 61)])


def tuned(
    start: Weights, seed: int, rank: int, epochs: int, rates: tuple[float, ...]
) -> dict[str, Any]:
    """Tune a start to the target; errors are measured afterwards."""
    task, model = tuning_task(seed), network(seed)
    load_weights_(model, start)
    descent = TrainingPlan.cosine(epochs, "adam", rates[0], weight_decay=0.0, seed=seed)
    plan = PhysicsPlan(
        rank=rank,
        points=POINTS,
        boundary=0.0,
        rates=rates if len(rates) > 1 else (),
        descent=replace(descent, warm_up=0.02),
    )
    problem = PhysicsProblem.even(TARGET.residual, SENSORS)
    found = tune_operator(replace(task, model=model), problem=problem, plan=plan)
    return {
        "after": errors(found.weights),
        "loss before": found.held_out[0], "loss": found.best, "step": found.step,
        "rate": found.rate, "trials": {str(r): loss for r, loss in found.trials.items()},
        "trained": found.trained, "steps": found.steps, "seconds": found.seconds,
    }  # fmt: skip


def errors(weights: Weights) -> list[float]:
    """Return the mean error and the worst one on the unseen equation."""
    test = solution_batches(TARGET, functions(TESTED, 99_999))
    found = operator_errors(network(0), test, weights=weights)
    return [float(found.mean()), float(found.max())]


def cell(values: list[float]) -> str:
    """Return mean and deviation."""
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


def lines(kept: dict[str, Any]) -> list[list[str]]:
    """Return the rows of the table."""
    found = []
    for row, name in ROWS.items():
        parts = {
            rank: [one for key, one in kept.items() if key.split("|")[:2] == [row, str(rank)]]
            for rank in (0, RANK)
        }
        before = [one for key, one in kept.items() if key.startswith(f"before|{row}|")]
        found.append([
            name, *(cell([one[at] for one in before]) for at in (0, 1)),
            *(
                cell([one["after"][at] for one in parts[rank]])
                for rank in (0, RANK)
                for at in (0, 1)
            ),
            *(cell([one["loss"] for one in parts[rank]]) for rank in (0, RANK)),
            f"{len(parts[0])}, {len(parts[RANK])}",
        ])  # fmt: skip
    return found


def report(kept: dict[str, Any], facts: dict[str, Any], given: argparse.Namespace) -> None:
    """Write what is there."""
    header = ["start", "before: mean", "worst", "all weights: mean", "worst",
              f"LoRA, rank {RANK}: mean", "worst", "loss, all", "loss, LoRA",
              "seeds tuned"]  # fmt: skip
    costs = [value for key, value in kept.items() if key.startswith("facts|")]
    up, down = (statistics.mean(c[f"bytes {way}"] for c in costs) / 1e6 for way in ("up", "down"))
    tuned_ones = [value for key, value in kept.items() if key.partition("|")[0] in ROWS]
    steps = max((one["steps"] for one in tuned_ones), default=0)
    text = "\n\n".join([
        "# Operators",
        f"Relative L2 error on {TESTED} test functions of the unseen equation c {TARGET.steepening}"
        f", nu {TARGET.viscosity}, mean and worst function, before and after {steps} steps on its "
        "residual; mean and deviation over seeds. *Loss* is that of the equation on held-out "
        "functions, by which rate and step were chosen. Rates, of the first seed: "
        f"{', '.join(map(str, RATES))}. *Seeds tuned*: with all weights, with LoRA; a dash was not "
        "run.",
        table(header, lines(kept)),
        f"Pre-training: {costs[0]['steps']} steps of each operator, {costs[0]['rounds']} rounds, "
        f"{up:.2f} MB up and {down:.2f} MB down together; trunks are not sent.",
        machine_line(facts),
    ])  # fmt: skip
    write(given.output, text, {"machine": facts, "results": kept})


def main() -> None:
    """Run what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="Folder for results to keep.")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pretraining", type=int, default=250, help="Epochs of 4 steps.")
    parser.add_argument("--epochs", type=int, default=100, help="Of 50 steps.")
    parser.add_argument("--report", action="store_true", help="Tune nothing: write what is there.")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    facts, file = machine(), given.work / "kept.json"
    kept: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}

    def keep(key: str, value: Any) -> None:
        kept[key] = value
        file.write_text(json.dumps(kept, indent=1), encoding="utf-8")

    starts = {}
    for seed in range(given.seeds):
        stored = given.work / f"starts-{seed}.pt"
        if not stored.exists():
            made = pretrained(seed, given.pretraining)
            torch.save(made["starts"], stored)
            keep(f"facts|{seed}", made["facts"])
        starts[seed] = torch.load(stored, weights_only=True)
        for row in ROWS:
            if f"before|{row}|{seed}" not in kept:
                keep(f"before|{row}|{seed}", errors(starts[seed][row]))
    for seed in range(given.seeds):
        for row, rank in ORDER:
            key = f"{row}|{rank}|{seed}"
            if key not in kept and not given.report:
                first = kept.get(f"{row}|{rank}|0")
                rates = RATES if first is None else (first["rate"],)
                keep(key, tuned(starts[seed][row], seed, rank, given.epochs, rates))
    report(kept, facts, given)


if __name__ == "__main__":
    main()
