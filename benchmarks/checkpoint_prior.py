"""What a generative model of checkpoints makes of unseen starts, beside transfers and training.

    python benchmarks/checkpoint_prior.py WORK --output benchmarks/results/checkpoint_prior

WORK is a folder for the runs and the models; what is there already is not computed again. The
networks are 64-10-10 on digits, trained by SGD; a model of checkpoints learns from 400 runs of 40
checkpoints, by validation loss. Sizes and the share of pairs from the start were chosen in a few
short trials by validation loss; rates of plain training are chosen on validation data. Each seed
draws the transformer, its batches and its held-out runs anew; the unseen starts are the same.
"""

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common import machine, machine_line, table, write
from slipstream.comparison import MemorisationPlan, measure_memorisation
from slipstream.evaluation import Task
from slipstream.matching import match_weights
from slipstream.recipes import CheckpointPrior, PriorPlan, load_prior, train_prior
from slipstream.storage.new_run import NewRun
from slipstream.symmetry.tracing import find_neuron_groups
from slipstream.testbed import DataSplit, load_data, mlp
from slipstream.training import TrainingPlan
from slipstream.trajectory import Trajectory, create_run
from slipstream.transfer import (
    Comparison,
    DescentPlan,
    Target,
    TransferPlan,
    at_gradients,
    compare_methods,
)
from slipstream.weights import Weights

BATCH, RATE, EVERY = 32, 0.05, 10  # of the runs; the last: steps between checkpoints


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    runs: int = 400
    unseen: int = 20
    checkpoints: int = 40
    epochs: int = 10  # of the default transformer
    small_epochs: int = 6  # of the small ones
    steps: int = 100  # of each epoch
    prompts: int = 20
    prompted: int = 10  # unseen starts
    targets: int = 5  # unseen starts for methods that take gradients
    judged: int = 6  # networks in each row about novelty
    gradients: tuple[int, ...] = (10, 30, 100)

    @property
    def known(self) -> range:
        """The runs that are learned from."""
        return range(self.runs)

    @property
    def others(self) -> range:
        """The runs that are not."""
        return range(self.runs, self.runs + self.unseen)


QUICK = Sizes(
    runs=12,
    unseen=2,
    checkpoints=5,
    epochs=1,
    small_epochs=1,
    steps=10,
    prompts=3,
    targets=1,
    judged=2,
    gradients=(4,),
)
MAIN = "default"
SMALL = PriorPlan(width=64, layers=2, batch_size=64)  # for what is compared with each other
VARIANTS: Mapping[str, PriorPlan] = {
    MAIN: PriorPlan(),
    "small, no positions, augmented": SMALL,
    "small, positions, augmented": replace(SMALL, positions=True),
    "small, positions, aligned": replace(SMALL, positions=True, symmetry="align"),
}


def network(seed: int) -> nn.Module:
    """Return the network with the initial weights of a seed."""
    torch.manual_seed(seed)
    return mlp(inputs=64, width=10)


def record_runs(folder: Path, seeds: Sequence[int], data: DataSplit, checkpoints: int) -> None:
    """Train networks side by side, which takes as long as a few, and record each as a run."""
    models = [network(seed) for seed in seeds]
    weights, _ = torch.func.stack_module_state(models)
    generator = torch.Generator().manual_seed(seeds[0])

    def loss(own: Weights, inputs: Tensor, labels: Tensor) -> Tensor:
        outputs = torch.func.functional_call(models[0], dict(own), (inputs,))
        return nn.functional.cross_entropy(outputs, labels)

    each = torch.vmap(loss)
    judge = torch.vmap(loss, in_dims=(0, None, None))
    optimizer = torch.optim.SGD(list(weights.values()), RATE, momentum=0.9)
    kept: list[tuple[Weights, Tensor]] = []
    for step in range(checkpoints * EVERY):
        if step % EVERY == 0:
            with torch.no_grad():
                judged = judge(weights, data.validation.inputs, data.validation.labels)
            kept.append(({n: v.detach().clone() for n, v in weights.items()}, judged))
        chosen = torch.randint(len(data.train), (len(seeds), BATCH), generator=generator)
        value = each(weights, data.train.inputs[chosen], data.train.labels[chosen]).sum()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    for number, seed in enumerate(seeds):
        with create_run(folder / f"{seed:04d}", model=models[0], seed=seed, overwrite=True) as run:
            for at, (snapshot, judged) in enumerate(kept):
                own = {name: value[number] for name, value in snapshot.items()}
                metrics = {"validation_loss": float(judged[number])}
                run.append(step=at * EVERY, weights=own, metrics=metrics)


