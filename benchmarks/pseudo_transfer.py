"""Transfer without source data: a generator of MNIST digits for characters, and for CIFAR-10.

    python benchmarks/pseudo_transfer.py --mnist DIR --omniglot DIR --cifar10 DIR \
        --output benchmarks/results/pseudo_transfer

The source is a conditional VAE and an MLP, both trained on MNIST; the target network, a small
convolutional one with BatchNorm, never sees a digit. Greek characters of Omniglot are near enough
to learn from digits; photographs of CIFAR-10 are not, and stand here as the hopeless control. Every
way does the same number of steps on the target, but for the one that says "total": as many as
pre-training and target together. The weights of P-SSL and of distillation are chosen on validation
data, with seeds of their own.
Every finished run is kept beside the output, so an interrupted benchmark resumes where it stopped.
"""

import argparse
import json
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common import machine, machine_line, table, write
from slipstream.evaluation import Task, accuracy, evaluate, recalibrate_batchnorm
from slipstream.recipes import (
    ConditionalGenerator,
    DistilPlan,
    PretrainPlan,
    PseudoPlan,
    PseudoSource,
    QualityPlan,
    distil_source,
    generator_quality,
    pseudo_pretrain,
    pseudo_semi_supervised,
)
from slipstream.testbed import Batches, DataSpec, Examples, build_network, load_data
from slipstream.testbed.conditional_vae import ConditionalVAE, train_conditional_vae
from slipstream.testbed.omniglot import read_omniglot
from slipstream.training import TrainingPlan, trained_copy
from slipstream.weights import Weights

TARGET_STEPS, BATCH, RATE = 240, 30, 0.05
PRETRAIN = (5, 100, 64)  # epochs, batches of an epoch, examples of a batch
LAMBDAS = (0.03, 0.1, 0.3, 1.0)
CHOOSING, CHOOSING_SEEDS, CHOOSING_LABELS = 1000, 2, 5
LABELS = (5, 1, 10)  # of a class
DRAWN_FROM, VALIDATED_BY = 10, 4  # of the 20 who drew each character; the others are for the test
GENERATOR_EPOCHS, CLASSIFIER_EPOCHS = 10, 5
WAYS = {
    "scratch": "from scratch, equal target steps",
    "longer": "from scratch, equal total steps",
    "distilled": "knowledge distillation, equal target steps",
    "PP": "PP, then the target",
    "P-SSL": "P-SSL, soft labels",
    "P-SSL uniform": "P-SSL, uniform labels",
    "both": "PP, then P-SSL",
}
PAIRS = (("PP", "scratch"), ("PP", "longer"), ("PP", "distilled"), ("P-SSL", "scratch"),
         ("P-SSL", "P-SSL uniform"), ("both", "PP"))  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A target task, and the source brought to the shape of its inputs."""

    words: str
    shape: tuple[int, ...]
    classes: int
    source: PseudoSource
    split: Callable[[int, int], dict[str, Examples]]  # labels of a class and seed to parts
    labels: tuple[int, ...]
    pretrained: dict[int, Weights] = field(default_factory=dict)  # by seed


def source_of(mnist: str) -> tuple[PseudoSource, dict[str, float]]:
    """Train generator and classifier on MNIST, and say how good they are."""
    data = load_data(f"mnist:{mnist}")
    batches = data.train.batches(128, seed=0)
    vae = ConditionalVAE((1, 28, 28), classes=10, width=400)
    train_conditional_vae(vae, batches, epochs=GENERATOR_EPOCHS)
    fresh = build_network("mlp", data=data.spec, width=256)
    how = TrainingPlan.cosine(CLASSIFIER_EPOCHS, lr=RATE)
    classifier = trained_copy(Task(fresh, batches), how).eval()
    generator = ConditionalGenerator(vae.sample, classes=10)
    source = PseudoSource(generator, classifier)
    plan = QualityPlan(len(batches), 128, how)
    quality = generator_quality(source, Task(fresh, data.test.batches(500)), plan=plan)
    return source, {
        "trained on samples": 100 * quality.accuracy,
        "trained on real data": percent(classifier, None, data.test),
        "agreement": 100 * (quality.agreement or 0.0),
    }


def greek(images: Tensor, count: int, seed: int) -> dict[str, Examples]:
    """Split drawings, (characters, 20, 1, 28, 28), by who drew them."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(images.shape[1]))
    middle = DRAWN_FROM + VALIDATED_BY
    places = {
        "train": order[:count], "validation": order[DRAWN_FROM:middle], "test": order[middle:],
    }  # fmt: skip
    return {
        part: Examples(
            images[:, at].flatten(0, 1), torch.arange(len(images)).repeat_interleave(len(at))
        )
        for part, at in places.items()
    }


