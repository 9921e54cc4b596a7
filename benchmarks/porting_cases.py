"""The networks and tasks of the porting benchmark: small ones, on real data."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from slipstream.evaluation import Batch, Loss, Task, accuracy, classification_loss
from slipstream.testbed import build_network, load_data
from slipstream.testbed.datasets import DataSpec, Examples
from slipstream.training import OptimizerName, TrainingPlan, train

CONTEXT = 64  # characters
UNSEEN = 512  # inputs without labels
SEEN = 8000  # examples of a training
FEW = 4  # batches of labelled data


@dataclass(frozen=True)
class Training:
    """How a network is trained."""

    epochs: int
    lr: float
    optimizer: OptimizerName = "sgd"

    def run(self, model: nn.Module, loss: Loss, data: "Shuffled", *, share: float = 1.0) -> None:
        """Train in place, at a share of the rate."""
        plan = TrainingPlan(self.epochs, self.optimizer, self.lr * share, schedule="cosine")
        train(Task(model, data, loss), plan)


@dataclass(frozen=True)
class Shuffled:
    """Batches in another order every epoch; iterating goes through eight epochs."""

    examples: Examples
    size: int
    seed: int

    def __len__(self) -> int:
        return len(self.examples.batches(self.size))

    def epoch(self, number: int) -> Iterator[Batch]:
        """Return the batches of an epoch."""
        return iter(self.examples.batches(self.size, seed=self.seed).epoch(number))

    def __iter__(self) -> Iterator[Batch]:
        for number in range(8):
            yield from self.epoch(number)


@dataclass(frozen=True)
class Case:
    """A network, what its bases learn, and what the fine-tune learns."""

    build: Callable[[int], nn.Module]
    training: Training
    pretraining: tuple[Examples, Examples]  # of either base
    tuning: Examples
    validation: Examples
    test: Examples
    unseen: Tensor  # inputs of the fine-tune's task, without labels
    batch: int = 64
    loss: Loss = classification_loss
    metric: str = "accuracy"
    metrics: dict[str, Loss] = field(default_factory=lambda: {"accuracy": accuracy})

    @property
    def full(self) -> Examples:
        """What the fine-tune is trained on: all but the labelled examples that are set apart."""
        return Examples(
            self.tuning.inputs[FEW * self.batch :], self.tuning.labels[FEW * self.batch :]
        )

    @property
    def unlabelled(self) -> list[Tensor]:
        """Batches of inputs for what needs no labels."""
        return list(torch.split(self.unseen, self.batch))

    def labelled(self, seed: int) -> Shuffled:
        """The few labelled examples that every method may use."""
        return Shuffled(self.tuning.take(FEW * self.batch), self.batch, seed)


def cases(mnist: str, text: str) -> dict[str, Callable[[], Case]]:
    """Return the cases by name; each reads its data when it is called."""
    return {
        "mlp, other classes": lambda: _images(mnist, "mlp", "classes"),
        "mlp, inverted": lambda: _images(mnist, "mlp", "inverted"),
        "vit, other classes": lambda: _images(mnist, "vit", "classes"),
        "vit, inverted": lambda: _images(mnist, "vit", "inverted"),
        "resnet18, other classes": lambda: _images(mnist, "resnet18", "classes"),
        "resnet18, inverted": lambda: _images(mnist, "resnet18", "inverted"),
        "gpt, one play": lambda: _play(text),
    }


def _images(mnist: str, network: str, task: str) -> Case:
    data = load_data(f"mnist:{mnist}")
    small = network == "resnet18"  # half the resolution, a quarter of the time
    parts = [_shrunk(part, small) for part in (data.train, data.validation, data.test)]
    if task == "classes":
        first, (train_part, validation, test) = (
            [_half(part, start) for part in parts] for start in (0, 5)
        )
    else:
        first, (train_part, validation, test) = parts, [_inverted(part) for part in parts]
    spec = DataSpec("mnist", tuple(train_part.inputs.shape[1:]), int(test.labels.max()) + 1)
    base = first[0].take(SEEN)
    training = {
        "mlp": Training(3, 0.05),
        "resnet18": Training(2, 0.1),
        "vit": Training(5, 0.002, "adamw"),
    }[network]
    return Case(
        build=lambda seed: _network(network, spec, seed),
        training=training,
        pretraining=(base, base),
        tuning=train_part.take(SEEN),
        validation=validation.take(256),
        test=test.take(4000),
        unseen=train_part.inputs[SEEN:][:UNSEEN],
    )


def _network(name: str, spec: DataSpec, seed: int) -> nn.Module:
    if name == "mlp":
        return build_network("mlp", data=spec, width=256, seed=seed, hidden_layers=2)
    if name == "resnet18":
        return build_network("resnet18", data=spec, width=0.25, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Transformer(Patches(spec.shape[-1]), outputs=spec.classes, causal=False)


def _play(text: str) -> Case:
    """Romeo and Juliet apart; a base of either half of the rest."""
    lines = Path(text).read_text(encoding="utf-8").split("\n")
    spoken = [n for n, line in enumerate(lines) if line == "ROMEO:"]
    play = "\n".join(lines[spoken[0] : spoken[-1]])
    rest = "\n".join(lines[: spoken[0]] + lines[spoken[-1] :])
    numbers = {letter: number for number, letter in enumerate(sorted(set(rest + play)))}
    halves = (rest[: len(rest) // 2], rest[len(rest) // 2 :])
    windows = _windows(play, numbers)
    cut = len(windows) * 6 // 10
    some = torch.randperm(len(windows), generator=torch.Generator().manual_seed(0))
    mixed = Examples(windows.inputs[some], windows.labels[some])
    held = Examples(mixed.inputs[cut:], mixed.labels[cut:])
    return Case(
        build=lambda seed: _language_model(len(numbers), seed),
        training=Training(4, 0.003, "adamw"),
        pretraining=(_windows(halves[0], numbers), _windows(halves[1], numbers)),
        tuning=mixed.take(cut),
        validation=held.take(128),
        test=Examples(held.inputs[128:], held.labels[128:]),
        unseen=mixed.inputs[:cut][-UNSEEN:],  # the play is short: the fine-tune knows these
        batch=32,
        loss=next_letter_loss,
        metric="loss",
        metrics={"loss": next_letter_loss},
    )


def _language_model(letters: int, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Transformer(Letters(letters), outputs=letters, causal=True)


def next_letter_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Return the mean cross entropy of the next letter, in nats."""
    inputs, labels = batch
    return nn.functional.cross_entropy(model(inputs).flatten(0, 1), labels.flatten())


