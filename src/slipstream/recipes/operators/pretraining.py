"""Pre-training on several operators: one half of the network shared, the other each one's own."""

import copy as copying
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slipstream.evaluation import Batch, Task, batches_of_epoch, takes_task
from slipstream.federated import Client, Round, Server, follow
from slipstream.recipes.operators.plan import OperatorPlan
from slipstream.recipes.parts import numbered, together_run, write_parts
from slipstream.recipes.patterns import matches, matching
from slipstream.storage.new_run import NewRun
from slipstream.training import Loop, fresh_weights, recorded
from slipstream.training.loop import DivergedError, Progress, check_sized
from slipstream.training.recorded_training import RecordingOptions
from slipstream.weights import clone, load_weights_, weights_of


@dataclass(frozen=True)
class OperatorPretraining:
    """Result of `pretrain_operators`."""

    plan: OperatorPlan
    operators: tuple[dict[str, Tensor], ...]  # whole networks; the shared half is the same
    local: tuple[str, ...]  # tensors that each operator has its own of
    rounds: tuple[Round, ...]  # what was exchanged; the last one only hands the result out
    losses: tuple[float, ...]  # mean over operators and batches, of each epoch
    steps: int  # of each operator
    seconds: float  # of the training

    @property
    def bytes_up(self) -> int:
        """Bytes from the operators, all rounds together."""
        return sum(done.bytes_up for done in self.rounds)

    @property
    def bytes_down(self) -> int:
        """Bytes to the operators."""
        return sum(done.bytes_down for done in self.rounds)


