from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from cases import CASES
from slipstream.symmetry.neuron_groups import Block, NeuronGroup, NeuronGroups
from slipstream.symmetry.proof import check
from slipstream.symmetry.tracing import find_neuron_groups
from slipstream.weights import weights_of

INPUTS = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


def groups_of(model, *blocks, **sizes):
    shapes = {name: tuple(value.shape) for name, value in weights_of(model).items()}
    listed = tuple(NeuronGroup(name, size) for name, size in sizes.items())
    return NeuronGroups(listed, tuple(Block(t, a, 0, (g,)) for t, a, g in blocks), shapes)


def hand_written(model):
    return groups_of(
        model,
        ("0.weight", 0, "first"),
        ("0.bias", 0, "first"),
        ("2.weight", 1, "first"),
        ("2.weight", 0, "second"),
        ("2.bias", 0, "second"),
        ("4.weight", 1, "second"),
        first=8,
        second=7,
    )


def test_keeps_what_is_right_word_for_word():
    model = CASES["mlp"].model()
    groups = hand_written(model)
    assert check(model, groups, INPUTS) == groups


@pytest.mark.parametrize("lost", range(6))
def test_drops_a_group_that_forgets_a_tensor_and_no_other(lost):
    model = CASES["mlp"].model()
    whole = hand_written(model)
    wrong = NeuronGroups(whole.groups, whole.blocks[:lost] + whole.blocks[lost + 1 :], whole.shapes)
    checked = check(model, wrong, INPUTS)
    kept = "second" if lost < 3 else "first"
    assert list(checked.sizes()) == [kept]
    (dropped,) = checked.dropped
    moved_by = float(dropped.reason.split("by ")[1].split(" ")[0])
    assert 1e-3 < moved_by < 10


def test_forgotten_running_statistics_show_in_an_untrained_network():
    case = CASES["conv_flatten"]
    model = case.model()
    right = find_neuron_groups(model, case.inputs())
    for lost in ("1.running_mean", "1.running_var"):
        blocks = tuple(block for block in right.blocks if block.tensor != lost)
        checked = check(model, NeuronGroups(right.groups, blocks, right.shapes), case.inputs())
        assert list(checked.sizes()) == ["4.weight:0"]


def test_a_pair_is_really_swapped():
    """Of two neurons, half of all random permutations move none."""
    model = nn.Sequential(nn.Linear(6, 2), nn.ReLU(), nn.Linear(2, 3))
    wrong = groups_of(model, ("0.weight", 0, "pair"), pair=2)
    for seed in range(4):
        assert not len(check(model, wrong, INPUTS, seed=seed))


def test_a_group_that_does_not_reach_the_output_is_not_handed_out():
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.Threshold(1e9, 0.0))
    found = find_neuron_groups(model, INPUTS)
    assert not len(found)
    assert found.dropped[0].reason.startswith("could not be tested")


def test_zeros_at_the_start_do_not_hide_a_mistake():
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
    nn.init.zeros_(model[2].weight)
    nn.init.zeros_(model[0].bias)
    wrong = groups_of(model, ("0.weight", 0, "units"), ("2.weight", 1, "units"), units=5)
    assert not len(check(model, wrong, INPUTS))
    assert len(find_neuron_groups(model, INPUTS)) == 1


