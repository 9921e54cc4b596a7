"""What a transfer has to beat: short trainings of the target's start, and a shuffled source."""

import copy
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from slipstream.evaluation import Batch, Task, eval_mode
from slipstream.storage.plan_fields import check_choices, option
from slipstream.symmetry.outputs import output_tensors
from slipstream.training import DivergedError, Lion, Loop, Muon, TrainingPlan
from slipstream.trajectory import Trajectory
from slipstream.transfer.distance import classifies, output_distance
from slipstream.transfer.transfer_state import BatchStream, calibration_of, complete_weights
from slipstream.weights import Weights, clone, is_continuous, load_weights_, weights_of

ShortOptimizer = Literal["sgd", "adam", "sign-descent", "lion", "muon"]
Answers = Literal["labels", "source"]
Distance = Literal["auto", "divergence", "squared"]

RATES: Mapping[ShortOptimizer, tuple[float, ...]] = {
    "sgd": (0.03, 0.1, 0.3),
    "adam": (0.001, 0.003, 0.01),
    "sign-descent": (0.001, 0.003, 0.01),
    "lion": (0.0003, 0.001, 0.003),
    "muon": (0.003, 0.01, 0.03),
}
FURTHEST = 6  # rates beyond the grid, on one side, that are tried while the last one is the best


