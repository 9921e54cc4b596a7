"""The barrier between networks trained apart: as they are, permuted, rotated, and learned.

    python benchmarks/rotations.py --cifar10 FOLDER --text tinyshakespeare.txt \
        --networks CACHE --output benchmarks/results/rotations

Three networks of each kind are trained from three seeds (kept in CACHE, and read if they are
there), and all three pairs of them compared. The barrier is the largest rise of the loss on unseen
data above the chord between the two ends, at 11 points. Rotations are matched and learned on
training batches alone; nothing is chosen on the data that the barrier is measured on. Times are
processor time. The learning rate is the one of two that is better for the first pair on validation
data, which is none of the test data.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common import machine, machine_line, table, write
from rotation_networks import LENGTH, Gpt, Vit
from slipstream.evaluation import Task
from slipstream.landscape import loss_barrier
from slipstream.matching import (
    BasisMatching,
    BasisPlan,
    Matching,
    match_activations,
    match_basis,
    match_weights,
)
from slipstream.symmetry.rotation import RotatableGroups
from slipstream.symmetry.rotation_proof import find_rotatable_groups
from slipstream.testbed.files import read_cifar10
from slipstream.weights import Weights, weights_of

SEEDS, POINTS, OBSERVED, RATES = (0, 1, 2), 11, 8, (0.01, 0.02)
ROWS = (
    "as they are", "permuted by weights", "permuted by activations", "rotated by weights",
    "rotated by activations", "rotated, learned",
)  # fmt: skip
Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Drawn:
    """A thousand batches, the same in every pass."""

    draw: Callable[[torch.Generator], Pair]
    seed: int

    def __iter__(self) -> Iterator[Pair]:
        generator = torch.Generator().manual_seed(self.seed)
        return (self.draw(generator) for _ in range(1000))


@dataclass(frozen=True)
class Kind:
    """A kind of network with its data: how it is trained, and on what its barrier is measured."""

    name: str
    model: nn.Module
    train: Callable[[torch.Generator], Pair]  # draws a batch with a generator
    validation: list[Pair]
    test: list[Pair]
    steps: int
    lr: float

    def task(self, seed: int) -> Task:
        """Training batches that a seed draws, and all of the validation and test data."""
        data = Drawn(self.train, 1000 + seed)
        return Task(self.model, data, loss, validation=self.validation, test=self.test)


def loss(model: nn.Module, batch: Pair) -> Tensor:
    """Return the mean cross entropy over images, or over characters."""
    return nn.functional.cross_entropy(model(batch[0]).flatten(0, -2), batch[1].flatten())


def vit(folder: Path, steps: int | None) -> Kind:
    """CIFAR-10: 50,000 images, half of them mirrored; tested on 2000 that are not among them."""
    (images, labels), (unseen, classes) = (
        (
            torch.from_numpy(part.images).float().div(255).sub(0.47).div(0.25),
            torch.from_numpy(part.labels).long(),
        )
        for part in read_cifar10(folder)
    )

    def batch(generator: torch.Generator) -> Pair:
        chosen = torch.randint(len(images), (128,), generator=generator)
        x = images[chosen]
        mirrored = bool(torch.rand(1, generator=generator) < 0.5)
        return (x.flip(-1) if mirrored else x), labels[chosen]

    count = min(2000, len(unseen) // 2)
    parts = slice(count), slice(count, 2 * count)
    test, other = ([(unseen[part], classes[part])] for part in parts)
    return Kind("ViT", Vit(), batch, other, test, steps or 390 * 8, 1e-3)


def gpt(path: Path, steps: int | None) -> Kind:
    """Characters of Shakespeare: trained on nine tenths, measured on 500 texts of the last one."""
    text = path.read_text(encoding="utf-8")
    characters = sorted(set(text))
    ids = torch.tensor([characters.index(character) for character in text])
    cut, places = int(0.9 * len(ids)), torch.arange(LENGTH + 1)

    def batch(generator: torch.Generator) -> Pair:
        starts = torch.randint(cut - LENGTH - 1, (32,), generator=generator)
        words = ids[starts[:, None] + places]
        return words[:, :-1], words[:, 1:]

    count = min(500, (len(ids) - cut) // (LENGTH + 1) // 2)
    starts = cut + torch.arange(2 * count) * (LENGTH + 1)
    words = ids[starts[:, None] + places]
    test, other = ([(part[:, :-1], part[:, 1:])] for part in (words[:count], words[count:]))
    return Kind("GPT", Gpt(characters=len(characters)), batch, other, test, steps or 2000, 2e-3)


def trained(kind: Kind, seed: int, cache: Path) -> Weights:
    """Return the weights of a seed, trained unless they are in the cache."""
    file = cache / f"{kind.name.lower()}{seed}.pt"
    if file.is_file():
        found: Weights = torch.load(file)
        return found
    torch.manual_seed(seed)
    model = Vit() if kind.name == "ViT" else Gpt(characters=kind.model.token.num_embeddings)  # type: ignore[arg-type, union-attr]
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=kind.lr, weight_decay=0.05)
    for step in range(kind.steps):
        share = min(1, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / kind.steps))
        optimizer.param_groups[0]["lr"] = kind.lr * share
        optimizer.zero_grad()
        torch.autograd.backward(loss(model, kind.train(generator)))
        optimizer.step()
    cache.mkdir(parents=True, exist_ok=True)
    torch.save(weights_of(model), file)
    return weights_of(model)


@dataclass(frozen=True)
class Setting:
    """One pair of networks, and what aligns the first to the second."""

    kind: Kind
    rotatable: RotatableGroups
    source: Weights
    target: Weights
    number: int

    def aligned(self, name: str, steps: int, lr: float) -> Weights:
        """The source in the neurons of the target, by a method."""
        if name == ROWS[0]:
            return self.source
        task, ends, groups = self.kind.task(self.number), self.ends, self.rotatable.groups
        found: Matching | BasisMatching
        if name == ROWS[1]:
            found = match_weights(*ends, groups=groups)
        elif name == ROWS[2]:
            seen = task.on(list(islice(task.data, OBSERVED)))
            start = match_weights(*ends, groups=groups).source_to_target
            found = match_activations(*ends, seen, groups=groups, start=start)
        else:
            plan = BasisPlan("weights") if name == ROWS[3] else BasisPlan()
            plan = BasisPlan(learn_steps=steps, lr=lr) if name == ROWS[5] else plan
            found = match_basis(*ends, task, rotatable=self.rotatable, plan=plan)
        return found.source_to_target.apply(self.source)

    @property
    def ends(self) -> tuple[Weights, Weights]:
        """Source and target."""
        return self.source, self.target

    def row(self, name: str, split: str, steps: int, lr: float) -> dict[str, Any]:
        """The barrier on a split of the data, after a method."""
        began = time.process_time()
        weights = self.aligned(name, steps, lr)
        seconds = time.process_time() - began
        task = self.kind.task(self.number).on(split)  # type: ignore[arg-type]
        found = loss_barrier(weights, self.target, task, points=POINTS)
        row = {"kind": self.kind.name, "pair": self.number, "method": name, "split": split}
        row |= {"lr": lr if name == ROWS[5] else None, "seconds": seconds}
        return row | {
            "barrier": found.rise("loss"), "losses": found.line.values["loss"].tolist(),
        }  # fmt: skip


def measured(kind: Kind, cache: Path, steps: int, kept: Path) -> list[dict[str, Any]]:
    """Measure all pairs, and keep what is there to resume."""
    rows: list[dict[str, Any]] = json.loads(kept.read_text()) if kept.is_file() else []
    networks = {seed: trained(kind, seed, cache) for seed in SEEDS}
    kind.model.eval()
    rotatable = find_rotatable_groups(kind.model, kind.task(0).example())
    settings = [
        Setting(kind, rotatable, networks[first], networks[second], number)
        for number, (first, second) in enumerate(combinations(SEEDS, 2))
    ]

    def add(setting: Setting, name: str, split: str, lr: float) -> dict[str, Any]:
        wanted = {"pair": setting.number, "method": name, "split": split}
        wanted["lr"] = lr if name == ROWS[5] else None
        for row in rows:
            if all(row[key] == value for key, value in wanted.items()):
                return row
        rows.append(setting.row(name, split, steps, lr))
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(rows))
        print(rows[-1], flush=True)
        return rows[-1]

    tried = {lr: add(settings[0], ROWS[5], "validation", lr)["barrier"] for lr in RATES}
    best = min(tried, key=tried.__getitem__)
    for setting in settings:
        for name in ROWS:
            add(setting, name, "test", best)
    return rows


def summary(rows: list[dict[str, Any]], steps: int, facts: dict[str, Any]) -> str:
    """Return the page: one row for each method, one column for each pair."""
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    parts = ["# Rotations: the barrier between networks that were trained apart", ""]
    for kind in kinds:
        own = [row for row in rows if row["kind"] == kind and row["split"] == "test"]
        lines = []
        for method in ROWS:
            of = [row for row in own if row["method"] == method]
            barriers = torch.tensor([row["barrier"] for row in of])
            ends = " ".join(f"{row['barrier']:.3f}" for row in of)
            mean = f"{barriers.mean():.3f} ± {barriers.std():.3f}"
            cost = sum(row["seconds"] for row in of) / len(of)
            lines.append([method, ends, mean, f"{cost:.1f}"])
        losses = [row["losses"][-1] for row in own if row["method"] == ROWS[0]]
        parts += [
            f"## {kind} (loss of the networks {min(losses):.2f} to {max(losses):.2f})", "",
            table(["method", "barrier of each pair", "mean ± deviation", "processor-s"], lines), "",
        ]  # fmt: skip
    return "\n".join([*parts, _how(rows, steps), "", machine_line(facts)])


def _how(rows: list[dict[str, Any]], steps: int) -> str:
    tried = [row for row in rows if row["split"] == "validation"]
    rates = ", ".join(f"{row['kind']} {row['lr']}: {row['barrier']:.3f}" for row in tried)
    return (
        f"Learned: {steps} steps, at the rate with the lower barrier of the first pair on "
        f"validation data ({rates}). "
        "Barriers are of the loss, on test data. Deviations are over three pairs."
    )


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cifar10", type=Path)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--networks", type=Path, required=True, help="folder of trained networks")
    parser.add_argument("--steps", type=int, default=600, help="that train the rotations")
    parser.add_argument(
        "--training", type=int, help="steps that train a network, if not 3120, 2000"
    )
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    facts = machine()
    rows: list[dict[str, Any]] = []
    for make, folder in ((vit, arguments.cifar10), (gpt, arguments.text)):
        if folder:
            kept = arguments.networks / f"{make.__name__}_rows.json"
            rows += measured(
                make(folder, arguments.training), arguments.networks, arguments.steps, kept
            )
    data = {"machine": facts, "steps": arguments.steps, "rows": rows}
    write(arguments.output, summary(rows, arguments.steps, facts), data)


if __name__ == "__main__":
    main()
