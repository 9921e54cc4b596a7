"""Steps and time to a loss with nowcasting, beside plain training and three other averages.

    python benchmarks/nowcasting.py --cifar10 DIR --mnist DIR --text FILE --output OUT/nowcasting

The loss is measured every ten steps on 256 validation examples (64 pieces of text) that take no
part in training: jumps are decided on other ones. The target is what plain training has reached
after four fifths of its steps. Learning rates are constant after a warm-up, and chosen by plain
training of another seed; test data are not looked at. Time is processor time of training,
predictions and checks, not of measuring. Every training is kept beside the output, so that an
interrupted benchmark goes on where it stopped. Schedule-free AdamW needs `schedulefree`, of the
extra `peers`.
"""

import argparse
import copy
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from averages import batches
from common import machine, machine_line, table, write
from slipstream.averaging import LAWA, Averages, Nowcaster, NowcastPlan, trend_kernel
from slipstream.evaluation import Task
from slipstream.modes import fit_modes
from slipstream.named_task import NamedTask
from slipstream.trajectory import Trajectory
from slipstream.weights import Weights
from transfer_cases import Gpt

STEPS, MEASURED, WARM_UP, TUNED_ON = 300, 10, 30, 100  # the last is a seed
PLAN = NowcastPlan(ahead=(0, 10, 25, 50))
FREE = "schedule-free AdamW"
RATES = {"Adam": (1e-3, 3e-3, 1e-2), "SGD": (0.03, 0.1, 0.3), FREE: (3e-3, 1e-2, 3e-2)}
Builds = dict[str, Callable[[int], Task]]  # name -> seed -> task


class Lookahead:
    """Every five steps, half of the way back.

    Source: "Lookahead Optimizer: k steps forward, 1 step back" (Zhang et al., 2019), algorithm 1.
    """

    def __init__(self, model: nn.Module) -> None:
        self.parameters = list(model.parameters())
        self.slow = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self, *, step: int) -> None:
        """Follow a step."""
        if step % 5 == 0:
            for parameter, slow in zip(self.parameters, self.slow, strict=True):
                parameter.copy_(slow.lerp_(parameter, 0.5))


