"""What a learned neuron is compared with on the same streams: class means, online SGD, replay."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from slipstream.evaluation import TaskBatch
from slipstream.recipes.meta_neuron.neuron import MetaNeuron
from slipstream.recipes.meta_neuron.plan import Order
from slipstream.recipes.meta_neuron.streams import as_streams, share_right


@dataclass(frozen=True)
class ClassMeans:
    """The accuracy of the nearest class mean, which a stream in any order gives alike.

    Example:
        >>> support = torch.tensor([[[0.0], [2.0], [9.0]]]), torch.tensor([[0, 0, 1]])
        >>> query = torch.tensor([[[4.0], [6.0]]]), torch.tensor([[0, 1]])
        >>> ClassMeans()(nn.Identity(), TaskBatch(support, query))
        tensor(1.)
    """

    def __call__(self, model: nn.Module, batch: TaskBatch) -> Tensor:
        """Return the mean over the query examples of all tasks; the model is not looked at."""
        (inputs, labels), (queries, truth) = batch
        inputs, queries = inputs.flatten(2), queries.flatten(2)
        members = nn.functional.one_hot(labels).to(inputs)  # (streams, steps, classes)
        means = members.mT @ inputs / members.sum(1)[..., None]
        return share_right(-torch.cdist(queries, means), truth)


@dataclass(frozen=True)
class OnlineSGD:
    """The accuracy of a ReLU network after one pass of SGD over the stream, an example a step.

    The networks have the sizes of the `MetaNeuron` that is given as the model. With `replay`, each
    keeps so many examples, drawn evenly from the past, and takes all of them into every step.
    """

    rate: float
    order: Order = "class"
    replay: int = 0  # examples kept
    seed: int = 0

    def __call__(self, model: nn.Module, batch: TaskBatch) -> Tensor:
        """Return the mean over the query examples of all tasks.

        Raises:
            TypeError: If the model is no `MetaNeuron`.
        """
        if not isinstance(model, MetaNeuron):
            raise TypeError(f"OnlineSGD takes a MetaNeuron, got a {type(model).__name__}.")
        generator = torch.Generator().manual_seed(self.seed)
        (inputs, labels), (queries, truth) = as_streams(batch, self.order, generator)
        inputs, queries = inputs.flatten(2), queries.flatten(2)
        weights = _kaiming(model.sizes, len(labels), generator)
        kept: list[int] = []
        with torch.enable_grad():
            for step in range(labels.shape[1]):
                at = [step, *kept]
                each = nn.functional.cross_entropy(
                    _outputs(weights, inputs[:, at]).flatten(0, 1),
                    labels[:, at].flatten(),
                    reduction="none",
                ).view(len(labels), -1)
                # The streams do not meet: the gradient of the sum is that of each.
                slopes = torch.autograd.grad(each.mean(1).sum(), weights)
                with torch.no_grad():
                    for weight, slope in zip(weights, slopes, strict=True):
                        weight.sub_(slope, alpha=self.rate)
                self._keep(kept, step, generator)
        return share_right(_outputs(weights, queries), truth)

    def _keep(self, kept: list[int], step: int, generator: torch.Generator) -> None:
        """Reservoir sampling: all examples so far are kept with the same chance."""
        if len(kept) < self.replay:
            kept.append(step)
        elif self.replay:
            place = int(torch.randint(step + 1, (), generator=generator))
            if place < self.replay:
                kept[place] = step


def equal_replay(neuron: MetaNeuron, *, example_bytes: int) -> int:
    """Return how many examples fit into the memory that a neuron's network has beyond its weights.

    Args:
        neuron: The maps; the states of the units are counted in float32.
        example_bytes: Of an example and its label.

    Returns:
        Examples, at least one.

    Example:
        >>> equal_replay(MetaNeuron((64, 32, 32, 10)), example_bytes=65)
        22
    """
    return max(1, sum(neuron.sizes[1:]) * neuron.channels * 4 // example_bytes)


def _kaiming(sizes: tuple[int, ...], streams: int, generator: torch.Generator) -> list[Tensor]:
    """Weights and biases of each layer, for each stream."""
    made = []
    for before, after in pairwise(sizes):
        drawn = torch.randn(streams, before, after, generator=generator) * (2 / before) ** 0.5
        made += [drawn.requires_grad_(), torch.zeros(streams, 1, after, requires_grad=True)]
    return made


def _outputs(weights: list[Tensor], inputs: Tensor) -> Tensor:
    for number in range(0, len(weights), 2):
        inputs = torch.baddbmm(
            weights[number + 1], inputs.relu() if number else inputs, weights[number]
        )
    return inputs