@dataclass(frozen=True)
class DescentPlan:
    """A short training from the target's start with as many gradients as a transfer may take.

    The learning rate falls to 0 along a cosine. Of several rates the best on validation data is
    taken: the grid grows while its best rate is the first or the last, and then grows finer around
    it. A single rate is taken as it is.
    """

    optimizer: ShortOptimizer = option("adam", "Optimiser; lion and sgd keep a momentum.")
    gradients: int = option(20, "Gradient evaluations.", minimum=1)
    rates: tuple[float, ...] = ()  # growing; by default the optimiser's of `RATES`
    answers: Answers = option(
        "labels", "What is learned: the labels, or the source's outputs on unlabelled batches."
    )
    distance: Distance = option(
        "auto",
        "From the source's outputs: divergence of class probabilities, or squared; auto is the "
        "former where the task classifies.",
    )
    refine: bool = option(
        True, "Whether the rates halfway to the neighbours of the best one are tried as well."
    )
    batches_per_gradient: int = option(1, "Batches for each gradient.", minimum=1)
    batchnorm_batches: int = option(2, "Batches for BatchNorm's statistics, at the end.", minimum=1)
    seed: int = option(0, "Seed of what the model draws, such as dropout.", minimum=0)

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("gradients", "batches_per_gradient", "batchnorm_batches"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        object.__setattr__(self, "rates", tuple(self.rates) or RATES[self.optimizer])
        if list(self.rates) != sorted(set(self.rates)) or self.rates[0] <= 0:
            raise ValueError(f"rates must grow from above 0, got {self.rates}.")


@dataclass(frozen=True)
class Descent:
    """Result of `descend`."""

    plan: DescentPlan
    weights: dict[str, Tensor]  # with the BatchNorm statistics that they have on the data
    rate: float
    validation: dict[str, float]  # metrics at the end; empty if there are no such data
    tried: Mapping[float, dict[str, float]]  # the same of every rate; empty where it diverged
    seconds: float  # of the training at the rate that was taken
    seconds_of_all: float

    @property
    def gradients(self) -> int:
        """Gradient evaluations at the rate that was taken."""
        return self.plan.gradients

    @property
    def gradients_of_all(self) -> int:
        """Gradient evaluations at all rates; a diverged training counts in full."""
        return self.plan.gradients * len(self.tried)


def rivals(gradients: int = 20) -> dict[str, DescentPlan]:
    """Return what a transfer is compared with at as many gradients, by the name of its row.

    Args:
        gradients: Gradient evaluations of each.

    Returns:
        Every optimiser from the labels, then distillation, which is the only one that knows the
        source.

    Example:
        >>> list(rivals(10))
        ['sgd', 'adam', 'sign-descent', 'lion', 'muon', 'distillation']
    """
    plans: dict[str, DescentPlan] = {name: DescentPlan(name, gradients) for name in RATES}
    return {**plans, "distillation": DescentPlan("adam", gradients, answers="source")}


def descend(
    start: Weights, task: Task, plan: DescentPlan | None = None, *, source: Weights | None = None
) -> Descent:
    """Train from a start with few gradients, at the learning rate that is best on validation data.

    BatchNorm normalises by each batch, as in training, and its statistics are re-estimated at the
    end, as a transfer does it. The batches are those that a transfer would take, in their order.

    Args:
        start: Where to start: parameters of the task's model.
        task: The model, its loss and data; the rate is chosen on its validation data, by accuracy
            if that is measured, then by loss. Outputs are learned on its unlabelled batches.
        plan: What to do.
        source: The trained weights whose outputs are learned, if the plan says so.

    Returns:
        The weights, the rate and the cost.

    Raises:
        ValueError: If there is no validation data to choose by, no source to learn from, or the
            loss is not finite at any rate.

    Example:
        >>> task = Task(nn.Linear(1, 2), [(torch.tensor([[1.0], [-1.0]]), torch.tensor([0, 1]))])
        >>> plan = DescentPlan("sign-descent", gradients=3, rates=(0.5,))
        >>> found = descend(weights_of(task.model), task, plan)
        >>> found.gradients, found.rate, round(found.weights["weight"].diff(dim=0).item(), 3)
        (3, 0.5, ...)
    """
    plan = DescentPlan() if plan is None else plan
    task = task.repeatable()
    if len(plan.rates) > 1 and task.validation is None:
        raise ValueError(
            "A rate is chosen on validation data: give Task(..., validation=...), or one rate."
        )
    runner = _Runner(task, plan, complete_weights(task.model, start, "start"), source)
    rate = best_rate(runner.worth, plan.rates, refine=plan.refine)
    if not runner.ended[rate].weights:
        raise ValueError(
            f"The loss of {plan.optimizer} is not finite at any rate of {sorted(runner.ended)}: "
            "give smaller rates."
        )
    end = runner.ended[rate]
    return Descent(
        plan,
        end.weights,
        rate,
        end.validation,
        {rate: found.validation for rate, found in sorted(runner.ended.items())},
        end.seconds,
        sum(found.seconds for found in runner.ended.values()),
    )


def best_rate(
    worth: Callable[[float], tuple[float, ...]], rates: Sequence[float], *, refine: bool = True
) -> float:
    """Return the best learning rate: of a grid that grows as needed, then between its neighbours.

    Args:
        worth: What a rate is worth: the larger the better, compared item by item.
        rates: The grid, growing; a single rate is returned as it is.
        refine: Whether the rates halfway to the best one's neighbours are tried as well.

    Returns:
        The rate.

    Example:
        >>> best_rate(lambda rate: (-abs(rate - 9),), (1.0, 2.0, 4.0))
        8.0
    """
    if len(rates) == 1:
        worth(rates[0])
        return rates[0]
    grid = list(rates)
    found = {rate: worth(rate) for rate in grid}
    for _ in range(FURTHEST):
        best = max(found, key=found.__getitem__)
        if best == grid[-1]:
            new = best * best / grid[-2]
        elif best == grid[0]:
            new = best * best / grid[1]
        else:
            break
        found[new] = worth(new)
        grid = sorted(found)
    at = grid.index(max(found, key=found.__getitem__))
    for near in (grid[max(at - 1, 0) : at] + grid[at + 1 : at + 2]) * refine:
        between = math.sqrt(near * grid[at])
        found[between] = worth(between)
    return max(found, key=found.__getitem__)


def shuffled_source(source: Trajectory, *, seed: int = 0) -> Trajectory:
    """Return a run whose displacement is that of `source`, shuffled within each tensor.

    It has the sizes of the source's moves and nothing of what they say: a transfer of it that does
    as well shows that only the sizes helped.

    Args:
        source: A run.
        seed: Of the order.

    Returns:
        Two snapshots: the source's start, and where the shuffled displacement leads from it.

    Example:
        >>> run = Trajectory.from_weights([{"w": torch.zeros(3)}, {"w": torch.arange(3.0)}])
        >>> sorted(shuffled_source(run)[-1].weights["w"].tolist())
        [0.0, 1.0, 2.0]
    """
    generator = torch.Generator().manual_seed(seed)
    first, last = dict(source[0].weights), source[-1].weights
    moved = {}
    for name, value in first.items():
        if not is_continuous(value):
            moved[name] = last[name]
            continue
        order = torch.randperm(value.numel(), generator=generator).to(value.device)
        moved[name] = value + (last[name] - value).flatten()[order].view(value.shape)
    return Trajectory.from_weights([first, moved])


@dataclass(frozen=True)
class _End:
    """Where one rate leads; without weights if the loss was not finite."""

    weights: dict[str, Tensor]
    validation: dict[str, float]
    seconds: float


class _Runner:
    """Trains from the same start on the same batches at one rate after another."""

    def __init__(
        self, task: Task, plan: DescentPlan, start: Weights, source: Weights | None
    ) -> None:
        self.task, self.plan, self.start = task, plan, start
        self.ended: dict[float, _End] = {}
        taught = plan.answers == "source"
        stream = BatchStream(task.unlabelled_batches if taught else task.data)
        batches = stream.take(plan.gradients * plan.batches_per_gradient)
        size = plan.batches_per_gradient
        self.groups = [batches[at : at + size] for at in range(0, len(batches), size)]
        self.calibrated = replace(task, calibration=calibration_of(task, plan.batchnorm_batches))
        self.loss = self._from(source) if taught else task.loss

    def worth(self, rate: float) -> tuple[float, ...]:
        """Train at a rate; return accuracy and minus the loss, as far as they are measured."""
        end = self.ended[rate] = self._trained(rate)
        if not end.weights:
            return (-math.inf,)
        found = end.validation
        keys = [("accuracy", 1.0)] if "accuracy" in found else []
        values = [sign * found[name] for name, sign in [*keys, ("loss", -1.0)] if name in found]
        return tuple(-math.inf if math.isnan(value) else value for value in values)

    def _trained(self, rate: float) -> _End:
        model = copy.deepcopy(self.task.model)
        load_weights_(model, self.start)
        rates = TrainingPlan(1, lr=rate, schedule="cosine", seed=self.plan.seed)
        loop = Loop(
            model,
            rates,
            batch_size=lambda group: sum(map(self.task.batch_size, group)),
            optimizer=_optimizer(self.plan, model, rate),
        )
        began = time.perf_counter()
        try:
            loop.run(lambda group: self._mean(model, group), data=self.groups)
        except DivergedError:
            return _End({}, {}, time.perf_counter() - began)
        weights = clone(weights_of(model))
        if not all(torch.isfinite(weights[name]).all() for name, _ in model.named_parameters()):
            return _End({}, {}, time.perf_counter() - began)
        weights |= self.calibrated.recalibrated(weights)
        seconds = time.perf_counter() - began
        held = self.task.validation is not None
        metrics = self.task.evaluate(weights=weights, split="validation") if held else {}
        return _End(weights, metrics, seconds)

    def _mean(self, model: nn.Module, group: Iterable[Batch]) -> Tensor:
        """The loss over the batches of one gradient."""
        sized = [(batch, self.task.batch_size(batch)) for batch in group]
        whole = sum(size for _, size in sized)
        losses = [self.loss(model, batch) * (size / whole) for batch, size in sized]
        return torch.stack(losses).sum()

    def _from(self, source: Weights | None) -> Callable[[nn.Module, Batch], Tensor]:
        """The distance of a model's outputs from those of the source."""
        if source is None:
            raise ValueError("answers='source' learns the source's outputs: pass source=weights.")
        task, teacher = self.task, copy.deepcopy(self.task.model)
        weights = complete_weights(teacher, source, "source")
        load_weights_(teacher, {**weights, **self.calibrated.recalibrated(weights)})
        classes = self.plan.distance == "divergence" or (
            self.plan.distance == "auto" and classifies(task)
        )

        def distance(model: nn.Module, batch: Batch) -> Tensor:
            with torch.no_grad(), eval_mode(teacher):
                wanted = output_tensors(task.forward(teacher, batch))
            given = output_tensors(task.forward(model, batch))
            pairs = [(given[name], wanted[name]) for name in wanted]
            return torch.stack([output_distance(own, other, classes) for own, other in pairs]).sum()

        return distance


def _optimizer(plan: DescentPlan, model: nn.Module, rate: float) -> Optimizer:
    trained = [p for p in model.parameters() if p.requires_grad]
    if plan.optimizer == "sgd":
        return SGD(trained, rate, momentum=0.9)
    if plan.optimizer == "adam":
        return Adam(trained, rate)
    if plan.optimizer == "muon":
        return Muon(model, rate)
    return Lion(trained, rate, betas=(0.9, 0.99) if plan.optimizer == "lion" else (0.0, 0.0))
