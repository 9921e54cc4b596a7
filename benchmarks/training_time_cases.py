"""The networks of the benchmark of predicted training time, and how they are fine-tuned."""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from slipstream.evaluation import Loss, Task, accuracy, classification_loss, evaluate, squared_loss
from slipstream.testbed import Examples, build_network
from slipstream.testbed.datasets import DataSpec
from slipstream.training import TrainingPlan, train

RATE_SHARE = 0.2  # of the largest stable learning rate at the start
LOSSES: dict[str, Loss] = {"squared": squared_loss, "cross-entropy": classification_loss}
SPEC = DataSpec("digits", shape=(1, 8, 8), classes=5)


@dataclass(frozen=True)
class Case:
    """A network and how it is fine-tuned."""

    network: str
    loss: Literal["squared", "cross-entropy"]
    width: float | None = None
    options: dict[str, Any] = field(default_factory=dict)
    start: Literal["pre-trained", "random"] = "pre-trained"
    momentum: float = 0.0
    batch_size: int | None = None
    cosine: bool = False
    rate_share: float = RATE_SHARE

    @property
    def name(self) -> str:
        """Say what it is in a few words."""
        how = [
            "random start" if self.start == "random" else "",
            f"momentum {self.momentum:g}" if self.momentum else "",
            f"batches of {self.batch_size}" if self.batch_size else "",
            "cosine schedule" if self.cosine else "",
        ]
        layers = self.options.get("hidden_layers")
        shape = f"{layers} x {self.width:g}" if layers else f"{self.width:g}" if self.width else ""
        normed = "BatchNorm" if self.options.get("batchnorm") else ""
        words = [" ".join(w for w in (self.network, shape, normed) if w), self.loss, *how]
        return ", ".join(word for word in words if word)


def cases() -> list[Case]:
    """Return all cases; each is run with several seeds."""
    found = []
    shapes = [(1, 4096), (1, 1024), (1, 512), (2, 1024), (2, 512)]
    for layers, width in shapes:
        for loss in ("squared", "cross-entropy"):
            options = {"hidden_layers": layers}
            found.append(Case("mlp", loss, width, options))  # type: ignore[arg-type]
    wide, narrow = {"hidden_layers": 1}, {"hidden_layers": 2}
    small = {"channels": [8, 16], "hidden": 32}
    for loss in ("squared", "cross-entropy"):
        more: Any = {"loss": loss}
        found += [
            Case("mlp", width=512, options=wide, start="random", **more),
            Case("mlp", width=128, options=narrow, start="random", **more),
            Case("mlp", width=512, options=wide, momentum=0.9, **more),
            Case("mlp", width=512, options=wide, batch_size=30, **more),
            Case("mlp", width=512, options=wide, cosine=True, **more),
        ]
    for batchnorm in (False, True):
        found.append(Case("conv_net", "cross-entropy", options={**small, "batchnorm": batchnorm}))
    found.append(Case("vit", "cross-entropy"))
    return found


class SmallViT(nn.Module):
    """A vision transformer for images of 8 x 8: patches of 2 x 2, two blocks."""

    def __init__(self, *, classes: int, width: int = 24, heads: int = 3) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, width, 2, stride=2)
        self.position = nn.Parameter(0.02 * torch.randn(16, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(2)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, 1, 8, 8) to (batch, classes)."""
        tokens = self.patch(x).flatten(2).mT + self.position
        found: Tensor = self.head(self.norm(self.blocks(tokens)).mean(1))
        return found


class Block(nn.Module):
    """Attention and two layers, each behind a LayerNorm, each added."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.layers = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, tokens, width) to the same."""
        split = self.mix(self.before(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = split
        weights = (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1)
        x = x + self.out((weights @ value).transpose(1, 2).flatten(2))
        found: Tensor = x + self.layers(self.between(x))
        return found


def build(case: Case, *, seed: int) -> nn.Module:
    """Return a network with seeded weights."""
    if case.network == "vit":
        torch.manual_seed(seed)
        return SmallViT(classes=5)
    return build_network(case.network, data=SPEC, width=case.width, seed=seed, **case.options)


def start_of(case: Case, *, seed: int, known: Examples) -> tuple[nn.Module, float | None]:
    """Return the network that is fine-tuned, in eval mode, and what it learned before."""
    model, learned = build(case, seed=seed), None
    if case.start == "pre-trained":
        convolves = case.network != "mlp"
        how: Any = {"optimizer": "adam", "lr": 3e-3} if convolves else {"lr": 0.05}
        epochs = 15 if convolves else 5
        batches = known.batches(64, seed=seed)
        train(Task(model, batches), TrainingPlan(epochs=epochs, seed=seed, **how))
        learned = evaluate(model, {"accuracy": accuracy}, data=batches)["accuracy"]
        torch.manual_seed(100 + seed)
        model.head = nn.Linear(model.head.in_features, 5)  # type: ignore[union-attr, arg-type]
    return model.eval(), learned