@cache
def ends(folder: Path, seeds: range, at: int) -> list[Weights]:
    """Return one checkpoint of each run; read once."""
    return [Trajectory.open(folder / f"{seed:04d}")[at].weights for seed in seeds]


def judged(task: Task, networks: Sequence[Weights], split: Any) -> dict[str, list[float]]:
    """Return loss and accuracy of each network."""
    found = [task.evaluate(weights=weights, split=split) for weights in networks]
    return {name: [one[name] for one in found] for name in found[0]}


def prompted(
    prior: CheckpointPrior, starts: Sequence[Weights], task: Task, count: int
) -> dict[str, Any]:
    """Ask for every loss between the best and that of the starts; return what comes out."""
    first = judged(task, starts, "validation")["loss"]
    asked = np.linspace(prior.scales.low, statistics.fmean(first), count)
    found = []
    for number, wanted in enumerate(asked):
        made = prior.update(starts, metric=first, wanted=float(wanted), seed=number)
        found.append(judged(task, made, "validation")["loss"])
    observed = np.array(found)  # (prompts, starts)
    errors = ((observed - asked[:, None]) ** 2).sum(0)
    each = 1 - errors / ((asked - asked.mean()) ** 2).sum()
    return {
        "asked": asked.tolist(),
        "observed": observed.mean(1).tolist(),
        "r2": float(each.mean()),
        "correlation": float(np.corrcoef(asked, observed.mean(1))[0, 1]),
    }


def measure_prior(
    prior: CheckpointPrior, starts: Sequence[Weights], task: Task, sizes: Sizes
) -> dict[str, Any]:
    """Measure one update from unseen starts, three in a row, and the prompts."""
    first = judged(task, starts, "validation")["loss"]
    once = prior.update(starts, metric=first)
    found: dict[str, Any] = {
        "held_out": prior.held_out,
        "unmoved": prior.unmoved,
        "train": prior.losses[-1],
        "chosen": prior.chosen,
        "once": judged(task, once, "test"),
    }
    again = once
    for seed in (1, 2):
        losses = judged(task, again, "validation")["loss"]
        again = prior.update(again, metric=losses, seed=seed)
    found["thrice"] = judged(task, again, "test")
    return found | {"prompts": prompted(prior, starts[: sizes.prompted], task, sizes.prompts)}


def compared(
    priors: Mapping[str, CheckpointPrior], folder: Path, sizes: Sizes, task: Task
) -> list[dict[str, Any]]:
    """Compare with other ways from the same starts: without gradients, and with some."""
    last = ends(folder / "runs", sizes.known, -1)
    groups = find_neuron_groups(task.model, task.example())

    def generated(start: Weights, prior: CheckpointPrior) -> Weights:
        worth = task.evaluate(weights=start, split="validation")["loss"]
        return prior.update([start], metric=[worth])[0]

    aligned = [
        match_weights(one, last[0], groups=groups).source_to_target.apply(one) for one in last
    ]
    plans: dict[str, Any] = {
        name: partial(generated, prior=prior) for name, prior in priors.items()
    }
    plans |= {
        "mean of final checkpoints": lambda _: mean(last),
        "mean of them after matching": lambda _: mean(aligned),
        "naive transfer of the nearest run": partial(nearest, folder=folder, sizes=sizes),
    }
    for method in ("naive", "fgmt", "fgmt-signed"):
        plans[method] = at_gradients(TransferPlan(method), sizes.gradients)
    for name in ("sgd", "adam", "sign-descent"):
        plans[name] = at_gradients(DescentPlan(name), sizes.gradients)
    unseen = sizes.others[: sizes.targets]
    pairs = zip(*(ends(folder / "unseen", unseen, at) for at in (0, -1)), strict=True)
    targets = [Target(start, trained=end) for start, end in pairs]
    source = Trajectory.open(folder / "runs" / "0000")
    return outcomes(compare_methods(source, targets, task, plans=plans, groups=groups))


def nearest(start: Weights, *, folder: Path, sizes: Sizes) -> Weights:
    """Return the start plus the displacement of the run that began nearest to it."""
    first, last = (ends(folder / "runs", sizes.known, at) for at in (0, -1))
    own = flat(start)
    at = min(sizes.known, key=lambda n: float((flat(first[n]) - own).norm()))
    return {name: start[name] + last[at][name] - first[at][name] for name in start}


