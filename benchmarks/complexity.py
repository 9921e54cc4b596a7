"""Does the path length of the first layer's bias measure complexity, and do its bounds hold?

    python benchmarks/complexity.py --output OUT

Two questions. Each network is trained by plain SGD, one example per step, in float64, behind a
first layer that is frozen to the identity: there the bounds of the paper are an identity, and its
error is measured at every step.

*Frequencies*: the target cos(2 pi f u) cos(2 pi f v) at 100 points (u, v), uniform in [0, 1]^2 and
put into R^10 by a random isometry; an MLP of 5 layers of width 32, squared loss. The paper trains
for 3000 epochs at a rate of 1e-3; here the rate is larger, the epochs are fewer, and the weights
start as He et al. (2015) draw them: from PyTorch's own start so deep and narrow a network stays on
a plateau for long.

*Labels*: scikit-learn's digits, 3 against 8, a share of the training labels replaced by fair coins;
cross-entropy of one output, for as many epochs at every share.

The path length is the sum of |b' - b|; its rate, the length by the sum of a |d loss / d f|,
is the mean slope of the function at the examples, with the learning rate a. It is compared with
simpler measures: the path length of all weights from epoch to epoch, their distance from the start,
and the score on the training data. Spearman's correlations are over all runs; the test data are
looked at once, after training. What stands in OUT.json is not trained again.
"""

import argparse
import json
import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional

from common import machine, machine_line, table, write
from slipstream.dynamics import ComplexityMeter, with_input_bias
from slipstream.testbed import load_data
from slipstream.weights import clone, difference, norm, weights_of

FREQUENCIES = (0.25, 0.5, 0.75, 1.0)
SHARES = (0.0, 0.2, 0.4, 0.6)
PAIR = (3, 8)
MEASURES = ("length", "slope", "way of all weights", "distance from the start")


@dataclass(frozen=True)
class Task:
    """Examples to train and to judge on, with a loss of one output."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    loss: Callable[[Tensor, Tensor], Tensor]
    hidden: tuple[int, ...]
    rate: float
    score: Callable[[Tensor, Tensor], float]  # of outputs and targets
    drawn_by_he: bool = False  # the initial weights


def waves(frequency: float, seed: int) -> Task:
    """A product of two cosines in the plane, in ten dimensions."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    basis = torch.linalg.qr(draw(10, 2) - 0.5).Q  # (10, 2)

    def part(count: int) -> tuple[Tensor, Tensor]:
        places = draw(count, 2)
        values = torch.cos(2 * math.pi * frequency * places).prod(1)
        return places @ basis.T, values

    def mean_squared_error(outputs: Tensor, targets: Tensor) -> float:
        return float((outputs - targets).square().mean())

    def half_squared(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().mean() / 2

    return Task(part(100), part(1000), half_squared, (32,) * 4, 1e-2, mean_squared_error, True)


def digits(corrupted: float, seed: int) -> Task:
    """Threes against eights, some training labels replaced by coins."""
    data = load_data("digits")
    generator = torch.Generator().manual_seed(seed)

    def part(examples: Any) -> tuple[Tensor, Tensor]:
        chosen = torch.isin(examples.labels, torch.tensor(PAIR))
        labels = (examples.labels[chosen] == PAIR[1]).double()
        return examples.inputs[chosen].flatten(1).double(), labels

    inputs, labels = part(data.train)
    coins = torch.randint(2, labels.shape, generator=generator).double()
    replaced = torch.rand(labels.shape, generator=generator) < corrupted
    labels = torch.where(replaced, coins, labels)

    def accuracy(outputs: Tensor, targets: Tensor) -> float:
        return float(((outputs > 0) == (targets > 0.5)).double().mean())

    loss = functional.binary_cross_entropy_with_logits
    return Task((inputs, labels), part(data.test), loss, (64, 64), 1e-2, accuracy)


def build(inputs: int, hidden: tuple[int, ...], seed: int, *, he: bool) -> nn.Module:
    """An MLP of one output behind the identity with a bias."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes = [inputs, *hidden]
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), nn.ReLU()]
        body = nn.Sequential(*layers, nn.Linear(sizes[-1], 1), nn.Flatten(0)).double()
        for layer in body if he else ():
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
    return with_input_bias(body, [inputs])


def train(task: Task, *, epochs: int, seed: int) -> dict[str, Any]:
    """Train one network, one example per step, and return what was measured."""
    inputs, targets = task.train
    model = build(inputs.shape[1], task.hidden, seed, he=task.drawn_by_he)
    optimizer = torch.optim.SGD(model.parameters(), lr=task.rate)
    generator = torch.Generator().manual_seed(seed)
    start = before = clone(weights_of(model))
    way = 0.0
    with ComplexityMeter(model).attach(optimizer) as meter:
        for _ in range(epochs):
            for at in torch.randperm(len(inputs), generator=generator).tolist():
                optimizer.zero_grad()
                task.loss(model(inputs[at : at + 1]), targets[at : at + 1]).backward()
                optimizer.step()
            now = clone(weights_of(model))
            way += norm(difference(now, before))
            before = now
    found = meter.result()
    with torch.no_grad():
        scores = [task.score(model(x), y) for x, y in (task.train, task.test)]
    return {
        "seed": seed,
        "length": found.length,
        "slope": found.mean_lipschitz,
        "way of all weights": way,  # from epoch to epoch
        "distance from the start": norm(difference(before, start)),
        "train": scores[0],
        "test": scores[1],
        "steps": len(found.moves),
        "identity_error": found.identity_error,
        "outside": found.outside,
        "violations": list(found.violations),
    }


def runs(options: argparse.Namespace) -> Iterator[tuple[str, float, int, Task, int]]:
    """Every network to train: protocol, its knob, the seed, the task and the epochs."""
    for seed in range(options.seeds):
        for share in SHARES:
            yield "labels", share, seed, digits(share, seed), options.label_epochs
    for seed in range(options.frequency_seeds):
        for frequency in FREQUENCIES:
            task = waves(frequency, seed)
            yield "frequencies", frequency, seed, task, options.frequency_epochs


def correlation(rows: list[dict[str, Any]], first: str, second: str) -> float:
    """Spearman's, over all runs."""
    return float(spearmanr([r[first] for r in rows], [r[second] for r in rows]).statistic)


def summary(rows: list[dict[str, Any]], knob: str, score: str) -> list[str]:
    """A table of means by the knob, and one of correlations."""
    lines = []
    for value in sorted({row["knob"] for row in rows}):
        own = [row for row in rows if row["knob"] == value]
        cells = [f"{value:g}"]
        for name in (*MEASURES, "train", "test"):
            values = [row[name] for row in own]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.fmean(values):.3g} ± {spread:.2g}")
        lines.append(cells)
    header = [knob, *MEASURES, f"{score}, training", f"{score}, test"]
    correlations = [
        [label, *(f"{correlation(rows, name, other):+.2f}" for other in ("knob", "test"))]
        for name, label in [*zip(MEASURES, MEASURES, strict=True), ("train", f"{score}, training")]
    ]
    return [table(header, lines), table(["Spearman with", knob, f"{score}, test"], correlations)]


