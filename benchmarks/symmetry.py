"""Neuron groups of networks that people use: found, held against theory and other tools, timed.

Run: python benchmarks/symmetry.py --output benchmarks/results/symmetry
     python benchmarks/symmetry.py --only Llama --only T5 --output benchmarks/results/symmetry
     python benchmarks/symmetry.py --large --output benchmarks/results/symmetry_large
     python benchmarks/symmetry.py --families --output benchmarks/results/vision_families

The tools of PyPI that match weights are measured too if they are there:
     pip install --no-deps --target REBASIN rebasin==0.0.47 torchview graphviz
     pip install --no-deps --target SINKHORN sinkhorn-rebasin==0.0.2 torchviz graphviz
     python benchmarks/symmetry.py --rebasin REBASIN --sinkhorn SINKHORN --output ...
Rows that are in the output already are kept, so that a long measurement can be made in parts.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from common import machine, machine_line, table, write
from oracles.network_zoo import NETWORKS, symmetries
from oracles.vision_networks import declare_operators
from slipstream.pretrained import example_input_for, model_from_config
from slipstream.symmetry.capture import call_with, capture
from slipstream.symmetry.double_precision import double_precision
from slipstream.symmetry.eval_copy import evaluation_copy
from slipstream.symmetry.neuron_groups import NeuronGroups
from slipstream.symmetry.outputs import output_tensors
from slipstream.symmetry.permutation import Permutation
from slipstream.symmetry.proof import check
from slipstream.symmetry.tracing import find_neuron_groups
from slipstream.symmetry.untouched import left_as_it_was
from slipstream.weights import weights_of
from vision_families import CLASSES, FAMILIES, LARGE_IMAGES

LIMIT = 60  # processor seconds that another tool gets for a network
GIVEN = {"input", "output", "embedding"}  # what pins in any model
LARGE = {
    "Llama 2 7B": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "vocab_size": 32000,
    },
    "Llama 3 8B": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
}
FAMILY_COLUMNS = {
    "network": "network",
    "millions": "million parameters",
    "pixels": "pixels",
    "groups": "groups",
    "moved": "moved",
    "everywhere": "along all axes",
    "unproven": "not proven",
    "untested": "not tested",
    "change": "largest change",
    "seconds": "seconds",
    "refused": "refused",
}
COLUMNS = {
    "network": "network",
    "groups": "groups",
    "expected": "of those in theory",
    "moved": "moved",
    "everywhere": "along all axes",
    "pins": "pinned by",
    "dropped": "failed the proof",
    "change": "largest change",
    "peer_groups": "Torch-Pruning: groups",
    "only_peer": "axes only there",
    "rebasin": "rebasin",
    "sinkhorn": "sinkhorn-rebasin",
    "tracing_seconds": "trace s",
    "rules_seconds": "rules s",
    "proof_seconds": "proof s",
    "total_seconds": "total s",
}


def measure(name: str) -> dict[str, Any]:
    """One row of the table, without the other tools."""
    network = NETWORKS[name]
    torch.manual_seed(0)
    model = network.build().eval()
    inputs = network.inputs(model)
    with evaluation_copy(model) as replica:
        _, tracing = timed(lambda: capture(replica, inputs))
    found, finding = timed(lambda: find_neuron_groups(model, inputs, prove=False))
    groups, proof = timed(lambda: check(model, found, inputs))
    ours = {f"{block.tensor}:{block.axis}" for block in groups.blocks}
    images = isinstance(inputs, Tensor)
    peer = run_peer("torch-pruning", None, name) if images else "-"
    coupled = peer["groups"] if isinstance(peer, dict) else []
    return {
        "network": name,
        "groups": len(groups),
        "expected": of_those_in_theory(network.expected, symmetries(groups)),
        "moved": groups.coverage().moved,
        "everywhere": groups.coverage().everywhere,
        "pins": sorted({pin.operator for pin in groups.pins} - GIVEN),
        "dropped": len(groups.dropped),
        "change": largest_change(model, groups, inputs),
        "peer_groups": len(coupled) if isinstance(peer, dict) else peer,
        "only_peer": sorted({axis for group in coupled for axis in group} - ours),
        "tracing_seconds": tracing,
        "rules_seconds": max(finding - tracing, 0.0),
        "proof_seconds": proof,
        "total_seconds": finding + proof,
    }


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """The result, and the processor seconds: on one thread, what an idle machine takes."""
    start = time.process_time()
    return work(), time.process_time() - start


def of_those_in_theory(expected: dict[str, int], found: dict[str, int]) -> str:
    """How many of the groups that a network has are found."""
    hits = sum(min(count, found.get(kind, 0)) for kind, count in expected.items())
    return f"{hits} of {sum(expected.values())}" if expected else "-"


def largest_change(model: nn.Module, groups: NeuronGroups, inputs: Any) -> float:
    """The largest change of an output by a permutation, relative to the largest output, float64.

    Running statistics, gains and biases are random, so that all of them matter.
    """
    generator = torch.Generator().manual_seed(0)
    with evaluation_copy(model) as replica, torch.no_grad():
        replica = replica.double()
        own = weights_of(replica)
        for name, value in own.items():
            if value.is_floating_point() and not value.any():  # a head that starts at zero
                value.normal_(0, 0.1, generator=generator)
            if name.endswith("running_mean"):
                value.normal_(0, 0.1, generator=generator)
            elif value.dim() == 1 and value.is_floating_point():
                value.mul_(torch.rand(value.shape, generator=generator) + 0.5)
        wide = tree_map(lambda leaf: leaf.double() if is_real(leaf) else leaf, inputs)
        before = outputs_of(replica, own, wide)
        changes = []
        for seed in (1, 2):
            moved = Permutation.random(groups, seed=seed).apply(own)
            pairs = zip(outputs_of(replica, moved, wide), before, strict=True)
            changes += [float((new - old).abs().max() / old.abs().max()) for new, old in pairs]
    return max(changes)


def outputs_of(model: nn.Module, weights: dict[str, Tensor], inputs: Any) -> list[Tensor]:
    """All tensors that the model returns, in float64; what it caches on the way is forgotten."""
    with left_as_it_was(model), double_precision():
        found = output_tensors(call_with(model, weights, inputs))
    return [leaf for leaf in found.values() if is_real(leaf)]


def is_real(leaf: Any) -> bool:
    """Whether it is a tensor of floating-point numbers."""
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def run_peer(tool: str, folder: Path | None, network: str) -> dict[str, Any] | str:
    """What another tool says about a network, or how it fails."""
    paths = [str(folder or ""), os.environ.get("PYTHONPATH", "")]
    script = Path(__file__).with_name("symmetry_peers.py")
    done = subprocess.run(
        [sys.executable, script, tool, network],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT)),
    )
    if done.returncode < 0:
        return f"over {LIMIT} s"
    if done.returncode:
        print(f"  {tool} fails: {done.stderr.strip().splitlines()[-1][:200]}", flush=True)
        return "crash"
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def verdict(result: dict[str, Any] | str) -> str:
    """Whether a tool permuted a network rightly."""
    if isinstance(result, str):
        return result
    if not result["moved"]:
        return "nothing found"
    if not result["change"] < 1e-4:  # float32; not a number is wrong too
        return f"**wrong** (moved by {result['change']:.0e}), {result['seconds']:.0f} s"
    return f"right, moves {result['moved']:.0%}, {result['seconds']:.0f} s"


def measure_large(name: str) -> dict[str, Any]:
    """Time and memory to trace and prove a configuration of full size; run one in a process."""
    from transformers import LlamaConfig

    with tempfile.TemporaryDirectory() as folder:
        config = LlamaConfig(
            **LARGE[name], architectures=["LlamaForCausalLM"], bos_token_id=1, eos_token_id=2
        )
        config.save_pretrained(folder)
        model, building = timed(lambda: model_from_config(folder))
    inputs = example_input_for(model)
    found, finding = timed(lambda: find_neuron_groups(model, inputs, prove=False))
    groups, whole = timed(lambda: find_neuron_groups(model, inputs))
    return {
        "network": name,
        "billions": sum(value.numel() for value in model.parameters()) / 1e9,
        "groups": len(groups),
        "unproven": len(found) - len(groups),
        "building_seconds": building,
        "tracing_seconds": finding,
        "total_seconds": building + whole,
        "gibibytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def measure_family(name: str) -> dict[str, Any]:
    """One row of the table of vision networks at their full size."""
    torch.manual_seed(0)
    model, pixels = vision_network(name)
    images = torch.randn(2, 3, pixels, pixels)
    row = {"network": name, "pixels": pixels}
    row["millions"] = sum(value.numel() for value in model.parameters()) / 1e6
    try:
        groups, row["seconds"] = timed(lambda: find_neuron_groups(model, images))
    except ValueError as error:
        return row | {"refused": str(error)[:100]}
    return row | {
        "groups": len(groups),
        "moved": groups.coverage().moved,
        "everywhere": groups.coverage().everywhere,
        "unproven": len(groups.dropped),
        "untested": sum("not tested" in caveat for caveat in groups.caveats),
        "change": largest_change(model, groups, images[:1]),
    }


def vision_network(name: str) -> tuple[nn.Module, int]:
    """An untrained network by its package and name, and the size of the images that it takes."""
    package, _, name = name.partition(" ")
    if package == "timm":
        import timm

        model = timm.create_model(name)
        if model.num_classes == 0:  # the features of such a network are its outputs otherwise
            model = timm.create_model(name, num_classes=CLASSES)
        return model.eval(), model.default_cfg["input_size"][1]
    import torchvision

    return torchvision.models.get_model(name, weights=None).eval(), LARGE_IMAGES.get(name, 224)


def run_families(given: argparse.Namespace) -> None:
    """Measure a small network of every family of vision networks and write the table."""
    known = given.output.with_suffix(".json") if given.output else None
    rows = {}
    if known and known.exists():
        rows = {row["network"]: row for row in json.loads(known.read_text("utf-8"))["rows"]}
    facts = machine()
    for name in given.families or FAMILIES:
        if name in rows and not rows[name].get("earlier"):
            continue
        rows[name] = measure_family(name)
        ordered = [rows[family] for family in FAMILIES if family in rows]
        shown = [family_cells(row) for row in ordered]
        times = sorted(row["seconds"] for row in ordered if "seconds" in row)
        print(" | ".join(cell(rows[name].get(key, "")) for key in FAMILY_COLUMNS), flush=True)
        text = (
            "# Neuron groups of vision networks at their full size\n\n"
            "A small network of every family of timm and torchvision that classifies images, "
            "untrained, with two images. *seconds*: processor seconds of `find_neuron_groups` on "
            "one thread, proof included, on a machine that others used at the same time. "
            "*moved*: the share of the parameters on an axis that some group moves. *not proven*: "
            "groups that the proof dropped. *not tested*: whether the example left blocks "
            "untested. *largest change* of an output by two permutations of all groups, relative "
            "to the largest output, in float64, with other statistics, gains and biases than "
            "the proof has. A star in the last column: measured with an earlier version of the "
            f"proof.\n\n{len(ordered)} networks; {len(times)} traced, of which "
            f"{sum(time > 20 for time in times)} took more than 20 s and "
            f"{sum(time > 10 for time in times)} more than 10 s.\n\n{machine_line(facts)}\n\n"
        )
        header = list(FAMILY_COLUMNS.values())
        save(given.output, text + table(header, shown), {"machine": facts, "rows": ordered})


def family_cells(row: dict[str, Any]) -> list[str]:
    """A row of the table of vision networks; what an earlier version measured has a star."""
    *cells, refused = (cell(row.get(key, "")) for key in FAMILY_COLUMNS)
    return [*cells, f"{refused}*" if row.get("earlier") else refused]


def cell(value: Any) -> str:
    """A value of the table as text."""
    if isinstance(value, list):
        return str(len(value)) if value and ":" in value[0] else ", ".join(value) or "-"
    if isinstance(value, float):
        return f"{value:.0e}" if 0 < value < 1e-3 else f"{value:.2f}"
    return str(value)


def run_all(given: argparse.Namespace) -> None:
    """Measure the networks that are asked for and write the table."""
    rows = {}
    known = given.output.with_suffix(".json") if given.output else None
    if known and known.exists():
        rows = {row["network"]: row for row in json.loads(known.read_text("utf-8"))["rows"]}
    facts = machine()
    for name in given.only or NETWORKS:
        rows[name] = rows.get(name, {}) | (measure(name) if not given.only_others else {})
        for tool in ("rebasin", "sinkhorn"):
            if folder := getattr(given, tool):
                rows[name][tool] = verdict(run_peer(tool, folder, name))
        ordered = [rows[known_name] for known_name in NETWORKS if known_name in rows]
        shown = [[cell(row.get(key, "")) for key in COLUMNS] for row in ordered]
        text = (
            "# Neuron groups\n\nWeights are untrained. *moved*: the share of a model's numbers "
            "that lie on an axis some group moves. *largest change* of an output by two "
            "permutations of all groups, in float64, with random statistics, gains and biases. "
            "Inputs, outputs and rows of embeddings are pinned in every network and not listed. "
            f"The other tools get {LIMIT} processor seconds for each network; they are wrong where "
            "their own permutation of one network changes its output by more than rounding in "
            "float32 (random statistics, gains and biases); what they move is the share of the "
            "numbers in tensors that changed at all. Models of transformers compute parts in "
            "float32, which shows in the largest change. Seconds are processor seconds on one "
            f"thread.\n\n{machine_line(facts)}\n\n"
        )
        print(" | ".join(cell(rows[name].get(key, "")) for key in COLUMNS), flush=True)
        data = {"machine": facts, "rows": ordered}
        save(given.output, text + table(list(COLUMNS.values()), shown), data)


def run_large(given: argparse.Namespace) -> None:
    """Measure the configurations of full size, each in its own process, and write the table."""
    if given.large != "all":
        print(json.dumps(measure_large(given.large)))
        return
    rows = []
    for name in LARGE:
        command = [sys.executable, __file__, "--large", name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    facts = machine()
    text = (
        "# Neuron groups of a Hugging Face folder without its weights\n\nThe model is built on the "
        "meta device, traced with shapes only, and proven on a narrow model. Seconds are processor "
        f"seconds on one thread, memory is the largest resident set.\n\n{machine_line(facts)}\n\n"
    )
    shown = [[cell(value) for value in row.values()] for row in rows]
    header = [key.replace("_seconds", " s") for key in rows[0]]
    write(given.output, text + table(header, shown), {"machine": facts, "rows": rows})


def save(output: Path | None, text: str, data: dict[str, Any]) -> None:
    """Write what is known so far."""
    if output:
        output.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
        output.with_suffix(".json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Read the options and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", choices=NETWORKS, help="these networks")
    parser.add_argument("--only-others", action="store_true", help="measure only the other tools")
    parser.add_argument("--rebasin", type=Path, help="folder that rebasin was installed to")
    parser.add_argument("--sinkhorn", type=Path, help="folder that sinkhorn-rebasin is in")
    parser.add_argument("--large", nargs="?", const="all", choices=["all", *LARGE])
    parser.add_argument("--families", nargs="*", choices=[*FAMILIES, []], metavar="NETWORK")
    parser.add_argument("--output", type=Path, help="without a suffix")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)  # waiting threads would be counted too
    declare_operators()
    if given.large:
        run_large(given)
        return
    first = NETWORKS["mlp"]
    capture(first.build().eval(), first.inputs(None))  # imports the tracer
    run_all(given) if given.families is None else run_families(given)


if __name__ == "__main__":
    main()
