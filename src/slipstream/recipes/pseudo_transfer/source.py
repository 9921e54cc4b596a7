"""What there is of a source instead of its data, and calls of version 0.1 that gave it in parts."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from typing import Any, TypeVar

from torch import Tensor, nn

from slipstream.recipes.pseudo_transfer.augmentation import Augmentation
from slipstream.recipes.pseudo_transfer.plan import Conditioning
from slipstream.recipes.pseudo_transfer.sampling import (
    Classifier,
    ConditionalGenerator,
    pseudo_samples,
)

R = TypeVar("R")


@dataclass(frozen=True)
class PseudoSource:
    """A source without its data: a generator of its examples, and a classifier of its classes.

    Example:
        >>> PseudoSource(ConditionalGenerator(lambda labels, _: labels, classes=3)).classes
        3
    """

    generator: ConditionalGenerator | None = None  # makes inputs of the target's shape
    classifier: Classifier | None = None  # maps target inputs to logits of the source's classes
    classes: int = 0  # of the source; the generator's if there is one
    head: nn.Module | None = None  # for the source's classes; by default one like the model's own
    weak: Augmentation | None = None  # the weak change of samples; by default the consistency's
    strong: Augmentation | None = None  # the strong change of samples

    def __post_init__(self) -> None:
        known = self.generator.classes if self.generator else self.classes
        if self.classes and self.classes != known:
            raise ValueError(f"classes is {self.classes}, but the generator has {known}.")
        if known < 2:
            raise ValueError(
                "A source needs a generator, or a classifier and how many classes it has."
            )
        object.__setattr__(self, "classes", known)

    @property
    def maker(self) -> ConditionalGenerator:
        """The generator.

        Raises:
            ValueError: If there is none.
        """
        if self.generator is None:
            raise ValueError("The source has no generator: give PseudoSource(generator=...).")
        return self.generator

    def samples(self, inputs: Tensor, *, conditioning: Conditioning, seed: int = 0) -> Tensor:
        """Return one example of the source for each target input, as of `pseudo_samples`."""
        return pseudo_samples(
            self.maker, self.classifier, inputs=inputs, conditioning=conditioning, seed=seed
        )


_BEFORE = {"source_head": "head"}  # what some fields were called as arguments
_DATA = ("real", "target")


def takes_source(function: Callable[..., R]) -> Callable[..., R]:
    """Let a model, a generator and a classifier be passed one by one, as in version 0.1.

    Args:
        function: Has a parameter `source`, a `PseudoSource`.

    Returns:
        The function, which makes the source of what belongs to it in a call of 0.1.
    """
    names = {field.name for field in fields(PseudoSource)} - {"head"} | _BEFORE.keys()

    @wraps(function)
    def call(*args: Any, **given: Any) -> R:
        if "model" not in given and not (args and isinstance(args[0], nn.Module)):
            return function(*args, **given)
        parts = {_BEFORE.get(n, n): given.pop(n) for n in names & given.keys()}
        rest = []
        for one in args:
            if isinstance(one, ConditionalGenerator):
                parts["generator"] = one
            else:
                rest.append(one)
        for name in _DATA:
            if given.get(name) is not None:
                given["data"] = given[name]
            given.pop(name, None)
        return function(*rest, **given, source=PseudoSource(**parts))

    return call
