"""Modes beside a training run: exact least squares, with two values per weight."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn

from slipstream.evaluation import takes_task
from slipstream.modes.moments import Follower, Leaders, OnlinePlan
from slipstream.modes.sampling import check_real, draw, gather
from slipstream.sharded import gathered, is_cut
from slipstream.trajectory import Layout
from slipstream.weights import is_continuous, unwrapped, weights_of

FORMAT = 1


@dataclass(frozen=True)
class Coefficients:
    """The line of each weight: `w = a r + b`, with `r` the reference of the weight's mode."""

    a: dict[str, Tensor]  # in the shape of the tensor
    b: dict[str, Tensor]


class OnlineModes:
    """The modes of a training run while it trains; the training is not altered.

    Call `update` once an epoch. At first only the sampled weights are kept. After `warm_up`
    updates they are grouped, and the references are fixed. For `trial` more updates every weight is
    tried with every reference; then it follows the one it correlates with most. From the trial on,
    the lines `w = a r + b` are the exact least squares over all updates, though no history is kept.
    `weights` are those lines at the present value of the references: smoothed weights, like an
    average of the run, but not behind it. BatchNorm needs new statistics for them.

    In memory are, for each weight, a mean, a co-moment and the number of its mode; during the
    trial, a co-moment for each mode. Of several processes only the first keeps anything: whole
    tensors, also of a sharded model (FSDP2, tensor parallelism), of which all processes have to
    update.

    Source: "Enhancing Neural Training via a Correlated Dynamics Model" (Brokman et al., 2024), its
    online algorithm. Unlike there, the lines are fitted from the end of the warm-up on, so that
    nobody keeps all weights of the warm-up.

    Example:
        >>> model = nn.Linear(3, 1)
        >>> online = OnlineModes(model, OnlinePlan(modes=1, warm_up=3, trial=2))
        >>> start = model.weight.detach().clone()
        >>> for epoch in range(8):
        ...     with torch.no_grad():
        ...         _ = model.weight.add_(0.1)
        ...     online.update()
        >>> torch.allclose(online.weights()["weight"], start + 0.8)
        True
    """

    @takes_task(plan=OnlinePlan)
    def __init__(self, model: nn.Module, plan: OnlinePlan | None = None) -> None:
        """Choose the sampled weights; nothing else is kept before the first update.

        Args:
            model: The model that trains, wrapped for data parallelism or not; what requires a
                gradient is modelled.
            plan: How many modes are fitted, and how.

        Raises:
            ValueError: If nothing in the model can be modelled, or a tensor is complex.
        """
        self._model = unwrapped(model)
        self._plan = plan = OnlinePlan() if plan is None else plan
        sizes = {
            name: value.numel()
            for name, value in self._model.named_parameters()
            if value.requires_grad and is_continuous(value)
        }
        check_real({name: self._model.get_parameter(name).dtype for name in sizes})
        if not sizes:
            raise ValueError("No parameter of the model requires a gradient: nothing will move.")
        self._names = list(sizes)
        self._positions = draw(sizes, plan.samples, seed=plan.seed)
        self._steps: list[int] = []
        self._rows: list[Tensor] = []  # the sampled weights at each update, float64
        self._leaders: Leaders | None = None
        self._followers: dict[str, Follower] = {}

    @property
    def updates(self) -> int:
        """The number of updates so far."""
        return len(self._steps)

    @property
    def steps(self) -> tuple[int, ...]:
        """The step of each update."""
        return tuple(self._steps)

    @property
    def ready(self) -> bool:
        """Whether every weight has its mode, so that `weights` can be asked for."""
        return self.updates >= self._plan.warm_up + self._plan.trial

    @property
    def references(self) -> Tensor:
        """The references at each update since the warm-up: (modes, updates), float64."""
        leaders, _ = self._fixed()
        return torch.stack([leaders.values(row) for row in self._rows[self._plan.warm_up :]], 1)

    @property
    def assignment(self) -> dict[str, Tensor]:
        """The mode of each weight, in the shape of its tensor."""
        _, followers = self._fixed()
        shapes = {name: value.shape for name, value in self._weights().items()}
        return {name: f.mode.view(shapes[name]) for name, f in followers.items()}

    @torch.no_grad()
    def update(self, *, step: int | None = None) -> None:
        """Take in the weights as they are now.

        Args:
            step: Optimiser steps done; by default one more than at the last update.

        Raises:
            ValueError: If the step does not grow, the model holds a NaN or an infinity (nothing is
                changed then), or at the end of the warm-up too few sampled weights have moved.
        """
        weights = self._gathered()
        if not _keeps():
            return
        before = self._steps[-1] if self._steps else 0
        step = before + 1 if step is None else step
        if self._steps and step <= before:
            raise ValueError(f"step must grow: {step} comes after {before}.")
        _check_finite(weights, step)
        row = gather(weights, self._positions)
        if self.updates == self._plan.warm_up:
            self._leaders = Leaders.of(torch.stack(self._rows, 1), self._plan)
            self._followers = {
                name: Follower.of(value, self._plan.modes) for name, value in weights.items()
            }
        self._steps.append(step)
        self._rows.append(row)
        if self._leaders is not None:
            self._follow(self._leaders, weights, row)

    def weights(self) -> dict[str, Tensor]:
        """Return the modelled weights: each on its line, at the present values of the references.

        Returns:
            New tensors for what is modelled; other parameters and buffers as the model has them,
            without those that are cut over several processes.

        Raises:
            RuntimeError: Before the warm-up and the trial are over.
        """
        leaders, followers = self._fixed()
        leads = leaders.values(self._rows[-1]) - leaders.mean
        return {
            name: followers[name].at(leads, leaders.spread).view(value.shape).to(value.dtype)
            if name in followers
            else value.clone()
            for name, value in weights_of(self._model).items()
            if name in followers or not is_cut(value)
        }

    def coefficients(self) -> Coefficients:
        """Return the lines of all modelled weights, in float64.

        Returns:
            Slopes and offsets for the values that `references` has.

        Raises:
            RuntimeError: Before the warm-up and the trial are over.
        """
        leaders, followers = self._fixed()
        a, b = {}, {}
        for name, value in self._weights().items():
            slopes = followers[name].slopes(leaders.spread)
            centres = leaders.mean.to(value.device)[followers[name].mode.int()]
            a[name] = slopes.view(value.shape)
            b[name] = (followers[name].mean - slopes * centres).view(value.shape)
        return Coefficients(a, b)

    def state_dict(self) -> dict[str, Any]:
        """Return all that is known so far, to save beside the model and the optimiser.

        Returns:
            Plain data and tensors that `torch.load(..., weights_only=True)` reads.
        """
        return {
            "format": FORMAT,
            "options": asdict(self._plan),
            "layout": Layout.of(self._model).to_json(),
            "steps": list(self._steps),
            "rows": list(self._rows),
            "leaders": None if self._leaders is None else dict(vars(self._leaders)),
            "followers": {name: dict(vars(f)) for name, f in self._followers.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned.

        Args:
            state: Made with the same options, of a model with the same tensors.

        Raises:
            ValueError: If it is of another model, of other options, or of a newer format.
        """
        if state["format"] > FORMAT:
            raise ValueError(f"The state is of format {state['format']}, newer than {FORMAT}.")
        for name, value in asdict(self._plan).items():
            if state["options"][name] != value:
                raise ValueError(
                    f"The state was made with {name}={state['options'][name]!r}, "
                    f"not {name}={value!r}: give OnlineModes the same plan."
                )
        layout = Layout.from_json(state["layout"])
        layout.check(Layout.of(self._model).tensors, where="The model to resume OnlineModes with")
        if not _keeps():
            return
        self._steps = list(state["steps"])
        self._rows = [row.clone() for row in state["rows"]]
        leaders = state["leaders"]
        self._leaders = None if leaders is None else Leaders(**_copies(leaders))
        devices = {name: value.device for name, value in self._weights().items()}
        self._followers = {
            name: Follower(**_copies(kept, devices[name]))
            for name, kept in state["followers"].items()
        }

    def _weights(self) -> dict[str, Tensor]:
        weights = weights_of(self._model)
        return {name: weights[name] for name in self._names}

    def _gathered(self) -> dict[str, Tensor]:
        """Whole in the first process; the others of a sharded model only lend their pieces."""
        whole = ((name, gathered(value)) for name, value in self._weights().items())
        return {name: value for name, value in whole if _keeps()}

    def _follow(self, leaders: Leaders, weights: dict[str, Tensor], row: Tensor) -> None:
        keep = self._plan.forgetting
        leads = leaders.update_(row, keep)
        for name, value in weights.items():
            self._followers[name].update_(value, leads, leaders.count, keep)
            if self.ready and self._followers[name].along.dim() == 2:
                self._followers[name].choose_(leaders.spread)

    def _fixed(self) -> tuple[Leaders, dict[str, Follower]]:
        if not _keeps():
            raise RuntimeError("Of several processes, only the first keeps OnlineModes: ask there.")
        if self._leaders is None or not self.ready:
            needed = self._plan.warm_up + self._plan.trial
            raise RuntimeError(
                f"OnlineModes has seen {self.updates} of the {needed} updates that warm_up="
                f"{self._plan.warm_up} and trial={self._plan.trial} take."
            )
        return self._leaders, self._followers


def _keeps() -> bool:
    """Whether this process keeps the modes: the only one, or the first of several."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return True
    return distributed.get_rank() == 0


def _check_finite(weights: dict[str, Tensor], step: int) -> None:
    totals = torch.stack([value.sum(dtype=torch.float64).cpu() for value in weights.values()])
    if not math.isfinite(float(totals.sum())):
        bad = int((~totals.isfinite()).nonzero()[0])
        raise ValueError(
            f"The model holds a NaN or an infinity in {list(weights)[bad]!r} at step {step}; "
            "the modes are left as they were before."
        )


def _copies(kept: dict[str, Any], device: torch.device | None = None) -> dict[str, Any]:
    return {
        name: value.to(device=device, copy=True) if isinstance(value, Tensor) else value
        for name, value in kept.items()
    }
