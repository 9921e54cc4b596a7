"""Routed pre-training against one network for all images, with labels for linear probes only.

A mixture of Omniglot, MNIST and grey CIFAR-10 crops is learned without labels; six probes of 10
labelled images per class then judge the features. Every row takes the same number of steps in all.
"""

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from sklearn.linear_model import RidgeClassifier
from torch import Tensor, nn

from common import machine, machine_line, table, write
from slipstream import Task
from slipstream.comparison import StartPlan, choose_start
from slipstream.evaluation import weights_in
from slipstream.recipes import RoutedPlan, pretrain_routed
from slipstream.testbed.files import read_cifar10, read_mnist
from slipstream.testbed.omniglot import read_omniglot
from slipstream.training import TrainingPlan
from slipstream.weights import Weights, weights_of

EACH = 4000  # images of each source in the mixture
BATCH, SHOTS, DRAWS, TESTED = 128, 10, 3, 1000
SOURCES = ("MNIST", "Omniglot", "CIFAR-10")
ALPHABETS = ("Greek", "Hebrew")  # of the probes, and never in the mixture
ANIMALS, VEHICLES = (2, 3, 4, 5, 6, 7), (0, 1, 8, 9)
ROUTE = StartPlan(batches=4, steps=15, rates=(1e-3,))
ROWS = {
    "full": "one network on all images",
    "routed": "routed: the branch that `choose_start` takes",
    "oracle": "the best branch by mean test accuracy per probe: an upper bound",
    "random": "a branch at random (mean over the branches)",
    "apart": "K independent networks: the one of the cluster that was routed to",
    "apart oracle": "K independent networks: the best by test accuracy",
    "whole": "the network before the division (fewer steps)",
    "untrained": "random weights",
    "pixels": "raw pixels",
}
Probe = tuple[Tensor, Tensor]  # images and labels
Rows = list[dict[str, Any]]


