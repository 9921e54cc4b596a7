"""What recording a model that is sharded over processes costs the training loop.

    python benchmarks/sharded.py --output benchmarks/results/sharded

Processes on this machine (gloo) hold a model that FSDP2 has sharded, and record it. Beside it are
`torch.distributed.checkpoint.save` and its asynchronous form, both with its writer of safetensors,
and gathering all tensors in every process to save them in the first one. Times are processor time
per process and snapshot: of the training thread, which is what the loop waits for if the machine is
free, and of all threads.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from common import machine, machine_line, table, write
from slipstream.sharded import gathered
from slipstream.trajectory import Recorder, Trajectory
from slipstream.weights import weights_of

WAYS = ("Recorder", "dcp.async_save", "dcp.save", "gather and save")


def model_of(width: int, processes: int) -> nn.Module:
    """A stack of linear layers, sharded one by one."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(width, width) for _ in range(8)))
    mesh = init_device_mesh("cpu", (processes,))
    for layer in model:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def writer_of(folder: Path) -> dcp.HuggingFaceStorageWriter:
    """The writer of safetensors that torch has."""
    return dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)


def savers(
    model: nn.Module, folder: Path
) -> dict[str, tuple[Callable[[int], None], Callable[[], None]]]:
    """What saves a step, and what waits until it is on disk."""
    recorder = Recorder(folder / "run", model)
    pending: list[Any] = []

    def asynchronous(step: int) -> None:
        finish()
        there = writer_of(folder / f"async-{step}")
        pending.append(dcp.async_save(model.state_dict(), storage_writer=there))

    def finish() -> None:
        while pending:
            pending.pop().result()

    def gather(step: int) -> None:
        whole = {name: gathered(value) for name, value in weights_of(model).items()}
        if torch.distributed.get_rank() == 0:
            save_file(whole, folder / f"whole-{step}.safetensors")

    def synchronous(step: int) -> None:
        dcp.save(model.state_dict(), storage_writer=writer_of(folder / f"sync-{step}"))

    return {
        "Recorder": (lambda step: recorder.record(step=step), recorder.wait),
        "dcp.async_save": (asynchronous, finish),
        "dcp.save": (synchronous, lambda: None),
        "gather and save": (gather, lambda: None),
    }


def take_part(rank: int, processes: int, width: int, snapshots: int, folder: Path) -> None:
    """In a process of its own: save by every way in turn, and note what it took."""
    store = torch.distributed.FileStore(str(folder / "store"), processes)
    torch.distributed.init_process_group("cpu:gloo", store=store, rank=rank, world_size=processes)
    model = model_of(width, processes)
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    ways = savers(model, folder)
    for step in range(snapshots + 1):
        for way, (save, wait) in ways.items():
            torch.distributed.barrier()
            thread, process = time.thread_time(), time.process_time()
            save(step)
            waited = time.thread_time() - thread
            wait()
            if step:  # the first one allocates
                found[way].append((waited, time.process_time() - process))
    (folder / f"found-{rank}.json").write_text(json.dumps(found))
    torch.distributed.barrier()
    os._exit(0)


def measure(processes: int, width: int, snapshots: int, folder: Path) -> list[dict[str, Any]]:
    """A row for every way, with so many processes."""
    children = []
    for rank in range(processes):
        child = os.fork()
        if not child:
            take_part(rank, processes, width, snapshots, folder)
        children.append(child)
    if any(os.waitpid(child, 0)[1] for child in children):
        raise RuntimeError("A process has failed.")
    run = Trajectory.open(folder / "run")
    if len(run) != snapshots + 1:
        raise RuntimeError(f"{len(run)} snapshots were recorded, not {snapshots + 1}.")
    told = [json.loads((folder / f"found-{rank}.json").read_text()) for rank in range(processes)]
    rows = []
    for way in WAYS:
        pairs = [pair for found in told for pair in found[way]]
        loop, whole = (sorted(values) for values in zip(*pairs, strict=True))
        rows.append(
            {
                "processes": processes,
                "way": way,
                "loop_milliseconds": 1e3 * statistics.median(loop),
                "loop_quartiles": [1e3 * q for q in statistics.quantiles(loop)[::2]],
                "all_milliseconds": 1e3 * statistics.median(whole),
            }
        )
    shutil.rmtree(folder)
    return rows


def main() -> None:
    """Measure, print the table and write it where `--output` says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=1024, help="of 8 layers (default 1024)")
    parser.add_argument("--snapshots", type=int, default=10)
    parser.add_argument("--processes", type=int, nargs="+", default=(1, 2, 4))
    parser.add_argument("--folder", type=Path, help="disk to measure (default: temporary folder)")
    parser.add_argument("--output", type=Path, help="writes OUTPUT.md and OUTPUT.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    facts, rows = machine(), []
    for processes in options.processes:
        folder = Path(tempfile.mkdtemp(dir=options.folder))
        rows += measure(processes, options.width, options.snapshots, folder)
    megabytes = 8 * (options.width**2 + options.width) * 4 / 1e6
    text = "\n".join(
        [
            "# Recording a sharded model",
            "",
            machine_line(facts),
            "",
            f"A model of {megabytes:.0f} MB, {options.snapshots} snapshots by each way in turn; "
            "processor time per process and snapshot, medians.",
            "",
            table(
                ["processes", "way", "the loop, ms (quartiles)", "all threads, ms"],
                [
                    [
                        str(row["processes"]),
                        row["way"],
                        f"{row['loop_milliseconds']:.1f} ({row['loop_quartiles'][0]:.1f} to "
                        f"{row['loop_quartiles'][1]:.1f})",
                        f"{row['all_milliseconds']:.1f}",
                    ]
                    for row in rows
                ],
            ),
        ]
    )
    write(options.output, text, {"machine": facts, "megabytes": megabytes, "rows": rows})


if __name__ == "__main__":
    main()
