"""How many injected faults lose something, are silent, or end in anything but a one-line error.

    python benchmarks/faults.py --output benchmarks/results/faults

*Kills*: a recorder is killed with SIGKILL after a random time. A fault is a snapshot that was
reported as written and is missing, one that is listed and holds other weights, or a run that does
not resume. *Interrupted work*: a recipe or a transfer is killed just before a random access to its
run folder, resumed, and killed again; a fault is a result that is not bit-identical to that of an
uninterrupted run. *Flips*: a random bit of a snapshot, of the index or of `run.json`; a fault is
other content without an error. *Hostile files*: random changes of what headers, packed files,
`run.json` and index lines say, and pipes, links, folders and devices in place of files; a fault is
anything but a success or a one-line OSError or ValueError, more than 10 s of work or 2 GiB of
memory, or a header that is read though the safetensors library refuses it. *Hostile messages*: the
reply of one of three clients of a federated training is spoilt; a fault is an exception, or a
model that differs from that of the other two clients.
"""

import argparse
import itertools
import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common import machine, machine_line, table, write
from faults_counted import Count, Result, forked, outcome
from faults_hostile import hostile_files, messages
from slipstream import Recorder, Trajectory, classification_loss, recipes, weights_of
from slipstream.evaluation import Task
from slipstream.storage.new_run import NewRun
from slipstream.training import TrainingPlan
from slipstream.trajectory import Schedule, check_run, compress_run, read_run
from slipstream.transfer import TransferPlan, transfer_trajectory


def filled(model: nn.Module, step: int) -> nn.Module:
    """The model, all of its weights the step."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(step)
    return model


def kills(count: int, folder: Path, chance: random.Random) -> Result:
    """Kill recorders at random moments."""
    counted = Count("recorder killed at a random moment")
    for number in range(count):
        run, reported = folder / f"run{number}", folder / f"reported{number}"

        def record(run: Path = run, reported: Path = reported) -> str:
            recorder = Recorder(run, model := nn.Linear(200, 200), schedule=Schedule.every(1))
            with reported.open("wb", buffering=0) as told:
                for step in itertools.count():
                    filled(model, step)
                    recorder.record(step=step, metrics={"loss": step})
                    if step % 3 == 0:
                        recorder.wait()
                        told.write(f"{step}\n".encode())
            return ""

        _, code = forked(record, kill_after=chance.uniform(0, 0.2))
        written = reported.read_text().split() if reported.exists() else []
        fault = after_kill(run, int(written[-1]) if written else None)
        counted.add(noticed=code == -signal.SIGKILL, fault=fault)
        shutil.rmtree(run, ignore_errors=True)
    return counted.result()


def after_kill(run: Path, last: int | None) -> str:
    """Say what a killed recorder lost, and whether it resumes."""
    try:
        if (run / "run.json").exists():
            trajectory = Trajectory.open(run)
            if trajectory.steps != list(range(len(trajectory))):
                return f"steps {trajectory.steps}"
            if last is not None and len(trajectory) <= last:
                return f"step {last} was reported, {len(trajectory)} are there"
            for snapshot in trajectory:
                if not all((value == snapshot.step).all() for value in snapshot.weights.values()):
                    return f"step {snapshot.step} holds other weights"
        elif last is not None:
            return "run.json is missing"
        resumed = Recorder(run, nn.Linear(200, 200), resume=(run / "run.json").exists())
        with resumed as recorder:
            recorder.record(step=10**6)
        return "; ".join(text for text in check_run(run) if "not in the index" not in text)
    except Exception as error:  # ruff: ignore[blind-except] - whatever it is, it is a fault
        return repr(error)


def network(seed: int = 0) -> nn.Module:
    """A small network with BatchNorm."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))


