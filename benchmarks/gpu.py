"""What a large GPU is given in eight minutes: tests, costs, matchings, transfers at full width.

    python benchmarks/gpu.py --cifar10 DIR --networks DIR --output benchmarks/results/gpu

Rows are written as they are measured, and those in the output are not measured again: a script that
was killed, or whose `--seconds` are over, continues where it stopped. Networks of the transfers are
kept in `--networks`. Times are on the wall, after the device has finished. On a CPU
(`--device cpu`) the same parts run, which only makes sense at a small size.
"""

import argparse
import json
import math
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common import machine, machine_line, save, table, waiting_clock
from cost import ratios
from matching import cells, llama_stack, ours
from recording import Case as Loop
from recording import measure_overhead
from slipstream.evaluation import Task
from slipstream.matching import match_weights
from slipstream.named_task import NamedTask
from slipstream.testbed.networks import conv8, resnet18
from slipstream.training import TrainingPlan
from slipstream.weights import weights_of
from transfer_cases import Case, Networks
from transfer_methods import Methods, methods_text

ROOT = Path(__file__).parents[1]
TESTS = (str(ROOT / "tests"), "-m", "gpu")
TRAINING = TrainingPlan(epochs=15, lr=0.1, weight_decay=5e-4, schedule="cosine")
TRANSFERRED = ("Conv8", "ResNet-18")
PAIRS = 3
BUDGETS, LADDER = (5, 10, 20, 60), (60, 120, 240)
HIDDEN, LAYERS = 4096, 5  # of the Llama-like stack: 1.1 billion weights
IMAGE, WIDTHS, DEPTHS = 224, (256, 512, 1024, 2048), (3, 4, 6, 3)  # of ResNet-50
LOOPS = {  # batch, steps between two snapshots, pairs of turns
    "Conv8": (conv8, 512, 100, 10),
    "ResNet-18": (resnet18, 512, 50, 6),
}

Row = dict[str, Any]
Part = Callable[[list[Row]], Iterator[list[Row]]]  # from the rows that are known to more of them


@dataclass(frozen=True)
class Placed(NamedTask):
    """A task whose model lies on a device."""

    device: str = "cpu"

    def build(self, *, seed: int | None = None, device: str | None = None) -> Task:
        """Build the task, its model on the device."""
        return super().build(seed=seed, device=device or self.device)


def by_name(works: Mapping[str, Callable[[], Row]], rows: list[Row]) -> Iterator[list[Row]]:
    """Measure the rows that are not known."""
    for name, work in works.items():
        if all(row["name"] != name for row in rows):
            rows = [*rows, {"name": name, **work()}]
            yield rows


def tests() -> Row:
    """Run the tests that need a GPU."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr[-300:]
    counts = {kind: int(count) for count, kind in re.findall(r"(\d+) (\w+)", last)}
    wanted = ("passed", "failed", "errors", "skipped")
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, flags=re.MULTILINE)
    return {kind: counts.get(kind, 0) for kind in wanted} | {"which": " ".join(failed) or "-"}


def recording(device: str) -> Iterator[tuple[str, Callable[[], Row]]]:
    """What a recorder adds to a training loop in float32, and under autocast to bfloat16."""
    for name, (make, batch, every, pairs) in LOOPS.items():
        for low in (False, True):
            loop = Loop(name, make, (batch, 3, 32, 32), every, pairs, device, low)
            kind = "bfloat16 autocast" if low else "float32"
            yield f"{name}, {kind}", lambda loop=loop: overhead(loop)


def overhead(loop: Loop) -> Row:
    """Measure a loop, its run in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        found = asdict(measure_overhead(loop, Path(folder)))
    return {
        key: value for key, value in found.items() if key not in ("case", "added_quartiles_percent")
    }