def encoder(seed: int) -> nn.Sequential:
    """Return three convolutions with BatchNorm: 1024 features."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for before, after in ((1, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten())


def crops(images: np.ndarray, generator: np.random.Generator) -> Tensor:
    """Return grey crops of 28 x 28 from images of 32 x 32, in [0, 1]."""
    grey = torch.from_numpy(images.copy()).float().mean(1, keepdim=True) / 255
    at = generator.integers(0, 5, (len(grey), 2))
    return torch.stack([x[:, i : i + 28, j : j + 28] for x, (i, j) in zip(grey, at, strict=True)])


def load(folders: argparse.Namespace) -> tuple[Tensor, dict[str, Probe]]:
    """Return the mixture and the probes, all on one scale."""
    generator = np.random.default_rng(0)
    train, test = read_mnist(folders.mnist)
    colour, colour_test = read_cifar10(folders.cifar10)
    drawn = read_omniglot(folders.omniglot, part="all")
    others = [name for name in dict.fromkeys(drawn.alphabets) if name not in ALPHABETS]
    parts = [
        torch.from_numpy(train.images.copy()).float() / 255,
        drawn.of(*others).images.flatten(0, 1),
    ]
    taken = [part[generator.permutation(len(part))[:EACH]] for part in parts]
    chosen = generator.permutation(len(colour.images))[:EACH]
    mixture = torch.cat([*taken, crops(colour.images[chosen], generator)])
    mean, deviation = mixture.mean(), mixture.std()
    digits = torch.from_numpy(test.images.copy()).float() / 255
    labels = torch.from_numpy(test.labels.copy())
    grey = crops(colour_test.images, generator)
    classes = torch.from_numpy(colour_test.labels.copy())
    probes = {
        "digits": (digits, labels),
        "turned digits": (torch.rot90(digits, 1, (2, 3)), labels),
    }
    for name in ALPHABETS:
        own = drawn.of(name).images
        marks = torch.arange(len(own)).repeat_interleave(own.shape[1])
        probes[name] = (own.flatten(0, 1), marks)
    for name, group in (("animals", ANIMALS), ("vehicles", VEHICLES)):
        where = torch.isin(classes, torch.tensor(group))
        probes[name] = (grey[where], classes[where])
    scaled = {name: ((x - mean) / deviation, y) for name, (x, y) in probes.items()}
    return (mixture - mean) / deviation, scaled


def drawn_labels(probe: Probe, generator: np.random.Generator) -> tuple[Probe, Probe]:
    """Return some labelled images of each class, shuffled, and others to test on."""
    images, labels = probe
    known = np.unique(labels)
    order = generator.permutation(len(labels))
    numbers = torch.from_numpy(np.searchsorted(known, labels.numpy()))
    fitted = np.concatenate(
        [order[(numbers[order] == c).numpy()][:SHOTS] for c in range(len(known))]
    )
    rest = np.setdiff1d(order, fitted, assume_unique=True)
    rest = rest[generator.permutation(len(rest))][:TESTED]
    fitted = generator.permutation(fitted)
    return (images[fitted], numbers[fitted]), (images[rest], numbers[rest])


def features(network: nn.Module, weights: Weights | None, images: Tensor) -> np.ndarray:
    """Return one row per image, BatchNorm by its running statistics."""
    network.eval()
    with weights_in(network, weights), torch.no_grad():
        return torch.cat([network(part) for part in torch.split(images, 500)]).flatten(1).numpy()


def probed(fitted: np.ndarray, labels: Tensor, tested: np.ndarray, truth: Tensor) -> float:
    """Return the accuracy of a ridge classifier on standardised features, in percent."""
    mean, deviation = fitted.mean(0), fitted.std(0) + 1e-3
    fit = RidgeClassifier(alpha=fitted.shape[1]).fit((fitted - mean) / deviation, labels.numpy())
    return 100 * float(fit.score((tested - mean) / deviation, truth.numpy()))


def routed_to(branches: Sequence[Weights], fitted: Probe, seed: int) -> int:
    """Return the branch that is the best start for a few labelled images."""
    images, labels = fitted
    torch.manual_seed(seed)
    body = encoder(seed)
    model = nn.Sequential(*body, nn.Linear(1024, int(labels.max()) + 1))
    size = -(-len(labels) // ROUTE.batches)
    batches = list(zip(torch.split(images, size), torch.split(labels, size), strict=True))
    starts = {str(number): weights for number, weights in enumerate(branches)}
    choice = choose_start(starts, Task(model, batches), plan=replace(ROUTE, seed=seed))
    return next(int(one.name) for one in choice.candidates if one.name.isdecimal())


def trained(mixture: Tensor, seed: int, plan: RoutedPlan) -> dict[str, Any]:
    """Train all rows from the same start; the independent networks share the steps by size."""
    start, parts = encoder(seed), torch.split(mixture, BATCH)
    found = pretrain_routed(Task(start, parts), plan=plan)
    alone = replace(plan, whole=1.0)
    full = pretrain_routed(Task(start, parts), plan=alone)
    apart = []
    for branch in range(plan.clusters):
        own = mixture[found.clusters == branch]
        torch.manual_seed(seed)
        one = pretrain_routed(Task(start, torch.split(own, BATCH)), plan=alone)
        apart.append(one)
    return {"found": found, "full": full, "apart": apart, "start": start}


def judged(made: dict[str, Any], probes: dict[str, Probe], seed: int) -> dict[str, Any]:
    """Return the accuracy of every network on every probe, and where it was routed to."""
    found, apart, network = made["found"], made["apart"], made["start"]
    all_of = {"full": made["full"].whole, "whole": found.whole, "untrained": weights_of(network)}
    all_of |= {f"branch {k}": weights for k, weights in enumerate(found.branches)}
    all_of |= {f"apart {k}": one.whole for k, one in enumerate(apart)}
    generator, scores = np.random.default_rng((seed, 1)), {}
    for name, probe in probes.items():
        runs: dict[str, list[float]] = {}
        for draw in range(DRAWS):
            fitted, tested = drawn_labels(probe, generator)
            ways = {
                way: probed(
                    features(network, weights, fitted[0]), fitted[1],
                    features(network, weights, tested[0]), tested[1],
                )
                for way, weights in all_of.items()
            }  # fmt: skip
            flat = [part[0].flatten(1).numpy() for part in (fitted, tested)]
            ways["pixels"] = probed(flat[0], fitted[1], flat[1], tested[1])
            at = routed_to(found.branches, fitted, seed * DRAWS + draw)
            ways |= {"route": at, "routed": ways[f"branch {at}"], "apart": ways[f"apart {at}"]}
            for way, value in ways.items():
                runs.setdefault(way, []).append(value)
        mean = {way: statistics.fmean(values) for way, values in runs.items() if way != "route"}
        branches = [mean[f"branch {k}"] for k in range(len(found.branches))]
        mean |= {"oracle": max(branches), "random": statistics.fmean(branches)}
        mean["apart oracle"] = max(mean[f"apart {k}"] for k in range(len(apart)))
        scores[name] = mean | {"routes": runs["route"]}
    return scores


def one_seed(
    mixture: Tensor, probes: dict[str, Probe], seed: int, plan: RoutedPlan
) -> dict[str, Any]:
    """Train and judge everything once."""
    plan = replace(plan, descent=replace(plan.descent, seed=seed))
    made = trained(mixture, seed, plan)
    clusters = made["found"].clusters
    sources = torch.arange(len(mixture)) // EACH
    return {
        "seed": seed,
        "steps": {
            "full": made["full"].steps,
            "routed": made["found"].steps,
            "apart": sum(one.steps for one in made["apart"]),
        },
        "seconds": made["found"].seconds,
        "spread": {"full": made["full"].spread[-1], "routed": min(made["found"].spread)},
        "clusters": [
            [int((sources[clusters == k] == s).sum()) for s in range(3)]
            for k in range(plan.clusters)
        ],
        "probes": judged(made, probes, seed),
    }


def interval(differences: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean of paired differences, and the ends of its interval of 95 %."""
    mean = statistics.fmean(differences)
    half = statistics.stdev(differences) / math.sqrt(len(differences))
    half *= stats.t.ppf(0.975, len(differences) - 1)
    return mean, mean - half, mean + half


