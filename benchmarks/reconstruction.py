"""How many training images can be read from weights: three equations, beside held-out images.

    python benchmarks/reconstruction.py --output benchmarks/results/reconstruction

Ten digits, one of each, train a network with 200 hidden units; 60 validation digits are the
control. Each row is a median over seeds, which draw images, weights and candidates. The attempt
with the least residual counts, as an attacker sees nothing else; the JSON file holds all of them.
"""

import argparse
import math
import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common import machine, machine_line, table, write
from slipstream.dynamics import margin_progress
from slipstream.evaluation import Task, classification_loss
from slipstream.recipes import ReconstructionPlan, reconstruct
from slipstream.testbed import Examples, load_data
from slipstream.training import TrainingPlan
from slipstream.trajectory import Trajectory
from slipstream.weights import Weights, clone, weights_of

IMAGES, HELD, WIDTH, DECAY = 10, 60, 200, 1e-3


@dataclass(frozen=True)
class Case:
    """A way to train, and the equation that its weights fulfil."""

    equation: Any
    activation: type[nn.Module] = nn.ReLU
    splits: int = 2
    binary: bool = False
    images: int = IMAGES


CASES = {
    "displacement, ReLU": Case("displacement"),
    "displacement, ReLU, no splitting": Case("displacement", splits=0),
    "displacement, softplus": Case("displacement", nn.Softplus),
    "displacement, ReLU, 40 images": Case("displacement", images=40),
    "decay, ReLU": Case("decay"),
    "decay, ReLU, no splitting": Case("decay", splits=0),
    "decay, softplus": Case("decay", nn.Softplus),
    "decay, tanh": Case("decay", nn.Tanh),
    "margin, ReLU": Case("margin"),
    "margin, ReLU, two classes": Case("margin", binary=True),
}


def two_classes(model: nn.Module, batch: Any) -> torch.Tensor:
    """Return the logistic loss of a single output."""
    signs = 2.0 * batch[1] - 1
    return nn.functional.softplus(-signs * model(batch[0])[:, 0]).mean()


def digits(seed: int, case: Case) -> tuple[Examples, Examples]:
    """Return as many images of each class, and others that are held out."""
    data, each = load_data("digits"), case.images // 10
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(data.train), generator=generator)
    labels = data.train.labels[order]
    chosen = torch.cat([order[labels == c][:each] for c in range(10)])
    held = data.validation.take(HELD)
    parts = (Examples(data.train.inputs[chosen], data.train.labels[chosen]), held)
    if case.binary:
        parts = tuple(Examples(part.inputs, part.labels % 2) for part in parts)
    return parts


def trained(task: Task, case: Case) -> list[Weights]:
    """Train to where the equation of a case should hold; returns the start and what is read."""
    model, (batch,) = task.model, list(task.data)
    run = [clone(weights_of(model))]
    if case.equation == "decay":
        steps = torch.optim.LBFGS(
            model.parameters(), max_iter=3000, tolerance_grad=1e-9, tolerance_change=1e-15,
            line_search_fn="strong_wolfe", history_size=50,
        )  # fmt: skip

        def closure() -> torch.Tensor:
            steps.zero_grad()
            loss = task.loss(model, batch) + DECAY / 2 * sum(
                p.square().sum() for p in model.parameters()
            )
            loss.backward()
            return loss

        steps.step(closure)
        return [*run, clone(weights_of(model))]
    descent = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3 if case.equation == "displacement" else 10_000):
        descent.zero_grad()
        task.loss(model, batch).backward()
        descent.step()
    return [*run, clone(weights_of(model))]


