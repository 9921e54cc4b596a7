"""Learning to learn: Meta-ticket beside MAML, ANIL and BOIL, on Omniglot and on sinusoids.

    python benchmarks/meta_ticket.py --omniglot DIR --output benchmarks/results/meta_ticket

Every method sees the same tasks: characters of 25 alphabets, each quarter turn a class, for
training, and 1000 tasks of characters from 20 other alphabets for the tables. The outer learning
rate for weights and that for scores are chosen once, by MAML and by Meta-ticket of width 1 on 500
5-way 5-shot tasks of five further alphabets, with a seed of their own, after 1500 iterations;
then, in the same way, the inner rate of both for each number of ways, on 1-shot tasks. The last
weights count. Every finished run is kept beside the output, so an interrupted benchmark goes on
where it stopped; with `--case`, several can run at a time. `--case speed` holds the engine against
a plain loop.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from common import machine, machine_line, table, write
from slipstream.evaluation import Task, TaskBatch, accuracy, classification_loss, squared_loss
from slipstream.recipes import MetaPlan, judge_tasks, ticket_size, train_meta
from slipstream.recipes.few_shot import AfterAdaptation
from slipstream.testbed import build_network
from slipstream.testbed import tasks as testbed_tasks
from slipstream.testbed.datasets import DataSpec
from slipstream.testbed.tasks import TaskForm, TaskSplit, load_tasks

METHODS = ("maml", "ticket", "anil", "boil", "ticket-boil")
RATES = {"weights": (1e-3, 3e-3, 1e-2), "scores": (3.0, 10.0, 30.0, 100.0)}
INNER_RATES = (0.13, 0.4, 1.2, 3.6)
CHOOSING_SEED, CHOOSING_EPOCHS, CHOOSING_TASKS = 1000, 15, 500
BATCHES = 100  # in an epoch
TEST_STEPS = 3  # inner steps on test tasks
ROUNDS = 117  # of randomisation in a training


@dataclass(frozen=True)
class Case:
    """Tasks of one kind, and what learns them."""

    ways: int
    shots: int
    widths: tuple[float, ...] = (1.0, 2.0, 4.0)
    methods: tuple[str, ...] = METHODS
    epochs: int = 30
    seeds: int = 3
    data: str = "omniglot"
    rate: float | None = None  # of inner steps; chosen if not given
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)  # of the plan, by name


@dataclass(frozen=True)
class Result:
    """One training."""

    way: str
    width: float
    seed: int
    test: float  # accuracy, or the mean of half the squared error
    loss: float  # of the last epoch
    pruned: float | None  # share of the masked weights; None where it was not kept
    seconds: float
    tasks_per_second: float
    bytes: int = 0  # of a ticket as a seed and a mask
    weights: int = 0  # bytes as ordinary weights


OTHER_RATES = {f"ticket at rate {lr:g}": {"lr": lr} for lr in (3.0, 300.0)}
CASES = {
    "5-way 1-shot": Case(5, 1, (1.0, 2.0, 4.0, 8.0), variants=OTHER_RATES),
    "5-way 5-shot": Case(5, 5, variants=OTHER_RATES),
    "20-way 1-shot": Case(20, 1, variants={"ticket at inner rate 0.4": {"rate": 0.4}}),
    "20-way 5-shot": Case(20, 5, variants={"ticket at inner rate 0.4": {"rate": 0.4}}),
    "5-way 1-shot, longer": Case(5, 1, (4.0,), ("maml", "ticket"), 90, variants=OTHER_RATES),
    "variants": Case(
        5, 1, (1.0,), (), 10,
        variants={
            "fixed threshold, dense start": {},
            "fixed threshold, half pruned at the start": {"pruned": 0.5},
            "top-k, half pruned always": {"pruned": 0.5, "threshold": "top-k"},
            "constant weights: topology only": {"initial": "constant"},
            "fallen weights drawn anew": {"redrawn": 0.1, "every": 1000 // ROUNDS},
            "signed constants": {"initial": "signed-constant"},
            "first order": {"second_order": False},
        },
    ),
    "sinusoid": Case(1, 10, (1.0,), METHODS, data="sinusoid", rate=0.02),
}  # fmt: skip


@cache
def tasks_of(data: str, form: TaskForm, seed: int) -> TaskSplit:
    """Return the tasks; the drawings are read once."""
    return load_tasks(data, form, seed=seed)


def network(spec: DataSpec, width: float, seed: int) -> nn.Module:
    """Return the network of a case with initial weights."""
    if spec.name == "sinusoid":
        options: dict[str, Any] = {"sizes": (40, 40), "batchnorm": False}
        return build_network("tapered_mlp", data=spec, width=width, seed=seed, **options)
    return build_network("tapered_mlp", data=spec, width=width, seed=seed)


def run(
    case: Case, method: str, *, width: float, seed: int, lr: float, rate: float, data: str,
    part: str = "test", epochs: int | None = None, **variant: Any,
) -> Result:  # fmt: skip
    """Train once, and judge by tasks of a part that training never sees."""
    split = tasks_of(data, TaskForm(case.ways, case.shots, batches=BATCHES), seed)
    plan = MetaPlan(method, rate, seed=seed, **variant)  # type: ignore[arg-type]
    plan = replace(plan, descent=replace(plan.outer, epochs=epochs or case.epochs, lr=lr))
    regression = case.data == "sinusoid"
    loss = squared_loss if regression else classification_loss
    model = network(split.spec, width, seed)
    found = train_meta(Task(model, split.train, loss), plan=plan)
    inner = replace(plan.adaptation, steps=TEST_STEPS, sparse=plan.masked)
    judge = AfterAdaptation(inner, loss, None if regression else accuracy)
    scores = judge_tasks(judge, Task(model, getattr(split, part)), weights=found.weights)
    size = ticket_size(found.ticket) if found.ticket else None
    return Result(
        method, width, seed, scores.mean, found.losses[-1], (0.0, *found.pruned)[-1],
        found.seconds, found.tasks_per_second, size.file if size else 0,
        size.weights if size else 0,
    )  # fmt: skip


def choose(case: Case, kind: str, data: str, kept: dict[str, Any]) -> dict[str, float]:
    """Return the outer and the inner learning rate, chosen on validation tasks."""
    method = "maml" if kind == "weights" else "ticket"
    regression = case.data == "sinusoid"

    def chosen(name: str, tasks: Case, rates: dict[float, dict[str, float]]) -> float:
        tried = kept.setdefault("rates", {}).setdefault(name, {"tried": {}})["tried"]
        for value, both in rates.items():
            if str(value) not in tried:
                tried[str(value)] = run(
                    tasks, method, width=1.0, seed=CHOOSING_SEED, data=data, part="validation",
                    epochs=CHOOSING_EPOCHS, **both,
                ).test  # fmt: skip
        best = float((min if regression else max)(tried, key=lambda value: tried[value]))
        kept["rates"][name]["chosen"] = best
        return best

    start, tasks = case.rate or 0.4, case if regression else CASES["5-way 5-shot"]
    outer = {lr: {"lr": lr, "rate": start} for lr in RATES[kind]}
    lr = chosen(f"{case.data}, {kind}", tasks, outer)
    if case.rate:
        return {"lr": lr, "rate": case.rate}
    inner = {rate: {"lr": lr, "rate": rate} for rate in INNER_RATES}
    name = f"inner rate, {case.ways}-way, {kind}"
    return {"lr": lr, "rate": chosen(name, CASES[f"{case.ways}-way 1-shot"], inner)}


def plain_loop(model: nn.Module, batch: TaskBatch, rate: float, masked: bool) -> None:
    """One meta-gradient as most people write it: one task after another, by autograd."""
    own = dict(model.named_parameters())
    masks = {n: torch.ones_like(p, requires_grad=True) for n, p in own.items() if p.dim() > 1}
    masks = masks if masked else {}
    values = {n: p.detach().requires_grad_() if masked else p for n, p in own.items()}
    for t in range(len(batch.support[0])):
        (x, y), (xq, yq) = ([part[t] for part in parts] for parts in batch)

        def at(free: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
            weights = {n: v * masks[n] if n in masks else v for n, v in free.items()}
            return functional_call(model, weights, (x,))

        inner = nn.functional.cross_entropy(at(values, x), y)
        slopes = torch.autograd.grad(inner, list(values.values()), create_graph=True)
        moved = {n: v - rate * g for (n, v), g in zip(values.items(), slopes, strict=True)}
        loss = nn.functional.cross_entropy(at(moved, xq), yq) / len(batch.support[0])
        torch.autograd.backward(loss, inputs=list(masks.values()) if masked else list(own.values()))


def speed(data: str) -> list[dict[str, Any]]:
    """Return the tasks per second of the engine, by vmap and in a plain loop, side by side."""
    rows = []
    for ways, shots, width, tasks in (
        (5, 1, 1, 4), (5, 1, 1, 16), (5, 1, 1, 32), (5, 1, 4, 4), (5, 1, 4, 16),
        (5, 5, 1, 4), (5, 5, 1, 16), (5, 5, 4, 4), (5, 5, 4, 16), (20, 1, 4, 4), (20, 1, 4, 16),
    ):  # fmt: skip
        split = tasks_of(data, TaskForm(ways, shots, tasks=tasks, batches=BATCHES), 0)
        model = network(split.spec, width, 0)
        batch = split.train.batch(0)
        for masked in (False, True):
            rows.append(timed(model, batch, masked=masked))
            rows[-1] |= {"ways": ways, "shots": shots, "width": width, "tasks": tasks}
    return rows


def timed(model: nn.Module, batch: TaskBatch, *, masked: bool) -> dict[str, Any]:
    """Return the median tasks per second of three ways, taken in turns."""
    own = dict(model.named_parameters())
    masks = {n: torch.ones_like(p, requires_grad=True) for n, p in own.items() if p.dim() > 1}
    free = {n: p.detach() for n, p in own.items()} if masked else None
    inner = MetaPlan("maml").adaptation

    def engine(batching: Any) -> Callable[[], None]:
        after = AfterAdaptation(replace(inner, batching=batching))

        def step() -> None:
            value = after.mean(model, batch, free=free, masks=masks if masked else None)
            torch.autograd.grad(value, list((masks if masked else own).values()))

        return step

    ways = {"engine": engine("auto"), "vmap": engine("vmap")}
    ways["loop"] = lambda: plain_loop(model, batch, inner.rate, masked)
    square = torch.randn(1024, 1024)
    ways["product"] = lambda: square @ square
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(8):
        for name, step in ways.items():
            began = time.perf_counter()
            step()
            if turn > 1:  # the first ones warm up, and prove the batching
                times[name].append(time.perf_counter() - began)
    count = len(batch.support[0])
    peak = 2 * len(square) ** 3 / statistics.median(times.pop("product"))
    found = {"masked": masked} | {n: count / statistics.median(t) for n, t in times.items()}
    for name in ("engine", "loop"):
        with FlopCounterMode(display=False) as counter:
            ways[name]()
        found[f"{name} flops"] = counter.get_total_flops() / count
        found[f"{name} load"] = found[f"{name} flops"] * found[name] / peak
    return found


def spread(values: list[float], factor: float = 100.0) -> str:
    """Return mean and deviation."""
    mean = f"{factor * statistics.mean(values):.2f}"
    return f"{mean} ± {factor * statistics.stdev(values):.2f}" if len(values) > 1 else mean


def gain(first: dict[int, float], second: dict[int, float], factor: float = 100.0) -> str:
    """Return the mean of second - first over equal seeds, and its standard error."""
    pairs = [factor * (second[seed] - first[seed]) for seed in first if seed in second]
    if len(pairs) < 2:
        return ""
    error = statistics.stdev(pairs) / math.sqrt(len(pairs))
    return f"{statistics.mean(pairs):+.2f} ± {error:.2f}"


def text_of(name: str, case: Case, results: list[Result]) -> str:
    """Return the table of a case."""
    factor, what = (1.0, "Half the mean squared error") if case.data == "sinusoid" else (
        100.0, "Accuracy in per cent",
    )  # fmt: skip
    ways = list(dict.fromkeys(r.way for r in results))
    rows = []
    for width in sorted({r.width for r in results}):
        base_way = "maml" if case.methods else next(iter(case.variants))
        found = {
            w: {r.seed: r.test for r in results if (r.way, r.width) == (w, width)} for w in ways
        }
        for way in (w for w in (*METHODS, *case.variants) if found.get(w)):
            own = [r for r in results if (r.way, r.width) == (way, width)]
            scored, kept = own[0].bytes > 0, [r.pruned for r in own if r.pruned is not None]
            rows.append((
                f"{width:g}", way, spread(list(found[way].values()), factor),
                "" if way == base_way else gain(found.get(base_way, {}), found[way], factor),
                spread(kept) if scored and kept else "",
                f"{statistics.mean(r.bytes / r.weights for r in own):.1%}" if scored else "",
                f"{statistics.mean(r.seconds for r in own):.0f}", str(len(own)),
            ))  # fmt: skip
    header = (
        "width", "method", "test tasks", f"against {base_way}, ± standard error", "pruned, %",
        "size as a ticket", "s", "seeds",
    )  # fmt: skip
    told = (
        f"{what} on 1000 test tasks after {TEST_STEPS} inner steps, mean ± deviation over seeds; "
        f"{case.epochs * BATCHES} iterations of 4 tasks, one inner step, "
        "as many queries as shots. Differences are paired by seed. Times are those of runs beside "
        "other work, and no measure of speed.\n"
    )
    return f"\n## {name}\n\n{told}\n" + table(header, rows)


def speed_text(rows: list[dict[str, Any]]) -> str:
    """Return the table of the engine's speed."""
    told = (
        "\n## Speed\n\nTasks per second of one meta-gradient, second order, all in one run by "
        "turns; medians of 6. The plain loop takes one task after another by `torch.autograd`; "
        "`vmap` is what `torch.func` gives; the ratio is that of the engine to the loop. Beside "
        "it, how many million operations a task takes, and at which share of the rate of a large "
        "matrix product, timed in the same run, they are done. At as many operations, nothing "
        "can be faster than the loop by more than the inverse of its share.\n\n"
    )
    cells = [
        (
            f"{r['ways']}-way {r['shots']}-shot", f"{r['width']}",
            "ticket" if r["masked"] else "MAML", f"{r['tasks']}", f"{r['engine']:.0f}",
            f"{r['vmap']:.0f}", f"{r['loop']:.0f}", f"{r['engine'] / r['loop']:.1f}",
            *(f"{r[f'{name} flops'] / 1e6:.0f}" for name in ("engine", "loop")),
            *(f"{r[f'{name} load']:.0%}" for name in ("engine", "loop")),
        )
        for r in rows
    ]  # fmt: skip
    header = (
        "tasks", "width", "learns", "in a batch", "engine", "vmap", "plain loop", "ratio",
        "engine, Mflop", "loop, Mflop", "engine, share", "loop, share",
    )  # fmt: skip
    return told + table(header, cells)


