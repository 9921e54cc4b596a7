import pytest
import torch
from torch import nn

from slipstream.evaluation import Task, classification_loss, gradient
from slipstream.matching import GradientSampler, LowRank, match_gradients
from slipstream.matching.gradients import dense
from slipstream.symmetry.neuron_groups import Block, NeuronGroup, NeuronGroups
from slipstream.symmetry.permutation import Permutation
from slipstream.weights import weights_of

BATCHES = [
    (torch.randn(n, 40, generator=torch.Generator().manual_seed(n)), torch.arange(n) % 3)
    for n in (7, 4)
]
GROUPS = NeuronGroups(
    (NeuronGroup("units", 50),),
    (
        Block("0.weight", 0, 0, ("units",)),
        Block("0.bias", 0, 0, ("units",)),
        Block("2.weight", 1, 0, ("units",)),
    ),
    {"0.weight": (50, 40), "0.bias": (50,), "2.weight": (3, 50), "2.bias": (3,)},
)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(40, 50), nn.ReLU(), nn.Linear(50, 3)).double()


class Shared(nn.Module):
    """Uses the weight of a linear layer a second time, behind the layer's back."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(40, 40)
        self.head = nn.Linear(40, 3)

    def forward(self, x):
        return self.head(self.first(x).relu() @ self.first.weight.T)


class Twice(nn.Module):
    """Calls the same layer twice."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(40, 40)
        self.head = nn.Linear(40, 3)

    def forward(self, x):
        return self.head(self.first(self.first(x).relu()))


class Gated(nn.Module):
    """Uses a weight a second time only where the gate is open."""

    def __init__(self, *, tied):
        super().__init__()
        self.first = nn.Linear(40, 40)
        if tied:  # else the same layer is called again
            self.again = nn.Linear(40, 40)
            self.again.weight = self.first.weight
        self.head = nn.Linear(40, 3)
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        again = getattr(self, "again", self.first)
        return self.head(self.gate * again(x.flip(1)) + self.first(x).relu())


def double(batches):
    return [(inputs.double(), labels) for inputs, labels in batches]


@pytest.mark.parametrize("make", [network, Shared, Twice])
def test_factors_multiply_to_the_gradient(make):
    torch.manual_seed(1)
    model = make().double()
    expected = gradient(model, classification_loss, data=double(BATCHES))
    sampler = GradientSampler(model, classification_loss, names=tuple(expected))
    for _ in range(2):  # the first is taken both ways and compared, the second trusts the layers
        found = sampler.sample(weights_of(model), double(BATCHES))
        for name, value in expected.items():
            torch.testing.assert_close(dense(found[name]), value)
    kinds = {name for name, value in found.items() if isinstance(value, LowRank)}
    assert kinds == ({"0.weight"} if make is network else set())
    assert sampler.evaluations == 2


@pytest.mark.parametrize("tied", [True, False])
def test_a_use_that_shows_later_is_counted(tied):
    model = Gated(tied=tied).double()
    sampler = GradientSampler(model, classification_loss, names=("first.weight",))
    sampler.sample(weights_of(model), double(BATCHES))  # nothing tells the two uses apart here
    opened = {**weights_of(model), "gate": torch.ones((), dtype=torch.float64)}
    found = sampler.sample(opened, double(BATCHES))
    expected = gradient(model, classification_loss, weights=opened, data=double(BATCHES))
    torch.testing.assert_close(dense(found["first.weight"]), expected["first.weight"])


def test_factors_are_used_where_they_are_smaller_and_leave_no_hooks():
    model = network()
    batch = (torch.randn(15, 40, dtype=torch.float64), torch.arange(15) % 3)
    sampler = GradientSampler(model, classification_loss, names=("0.weight",))
    for count, kind in ((1, LowRank), (2, torch.Tensor)):  # (15, 40 + 50) for each; (50, 40)
        found = sampler.sample(weights_of(model), [batch] * count)
        assert isinstance(found["0.weight"], kind)
    assert not any(module._forward_hooks for module in model.modules())


def test_frozen_parameters_count_and_stay_frozen():
    model = network()
    expected = gradient(model, classification_loss, data=double(BATCHES))
    model[0].weight.requires_grad_(False)
    sampler = GradientSampler(model, classification_loss, names=("0.weight",))
    found = sampler.sample(weights_of(model), double(BATCHES))
    torch.testing.assert_close(dense(found["0.weight"]), expected["0.weight"])
    assert not model[0].weight.requires_grad
    assert list(found) == ["0.weight"]


def test_bf16_gradients_are_compared_in_float32():
    model = network().bfloat16()
    sampler = GradientSampler(model, classification_loss, names=tuple(GROUPS.shapes))
    batches = [(inputs.bfloat16(), labels) for inputs, labels in BATCHES]
    found = sampler.sample(weights_of(model), batches)
    assert {dense(value).dtype for value in found.values()} == {torch.float32}


def test_the_gradient_of_a_permuted_network_gives_the_permutation_away():
    model = network()
    source = weights_of(model)
    hidden = Permutation.random(GROUPS, seed=3)
    found = match_gradients(
        source, hidden.apply(source), Task(model, double(BATCHES)), groups=GROUPS
    )
    dead = [n for n in range(50) if source["0.weight"][n].abs().sum() == 0]
    assert not dead
    assert found.source_to_target.same_as(hidden)


def test_no_data_and_bad_losses_are_named():
    model = network()
    sampler = GradientSampler(model, classification_loss, names=tuple(GROUPS.shapes))
    with pytest.raises(ValueError, match="empty"):
        sampler.sample(weights_of(model), [])
    sampler = GradientSampler(
        model, lambda m, batch: m(batch[0]).sum() * torch.nan, names=tuple(GROUPS.shapes)
    )
    with pytest.raises(ValueError, match="batch 0"):
        sampler.sample(weights_of(model), double(BATCHES))
