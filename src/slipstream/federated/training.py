"""Federated training of the testbed's networks, by Flower's own apps: for demos and comparisons."""

import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from torch import Tensor, nn

from slipstream.evaluation import Loss, Task, evaluate
from slipstream.federated import (
    AdaptiveFreezing,
    EightBit,
    Encoding,
    Everything,
    Exact,
    GrowingModes,
    Policy,
    Round,
    TopK,
)
from slipstream.federated.flower import CompressedAveraging, compression_mod
from slipstream.federated.flower_api import (
    ArrayRecord,
    ClientApp,
    Context,
    Message,
    MetricRecord,
    RecordDict,
)
from slipstream.federated.in_process import Fate, InProcessGrid
from slipstream.testbed.clients import split_among_clients
from slipstream.testbed.datasets import Batches, Examples
from slipstream.training import TrainingPlan, train
from slipstream.weights import load_weights_

Method = Callable[[], tuple[Policy, Encoding]]

METHODS: Mapping[str, Method] = {
    "fedavg": lambda: (Everything(), Exact()),
    "apf": lambda: (AdaptiveFreezing(threshold=0.3), Exact()),
    "top-k": lambda: (Everything(), TopK(share=0.1)),
    "8-bit": lambda: (Everything(), EightBit()),
    "modes": lambda: (GrowingModes(), Exact()),
    "apf+8-bit": lambda: (AdaptiveFreezing(threshold=0.3), EightBit()),
    "modes+8-bit": lambda: (GrowingModes(), EightBit()),
    "modes+top-k": lambda: (GrowingModes(), TopK(share=0.1)),
}


class Setup(Protocol):
    """Network and data by their names, such as a `NamedTask`."""

    @property
    def data(self) -> str:
        """The name of the data set."""

    def build(self) -> Task:
        """Make both."""


