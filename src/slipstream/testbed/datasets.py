"""Small real data sets, split into train, validation and test, and batches of them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from slipstream.testbed.corruptions import split_name
from slipstream.testbed.files import Raw, read_cifar10, read_mnist

VALIDATION_SHARE = 0.1  # of the training examples
DIGITS_TEST_SHARE = 0.2  # scikit-learn's digits come without a test part


@dataclass(frozen=True)
class DataSpec:
    """What a network must know of a data set."""

    name: str
    shape: tuple[int, ...]  # of one input
    classes: int


@dataclass(frozen=True)
class Examples:
    """Inputs and their labels."""

    inputs: Tensor  # float32, (examples, *shape)
    labels: Tensor  # int64, (examples,)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, count: int) -> "Examples":
        """Return the first `count` examples."""
        return Examples(self.inputs[:count], self.labels[:count])

    def batches(self, size: int, *, seed: int | None = None) -> "Batches":
        """Return the examples in batches of `size`, shuffled if a seed is given."""
        return Batches(self, size, seed=seed)


@dataclass(frozen=True)
class DataSplit:
    """A data set in three parts; the test part is for reporting, never for choosing."""

    spec: DataSpec
    train: Examples
    validation: Examples
    test: Examples


@dataclass(frozen=True)
class Batches:
    """Batches `(inputs, labels)` in an order that depends on seed and epoch alone.

    Iterating twice gives the same batches; `epoch(n)` gives those of another epoch. The last
    batch holds what is left over.

    Example:
        >>> examples = Examples(torch.zeros(5, 2), torch.arange(5))
        >>> [labels.tolist() for _, labels in Batches(examples, 3)]
        [[0, 1, 2], [3, 4]]
    """

    examples: Examples
    size: int
    seed: int | None = None  # None keeps the order
    number: int = 0  # of the epoch

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"The size of a batch must be at least 1, got {self.size}.")

    def __len__(self) -> int:
        return -(-len(self.examples) // self.size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = self._order()
        for start in range(0, len(order), self.size):
            chosen = order[start : start + self.size]
            yield self.examples.inputs[chosen], self.examples.labels[chosen]

    def epoch(self, number: int) -> "Batches":
        """Return the batches of epoch `number`, counted from 0."""
        return replace(self, number=number)

    def _order(self) -> Tensor:
        if self.seed is None:
            return torch.arange(len(self.examples))
        # numpy mixes both numbers into the seed: (0, 1) and (1, 0) are unrelated.
        generator = np.random.default_rng((self.seed, self.number))
        return torch.from_numpy(generator.permutation(len(self.examples)))


def load_data(spec: str, *, seed: int = 0) -> DataSplit:
    """Load a data set, standardised by the mean and deviation of its training part.

    Args:
        spec: `digits` (comes with scikit-learn), or `mnist:DIR` or `cifar10:DIR`, with the folder
            that holds the data set in its usual layout. `+permuted`, `+turned` or `+inverted` after
            the name changes the images, all in the same way: `digits+turned`, `mnist+turned:DIR`.
        seed: Chooses the validation examples; the test examples do not depend on it.

    Returns:
        Train, validation (a tenth of the training files, every class alike) and test.

    Raises:
        ValueError: If the data set is unknown or a file is not what its name says.
        FileNotFoundError: If a file is missing, with what was expected and what is there.

    Example:
        >>> data = load_data("digits")
        >>> len(data.train), len(data.validation), len(data.test)
        (1295, 143, 359)
    """
    name, change, folder = split_name(spec)
    if name == "digits" and not folder:
        train, test = _digits()
    elif name == "mnist" and folder:
        train, test = read_mnist(folder)
    elif name == "cifar10" and folder:
        train, test = read_cifar10(folder)
    else:
        raise ValueError(f"data must be digits, mnist:DIR or cifar10:DIR, got {spec!r}.")
    kept, held = _stratified(train.labels, VALIDATION_SHARE, seed=seed)
    mean, deviation = _statistics(train.images[kept])
    parts = [(train, kept), (train, held), (test, np.arange(len(test.labels)))]
    examples = [_examples(raw, at, mean, deviation) for raw, at in parts]
    if change:
        examples = [replace(part, inputs=change(part.inputs)) for part in examples]
    shape, classes = tuple(examples[0].inputs.shape[1:]), int(train.labels.max()) + 1
    return DataSplit(DataSpec(name, shape, classes), *examples)


def _digits() -> tuple[Raw, Raw]:
    from sklearn.datasets import load_digits  # slow to import, and only needed here

    digits = load_digits()
    images, labels = digits.images.astype(np.uint8)[:, None], digits.target.astype(np.int64)
    train, test = _stratified(labels, DIGITS_TEST_SHARE, seed=0)
    return Raw(images[train], labels[train]), Raw(images[test], labels[test])


def _stratified(labels: np.ndarray, share: float, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Places of the examples that stay and of those taken out: `share` of each class, rounded."""
    generator = np.random.default_rng(seed)
    taken = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        places = generator.permutation(np.flatnonzero(labels == label))
        taken[places[: round(share * len(places))]] = True
    return np.flatnonzero(~taken), np.flatnonzero(taken)


def _statistics(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of each channel, from the counts of the 256 values a pixel can have."""
    values = np.arange(256)
    counts = np.stack([np.bincount(c.ravel(), minlength=256) for c in images.swapaxes(0, 1)])
    shares = counts / counts.sum(1, keepdims=True)  # (channels, 256)
    mean = shares @ values
    deviation = np.sqrt((shares * (values - mean[:, None]) ** 2).sum(1))
    return mean, np.where(deviation > 0, deviation, 1.0)


def _examples(raw: Raw, at: np.ndarray, mean: np.ndarray, deviation: np.ndarray) -> Examples:
    images = torch.from_numpy(raw.images[at]).float()
    shift, scale = (torch.from_numpy(v).float().view(-1, 1, 1) for v in (mean, deviation))
    return Examples(images.sub_(shift).div_(scale), torch.from_numpy(raw.labels[at]))
