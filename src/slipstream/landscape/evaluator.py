"""Metrics at many points of weight space: batched where that is faster, one at a time elsewhere."""

import math
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn.modules.conv import _ConvNd

from slipstream.evaluation import (
    Batch,
    Metric,
    Task,
    batchnorm_layers,
    device_of,
    eval_mode,
    evaluate,
    probe_determinism,
    takes_task,
    weights_in,
)
from slipstream.evaluation.batches import sized_batches
from slipstream.evaluation.executors import is_spread, spread
from slipstream.evaluation.swapped_weights import functional_call
from slipstream.landscape.point_store import PointStore
from slipstream.landscape.points import Corners, check_corners, named_weights
from slipstream.storage.fingerprints import fingerprint
from slipstream.weights import Weights, weights_of

Progress = Callable[[int, int], object]  # points done, and in all

_MEMORY = {"cpu": 4 << 20, "cuda": 1 << 30}  # bytes; on a CPU a chunk should stay in its cache
_WORTH_BATCHING = 4  # points
_JOBS = 32  # that the points are sent to an executor in


@takes_task
def evaluate_points(
    corners: Sequence[Weights] | Mapping[str, Weights],
    coefficients: Tensor,
    task: Task,
    *,
    metrics: Mapping[str, Metric] | None = None,
    memory: int | None = None,
    resume: str | Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """Return the mean of every metric over `task.data` at the points `coefficients @ corners`.

    All points see the same batches, which are read once and kept in memory, in eval mode. With
    `resume`, computed points are kept in a file, also after Ctrl-C, and a second call continues
    where the first one stopped; the values are the same to the bit.

    Args:
        corners: Weights, or directions, of the same layout, perhaps with names; tensors that they
            lack are the model's.
        coefficients: (points, corners).
        task: The model, left as it was, the data, the loss and metrics. BatchNorm's statistics are
            estimated at each point on `task.calibration`; with `()` they are mixed like any tensor.
        metrics: What to measure instead of the task's loss and metrics: name to a function of the
            model and a batch that returns the batch's mean.
        memory: Bytes that a chunk of points may take when they are computed together; by default
            4 MiB on a CPU, 1 GiB on a GPU.
        resume: A file for the computed points, which is created if it does not exist.
        progress: Called after each chunk with the number of points done, and of all.

    Returns:
        Name to (points,), float64.

    Raises:
        ValueError: If layouts differ, a corner is not finite, there is no data, a metric is not
            deterministic or not a single number, or `resume` holds the points of other inputs.

    Example:
        >>> line = [{"weight": torch.zeros(1, 1)}, {"weight": torch.ones(1, 1)}]
        >>> batches = [torch.ones(3, 1), torch.full((1, 1), 5.0)]
        >>> evaluate_points(
        ...     line,
        ...     torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]),
        ...     Task(nn.Linear(1, 1, bias=False), batches),
        ...     metrics={"mean": lambda model, batch: model(batch).mean()},
        ... )
        {'mean': tensor([0., 1., 2.], dtype=torch.float64)}
    """
    named = named_weights(corners, "corners")
    _check_coefficients(coefficients, list(named.values()))
    check_corners(named)
    table = coefficients.double()
    measured = _Measurement(task, task.measured if metrics is None else metrics)
    with torch.no_grad(), eval_mode(task.model):
        inputs = {} if resume is None else measured.fingerprints(list(named.values()), table)
        path = None if resume is None else Path(resume)
        store = PointStore(path, metrics=measured.metrics, count=len(table), inputs=inputs)
        if store.done < len(table):
            _fill(
                store, measured, Corners(task.model, list(named.values())), table, memory, progress
            )
    return store.values


def _fill(
    store: PointStore,
    measured: "_Measurement",
    corners: Corners,
    table: Tensor,
    memory: int | None,
    progress: Progress | None,
) -> None:
    measured.probe(corners.at(table[:1]))
    size = measured.chunk_size(corners.nbytes, memory)
    batched = size >= _WORTH_BATCHING and measured.can_batch(corners.at(table[:size]))
    size = size if batched else 1
    # Chunks begin at multiples of their size, so that resumed ones are rounded alike.
    starts = range(store.done, len(table), size)
    several = -(-len(starts) // _JOBS) if is_spread() else 1
    blocks = torch.split(table[store.done :], size * several)
    jobs = [(measured, corners, torch.split(b, size), batched, is_spread()) for b in blocks]
    try:
        for values in spread(_block, jobs):
            store.add(values)
            if progress is not None:
                progress(store.done, len(table))
    finally:
        store.save()


def _block(
    measured: "_Measurement",
    corners: Corners,
    chunks: Sequence[Tensor],
    batched: bool,
    apart: bool,
) -> dict[str, Tensor]:
    """The metrics of some chunks of points; `apart` with a model that nobody else works on."""
    if apart:
        measured = deepcopy(measured, {id(measured.batches): measured.batches})
    measure = measured.together if batched else measured.one_by_one
    with torch.no_grad(), eval_mode(measured.model):
        parts = [measure(corners.at(chunk)) for chunk in chunks]
    return {name: torch.cat([part[name] for part in parts]) for name in measured.metrics}


class _Measurement(nn.Module):
    """Model, metrics and batches; called on a batch it gives all metrics of it."""

    def __init__(self, task: Task, metrics: Mapping[str, Metric]) -> None:
        super().__init__()
        self.model, self.metrics = task.model, dict(metrics)
        self.batches = list(sized_batches(task.model, task.data, task.batch_size))
        self.calibration = _calibration(task, self.batches)
        self._task, self._size = replace(task, calibration=self.calibration), task.batch_size

    def forward(self, batch: Batch) -> dict[str, Any]:
        with _one_pass(self.model):
            return {name: metric(self.model, batch) for name, metric in self.metrics.items()}

    def probe(self, point: Weights) -> None:
        """Raise unless each metric gives one number, and the same number twice."""
        weights = {name: value[0] for name, value in point.items()}
        batch = self.batches[0][0]
        for name, metric in self.metrics.items():
            with weights_in(self.model, weights):
                value = metric(self.model, batch)
            if isinstance(value, Tensor) and value.dim() > 0:
                raise ValueError(
                    f"{name} must return the batch's mean, a 0-dim tensor; its shape is "
                    f"{tuple(value.shape)}."
                )
            probed = probe_determinism(
                self.model, _as_loss(metric), weights=weights, data=[batch], batch_size=self._size
            )
            if not probed.deterministic:
                raise ValueError(
                    f"{name} is not deterministic: two evaluations of the first batch gave "
                    f"{probed.first_loss} and {probed.second_loss} in eval mode. Switch off what "
                    "is random there, such as functional dropout without training=self.training."
                )

    def chunk_size(self, point_bytes: int, memory: int | None) -> int:
        """How many points are computed together; 1 where that does not pay."""
        device = device_of(self.model).type
        if self.calibration:
            return 1  # the statistics are pooled in buffers of the model
        if device == "cpu" and any(isinstance(m, _ConvNd) for m in self.model.modules()):
            return 1  # a convolution per point becomes a grouped one, which is slower
        budget = memory or _MEMORY.get(device, _MEMORY["cpu"])
        return max(1, int(budget // max(1, point_bytes + self._activation_bytes())))

    def can_batch(self, points: Weights) -> bool:
        """Whether operators take a batch of weights, and give what they give one at a time."""
        last = {name: value[-1:] for name, value in points.items()}
        batch, size = self.batches[0]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", UserWarning)  # so vmap says that it is a slow loop
                several = self._on(batch, points)
        except (RuntimeError, ValueError, TypeError, AttributeError, UserWarning):
            return False  # an error of the model itself comes again, one at a time
        alone = self.one_by_one(last, batches=[(batch, size)])
        return all(_alike(float(several[name][-1]), float(alone[name])) for name in self.metrics)

    def together(self, points: Weights) -> dict[str, Tensor]:
        """Return (points,) of each metric, all points at once."""
        totals: dict[str, Tensor] = {}
        for batch, size in self.batches:
            for name, value in self._on(batch, points).items():
                part = size * value.double()
                totals[name] = totals[name] + part if name in totals else part
        count = sum(size for _, size in self.batches)
        return {name: (total / count).cpu() for name, total in totals.items()}

    def one_by_one(
        self, points: Weights, *, batches: Sequence[tuple[Batch, int]] | None = None
    ) -> dict[str, Tensor]:
        """Return (points,) of each metric, a point after the other."""
        chosen = [batch for batch, _ in batches or self.batches]
        rows = []
        for number in range(len(next(iter(points.values())))):
            weights = {name: value[number] for name, value in points.items()}
            if self.calibration:
                weights |= self._task.recalibrated(weights)
            with _one_pass(self.model):
                row = evaluate(
                    self.model, self.metrics, weights=weights, data=chosen, batch_size=self._size
                )
            rows.append(row)
        return {
            name: torch.tensor([row[name] for row in rows], dtype=torch.float64)
            for name in self.metrics
        }

    def fingerprints(self, corners: Sequence[Weights], table: Tensor) -> dict[str, str]:
        """Return what the values depend on, in short, so that a file is not taken for another."""
        given = corners[0].keys()
        return {
            "weights": fingerprint([list(corner.values()) for corner in corners]),
            "points": fingerprint(table),
            "model": fingerprint([v for n, v in weights_of(self.model).items() if n not in given]),
            "data": fingerprint([batch for batch, _ in self.batches]),
            "calibration": fingerprint(self.calibration),
            "metrics": ", ".join(self.metrics),
        }

    def _on(self, batch: Batch, points: Weights) -> dict[str, Tensor]:
        named = {f"model.{name}": value for name, value in points.items()}
        call = partial(functional_call, self)
        values: dict[str, Tensor] = vmap(
            lambda weights: call(weights, (batch,)), randomness="error"
        )(named)
        return values

    def _activation_bytes(self) -> int:
        """Bytes of the outputs of all layers on the largest batch."""
        sizes: list[int] = []

        def hook(_: nn.Module, __: Any, output: Any) -> None:
            sizes.append(output.nbytes if isinstance(output, Tensor) else 0)

        leaves = [m for m in self.model.modules() if not any(True for _ in m.children())]
        handles = [module.register_forward_hook(hook) for module in leaves]
        try:
            self(max(self.batches, key=lambda pair: pair[1])[0])
        finally:
            for handle in handles:
                handle.remove()
        return sum(sizes)


@contextmanager
def _one_pass(model: nn.Module) -> Generator[None]:
    """Let metrics that call the model on the same tensor, one after the other, share the result.

    Where gradients are on, a metric may be about to move weights: nothing is shared then.
    """
    own, forward = model.__dict__.get("forward"), model.forward
    kept: list[Any] = []  # input, output, and the version of each

    def once(*inputs: Any, **named: Any) -> Any:
        plain = len(inputs) == 1 and isinstance(inputs[0], Tensor) and not named
        if not plain or torch.is_grad_enabled():
            return forward(*inputs, **named)
        if kept and kept[0] is inputs[0] and kept[2:] == [kept[0]._version, kept[1]._version]:
            return kept[1]
        output = forward(*inputs)
        kept[:] = []
        if isinstance(output, Tensor):
            kept[:] = [inputs[0], output, inputs[0]._version, output._version]
        return output

    if isinstance(model, torch.jit.ScriptModule):
        yield
        return
    model.__dict__["forward"] = once
    try:
        yield
    finally:
        del model.__dict__["forward"]
        if own is not None:
            model.__dict__["forward"] = own


def _calibration(task: Task, batches: Sequence[tuple[Batch, int]]) -> list[Batch]:
    """The batches for the statistics of BatchNorm at each point; none if they are just mixed."""
    given = task.calibration_batches
    if not batchnorm_layers(task.model) or (isinstance(given, tuple) and not given):
        return []
    if task.calibration is None:
        return [batch for batch, _ in batches]
    kept = [task.to(batch) for batch in given]
    if not kept:
        raise ValueError(
            "calibration is empty, and the model has BatchNorm, whose statistics are estimated at "
            "each point: give batches of training data, or calibration=() to mix the statistics."
        )
    return kept


def _as_loss(metric: Metric) -> Callable[[nn.Module, Batch], Tensor]:
    return lambda model, batch: torch.as_tensor(metric(model, batch))


def _alike(first: float, second: float) -> bool:
    """Whether two computations of a number differ by no more than rounding can do."""
    if not (math.isfinite(first) and math.isfinite(second)):
        return math.isfinite(first) == math.isfinite(second)
    return math.isclose(first, second, rel_tol=1e-4, abs_tol=1e-6)


def _check_coefficients(coefficients: Tensor, corners: Sequence[Weights]) -> None:
    if coefficients.dim() != 2 or not len(coefficients) or coefficients.shape[1] != len(corners):
        raise ValueError(
            f"coefficients must be (points, {len(corners)}), a column for each corner, got shape "
            f"{tuple(coefficients.shape)}."
        )
    if not torch.isfinite(coefficients).all():
        raise ValueError("coefficients hold a NaN or an infinity.")
