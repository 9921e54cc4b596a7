"""The two networks of a transfer: the source along its path, the target where it was carried to."""

import hashlib
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from slipstream.evaluation import Batch, Loss, batch_size, recalibrate_batchnorm
from slipstream.evaluation.determinism import batch_digest
from slipstream.matching.gradients import GradientSampler
from slipstream.matching.low_rank import Gradient
from slipstream.symmetry.permutation import Permutation
from slipstream.trajectory import Trajectory
from slipstream.transfer.gradient_store import GradientStore
from slipstream.transfer.processes import of_all_processes, pool_statistics
from slipstream.weights import Weights


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


def fingerprint(batches: Iterable[Batch]) -> str:
    """Return a short text that differs where the batches differ, in any process."""
    digest = hashlib.blake2b(digest_size=16)
    for batch in batches:
        digest.update(batch_digest(batch))
    return " ".join(of_all_processes(digest.hexdigest()))


@dataclass
class Networks:
    """Weights, gradients and statistics of both networks, taken with one model in turn."""

    model: nn.Module
    loss: Loss
    start: Weights  # of the target, buffers included
    excluded: frozenset[str]  # tensors that stay the target's own
    data: BatchStream
    batches_per_gradient: int
    calibration: list[Batch]  # for BatchNorm
    store: GradientStore
    clock: Stopwatch = field(default_factory=Stopwatch)
    kept_bytes: int = 0  # of the gradient pairs that the last matching held

    def __post_init__(self) -> None:
        parameters = [name for name, _ in self.model.named_parameters()]
        self.carried = tuple(name for name in parameters if name not in self.excluded)
        self._calibrated: tuple[Weights, dict[str, Tensor]] | None = None  # the last one
        self.sampler = GradientSampler(self.model, self.loss, names=self.carried)

    def source(self, path: Trajectory, stage: int, permutation: Permutation) -> Weights:
        """Return the source's weights at a stage of its path.

        Args:
            path: The run that is transferred.
            stage: A position of it.
            permutation: Source to target: excluded tensors are the target's own, laid over the
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
        """Return how the source moves up to a stage, laid over the target, in float32 or better.

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
        if self._calibrated is None or self._calibrated[0] is not weights:
            with self.clock("batchnorm"):
                buffers = recalibrate_batchnorm(
                    self.model, weights=weights, data=self.calibration, forward=self.loss
                )
                buffers = pool_statistics(buffers, examples=sum(map(batch_size, self.calibration)))
            self._calibrated = weights, {**weights, **buffers}
        return self._calibrated[1]

    def gradient(
        self, weights: Weights, batches: list[Batch], *, batch_statistics: bool = False
    ) -> dict[str, Gradient]:
        """Return the gradient at `weights`; from the store if it is there.

        Args:
            weights: Where.
            batches: The gradient is their mean.
            batch_statistics: Whether BatchNorm normalises by each batch; by default its statistics
                are estimated anew first.

        Returns:
            A gradient for every tensor that is carried.
        """

        def compute() -> dict[str, Gradient]:
            there = weights if batch_statistics else self.calibrated(weights)
            with self.clock("gradients"):
                return self.sampler.sample(there, batches, batch_statistics=batch_statistics)

        found = self.store.get(batches=fingerprint(batches), compute=compute)
        return {name: found[name] for name in self.carried}

    def next_batches(self) -> list[Batch]:
        """Return the batches of the next stage's gradients."""
        return self.data.take(self.batches_per_gradient)


def _wide(value: Tensor) -> Tensor:
    return value.to(torch.promote_types(value.dtype, torch.float32))