def one(seed: int, case: Case, epochs: int) -> dict[str, Any]:
    """Train, measure how far the equation holds, and attack."""
    train, held = digits(seed, case)
    torch.manual_seed(seed)
    margin = case.equation == "margin"
    model = nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, WIDTH),
        case.activation(),
        nn.Linear(WIDTH, 1 if case.binary else 10, bias=not margin),
    ).double()
    if margin:
        for parameter in model.parameters():
            parameter.data.mul_(0.01)
    loss = two_classes if case.binary else classification_loss
    data, kept = ([(part.inputs.double(), part.labels)] for part in (train, held))
    task = Task(model, data, loss, validation=kept)
    weights = trained(task, case)
    decay = DECAY if case.equation == "decay" else 0.0
    progress = margin_progress(Trajectory.from_weights(weights), task, weight_decay=decay)
    configuration = {"training": {"weight_decay": decay}}
    whole = Trajectory.from_weights(weights)
    run = replace(whole, description={**whole.description, "configuration": configuration})
    plan = ReconstructionPlan(
        case.equation,
        candidates=2 * case.images,
        attempts=3,
        splits=case.splits,
        least=0.1 if margin else 0.0,
        descent=TrainingPlan.cosine(epochs, "adam", 0.02, weight_decay=0.0, seed=seed),
    )
    small = Task(model.float(), [(train.inputs, train.labels)], loss,
                 validation=[(held.inputs, held.labels)])  # fmt: skip
    found = reconstruct(run, small, plan=plan)
    attempts = [
        {
            "scale": a.plan.scale, "smoothness": a.plan.smoothness, "lr": a.plan.descent.lr,
            "residual": a.residual, "train": float(a.likeness.train.median()),
            "held out": float(a.likeness.held_out.median()), "chance": a.likeness.chance,
            "best": a is found.best,
        }
        for a in found.attempts
    ]  # fmt: skip
    return {
        "start": float(progress.residuals[0]), "end": float(progress.residuals[1]),
        "balance": float(progress.decay_residuals[1]), "ceiling": found.best.likeness.ceiling,
        "attempts": attempts, "seconds": found.seconds,
    }  # fmt: skip


def row(name: str, seeds: list[dict[str, Any]]) -> list[str]:
    """Return a row: medians over the seeds, and the range of the difference."""
    best = [next(a for a in one["attempts"] if a["best"]) for one in seeds]
    middle = statistics.median
    gaps = [a["train"] - a["held out"] for a in best]
    every = [a["train"] - a["held out"] for one in seeds for a in one["attempts"]]
    exact = middle(one["balance"] for one in seeds)
    return [
        name, f"{middle(one['start'] for one in seeds):.2f}",
        f"{middle(one['end'] for one in seeds):.2g}", "-" if math.isnan(exact) else f"{exact:.1g}",
        *(f"{middle(a[key] for a in best):.2f}" for key in ("residual", "train", "held out")),
        f"{middle(one['ceiling'] for one in seeds):.2f}",
        f"{middle(gaps):+.2f} ({min(gaps):+.2f} to {max(gaps):+.2f})",
        f"{sum(gap < 0.25 for gap in every)} of {len(every)}",
    ]  # fmt: skip


def main() -> None:
    """Run all cases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--only", nargs="*", default=list(CASES))
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    facts = machine()
    found = {
        name: [one(seed, CASES[name], given.epochs) for seed in range(given.seeds)]
        for name in given.only
    }
    header = ["equation", "residual at start", "at end", "balance", "attack: residual", "train",
              "held out", "ceiling", "difference (range)", "attempts below .25"]  # fmt: skip
    text = "\n\n".join([
        "# Reconstruction",
        f"{IMAGES} digits, {given.seeds} seeds, 3 attempts of {100 * given.epochs} steps each. "
        "*Residual at start* and *at end*: non-negative least squares with the true images. "
        "*Balance*: of weight decay, with the true coefficients. *Train* and *held out*: medians "
        "of the correlation with the most similar candidate, the mean held-out image taken away. "
        "The attempt with the least residual counts.",
        table(header, [row(name, seeds) for name, seeds in found.items()]),
        machine_line(facts),
    ])  # fmt: skip
    write(given.output, text, {"machine": facts, "cases": found})


if __name__ == "__main__":
    main()
