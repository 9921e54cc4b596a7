"""What matching costs: beside the PyPI package `rebasin`, on a large VGG, and at Llama's size.

    pip install --no-deps --target PEERS rebasin==0.0.47 torchview graphviz tqdm
    python benchmarks/matching.py --rebasin PEERS --output benchmarks/results/matching

Networks are torchvision's, untrained, from two seeds: nothing is alike, which is the slowest case.
The Llama-like stack is two layers' tensors in float32; the target is the source with its neurons
hidden by a random permutation, and noise. Its memory is the resident set of a process of its own,
the peak less what the interpreter held before. Times are processor time.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from common import machine, machine_line, table, write
from slipstream.matching import assign, match_weights
from slipstream.symmetry.neuron_groups import Block, NeuronGroup, NeuronGroups
from slipstream.symmetry.permutation import Permutation
from slipstream.symmetry.tracing import find_neuron_groups
from slipstream.weights import clone, weights_of

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
PARTS = ("assignments", "rebasin", "vgg", "llama")


def similarity(kind: str, size: int) -> Tensor:
    """Return noise, or what gradients give: a few directions and some noise."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(size, size, generator=generator, dtype=torch.float64)
    if kind == "noise":
        return noise
    left, right = torch.randn(2, size, 6, generator=generator, dtype=torch.float64)
    return left @ right.T + 0.3 * noise


def assignments(sizes: tuple[int, ...]) -> list[dict[str, Any]]:
    """Time the exact assignment beside scipy, and the solvers of lapx where it is installed."""
    solvers = {
        "slipstream": lambda matrix: assign(matrix).order.numpy(),
        "scipy": lambda matrix: linear_sum_assignment(matrix.numpy(), maximize=True)[1],
    }
    try:
        import lap
    except ImportError:
        lap = None
    for name in ("lapjvc", "lapjvh", "lapjvr") if lap else ():
        solvers[f"lapx {name}"] = partial(_by_lapx, getattr(lap, name))
    found = []
    for kind in ("noise", "six directions"):
        for size in sizes:
            matrix = similarity(kind, size)
            row: dict[str, Any] = {"kind": kind, "size": size}
            orders = {}
            for name, solve in solvers.items():
                began = time.process_time()
                orders[name] = solve(matrix)
                row[name] = time.process_time() - began
            row["same"] = all((order == orders["scipy"]).all() for order in orders.values())
            found.append(row)
            print(row, flush=True)
    return found


def _by_lapx(solve: Callable[..., Any], matrix: Tensor) -> Any:
    return solve(-matrix.numpy(), return_cost=False)[1]


def two_networks(name: str) -> tuple[nn.Module, nn.Module]:
    """Return two untrained networks of torchvision, from two seeds."""
    from oracles.vision_networks import build

    models = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        models.append(build(name).eval())
    return models[0], models[1]


def ours(
    source: nn.Module,
    target: nn.Module,
    example: Tensor,
    *,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, Any]:
    """Find the groups and match the weights."""
    began = clock()
    groups = find_neuron_groups(source, example)
    found_after = clock()
    found = match_weights(weights_of(source), weights_of(target), groups=groups)
    seconds = clock() - found_after
    moved = found.source_to_target.apply(weights_of(source))
    return {
        "seconds_groups": found_after - began,
        "seconds": seconds,
        "objective": inner(weights_of(target), moved, source),
        "identity": inner(weights_of(target), weights_of(source), source),
        "sweeps": found.sweeps,
        "converged": found.converged,
    }


def inner(first: dict[str, Tensor], second: dict[str, Tensor], model: nn.Module) -> float:
    """Return the inner product over the parameters of a model."""
    names = dict(model.named_parameters())
    return sum(float((first[n] * second[n]).sum(dtype=torch.float64)) for n in names)


def beside_rebasin(peers: str | None, networks: list[str]) -> list[dict[str, Any]]:
    """Time networks of torchvision beside rebasin."""
    found = []
    for name in networks:
        source, target = two_networks(name)
        example = torch.randn(1, 3, 64, 64)
        row = {"network": name, **ours(source, target, example)}
        if peers:
            sys.path.insert(0, peers)
            from rebasin import PermutationCoordinateDescent

            before = source(example)
            began = time.process_time()
            PermutationCoordinateDescent(target, source, example).rebasin()
            row["rebasin_seconds"] = time.process_time() - began
            row["rebasin_objective"] = inner(weights_of(target), weights_of(source), source)
            change = (source(example) - before).abs().max() / before.abs().max()
            row["rebasin_output_moved"] = float(change)
        found.append(row)
        print(row, flush=True)
    return found


def vgg() -> dict[str, Any]:
    """Time VGG11-BN, whose first linear layer has a hundred million weights."""
    source, target = two_networks("vgg11_bn")
    found = ours(source, target, torch.randn(1, 3, 224, 224))
    print(found, flush=True)
    return found