def setups(cifar10: str, device: str) -> dict[str, Placed]:
    """The networks at full width."""
    data: dict[str, Any] = {"data": f"cifar10:{cifar10}", "width": 1.0, "device": device}
    plain: dict[str, Any] = {"options": {"batchnorm": False}}
    return {
        "Conv8": Placed("conv8", **data),
        "ResNet-18": Placed("resnet18", **data),
        "Conv8 without BatchNorm": Placed("conv8", **data, **plain),
        "MLP, 2 x 512": Placed("mlp", **{**data, "width": 512}, options={"hidden_layers": 2}),
    }


def cost(name: str, setup: Placed) -> Row:
    """FGMT beside its gradients, by number of stages, and the memory of the device."""
    cuda = setup.device.startswith("cuda")
    if cuda:
        torch.cuda.reset_peak_memory_stats(setup.device)
    found = ratios(name, setup, 2, 30, clock=waiting_clock(setup.device))
    row: Row = {f"T = {measured['stages']}": measured["ratio"] for measured in found}
    row |= {f"{kind} s": seconds for kind, seconds in found[-1]["kinds"].items()}
    if cuda:
        size = sum(value.nbytes for value in weights_of(setup.build().model).values())
        row["peak_in_models"] = torch.cuda.max_memory_allocated(setup.device) / size
    return row


class Logits(nn.Module):
    """A ResNet-50 for ImageNet, untrained, that returns its logits."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        from transformers import ResNetConfig, ResNetForImageClassification

        torch.manual_seed(seed)
        configuration = ResNetConfig(  # type: ignore[call-arg]
            num_labels=1000, hidden_sizes=list(WIDTHS), depths=list(DEPTHS)
        )
        self.model = ResNetForImageClassification(configuration)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.model(pixel_values=images).logits
        return logits


def matching_of_resnet50(device: str) -> Row:
    """Match two untrained networks: nothing is alike, which is the slowest case."""
    source, target = (Logits(seed).eval().to(device) for seed in (0, 1))
    example = torch.randn(1, 3, IMAGE, IMAGE, device=device)
    found = ours(source, target, example, clock=waiting_clock(device))
    return {"parameters": sum(value.numel() for value in source.parameters()), **found}


def matching_of_llama(device: str) -> Row:
    """Match a stack of layers with itself in another order and with noise."""
    stack, clock = llama_stack(HIDDEN, layers=LAYERS, device=device), waiting_clock(device)
    began = clock()
    found = match_weights(stack.source, stack.target, groups=stack.groups)
    return {
        "parameters": stack.bytes // 4,
        "seconds": clock() - began,
        "objective": found.objective,
        "identity": found.identity_objective,
        "sweeps": found.sweeps,
        "converged": found.converged,
        "found_again": found.source_to_target.same_as(stack.hidden_order),
    }


def transfer_case(setup: Placed) -> Case:
    """All rows of transfer.py, on networks of three seeds."""
    wide = replace(setup, batch_size=256)
    return Case(wide, TRAINING, 256, pairs=PAIRS, budgets=BUDGETS, ladder=LADDER, test=8)


def transfer(case: Case, folder: Path | None, rows: list[Row]) -> Iterator[list[Row]]:
    """Train the networks that are not kept, and measure every method and rival."""
    networks = Networks(case, folder)
    before = -1
    for found in Methods(case, networks, PAIRS, rows).study():
        if len(found["rows"]) > before:  # all rows are given once more at the end
            before = len(found["rows"])
            yield list(found["rows"])


def parts(cifar10: str, device: str, networks: Path | None) -> dict[str, Part]:
    """What is measured, in this order: what is short, and what needs most."""
    known = setups(cifar10, device)
    costs = {name: lambda n=name, s=setup: cost(n, s) for name, setup in known.items()}
    matched = {
        "ResNet-50": lambda: matching_of_resnet50(device),
        "Llama-like stack": lambda: matching_of_llama(device),
    }
    loops = dict(recording(device))
    return {
        "tests": lambda rows: by_name({"marked gpu": tests}, rows),
        "matching": lambda rows: by_name(matched, rows),
        "recording": lambda rows: by_name(loops, rows),
        "cost": lambda rows: by_name(costs, rows),
        **{
            f"transfer {name}": lambda rows, n=name: transfer(
                transfer_case(known[n]), None if networks is None else networks / n, rows
            )
            for name in TRANSFERRED
        },
    }


def measure(
    parts: Mapping[str, Part], found: dict[str, Any], *, seconds: float, keep: Callable[[], None]
) -> None:
    """Measure what is missing until the seconds are over; `keep` is called after each row."""
    end = time.perf_counter() + seconds
    for name, part in parts.items():
        kept = found.setdefault(name, {"rows": [], "seconds": 0.0, "finished": False})
        if kept["finished"]:
            continue
        before = time.perf_counter()
        for rows in part(kept["rows"]):
            now = time.perf_counter()
            kept["rows"], kept["seconds"] = rows, kept["seconds"] + now - before
            before = now
            keep()
            if now > end:
                print(f"The seconds are over in {name!r}: start again to go on.", flush=True)
                return
        kept["finished"] = True
        keep()


def as_text(found: dict[str, Any], cases: Mapping[str, Case]) -> str:
    """The tables, and the seconds of each part."""
    measured = found["parts"]
    seconds = [
        [name, f"{part['seconds']:.0f}", "yes" if part["finished"] else "no"]
        for name, part in measured.items()
    ]
    lines = [
        "# On a GPU",
        f"{found['device']}. {machine_line(found['machine'])} Times are on the wall.",
        table(["part", "seconds", "finished"], seconds),
    ]
    for name, part in measured.items():
        if part["rows"]:
            lines += [f"## {name}", _shown(name, part["rows"], cases)]
    return "\n\n".join(lines)


def _shown(name: str, rows: list[Row], cases: Mapping[str, Case]) -> str:
    if name in cases:
        return methods_text({"rows": rows}, cases[name])
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return table(columns, [cells(row, columns) for row in rows])


def device_name(device: str) -> str:
    """Say what is measured."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device.upper()