def jobs(folder: Path) -> dict[str, Callable[[NewRun], object]]:
    """Work that is recorded, and resumes."""
    torch.manual_seed(5)
    data = [(torch.randn(24, 8), torch.arange(24) % 4)] * 3
    plan = TrainingPlan.cosine(2)
    model = network(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(folder / "source", model, schedule=Schedule.every(1)).attach(optimizer):
        for inputs, labels in data:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
    source, start = Trajectory.open(folder / "source"), weights_of(network(2))

    def task() -> Task:
        return Task(network(), data, classification_loss, validation=data)

    subspace = recipes.SubspacePlan("line", descent=plan)
    iterand = recipes.IterandPlan(descent=plan)
    lure = recipes.LurePlan(descent=plan)
    transfer = TransferPlan("fgmt", stages=4)
    return {
        "train_subspace": lambda new: recipes.train_subspace(task(), plan=subspace, run_folder=new),
        "train_iterand": lambda new: recipes.train_iterand(task(), plan=iterand, run_folder=new),
        "train_lure": lambda new: recipes.train_lure(
            task(), chunks=[data, data], plan=lure, run_folder=new
        ),
        "transfer_trajectory": lambda new: transfer_trajectory(
            source, start, task(), plan=transfer, run_folder=new
        ),
    }


def watched(folder: Path, die_at: int | None) -> Callable[[], int]:
    """Count the accesses to a folder, and have the process killed just before one of them."""
    touched, events = [0], ("open", "os.mkdir", "os.rename", "os.remove")

    def hook(event: str, given: tuple[Any, ...]) -> None:
        if event in events and str(folder) in str(given[0]):
            touched[0] += 1
            if touched[0] == die_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return lambda: touched[0]


def interrupted(count: int, folder: Path, chance: random.Random) -> Iterator[Result]:
    """Kill recipes and transfers just before random accesses to their run folder."""
    for name, job in jobs(folder).items():
        counted = Count(f"{name} killed and resumed")

        def attempt(path: Path, die_at: int | None, job: Callable[..., object] = job) -> str:
            touched = watched(path, die_at)
            try:
                job(NewRun(path, resume=True))
            except Exception as error:  # ruff: ignore[blind-except] - the parent counts it
                return repr(error)
            return str(touched())

        whole = folder / f"{name}-whole"
        told, _ = forked(lambda path=whole: attempt(path, None))
        right, places = content(whole), int(told)
        for number in range(count):
            path = folder / f"{name}-{number}"
            codes = []
            for die_at in (chance.randint(1, places), chance.randint(1, places), None):
                told, code = forked(lambda path=path, at=die_at: attempt(path, at))
                codes.append(code)
            fault = "" if told.isdecimal() else told
            if not fault and content(path)[1:] != right[1:]:
                fault = "another result"
            counted.add(noticed=-signal.SIGKILL in codes, fault=fault)
        yield counted.result()


def recorded(folder: Path) -> Path:
    """A small run."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8))
    with Recorder(folder, model, configuration={"rate": 0.1}, seed=3) as recorder:
        for step in range(3):
            with torch.no_grad():
                for weight in model.parameters():
                    weight.add_(torch.randn(weight.shape, generator=generator))
            recorder.record(step=step, epoch=step, metrics={"loss": 1 / (step + 1)})
            recorder.log(accuracy=step / 3)
    return folder


def content(run: Path) -> tuple[Any, ...]:
    """All that a run holds."""
    trajectory = Trajectory.open(run)
    weights = [{n: v.numpy().tobytes() for n, v in s.weights.items()} for s in trajectory]
    told = [(s.step, s.epoch, dict(s.metrics)) for s in trajectory]
    return read_run(run).description, weights, told


def flips(count: int, run: Path, folder: Path, chance: random.Random) -> Result:
    """Flip a bit of a run, and read all of it."""
    packed = any((run / "snapshots").glob("*.packed"))
    counted = Count(f"bit flipped in a {'packed' if packed else 'plain'} run")
    right = content(run)
    snapshots = sorted(file.relative_to(run) for file in (run / "snapshots").iterdir())
    for number in range(count):
        other = folder / f"{run.name}-flip{number}"  # another name: what was verified is remembered
        shutil.copytree(run, other)
        file = (Path("run.json"), Path("snapshots.jsonl"), chance.choice(snapshots))[number % 3]
        flipped = bytearray((run / file).read_bytes())
        bit = chance.randrange(8 * len(flipped))
        flipped[bit // 8] ^= 1 << bit % 8
        (other / file).write_bytes(flipped)
        found, fault, noticed = outcome(lambda other=other: content(other))
        if not noticed and found != right:
            fault = f"silent: bit {bit} of {file}"
        counted.add(noticed=noticed, fault=fault and f"{file}, bit {bit}: {fault}")
        shutil.rmtree(other)
    return counted.result()


def as_markdown(results: list[Result], facts: dict[str, Any]) -> str:
    """The table, with the machine."""
    rows = [[r.kind, str(r.injected), str(r.noticed), str(r.faults)] for r in results]
    return "\n".join(
        [
            "# Injected faults",
            "",
            machine_line(facts),
            "",
            "*Noticed*: refused with a one-line error or reported; of kills, those that hit before "
            "the end. The rest changed nothing that is read, and is right as it is.",
            "",
            table(["injected", "times", "noticed", "faults"], rows),
            "",
            *__doc__.split("\n\n")[2].strip().splitlines(),
        ]
    )


def main() -> None:
    """Inject all kinds of faults, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--interrupted", type=int, default=10, help="of each kind of work")
    parser.add_argument("--flips", type=int, default=1000, help="of a plain and of a packed run")
    parser.add_argument("--files", type=int, default=200, help="of each kind")
    parser.add_argument("--messages", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="writes OUTPUT.md and OUTPUT.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    facts, chance, results = machine(), random.Random(options.seed), list[Result]()

    def add(result: Result) -> None:
        print(result, file=sys.stderr, flush=True)
        results.append(result)

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        runs = {kind: recorded(folder / kind) for kind in ("plain", "packed")}
        compress_run(runs["packed"])
        add(kills(options.kills, folder, chance))
        for run in runs.values():
            add(flips(options.flips, run, folder, chance))
        for result in hostile_files(options.files, runs, folder, chance):
            add(result)
        for result in interrupted(options.interrupted, folder, chance):
            add(result)
        add(messages(options.messages, chance))
    text = as_markdown(results, facts)
    write(options.output, text, {"machine": facts, "results": [asdict(r) for r in results]})


if __name__ == "__main__":
    main()
