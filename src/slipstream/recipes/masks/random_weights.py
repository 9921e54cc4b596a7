"""Random weights that a seed and a few counters reproduce at any time."""

import math
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from slipstream.recipes.masks.plan import Initial


def counted_generator(seed: int, *counters: int) -> torch.Generator:
    """Return a generator on the CPU with a stream of its own for these counters.

    Args:
        seed: Of all streams.
        counters: Which stream: integers from 0.

    Returns:
        The same stream for the same integers, in any process.

    Raises:
        ValueError: If an integer is negative.

    Example:
        >>> one, again = (torch.rand(2, generator=counted_generator(7, 1, 2)) for _ in "ab")
        >>> torch.equal(one, again)
        True
    """
    if min((seed, *counters)) < 0:
        raise ValueError(f"A seed and its counters must not be negative, got {(seed, *counters)}.")
    stream = np.random.SeedSequence(seed, spawn_key=counters)
    return torch.Generator().manual_seed(int(np.random.default_rng(stream).integers(2**63)))


def fan_in(shape: tuple[int, ...]) -> int:
    """Return how many inputs an entry along the first axis has: the product of the other axes.

    Example:
        >>> fan_in((16, 3, 5, 5))
        75
    """
    return math.prod(shape[1:])


def draw(shape: tuple[int, ...], initial: Initial, *, generator: torch.Generator) -> Tensor:
    """Draw the weights of a layer with ReLU behind it, in float32 on the CPU.

    With n inputs (`fan_in`), the mean square is 2 / n in each case: `kaiming-uniform` is uniform in
    ±sqrt(6 / n), `signed-constant` is ±sqrt(2 / n), `kaiming-normal` is normal, and `constant` is
    sqrt(2 / n) everywhere, so that weights differ only by the mask.

    Source: "Delving Deep into Rectifiers" (He, Zhang, Ren, Sun, 2015), equation 10; the signed
    constant is from "What's Hidden in a Randomly Weighted Neural Network?" (Ramanujan, Wortsman,
    Kembhavi, Farhadi, Rastegari, 2020), section 4.

    Args:
        shape: Of the weight, outputs first; two axes or more.
        initial: From which distribution.
        generator: On the CPU; moves on.

    Returns:
        The weights.

    Raises:
        ValueError: If the distribution is unknown.

    Example:
        >>> draw((1, 8), "signed-constant", generator=counted_generator(0)).abs()
        tensor([[0.5000, 0.5000, 0.5000, 0.5000, 0.5000, 0.5000, 0.5000, 0.5000]])
    """
    deviation = math.sqrt(2 / max(fan_in(shape), 1))
    if initial == "kaiming-uniform":
        return (torch.rand(shape, generator=generator) * 2 - 1) * (deviation * math.sqrt(3))
    if initial == "signed-constant":
        return (torch.randint(2, shape, generator=generator) * 2 - 1) * deviation
    if initial == "kaiming-normal":
        return torch.randn(shape, generator=generator) * deviation
    if initial == "constant":
        return torch.full(shape, deviation)
    raise ValueError(f"initial must be one of {', '.join(get_args(Initial))}, got {initial!r}.")


_VALUES, _CHOICE, _SCORES = 0, 1, 2  # the first counter of a stream: what it is for


def values_of_round(
    shape: tuple[int, ...], initial: Initial, *, seed: int, tensor: int, number: int
) -> Tensor:
    """Return the values that a round draws for a weight: those at the start are of round 0.

    Args:
        shape: Of the weight.
        initial: From which distribution.
        seed: Of all values.
        tensor: The number of the weight among those that are masked.
        number: Of the round.

    Returns:
        The values, in float32 on the CPU; the same whenever they are asked for.
    """
    return draw(shape, initial, generator=counted_generator(seed, _VALUES, tensor, number))


def initial_scores(shape: tuple[int, ...], *, seed: int, tensor: int) -> Tensor:
    """Return the scores at the start: uniform in ±sqrt(6 / fan in)."""
    return draw(shape, "kaiming-uniform", generator=counted_generator(seed, _SCORES, tensor))


def redraw(
    values: Tensor,
    kept: Tensor,
    *,
    initial: Initial,
    share: float,
    seed: int,
    tensor: int,
    number: int,
) -> tuple[Tensor, Tensor]:
    """Re-initialise a random part of the pruned values; those that are kept stay.

    w <- m w + (1 - m) ((1 - b) w + b w'), with b Bernoulli of `share` and w' of the round.

    Source: "Pruning Randomly Initialized Neural Networks with Iterative Randomization" (Chijiwa
    et al., 2021), equation 3.

    Args:
        values: Of a weight.
        kept: m, where the values stay; bool, as the values.
        initial: From which distribution the new ones are.
        share: Of the pruned values, in [0, 1], about.
        seed: Of all values.
        tensor: The number of the weight among those that are masked.
        number: Of the round, from 1.

    Returns:
        The new values, and where they are of this round.
    """
    shape = tuple(values.shape)
    fresh = values_of_round(shape, initial, seed=seed, tensor=tensor, number=number)
    generator = counted_generator(seed, _CHOICE, tensor, number)
    chosen = (torch.rand(shape, generator=generator) < share).to(kept.device) & ~kept
    return torch.where(chosen, fresh.to(values), values), chosen