def jobs(case: Case) -> list[tuple[str, str, dict[str, Any], float, int]]:
    """Return name, method, variant, width and seed of every run: seeds outermost."""
    kinds = [(m, m, {}) for m in case.methods] + [
        (n, "ticket", v) for n, v in case.variants.items()
    ]
    return [
        (name, method, variant, width, seed)
        for seed in range(case.seeds) for width in case.widths for name, method, variant in kinds
    ]  # fmt: skip


def page(data: dict[str, Any]) -> str:
    """Return all tables."""
    parts = ["# Learning from few examples: Meta-ticket, MAML, ANIL, BOIL", ""]
    parts.append(machine_line(data["machine"]))
    told = [f"{name}: {found['chosen']:g}" for name, found in data.get("rates", {}).items()]
    if told:
        parts += ["", f"Learning rates chosen on validation tasks: {'; '.join(told)}."]
    for name, case in CASES.items():
        if results := [Result(**r) for r in data["cases"].get(name, [])]:
            parts.append(text_of(name, case, results))
    if data.get("speed"):
        parts.append(speed_text(data["speed"]))
    return "\n".join(parts)


def main() -> None:
    """Run the cases that are named."""
    known = {*METHODS, *(name for case in CASES.values() for name in case.variants)}
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--omniglot", default="data", help="folder of Omniglot")
    parser.add_argument("--case", action="append", choices=[*CASES, "speed"])
    parser.add_argument("--method", action="append", choices=sorted(known), metavar="METHOD")
    parser.add_argument("--width", action="append", type=float)
    parser.add_argument("--seeds", type=int, help="as many as the case says if not given")
    parser.add_argument("--tables", action="store_true", help="of what is there; run nothing")
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    file = given.output.with_suffix(".json")
    testbed_tasks.read_omniglot = cache(testbed_tasks.read_omniglot)
    testbed_tasks.VALIDATION_TASKS = CHOOSING_TASKS

    def update(change: Callable[[dict[str, Any]], Any]) -> Any:
        """Read what is there, change it, and write it: another process may have added to it."""
        fresh = {"cases": {}, "machine": machine()}
        data = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else fresh
        found = change(data)
        write(given.output, page(data), data)
        return found

    update(lambda data: None)
    for name in [] if given.tables else given.case or [*CASES, "speed"]:
        data = f"omniglot:{given.omniglot}"
        if name == "speed":
            rows = speed(data)
            update(lambda data, rows=rows: data.update(speed=rows))
            continue
        case = CASES[name]
        data = case.data if case.data == "sinusoid" else data
        rates = {}
        for kind in RATES:
            kept = json.loads(file.read_text(encoding="utf-8"))
            rates[kind] = choose(case, kind, data, kept)
            update(lambda d, k=kept: d.setdefault("rates", {}).update(k["rates"]))
        for way, method, variant, width, seed in jobs(case):
            if seed >= (given.seeds or case.seeds) or width not in (given.width or case.widths):
                continue
            done = json.loads(file.read_text(encoding="utf-8"))["cases"].get(name, [])
            if (way, width, seed) in {(r["way"], r["width"], r["seed"]) for r in done}:
                continue
            if given.method and way not in given.method:
                continue
            own = rates["scores" if method.startswith("ticket") else "weights"] | variant
            found = run(case, method, width=width, seed=seed, data=data, **own)
            row = asdict(replace(found, way=way))
            update(lambda d, n=name, row=row: d["cases"].setdefault(n, []).append(row))


if __name__ == "__main__":
    main()
