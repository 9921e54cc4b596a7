"""The two networks of a transfer: the source along its path, the target where it is carried to."""

import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from slipstream.evaluation import Batch, Task, eval_mode, probe_determinism, weights_in
from slipstream.evaluation.processes import (
    of_all_processes,
    on_main_process,
    pool_statistics,
)
from slipstream.matching.activations import ActivationPair, activation_pair
from slipstream.matching.gradients import Gradient, GradientSampler
from slipstream.storage.fingerprints import fingerprint_of_batches
from slipstream.symmetry.neuron_groups import NeuronGroups
from slipstream.symmetry.outputs import output_tensors
from slipstream.symmetry.permutation import Permutation
from slipstream.trajectory import Trajectory
from slipstream.transfer.distance import classifies, output_distance
from slipstream.transfer.gradient_store import GradientStore
from slipstream.weights import Weights, check_shapes, first_nonfinite, parameter_names, weights_of


class Stopwatch:
    """Seconds by kind of work."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, kind: str) -> Generator[None]:
        """Count the seconds of a `with` block as `kind`; blocks are not nested."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(kind, time.perf_counter() - began)

    def add(self, kind: str, seconds: float) -> None:
        """Count `seconds` as `kind`."""
        self.seconds[kind] = self.seconds.get(kind, 0.0) + seconds


class BatchStream:
    """Batches in the data's own order, from the start again when it ends."""

    def __init__(self, data: Iterable[Batch]) -> None:
        self._data = data
        self._batches: Iterator[Batch] = iter(())

    def take(self, count: int) -> list[Batch]:
        """Return the next `count` batches.

        Args:
            count: How many.

        Returns:
            The batches; the same again and again if the data holds fewer.

        Raises:
            ValueError: If the data is empty, or a generator that has run out.
        """
        taken: list[Batch] = []
        for _ in range(count):
            batch = next(self._batches, None)
            if batch is None:
                self._batches = iter(self._data)
                batch = next(self._batches, None)
            if batch is None:
                raise ValueError(
                    "data is empty: there is no batch to take a gradient on. Data that can be "
                    "iterated once only (a generator) runs out: pass a list or a loader."
                )
            taken.append(batch)
        return taken


def calibration_of(task: Task, count: int) -> tuple[Batch, ...]:
    """Return the first batches for BatchNorm's statistics; none if these stay as they are."""
    given = task.calibration_batches
    unwanted = isinstance(given, tuple) and not given
    return () if unwanted else tuple(BatchStream(given).take(count))


