"""What a landscape costs, and whether two trained networks lie in one basin after matching.

    python benchmarks/landscape.py --mnist DIR --cifar10 DIR --output benchmarks/results/landscape

Times are processor time of one thread. *One at a time* is a loop over the points with the package's
own `evaluate` (and `recalibrate_batchnorm`): what one would write without `loss_plane`. Networks of
a pair are trained from different seeds, on the training part in different orders; barriers are on
the test part, at 25 points. Nothing is chosen by them.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from common import machine, machine_line, table, write
from slipstream.evaluation import (
    Batch,
    Metric,
    Task,
    accuracy,
    classification_loss,
    evaluate,
    inputs_of,
    recalibrate_batchnorm,
)
from slipstream.landscape import (
    PlaneGrid,
    align_then_barrier,
    loss_plane,
    plane_through,
    random_plane,
)
from slipstream.symmetry.tracing import find_neuron_groups
from slipstream.testbed import load_data, mlp, resnet18
from slipstream.testbed.datasets import DataSplit, Examples
from slipstream.training import TrainingPlan, train
from slipstream.weights import clone, weights_of

PARTS = ("plane", "small", "resnet", "digits", "mnist")
METRICS = {"loss": classification_loss, "accuracy": accuracy}
SEEDS = (0, 1, 2)
Networks = list[dict[str, Tensor]]


def network(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Return a network with the initial weights of a seed."""
    torch.manual_seed(seed)
    return build()


def one_at_a_time(
    model: nn.Module,
    weights: Iterable[dict[str, Tensor]],
    data: list[Batch],
    kept: list[Batch],
    metrics: dict[str, Metric] = METRICS,
) -> list[dict[str, float]]:
    """Evaluate points in a plain loop."""
    found = []
    for point in weights:
        if kept:
            point = {**point, **recalibrate_batchnorm(model, weights=point, data=kept)}
        found.append(evaluate(model, metrics, weights=point, data=data))
    return found


def beside_plain(
    model: nn.Module, corners: Networks, data: list[Batch], kept: list[Batch], points: int
) -> dict[str, Any]:
    """Time a plane, and a plain loop over the same points."""
    flat = plane_through(corners)
    begun = time.process_time()
    found = loss_plane(
        flat,
        Task(model, data, metrics=METRICS, calibration=kept),
        grid=PlaneGrid(points=points),
    )
    ours = time.process_time() - begun
    begun = time.process_time()
    at = ((float(x), float(y)) for x in found.x for y in found.y)
    plain = one_at_a_time(model, (flat.weights_at(x, y) for x, y in at), data, kept)
    alone = time.process_time() - begun
    losses = torch.tensor([row["loss"] for row in plain], dtype=torch.float64).view(points, points)
    return {
        "points": points,
        "seconds": ours,
        "one_at_a_time": alone,
        "ratio": ours / alone,
        "largest_difference": float((losses - found.losses).abs().max()),
    }


def planes(digits: DataSplit) -> list[dict[str, Any]]:
    """Time planes of 41 x 41 of MLPs on the digits."""
    rows = []
    for width, layers in ((64, 2), (512, 1), (512, 2)):
        model = network(partial(mlp, inputs=64, width=width, hidden_layers=layers), 0)
        flat = random_plane(clone(weights_of(model)))
        for part, examples in (("test", digits.test), ("train", digits.train)):
            began = time.process_time()
            loss_plane(
                flat,
                Task(model, examples.batches(500), metrics=METRICS),
                grid=PlaneGrid(points=41),
            )
            seconds = time.process_time() - began
            rows.append({"network": f"MLP {layers} x {width}", "data": part, "seconds": seconds})
            print(rows[-1], flush=True)
    return rows


def small(digits: DataSplit) -> list[dict[str, Any]]:
    """Time planes of 21 x 21 of small networks beside a plain loop."""
    rows = []
    for width in (8, 16, 32, 64):
        for size in (16, 32, 64, 359):
            build = partial(mlp, inputs=64, width=width)
            corners = [clone(weights_of(network(build, seed))) for seed in SEEDS]
            data = list(digits.test.batches(size))
            found = [beside_plain(build(), corners, data, [], 21) for _ in range(3)]
            row = {"width": width, "batch": size, **min(found, key=lambda row: row["ratio"])}
            row["speed_up"] = statistics.median(1 / one["ratio"] for one in found)
            rows.append(row)
            print(row, flush=True)
    return rows