@dataclass(frozen=True)
class FederatedPlan:
    """How a network is trained by clients that keep their data."""

    rounds: int = 100
    clients: int = 10
    alpha: float | None = None  # how unlike the clients are: None, all alike; 0.3, very unlike
    epochs: int = 1  # of every client, in each round
    lr: float = 0.1
    momentum: float = 0.9
    batch_size: int = 32
    failing: float = 0.0  # share of the messages that are lost: half of them orders, half replies
    seed: int = 0  # of the split, the batches and the failures
    evaluate_every: int = 10  # rounds; and the last five

    def __post_init__(self) -> None:
        for name in ("rounds", "clients", "epochs", "batch_size", "evaluate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not 0 <= self.failing < 1:
            raise ValueError(f"failing must be at least 0 and below 1, got {self.failing}.")


@dataclass(frozen=True)
class FederatedRun:
    """Result of `train_federated`."""

    rounds: tuple[Round, ...]
    validation: Mapping[int, Mapping[str, float]]  # round to metrics
    test: Mapping[int, Mapping[str, float]]
    weights: Mapping[str, Tensor] = field(repr=False)  # of the end

    @property
    def bytes_up(self) -> int:
        """Bytes from the clients, all rounds together."""
        return sum(done.bytes_up for done in self.rounds)

    @property
    def bytes_down(self) -> int:
        """Bytes to the clients."""
        return sum(done.bytes_down for done in self.rounds)

    def final(self, metrics: Mapping[int, Mapping[str, float]], name: str = "accuracy") -> float:
        """Return the mean of a metric over the last five rounds: one round alone is noisy."""
        last = sorted(metrics)[-5:]
        return sum(metrics[number][name] for number in last) / len(last)


def train_federated(
    setup: Setup,
    plan: FederatedPlan,
    *,
    policy: Policy | None = None,
    encoding: Encoding | None = None,
    on_round: Callable[[int, int], object] | None = None,
) -> FederatedRun:
    """Train a network of the testbed by clients that keep their parts of the data.

    Server and clients are Flower's own apps, over a grid in this process.

    Args:
        setup: The network and the data set, whose training part is split among the clients.
        plan: How many clients, how they train, for how long.
        policy: Decides what may move; everything, if not given.
        encoding: How changes are written; exactly, if not given.
        on_round: Called after each round with its number and how many there are.

    Returns:
        The bytes and the metrics of the rounds.

    Raises:
        ValueError: If something of setup or plan does not fit.
    """
    experiment = setup.build()
    if not isinstance(experiment.data, Batches):
        raise ValueError(
            f"data must be of the testbed to be split among clients, not {setup.data}."
        )
    parts = split_among_clients(
        experiment.data.examples, plan.clients, alpha=plan.alpha, seed=plan.seed
    )
    app = client_app(experiment.model, experiment.loss, parts=parts, plan=plan)
    nodes = {number: {"partition-id": number} for number in range(plan.clients)}
    watch = _Watch(experiment, plan, on_round)
    arrays = ArrayRecord(experiment.model.state_dict())
    with _quiet():
        strategy = CompressedAveraging(
            experiment.model,
            policy=policy,
            encoding=encoding,
            min_train_nodes=plan.clients,
            min_available_nodes=plan.clients,
        )
        grid = InProcessGrid(app, nodes, fate=_fates(plan))
        result = strategy.start(grid, arrays, num_rounds=plan.rounds, evaluate_fn=watch)
    weights = (result.arrays or arrays).to_torch_state_dict()
    return FederatedRun(strategy.rounds, watch.validation, watch.test, weights)


@dataclass(frozen=True)
class FederatedOutcome:
    """What one method made of one split of the data."""

    method: str
    split: str
    validation: Mapping[str, float]  # metrics, means over the last five rounds
    test: Mapping[str, float]
    bytes_up: int
    bytes_down: int
    relative_bytes: float  # of both directions, relative to those of the first method
    refused: int  # replies that did not come or did not fit


def compare_federated(
    setup: Setup,
    plan: FederatedPlan,
    *,
    methods: Sequence[str] = tuple(METHODS),
    splits: Sequence[str] = ("iid", "0.3"),
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[FederatedOutcome, ...]:
    """Train the same network by several methods, on several splits of the data.

    Args:
        setup: The network and the data set.
        plan: How many clients, how they train; its `alpha` is replaced by those of `splits`.
        methods: Names out of `METHODS`.
        splits: `iid`, or the parameter of a Dirichlet distribution.
        progress: Called with what is being done, the rounds done and how many there are.

    Returns:
        An outcome for each split and method.

    Raises:
        ValueError: If there is no such method or split.
    """
    if unknown := [name for name in methods if name not in METHODS]:
        raise ValueError(f"There is no method {unknown[0]!r}; there are {', '.join(METHODS)}.")
    alphas = {split: _alpha(split) for split in splits}
    outcomes: list[FederatedOutcome] = []
    total = len(splits) * len(methods) * plan.rounds

    def on_round(number: int, _: int) -> None:
        if progress:
            progress(f"{split}, {method}", len(outcomes) * plan.rounds + number, total)

    for split, alpha in alphas.items():
        first = 0
        for method in methods:
            policy, encoding = METHODS[method]()
            own = replace(plan, alpha=alpha)
            run = train_federated(setup, own, policy=policy, encoding=encoding, on_round=on_round)
            first = first or run.bytes_up + run.bytes_down
            outcomes.append(_outcome(method, split, run, baseline_bytes=first))
    return tuple(outcomes)


def _outcome(
    method: str, split: str, run: FederatedRun, *, baseline_bytes: int
) -> FederatedOutcome:
    validation, test = (
        {name: run.final(metrics, name) for name in metrics[max(metrics)]}
        for metrics in (run.validation, run.test)
    )
    refused = sum(len(done.refused) for done in run.rounds)
    both = run.bytes_up + run.bytes_down
    return FederatedOutcome(
        method,
        split,
        validation,
        test,
        run.bytes_up,
        run.bytes_down,
        both / baseline_bytes,
        refused,
    )


def _alpha(split: str) -> float | None:
    if split == "iid":
        return None
    try:
        return float(split)
    except ValueError as error:
        raise ValueError(f"split must be iid or a number such as 0.3, got {split!r}.") from error


def client_app(
    model: nn.Module, loss: Loss, *, parts: Sequence[Examples], plan: FederatedPlan
) -> ClientApp:
    """Return a Flower app that trains `model` on the part of the data that its node names.

    Args:
        model: Receives the weights of every message.
        loss: What is trained.
        parts: The data of all clients; `partition-id` in the node's configuration chooses one.
        plan: How a client trains.

    Returns:
        The app, with `compression_mod`.
    """
    app = ClientApp(mods=[compression_mod])

    @app.train()
    def fit(message: Message, context: Context) -> Message:
        node = int(context.node_config["partition-id"])
        round_number = message.content.config_records["config"]["server-round"]
        assert isinstance(round_number, int)  # Flower's strategies write it
        seed = (plan.seed * 10_000 + round_number) * 1_000 + node
        model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
        trained = train(
            Task(model, parts[node].batches(plan.batch_size, seed=seed), loss),
            TrainingPlan(plan.epochs, lr=plan.lr, momentum=plan.momentum, seed=seed),
        )
        content = RecordDict()
        content["arrays"] = ArrayRecord(model.state_dict())
        content["metrics"] = MetricRecord(
            {"num-examples": len(parts[node]), "loss": trained.losses[-1]}
        )
        return Message(content, reply_to=message)

    return app


class _Watch:
    """Evaluates the weights of some rounds on validation and test data."""

    def __init__(
        self, experiment: Task, plan: FederatedPlan, on_round: Callable[[int, int], object] | None
    ) -> None:
        self._experiment, self._plan, self._on_round = experiment, plan, on_round
        self.validation: dict[int, dict[str, float]] = {}
        self.test: dict[int, dict[str, float]] = {}

    def __call__(self, number: int, arrays: ArrayRecord) -> MetricRecord | None:
        if self._on_round and number:
            self._on_round(number, self._plan.rounds)
        last = number > self._plan.rounds - 5
        if not last and (number == 0 or number % self._plan.evaluate_every):
            return None
        own = self._experiment
        load_weights_(own.model, arrays.to_torch_state_dict())
        parts = (own.part("validation"), own.part("test"))
        found = [evaluate(own.model, own.measured, data=part) for part in parts]
        self.validation[number], self.test[number] = found
        return MetricRecord(dict(found[0]))


def _fates(plan: FederatedPlan) -> Callable[[int, int], Fate]:
    """Draw what becomes of each message, from its node and its number alone."""

    def fate(node: int, number: int) -> Fate:
        drawn = np.random.default_rng((plan.seed, node, number)).random()
        if drawn >= plan.failing:
            return "arrives"
        return "order lost" if drawn < plan.failing / 2 else "reply lost"

    return fate


@contextmanager
def _quiet() -> Generator[None]:
    """Keep the log from telling every round and every lost message, for a `with` block."""
    loggers = [logging.getLogger(name) for name in ("flwr", "slipstream.federated.flower")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
