"""Many small tasks to learn to learn from: a few classes with a few examples each, or sinusoids."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from slipstream.evaluation import TaskBatch
from slipstream.testbed.datasets import DataSpec, Examples, load_data
from slipstream.testbed.omniglot import read_omniglot

HELD = 5  # of the 30 alphabets of Omniglot's background, for validation
VALIDATION_TASKS, TEST_TASKS, JUDGED_TOGETHER = 100, 1000, 20


@dataclass(frozen=True)
class TaskForm:
    """What a task is, as plain data."""

    ways: int = 5  # classes in a task; 1 for sinusoids
    shots: int = 1  # examples of each to learn from
    queries: int | None = None  # examples of each to be judged by; as many as shots if not given
    tasks: int = 4  # in a batch
    batches: int = 100  # in an epoch

    def __post_init__(self) -> None:
        for name in ("ways", "shots", "queries", "tasks", "batches"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")

    @property
    def examples(self) -> int:
        """Examples of a class in a task."""
        return self.shots + self.judged

    @property
    def judged(self) -> int:
        """Query examples of a class."""
        return self.shots if self.queries is None else self.queries


@dataclass(frozen=True)
class ClassTasks:
    """Batches of tasks: classes drawn at random, under labels of their own.

    Iterating twice gives the same tasks; `epoch(n)` gives those of another epoch. The examples of
    a task lie class by class, and its labels, from 0 to ways - 1, have no meaning beyond it.

    Example:
        >>> tasks = ClassTasks(torch.zeros(7, 4, 2), TaskForm(ways=3, shots=2, tasks=5))
        >>> support, query = next(iter(tasks))
        >>> support[0].shape, support[1][0].tolist()
        (torch.Size([5, 6, 2]), [0, 0, 1, 1, 2, 2])
    """

    examples: Tensor  # float32, (classes, examples, *shape)
    form: TaskForm
    turned: bool = False  # images after one, two and three quarter turns are classes of their own
    seed: int = 0
    number: int = 0  # of the epoch

    def __post_init__(self) -> None:
        known, there = self.classes, self.examples.shape[1]
        if self.form.ways > known:
            raise ValueError(f"ways is {self.form.ways}, but there are {known} classes to draw.")
        if self.form.examples > there:
            raise ValueError(
                f"A task takes {self.form.shots} shots + {self.form.judged} queries of each class, "
                f"but there are {there} examples of a class: take fewer."
            )

    @property
    def classes(self) -> int:
        """How many classes there are to draw from."""
        return len(self.examples) * (4 if self.turned else 1)

    def __len__(self) -> int:
        return self.form.batches

    def __iter__(self) -> Iterator[TaskBatch]:
        for number in range(len(self)):
            yield self.batch(number)

    def epoch(self, number: int) -> "ClassTasks":
        """Return the tasks of epoch `number`, counted from 0."""
        return replace(self, number=number)

    def batch(self, number: int) -> TaskBatch:
        """Return a batch of the epoch, by its number."""
        form, generator = self.form, np.random.default_rng((self.seed, self.number, number))
        drawn = generator.random((form.tasks, self.classes)).argpartition(form.ways - 1, axis=1)
        classes = generator.permuted(drawn[:, : form.ways], axis=1)  # (tasks, ways)
        there = self.examples.shape[1]
        order = generator.random((*classes.shape, there)).argsort(-1)[..., : form.examples]
        turns, own = np.divmod(classes, len(self.examples))
        chosen = self.examples[torch.from_numpy(own)[..., None], torch.from_numpy(order)]
        for turn in range(1, 4) if self.turned else ():
            where = torch.from_numpy(turns == turn)
            chosen[where] = torch.rot90(chosen[where], turn, dims=(-2, -1))
        labels = torch.arange(form.ways).expand(form.tasks, -1)
        return TaskBatch(
            (chosen[:, :, : form.shots].flatten(1, 2), labels.repeat_interleave(form.shots, 1)),
            (chosen[:, :, form.shots :].flatten(1, 2), labels.repeat_interleave(form.judged, 1)),
        )


@dataclass(frozen=True)
class SinusoidTasks:
    """Batches of regressions of a sin(x - p), with x in ±5, a in [0.1, 5] and p in [0, pi].

    Source: "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks" (Finn, Abbeel,
    Levine, 2017), section 5.1.

    Example:
        >>> tasks = SinusoidTasks(TaskForm(ways=1, shots=10, tasks=2, batches=1))
        >>> [tuple(part.shape) for part in next(iter(tasks)).support]
        [(2, 10, 1), (2, 10, 1)]
    """

    form: TaskForm
    seed: int = 0
    number: int = 0  # of the epoch

    def __len__(self) -> int:
        return self.form.batches

    def __iter__(self) -> Iterator[TaskBatch]:
        for number in range(len(self)):
            yield self.batch(number)

    def epoch(self, number: int) -> "SinusoidTasks":
        """Return the tasks of epoch `number`, counted from 0."""
        return replace(self, number=number)

    def batch(self, number: int) -> TaskBatch:
        """Return a batch of the epoch, by its number."""
        generator = np.random.default_rng((self.seed, self.number, number))
        size = (self.form.tasks, 1, 1)
        height, phase = generator.uniform(0.1, 5, size), generator.uniform(0, math.pi, size)
        x = generator.uniform(-5, 5, (self.form.tasks, self.form.examples, 1))
        places, values = (
            torch.from_numpy(v.astype(np.float32)) for v in (x, height * np.sin(x - phase))
        )
        cut = self.form.shots
        return TaskBatch((places[:, :cut], values[:, :cut]), (places[:, cut:], values[:, cut:]))


@dataclass(frozen=True)
class TaskSplit:
    """Tasks in three parts that share no class; the test part is for reporting."""

    spec: DataSpec
    train: ClassTasks | SinusoidTasks
    validation: ClassTasks | SinusoidTasks
    test: ClassTasks | SinusoidTasks


def load_tasks(spec: str, form: TaskForm, *, seed: int = 0) -> TaskSplit:
    """Make tasks of a data set, with classes held out for validation and test.

    Args:
        spec: `omniglot:DIR`: trained on characters of 25 alphabets, each of the quarter turns a
            class, judged by those of 20 others, validated by those of 5; `digits`: trained on the
            digits 0 to 4 and their quarter turns, judged by 7 to 9; or `sinusoid`.
        form: What a task is.
        seed: Of the tasks.

    Returns:
        The three parts. Those for validation, 100 tasks, and for test, 1000, are the same for
        every seed.

    Raises:
        ValueError: If the data set is unknown or its classes are too few or too small.
        FileNotFoundError: If a file is missing.

    Example:
        >>> split = load_tasks("digits", TaskForm(ways=5, shots=2))
        >>> split.train.classes, split.test.classes, split.spec.shape
        (20, 12, (1, 8, 8))
    """
    name, _, folder = spec.partition(":")
    sizes = {"validation": VALIDATION_TASKS, "test": TEST_TASKS}
    forms = {"train": form} | {
        part: replace(form, tasks=JUDGED_TOGETHER, batches=size // JUDGED_TOGETHER)
        for part, size in sizes.items()
    }
    seeds = {"train": seed, "validation": 0, "test": 1}
    if name == "sinusoid" and not folder:
        if form.ways != 1:
            raise ValueError(f"ways must be 1 for sinusoids, got {form.ways}.")
        drawn = {part: SinusoidTasks(own, seeds[part]) for part, own in forms.items()}
        return TaskSplit(DataSpec(name, (1,), 1), **drawn)
    if name == "digits" and not folder:
        parts = _digits()
    elif name == "omniglot" and folder:
        parts = _omniglot(folder)
    else:
        raise ValueError(f"data must be digits, omniglot:DIR or sinusoid, got {spec!r}.")
    turned = {part: part == "train" or name == "digits" for part in parts}
    tasks = {p: ClassTasks(e, forms[p], turned[p], seeds[p]) for p, e in parts.items()}
    return TaskSplit(DataSpec(name, tuple(parts["train"].shape[2:]), form.ways), **tasks)


def by_class(examples: Examples) -> Tensor:
    """Return the inputs class by class, as many of each as the smallest class has.

    Returns:
        Inputs, (classes, examples, *shape).

    Example:
        >>> by_class(Examples(torch.tensor([5, 6, 7]), torch.tensor([1, 0, 1]))).tolist()
        [[6], [5]]
    """
    groups = [examples.inputs[examples.labels == label] for label in torch.unique(examples.labels)]
    return torch.stack([group[: min(map(len, groups))] for group in groups])


def _digits() -> dict[str, Tensor]:
    data = load_data("digits")
    whole = [getattr(data, part) for part in ("train", "validation", "test")]
    classes = by_class(
        Examples(torch.cat([p.inputs for p in whole]), torch.cat([p.labels for p in whole]))
    )
    return {"train": classes[:5], "validation": classes[5:7], "test": classes[7:]}


def _omniglot(folder: str) -> dict[str, Tensor]:
    background = read_omniglot(folder, part="background")
    alphabets = tuple(dict.fromkeys(background.alphabets))

    return {
        "train": background.of(*alphabets[:-HELD]).images,
        "validation": background.of(*alphabets[-HELD:]).images,
        "test": read_omniglot(folder, part="evaluation").images,
    }
