"""Whatever one client sends, it is refused alone; and a server can be saved and resumed."""

import io
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from slipstream.federated import AdaptiveFreezing, EightBit, GrowingModes, Server, TopK, follow
from slipstream.federated.policies import Everything
from slipstream.modes import Growth


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))


def replies(server, nodes=(1, 2, 3), clients=None):
    found, clients = {}, {} if clients is None else clients
    for node in nodes:
        client = follow(clients.get(node), server.order(node))
        moved = {
            n: v + 0.1 * node if v.is_floating_point() else v for n, v in client.weights.items()
        }
        clients[node], found[node] = client.reply(moved, examples=node)
    return found


def arrays(change):
    def spoil(reply):
        return replace(reply, arrays=change(dict(reply.arrays)))

    return spoil


HOSTILE = {
    "examples is text": lambda r: replace(r, examples="3"),
    "examples is NaN": lambda r: replace(r, examples=math.nan),
    "examples is negative": lambda r: replace(r, examples=-5),
    "examples without end": lambda r: replace(r, examples=10**400),
    "examples is a flag": lambda r: replace(r, examples=True),
    "another version": lambda r: replace(r, version=r.version + 1),
    "another checksum": lambda r: replace(r, checksum=1),
    "float64": arrays(lambda a: a | {"step/values": a["step/values"].astype(np.float64)}),
    "whole numbers": arrays(lambda a: a | {"step/values": a["step/values"].astype(np.int32)}),
    "another shape": arrays(lambda a: a | {"step/values": a["step/values"].reshape(1, -1)}),
    "too short": arrays(lambda a: a | {"step/values": a["step/values"][:-1]}),
    "NaN": arrays(lambda a: a | {"step/values": a["step/values"] * np.float32("nan")}),
    "infinite": arrays(lambda a: a | {"step/values": a["step/values"] * np.float32("inf")}),
    "nothing": arrays(lambda a: {}),
    "another array": arrays(lambda a: a | {"weights": a["step/values"]}),
    "another array of the step": arrays(lambda a: a | {"step/more": a["step/values"]}),
    "another buffer": arrays(lambda a: a | {"buffer/x": np.zeros(1)}),
    "a buffer's dtype": arrays(
        lambda a: a | {"buffer/1.running_var": a["buffer/1.running_var"].astype(np.float64)}
    ),
    "a negative variance": arrays(
        lambda a: a | {"buffer/1.running_var": -a["buffer/1.running_var"]}
    ),
    "arrays are text": lambda r: replace(r, arrays="abc"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_reply_is_refused_alone(case):
    alone, among = Server(network()), Server(network())
    for node, reply in replies(alone, (1, 2)).items():
        alone.accept(node, reply)
    for node, reply in replies(among).items():
        among.accept(node, HOSTILE[case](reply) if node == 3 else reply)
    done = among.finish_round()
    assert (done.accepted, list(done.refused)) == ((1, 2), [3])
    alone.finish_round()
    for name, value in alone.weights.items():
        torch.testing.assert_close(among.weights[name], value, rtol=0, atol=0)


def test_the_second_reply_of_a_client_does_not_count():
    server = Server(network())
    for node, reply in replies(server).items():
        server.accept(node, reply)
    own = replies(server, (3,))[3]
    server.accept(3, replace(own, examples=1000))
    done = server.finish_round()
    assert done.accepted == (1, 2, 3)
    assert "twice" in done.refused[3]


def test_a_bound_on_the_norm_refuses_what_is_longer():
    server = Server(network(), max_norm=1.0)  # 21 weights, each moved by 0.1 times the node
    for node, reply in replies(server).items():
        server.accept(node, reply)
    done = server.finish_round()
    assert done.accepted == (1, 2)
    assert "max_norm is 1" in done.refused[3]
    with pytest.raises(ValueError, match="max_norm must be above 0, got 0"):
        Server(network(), max_norm=0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: {"policy": Everything(), "encoding": TopK(share=0.5)},
        lambda: {"policy": AdaptiveFreezing(threshold=0.3), "encoding": EightBit()},
        lambda: {"policy": GrowingModes(Growth(warm_up=2, every=1, modes=2, window=3))},
    ],
)
def test_a_server_resumes_where_it_stopped(make):
    whole, first = Server(network(), **make()), Server(network(), **make())
    clients = {whole: {}, first: {}}

    def rounds(server, known):
        for _ in range(3):
            for node, reply in replies(server, clients=known).items():
                server.accept(node, reply)
            server.finish_round()

    for server, known in clients.items():
        rounds(server, known)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    second = Server(network(), **make())
    second.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    rounds(whole, clients[whole])
    rounds(second, clients[first])
    assert second.rounds == whole.rounds
    for name, value in whole.weights.items():
        assert torch.equal(second.weights[name], value)
    with pytest.raises(ValueError, match="a model of 21 weights; this one has 2"):
        Server(nn.Linear(1, 1)).load_state_dict(first.state_dict())