def photographs(data: Any, count: int, seed: int) -> dict[str, Examples]:
    """Draw some photographs of each class to learn from, and 1000 each to be judged by."""
    drawing = torch.Generator().manual_seed(seed)

    def drawn(examples: Examples, of_each: int) -> Examples:
        order = torch.randperm(len(examples), generator=drawing)
        labels = examples.labels[order]
        at = torch.cat([order[labels == c][:of_each] for c in range(10)])
        return Examples(examples.inputs[at], examples.labels[at])

    sizes = {"train": count, "validation": 100, "test": 100}
    return {part: drawn(getattr(data, part), of_each) for part, of_each in sizes.items()}


def cases(mnist: str, omniglot: str, cifar10: str) -> tuple[dict[str, Case], dict[str, float]]:
    """Return the cases, and the quality of the generator."""
    source, quality = source_of(mnist)
    digits = load_data(f"mnist:{mnist}").train.inputs
    paper, ink = float(digits.min()), float(digits.max())
    characters = paper + (ink - paper) * read_omniglot(omniglot).of("Greek").images
    photos = load_data(f"cifar10:{cifar10}")

    def coloured(labels: Tensor, generator: torch.Generator) -> Tensor:
        digits = source.maker.sample(labels, generator).expand(-1, 3, -1, -1)
        return nn.functional.pad(digits, (2, 2, 2, 2), value=paper)

    def greyed(inputs: Tensor) -> Tensor:
        return source.classifier(inputs.mean(1, keepdim=True)[..., 2:-2, 2:-2])

    onto_photos = PseudoSource(ConditionalGenerator(coloured, 10), greyed)
    return {
        "Greek": Case(
            "24 Greek characters of Omniglot", (1, 28, 28), len(characters), source,
            partial(greek, characters), LABELS,
        ),
        "CIFAR-10": Case(
            "10 classes of CIFAR-10, the hopeless control", (3, 32, 32), 10, onto_photos,
            partial(photographs, photos), (5,),
        ),
    }, quality  # fmt: skip


def network(case: Case, seed: int) -> nn.Module:
    """Return the target network with the initial weights of a seed."""
    spec = DataSpec("target", case.shape, case.classes)
    return build_network(
        "conv_net", data=spec, seed=seed, channels=(16, 32, 64), hidden=64, batchnorm=True
    )


def percent(model: nn.Module, weights: Weights | None, examples: Examples) -> float:
    """Return the accuracy in percent."""
    data = examples.batches(500)
    return 100 * evaluate(model, {"a": accuracy}, weights=weights, data=data)["a"]


def pretrained(case: Case, seed: int, data: Batches) -> Weights:
    """Return the network after PP, which is the same for any number of labels but for statistics.

    That is what a task with data does at the end of each epoch.
    """
    model = network(case, seed)
    if seed not in case.pretrained:
        epochs, batches, size = PRETRAIN
        plan = PretrainPlan(batches, size, TrainingPlan.cosine(epochs, lr=RATE, seed=seed))
        found = pseudo_pretrain(case.source, Task(model), head="head", plan=plan)
        case.pretrained[seed] = found.weights
    weights = case.pretrained[seed]
    return {**weights, **recalibrate_batchnorm(model, weights=weights, data=data)}


