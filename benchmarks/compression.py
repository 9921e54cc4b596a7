"""How much smaller runs become without loss, and what reading them costs then.

    python benchmarks/compression.py --run "CIFAR-10, ResNet-18=run" --output FILE

The run of a network on digits, and every run that is named, is compressed, read, and decompressed
again, and every file is compared with what it was. Times are processor times of one thread, plain
and packed in turns, the least of several; the files are in the page cache. Reading in order finds
the bases in a cache, reading a single snapshot does not. *If normal*: what perfect coding would
take if the moves from each snapshot to the next were normal, with one spread for each tensor. It
is a yardstick of what is random in a run, and so cannot be packed; where many weights hardly move,
less will do.
"""

import argparse
import filecmp
import math
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from common import machine, machine_line, table, write
from slipstream.modes import compress_to_modes
from slipstream.named_task import NamedTask
from slipstream.storage import packed_file
from slipstream.training import TrainingPlan, record_training
from slipstream.trajectory import Trajectory, compress_run, decompress_run, read_run

TURNS = 3


@dataclass(frozen=True)
class Result:
    """What became of one run."""

    case: str
    snapshots: int
    megabytes: float  # before
    share: float  # after, relative to before
    bound: float  # of the differences alone
    differences: float  # what was packed as a difference, relative to before
    by_third: tuple[float, ...]  # the same for the first, the middle and the last third of the run
    packing: float  # MB/s, with the comparison of every byte
    unpacking: float  # MB/s
    one_snapshot: float  # MB/s: the last of a group of 8, seven differences away
    one_tensor: float  # MB/s: the largest at all steps, blocks of bases from the cache
    plain_tensor: float  # MB/s: the same from plain files
    modes_error: float  # of ten modes, relative to the run's motion
    modes_factor: float  # how many times smaller than the snapshots


DIGITS = "digits, MLP 2 x 512, SGD, every epoch"


def record_digits(path: Path) -> None:
    """Train the network that needs no download."""
    setup = NamedTask("mlp", "digits", width=512, options={"hidden_layers": 2}, batch_size=32)
    record_training(setup.build(), TrainingPlan(epochs=20, lr=0.1), run_folder=path)


def bound(run: Trajectory) -> float:
    """Bits that normal moves of each tensor's spread take in its floats, relative to all bits."""
    needed = total = 0.0
    for name in run.names:
        weights = run[name]
        if weights.dtype != torch.float32 or weights[0].numel() < 2:
            continue
        before, after = weights[:-1].double().flatten(1), weights[1:].double().flatten(1)
        spread = (after - before).std(1, keepdim=True)
        unit = torch.exp2(after.abs().clamp_min(1e-38).log2().floor() - 23)  # the last place
        entropy = torch.log2(spread * math.sqrt(2 * math.pi * math.e) / unit)
        needed += float(entropy.clamp(0, 32).sum())
        total += 32 * after.numel()
    return needed / total


def measure(case: str, plain: Path, folder: Path) -> Result:
    """Compress a copy of a run, read both, and decompress the copy again."""
    packed = folder / "packed"
    shutil.copytree(plain, packed)
    begin = time.process_time()
    found = compress_run(packed)
    packing = time.process_time() - begin
    before, after = ([e.bytes for e in read_run(path).entries] for path in (plain, packed))
    runs = Trajectory.open(plain), Trajectory.open(packed)
    largest = max(runs[0].names, key=lambda name: runs[0][0].weights[name].nbytes)
    far = min(7, len(runs[0]) - 1)
    tensors = [least(lambda run=run: run[largest]) for run in runs]
    one = least(lambda: runs[1][far].weights)
    modes = compress_to_modes(plain, folder / "modes", modes=10)
    begin = time.process_time()
    decompress_run(packed)
    unpacking = time.process_time() - begin
    names = [path.name for path in (plain / "snapshots").iterdir()]
    _, changed, missing = filecmp.cmpfiles(
        plain / "snapshots", packed / "snapshots", names, shallow=False
    )
    if changed or missing:
        raise RuntimeError(f"{changed + missing} did not come back.")
    differences = [pair for n, pair in enumerate(zip(after, before, strict=True)) if n % 8]
    third = len(before) // 3
    parts = [slice(0, third), slice(third, -third), slice(-third, None)]
    size = runs[0][largest].nbytes
    return Result(
        case,
        len(before),
        sum(before) / 1e6,
        found.share,
        bound(runs[0]),
        sum(pair[0] for pair in differences) / sum(pair[1] for pair in differences),
        tuple(sum(after[part]) / sum(before[part]) for part in parts),
        sum(before) / 1e6 / packing,
        sum(before) / 1e6 / unpacking,
        before[far] / 1e6 / one,
        size / 1e6 / tensors[1],
        size / 1e6 / tensors[0],
        modes.relative_error,
        modes.factor,
    )


def least(work: Callable[[], object]) -> float:
    """The least processor time of several turns, each with empty caches."""
    seconds = []
    for _ in range(TURNS):
        packed_file._unpacked.cache_clear()
        begin = time.process_time()
        work()
        seconds.append(time.process_time() - begin)
    return min(seconds)


def as_markdown(results: list[Result], facts: dict[str, Any]) -> str:
    """The tables, with the machine."""
    sizes = [
        [
            r.case, str(r.snapshots), f"{r.megabytes:.0f}", f"{r.share:.0%}",
            *(f"{share:.0%}" for share in r.by_third), f"{r.differences:.0%}", f"{r.bound:.0%}",
            f"{r.modes_error:.0%}", f"{r.modes_factor:.1f} x",
        ]
        for r in results
    ]  # fmt: skip
    speeds = [
        [
            r.case, f"{r.packing:.0f}", f"{r.unpacking:.0f}", f"{r.one_snapshot:.0f}",
            f"{r.one_tensor:.0f}", f"{r.plain_tensor:.0f}",
        ]
        for r in results
    ]  # fmt: skip
    return "\n".join(
        [
            "# Compressed runs",
            "",
            machine_line(facts),
            "",
            "Size without loss, relative to plain safetensors files; and ten modes of the same "
            "run, with their error relative to its motion.",
            "",
            table(
                ["run", "snapshots", "MB", "packed", "first third", "middle", "last third",
                 "differences", "if normal", "error of 10 modes", "smaller"],
                sizes,
            ),
            "",
            "MB of plain tensors per second of processor time:",
            "",
            table(
                ["run", "packing and comparing", "unpacking", "one snapshot, seven differences",
                 "one tensor, all steps", "the same, plain files"],
                speeds,
            ),
            "",
            *__doc__.split("\n\n")[2].strip().splitlines(),
        ]
    )  # fmt: skip


def main() -> None:
    """Train, compress, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", action="append", default=[], help="NAME=FOLDER, several")
    parser.add_argument("--output", type=Path, help="writes OUTPUT.md and OUTPUT.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    facts, results = machine(), []
    with tempfile.TemporaryDirectory() as temporary:
        record_digits(Path(temporary, "digits"))
        named = dict(text.rsplit("=", 1) for text in options.run)
        for case, run in {DIGITS: Path(temporary, "digits"), **named}.items():
            with tempfile.TemporaryDirectory() as scratch:
                results.append(measure(case, Path(run), Path(scratch)))
    text = as_markdown(results, facts)
    write(options.output, text, {"machine": facts, "results": [asdict(r) for r in results]})


if __name__ == "__main__":
    main()
