"""What recording costs a training loop, and how fast a trajectory is read back.

    python benchmarks/recording.py --output benchmarks/results/recording

Each case trains as many steps as lie between two snapshots, in turns without and with a recorder,
which keeps a snapshot in the middle. On a machine that others use too, wall-clock differences drown
in noise; so the processor time of the training thread is shown beside them, and the time inside
the recorder's hook, which includes what the machine's other users take, but not what the writing
thread takes from the loop. Reading is from the page cache.
"""

import argparse
import json
import math
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common import waiting_clock
from slipstream.testbed.networks import mlp, resnet18
from slipstream.trajectory import Layout, Recorder, Schedule, Trajectory, create_run
from slipstream.weights import weights_of


@dataclass(frozen=True)
class Case:
    """A training loop and how often it is recorded."""

    name: str
    model: Callable[[], nn.Module]
    shape: tuple[int, ...]  # of a batch
    every: int  # steps
    pairs: int
    device: str = "cpu"
    bfloat16: bool = False  # under autocast


@dataclass(frozen=True)
class Overhead:
    """What recording added to a case."""

    case: str
    megabytes: float  # of a snapshot
    every: int
    step_milliseconds: float  # without recording, the fastest turn
    added_percent: float  # the fastest turn with a recorder against the fastest without
    added_median_percent: float  # over the pairs of turns
    added_quartiles_percent: tuple[float, float]
    added_processor_percent: float  # of the training thread, all turns together
    held_up_milliseconds: float  # inside the hook, the median over the snapshots


@dataclass(frozen=True)
class Reading:
    """How fast one tensor is read at all steps."""

    tensor: str
    megabytes: float
    snapshots: int
    seconds: float
    gigabytes_per_second: float


@dataclass
class Turns:
    """How long the turns took."""

    seconds: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)  # seconds of the training thread

    def add(
        self,
        step: Callable[[], None],
        count: int,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Measure a turn of `count` steps."""
        wall, processor = clock(), time.thread_time()
        for _ in range(count):
            step()
        self.seconds.append(clock() - wall)
        self.processor.append(time.thread_time() - processor)


def training(case: Case) -> tuple[nn.Module, torch.optim.Optimizer, Callable[[], None]]:
    """A model, its optimizer, and one step of training on random data."""
    generator = torch.Generator().manual_seed(0)
    batch = torch.randn(case.shape, generator=generator).to(case.device)
    labels = torch.randint(10, case.shape[:1], generator=generator).to(case.device)
    torch.manual_seed(0)
    model = case.model().to(case.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(batch.device.type, torch.bfloat16, enabled=case.bfloat16):
            loss = nn.functional.cross_entropy(model(batch), labels)
        loss.backward()
        optimizer.step()

    return model, optimizer, step


def measure_overhead(case: Case, folder: Path) -> Overhead:
    """Train two equal models in turns, one without and one with a recorder, and compare."""
    _, _, plain_step = training(case)
    model, optimizer, recorded_step = training(case)
    plain, recorded, held_up, clock = Turns(), Turns(), Turns(), waiting_clock(case.device)
    recorder = Recorder(
        folder / case.name,
        model,
        schedule=Schedule.every(case.every),
    )
    recorder.step = case.every // 2  # so that the snapshots fall into the middle of the turns
    recorder.attach(optimizer)
    record = recorder.record
    with recorder:
        for step in (plain_step, recorded_step):  # warms up, and fills the buffers once
            Turns().add(step, case.every, clock=clock)
        recorder.record = lambda: held_up.add(record, 1)  # type: ignore[method-assign]
        for pair in range(case.pairs):
            for turns, step in ((plain, plain_step), (recorded, recorded_step))[:: (-1) ** pair]:
                turns.add(step, case.every, clock=clock)
        del recorder.record
    added = [100 * (r / p - 1) for p, r in zip(plain.seconds, recorded.seconds, strict=True)]
    quartiles = statistics.quantiles(added, n=4)
    return Overhead(
        case=case.name,
        megabytes=sum(value.nbytes for value in weights_of(model).values()) / 1e6,
        every=case.every,
        step_milliseconds=1e3 * min(plain.seconds) / case.every,
        added_percent=100 * (min(recorded.seconds) / min(plain.seconds) - 1),
        added_median_percent=quartiles[1],
        added_quartiles_percent=(quartiles[0], quartiles[2]),
        added_processor_percent=100 * (sum(recorded.processor) / sum(plain.processor) - 1),
        held_up_milliseconds=1e3 * statistics.median(held_up.seconds),
    )


def resnet_run(folder: Path, snapshots: int) -> Path:
    """A run of ResNet-18-sized snapshots, in the page cache."""
    torch.manual_seed(0)
    weights = weights_of(resnet18())
    with create_run(folder / "resnet", model=Layout.of_weights(weights)) as writer:
        for step in range(snapshots):
            writer.append(step=step, weights=weights)
    return folder / "resnet"


def sequential_speed(run: Path) -> float:
    """Gigabytes a second of a plain read of all files, one thread, into one reused buffer."""
    buffer = memoryview(bytearray(16 << 20))
    count = 0
    begin = time.perf_counter()
    for path in sorted((run / "snapshots").iterdir()):
        with FileIO(path) as file:
            while part := file.readinto(buffer):
                count += part
    return count / (time.perf_counter() - begin) / 1e9


def measure_reading(run: Path, repeats: int) -> tuple[list[Reading], float]:
    """The largest, a middle and a small tensor at all steps, and the sequential speed, in turns."""
    trajectory = Trajectory.open(run)
    by_size = sorted(trajectory.names, key=lambda name: math.prod(trajectory.shapes[name]))
    chosen = [by_size[-1], by_size[len(by_size) * 9 // 10], by_size[len(by_size) // 2]]
    seconds: dict[str, list[float]] = {name: [] for name in chosen}
    speeds = []
    for _ in range(repeats):
        speeds.append(sequential_speed(run))
        for name in chosen:
            begin = time.perf_counter()
            series = trajectory[name]
            seconds[name].append(time.perf_counter() - begin)
    readings = []
    for name in chosen:
        taken, size = min(seconds[name]), trajectory[name].nbytes
        readings.append(Reading(name, size / 1e6, len(series), taken, size / taken / 1e9))
    return readings, max(speeds)


def opening_milliseconds(folder: Path, snapshots: int) -> float:
    """The time to open a run of many snapshots, after which nothing has been read."""
    weights = {"w": torch.zeros(1)}
    with create_run(folder / "long", model=Layout.of_weights(weights)) as writer:
        for step in range(snapshots):
            writer.append(step=step, weights=weights)
    begin = time.perf_counter()
    opened = Trajectory.open(folder / "long")
    seconds = time.perf_counter() - begin
    if len(opened) != snapshots:
        raise RuntimeError(f"{len(opened)} of {snapshots} snapshots were opened.")
    return 1e3 * seconds


def processor() -> str:
    """The name of the processor, if the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), "?")