def function_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Return the mean squared error of an operator network.

    Args:
        model: Takes functions (functions, sensors) and points (points, 2).
        batch: `((functions, points), values)`, the values (functions, points).

    Returns:
        A 0-dim tensor.
    """
    error: Tensor = feed_functions(model, batch) - batch[1]
    return error.square().mean()


def feed_functions(model: nn.Module, batch: Batch) -> Tensor:
    """Call an operator network on the functions and the points of a batch."""
    found: Tensor = model(*batch[0])
    return found


@takes_task
def pretrain_operators(
    task: Task,
    *,
    operators: Sequence[Iterable[Batch]],
    plan: OperatorPlan | None = None,
    run_folder: str | Path | NewRun | None = None,
    progress: Progress | None = None,
) -> OperatorPretraining:
    """Train a network per operator; one half is shared by federated averaging, the other is local.

    Every operator trains both halves on its own data. After some steps a server averages the
    shared half, and only that is sent; the moments of the optimiser stay where they are. With the
    branch shared, all operators have the same coefficients of a function, and each a basis of its
    own: an average of those is a start for a further operator, see `average_operators`.

    Source: "DeepONet as a Multi-Operator Extrapolation Model" (Zhang, Moya, Lu, Lin, Schaeffer,
    2024); "MODNO" (Zhang, 2024), whose branch is shared.

    Args:
        task: The model, left as it was, whose halves the plan tells apart by names; and the loss,
            such as `function_loss`. Its data are not looked at.
        operators: The batches of each operator, as many per epoch of every one.
        plan: How.
        run_folder: A folder for runs: `together`, from which an interrupted training is resumed,
            and `operator-1`, `operator-2`, ..., each a whole network.
        progress: Called after each step with the steps done and their final number.

    Returns:
        The networks, and what was exchanged.

    Raises:
        ValueError: If there are fewer than two operators, they have different numbers of batches,
            a pattern matches nothing or all, the loss is not finite, or what is to be resumed is
            another training.
        FileExistsError: If a run folder is not empty.

    Example:
        >>> from slipstream.training import TrainingPlan
        >>> network = nn.ModuleDict({"branch": nn.Linear(2, 2), "trunk": nn.Linear(2, 2)})
        >>> loss = lambda model, batch: (model["branch"](batch) * model["trunk"](batch)).mean()
        >>> plan = OperatorPlan(descent=TrainingPlan(epochs=2, lr=0.1))
        >>> data = [[torch.ones(4, 2)], [torch.zeros(4, 2)]]
        >>> found = pretrain_operators(Task(network, loss=loss), operators=data, plan=plan)
        >>> found.local, found.steps, found.bytes_up  # twice two replies of six float32
        (('trunk.weight', 'trunk.bias'), 2, 96)
    """
    plan = plan or OperatorPlan()
    check_sized(operators, name="operators", fewest=2)
    lengths = [len(data) for data in operators if isinstance(data, Sized)]
    if len(set(lengths)) > 1:
        raise ValueError(
            f"All operators must have as many batches per epoch, got {lengths}: cut them alike."
        )
    training = _Training(task, plan, len(operators))
    new = None if run_folder is None else NewRun.of(run_folder)
    parts = [] if new is None else numbered(new.folder, "operator", len(operators))
    together = None if new is None else together_run(new, parts)
    measured = replace(task, model=training.networks, validation=None, configuration={})
    with recorded(
        training,
        measured,
        together,
        plan={"operators": {**asdict(plan), "count": len(operators)}},
        start=[weights_of(task.model)],
        options=RecordingOptions(weights=training.merged),
    ) as keep:

        def after_epoch() -> None:
            training.exchange()
            keep()

        training.run(
            training.objective,
            data=_Together(operators),
            on_epoch=after_epoch,
            progress=progress,
        )
    result = training.result()
    if new is not None:
        write_parts(
            new,
            task.model,
            parts,
            lambda snapshot, n: {k: snapshot.weights[f"{n}.{k}"] for k in weights_of(task.model)},
            recipe=lambda n: {"operators": {"operator": n + 1, **asdict(plan)}},
            seed=plan.descent.seed,
        )
    return result


class _Together:
    """A batch of every operator at a time."""

    def __init__(self, operators: Sequence[Iterable[Batch]]) -> None:
        self._operators = operators

    def __len__(self) -> int:
        return len(self._operators[0])  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[tuple[Batch, ...]]:
        return self.epoch(0)

    def epoch(self, number: int) -> Iterator[tuple[Batch, ...]]:
        """The batches of an epoch."""
        return zip(*(batches_of_epoch(data, number) for data in self._operators), strict=True)


class _Training(Loop):
    """A network per operator, each a client of one server in this process.

    The gradient of a sum over networks that share no tensor is that of each, and so are the
    moments of Adam: one optimiser does what one for each of them would.
    """

    def __init__(self, task: Task, plan: OperatorPlan, count: int) -> None:
        self.how, self.task = plan, task
        names = list(weights_of(task.model))
        for pattern in plan.local:
            matching(names, pattern, name="local")
        self.local = tuple(name for name in names if matches(name, plan.local))
        self.networks = nn.ModuleList(copying.deepcopy(task.model) for _ in range(count))
        if plan.begun == "apart":
            for number, network in enumerate(list(self.networks)[1:], start=1):
                drawn = fresh_weights(task.model, seed=plan.descent.seed + number)
                load_weights_(network, {**drawn, **self._shared_of(task.model)})
        self.server = Server(task.model, local=self.local)
        self.clients: list[Client | None] = [None] * count
        self.since, self.seen = 0, [0] * count  # steps and examples since the last average
        super().__init__(self.networks, plan.descent, batch_size=lambda batch: 1)

    def objective(self, batch: tuple[Batch, ...]) -> Tensor:
        """Return the mean loss over the operators."""
        losses = [
            self.task.loss(network, own) for network, own in zip(self.networks, batch, strict=True)
        ]
        for number, loss in enumerate(losses, start=1):
            if not torch.isfinite(loss).all():
                raise DivergedError(
                    f"The loss of operator {number} at step {self.step + 1} is not finite: look "
                    "for a NaN in its data, or try a smaller lr."
                )
        return torch.stack(losses).mean()

    def update(self, loss: Callable[[Batch], Tensor], batch: tuple[Batch, ...]) -> float:
        """Take a step of every operator; begin and end rounds when it is time."""
        if not self.since:
            self._send_out()
        found = super().update(lambda given: loss(given) * len(given), batch) / len(batch)
        self.since += 1
        self.seen = [n + self.task.batch_size(b) for n, b in zip(self.seen, batch, strict=True)]
        if self.since == self.how.local_steps:
            self.exchange()
        return found

    def exchange(self) -> None:
        """End a round, if one has begun: what was learned of the shared half is averaged."""
        if not self.since:
            return
        for number, network in enumerate(self.networks):
            client = self.clients[number]
            assert client is not None
            changed = self._shared_of(network)
            self.clients[number], reply = client.reply(changed, examples=self.seen[number])
            self.server.accept(number, reply)
        done = self.server.finish_round()
        if done.refused:
            number, reason = next(iter(done.refused.items()))
            raise ValueError(f"The reply of operator {number + 1} was refused: {reason}")
        self.since, self.seen = 0, [0] * len(self.clients)

    def merged(self) -> dict[str, Tensor]:
        """Return all networks with the shared half of the server."""
        shared = self.server.weights
        return {
            name: shared[own] if (own := name.partition(".")[2]) in shared else value
            for name, value in weights_of(self.networks).items()
        }

    def result(self) -> OperatorPretraining:
        """Hand the last average out, which is counted, and return all of it."""
        self._send_out()
        self.server.finish_round()
        return OperatorPretraining(
            self.how,
            tuple(clone(weights_of(network)) for network in self.networks),
            self.local,
            tuple(self.server.rounds),
            tuple(self.losses),
            self.step,
            self.seconds,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs, between two rounds."""
        kept = [None if client is None else client.pack() for client in self.clients]
        clients = [
            None
            if packed is None
            else ({name: torch.from_numpy(a.copy()) for name, a in packed[0].items()}, packed[1])
            for packed in kept
        ]
        return {**super().state_dict(), "server": self.server.state_dict(), "clients": clients}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where another one stopped."""
        super().load_state_dict(state)
        self.server.load_state_dict(state["server"])
        self.clients = [
            None
            if packed is None
            else Client.unpack({name: t.numpy() for name, t in packed[0].items()}, packed[1])
            for packed in state["clients"]
        ]

    def _send_out(self) -> None:
        """Begin a round: every operator gets the shared half as it is now."""
        for number, network in enumerate(self.networks):
            client = follow(self.clients[number], self.server.order(number))
            self.clients[number] = client
            shared = {n: v for n, v in client.weights.items() if n not in self.local}
            load_weights_(network, {**weights_of(network), **shared})

    def _shared_of(self, network: nn.Module) -> dict[str, Tensor]:
        return {n: v for n, v in weights_of(network).items() if n not in self.local}