class Frozen(nn.Module):
    """No derivative reaches the features."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        with torch.no_grad():
            x = self.features(x)
        return self.head(x).argmax(-1), self.head(x)


def test_a_group_without_a_derivative_is_tested_by_moving_one_tensor_alone():
    assert list(find_neuron_groups(Frozen(), INPUTS).sizes()) == [
        "features.0.weight:0",
        "features.2.weight:0",
    ]


class Casting(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 50), nn.Linear(50, 2)

    def forward(self, x):
        hidden = self.first(x).to(torch.float32).softmax(-1, dtype=torch.float32)
        return self.second(hidden.type_as(x) * torch.ones(50, dtype=torch.float32))


def test_casts_inside_a_model_do_not_pass_for_errors():
    (pin,) = [p for p in find_neuron_groups(Casting(), INPUTS).pins if p.operator == "x"] or [None]
    assert pin is None
    model = Casting()
    groups = groups_of(
        model,
        ("first.weight", 0, "units"),
        ("first.bias", 0, "units"),
        ("second.weight", 1, "units"),
        units=50,
    )
    assert len(check(model, groups, INPUTS)) == 1


def test_a_model_that_draws_random_numbers_is_refused():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 2)

        def forward(self, x):
            return self.second(self.first(x) + torch.randn(5))

    model = Noisy()
    groups = groups_of(model, ("first.weight", 0, "units"), units=5)
    with pytest.raises(ValueError, match="Two evaluations of Noisy on example_input differ"):
        check(model, groups, INPUTS)


def test_groups_of_another_model_are_refused():
    other = nn.Sequential(nn.Linear(6, 9))
    groups = groups_of(other, ("0.weight", 0, "units"), units=9)
    with pytest.raises(ValueError, match=r"expect '0.weight' of shape \(9, 6\), .* has \(8, 6\)"):
        check(CASES["mlp"].model(), groups, INPUTS)


def test_units_that_the_example_leaves_dead_are_tested_on_other_inputs():
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
    with torch.no_grad():
        model[0].weight.abs_()
        model[0].bias.zero_().sub_(0.1)
    assert len(find_neuron_groups(model, -torch.ones(4, 6))) == 1


class Repeated(nn.Module):
    """A map that is applied again and again: rounding errors grow with every step."""

    def __init__(self, steps):
        super().__init__()
        self.steps = steps
        self.into, self.map, self.out = nn.Linear(6, 20), nn.Linear(20, 20), nn.Linear(20, 2)
        with torch.no_grad():
            generator = torch.Generator().manual_seed(0)
            self.map.weight.copy_(torch.randn(20, 20, generator=generator))

    def forward(self, x):
        x = self.into(x)
        for _ in range(self.steps):
            x = torch.cos(self.map(x))
        return self.out(x)


def test_rounding_that_a_network_magnifies_is_no_fault_until_it_hides_everything():
    """After 14 steps an error of 1e-16 is one of 1e-9, after 24 steps one of 1e-3."""
    magnified, hidden = (find_neuron_groups(Repeated(steps), INPUTS[:2]) for steps in (14, 24))
    assert list(magnified.sizes()) == ["into.weight:0"]
    assert not magnified.dropped
    assert not len(hidden)
    assert hidden.dropped[-1].reason.endswith("but so does rounding alone")


def test_a_network_that_magnifies_rounding_does_not_hide_a_mistake():
    model = Repeated(14)
    groups = find_neuron_groups(model, INPUTS[:2], prove=False)
    wrong = replace(groups, blocks=tuple(b for b in groups.blocks if b.tensor != "map.bias"))
    assert not len(check(model, wrong, INPUTS[:2]))


def test_a_large_batch_is_not_evaluated_whole():
    seen = np.zeros(101, dtype=int)  # a list would be as before after the proof

    class Noting(nn.Sequential):
        def forward(self, x):
            seen[len(x)] += 1
            return super().forward(x)

    model = Noting(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
    groups = find_neuron_groups(model, torch.randn(100, 6), prove=False)
    seen[:] = 0
    assert len(check(model, groups, torch.randn(100, 6)))
    assert np.flatnonzero(seen).tolist() == [8]


def test_a_model_that_takes_whole_batches_only_gets_them():
    class Demanding(nn.Sequential):
        def forward(self, x):
            return super().forward(x.view(4, 25, 6)).flatten(0, 1)

    model = Demanding(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
    assert len(find_neuron_groups(model, torch.randn(100, 6))) == 1


def test_a_model_without_numbers_cannot_be_proven():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
    groups = find_neuron_groups(model, INPUTS.to("meta"), prove=False)
    assert len(groups) == 1
    with pytest.raises(ValueError, match=r"meta device and hold no values .* pass prove=False"):
        check(model, groups, INPUTS)
