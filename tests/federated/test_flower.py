"""Flower's own apps over a grid in this process: FedAvg where nothing is left out; failures."""

import gc
import logging

import pytest
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from torch import nn

from slipstream.federated import EightBit, GrowingModes
from slipstream.federated.flower import CompressedAveraging, compression_mod
from slipstream.federated.in_process import InProcessGrid
from slipstream.federated.training import METHODS, FederatedPlan, train_federated
from slipstream.modes.growth import Growth
from slipstream.named_task import NamedTask

QUICK = Growth(warm_up=2, every=1, share=0.3, modes=2)


@pytest.fixture(autouse=True)
def _quiet():
    logger = logging.getLogger("flwr")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1))


def an_app(*mods, spoil=lambda node, weights, metrics: None):
    """An app that trains on a node's own data, and may send rubbish."""
    app = ClientApp(mods=list(mods))

    @app.train()
    def fit(message, context):
        model, node = network(), context.node_id
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        generator = torch.Generator().manual_seed(node)
        inputs = torch.randn(8, 3, generator=generator)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            (model(inputs) - inputs.sum(1, keepdim=True)).square().mean().backward()
            optimizer.step()
        weights, metrics = model.state_dict(), {"num-examples": node, "round": 1.0}
        spoil(node, weights, metrics)
        content = {"arrays": ArrayRecord(weights), "metrics": MetricRecord(metrics)}
        return Message(RecordDict(content), reply_to=message)

    @app.evaluate()
    def judge(message, context):
        model = network()
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        total = sum(p.sum().item() for p in model.parameters())
        metrics = MetricRecord({"num-examples": 1, "total": total})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def start(strategy, grid, rounds=3):
    return strategy.start(grid, ArrayRecord(network().state_dict()), num_rounds=rounds)


def compressed(**options):
    return CompressedAveraging(network(), **options)


def test_exact_and_everything_is_flowers_own_averaging():
    plain = start(FedAvg(fraction_evaluate=0.0), InProcessGrid(an_app(), {1: {}, 2: {}, 3: {}}))
    ours = start(compressed(), InProcessGrid(an_app(compression_mod), {1: {}, 2: {}, 3: {}}))
    expected = plain.arrays.to_torch_state_dict()
    for name, value in ours.arrays.to_torch_state_dict().items():
        if value.is_floating_point():
            assert torch.allclose(value, expected[name], atol=1e-6), name
    for number, metrics in plain.train_metrics_clientapp.items():
        assert ours.train_metrics_clientapp[number] == pytest.approx(dict(metrics))


def test_bytes_are_those_that_flower_sends():
    counted = []

    def counting(message, context, call_next):
        down = size(message)
        reply = call_next(message, context)
        counted.append((down, size(reply)))
        return reply

    def size(message):
        return sum(len(array.data) for array in message.content["slipstream"].values())

    strategy = compressed(policy=GrowingModes(QUICK), encoding=EightBit())
    start(strategy, InProcessGrid(an_app(counting, compression_mod), {1: {}, 2: {}}), rounds=5)
    for number, done in enumerate(strategy.rounds):
        down, up = zip(*counted[2 * number : 2 * number + 2], strict=True)
        assert (done.bytes_down, done.bytes_up) == (sum(down), sum(up))
    assert strategy.rounds[-1].bytes_up < strategy.rounds[0].bytes_up


def test_a_strategy_starts_anew_with_other_weights():
    other = ArrayRecord({name: value + 1 for name, value in network().state_dict().items()})
    policy = GrowingModes(QUICK)
    strategy, grid = (
        compressed(policy=policy),
        InProcessGrid(an_app(compression_mod), {1: {}, 2: {}}),
    )
    start(strategy, grid)
    again = strategy.start(grid, other, num_rounds=3).arrays.to_torch_state_dict()
    fresh = compressed(policy=GrowingModes(QUICK))
    grid = InProcessGrid(an_app(compression_mod), {1: {}, 2: {}})
    expected = fresh.start(grid, other, num_rounds=3).arrays.to_torch_state_dict()
    assert all(torch.equal(again[name], value) for name, value in expected.items())
    assert strategy.rounds == fresh.rounds


def test_evaluation_gets_the_latest_weights():
    strategy = compressed(fraction_evaluate=1.0, encoding=EightBit())
    result = start(strategy, InProcessGrid(an_app(compression_mod), {1: {}, 2: {}}))
    final = result.arrays.to_torch_state_dict()
    total = sum(final[name].sum().item() for name, _ in network().named_parameters())
    assert result.evaluate_metrics_clientapp[3]["total"] == pytest.approx(total, abs=1e-5)
    assert not any(done.refused for done in strategy.rounds)


def test_a_late_node_and_one_that_lost_its_state_get_everything():
    app = an_app(compression_mod)
    grid = InProcessGrid(app, {1: {}, 2: {}})
    strategy = compressed(policy=GrowingModes(QUICK))
    configure = strategy.configure_train

    def at_round(number, *arguments):
        if number == 4:
            late = InProcessGrid(app, {5: {}})
            grid.contexts[5], grid._sent[5] = late.contexts[5], 0
            grid.contexts[1].state = RecordDict()
        return configure(number, *arguments)

    strategy.configure_train = at_round
    start(strategy, grid, rounds=6)
    rounds = strategy.rounds
    assert rounds[3].everything == (5,)
    assert "builds on version 2, but this client holds nothing" in rounds[3].refused[1]
    assert rounds[3].accepted == (2, 5)
    assert rounds[4].everything == (1,)
    assert rounds[5].accepted == (1, 2, 5)