def learned(
    case: Case, way: str, *, seed: int, data: Batches, weight: float
) -> tuple[Weights, dict[str, float]]:
    """Return the weights after a way of learning, and what it cost."""
    task, source = Task(network(case, seed), data), case.source
    before = PRETRAIN[0] * PRETRAIN[1]
    total = TARGET_STEPS + (before if way == "longer" else 0)
    how = TrainingPlan.cosine(math.ceil(total / len(data)), lr=RATE, seed=seed)
    initial = pretrained(case, seed, data) if way in ("PP", "both") else None
    cost = {"steps": how.epochs * len(data), "pretraining": before if initial else 0}
    if way == "distilled":
        plan = DistilPlan(weight, descent=how)
        found = distil_source(source, task, head="head", plan=plan)
        return found.weights, cost
    # Without a weight P-SSL is plain training, to the bit.
    uniform, plain = way == "P-SSL uniform", way in ("scratch", "longer", "PP")
    own = PseudoPlan(
        0.0 if plain else weight, conditioning="uniform" if uniform else "soft", descent=how
    )
    trained = pseudo_semi_supervised(source, task, plan=own, initial=initial)
    return trained.weights, cost | {
        "confident": trained.confident[-1], "synthetic": trained.synthetic,
    }  # fmt: skip


def run(
    case: Case, way: str, *, labels: int, seed: int, weight: float, part: str = "test"
) -> dict[str, Any]:
    """Learn once, and judge by a part of the data."""
    parts = case.split(labels, seed)
    data = parts["train"].batches(BATCH, seed=seed)
    weights, cost = learned(case, way, seed=seed, data=data, weight=weight)
    found = percent(network(case, seed), weights, parts[part])
    return {"way": way, "labels": labels, "seed": seed, "accuracy": found, **cost}


def chosen(case: Case, way: str, kept: dict[str, Any]) -> float:
    """Return lambda for a way: the best on validation data, at other seeds."""
    way = "P-SSL" if way == "P-SSL uniform" else way
    if way not in ("P-SSL", "both", "distilled"):
        return 0.0
    if way not in kept["lambda"]:
        seeds = range(CHOOSING, CHOOSING + CHOOSING_SEEDS)
        found = {
            weight: statistics.mean(
                run(
                    case, way, labels=CHOOSING_LABELS, seed=seed, weight=weight, part="validation"
                )["accuracy"]
                for seed in seeds
            )
            for weight in LAMBDAS
        }  # fmt: skip
        kept["lambda"][way] = {"tried": found, "chosen": max(found, key=lambda w: found[w])}
    return float(kept["lambda"][way]["chosen"])


def by_seed(runs: list[dict[str, Any]], way: str, labels: int) -> dict[int, float]:
    """Return the accuracies of a way by seed."""
    return {r["seed"]: r["accuracy"] for r in runs if (r["way"], r["labels"]) == (way, labels)}


def spread(found: dict[int, float]) -> str:
    """Return mean and deviation."""
    values = list(found.values())
    if len(values) < 2:
        return "" if not values else f"{values[0]:.1f}"
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


def gain(first: dict[int, float], second: dict[int, float]) -> str:
    """Return the mean of first - second over equal seeds, its standard error, and their ratio."""
    pairs = [first[seed] - second[seed] for seed in first if seed in second]
    if len(pairs) < 2:
        return ""
    mean, error = statistics.mean(pairs), statistics.stdev(pairs) / math.sqrt(len(pairs))
    return f"{mean:+.1f} ± {error:.1f}" + (f" ({mean / error:+.1f} se)" if error else "")