class Patches(nn.Module):
    """An image as a list of 7 x 7 patches."""

    def __init__(self, side: int, width: int = 64) -> None:
        super().__init__()
        self.cut = nn.Conv2d(1, width, 7, stride=7)
        self.places = nn.Parameter(torch.randn((side // 7) ** 2, width) * 0.02)

    def forward(self, images: Tensor) -> Tensor:
        """Map (batch, 1, side, side) to (batch, patches, width)."""
        return self.cut(images).flatten(2).transpose(1, 2) + self.places


class Letters(nn.Module):
    """A text as a list of letters."""

    def __init__(self, letters: int, width: int = 64) -> None:
        super().__init__()
        self.kinds = nn.Embedding(letters, width)
        self.places = nn.Parameter(torch.randn(CONTEXT, width) * 0.02)

    def forward(self, text: Tensor) -> Tensor:
        """Map (batch, letters) to (batch, letters, width)."""
        return self.kinds(text) + self.places


class Layer(nn.Module):
    """Attention and a hidden layer, each behind a norm and beside the residual stream."""

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.hidden, self.back = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, places, width) to the same."""
        y = self.norm1(x)
        queries, keys, values = (
            part(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        mixed = nn.functional.scaled_dot_product_attention(
            queries, keys, values, is_causal=self.causal
        )
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.back(nn.functional.gelu(self.hidden(self.norm2(x))))


class Transformer(nn.Module):
    """Two layers; an answer for the whole, or one at every place."""

    def __init__(self, inputs: nn.Module, *, outputs: int, causal: bool, width: int = 64) -> None:
        super().__init__()
        self.inputs, self.causal = inputs, causal
        self.layers = nn.Sequential(*(Layer(width, 4, causal=causal) for _ in range(2)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map inputs to (batch, outputs), or (batch, places, outputs) if causal."""
        x = self.norm(self.layers(self.inputs(x)))
        return self.head(x if self.causal else x.mean(1))


def _windows(text: str, numbers: dict[str, int]) -> Examples:
    codes = torch.tensor([numbers[letter] for letter in text])
    rows = (len(codes) - 1) // CONTEXT
    used = rows * CONTEXT
    return Examples(codes[:used].view(rows, CONTEXT), codes[1 : used + 1].view(rows, CONTEXT))


def _shrunk(part: Examples, small: bool) -> Examples:
    return Examples(nn.functional.avg_pool2d(part.inputs, 2), part.labels) if small else part


def _half(part: Examples, first: int) -> Examples:
    kept = (part.labels >= first) & (part.labels < first + 5)
    return Examples(part.inputs[kept], part.labels[kept] - first)


def _inverted(part: Examples) -> Examples:
    return Examples(-part.inputs, part.labels)