def cases(quick: bool) -> list[Case]:
    """The two loops of the README."""
    return [
        Case("MLP 784-1024-10", lambda: mlp(width=1024), (128, 1, 28, 28), 100, 4 if quick else 60),
        Case("ResNet-18", resnet18, (8, 3, 32, 32), 10, 2 if quick else 16),
    ]


def as_markdown(result: dict[str, Any]) -> str:
    """The tables of the result, with the machine."""
    machine = result["machine"]
    lines = [
        "# Recording and reading a trajectory",
        "",
        f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} torch thread(s), "
        f"torch {machine['torch']}, Python {machine['python']}; load average at the start "
        f"{machine['load']:.1f}. `python benchmarks/recording.py`",
        "",
        "| training loop | snapshot MB | every | step ms | added, fastest turn | added, median "
        "(quartiles) | added to the training thread | in the hook, ms a snapshot | in the hook |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {o['case']} | {o['megabytes']:.1f} | {o['every']} steps | {o['step_milliseconds']:.1f} "
        f"| {o['added_percent']:+.2f} % | {o['added_median_percent']:+.2f} % "
        f"({o['added_quartiles_percent'][0]:+.1f} to {o['added_quartiles_percent'][1]:+.1f}) "
        f"| {o['added_processor_percent']:+.2f} % | {o['held_up_milliseconds']:.1f} "
        f"| {100 * o['held_up_milliseconds'] / (o['every'] * o['step_milliseconds']):.2f} % |"
        for o in result["overhead"]
    ]
    speed = result["sequential_gigabytes_per_second"]
    lines += [
        "",
        *__doc__.split("\n\n")[2].splitlines(),
        "",
    ]
    if machine["load"] > 1.5:
        lines += [
            "**The machine was busy: the wall-clock differences and speeds mean little.**",
            "",
        ]
    lines += [
        f"A plain sequential read of the page cache runs at {speed:.2f} GB/s (one thread, one "
        "reused buffer).",
        "",
        "One tensor at all steps, into new memory; the fastest of many turns of each:",
        "",
        "| tensor | MB | snapshots | ms | GB/s | of sequential |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {r['tensor']} | {r['megabytes']:.2f} | {r['snapshots']} | {1e3 * r['seconds']:.1f} "
        f"| {r['gigabytes_per_second']:.2f} | {100 * r['gigabytes_per_second'] / speed:.0f} % |"
        for r in result["reading"]
    ]
    opening = result["opening_milliseconds_of_1000"]
    return "\n".join([*lines, "", f"Opening a run of 1000 snapshots takes {opening:.0f} ms.", ""])


def main() -> None:
    """Measure, print the tables and write them where `--output` says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few repeats, for a look")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    parser.add_argument("--output", type=Path, help="writes OUTPUT.md and OUTPUT.json")
    parser.add_argument("--folder", type=Path, help="disk to measure (default: temporary folder)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    machine = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": options.threads,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
    }
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        overhead = [asdict(measure_overhead(case, folder)) for case in cases(options.quick)]
        run = resnet_run(folder, 10 if options.quick else 50)
        reading, speed = measure_reading(run, 5 if options.quick else 40)
        result = {
            "machine": machine,
            "overhead": overhead,
            "sequential_gigabytes_per_second": speed,
            "reading": [asdict(r) for r in reading],
            "opening_milliseconds_of_1000": opening_milliseconds(folder, 1000),
        }
    text = as_markdown(result)
    print(text)
    if options.output:
        options.output.with_suffix(".md").write_text(text, encoding="utf-8")
        options.output.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
