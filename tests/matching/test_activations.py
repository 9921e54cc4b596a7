import numpy as np
import pytest
import torch
from torch import nn

from cases import CASES
from slipstream.evaluation import Task
from slipstream.matching import match_activations
from slipstream.matching.activations import Covariance
from slipstream.symmetry.permutation import Permutation
from slipstream.symmetry.tracing import find_neuron_groups
from slipstream.weights import weights_of

# Their groups are seen by layers; the others use a weight behind the back of its module.
SEEN = [name for name in CASES if name not in ("functional_matmul", "tied_autoencoder")]


def found_again(case, batches, **options):
    model = case.model().double()
    groups = find_neuron_groups(model, batches[0][0])
    source = {name: value.clone() for name, value in weights_of(model).items()}
    hidden = Permutation.random(groups, seed=3)
    found = match_activations(
        source, hidden.apply(source), Task(model, batches), groups=groups, **options
    )
    return found, hidden, model


@pytest.mark.parametrize("name", SEEN)
def test_a_permuted_network_is_found_again_by_what_it_computes(name):
    case = CASES[name]
    batches = [(inputs.double(), labels) for inputs, labels in case.batches()]
    found, hidden, model = found_again(case, batches)
    best = match_activations(
        weights_of(model),
        hidden.apply(weights_of(model)),
        Task(model, batches),
        groups=hidden.groups,
        start=hidden,
    )
    # Twins (units that never differ on the data) may change places: the objective is the same.
    assert found.objective == pytest.approx(best.objective, rel=1e-5)
    assert best.source_to_target.same_as(hidden)
    assert found.source_to_target.groups is hidden.groups


def test_correlations_are_those_of_numpy_however_they_are_batched():
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(4, 90, generator=generator) + 1000  # the mean is far from zero
    source = torch.randn(5, 90, generator=generator) + target[:1] - 2000
    target[3], source[4] = 7.0, 0.0  # constant
    covariance = Covariance()
    for left, right in zip(
        target.split([50, 30, 10], 1), source.split([50, 30, 10], 1), strict=True
    ):
        covariance.add(left, right)
    with np.errstate(invalid="ignore"):
        expected = np.corrcoef(target.double().numpy(), source.double().numpy())[:4, 4:]
    expected = torch.from_numpy(np.nan_to_num(expected))
    torch.testing.assert_close(covariance.correlation(), expected, atol=1e-5, rtol=0)


def test_scale_and_running_statistics_of_the_units_do_not_matter():
    case = CASES["conv_flatten"]
    model = case.model().double()
    batches = [(inputs.double(), labels) for inputs, labels in case.batches()]
    groups = find_neuron_groups(model, batches[0][0])
    source = {name: value.clone() for name, value in weights_of(model).items()}
    hidden = Permutation.random(groups, seed=3)
    target = hidden.apply(source)
    scale = torch.tensor([0.1, 3.0, 20.0, 1.0], dtype=torch.float64)
    target["0.weight"] = target["0.weight"] * scale[:, None, None, None]
    target["0.bias"] = target["0.bias"] * scale
    target["1.running_mean"] = target["1.running_mean"] * scale
    target["1.running_var"] = target["1.running_var"] * scale**2
    found = match_activations(source, target, Task(model, batches), groups=groups)
    assert found.source_to_target.same_as(hidden)


def test_a_group_that_no_layer_sees_keeps_its_start_and_is_named():
    case = CASES["functional_matmul"]
    batches = case.batches()
    with pytest.warns(UserWarning, match="neurons of 'first:0'"):
        found, _, _ = found_again(case, [(b.double(), y) for b, y in batches])
    assert found.source_to_target.moved() == 0


def test_the_model_is_left_as_it_was():
    case = CASES["conv_flatten"]
    model = case.model().train()
    groups = find_neuron_groups(model, case.inputs())
    before = {name: value.clone() for name, value in weights_of(model).items()}
    other = weights_of(case.model(seed=1))
    match_activations(before, other, Task(model, case.batches()), groups=groups)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in weights_of(model).items())
    assert not any(module._forward_hooks for module in model.modules())


def test_bad_data_is_named():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    groups = find_neuron_groups(model, torch.ones(2, 4))
    weights = weights_of(model)
    bad = [torch.ones(3, 4), torch.full((3, 4), torch.nan)]
    with pytest.raises(ValueError, match="empty"):
        match_activations(weights, weights, Task(model), groups=groups)
    with pytest.raises(ValueError, match="0 output of the model is not finite on batch 1"):
        match_activations(weights, weights, Task(model, bad), groups=groups)