def flat(weights: Weights) -> Tensor:
    """Return all parameters as one tensor."""
    return torch.cat([value.flatten() for value in weights.values()])


def mean(networks: Sequence[Weights]) -> Weights:
    """Return the mean of networks."""
    return {name: torch.stack([one[name] for one in networks]).mean(0) for name in networks[0]}


def novelty(
    priors: Mapping[str, CheckpointPrior], folder: Path, sizes: Sizes, task: Task
) -> list[dict[str, Any]]:
    """Compare generated networks, and real ones, with the final checkpoints that were learned."""
    unseen = sizes.others[: sizes.judged]
    starts = ends(folder / "unseen", unseen, 0)
    losses = judged(task, starts, "validation")["loss"]
    sets = {name: prior.update(starts, metric=losses) for name, prior in priors.items()}
    moved = [nearest(start, folder=folder, sizes=sizes) for start in starts]
    sets |= {
        "naive transfer of the nearest run": moved,
        "real, unseen": ends(folder / "unseen", unseen, -1),
    }
    known = ends(folder / "runs", sizes.known, -1)
    plan = MemorisationPlan(noise=(0.1, 0.2, 0.4), controls=sizes.judged)
    found = measure_memorisation(sets, known, task.on("test"), plan=plan)
    return [
        {
            "name": row.name,
            **{
                key: [getattr(one, key) for one in row.each]
                for key in ("accuracy", "overlap", "distance")
            },
            "copies": found.copies(row.name),
        }
        for row in found.rows
    ]


def outcomes(comparison: Comparison) -> list[dict[str, Any]]:
    """Return a row for each method and number of gradients."""
    rows = []
    for name, gradients in comparison.rows:
        row: dict[str, Any] = {"name": name, "gradients": gradients}
        for value in ("loss", "accuracy"):
            found = comparison.mean(name, lambda o, v=value: o.metrics[v], gradients=gradients)
            row[value], row[f"{value}_spread"] = found
        row["seconds"], _ = comparison.mean(name, lambda o: o.seconds, gradients=gradients)
        rows.append(row)
    return rows


@dataclass(frozen=True)
class Bench:
    """A model of checkpoints to train and to measure."""

    folder: Path
    own: Path  # the run folder of its training
    plan: PriorPlan
    task: Task
    sizes: Sizes

    def measure(self) -> dict[str, Any]:
        """Return its figures."""
        began, new = time.process_time(), NewRun(self.own, resume=True)
        prior = train_prior(self.folder / "runs", self.task, plan=self.plan, run_folder=new)
        figures: dict[str, Any] = {"processor_seconds": time.process_time() - began}
        starts = ends(self.folder / "unseen", self.sizes.others, 0)
        return figures | measure_prior(prior, starts, self.task, self.sizes)


def kept(file: Path, make: Any) -> Any:
    """Return what a file holds, or what is made and written into it."""
    if not file.exists():
        file.write_text(json.dumps(make()), encoding="utf-8")
    return json.loads(file.read_text(encoding="utf-8"))