def resnet(cifar10: str, points: int) -> dict[str, Any]:
    """Time a plane of a narrow ResNet-18 on 2,000 images beside a plain loop."""
    data = load_data(f"cifar10:{cifar10}")
    build = partial(resnet18, width=0.125)
    corners = [clone(weights_of(network(build, seed))) for seed in SEEDS]
    kept = list(data.train.take(512).batches(128))
    test = list(data.test.take(2000).batches(500))
    row = beside_plain(build(), corners, test, kept, points)
    begun = time.process_time()
    one_at_a_time(build(), [corners[0]] * points**2, test, kept, {"loss": classification_loss})
    row["loss_alone"] = time.process_time() - begun
    print(row, flush=True)
    return row


def trained(
    build: Callable[[], nn.Module],
    examples: Examples,
    seed: int,
    *,
    epochs: int,
    batch: int,
    kept: Path | None,
) -> dict[str, Tensor]:
    """Train a network with Adam, the learning rate falling to 0; or read the one that is kept."""
    if kept is not None and kept.is_file():
        return load_file(kept)
    model = network(build, seed)
    batches = examples.batches(batch, seed=seed)
    train(Task(model, batches), TrainingPlan(epochs, "adam", 1e-3, schedule="cosine"))
    weights = clone(weights_of(model))
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        save_file(weights, kept)
    return weights


def barriers(
    name: str, data: DataSplit, layers: int, *, epochs: int, batch: int, work: Path | None
) -> list[dict[str, Any]]:
    """Measure barriers between the networks of three seeds, before and after matching weights."""
    inputs = data.test.inputs[0].numel()
    build = partial(mlp, inputs=inputs, width=512, hidden_layers=layers)
    files = [work and work / f"{name}-{layers}-{epochs}-{seed}.safetensors" for seed in SEEDS]
    ends = [
        trained(build, data.train, seed, epochs=epochs, batch=batch, kept=kept)
        for seed, kept in zip(SEEDS, files, strict=True)
    ]
    model, test = build(), list(data.test.batches(500))
    groups = find_neuron_groups(model, inputs_of(test[0])[:4])
    rows = []
    for first, second in combinations(range(len(SEEDS)), 2):
        found = align_then_barrier(
            ends[first],
            ends[second],
            Task(model, test),
            groups=groups,
        )
        before, after = found.before, found.after
        values = before.line.values["accuracy"]
        rows.append(
            {
                "case": f"{name}, MLP {layers} x 512, {epochs} epochs",
                "pair": [SEEDS[first], SEEDS[second]],
                "accuracy": float((values[0] + values[-1]) / 2),
                "loss_before": before.height,
                "loss_after": after.height,
                "accuracy_before": before.drop("accuracy"),
                "accuracy_after": after.drop("accuracy"),
            }
        )
        print(rows[-1], flush=True)
    return rows


