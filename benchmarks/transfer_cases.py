"""The networks and data sets of transfer.py, and pairs of trained networks of each."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slipstream.evaluation import Task
from slipstream.named_task import NamedTask
from slipstream.symmetry.neuron_groups import NeuronGroups
from slipstream.symmetry.tracing import find_neuron_groups
from slipstream.training import TrainingPlan, train
from slipstream.trajectory import Trajectory
from slipstream.weights import clone, weights_of

LENGTH = 64  # characters of a piece of text


@dataclass(frozen=True)
class Text:
    """Batches of pieces of a text, drawn at random; `epoch(n)` draws others."""

    ids: Tensor
    size: int
    count: int
    seed: int
    number: int = 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(self.seed * 1000 + self.number)
        for _ in range(self.count):
            starts = torch.randint(len(self.ids) - LENGTH - 1, (self.size,), generator=generator)
            pieces = torch.stack([self.ids[start : start + LENGTH] for start in starts])
            yield {"input_ids": pieces, "labels": pieces}

    def epoch(self, number: int) -> "Text":
        """Return the batches of epoch `number`."""
        return replace(self, number=number)


def text_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Return the loss of the next character."""
    loss: Tensor = model(**batch).loss
    return loss


def text_outputs(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Return the logits."""
    logits: Tensor = model(input_ids=batch["input_ids"]).logits
    return logits


@dataclass(frozen=True)
class Gpt:
    """A GPT-2 for characters."""

    text: str  # a file
    width: int = 64
    layers: int = 2
    heads: int = 4
    batch_size: int = 32
    seed: int = 0

    def build(self) -> Task:
        """Build the model; validation and test are the last two twentieths of the text."""
        from transformers import GPT2Config, GPT2LMHeadModel

        text = Path(self.text).read_text(encoding="utf-8")
        characters = sorted(set(text))
        ids = torch.tensor([characters.index(character) for character in text])
        ends = [int(share * len(ids)) for share in (0.9, 0.95)]
        sizes = {"vocab_size": len(characters), "n_positions": LENGTH, "n_embd": self.width}
        special = {"bos_token_id": 0, "eos_token_id": 0}
        configuration = GPT2Config(
            **sizes, **special, n_layer=self.layers, n_head=self.heads, use_cache=False,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, loss_type="ForCausalLM",
        )  # fmt: skip
        torch.manual_seed(self.seed)
        return Task(
            GPT2LMHeadModel(configuration),
            Text(ids[: ends[0]], self.batch_size, 100, self.seed),
            text_loss,
            validation=Text(ids[ends[0] : ends[1]], 128, 4, 99),
            test=Text(ids[ends[1] :], 128, 8, 98),
            forward=text_outputs,
            example_input={"input_ids": ids[None, :LENGTH]},
        )


def image_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return the cross entropy of a model that wraps its logits."""
    return nn.functional.cross_entropy(model(batch[0]).logits, batch[1])


def image_accuracy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return its accuracy."""
    right: Tensor = model(batch[0]).logits.argmax(-1) == batch[1]
    return right.float().mean()


@dataclass(frozen=True)
class Vit:
    """A small vision transformer."""

    data: str
    examples: int = 10_000
    batch_size: int = 64
    seed: int = 0

    def build(self) -> Task:
        """Build the model and load the data."""
        from transformers import ViTConfig, ViTForImageClassification

        base = NamedTask(
            "mlp", self.data, width=1, examples=self.examples, batch_size=self.batch_size,
            seed=self.seed,
        ).build()  # fmt: skip
        configuration = ViTConfig(  # type: ignore[call-arg]
            image_size=28, patch_size=7, num_channels=1, hidden_size=64, num_hidden_layers=3,
            num_attention_heads=4, intermediate_size=128, num_labels=10,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )  # fmt: skip
        torch.manual_seed(self.seed)
        model = ViTForImageClassification(configuration)
        metrics = {"accuracy": image_accuracy}
        return replace(base, model=model, loss=image_loss, metrics=metrics)


@dataclass(frozen=True)
class Case:
    """A network on a data set, how it is trained, and on what batches gradients are taken."""

    setup: NamedTask | Gpt | Vit
    training: TrainingPlan
    gradient_batch: int = 128
    stages: int = 10  # of the studies with a fixed number of them
    pairs: int = 5  # networks in the ring
    tune_all: bool = False  # rates of rivals on every pair, not only on the first
    budgets: tuple[int, ...] = (5, 10, 20, 30)
    ladder: tuple[int, ...] = (60, 120, 240)  # gradients on the way to 99 %
    held: int = 2  # batches of validation data
    test: int = 4  # batches of test data
    metric: str = "accuracy"
    further_rates: tuple[float, ...] = (0.05, 0.01, 0.002)  # for training on


def cases(mnist: str, cifar10: str, text: str = "") -> dict[str, Case]:
    """Return the cases by name; all but those on digits need a folder, or the file of a text."""
    bn = {"channels": [32, 64, 128], "batchnorm": True}
    digits = TrainingPlan(epochs=20, lr=0.05)
    conv = TrainingPlan(epochs=3, lr=0.02, schedule="cosine")
    cifar = TrainingPlan(epochs=6, lr=0.1, weight_decay=5e-4, schedule="cosine")
    vit = TrainingPlan(epochs=5, lr=1e-3, optimizer="adamw", schedule="cosine")
    gpt = TrainingPlan(epochs=6, lr=2e-3, optimizer="adamw", schedule="cosine")
    few: dict[str, Any] = {"pairs": 3, "budgets": (5, 10, 20, 60), "stages": 20}
    words: dict[str, Any] = {"pairs": 3, "held": 4, "test": 8, "metric": "loss"}

    def images(name: str, data: str, **given: Any) -> NamedTask:
        return NamedTask(name, data, **{"examples": 10_000, "batch_size": 64, **given})

    return {
        "digits-2": Case(
            NamedTask("mlp", "digits", width=512, batch_size=32), digits, tune_all=True
        ),
        "digits-3": Case(
            NamedTask("mlp", "digits", width=512, options={"hidden_layers": 2}, batch_size=32),
            digits,
            tune_all=True,
        ),
        "mnist-mlp": Case(
            images("mlp", f"mnist:{mnist}", width=1024, examples=None),
            TrainingPlan(epochs=3, lr=0.02),
            further_rates=(0.02, 0.005),
        ),
        "mnist-conv": Case(images("conv_net", f"mnist:{mnist}"), conv, 256),
        "mnist-conv-bn": Case(images("conv_net", f"mnist:{mnist}", options=bn), conv, 256),
        "mnist-vit": Case(Vit(f"mnist:{mnist}"), vit, 256, pairs=3),
        "cifar10-conv8": Case(
            NamedTask("conv8", f"cifar10:{cifar10}", width=0.125, examples=25_000),
            cifar, 256, **few,
        ),
        "cifar10-resnet18": Case(
            NamedTask("resnet18", f"cifar10:{cifar10}", width=0.125, examples=25_000),
            cifar, 256, **few,
        ),
        "text-gpt": Case(Gpt(text), gpt, 128, **words),
        "text-gpt-large": Case(Gpt(text, width=256, layers=8), gpt, 128, **words),
    }  # fmt: skip


@dataclass(frozen=True)
class Trained:
    """A network's run: its snapshots at the start and after each epoch."""

    snapshots: list[dict[str, Tensor]]
    seconds: float


@dataclass(frozen=True)
class Pair:
    """A trained source and a target's start, with the target's own training's end."""

    experiment: Task  # trained on; its test data are not used to choose anything
    task: Task  # the same on the batches that gradients are taken on, and on less held-out data
    groups: NeuronGroups
    source: Trajectory
    start: dict[str, Tensor]
    trained: dict[str, Tensor]
    training_seconds: float


@dataclass
class Networks:
    """Trains the networks of a case once; with a folder, once for all."""

    case: Case
    folder: Path | None = None
    kept: dict[str, Trained] = field(default_factory=dict)

    def run(self, seed: int, *, scale: float = 1.0) -> Trained:
        """Return a network's run from the start of a seed, its matrices multiplied by `scale`."""
        key = f"{seed}-{scale:g}"
        file = None if self.folder is None else self.folder / f"{key}.pt"
        if key not in self.kept and file is not None and file.is_file():
            stored = torch.load(file, weights_only=True)
            self.kept[key] = Trained(stored["snapshots"], stored["seconds"])
        if key not in self.kept:
            self.kept[key] = self._trained(seed, scale)
            if file is not None:
                file.parent.mkdir(parents=True, exist_ok=True)
                torch.save(vars(self.kept[key]), file)
        return self.kept[key]

    def _trained(self, seed: int, scale: float) -> Trained:
        task = replace(self.case.setup, seed=self.case.setup.seed + seed).build()
        snapshots = [_scaled(task.model, scale)]
        began = time.perf_counter()
        run_training(task, self.case.training, snapshots=snapshots)
        found = Trained(snapshots, time.perf_counter() - began)
        print(f"  trained seed {seed}: {found.seconds:.0f} s", flush=True)
        return found

    def pair(self, number: int, pairs: int, *, scale: float = 1.0) -> Pair:
        """Pair network `number` of a ring with the next one."""
        case = self.case
        source = self.run(number, scale=scale)
        target = self.run((number + 1) % max(pairs, 2), scale=scale)
        setup = replace(case.setup, seed=case.setup.seed + number)
        experiment = setup.build()
        task = replace(setup, batch_size=case.gradient_batch).build()
        return Pair(
            experiment,
            replace(
                task,
                model=experiment.model,
                validation=_first(task.part("validation"), case.held),
                test=_first(task.part("test"), case.test),
            ),
            find_neuron_groups(experiment.model, experiment.example()),
            Trajectory.from_weights(source.snapshots),
            target.snapshots[0],
            target.snapshots[-1],
            target.seconds,
        )


def run_training(
    experiment: Task, plan: TrainingPlan, *, snapshots: list[dict[str, Tensor]]
) -> None:
    """Train from where the model is; a snapshot at the end of every epoch."""
    train(
        experiment,
        plan,
        on_epoch=lambda *_: snapshots.append(clone(weights_of(experiment.model))),
    )


def _first(batches: Iterable[Any], count: int) -> list[Any]:
    return [batch for batch, _ in zip(batches, range(count), strict=False)]


def _scaled(model: nn.Module, scale: float) -> dict[str, Tensor]:
    """Multiply all matrices and filters of a model, and return a copy of its weights."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(scale)
    return clone(weights_of(model))
