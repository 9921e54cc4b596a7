"""A data set split among clients, alike or unlike one another."""

import numpy as np
import torch

from slipstream.testbed.datasets import Examples


def split_among_clients(
    examples: Examples, clients: int, *, alpha: float | None = None, seed: int = 0
) -> list[Examples]:
    """Split examples into parts that have none in common.

    Args:
        examples: What to split.
        clients: How many parts.
        alpha: If given, the shares of each class are drawn from a Dirichlet distribution with this
            parameter: the smaller, the more unlike the parts. Else all parts are drawn alike.
        seed: Of the split.

    Returns:
        The parts, none of them empty.

    Raises:
        ValueError: If there are fewer examples than clients, or `alpha` is not above 0.

    Example:
        >>> examples = Examples(torch.zeros(7, 1), torch.tensor([0, 0, 0, 0, 1, 1, 1]))
        >>> [len(part) for part in split_among_clients(examples, 3)]
        [3, 2, 2]
    """
    if not 1 <= clients <= len(examples):
        raise ValueError(f"clients must be between 1 and {len(examples)} examples, got {clients}.")
    if alpha is not None and not alpha > 0:
        raise ValueError(f"alpha must be above 0, or not given for parts alike, got {alpha}.")
    generator = np.random.default_rng(seed)
    if alpha is None:
        places = np.array_split(generator.permutation(len(examples)), clients)
    else:
        places = _unlike(examples.labels.numpy(), clients, alpha, generator)
    return [Examples(examples.inputs[at], examples.labels[at]) for at in map(_tensor, places)]


def _unlike(
    labels: np.ndarray, clients: int, alpha: float, generator: np.random.Generator
) -> list[np.ndarray]:
    """Places of each part: of every class, shares that a Dirichlet distribution gives."""
    parts: list[list[np.ndarray]] = [[] for _ in range(clients)]
    for label in np.unique(labels):
        places = generator.permutation(np.flatnonzero(labels == label))
        ends = np.cumsum(generator.dirichlet([alpha] * clients))[:-1] * len(places)
        for part, chosen in zip(parts, np.split(places, ends.astype(int)), strict=True):
            part.append(chosen)
    found = [np.concatenate(part) for part in parts]
    for empty in (number for number, part in enumerate(found) if not len(part)):
        largest = max(range(clients), key=lambda number: len(found[number]))
        found[empty], found[largest] = found[largest][:1], found[largest][1:]
    return found


def _tensor(places: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(places)
