import pytest
import torch
from torch import nn

from slipstream.evaluation import Task
from slipstream.matching import match_rotations
from slipstream.symmetry.permutation import Permutation
from slipstream.symmetry.tracing import find_neuron_groups
from slipstream.weights import weights_of


def network(*, activation, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 8), activation, nn.Linear(8, 3)).double()


def data(examples, *, batches=3):
    generator = torch.Generator().manual_seed(7)
    return [
        (torch.randn(examples, 5, generator=generator, dtype=torch.float64),)
        for _ in range(batches)
    ]


def rotated(weights, turn):
    moved = dict(weights)
    moved["0.weight"], moved["0.bias"] = turn @ weights["0.weight"], turn @ weights["0.bias"]
    moved["2.weight"] = weights["2.weight"] @ turn.T
    return moved


def test_the_rotation_of_a_linear_network_is_found_and_carries_a_displacement():
    # eight inputs, so that the hidden covariance has full rank
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Identity(), nn.Linear(8, 3)).double()
    inputs = [(torch.randn(40, 8, dtype=torch.float64),)]
    groups = find_neuron_groups(model, inputs[0][0])
    source = {name: value.clone() for name, value in weights_of(model).items()}
    turn = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64))[0]
    start = Permutation.identity(groups)
    found = match_rotations(
        source, rotated(source, turn), Task(model, inputs), groups=groups, start=start
    )
    torch.testing.assert_close(found.axes["0.weight", 0], turn, atol=1e-4, rtol=0)
    displacement = {name: torch.randn_like(value) for name, value in source.items()}
    for name, value in rotated(displacement, turn).items():
        torch.testing.assert_close(
            found.apply_to(name, displacement[name]), value, atol=1e-3, rtol=0
        )


@pytest.mark.parametrize("examples", [40, 1])  # with one, most of the rotation is open
def test_where_neurons_only_changed_places_it_is_their_permutation(examples):
    model = network(activation=nn.ReLU())
    groups = find_neuron_groups(model, data(4)[0][0])
    source = {name: value.clone() for name, value in weights_of(model).items()}
    hidden = Permutation.random(groups, seed=1)
    found = match_rotations(
        source,
        hidden.apply(source),
        Task(model, data(examples)),
        groups=groups,
        start=hidden,
    )
    for name, value in hidden.apply(source).items():
        torch.testing.assert_close(found.apply_to(name, source[name]), value)


def test_no_other_rotation_lays_the_activations_closer():
    model = network(activation=nn.Tanh())
    groups = find_neuron_groups(model, data(4)[0][0])
    source, target = (
        {n: v.clone() for n, v in weights_of(network(activation=nn.Tanh(), seed=s)).items()}
        for s in (1, 2)
    )
    found = match_rotations(
        source, target, Task(model, data(30)), groups=groups,
        start=Permutation.identity(groups),
    )  # fmt: skip
    inputs = torch.cat([batch[0] for batch in data(30)])
    heard = []
    for weights in (source, target):
        hidden = torch.tanh(inputs @ weights["0.weight"].T + weights["0.bias"])
        heard.append(hidden - hidden.mean(0))
    turn = found.axes["2.weight", 1]
    torch.testing.assert_close(turn @ turn.T, torch.eye(8, dtype=torch.float64))
    distance = (heard[1] - heard[0] @ turn.T).norm()
    torch.manual_seed(0)
    for _ in range(20):
        skew = torch.randn(8, 8, dtype=torch.float64) * 0.01
        near = torch.linalg.matrix_exp(skew - skew.T) @ turn
        assert (heard[1] - heard[0] @ near.T).norm() > distance


def test_a_tensor_with_an_axis_that_no_layer_hears_keeps_the_permutation():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 3)
            self.gain = nn.Parameter(torch.rand(8) + 0.5)

        def forward(self, inputs):
            return self.last(torch.relu(self.first(inputs)) * self.gain)

    model = Gated().double()
    groups = find_neuron_groups(model, data(4)[0][0])
    start = Permutation.random(groups, seed=1)
    weights = {name: value.clone() for name, value in weights_of(model).items()}
    found = match_rotations(weights, weights, Task(model, data(30)), groups=groups, start=start)
    gain = torch.arange(8.0)
    assert torch.equal(found.apply_to("gain", gain), start.apply_to("gain", gain))