def spread(values: list[float], digits: int) -> str:
    """Return mean and sample deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.{digits}f} ± {deviation:.{digits}f}"


def as_text(found: dict[str, Any]) -> str:
    """Return the tables."""
    loads = ", ".join(f"{part} {load:.0f}" for part, load in found["loads"].items())
    about = f"The parts were measured one by one, at loads of {loads}. Times are processor seconds."
    parts = [f"# Landscapes\n\n{machine_line(found['machine'])}\n\n{about}"]
    if rows := found.get("plane"):
        cells = [[f"{r['network']}, {r['data']} part", f"{r['seconds']:.1f}"] for r in rows]
        head = "## A plane of 41 x 41 on the digits: loss and accuracy"
        parts.append(f"{head}\n\n{table(['', 'seconds'], cells)}")
    if rows := found.get("small"):
        cells = [
            [str(r["width"]), str(r["batch"]), f"{r['seconds']:.3f}", f"{r['one_at_a_time']:.3f}",
             f"{r['speed_up']:.1f} x"]
            for r in rows
        ]  # fmt: skip
        head = "## A plane of 21 x 21, MLP with one hidden layer on 359 examples of the digits"
        names = ["units", "batch size", "together", "one at a time", "faster, median of 3"]
        parts.append(f"{head}\n\n{table(names, cells)}")
    if row := found.get("resnet"):
        parts.append(resnet_text(row))
    if rows := [r for part in ("digits", "mnist") for r in found.get(part, [])]:
        parts.append(barrier_text(rows))
    return "\n\n".join(parts)


def resnet_text(row: dict[str, Any]) -> str:
    """Return what the plane of the ResNet took."""
    points = row["points"]
    rows = [
        ["plane, loss and accuracy", row["seconds"]],
        ["plain loop, loss and accuracy", row["one_at_a_time"]],
        ["plain loop, loss alone", row["loss_alone"]],
    ]
    cells = [[name, f"{s:.1f}", f"{s / points**2:.2f}"] for name, s in rows]
    return (
        "## ResNet-18, an eighth of its width, on 2,000 images of CIFAR-10\n\n"
        f"A plane of {points} x {points} beside {points**2} plain evaluations. BatchNorm is "
        "recalibrated at each point on 512 images in all rows; loss and accuracy share one pass in "
        "the plane. 41 x 41 was not measured: at the same time for each point it takes "
        f"{row['seconds'] * 1681 / points**2 / 60:.0f} minutes. The losses differ by "
        f"{row['largest_difference']:.1g} at most.\n\n"
        + table(["", "seconds", "for each point"], cells)
    )


def barrier_text(rows: list[dict[str, Any]]) -> str:
    """Return the table of barriers: means over pairs."""
    cells = []
    for case in dict.fromkeys(row["case"] for row in rows):
        of = [row for row in rows if row["case"] == case]
        cells.append(
            [
                case,
                spread([row["accuracy"] for row in of], 4),
                spread([100 * row["accuracy_before"] for row in of], 2),
                spread([100 * row["accuracy_after"] for row in of], 2),
                spread([row["loss_before"] for row in of], 3),
                spread([row["loss_after"] for row in of], 3),
            ]
        )
    names = [
        "",
        "test accuracy",
        "fall in points, as they are",
        "matched",
        "rise of the loss, as they are",
        "matched",
    ]
    head = (
        "## Barriers between networks of three seeds, before and after matching weights\n\n"
        "Adam at 0.001 falling to 0 along a cosine, batches of 256 (digits: 32), no weight decay. "
        "Mean and deviation over the three pairs, which share networks; heights above the chord."
    )
    return f"{head}\n\n{table(names, cells)}"


def measure(part: str, arguments: argparse.Namespace) -> Any:
    """Return what one part found."""
    if part == "resnet":
        return resnet(arguments.cifar10, arguments.grid)
    if part == "mnist":
        data = load_data(f"mnist:{arguments.mnist}")
        return [
            row
            for layers in arguments.layers
            for row in barriers(
                "MNIST", data, layers, epochs=arguments.epochs, batch=256, work=arguments.work
            )
        ]
    digits = load_data("digits")
    if part == "digits":
        return [
            row
            for layers in arguments.layers
            for row in barriers("digits", digits, layers, epochs=60, batch=32, work=arguments.work)
        ]
    return {"plane": planes, "small": small}[part](digits)


def main() -> None:
    """Measure and print; parts that are not measured anew are kept from the output's last run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=PARTS, action="append")
    parser.add_argument("--mnist", help="folder of MNIST")
    parser.add_argument("--cifar10", help="folder of CIFAR-10")
    parser.add_argument("--grid", type=int, default=11, help="of the ResNet")
    parser.add_argument("--epochs", type=int, default=8, help="on MNIST")
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--work", type=Path, help="keep trained networks here, to go on from")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    if arguments.output and arguments.output.with_suffix(".json").is_file():
        found = json.loads(arguments.output.with_suffix(".json").read_text(encoding="utf-8"))
    found["machine"] = machine()
    missing = {"mnist": arguments.mnist is None, "resnet": arguments.cifar10 is None}
    for part in arguments.only or [part for part in PARTS if not missing.get(part)]:
        if missing.get(part):
            parser.error(f"--only {part} needs --{'mnist' if part == 'mnist' else 'cifar10'} DIR")
        found.setdefault("loads", {})[part] = machine()["load"]
        rows = measure(part, arguments)
        if part in ("digits", "mnist"):  # other depths and epochs are kept
            cases = {row["case"] for row in rows}
            rows = [row for row in found.get(part, []) if row["case"] not in cases] + rows
        found[part] = rows
        write(arguments.output, as_text(found), found)


if __name__ == "__main__":
    main()