def measured(folder: Path, seeds: Sequence[int], sizes: Sizes) -> dict[str, Any]:
    """Return all figures; what the folder holds already is not computed again."""
    folder.mkdir(parents=True, exist_ok=True)
    data = load_data("digits")
    for part, numbers in (("runs", sizes.known), ("unseen", sizes.others)):
        record = partial(record_runs, folder / part, numbers, data, sizes.checkpoints)
        kept(folder / f"{part}.json", record)
    batches = data.train.batches(BATCH, seed=0)
    validation, test = (list(part.batches(500)) for part in (data.validation, data.test))
    task = Task(network(0), batches, validation=validation, test=test)
    starts = ends(folder / "unseen", sizes.others, 0)
    found: dict[str, Any] = {"priors": {}}
    mains: dict[str, Path] = {}
    for name, plan in VARIANTS.items():
        for seed in seeds:
            epochs, rate = (sizes.epochs, 1e-3) if name == MAIN else (sizes.small_epochs, 2e-3)
            descent = TrainingPlan.cosine(epochs, "adamw", lr=rate, weight_decay=0.01, seed=seed)
            own = folder / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
            bench = Bench(
                folder, own, replace(plan, steps=sizes.steps, descent=descent), task, sizes
            )
            file = folder / f"{own.name}.json"
            found["priors"].setdefault(name, []).append(kept(file, bench.measure))
            if name == MAIN:
                mains[f"generated, seed {seed}"] = own
    priors = {name: load_prior(own) for name, own in mains.items()}
    for part, measure in (("compared", compared), ("novelty", novelty)):
        file = folder / f"{part}-{'-'.join(map(str, seeds))}.json"
        found[part] = kept(file, partial(measure, priors, folder, sizes, task))
    found["real"] = judged(task, ends(folder / "unseen", sizes.others, -1), "test")
    found["start"] = judged(task, starts, "test")
    return found


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Return mean and deviation."""
    several = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{several}"


def text(found: dict[str, Any], facts: dict[str, Any], sizes: Sizes) -> str:
    """Return all tables; spreads are over seeds."""
    rows = []
    for name, each in found["priors"].items():
        single = {
            key: [statistics.fmean(one["once"][key]) for one in each]
            for key in ("loss", "accuracy")
        }
        thrice = [statistics.fmean(one["thrice"]["loss"]) for one in each]
        cells = [spread(values) for values in (*single.values(), thrice)]
        cells += [spread([one["prompts"][key] for one in each]) for key in ("r2", "correlation")]
        cells += [f"{one:.4f}" for one in (mean_of(each, "train"), mean_of(each, "held_out"))]
        seconds = f"{mean_of(each, 'processor_seconds'):.0f}"
        rows.append([name, str(len(each)), *cells, seconds])
    start, real = (
        [statistics.fmean(found[k][v]) for v in ("loss", "accuracy")] for k in ("start", "real")
    )
    rows.append(["the start itself", "-", *(f"{v:.3f}" for v in start), *["-"] * 6])
    rows.append(["its own training, to the end", "-", *(f"{v:.3f}" for v in real), *["-"] * 6])
    header = [
        "",
        "seeds",
        "test loss",
        "accuracy",
        "loss, three updates",
        "R2 of prompts",
        "correlation",
    ]
    header += ["error, trained", "error, held out", "processor s"]
    first = found["priors"][MAIN]
    others = [
        [
            row["name"],
            str(row["gradients"]),
            *(f"{row[key]:.3f} ± {row[f'{key}_spread']:.3f}" for key in ("loss", "accuracy")),
            f"{row['seconds']:.2f}",
        ]
        for row in found["compared"]
    ]
    new = [
        [
            row["name"],
            *(spread(row[key]) for key in ("accuracy", "overlap", "distance")),
            f"{row['copies']} of {len(row['overlap'])}",
        ]
        for row in found["novelty"]
    ]
    asked = zip(first[0]["prompts"]["asked"], first[0]["prompts"]["observed"], strict=True)
    return "\n\n".join(
        [
            "# A generative model of checkpoints",
            f"{machine_line(facts)} {sizes.runs} runs of {sizes.checkpoints} checkpoints, 64-10-10 "
            f"on digits; {sizes.unseen} unseen starts; means over them.",
            "## One update from unseen starts",
            "Means ± deviation over the seeds. Errors are mean squared errors of the weights, "
            f"scaled to a deviation of .538. R2 is of {sizes.prompts} wanted against observed "
            f"validation losses, start by start, of the first {sizes.prompted}.",
            table(header, rows),
            f"Wanted and observed validation losses of `{MAIN}`, seed 0:",
            table(["wanted", "observed"], [[f"{a:.3f}", f"{b:.3f}"] for a, b in asked]),
            "## Other ways from the same starts",
            f"Means ± deviation over the first {sizes.targets} starts. `naive`, `fgmt` and "
            "`fgmt-signed` transfer the first run. Plain training has its rate chosen on "
            "validation data; that costs more gradients, which are not counted here.",
            table(["", "gradients", "test loss", "accuracy", "seconds"], others),
            "## New, or memorised?",
            f"Means ± deviation over {sizes.judged} networks. Errors on test data, against the "
            f"last checkpoints of all {sizes.runs} runs. Overlap: wrong answers in common over "
            "wrong answers of either, with the known network where it is largest. Distance: to "
            "the nearest known network after matching, over the norm. Copies are nearer to a known "
            "network than all known ones that were left out.",
            table(["", "accuracy", "overlap", "distance", "copies"], new),
        ]
    )


def mean_of(rows: Sequence[Mapping[str, Any]], key: str) -> float:
    """Return the mean of a figure."""
    return statistics.fmean(row[key] for row in rows)


def main() -> None:
    """Measure, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--quick", action="store_true", help="the smallest setting")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    facts, sizes = machine(), QUICK if arguments.quick else Sizes()
    found = measured(arguments.work, arguments.seeds, sizes)
    write(arguments.output, text(found, facts, sizes), {"machine": facts, **found})


if __name__ == "__main__":
    main()