def mean_of(row: dict[str, Any], way: str) -> float:
    """Return the mean accuracy over the probes."""
    return statistics.fmean(probe[way] for probe in row["probes"].values())


def against(rows: Rows, first: str, second: str) -> str:
    """Return the paired difference of two rows in words."""
    mean, low, high = interval([mean_of(row, first) - mean_of(row, second) for row in rows])
    says = "excludes 0" if low > 0 or high < 0 else "holds 0: no difference is shown"
    return f"{mean:+.2f} points [{low:+.2f}, {high:+.2f}], which {says}"


def as_text(found: dict[str, Any]) -> str:
    """Return the tables."""
    rows: Rows = found["rows"]
    probes, count = list(rows[0]["probes"]), len(rows[0]["clusters"])
    cells = []
    for way, words in ROWS.items():
        values = [statistics.fmean(row["probes"][p][way] for row in rows) for p in probes]
        means = [mean_of(row, way) for row in rows]
        spread = statistics.stdev(means) if len(means) > 1 else 0.0
        cells.append(
            [words, *(f"{v:.1f}" for v in values), f"{statistics.fmean(means):.2f} ± {spread:.2f}"]
        )
    matrix = []
    for k in range(count):
        gain = [
            statistics.fmean(
                row["probes"][p][f"branch {k}"] - row["probes"][p]["full"] for row in rows
            )
            for p in probes
        ]
        taken = [statistics.fmean(row["clusters"][k][s] for row in rows) for s in range(3)]
        named = ", ".join(f"{n:.0f} {name}" for n, name in zip(taken, SOURCES, strict=True))
        matrix.append([f"branch {k + 1}: {named}", *(f"{value:+.1f}" for value in gain)])
    steps = rows[0]["steps"]
    text = [
        "# Routed self-supervised pre-training",
        machine_line(found["machine"]),
        f"{len(rows)} seeds, paired: the same start, images and labels for all rows of a seed. The "
        f"mixture: {EACH} images each of MNIST, Omniglot and grey CIFAR-10 crops, 28 x 28. "
        f"Convolutions 16-32-64 with BatchNorm, 1024 features; the last one in {count} branches. "
        f"SimSiam, SGD at {found['lr']}, batches of {BATCH}; steps in all: full {steps['full']}, "
        f"routed {steps['routed']}, {count} independent networks together {steps['apart']}: few, "
        f"so that {len(rows)} seeds fit on a busy machine. Probes: a ridge classifier on {SHOTS} "
        f"labelled images per class, {DRAWS} draws per seed, of images and alphabets that the "
        "mixture does not hold. Rate and probe were chosen on other images. Routing: "
        f"`choose_start` on the labelled images, {ROUTE.steps} steps per trial. Of independent "
        "networks the first row takes that of the cluster whose branch was routed to.",
        table(["test accuracy, %", *probes, "mean"], cells),
    ]
    if len(rows) > 1:
        pairs = (
            ("routed", "full"), ("routed", "random"), ("oracle", "full"), ("routed", "apart"),
            ("full", "pixels"), ("full", "untrained"), ("whole", "full"),
        )  # fmt: skip
        lines = [f"- {a} less {b}: {against(rows, a, b)}." for a, b in pairs]
        text.append(
            "Paired differences of the mean over the probes, interval of 95 %:\n\n"
            + "\n".join(lines)
        )
    text += [
        "Negative transfer: accuracy of each branch less that of the full network, in points. The "
        "clusters are numbered by size, seed by seed; their images by source are means.",
        table(["branch: images of its cluster", *probes], matrix),
    ]
    return "\n\n".join(text)


def main() -> None:
    """Measure and print; seeds that the output's last run holds are kept."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("omniglot", "mnist", "cifar10"):
        parser.add_argument(f"--{name}", type=Path, required=True, metavar="DIR")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--lr", type=float, default=0.2)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {"machine": machine(), "lr": arguments.lr, "rows": []}
    if arguments.output and arguments.output.with_suffix(".json").is_file():
        found = json.loads(arguments.output.with_suffix(".json").read_text(encoding="utf-8"))
    mixture, probes = load(arguments)
    descent = TrainingPlan.cosine(arguments.epochs, lr=arguments.lr, weight_decay=1e-4)
    plan = RoutedPlan(whole=0.4, narrowing=0.2, routed=("6.*", "7.*"), descent=descent)
    for seed in range(len(found["rows"]), arguments.seeds):
        found["rows"].append(one_seed(mixture, probes, seed, plan))
        write(arguments.output, as_text(found), found)


if __name__ == "__main__":
    main()