@dataclass
class TransferState:
    """Weights, gradients and statistics of both networks, taken with one model in turn."""

    task: Task
    start: Weights  # of the target, buffers included
    excluded: frozenset[str]  # tensors that stay the target's own
    batches_per_gradient: int = 1
    batchnorm_batches: int = 2
    activation_batches: int = 4
    store: GradientStore = field(default_factory=GradientStore)
    clock: Stopwatch = field(default_factory=Stopwatch)
    kept_bytes: int = 0  # of the gradient pairs that the last matching held

    def __post_init__(self) -> None:
        task = self.task
        parameters = [name for name, _ in task.model.named_parameters()]
        self.carried = tuple(name for name in parameters if name not in self.excluded)
        self._calibrated: tuple[Weights, dict[str, Tensor]] | None = None  # the last one
        self.sampler = GradientSampler(
            task.model, task.loss, names=self.carried, batch_size=task.batch_size
        )
        self.data = BatchStream(task.data)
        self.unlabelled = BatchStream(task.unlabelled_batches)
        self.calibration = calibration_of(task, self.batchnorm_batches)
        self.first = self.calibration[0] if task.calibration is None else task.first_batch()

    def check_loss(self) -> None:
        """Raise if the loss is not a 0-dim tensor, or differs when it is taken twice."""
        task, first = self.task, self.first
        with eval_mode(task.model), weights_in(task.model, self.start), torch.no_grad():
            value = task.loss(task.model, task.to(first))
            if not isinstance(value, Tensor) or value.dim() > 0:
                got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
                raise ValueError(f"loss must return the batch's mean as a 0-dim tensor, got {got}.")
            probe = probe_determinism(
                task.model, task.loss, data=[first], batch_size=task.batch_size
            )
        if not probe.deterministic:
            raise ValueError(
                "The loss is not deterministic: the same batch gave "
                f"{probe.first_loss} and {probe.second_loss}. Suspected: "
                f"{', '.join(probe.suspects)}."
            )

    def source(self, path: Trajectory, stage: int, permutation: Permutation) -> Weights:
        """Return the source's weights at a stage of its path.

        Args:
            path: The run that is transferred.
            stage: A position of it.
            permutation: Source to target: excluded tensors are the target's own, permuted to the
                source's neurons.

        Returns:
            Weights that the model takes.
        """
        there = path[stage].weights
        weights = {name: there[name].to(self.start[name].device) for name in self.carried}
        own = {name: self.start[name] for name in self.excluded}
        return weights | permutation.invert().apply(own)

    def move(
        self, path: Trajectory, stage: int, permutation: Permutation, *, since: int | None = None
    ) -> dict[str, Tensor]:
        """Return how the source moves up to a stage, permuted, in float32 or better.

        Args:
            path: The run that is transferred.
            stage: A position of it.
            permutation: Source to target.
            since: The position that the move starts from; by default the one before `stage`.

        Returns:
            A displacement of every tensor that is carried.
        """
        first = self.source(path, stage - 1 if since is None else since, permutation)
        last = self.source(path, stage, permutation)
        return permutation.apply({n: _wide(last[n]) - _wide(first[n]) for n in self.carried})

    def displaced(self, weights: Weights, move: Weights) -> dict[str, Tensor]:
        """Return `weights + move` in the precision of `move`, then in the weights' own dtype."""
        return {
            name: (_wide(value) + move[name]).to(value.dtype) if name in move else value
            for name, value in weights.items()
        }

    def carry(
        self, start: Weights, path: Trajectory, stage: int, permutation: Permutation
    ) -> dict[str, Tensor]:
        """Return `start + permutation(path[stage] - path[0])`."""
        return self.displaced(start, self.move(path, stage, permutation, since=0))

    def calibrated(self, weights: Weights) -> dict[str, Tensor]:
        """Return `weights` with the BatchNorm statistics that they have on the data."""
        if not self.calibration:
            return dict(weights)
        if self._calibrated is None or self._calibrated[0] is not weights:
            with self.clock("batchnorm"):
                buffers = replace(self.task, calibration=self.calibration).recalibrated(weights)
                examples = sum(map(self.task.batch_size, self.calibration))
                buffers = pool_statistics(buffers, examples=examples)
            self._calibrated = weights, {**weights, **buffers}
        return self._calibrated[1]

    def gradient(
        self, weights: Weights, batches: list[Batch], batch_statistics: bool = True
    ) -> dict[str, Gradient]:
        """Return the gradient at `weights`; from the store if it is there.

        Args:
            weights: Where.
            batches: The gradient is their mean.
            batch_statistics: Whether BatchNorm normalises by each batch, as in training: gradients
                of two networks then agree much better, and so do their signs. Otherwise, and for
                batches of one example, its statistics are estimated first.

        Returns:
            A gradient for every tensor that is carried.
        """

        def compute() -> dict[str, Gradient]:
            own = batch_statistics and all(self.task.batch_size(batch) > 1 for batch in batches)
            there = weights if own else self.calibrated(weights)
            with self.clock("gradients"):
                return self.sampler.sample(there, batches, batch_statistics=own)

        seen = " ".join(of_all_processes(fingerprint_of_batches(batches)))
        found = self.store.get(batches=seen, compute=compute)
        return {name: found[name] for name in self.carried}

    def observed(
        self,
        path: Trajectory,
        position: int,
        weights: Weights,
        groups: NeuronGroups,
        batches: list[Batch],
    ) -> ActivationPair:
        """Return how the activations of source and target correlate.

        Args:
            path: The run that is transferred.
            position: A position of it: the source's weights there.
            weights: The target's.
            groups: What may be permuted.
            batches: What both are shown; labels are not looked at.

        Returns:
            What an objective takes.
        """
        there = self._source_at(path, position, groups)
        here = self.calibrated(weights)
        task = replace(self.task, data=batches, forward=self._feed)
        with self.clock("activations"):
            return on_main_process(lambda: activation_pair(there, here, task, groups=groups))

    def apart(
        self, path: Trajectory, weights: Weights, groups: NeuronGroups, batches: list[Batch]
    ) -> float:
        """Return how far the target's outputs are from those of the source's end.

        Args:
            path: The run that is transferred.
            weights: The target's.
            groups: What may be permuted.
            batches: What both are shown; labels are not looked at.

        Returns:
            The mean over the batches: of class probabilities the divergence, else half the squared
            distance; 0 of a model whose outputs cannot be seen.
        """
        there = self._source_at(path, len(path) - 1, groups)
        here = self.calibrated(weights)
        classes = classifies(self.task)

        def measured() -> float:
            total, weight = 0.0, 0
            for batch in batches:
                size = self.task.batch_size(batch)
                wanted, given = (self._outputs(w, batch) for w in (there, here))
                pairs = [p for p in zip(given, wanted, strict=True) if p[0].dim()]
                total += size * sum(float(output_distance(*pair, classes)) for pair in pairs)
                weight += size
            return total / weight if math.isfinite(total) else math.inf

        with self.clock("activations"):
            return on_main_process(measured)

    def _source_at(
        self, path: Trajectory, position: int, groups: NeuronGroups
    ) -> dict[str, Tensor]:
        source = self.source(path, position, Permutation.identity(groups))
        return self.calibrated({**self.start, **source})

    @property
    def _feed(self) -> Callable[[nn.Module, Batch], object]:
        # Labelled batches may be of a form that only the loss knows how to feed.
        return self.task.feed if self.task.unlabelled is None else self.task.forward

    def _outputs(self, weights: Weights, batch: Batch) -> list[Tensor]:
        """What the model returned while it was fed a batch."""
        model = self.task.model
        seen: list[Tensor] = []
        hook = model.register_forward_hook(
            lambda _, __, found: seen.extend(output_tensors(found).values())
        )
        try:
            with eval_mode(model), weights_in(model, weights), torch.no_grad():
                self._feed(model, self.task.to(batch))
        finally:
            hook.remove()
        return seen

    def next_unlabelled(self) -> list[Batch]:
        """Return the batches on which activations are matched next."""
        return self.unlabelled.take(self.activation_batches)

    def next_batches(self) -> list[Batch]:
        """Return the batches of the next stage's gradients."""
        return self.data.take(self.batches_per_gradient)


def complete_weights(model: nn.Module, given: Weights, name: str) -> dict[str, Tensor]:
    """Return the weights of an argument with all tensors of the model, in its dtype and device."""
    own = weights_of(model)
    for tensor in parameter_names(model):
        if tensor not in given:
            raise ValueError(f"{name} lacks the tensor {tensor!r} that the model has.")
    known = {n: value for n, value in given.items() if n in own or n not in _aliases(model)}
    check_shapes(known, {n: tuple(value.shape) for n, value in own.items()})
    if (bad := first_nonfinite(known)) is not None:
        raise ValueError(f"{name} holds a NaN or an infinity in {bad!r}.")
    return {
        n: known[n].detach().to(value) if n in known else value.clone() for n, value in own.items()
    }


def _aliases(model: nn.Module) -> set[str]:
    """Further names of tied tensors."""
    return {name for name, _ in model.named_parameters(remove_duplicate=False)} - {
        name for name, _ in model.named_parameters()
    }


def _wide(value: Tensor) -> Tensor:
    return value.to(torch.promote_types(value.dtype, torch.float32))