def tasks(options: argparse.Namespace) -> Builds:
    """Return how each task is built for a seed; `test` is what the loss is measured on."""

    def conv(data: str, seed: int) -> Task:
        task = NamedTask("conv_net", data, width=0.25, batch_size=32, seed=seed).build()
        held = task.validation.examples.take(384)
        checks, *measured = held.batches(max(1, len(held.labels) // 3))
        return replace(task, metrics={}, validation=[checks], test=measured)

    def gpt(seed: int) -> Task:
        task = Gpt(options.text, width=48, batch_size=8, seed=seed).build()
        checks = list(replace(task.validation, size=32, count=1))
        measured = list(replace(task.validation, size=64, count=1, seed=97))
        return replace(task, metrics={}, validation=checks, test=measured)

    found: Builds = {}
    if options.cifar10:
        found["conv net, CIFAR-10"] = partial(conv, f"cifar10:{options.cifar10}")
    if options.mnist:
        found["conv net, MNIST"] = partial(conv, f"mnist:{options.mnist}")
    if options.text:
        found["character GPT"] = gpt
    return found


def on_line(window: Trajectory, step: int) -> Weights:
    """Return the weights on their straight lines, as `Nowcaster` does by itself."""
    return _summed(window, trend_kernel(window.steps, step))


def on_parabola(window: Trajectory, step: int) -> Weights:
    """Return the weights on their parabolas."""
    times = (torch.tensor(window.steps, dtype=torch.float64) - step) / window.steps[-1]
    fitted = torch.linalg.pinv(times[:, None] ** torch.arange(3))  # (3, snapshots)
    return _summed(window, fitted[0].tolist())


def along_velocity(window: Trajectory, step: int) -> Weights:
    """Return the last weights, moved on at the mean velocity of the window."""
    share = (step - window.steps[-1]) / (window.steps[-1] - window.steps[0])
    return _summed(window, [-share] + [0.0] * (len(window) - 2) + [1 + share])


def along_momentum(
    window: Trajectory, step: int, *, model: nn.Module, optimizer: torch.optim.Optimizer
) -> Weights:
    """Return the last weights, moved on by the optimiser's own averages of the gradient."""
    (group,), moved = optimizer.param_groups, {}
    for name, parameter in model.named_parameters():
        state = optimizer.state[parameter]
        if "exp_avg" in state:
            velocity = state["exp_avg"] / (state["exp_avg_sq"].sqrt() + group["eps"])
        else:
            velocity = state["momentum_buffer"]
        ahead = step - window.steps[-1]
        moved[name] = parameter.detach() - group["lr"] * ahead * velocity
    return moved


def on_modes(window: Trajectory, step: int) -> Weights:
    """Return the weights on two modes, whose references are extrapolated by straight lines."""
    found = fit_modes(window, modes=2, reference="component")
    kernel = torch.tensor(trend_kernel(window.steps, step), dtype=torch.float64)
    references = found.references @ kernel
    return {
        name: (found.a[name] * references[found.assignment[name].long()] + found.b[name]).float()
        if name in found.assignment
        else window[-1][name]
        for name in window.names
    }


def _summed(window: Trajectory, shares: list[float]) -> dict[str, Tensor]:
    held = [snapshot.weights for snapshot in window]
    return {
        name: torch.tensordot(torch.tensor(shares), torch.stack([w[name] for w in held]), 1)
        for name in window.names
    }


NOWCASTS: dict[str, tuple[Callable[..., Weights], tuple[int, ...]]] = {  # and how far ahead
    "straight line": (on_line, PLAN.ahead),
    "straight line, 0 ahead only": (on_line, PLAN.ahead[:1]),
    "straight line, never 0 ahead": (on_line, PLAN.ahead[1:]),
    "parabola": (on_parabola, PLAN.ahead),
    "2 modes": (on_modes, PLAN.ahead),
    "mean velocity": (along_velocity, PLAN.ahead[1:]),
    "the optimiser's momentum": (along_momentum, PLAN.ahead[1:]),
}


FEW = ("straight line, never 0 ahead", "2 modes", "mean velocity", "the optimiser's momentum")
FEW_SEEDS = 2  # for these, which jump least or cost most


def planned(names: Sequence[str], seeds: int) -> Iterator[tuple[str, int, str, str]]:
    """Yield tasks, seeds, optimisers and methods; what is trained with few seeds comes last."""
    free = [FREE] if find_spec("schedulefree") else []
    most = [method for method in NOWCASTS if method not in FEW]
    rows = {"Adam": ["plain", "Lookahead", *free, *most], "SGD": ["plain", "Lookahead", *most]}
    rare = {optimizer: list(FEW) for optimizer in rows}
    for count, chosen in ((seeds, rows), (min(seeds, FEW_SEEDS), rare)):
        for seed, name, optimizer in itertools.product(range(count), names, rows):
            yield from ((name, seed, optimizer, method) for method in chosen[optimizer])


class Training:
    """A training by one of the methods."""

    def __init__(self, task: Task, optimizer: str, method: str, lr: float) -> None:
        self.task, self.method, self.lr = task, method, lr
        self.optimizer = self._optimizer(optimizer)
        self.lookahead = Lookahead(task.model) if method == "Lookahead" else None
        self.nowcaster: Nowcaster | None = None
        if method in NOWCASTS:
            predict, ahead = NOWCASTS[method]
            if predict is along_momentum:
                predict = partial(predict, model=task.model, optimizer=self.optimizer)
            self.nowcaster = Nowcaster(task, replace(PLAN, ahead=ahead), predict=predict)

    def _optimizer(self, name: str) -> Any:
        parameters = self.task.model.parameters()
        if self.method == FREE:
            from schedulefree import AdamWScheduleFree

            return AdamWScheduleFree(parameters, self.lr, warmup_steps=WARM_UP)
        if name == "Adam":
            return torch.optim.Adam(parameters, self.lr)
        return torch.optim.SGD(parameters, self.lr, momentum=0.9)

    def take(self, step: int, batch: Any) -> None:
        """Take a step, and what the method does after it."""
        if self.method != FREE:
            for group in self.optimizer.param_groups:
                group["lr"] = self.lr * min(1.0, step / WARM_UP)
        self.optimizer.zero_grad()
        self.task.loss(self.task.model, batch).backward()
        self.optimizer.step()
        if follower := self.lookahead or self.nowcaster:
            follower.update(step=step)

    def mode(self, training: bool) -> None:
        """Switch model and optimiser; schedule-free training measures the mean."""
        self.task.model.train(training)
        if self.method == FREE:
            (self.optimizer.train if training else self.optimizer.eval)()

    def run(self, steps: int) -> dict[str, Any]:
        """Train and return the loss every so many steps, with the time until then."""
        rule = LAWA(6)
        averages = Averages(self.task.model, [rule])
        stream, curve, seconds = batches(self.task), [], 0.0
        self.mode(True)
        for step in range(1, steps + 1):
            began = time.process_time()
            self.take(step, next(stream))
            seconds += time.process_time() - began
            if step % MEASURED:
                continue
            checks = self.nowcaster.seconds if self.nowcaster else 0.0
            self.mode(False)
            loss = self.task.evaluate(split="test")["loss"]
            point = {"step": step, "seconds": seconds, "checks": checks, "loss": loss}
            if self.method == "plain":
                averages.update(step=step)
                weights = averages.weights(rule)
                point["LAWA"] = self.task.evaluate(weights=weights, split="test")["loss"]
            self.mode(True)
            curve.append(point)
        jumps = self.nowcaster.jumps if self.nowcaster else []
        changes = [[jump.ahead, [loss - jump.before for loss in jump.losses]] for jump in jumps]
        return {"lr": self.lr, "curve": curve, "jumps": changes}


class Results:
    """Trainings by task, optimiser, method and seed; kept in a file as they end."""

    def __init__(self, path: Path | None, builds: Builds, steps: int) -> None:
        self.path, self.builds, self.steps = path, builds, steps
        self.found = json.loads(path.read_text()) if path and path.is_file() else {}
        self.built: dict[tuple[str, int], Task] = {}  # the latest: images take their time to read

    def task(self, name: str, seed: int) -> Task:
        """Return a task that nothing has been trained on."""
        if (name, seed) not in self.built:
            self.built.clear()
            self.built[name, seed] = self.builds[name](seed)
        built = self.built[name, seed]
        return replace(built, model=copy.deepcopy(built.model))

    def get(self, name: str, optimizer: str, method: str, seed: int, lr: float) -> dict[str, Any]:
        """Return a training, from the file if it is there."""
        key = f"{name}/{optimizer}/{method}/{seed}/{lr}"
        if key not in self.found:
            torch.manual_seed(seed)
            training = Training(self.task(name, seed), optimizer, method, lr)
            self.found[key] = training.run(self.steps)
            if self.path:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.path.write_text(json.dumps(self.found))
        found: dict[str, Any] = self.found[key]
        return found

    def rate(self, name: str, optimizer: str, method: str) -> float:
        """Return the learning rate with the lowest loss in the last quarter, for another seed."""

        def late(lr: float) -> float:
            curve = self.get(name, optimizer, chosen, TUNED_ON, lr)["curve"]
            mean = statistics.mean(point["loss"] for point in curve[-len(curve) // 4 :])
            return mean if math.isfinite(mean) else math.inf

        chosen = method if method == FREE else "plain"
        return min(RATES[FREE if method == FREE else optimizer], key=late)


Runs = dict[str, list[dict[str, Any]]]  # method -> a training for each seed


def reached(curve: list[dict[str, float]], target: float, key: str) -> dict[str, float] | None:
    """Return the first point with the loss."""
    return next((point for point in curve if point[key] <= target), None)


def section(title: str, runs: Runs) -> list[str]:
    """Return the table of one task with one optimiser."""
    plain = [run["curve"] for run in runs["plain"]]
    at = round(0.8 * len(plain[0]))
    target = statistics.mean(p["loss"] for c in plain for p in c[max(0, at - 3) : at + 2])
    rows = {"plain": row(runs["plain"], target), "LAWA": row(runs["plain"], target, "LAWA")}
    rows |= {method: row(runs[method], target) for method in runs if method != "plain"}
    base = rows["plain"][0]
    saved = {name: 1 - sum(cells[0]) / sum(base[: len(cells[0])]) for name, cells in rows.items()}
    head = ["", "steps", "steps, checks counted", "saved", "processor s", "reached", "last loss",
            "jumps", "of them 0 ahead"]  # fmt: skip
    lines = [[name, *cells[1][:2], f"{saved[name]:.0%}", *cells[1][2:]]
             for name, cells in rows.items()]  # fmt: skip
    rates = ", ".join(f"{m} {runs[m][0]['lr']:g}" for m in ("plain", FREE) if m in runs)
    return [f"## {title}: to a loss of {target:.3f}", "", f"Learning rates: {rates}.", "",
            table(head, lines), ""]  # fmt: skip


def row(
    runs: list[dict[str, Any]], target: float, key: str = "loss"
) -> tuple[list[float], list[str]]:
    """Return the steps with the checks counted, and cells; all steps where it is not reached."""
    hits = [reached(run["curve"], target, key) for run in runs]
    points = [hit or run["curve"][-1] for hit, run in zip(hits, runs, strict=True)]
    counted = [p["step"] * p["seconds"] / (p["seconds"] - p["checks"]) for p in points]
    bound = "" if all(hits) else "at least "
    jumps = [ahead for run in runs for ahead, _ in run["jumps"]]
    taken = [ahead for ahead in jumps if ahead is not None]
    return counted, [
        bound + spread([p["step"] for p in points], 0), bound + spread(counted, 0),
        bound + spread([p["seconds"] for p in points], 1),
        f"{sum(hit is not None for hit in hits)} of {len(hits)}",
        spread([run["curve"][-1][key] for run in runs], 3),
        f"{len(taken)} of {len(jumps)}" if jumps else "", str(taken.count(0)) if jumps else "",
    ]  # fmt: skip


def spread(values: list[float], digits: int) -> str:
    """Return mean and standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else math.nan
    return f"{statistics.mean(values):.{digits}f} ± {deviation:.{digits}f}"


def predictions(groups: dict[str, Runs]) -> list[str]:
    """Return by how much each prediction changed the loss that decides on it."""
    rows = []
    for title, runs in groups.items():
        for method in (m for m in NOWCASTS if m in runs):
            changes = [c for run in runs[method] for _, c in run["jumps"]]
            aheads = NOWCASTS[method][1]
            cells = dict.fromkeys(PLAN.ahead, "")
            for ahead, values in zip(aheads, zip(*changes, strict=True), strict=False):
                share = sum(value < 0 for value in values) / len(values)
                cells[ahead] = f"{statistics.median(values):+.3f}, {share:.0%}"
            rows.append([f"{title}: {method}", *cells.values()])
    return ["## What each prediction changes", "",
            "Change of the loss on the examples that decide: median of all attempts, and the share "
            "in which it falls.", "",
            table(["", *(f"{ahead} ahead" for ahead in PLAN.ahead)], rows), ""]  # fmt: skip


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cifar10", default="", help="folder of CIFAR-10 in its usual layout")
    parser.add_argument("--mnist", default="", help="folder of MNIST, or Fashion-MNIST")
    parser.add_argument("--text", default="", help="file of a text")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    facts, began = machine(), time.process_time()
    stored = options.output.with_suffix(".partial.json") if options.output else None
    results = Results(stored, tasks(options), options.steps)
    groups: dict[str, Runs] = {}
    for name, seed, optimizer, method in planned(list(results.builds), options.seeds):
        lr = results.rate(name, optimizer, method)
        runs = groups.setdefault(f"{name}, {optimizer}", {})
        runs.setdefault(method, []).append(results.get(name, optimizer, method, seed, lr))
    facts["processor seconds of this call"] = round(time.process_time() - began)
    lines = ["# Nowcasting: steps and time to a loss", "",
             f"{options.steps} steps, {options.seeds} seeds, mean ± standard deviation. {PLAN}. A "
             "seed that does not reach the loss counts as all its steps. `steps, checks counted` "
             "adds what the checks took, in steps of the same training; `saved` compares these "
             f"with plain training of the same seeds. {', '.join(FEW)}: {FEW_SEEDS} seeds.", "",
             machine_line(facts), ""]  # fmt: skip
    for title, runs in groups.items():
        lines += section(title, runs)
    shorter = json.loads(json.dumps(results.found), parse_float=lambda text: round(float(text), 4))
    write(options.output, "\n".join([*lines, *predictions(groups)]),
          {"machine": facts, "validation": shorter})  # fmt: skip
    if stored:
        stored.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
