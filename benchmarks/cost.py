"""What a transfer costs beside its gradients, beside a plain implementation, and in memory.

    python benchmarks/cost.py --mnist DIR --cifar10 DIR --text FILE --output cost

The floor of FGMT in T stages is 2T gradient evaluations; they are timed in the same run, by plain
autograd. Processor time is compared, which a busy machine disturbs least. The plain implementation
is the tests' oracle: dense gradients, every product anew in every sweep, scipy alone. Memory is the
resident set of a process of its own, its peak less what it held before the transfer.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from common import machine, machine_line, table, write
from slipstream.evaluation import Task, classification_loss, gradient
from slipstream.named_task import NamedTask
from slipstream.symmetry.tracing import find_neuron_groups
from slipstream.testbed.networks import conv8, mlp
from slipstream.training import TrainingPlan, train
from slipstream.trajectory import Trajectory
from slipstream.transfer import TransferPlan, transfer_trajectory
from slipstream.weights import clone, weights_of
from transfer_cases import Gpt, Vit

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
STAGES = (5, 10, 30)
Setup = NamedTask | Gpt | Vit


def networks(mnist: str, cifar10: str, text: str) -> dict[str, Setup]:
    """Return the networks whose transfer is timed."""
    return {
        "GPT, 2 layers of 4 heads, characters": Gpt(text),
        "ViT, 3 layers of 4 heads, MNIST": Vit(f"mnist:{mnist}", batch_size=128),
        "MLP, 1 x 1024, MNIST": NamedTask("mlp", f"mnist:{mnist}", width=1024),
        "MLP, 2 x 512, MNIST": NamedTask(
            "mlp", f"mnist:{mnist}", width=512, options={"hidden_layers": 2}
        ),
        "Conv8, width 0.5, CIFAR-10": NamedTask(
            "conv8", f"cifar10:{cifar10}", width=0.5, options={"batchnorm": False}
        ),
        "Conv8 with BatchNorm, width 0.25, CIFAR-10": NamedTask(
            "conv8", f"cifar10:{cifar10}", width=0.25
        ),
    }


def short_run(setup: Setup, steps: int) -> tuple[Task, Trajectory, dict[str, Any], list[Any]]:
    """Train for a few steps; the task, its run, another start, and batches for gradients."""
    experiment = setup.build()
    start = clone(weights_of(experiment.model))
    batches = [batch for batch, _ in zip(experiment.data, range(steps), strict=False)]
    train(experiment.on(batches), TrainingPlan(epochs=1, lr=0.02))
    run = Trajectory.from_weights([start, clone(weights_of(experiment.model))])
    target = clone(weights_of(replace(setup, seed=1).build().model))
    return experiment, run, target, batches


def ratios(
    name: str,
    setup: Setup,
    repeats: int,
    steps: int,
    *,
    clock: Callable[[], float] = time.process_time,
) -> list[dict[str, Any]]:
    """Time FGMT and the gradients it cannot do without, in turns."""
    task, run, target, batches = short_run(setup, steps)
    groups = find_neuron_groups(task.model, task.example())
    found = []
    for stages in STAGES:
        plan = TransferPlan("fgmt", stages=stages)
        totals, floors, kinds = [], [], {}
        for _ in range(repeats):
            began = clock()
            for stage in range(stages):
                for weights in (run[0].weights, target):
                    batch = batches[stage % len(batches)]
                    gradient(task.model, task.loss, weights=weights, data=[batch])
            floors.append(clock() - began)
            began = clock()
            result = transfer_trajectory(
                run,
                target,
                Task(task.model, batches, task.loss),
                plan=plan,
                groups=groups,
            )
            totals.append(clock() - began)
            kinds = result.cost.seconds
        by_turn = [total / floor for total, floor in zip(totals, floors, strict=True)]
        found.append(
            {
                "network": name,
                "stages": stages,
                "ratio": statistics.median(by_turn),
                "ratios": by_turn,
                "seconds": statistics.median(totals),
                "floor": statistics.median(floors),
                "kinds": dict(kinds),
                "sweeps": [stage.sweeps for stage in result.stages[1:]],
            }
        )
        print(found[-1], flush=True)
    return found


def against_plain(mnist: str, cifar10: str) -> list[dict[str, Any]]:
    """Time FGMT and GMT beside the plain implementation, in float64, T = 30."""
    from oracles.plain_transfer import plain_transfer

    small = networks(mnist, cifar10, "")
    cases = {
        "MLP, 1 x 1024, MNIST": (small["MLP, 1 x 1024, MNIST"], ("fgmt", "gmt")),
        "Conv8, width 0.25, CIFAR-10": (
            NamedTask("conv8", f"cifar10:{cifar10}", width=0.25, options={"batchnorm": False}),
            ("fgmt",),
        ),
    }
    found = []
    for name, (setup, methods) in cases.items():
        task, run, target, batches = short_run(setup, 30)
        model = task.model.double()
        run = Trajectory.from_weights([{n: v.double() for n, v in s.weights.items()} for s in run])
        target = {n: v.double() for n, v in target.items()}
        batches = [(inputs.double(), labels) for inputs, labels in batches]
        groups = find_neuron_groups(model, batches[0][0])
        line = Trajectory.line(run[0], run[-1], stages=30, schedule="cosine")
        path = [dict(snapshot.weights) for snapshot in line]
        for method in methods:
            began = time.process_time()
            result = transfer_trajectory(
                run,
                target,
                Task(model, batches, classification_loss),
                plan=TransferPlan(method, stages=30),
                groups=groups,
            )
            ours = time.process_time() - began
            began = time.process_time()
            parts = [[batch] for batch in batches]
            worths: list[float] = []
            plain = plain_transfer(method, model, path, target, groups, parts, objectives=worths)
            theirs = time.process_time() - began
            # Neurons whose gradient is zero may change places: another permutation, worth the same.
            alike = [
                math.isclose(stage.objective, worth, rel_tol=1e-9)
                for stage, worth in zip(result.stages[1:], worths, strict=True)
            ]
            same = [result.permutations[t].same_as(p) for t, p in enumerate(plain, start=1)]
            found.append(
                {
                    "network": name,
                    "method": method,
                    "seconds": ours,
                    "plain_seconds": theirs,
                    "times_faster": theirs / ours,
                    "stages_with_the_same_permutation": f"{sum(same)} of {len(same)}",
                    "stages_with_the_same_objective": f"{sum(alike)} of {len(alike)}",
                }
            )
            print(found[-1], flush=True)
    return found


MEMORY = {  # a network, its options, the shape of an input, numbers of stages
    "Conv8": (conv8, {"width": 1.0, "batchnorm": False}, (3, 32, 32), (1, 5, 10)),
    "Conv8, width 0.5": (conv8, {"width": 0.5, "batchnorm": False}, (3, 32, 32), (1, 5, 10, 30)),
    "MLP": (mlp, {"width": 1024, "hidden_layers": 3}, (784,), (1, 5, 10, 30)),
}


def peak(name: str, stages: int) -> None:
    """In a process of its own: print the peak less what was held before, the model, the pairs."""
    import tempfile

    make, options, shape, _ = MEMORY[name]
    torch.manual_seed(0)
    models = [make(**options) for _ in range(3)]
    run = Trajectory.from_weights([clone(weights_of(m)) for m in models[:2]])
    target = clone(weights_of(models[2]))
    batches = [(torch.randn(16, *shape), torch.arange(16) % 10)]
    groups = find_neuron_groups(models[0], batches[0][0])
    gradient(models[0], classification_loss, data=batches)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # forget the peak until now
    held = _resident("VmRSS")
    with tempfile.TemporaryDirectory() as folder:
        result = transfer_trajectory(
            run,
            target,
            Task(models[0], batches, classification_loss),
            plan=TransferPlan("fgmt", stages=stages, max_sweeps=3),
            groups=groups,
            run_folder=Path(folder, "run"),
        )
        kept = result.cost.kept_bytes
    top = _resident("VmHWM")
    model_bytes = sum(v.numel() * v.element_size() for v in target.values())
    print(f"{top - held} {model_bytes} {kept}")


def _resident(field: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    line = next(line for line in status.splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def memory() -> list[dict[str, Any]]:
    """Measure the peak for growing numbers of stages, a process each."""
    found = []
    for name, (*_, numbers) in MEMORY.items():
        for stages in numbers:
            command = [sys.executable, __file__, "--peak", name, str(stages)]
            # What is freed goes back at once: the resident set is what is held, not what was.
            environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
            done = subprocess.run(
                command, capture_output=True, text=True, check=True, env=environment
            )
            grown, model, kept = (int(n) for n in done.stdout.split()[-3:])
            found.append(
                {
                    "network": name,
                    "stages": stages,
                    "model_megabytes": model / 1e6,
                    "kept_models": kept / model,
                    "peak_models": grown / model,
                    "besides_models": (grown - kept) / model,
                }
            )
            print(found[-1], flush=True)
    return found


def as_text(found: dict[str, Any]) -> str:
    """Return the tables."""
    kinds = ("gradients", "batchnorm", "products", "assignments")
    timed = table(
        ["network", "T", "ratio to 2T gradients", "range", "seconds", "floor", *kinds],
        [
            [
                r["network"],
                str(r["stages"]),
                f"{r['ratio']:.2f}",
                f"{min(r['ratios']):.2f} to {max(r['ratios']):.2f}",
                f"{r['seconds']:.2f}",
                f"{r['floor']:.2f}",
                *(f"{r['kinds'].get(kind, 0):.2f}" for kind in kinds),
            ]
            for r in found["ratios"]
        ],
    )
    plain = table(
        [
            *("network", "method", "seconds", "plain", "times faster"),
            *("same permutation", "same objective"),
        ],
        [
            [
                r["network"],
                r["method"],
                f"{r['seconds']:.1f}",
                f"{r['plain_seconds']:.1f}",
                f"{r['times_faster']:.1f}",
                r["stages_with_the_same_permutation"],
                r.get("stages_with_the_same_objective", "-"),
            ]
            for r in found["plain"]
        ],
    )
    grown = table(
        ["network", "T", "model MB", "gradients kept", "peak", "peak besides what is kept"],
        [
            [
                r["network"],
                str(r["stages"]),
                f"{r['model_megabytes']:.1f}",
                f"{r['kept_models']:.1f} models",
                f"{r['peak_models']:.1f} models",
                f"{r['besides_models']:.1f} models",
            ]
            for r in found["memory"]
        ],
    )
    return (
        f"# Cost\n\n{machine_line(found['machine'])}\n\n"
        f"## FGMT beside its gradients (batches of 128, median of turns)\n\n"
        f"The ratio is of processor time, the kinds are wall time.\n\n{timed}\n\n"
        f"## Beside a plain implementation (float64, T = 30, processor time)\n\n{plain}\n\n"
        f"## Memory (resident set, batches of 16, stages written to disk)\n\n{grown}"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mnist", help="folder of MNIST")
    parser.add_argument("--cifar10", help="folder of CIFAR-10")
    parser.add_argument("--text", help="a text file")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, help="writes OUTPUT.md and OUTPUT.json")
    parser.add_argument("--only", choices=("ratios", "plain", "memory"), help="renew one part")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        peak(options.peak[0], int(options.peak[1]))
        return
    if not (options.mnist and options.cifar10 and options.text):
        parser.error("give the data: --mnist DIR --cifar10 DIR --text FILE")
    found: dict[str, Any] = {}
    if options.only and options.output:
        found = json.loads(options.output.with_suffix(".json").read_text(encoding="utf-8"))
    found["machine"] = machine()
    parts = {
        "ratios": lambda: [
            row
            for name, setup in networks(options.mnist, options.cifar10, options.text).items()
            # minutes each for the Conv8, and steady enough
            for row in ratios(name, setup, 1 if "Conv8" in name else options.repeats, 30)
        ],
        "plain": lambda: against_plain(options.mnist, options.cifar10),
        "memory": memory,
    }
    for name, measure in parts.items():
        if options.only in (None, name):
            found[name] = measure()
    write(options.output, as_text(found), found)


if __name__ == "__main__":
    main()