def as_markdown(result: dict[str, Any]) -> str:
    """The tables."""
    rows = result["runs"]
    steps = sum(row["steps"] for row in rows)
    errors = [row["identity_error"] for row in rows]
    parts = [
        "# Complexity from training",
        f"{machine_line(result['machine'])} `python benchmarks/complexity.py`",
        *__doc__.strip().split("\n\n")[2:],
        f"**The identity** |b' - b| = a |d loss / d x| holds to {max(errors):.1e} (the largest "
        f"relative error) at all {steps:,} steps of {len(rows)} runs; "
        f"{sum(row['outside'] for row in rows)} steps are outside the bounds.",
    ]
    for protocol, knob, score in (
        ("labels", "share of coins", "accuracy"),
        ("frequencies", "frequency", "squared error"),
    ):
        own = [row for row in rows if row["protocol"] == protocol]
        if own:
            seeds = len({row["seed"] for row in own})
            how = f"{own[0]['epochs']} epochs at a rate of {own[0]['rate']:g}"
            parts += [f"## {protocol}: {seeds} seeds, {how}", *summary(own, knob, score)]
    return "\n\n".join(parts)


def key_of(row: dict[str, Any]) -> tuple[Any, ...]:
    """What makes a run."""
    return tuple(row[name] for name in ("protocol", "knob", "seed", "epochs", "rate"))


def main() -> None:
    """Train what is missing, and write the tables after every run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--label-epochs", type=int, default=30)
    parser.add_argument("--frequency-seeds", type=int, default=4)
    parser.add_argument("--frequency-epochs", type=int, default=200)
    parser.add_argument("--output", type=Path, help="writes OUTPUT.md and OUTPUT.json")
    options = parser.parse_args()
    result: dict[str, Any] = {"machine": machine(), "runs": []}
    file = options.output and options.output.with_suffix(".json")
    if file and file.is_file():
        result = json.loads(file.read_text(encoding="utf-8"))
    wanted = list(runs(options))
    keys = {(p, k, s, e, t.rate) for p, k, s, t, e in wanted}
    result["runs"] = [r for r in result["runs"] if key_of(r) in keys]
    done = {key_of(row) for row in result["runs"]}
    for protocol, knob, seed, task, epochs in wanted:
        if (protocol, knob, seed, epochs, task.rate) in done:
            continue
        found = train(task, epochs=epochs, seed=seed)
        how = {"protocol": protocol, "knob": knob, "epochs": epochs, "rate": task.rate}
        result["runs"].append(how | found)
        write(options.output, as_markdown(result), result)


if __name__ == "__main__":
    main()