def nan(node, weights, metrics):
    if node == 2:
        weights["0.weight"][0, 0] = torch.nan


def other(node, weights, metrics):
    if node == 2:
        weights["0.weight"] = torch.zeros(4, 5)


def empty(node, weights, metrics):
    if node == 2:
        metrics["num-examples"] = 0


def nameless(node, weights, metrics):
    if node == 2:
        del metrics["num-examples"]


def broken(node, weights, metrics):
    if node == 2:
        raise RuntimeError("out of memory")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (nan, "not finite, in the step"),
        (other, r"'0.weight' is (4, 5) float32, expected (4, 3)"),
        (empty, "trained on 0 examples"),
        (nameless, "must hold a MetricRecord with 'num-examples'"),
        (broken, "out of memory"),
    ],
)
def test_a_client_that_fails_is_named_and_the_others_go_on(spoil, words, caplog):
    strategy = compressed(policy=GrowingModes(QUICK), encoding=EightBit())
    grid = InProcessGrid(an_app(compression_mod, spoil=spoil), {1: {}, 2: {}, 3: {}})
    result = start(strategy, grid)
    for done in strategy.rounds:
        assert done.accepted == (1, 3)
        assert words in done.refused[2]
    assert "goes without client 2" in caplog.text
    weights = result.arrays.to_torch_state_dict().values()
    assert all(torch.isfinite(value).all() for value in weights)


def test_apps_and_servers_that_do_not_fit_are_told():
    strategy = compressed()
    start(strategy, InProcessGrid(an_app(), {1: {}, 2: {}}), rounds=1)
    assert "KeyError" in strategy.rounds[0].refused[1]  # the app looks for "arrays"

    def repeat(message, context, call_next):
        return Message(RecordDict(), reply_to=message)

    strategy = compressed()
    result = start(strategy, InProcessGrid(an_app(repeat), {1: {}, 2: {}}), rounds=1)
    assert "has no reply of compression_mod" in strategy.rounds[0].refused[1]
    assert not result.train_metrics_clientapp
    grid = InProcessGrid(an_app(compression_mod), {1: {}, 2: {}})
    replies = []
    receive = grid.send_and_receive
    grid.send_and_receive = lambda *a, **k: replies.extend(receive(*a, **k)) or []
    start(FedAvg(fraction_evaluate=0.0), grid, rounds=1)
    assert "does not use the strategy CompressedAveraging" in replies[0].error.reason


SETUP = NamedTask("mlp", "digits", width=16, examples=300)


@pytest.mark.parametrize("method", METHODS)
def test_digits_are_learned_by_every_method_although_messages_are_lost(method):
    policy, encoding = METHODS[method]()
    plan = FederatedPlan(rounds=8, clients=4, alpha=0.3, failing=0.3)
    run = train_federated(SETUP, plan, policy=policy, encoding=encoding)
    assert run.test[8]["accuracy"] > 0.4
    reasons = {reason for done in run.rounds for reason in done.refused.values()}
    assert reasons == {"order lost", "reply lost"}


def test_a_run_repeats_itself_and_modes_save_bytes():
    plan = FederatedPlan(rounds=5, clients=3)
    seen = []

    def run(policy=None):
        return train_federated(
            SETUP, plan, policy=policy, on_round=lambda *numbers: seen.append(numbers)
        )

    first, again = run(GrowingModes(QUICK)), run(GrowingModes(QUICK))
    for name, value in first.weights.items():
        assert torch.equal(value, again.weights[name])
    assert seen[:5] == [(number, 5) for number in range(1, 6)]
    everything = run()
    assert first.bytes_up < 0.8 * everything.bytes_up
    assert first.rounds[-1].bytes_down < everything.rounds[-1].bytes_down


def test_data_that_cannot_be_split_are_refused():
    with pytest.raises(ValueError, match="clients must be between 1 and 300"):
        train_federated(SETUP, FederatedPlan(clients=500))
    with pytest.raises(ValueError, match="rounds must be at least 1, got 0"):
        FederatedPlan(rounds=0)


def test_a_grid_leaves_the_identity_of_the_process_as_it_was():
    from slipstream.federated.flower_api import TaskIdentity

    gc.collect()
    before = TaskIdentity._run_id  # Flower's own property raises where it is not set
    grids = [InProcessGrid(an_app(), {1: {}}) for _ in range(2)]
    assert TaskIdentity.run_id == 0
    grids.pop()
    gc.collect()
    assert TaskIdentity.run_id == 0
    grids.clear()
    gc.collect()
    assert TaskIdentity._run_id == before  # as above
    try:
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 5, 6, 7
        grid = InProcessGrid(an_app(), {1: {}})
        assert TaskIdentity.run_id == 6
        del grid
        gc.collect()
        assert TaskIdentity.run_id == 6
    finally:
        # As above.
        TaskIdentity._task_id = TaskIdentity._run_id = TaskIdentity._node_id = before
