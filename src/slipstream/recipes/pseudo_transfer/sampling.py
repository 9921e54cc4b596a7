"""Examples from a conditional generator: of every class, or like given inputs."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from slipstream.recipes.modules import Frozen
from slipstream.recipes.pseudo_transfer.plan import Conditioning

Classifier = Callable[[Tensor], Tensor]  # inputs to logits
TRIAL = 8  # examples on which a source is tried before anything is trained


@dataclass(frozen=True)
class ConditionalGenerator:
    """A function that makes inputs of classes, and what labels it takes.

    `sample(labels, generator)` gets rows of probabilities, (examples, classes), if its labels are
    soft, and integers, (examples,), if they are hard; it takes all randomness from the
    `torch.Generator` and returns one input for each label.

    Example:
        >>> ConditionalGenerator(lambda labels, _: labels, classes=2).of(torch.tensor([1, 0]))
        tensor([[0., 1.],
                [1., 0.]])
    """

    sample: Callable[[Tensor, torch.Generator], Tensor]
    classes: int
    labels: Literal["soft", "hard"] = "soft"
    device: str = "cpu"  # of the labels and of the torch.Generator

    def __post_init__(self) -> None:
        if self.classes < 2:
            raise ValueError(f"classes must be at least 2, got {self.classes}.")
        if self.labels not in ("soft", "hard"):
            raise ValueError(f"labels must be soft or hard, got {self.labels!r}.")

    @torch.no_grad()
    def of(self, labels: Tensor, *, seed: int = 0) -> Tensor:
        """Make one input for each label.

        Args:
            labels: Classes, int64 (examples,); or, if the generator's labels are soft, rows of
                probabilities, (examples, classes).
            seed: Of the generator's randomness.

        Returns:
            Inputs, (examples, *shape).

        Raises:
            ValueError: If a label is of no class, or the generator does not take these labels, or
                does not give one finite input for each.
        """
        given = self._given(labels.to(self.device))
        randomness = torch.Generator(self.device).manual_seed(seed)
        try:
            inputs = self.sample(given, randomness)
        except Exception as error:
            raise ValueError(
                f"The generator fails on {self.labels} labels of shape {tuple(given.shape)}: "
                f"{type(error).__name__}: {error}.{self._repair()}"
            ) from error
        if not isinstance(inputs, Tensor) or inputs.dim() < 2 or len(inputs) != len(given):
            raise ValueError(
                f"The generator must give an input for each of {len(given)} {self.labels} labels, "
                f"got {_form(inputs)}.{self._repair()}"
            )
        if not bool(inputs.isfinite().all()):
            raise ValueError(
                f"The generator gives a NaN or an infinity for {self.labels} labels."
                f"{self._repair()}"
            )
        return inputs

    def _given(self, labels: Tensor) -> Tensor:
        """The labels as `sample` takes them."""
        if labels.is_floating_point():
            if self.labels == "hard":
                raise ValueError(f"The generator takes hard labels, no probabilities.{_SAMPLED}")
            if labels.dim() != 2 or labels.shape[1] != self.classes:
                raise ValueError(
                    f"Soft labels must have shape (examples, {self.classes}), got "
                    f"{tuple(labels.shape)}."
                )
            return labels
        if labels.dim() != 1 or bool(((labels < 0) | (labels >= self.classes)).any()):
            raise ValueError(
                f"Labels must be (examples,) classes from 0 to {self.classes - 1}, got "
                f"{tuple(labels.shape)} values up to {int(labels.max())}."
            )
        if self.labels == "hard":
            return labels
        return nn.functional.one_hot(labels, self.classes).to(torch.get_default_dtype())

    def _repair(self) -> str:
        """What to do about a generator that was said to take soft labels and does not."""
        return f' Declare it with labels="hard".{_SAMPLED}' if self.labels == "soft" else ""


_SAMPLED = ' Use conditioning="sampled", which draws one class for each input, or "uniform".'


@dataclass(frozen=True)
class SyntheticBatches:
    """Batches `(inputs, labels)` of a generator, every class as likely as any other.

    Iterating twice gives the same batches; `epoch(n)` gives those of another epoch. Nothing is
    kept: a batch is made when it is asked for.

    Example:
        >>> generator = ConditionalGenerator(lambda labels, _: labels, classes=3)
        >>> inputs, labels = next(iter(SyntheticBatches(generator, size=4, count=2)))
        >>> inputs.shape, torch.equal(inputs.argmax(1), labels)
        (torch.Size([4, 3]), True)
    """

    generator: ConditionalGenerator
    size: int  # of a batch
    count: int  # of an epoch
    seed: int = 0
    number: int = 0  # of the epoch

    def __post_init__(self) -> None:
        for name in ("size", "count"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for place in range(self.count):
            drawing = np.random.default_rng((self.seed, self.number, place))
            labels = torch.from_numpy(drawing.integers(self.generator.classes, size=self.size))
            labels = labels.to(self.generator.device)
            yield self.generator.of(labels, seed=int(drawing.integers(2**62))), labels

    def epoch(self, number: int) -> "SyntheticBatches":
        """Return the batches of epoch `number`, counted from 0."""
        return replace(self, number=number)


def class_probabilities(
    classifier: Classifier, inputs: Tensor, *, classes: int, temperature: float = 1.0
) -> Tensor:
    """Return what a source classifier says of inputs, softmax(C(x) / T).

    Args:
        classifier: Maps inputs to logits; a module is called in eval mode. Nothing of it changes.
        inputs: Of the target, (examples, *shape).
        classes: How many the source has.
        temperature: T, which makes the answers softer if it is above 1.

    Returns:
        Probabilities, (examples, classes).

    Raises:
        ValueError: If the logits have another shape or are not finite.

    Example:
        >>> class_probabilities(nn.Identity(), torch.zeros(1, 2), classes=2)
        tensor([[0.5000, 0.5000]])
    """
    with torch.no_grad():
        called = Frozen(classifier) if isinstance(classifier, nn.Module) else classifier
        logits = called(inputs)
    wanted = (len(inputs), classes)
    if not isinstance(logits, Tensor) or logits.shape != wanted:
        raise ValueError(
            f"classifier must give logits of shape {wanted}, one for each of the generator's "
            f"{classes} classes; it gives {_form(logits)}."
        )
    if not bool(logits.isfinite().all()):
        raise ValueError("classifier gives a NaN or an infinity.")
    return (logits.float() / temperature).softmax(-1)


def pseudo_samples(
    generator: ConditionalGenerator,
    classifier: Classifier | None,
    *,
    inputs: Tensor,
    conditioning: Conditioning = "soft",
    seed: int = 0,
) -> Tensor:
    """Make one source example for each target input, of the classes it looks like.

    With p = softmax C(x), `soft` gives p itself to the generator, a mixture of classes; `sampled`
    draws one class from p; `uniform` draws one class from all alike, and asks no classifier.

    Source: "Transfer Learning with Pre-trained Conditional Generative Models" (Yamaguchi, Kanai,
    Kumagai, Chijiwa, Kashima, 2022), pseudo conditional sampling, the first half of P-SSL.

    Args:
        generator: Of the source.
        classifier: Of the source; maps inputs to logits. Not used by `uniform`.
        inputs: Of the target, (examples, *shape).
        conditioning: How the classes are chosen.
        seed: Of the classes and of the generator's randomness.

    Returns:
        Inputs, (examples, *shape), on the device of `inputs`.

    Raises:
        ValueError: If the generator does not take soft labels, the classifier is missing or its
            logits do not fit, or there is no such choice.

    Example:
        >>> generator = ConditionalGenerator(lambda labels, _: labels, classes=2)
        >>> pseudo_samples(generator, nn.Identity(), inputs=torch.zeros(1, 2))
        tensor([[0.5000, 0.5000]])
    """
    check_conditioning(generator, classifier, conditioning)
    drawing = np.random.default_rng(seed)
    if conditioning == "uniform" or classifier is None:
        labels = torch.from_numpy(drawing.integers(generator.classes, size=len(inputs)))
    else:
        labels = class_probabilities(classifier, inputs, classes=generator.classes)
        if conditioning == "sampled":
            labels = _drawn(labels, drawing)
    return generator.of(labels, seed=int(drawing.integers(2**62))).to(inputs)


def check_conditioning(
    generator: ConditionalGenerator, classifier: Classifier | None, conditioning: str
) -> None:
    """Raise unless a generator and a classifier can be conditioned so; nothing is sampled."""
    if conditioning not in get_args(Conditioning):
        choices = ", ".join(get_args(Conditioning))
        raise ValueError(f"conditioning must be {choices}, got {conditioning!r}.")
    if conditioning == "soft" and generator.labels == "hard":
        raise ValueError(f"conditioning is soft, but the generator takes hard labels.{_SAMPLED}")
    if conditioning != "uniform" and classifier is None:
        raise ValueError(
            f'conditioning="{conditioning}" asks a classifier: give one, or use "uniform".'
        )


def check_same_shape(made: Tensor, inputs: Tensor) -> None:
    """Raise unless samples have the shape of the target's inputs."""
    if made.shape[1:] != inputs.shape[1:]:
        raise ValueError(
            f"The generator gives inputs of shape {tuple(made.shape[1:])}, those of the target "
            f"have shape {tuple(inputs.shape[1:])}: bring them to it inside `sample`."
        )


def _drawn(probabilities: Tensor, drawing: np.random.Generator) -> Tensor:
    """One class for each row, by inversion: the first whose cumulated probability exceeds u."""
    cumulated = probabilities.double().cumsum(1)
    heights = torch.from_numpy(drawing.random((len(cumulated), 1))).to(cumulated)
    # The last sum may be a little below 1, or u times it reach it: no class beyond the last.
    drawn = (cumulated <= heights * cumulated[:, -1:]).sum(1)
    return drawn.clamp_(max=probabilities.shape[1] - 1)


def _form(value: object) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