def llama_groups(hidden: int, layers: int) -> NeuronGroups:
    """Return the groups of Llama layers: 8 key heads of 4 query heads, rotary, gated MLP."""
    units, features = hidden * 7 // 2, hidden // 32
    groups = [NeuronGroup("stream", hidden, signed=True)]
    blocks, shapes = [Block("embed", 1, 0, ("stream",), ("stream",))], {"embed": (512, hidden)}
    for layer in range(layers):
        key, head, value, unit = (f"{layer}.{n}" for n in ("key", "head", "value", "unit"))
        groups += [
            NeuronGroup(key, 8),
            NeuronGroup(head, 4, (key,)),
            NeuronGroup(value, features, (key,), signed=True),
            NeuronGroup(unit, units),
        ]
        listed: dict[str, tuple[int, tuple[str | int, ...], tuple[str, ...]]] = {
            "q": (0, (key, head, features), ()),
            "k": (0, (key, features), ()),
            "v": (0, (key, value), (value,)),
            "o": (1, (key, head, value), (value,)),
            "gate": (0, (unit,), ()),
            "up": (0, (unit,), ()),
            "down": (1, (unit,), ()),
        }
        sizes = {"q": hidden, "o": hidden, "k": hidden // 4, "v": hidden // 4}
        for name, (axis, factors, signs) in listed.items():
            tensor = f"{layer}.{name}"
            shape = [hidden, hidden]
            shape[axis] = sizes.get(name, units)
            shapes[tensor] = (shape[0], shape[1])
            blocks += [
                Block(tensor, axis, 0, factors, signs),
                Block(tensor, 1 - axis, 0, ("stream",), ("stream",)),
            ]
    return NeuronGroups(tuple(groups), tuple(blocks), shapes)


@dataclass(frozen=True)
class Stack:
    """Random weights of Llama-like layers, and the same in a hidden order, with noise."""

    groups: NeuronGroups
    source: dict[str, Tensor]
    target: dict[str, Tensor]
    hidden_order: Permutation

    @property
    def bytes(self) -> int:
        """The size of the weights of one of the two."""
        return sum(value.nbytes for value in self.source.values())


def llama_stack(hidden: int, *, layers: int, device: str = "cpu") -> Stack:
    """Draw the weights of a stack of layers, and hide their order."""
    generator = torch.Generator(device).manual_seed(0)

    def noise(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    groups = llama_groups(hidden, layers)
    source = {name: noise(shape) for name, shape in groups.shapes.items()}
    hidden_order = Permutation.random(groups, seed=1)
    target = {}
    for name in source:
        target[name] = clone(hidden_order.apply({name: source[name]}))[name]
        for piece in target[name].split(256):
            piece += noise(piece.shape)
    return Stack(groups, source, target, hidden_order)


def llama(hidden: int) -> None:
    """In a process of its own: print the peak, the bytes of the weights, time and result."""
    held = _resident("VmRSS")
    stack = llama_stack(hidden, layers=2)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # forget the peak until now
    began = time.process_time()
    found = match_weights(stack.source, stack.target, groups=stack.groups)
    seconds = time.process_time() - began
    size = stack.bytes
    answer = {
        "hidden": hidden,
        "weights_megabytes": size / 1e6,
        "peak_in_weights": (_resident("VmHWM") - held) / size,
        "seconds": seconds,
        "sweeps": found.sweeps,
        "found_again": found.source_to_target.same_as(stack.hidden_order),
    }
    print(json.dumps(answer))


def _resident(field: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    line = next(line for line in status.splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def llama_stacks(sizes: list[int]) -> list[dict[str, Any]]:
    """Measure stacks of several sizes, a process each."""
    found = []
    for hidden in sizes:
        command = [sys.executable, __file__, "--stack", str(hidden)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
        print(found[-1], flush=True)
    return found


def cells(row: dict[str, Any], columns: list[str]) -> list[str]:
    """Return the columns of a row, numbers in short."""
    return [
        f"{row[c]:.4g}" if isinstance(row.get(c), float) else str(row.get(c, "-")) for c in columns
    ]


def as_text(found: dict[str, Any]) -> str:
    """Return the tables."""
    parts = [f"# Matching\n\n{machine_line(found['machine'])}\n\nTimes are processor seconds."]
    titles = {
        "assignments": "Exact assignments",
        "rebasin": "Weights of two untrained networks, to convergence",
        "vgg": "VGG11-BN",
        "llama": "A Llama-like stack of two layers (peak of the process, in sizes of the weights)",
    }
    for part in PARTS:
        if rows := found.get(part):
            rows = [rows] if isinstance(rows, dict) else rows
            columns = list(rows[0])
            shown = table(columns, [cells(row, columns) for row in rows])
            parts.append(f"## {titles[part]}\n\n{shown}")
    return "\n\n".join(parts)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rebasin", help="folder that holds the package rebasin")
    parser.add_argument("--networks", nargs="+", default=["resnet18", "resnet50"])
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024, 2048, 4096])
    parser.add_argument("--hidden", type=int, nargs="+", default=[1024, 2048, 4096])
    parser.add_argument("--output", type=Path, help="writes OUTPUT.md and OUTPUT.json")
    parser.add_argument("--only", choices=PARTS, help="renew one part")
    parser.add_argument("--stack", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stack:
        llama(options.stack)
        return
    found: dict[str, Any] = {}
    if options.only and options.output and options.output.with_suffix(".json").exists():
        found = json.loads(options.output.with_suffix(".json").read_text(encoding="utf-8"))
    found["machine"] = machine()
    measures = {
        "assignments": lambda: assignments(tuple(options.sizes)),
        "rebasin": lambda: beside_rebasin(options.rebasin, options.networks),
        "vgg": vgg,
        "llama": lambda: llama_stacks(options.hidden),
    }
    for name, measure in measures.items():
        if options.only in (None, name):
            found[name] = measure()
    write(options.output, as_text(found), found)


if __name__ == "__main__":
    main()
