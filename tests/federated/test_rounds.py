"""Server and clients over many rounds: alike bit by bit, whoever fails, is late or sends junk."""

import numpy as np
import pytest
import torch
from torch import nn

from slipstream.federated import (
    AdaptiveFreezing,
    Client,
    EightBit,
    Everything,
    Exact,
    GrowingModes,
    RefusedError,
    Server,
    TopK,
    bytes_of,
    follow,
)
from slipstream.modes.embedding import HELD
from slipstream.modes.growth import Growth

PLAN = Growth(warm_up=3, every=2, share=0.3, modes=2, window=6)
POLICIES = {
    "everything": Everything,
    "freezing": lambda: AdaptiveFreezing(threshold=0.6, decay=0.5, every=1),
    "modes": lambda: GrowingModes(PLAN),
}
ENCODINGS = [Exact(), EightBit(), TopK(share=0.3)]


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.norm = nn.BatchNorm1d(6)
        self.second = nn.Linear(6, 6, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(torch.tanh(self.norm(self.first(x))))


def local_change(weights, node, version):
    """What training on a client might do: a pull to the client's own target, and noise."""
    generator = torch.Generator().manual_seed(1000 * node + version)
    found = {}
    for name, value in weights.items():
        if value.is_floating_point():
            noise = torch.randn(value.shape, generator=generator)
            found[name] = value + 0.2 * (0.3 * node + 1 - value) + 0.05 * noise
        else:
            found[name] = value + 1
    found["second.weight"] = found["first.weight"]
    return found


def run(server, rounds, *, clients=None, fails=lambda node, number: None):
    """Rounds in which nodes may fail: "order", before the client sees it, or "reply", after."""
    clients = {} if clients is None else clients
    for number in range(rounds):
        for node in range(4):
            order = server.order(node)
            if fails(node, number) == "order":
                continue
            clients[node] = follow(clients.get(node), order)
            assert clients[node].shared.checksum == server.shared.checksum
            assert torch.equal(clients[node].shared.vector, server.shared.vector)
            trained = local_change(clients[node].weights, node, server.shared.version)
            clients[node], reply = clients[node].reply(trained, examples=node + 1)
            # As between two messages of a real client.
            clients[node] = Client.unpack(*clients[node].pack())
            if fails(node, number) == "reply":
                continue
            server.accept(node, reply)
        server.finish_round()
    return clients


def often(node, number):
    drawn = np.random.default_rng((node, number)).random()
    return "order" if drawn < 0.2 else "reply" if drawn < 0.4 else None


@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("fails", [lambda node, number: None, often], ids=["none fail", "40% fail"])
def test_all_who_are_there_hold_the_same(policy, encoding, fails):
    server = Server(Tied(), policy=POLICIES[policy](), encoding=encoding)
    run(server, 14, fails=fails)
    assert all(torch.isfinite(value).all() for value in server.weights.values())
    # The mean target of clients that fail alike is 0.3 * 2 + 1; nothing has run away from it.
    assert server.weights["first.weight"].sub(1.5).abs().max() < 1.5
    assert not any(done.refused for done in server.rounds)


def test_exact_and_everything_is_the_mean_by_examples():
    torch.manual_seed(0)
    model = Tied()
    server = Server(model)
    start = {name: value.clone() for name, value in server.weights.items()}
    run(server, 1)
    trained = [local_change(start, node, 0) for node in range(4)]
    for name in ("first.weight", "first.bias", "norm.running_mean"):
        mean = sum((node + 1) / 10 * one[name].double() for node, one in enumerate(trained))
        assert torch.allclose(server.weights[name].double(), mean, atol=1e-6)
    assert int(server.weights["norm.num_batches_tracked"]) == 1
    assert server.weights["second.weight"].equal(server.weights["first.weight"])


def test_a_model_that_trains_on_changes_nothing_that_was_sent():
    model = Tied()
    server = Server(model)
    client = follow(None, server.order(0))
    model.load_state_dict(client.weights)
    model(torch.randn(9, 6))
    assert server.weights["norm.running_mean"].abs().sum() == 0
    sent = model.norm.running_mean.clone()
    _, reply = client.reply(model.state_dict(), examples=1)
    model(5 + torch.randn(9, 6))
    server.accept(0, reply)
    server.finish_round()
    assert torch.equal(server.weights["norm.running_mean"], sent)


def test_a_server_that_starts_anew_takes_old_clients_along():
    old = Server(Tied())
    clients = run(old, 3)
    server = Server(Tied(), weights=old.weights, policy=POLICIES["modes"]())
    clients = run(server, 5, clients=clients)
    assert clients[0].shared.version == 4
    assert server.rounds[0].everything == (0, 1, 2, 3)


def test_bytes_are_those_of_the_arrays_in_both_directions():
    server = Server(Tied())
    weights, buffers = 6 * 6 + 6 + 6 + 6, 4 * 12 + 8
    run(server, 3)
    for done in server.rounds:
        assert done.bytes_up == done.bytes_down == 4 * (4 * weights + buffers)
        assert done.coordinates == weights
    assert server.rounds[0].everything == (0, 1, 2, 3)
    assert server.rounds[1].everything == ()


def test_modes_send_free_weights_and_references_and_the_change_once():
    server = Server(nn.Linear(40, 10, bias=False), policy=GrowingModes(PLAN))
    change = {"weight": torch.randn(10, 40)}

    def once(client, order):
        client = follow(client, order)
        trained = {n: v + 0.1 * change[n] * torch.randn(()) for n, v in client.weights.items()}
        return client.reply(trained, examples=1)

    client = None
    for _ in range(8):
        client, reply = once(client, server.order(0))
        server.accept(0, reply)
        server.finish_round()
    down, up = (
        [getattr(done, name) for done in server.rounds] for name in ("bytes_down", "bytes_up")
    )
    coordinates = [done.coordinates for done in server.rounds]
    assert coordinates[:3] == [400] * 3
    assert coordinates[3] == coordinates[4] == 280 + 2
    assert list(up) == [4 * number for number in coordinates]
    # A bit for each weight, and mode and slope of the newly embedded: once.
    news = 400 // 8 + 120 * (1 + 4)
    assert down[3] == 4 * 400 + news
    assert down[4] == 4 * coordinates[4]


def test_who_missed_rounds_gets_packets_or_everything_by_what_is_shorter():
    server, clients = Server(nn.Linear(100, 10), encoding=EightBit()), {}

    def round_of(*nodes):
        for node in nodes:
            clients[node] = follow(clients.get(node), server.order(node))
            trained = {n: v + 0.01 * torch.randn(v.shape) for n, v in clients[node].weights.items()}
            clients[node], reply = clients[node].reply(trained, examples=1)
            server.accept(node, reply)
        server.finish_round()

    round_of(0, 1)
    for _ in range(2):
        round_of(0)
    order = server.order(1)
    assert order.base == 0
    assert bytes_of(order.arrays) < bytes_of(server.shared.pack())
    back = follow(clients[1], order)
    assert torch.equal(back.shared.vector, server.shared.vector)
    for _ in range(3):
        round_of(0)
    order = server.order(1)
    assert order.base is None
    assert torch.equal(follow(clients[1], order).shared.vector, server.shared.vector)


def test_what_an_encoding_leaves_over_arrives_later_in_both_directions():
    server = Server(nn.Linear(50, 1, bias=False), encoding=TopK(share=0.1))
    start, pushes, clients = server.weights["weight"].clone(), torch.randn(2, 50), {}
    for number in range(40):
        for node, push in enumerate(pushes):
            clients[node] = follow(clients.get(node), server.order(node))
            trained = {"weight": clients[node].weights["weight"] + push * (number == 0)}
            clients[node], reply = clients[node].reply(trained, examples=1)
            server.accept(node, reply)
        server.finish_round()
    moved = server.weights["weight"] - start
    assert torch.allclose(moved, pushes.mean(0, keepdim=True), atol=1e-5)


def test_a_lost_reply_is_not_taken_for_sent():
    server = Server(nn.Linear(50, 1, bias=False), encoding=TopK(share=0.1))
    start = follow(None, server.order(0))
    push = {"weight": torch.randn(1, 50)}
    add = lambda weights: {n: v + push[n] for n, v in weights.items()}  # ruff: ignore[lambda-assignment]
    after, reply = start.reply(add(start.weights), examples=1)
    # It arrives: what was not sent waits. It does not arrive: nothing waits.
    lost = follow(after, server.order(0))
    assert lost.residual.abs().sum() == 0
    server.accept(0, reply)
    server.finish_round()
    kept = follow(after, server.order(0))
    sent = TopK(share=0.1).decode(
        {name.removeprefix("step/"): array for name, array in reply.arrays.items()}, 50
    )
    assert torch.allclose(kept.residual, push["weight"][0] - sent, atol=1e-6)


def test_what_is_held_does_not_move():
    server = Server(Tied(), policy=POLICIES["freezing"]())
    clients, held = {}, 0
    for _ in range(14):
        before = server.shared
        run(server, 1, clients=clients)
        still = before.embedding.mode == HELD
        held += int(still.sum())
        assert torch.equal(before.vector[still], server.shared.vector[still])
    assert held


def reply_of(server, client, **changes):
    client = follow(client, server.order(0))
    _, reply = client.reply(local_change(client.weights, 0, 0), examples=3)
    return type(reply)(**{**vars(reply), **changes})


def test_rubbish_is_refused_and_named_and_the_others_go_on():
    server = Server(Tied(), encoding=EightBit())
    client = run(server, 2)[0]
    good = reply_of(server, client)
    nan = {name: array.copy() for name, array in good.arrays.items()}
    nan["step/scales"][0] = np.nan
    infinite = {name: array.copy() for name, array in good.arrays.items()}
    infinite["buffer/norm.running_var"][1] = np.inf
    short = {**good.arrays, "step/values": good.arrays["step/values"][:5]}
    without = {name: array for name, array in good.arrays.items() if "running_mean" not in name}
    server.accept(0, good)
    for node, changes in {
        1: {"arrays": nan},
        2: {"arrays": infinite},
        3: {"arrays": short},
        4: {"version": 0},
        5: {"checksum": 1},
        6: {"examples": 0},
        7: {"arrays": without},
        8: {"arrays": {}},
    }.items():
        server.accept(node, reply_of(server, client, **changes))
    done = server.finish_round()
    assert done.accepted == (0,)
    words = {
        1: "not finite, in the step",
        2: "not finite, in norm.running_var",
        3: "Expected 54 values, got 5",
        4: "reply is of version 0, this round is of version 2",
        5: "copy of version 2 is another one",
        6: "trained on 0 examples",
        7: "buffer 'norm.running_mean' is missing",
        8: "lacks 'values'",
    }
    for node, expected in words.items():
        assert expected in done.refused[node]
    assert server.order(1).base is None
    assert server.order(0).base == 2


def test_a_round_without_any_reply_changes_nothing():
    server = Server(Tied())
    clients = run(server, 2)
    before = server.shared
    server.refuse(1, "it did not answer")
    done = server.finish_round()
    assert (done.accepted, done.refused) == ((), {1: "it did not answer"})
    assert server.shared is before
    run(server, 1, clients=clients)
    assert server.shared.version == before.version + 1


def test_a_client_refuses_what_it_cannot_follow():
    server = Server(Tied())
    clients = run(server, 3)
    with pytest.raises(RefusedError, match=r"version 3 builds on version 2, but .* holds nothing"):
        follow(None, server.order(0))
    old = follow(None, Server(Tied()).order(0))
    with pytest.raises(RefusedError, match="builds on version 2, but this client holds version 0"):
        follow(old, server.order(0))
    order = server.order(1)
    run(server, 1, clients=clients)
    ahead = follow(clients[1], server.order(1))
    with pytest.raises(RefusedError, match=r"version 3 builds on .* holds version 4.*stale"):
        follow(ahead, order)


def test_another_architecture_and_no_examples_are_told():
    client = follow(None, Server(Tied()).order(0))
    with pytest.raises(ValueError, match=r"'first.weight' is \(7, 7\).*expected \(6, 6\)"):
        client.reply(dict.fromkeys(client.weights, torch.zeros(7, 7)), examples=1)
    with pytest.raises(ValueError, match="trained on 0 examples"):
        client.reply(client.weights, examples=0)
    with pytest.raises(ValueError, match=r"The first weights: the tensor 'weight'.*unknown"):
        Server(Tied(), weights={"weight": torch.zeros(1)})
