"""Aggregation: networks for a data set each, trained together so that their weights add up."""

import copy as copying
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from slipstream.evaluation import Batch, Loss, Metric, batch_size, batches_of_epoch, evaluate
from slipstream.landscape.span import Calibration
from slipstream.storage.tensor_file import tensor_chunks
from slipstream.storage.writing import write_whole
from slipstream.training import Descent
from slipstream.training.loop import Descending, Progress, check_sized
from slipstream.training.recorded_training import kept
from slipstream.training.reinitialise import fresh_weights, model_at
from slipstream.trajectory import declare_companions
from slipstream.weights import (
    Weights,
    check_same_layout,
    copy,
    difference,
    displace,
    norm,
    parameter_names,
    weights_of,
)

SPECIALISTS = "specialists"  # folder beside the snapshots


@dataclass(frozen=True)
class AggregationPlan:
    """How specialists are held to their sum, and how is trained, as plain data."""

    pull: float = 1.0  # mu: how strongly the aggregate is held to the sum of the specialists
    descent: Descent = field(default_factory=lambda: Descent(lr=0.02))

    def __post_init__(self) -> None:
        if not self.pull >= 0:
            raise ValueError(f"pull must not be negative, got {self.pull}.")


@dataclass(frozen=True)
class Aggregation:
    """Result of `train_aggregation`: weights that were trained to be added and taken away."""

    plan: AggregationPlan
    specialists: tuple[Weights, ...]  # theta_k, one for each data set
    aggregate: Weights  # theta_A, trained beside them
    sum: Weights  # theta_1 + theta_2 + ...: what is used at test time
    remainders: tuple[Weights, ...]  # theta_A - theta_k: without data set k
    gap: float  # |theta_A - sum| / |sum|
    losses: tuple[float, ...]  # mean of the whole objective, of each epoch
    steps: int
    seconds: float  # of the training


def train_aggregation(
    model: nn.Module,
    loss: Loss,
    *,
    data: Sequence[Iterable[Batch]],
    plan: AggregationPlan | None = None,
    initial: Sequence[Weights] | None = None,
    validation: Sequence[Iterable[Batch]] | None = None,
    metrics: Mapping[str, Metric] | None = None,
    run_folder: str | Path | None = None,
    configuration: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
) -> Aggregation:
    """Train a specialist for each data set so that the sum of their weights masters all of them.

    Minimises sum_k L(theta_k; D_k) + L(theta_A; all) + mu |theta_A - sum_k theta_k|^2. The
    specialists are trained jointly: networks trained apart do not add up. Taking a specialist away
    from the aggregate forgets its data set.

    BatchNorm's running statistics do not add: where there are any, sum and remainders get them
    anew from `data`; GroupNorm needs nothing.

    Source: "Transfer Learning via Test-Time Neural Networks Aggregation" (Casella et al., 2022),
    whose text leaves the exact form of the objective open.

    Args:
        model: Any module; left as it was.
        loss: Maps the model and a batch to the batch's mean loss, a 0-dim tensor.
        data: Batches of each data set, two at least. An epoch has the steps of the longest; the
            shorter ones begin again.
        plan: How.
        initial: Where each specialist starts, such as the last snapshots of transferred runs; by
            default the first at the model's own weights, the others as `fresh_weights`.
        validation: Batches of each data set, on which `metrics` of the aggregate are taken after
            every epoch.
        metrics: Name to a function of the model and a batch.
        run_folder: Records the aggregate after every epoch as a run, and the specialists in the
            end.
        configuration: What makes the run, as plain data; kept in it.
        overwrite: Whether to delete the snapshots of a run that is already there.
        resume: Whether to go on with a training that was interrupted; begins if there is none.
        progress: Called after each step with the steps done and their final number, if known.

    Returns:
        Specialists, aggregate, sum and remainders.

    Raises:
        ValueError: If there are fewer than two data sets, one is empty, the starts do not fit, the
            loss is not finite, or what is to be resumed is another training.
        FileExistsError: If the run folder is not empty.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> loss = lambda model, batch: (model(batch[0]) - batch[1]).square().mean()
        >>> one = [(torch.ones(1, 1), torch.full((1, 1), 2.0))]
        >>> plan = AggregationPlan(descent=Descent(epochs=5))
        >>> found = train_aggregation(model, loss, data=[one, one], plan=plan)
        >>> torch.equal(found.sum["weight"], sum(s["weight"] for s in found.specialists))
        True
    """
    plan = plan or AggregationPlan()
    family = _Family(
        model, specialist_starts(model, data=data, initial=initial, seed=plan.descent.seed)
    )
    training = Descending(family, plan.descent)

    def objective(batches: tuple[Batch, ...]) -> Tensor:
        return family.objective(loss, batches, plan.pull)

    def measure() -> dict[str, float]:
        if validation is None or not metrics:
            return {}
        return {
            f"validation_{name}_{number}": value
            for number, part in enumerate(validation, start=1)
            for name, value in evaluate(family.aggregate, metrics, data=part).items()
        }

    with kept(
        training,
        recorded=family.aggregate,
        run_folder=run_folder,
        recipe={"aggregation": asdict(plan)},
        start=[weights_of(family)],
        configuration=configuration,
        measure=measure,
        overwrite=overwrite,
        resume=resume,
        minimised="objective",
    ) as keep:
        if not training.finished:
            together = Together(data)
            training.run(objective, data=together, on_epoch=keep, progress=progress)
    found = _result(model, loss, data, plan, family, training)
    if run_folder is not None:
        declare_companions(run_folder, f"{SPECIALISTS}/*.safetensors")
        for number, specialist in enumerate(found.specialists, start=1):
            on_cpu = {name: value.cpu() for name, value in specialist.items()}
            file = Path(run_folder) / SPECIALISTS / f"{number}.safetensors"
            file.parent.mkdir(exist_ok=True)
            write_whole(file, tensor_chunks(on_cpu))
    return found


