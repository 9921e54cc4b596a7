"""Neuron groups of well-known networks: found, proven, timed, and held against Torch-Pruning.

Run: python benchmarks/symmetry.py   (needs the peers extra; about two minutes on one core)
Writes benchmarks/results/symmetry.md and symmetry.json.
"""

import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from cases import CASES
from oracles.vision_networks import NETWORKS, build, coupled_axes
from slipstream.symmetry.capture import capture
from slipstream.symmetry.neuron_groups import NeuronGroups
from slipstream.symmetry.permutation import Permutation
from slipstream.symmetry.proof import check
from slipstream.symmetry.tracing import find_neuron_groups
from slipstream.weights import load_weights_, weights_of

RESULTS = Path(__file__).parent / "results"
SMALL = (
    "mlp",
    "functional_matmul",
    "depthwise_separable",
    "grouped_conv",
    "concat_of_branches",
    "group_norm",
)
FURTHER = ("efficientnet_b0", "convnext_tiny", "shufflenet_v2_x1_0")
COLUMNS = {
    "network": "network",
    "groups": "groups",
    "coverage": "coverage",
    "pins": "pinned by",
    "dropped": "dropped",
    "peer_groups": "Torch-Pruning: groups",
    "only_ours": "axes only here",
    "only_peer": "axes only there",
    "change": "largest change",
    "tracing_seconds": "trace s",
    "rules_seconds": "rules s",
    "proof_seconds": "proof s",
    "total_seconds": "total s",
}


def measure(name: str, model: nn.Module, inputs: Tensor) -> dict[str, Any]:
    """One row of the table."""
    model.eval()
    _, tracing = timed(lambda: capture(model, inputs))
    found, finding = timed(lambda: find_neuron_groups(model, inputs, prove=False))
    groups, proof = timed(lambda: check(model, found, inputs))
    ours = {f"{block.tensor}:{block.axis}" for block in groups.blocks}
    peer = peer_groups(model, inputs)
    theirs = set() if peer is None else set.union(set(), *peer)
    return {
        "network": name,
        "groups": len(groups),
        "coverage": f"{groups.coverage():.2%}",
        "pins": sorted({pin.operator for pin in groups.pins}),
        "dropped": len(groups.dropped),
        "peer_groups": None if peer is None else len(peer),
        "only_ours": sorted(ours - theirs),
        "only_peer": sorted(theirs - ours),
        "change": largest_change(model, groups, inputs),
        "tracing_seconds": tracing,
        "rules_seconds": max(finding - tracing, 0.0),
        "proof_seconds": proof,
        "total_seconds": finding + proof,
    }


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """The result, and the processor seconds: on one thread, what an idle machine takes."""
    start = time.process_time()
    return work(), time.process_time() - start


def peer_groups(model: nn.Module, inputs: Tensor) -> list[set[str]] | None:
    """The groups of Torch-Pruning, or None where it fails."""
    try:
        return coupled_axes(model, inputs)
    except Exception as error:  # ruff: ignore[blind-except] - the table says that it failed
        print(f"  Torch-Pruning fails: {type(error).__name__}: {error}", flush=True)
        return None


def largest_change(model: nn.Module, groups: NeuronGroups, inputs: Tensor) -> float:
    """The largest change of an output by a permutation, relative to the largest output, float64.

    Running statistics, gains and biases are random, so that all of them matter.
    """
    generator = torch.Generator().manual_seed(0)
    model = model.double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    own = weights_of(model)
    for value in own.values():
        if value.dim() == 1:
            value.mul_(torch.rand(value.shape, generator=generator) + 0.5)
    changes = []
    with torch.no_grad():
        before = model(inputs.double())
        for seed in (1, 2):
            load_weights_(model, Permutation.random(groups, seed=seed).apply(own))
            changes.append((model(inputs.double()) - before).abs().max() / before.abs().max())
    return float(max(changes))


def cell(value: Any) -> str:
    """A value of the table as text."""
    if isinstance(value, list):
        return str(len(value)) if not value or ":" in value[0] else ", ".join(value)
    if isinstance(value, float):
        return f"{value:.1e}" if 0 < value < 1e-6 else f"{value:.2f}"
    return "fails" if value is None else str(value)


def main() -> None:
    """Measure all networks and write the table."""
    torch.set_num_threads(1)  # waiting threads would be counted too
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 3, 64, 64, generator=generator)
    capture(CASES["mlp"].model().eval(), CASES["mlp"].inputs())  # imports the tracer
    rows = []
    for name in SMALL + NETWORKS + FURTHER:
        small = name in SMALL
        model = CASES[name].model() if small else build(name)
        rows.append(measure(name, model, CASES[name].inputs() if small else image))
        print(" | ".join(cell(rows[-1][key]) for key in COLUMNS), flush=True)
    machine = {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    lines = ["| " + " | ".join(COLUMNS.values()) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(cell(row[key]) for key in COLUMNS) + " |" for row in rows]
    text = (
        "# Neuron groups\n\nInputs are 2 x 3 x 64 x 64, weights untrained; the change of the "
        "output is measured in float64 with random running statistics, gains and biases, over two "
        "permutations of all groups. An axis is one axis of one tensor that some group moves. "
        "Seconds are processor seconds on one thread. "
        f"Machine: {', '.join(f'{key} {value}' for key, value in machine.items())}.\n\n"
    )
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "symmetry.md").write_text(text + "\n".join(lines) + "\n", encoding="utf-8")
    (RESULTS / "symmetry.json").write_text(
        json.dumps({"machine": machine, "rows": rows}, indent=1), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