def main() -> None:
    """Measure what is not in the output yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cifar10", required=True, help="folder of CIFAR-10")
    parser.add_argument("--device", default="cuda", help='where it runs (default "cuda")')
    parser.add_argument("--networks", type=Path, help="folder that keeps the trained networks")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no row after these")
    parser.add_argument("--only", nargs="+", default=[], help="parts, such as cost")
    parser.add_argument("--output", type=Path, help="writes OUTPUT.md and OUTPUT.json")
    options = parser.parse_args()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("PyTorch finds no CUDA device here; --device cpu runs the same, slowly")
    all_parts = parts(options.cifar10, options.device, options.networks)
    if unknown := [name for name in options.only if name not in all_parts]:
        parser.error(f"there is no part {unknown[0]!r}; there are {', '.join(all_parts)}")
    named = setups(options.cifar10, options.device).items()
    cases = {f"transfer {name}": transfer_case(setup) for name, setup in named}
    found: dict[str, Any] = {"device": device_name(options.device), "machine": machine()}
    found["parts"] = _kept(options.output, found["device"])

    def kept() -> None:
        if options.output:
            save(options.output, as_text(found, cases), found)

    wanted = {n: part for n, part in all_parts.items() if not options.only or n in options.only}
    measure(wanted, found["parts"], seconds=options.seconds, keep=kept)
    print(as_text(found, cases))


def _kept(output: Path | None, device: str) -> dict[str, Any]:
    """The rows of an earlier call on a device of this kind."""
    file = None if output is None else output.with_suffix(".json")
    if file is None or not file.is_file():
        return {}
    earlier = json.loads(file.read_text(encoding="utf-8"))
    if earlier["device"] != device:
        raise SystemExit(f"{file} is of {earlier['device']}, not of {device}: name another output.")
    return dict(earlier["parts"])


if __name__ == "__main__":
    main()