class _Family(nn.Module):
    """The specialists, and the aggregate beside them."""

    def __init__(self, model: nn.Module, starts: Sequence[Weights]) -> None:
        super().__init__()
        self.specialists = nn.ModuleList(model_at(model, weights) for weights in starts)
        self.aggregate = copying.deepcopy(self.specialists[0])
        with torch.no_grad():
            for whole, parts in self.beside():
                whole.copy_(torch.stack(parts).sum(0))

    def beside(self) -> Iterator[tuple[nn.Parameter, list[Tensor]]]:
        """Yield each parameter of the aggregate with those of the specialists."""
        of_each = [list(specialist.parameters()) for specialist in self.specialists]
        for number, whole in enumerate(self.aggregate.parameters()):
            yield whole, [parameters[number] for parameters in of_each]

    def objective(self, loss: Loss, batches: Sequence[Batch], pull: float) -> Tensor:
        """The losses of the specialists, of the aggregate on all, and the pull."""
        sizes = [batch_size(batch) for batch in batches]
        total: Tensor = torch.zeros((), device=next(self.parameters()).device)
        for specialist, batch, size in zip(self.specialists, batches, sizes, strict=True):
            total = total + loss(specialist, batch)
            total = total + size / sum(sizes) * loss(self.aggregate, batch)
        for whole, parts in self.beside():
            total = total + pull * (whole - torch.stack(parts).sum(0)).square().sum()
        return total


class Together:
    """A batch of every data set at each step; shorter ones begin again."""

    def __init__(self, data: Sequence[Iterable[Batch]], number: int = 0) -> None:
        self._data, self._number = data, number

    def __len__(self) -> int:
        return max(len(part) for part in self._data)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[tuple[Batch, ...]]:
        endless = [self._again(part) for part in self._data]
        return itertools.islice(zip(*endless, strict=True), len(self))

    def epoch(self, number: int) -> "Together":
        """Return the batches of another epoch."""
        return Together(self._data, number)

    def _again(self, part: Iterable[Batch]) -> Iterator[Batch]:
        while True:
            empty = True
            for batch in batches_of_epoch(part, self._number):
                empty = False
                yield batch
            if empty:
                raise ValueError("data is empty: one of the data sets has no batch any more.")


def specialist_starts(
    model: nn.Module,
    *,
    data: Sequence[Iterable[Batch]],
    initial: Sequence[Weights] | None,
    seed: int,
) -> list[Weights]:
    """Return where each specialist starts, or raise if it cannot."""
    check_sized(data, name="data", fewest=2)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            raise ValueError(
                f"{name!r} requires no gradient, so it would be added up untrained: let all "
                "parameters require one."
            )
    if initial is None:
        seeds = np.random.default_rng((seed, 0)).integers(2**62, size=len(data) - 1)
        return [weights_of(model), *(fresh_weights(model, seed=int(seed)) for seed in seeds)]
    if len(initial) != len(data):
        raise ValueError(
            f"initial must hold weights for each of the {len(data)} data sets, got {len(initial)}."
        )
    for number, weights in enumerate(initial):
        check_same_layout(weights_of(model), weights, names=("the model", f"initial[{number}]"))
    return list(initial)


def _result(
    model: nn.Module,
    loss: Loss,
    data: Sequence[Iterable[Batch]],
    plan: AggregationPlan,
    family: _Family,
    training: Descending,
) -> Aggregation:
    specialists = tuple(copy(weights_of(specialist)) for specialist in family.specialists)
    aggregate = copy(weights_of(family.aggregate))
    parts = [{name: own[name] for name in parameter_names(model)} for own in specialists]
    total = {**aggregate, **parts[0]}  # buffers are constants, or are calibrated below
    for part in parts[1:]:
        total = displace(total, part)
    remainders = []
    for number, part in enumerate(parts):
        others = [own for place, own in enumerate(data) if place != number]
        without = displace(aggregate, part, scale=-1)
        remainders.append(calibrated(model, loss, without, others))
    rest = difference(*({name: own[name] for name in parts[0]} for own in (aggregate, total)))
    return Aggregation(
        plan,
        specialists,
        aggregate,
        calibrated(model, loss, total, data),
        tuple(remainders),
        norm(rest) / (norm(total) or 1.0),
        tuple(training.losses),
        training.step,
        training.seconds,
    )


def calibrated(
    model: nn.Module, loss: Loss, weights: Weights, data: Sequence[Iterable[Batch]]
) -> dict[str, Tensor]:
    """Return the weights with BatchNorm's statistics of several data sets together."""
    return Calibration(model, loss, _Chained(data))(weights)


class _Chained:
    """Several data sets one after another, as often as they are asked for."""

    def __init__(self, data: Sequence[Iterable[Batch]]) -> None:
        self._data = data

    def __iter__(self) -> Iterator[Batch]:
        return itertools.chain.from_iterable(self._data)