def text_of(words: str, kept: dict[str, Any]) -> str:
    """Return the tables of a case."""
    runs = kept["runs"]
    counts = sorted({r["labels"] for r in runs})
    seeds = len({r["seed"] for r in runs})
    header = ["", *(f"{n} a class" for n in counts)]
    rows = [[w, *(spread(by_seed(runs, way, n)) for n in counts)] for way, w in WAYS.items()]
    pairs = [
        [f"{a} less {b}", *(gain(by_seed(runs, a, n), by_seed(runs, b, n)) for n in counts)]
        for a, b in PAIRS
    ]
    picked = ", ".join(f"{way} {found['chosen']:g}" for way, found in kept["lambda"].items())
    tried = {w: found["tried"] for w, found in kept["lambda"].items()}
    validated = "; ".join(
        f"{way}: " + ", ".join(f"{float(w):g} {a:.1f}" for w, a in found.items())
        for way, found in tried.items()
    )
    return (
        f"## {words}\n\nTest accuracy in percent, mean ± deviation over {seeds} seeds; chance is "
        f"{100 / kept['classes']:.0f}.\n\n{table(header, rows)}\n\nDifferences in pairs of equal "
        "seeds, in points, with standard errors:\n\n"
        f"{table(header, pairs)}\n\nLambda, by validation accuracy at {CHOOSING_LABELS} labels a "
        f"class: {picked} ({validated})."
    )


def as_text(found: dict[str, Any]) -> str:
    """Return the whole page."""
    quality = found["quality"]
    epochs, batches, size = PRETRAIN
    return "\n\n".join(
        [
            f"# Transfer without source data\n\n{machine_line(found['machine'])}",
            f"The source knows MNIST. Its generator, a conditional VAE: an MLP that is trained on "
            f"its samples alone is right on {quality['trained on samples']:.1f} % of the real test "
            f"digits, the same MLP after as many steps on real ones on "
            f"{quality['trained on real data']:.1f} %; that one gives "
            f"{quality['agreement']:.1f} % of the samples the class they were made for.",
            f"Pre-training: {epochs * batches} steps on {size} synthetic digits each; on the "
            f"target {TARGET_STEPS} steps, rounded up to whole epochs, on up to {BATCH} labelled "
            f"examples, with as many synthetic ones beside them for P-SSL (UDA). SGD, rate {RATE}. "
            "The target network is a conv net 16-32-64 with BatchNorm. No way changes the "
            "labelled images.",
            *(text_of(kept["words"], kept) for kept in found["cases"].values() if kept["runs"]),
        ]
    )


def main() -> None:
    """Run what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name in ("mnist", "omniglot", "cifar10"):
        parser.add_argument(f"--{name}", default="data", help=f"folder of {name}")
    parser.add_argument("--case", action="append", choices=("Greek", "CIFAR-10"))
    parser.add_argument("--labels", type=int, action="append", help="of a class")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tables", action="store_true", help="of what is there; run nothing")
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    file = given.output.with_suffix(".json")
    found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"cases": {}}
    if given.tables:
        write(given.output, as_text(found), found)
        return
    found.setdefault("machine", machine())
    known, found["quality"] = cases(given.mnist, given.omniglot, given.cifar10)
    print(found["quality"], flush=True)
    for labels in given.labels or LABELS:
        for name in given.case or known:
            if labels in known[name].labels:
                fill(known[name], found, name=name, labels=labels, given=given)


def fill(
    case: Case, found: dict[str, Any], *, name: str, labels: int, given: argparse.Namespace
) -> None:
    """Run what is missing of a case for some number of labels, and write it."""
    fresh = {"words": case.words, "classes": case.classes, "lambda": {}, "runs": []}
    kept = found["cases"].setdefault(name, fresh)
    for seed in range(given.seeds):
        for way in WAYS:
            if seed in by_seed(kept["runs"], way, labels):
                continue
            weight = chosen(case, way, kept)
            kept["runs"].append(run(case, way, labels=labels, seed=seed, weight=weight))
            print(name, kept["runs"][-1], flush=True)
            write(given.output, as_text(found), found)


if __name__ == "__main__":
    main()
