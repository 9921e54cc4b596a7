"""How fast, how lean and how exact the decomposition into modes is.

    python benchmarks/modes.py --output benchmarks/results/modes

Runs are synthetic: ten curves, a slope and an offset for each weight, and noise; recorded on disk
like any run and read from the page cache. The straightforward implementation is the tests' oracle,
the paper's algorithm with a loop over the weights; it is timed on a part of them, since its time is
a number for each weight. Processor time is shown beside the wall clock: a busy machine disturbs it
least. Memory is the peak of the resident set of a process of its own, all of Python and torch
included.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common import machine, machine_line, table, write
from slipstream.modes import OnlineModes, OnlinePlan, fit_modes
from slipstream.testbed.networks import resnet18
from slipstream.trajectory import Layout, Trajectory, create_run

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from oracles import plain_modes

MODES, SAMPLES = 10, 1000
PARTS = ("post_hoc", "online", "growth", "memory", "step", "exactness")
PLAIN = 40_000  # weights that the straightforward implementation is timed on


def record(folder: Path, *, weights: int, steps: int, tensors: int = 24) -> Path:
    """Write a synthetic run whose tensors grow like those of a convolutional network."""
    generator = torch.Generator().manual_seed(0)
    shares = torch.linspace(1, 10, tensors).square()
    sizes = (shares / shares.sum() * weights).long()
    sizes[-1] += weights - int(sizes.sum())
    time_line = torch.linspace(0, 1, steps)
    curves = torch.stack([torch.sin((k + 1) * time_line) * torch.exp(-k * time_line / 3)
                          for k in range(MODES)])  # fmt: skip
    made = {}
    for number, size in enumerate(sizes.tolist()):
        mode = torch.randint(MODES, (size,), generator=generator)
        a, b = (0.05 * torch.randn(size, generator=generator) for _ in range(2))
        made[f"layer{number:02}.weight"] = (mode, a, b)
    noise = torch.randn(int(sizes.max()), generator=generator)
    layout = Layout.of_weights({name: b for name, (_, _, b) in made.items()})
    with create_run(folder, model=layout) as writer:
        for t in range(steps):
            row = {}
            for name, (mode, a, b) in made.items():
                own = noise.roll(7919 * t)[: len(b)]  # anew would take longer than all else
                row[name] = torch.addcmul(b, a, curves[mode, t]).add_(own, alpha=0.01)
            writer.append(step=t, weights=row)
    return folder


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds by the wall clock, and of processor time."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - processor


def fastest(turns: list[tuple[float, float]]) -> dict[str, float]:
    """The least of each of the two times."""
    return {"wall": min(w for w, _ in turns), "processor": min(p for _, p in turns)}


def post_hoc(folder: Path, weights: int, steps: int, repeats: int) -> dict[str, Any]:
    """A whole decomposition, in turns with the straightforward one on a part of the weights."""
    run = Trajectory.open(record(folder / "post-hoc", weights=weights, steps=steps))
    rows = np.concatenate([run[name].T.double().numpy() for name in run.names[:12]])[:PLAIN]
    references = list(fit_modes(run, modes=MODES, samples=SAMPLES).references.numpy())
    ours, plain = [], []
    for _ in range(repeats):
        ours.append(timed(lambda: fit_modes(run, modes=MODES, samples=SAMPLES)))
        plain.append(timed(lambda: plain_modes.fit(rows, references)))
    part = fastest(plain)
    return {
        "weights": weights, "steps": steps, "ours": fastest(ours), "plain_weights": len(rows),
        "plain": {name: value * weights / len(rows) for name, value in part.items()},
    }  # fmt: skip


def growth(folder: Path, sizes: list[int], lengths: list[int], repeats: int) -> dict[str, Any]:
    """Processor time against the number of weights, and against that of snapshots."""
    longest, largest = max(lengths), max(sizes)
    short = 50
    by_size = {}
    for size in sizes:
        run = Trajectory.open(record(folder / f"{size} weights", weights=size, steps=short))
        turns = [timed(lambda run=run: fit_modes(run)) for _ in range(repeats)]
        by_size[size] = fastest(turns)["processor"]
    run = Trajectory.open(record(folder / "long", weights=largest // 4, steps=longest))
    by_length = {
        count: fastest([timed(lambda n=count: fit_modes(run[:n])) for _ in range(repeats)])[
            "processor"
        ]
        for count in lengths
    }
    return {"by_size": by_size, "steps": short, "by_length": by_length, "weights": largest // 4}


def peak(run: Path, how: str) -> float:
    """Megabytes that a process of its own takes at most to decompose a run."""
    command = [sys.executable, __file__, "--child", str(run), "--how", how]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)


def child(run: Path, how: str) -> None:
    """Decompose, and print the peak of the resident set in megabytes."""
    trajectory = Trajectory.open(run)
    if how == "ours":
        fit_modes(trajectory, modes=MODES, samples=SAMPLES)
    if how == "whole":  # what any implementation does that begins by loading the run
        rows = np.concatenate([trajectory[name].numpy().T for name in trajectory.names])
        rows = rows - rows.mean(1, keepdims=True)
    # Not getrusage: its maximum is that of the parent, if that was larger when it forked.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    print(int(status.partition("VmHWM:")[2].split()[0]) / 1024)


def memory(folder: Path, weights: int, steps: int, small: int) -> dict[str, Any]:
    """The peak for a large run, and how it compares with loading a small one whole."""
    large = record(folder / "large", weights=weights, steps=steps)
    little = record(folder / "small", weights=small, steps=steps)
    return {
        "weights": weights, "steps": steps, "ours": peak(large, "ours"),
        "base": peak(little, "nothing"), "small": small, "small_ours": peak(little, "ours"),
        "small_whole": peak(little, "whole"),
    }  # fmt: skip


def numpy_update(weights: int) -> Callable[[], None]:
    """One update of plain sums with numpy, in float64: five arrays of the size of the weights."""
    generator = np.random.default_rng(0)
    mode = generator.integers(0, MODES, weights)
    row = generator.standard_normal(weights, np.float32)
    s_w, s_wr = np.zeros(weights), np.zeros(weights)
    references = generator.standard_normal((MODES, 30))
    n, s_r, s_rr = 30, references.sum(1), (references**2).sum(1)

    def update() -> None:
        r = references[:, -1][mode]
        s_w[:] += row
        s_wr[:] += row * r
        spread = (n * s_rr - s_r**2)[mode]
        a = (n * s_wr - s_r[mode] * s_w) / spread
        (s_w - a * s_r[mode]) / n

    return update


def online(weights: int, repeats: int) -> dict[str, Any]:
    """One update of a model of that many weights, in turns with numpy and the plain loop."""
    side = round((weights / 8) ** 0.5)
    model = nn.Sequential(*(nn.Linear(side, side) for _ in range(8)))
    count = sum(value.numel() for value in model.parameters())
    followed = OnlineModes(model, OnlinePlan(modes=MODES, samples=SAMPLES, warm_up=10, trial=5))
    plain = plain_modes.OnlineSums(range(PLAIN))
    row, reference = np.zeros(PLAIN), np.random.default_rng(0).standard_normal(PLAIN)
    with_numpy = numpy_update(count)
    turns: dict[str, list[tuple[float, float]]] = {
        "warm-up": [], "trial": [], "ours": [], "numpy": [], "plain": [],
    }  # fmt: skip
    for number in range(15 + repeats):
        with torch.no_grad():
            for value in model.parameters():
                value.add_(torch.randn_like(value), alpha=0.01)
        phase = "warm-up" if number < 10 else "trial" if 10 < number < 14 else "ours"
        taken = timed(followed.update)
        if number not in (10, 14):  # at these two the references and the assignment are made
            turns[phase].append(taken)
        if number >= 15:
            turns["numpy"].append(timed(with_numpy))
            if number % 4 == 0:
                turns["plain"].append(timed(lambda: plain.update(row, reference)))
    found: dict[str, Any] = {name: fastest(times) for name, times in turns.items()}
    found["plain"] = {name: value * count / PLAIN for name, value in found["plain"].items()}
    return {"weights": count, **found}


def share_of_a_step(repeats: int) -> dict[str, Any]:
    """An update of a ResNet-18 against one step of its training, and of an epoch of CIFAR-10."""
    model = resnet18()
    followed = OnlineModes(model, OnlinePlan(modes=MODES, samples=SAMPLES, warm_up=3, trial=2))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    batch, labels = torch.randn(128, 3, 32, 32), torch.randint(10, (128,))

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(batch), labels).backward()
        optimizer.step()

    steps = [timed(step) for _ in range(2)]
    for _ in range(6):
        with torch.no_grad():
            for value in model.parameters():
                value.add_(torch.randn_like(value), alpha=0.01)
        followed.update()
    updates = [timed(followed.update) for _ in range(repeats)]
    weights = sum(value.numel() for value in model.parameters())
    return {"weights": weights, "step": fastest(steps), "update": fastest(updates)}


def exactness(updates: int) -> dict[str, float]:
    """Online float32 coefficients against batch least squares in float64; the kernel identity."""
    errors = {}
    for offset in (0.0, 1.0, 100.0):
        model = nn.Linear(100, 100)
        generator = torch.Generator().manual_seed(0)
        a, b = (torch.randn(10_100, generator=generator) for _ in range(2))
        mode = torch.randint(3, (10_100,), generator=generator)
        followed = OnlineModes(model, OnlinePlan(modes=3, warm_up=20, trial=5))
        curve = torch.randn(3, updates + 20, generator=generator).cumsum(1) / updates**0.5
        seen = []
        for t in range(updates + 20):
            moved = a * curve[mode, t] + offset * b
            moved += 0.3 * torch.randn(10_100, generator=generator)
            nn.utils.vector_to_parameters(moved, model.parameters())
            followed.update()
            seen.append(moved.double())
        errors[f"offset {offset:g}"] = compare(followed, torch.stack(seen[20:]))
    return {"updates": updates, **errors, "identity": identity()}


def compare(followed: OnlineModes, seen: Tensor) -> float:
    """The larger relative error of a and of b."""
    order = torch.cat([mode.flatten().long() for mode in followed.assignment.values()])
    r = followed.references[order].T
    moves, leads = seen - seen.mean(0), r - r.mean(0)
    a = (moves * leads).sum(0) / leads.square().sum(0)
    b = seen.mean(0) - a * r.mean(0)
    found = followed.coefficients()
    return max(
        float((torch.cat([v.flatten() for v in own.values()]) - true).norm() / true.norm())
        for own, true in ((found.a, a), (found.b, b))
    )


def identity() -> float:
    """The largest deviation of modelled weights from averages of the snapshots, in float64."""
    generator = torch.Generator().manual_seed(0)
    walk = torch.randn(60, 5000, generator=generator, dtype=torch.float64).cumsum(0)
    found = fit_modes(Trajectory.from_weights([{"w": row} for row in walk]), modes=MODES)
    r = found.references
    kernels = 1 / 60 + r[:, :, None] * r[:, None, :] / r.square().sum(1)[:, None, None]
    order = found.assignment["w"].long()
    averaged = torch.stack([kernels[order, t].mul(walk.T).sum(1) for t in range(60)])
    return float((averaged - found.trajectory()["w"]).abs().max())


def as_markdown(result: dict[str, Any]) -> str:
    """The tables, with the machine."""
    fit, lines = result["post_hoc"], result["online"]
    step, grown, held = result["step"], result["growth"], result["memory"]

    def seconds(times: dict[str, float]) -> tuple[str, str]:
        return f"{times['wall']:.3g}", f"{times['processor']:.3g}"

    ratio = fit["plain"]["processor"] / fit["ours"]["processor"]
    share = step["update"]["processor"] / step["step"]["processor"]
    return "\n\n".join(
        [
            "# Modes: time, memory, exactness",
            f"{machine_line(result['machine'])} `python benchmarks/modes.py`",
            *__doc__.strip().split("\n\n")[2:],
            f"## A recorded run: {fit['weights'] / 1e6:g}M weights, {fit['steps']} snapshots, "
            f"M = {MODES}, K = {SAMPLES}",
            table(
                ("", "wall s", "processor s"),
                [
                    ("`fit_modes`, from disk", *seconds(fit["ours"])),
                    (f"straightforward, from {fit['plain_weights']:,} of the weights, references "
                     "given", *seconds(fit["plain"])),
                ],
            ),
            f"`fit_modes` takes 1/{ratio:.0f} of the processor time.",
            f"## One online update of {lines['weights'] / 1e6:.2f}M weights",
            table(
                ("", "wall ms", "processor ms"),
                [
                    (name, *(f"{1e3 * lines[key][kind]:.1f}" for kind in ("wall", "processor")))
                    for name, key in (
                        ("following", "ours"), ("in the trial", "trial"),
                        ("in the warm-up", "warm-up"),
                        ("numpy, plain sums", "numpy"), ("straightforward", "plain"),
                    )
                ],
            ),
            f"For a ResNet-18 ({step['weights'] / 1e6:.1f}M weights) an update takes "
            f"{1e3 * step['update']['processor']:.0f} ms, {share:.1%} of a training step of 128 "
            f"images ({step['step']['processor']:.1f} s of processor time).",
            "## Peak memory",
            table(
                ("", "weights", "snapshots", "the run, MB", "peak, MB"),
                [
                    (name, f"{weights / 1e6:g}M", str(held["steps"]),
                     f"{4e-6 * weights * held['steps']:.0f}", f"{size:.0f}")
                    for name, weights, size in (
                        ("`fit_modes`", held["weights"], held["ours"]),
                        ("`fit_modes`", held["small"], held["small_ours"]),
                        ("loaded whole and centred", held["small"], held["small_whole"]),
                        ("nothing but the imports", held["small"], held["base"]),
                    )
                ],
            ),
            "## Growth",
            f"Processor seconds of `fit_modes`, {grown['steps']} snapshots:",
            table(
                ("weights", *(f"{int(n) / 1e6:g}M" for n in grown["by_size"])),
                [("seconds", *(f"{s:.2f}" for s in grown["by_size"].values()))],
            ),
            f"and {grown['weights'] / 1e6:g}M weights:",
            table(
                ("snapshots", *(str(n) for n in grown["by_length"])),
                [("seconds", *(f"{s:.2f}" for s in grown["by_length"].values()))],
            ),
            "## Exactness",
            table(
                ("", "error"),
                [
                    (name, f"{error:.1e}")
                    for name, error in result["exactness"].items()
                    if name != "updates"
                ],
            ),
            f"The offsets are those of the weights, in deviations of their motion: the larger "
            "relative error of `a` and `b`, online in float32 after "
            f"{result['exactness']['updates']} updates, against batch least squares in float64. "
            "*Identity*: the largest deviation of modelled weights from their averages of "
            "snapshots, in float64.",
        ]
    )  # fmt: skip


def main() -> None:
    """Measure, print the tables and write them where `--output` says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small and few, for a look")
    parser.add_argument("--only", choices=PARTS, help="one part; the others stay in OUTPUT.json")
    parser.add_argument("--output", type=Path, help="writes OUTPUT.md and OUTPUT.json")
    parser.add_argument("--folder", type=Path, help="disk to use (default: temporary folder)")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--how", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.how)
        return
    result = earlier(options.output) | {"machine": machine()}
    scale = 20 if options.quick else 1
    for part in [options.only] if options.only else PARTS:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            result[part] = measured(part, Path(folder), 1_000_000 // scale, 1000 // scale)
    result = json.loads(json.dumps(result))  # keys are texts, as in the file
    text = as_markdown(result) if all(part in result for part in PARTS) else str(result)
    write(options.output, text, result)


def measured(part: str, folder: Path, million: int, updates: int) -> dict[str, Any]:
    """One part of the benchmark."""
    sizes = [million // 4, million // 2, million, 2 * million]
    measure: dict[str, Callable[[], dict[str, Any]]] = {
        "post_hoc": lambda: post_hoc(folder, 2 * million, 99, repeats=5),
        "online": lambda: online(2 * million, repeats=20),
        "growth": lambda: growth(folder, sizes, [25, 50, 100, 200], repeats=3),
        "memory": lambda: memory(folder, 25 * million, 100, 2 * million),
        "step": lambda: share_of_a_step(repeats=5),
        "exactness": lambda: exactness(updates),
    }
    return measure[part]()


def earlier(output: Path | None) -> dict[str, Any]:
    """What was measured before."""
    file = output and output.with_suffix(".json")
    if not (file and file.is_file()):
        return {}
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


if __name__ == "__main__":
    main()
