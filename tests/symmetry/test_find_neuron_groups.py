import pytest
import torch
from torch import nn
from torch.nn import functional

from cases import CASES
from slipstream.symmetry.permutation import Permutation
from slipstream.symmetry.tracing import find_neuron_groups
from slipstream.weights import load_weights_, weights_of


@pytest.fixture(scope="module")
def found():
    """The groups of every case, not proven: the tests below are the proof."""
    return {
        name: find_neuron_groups(case.model(), case.inputs(), prove=False)
        for name, case in CASES.items()
    }


def disturbed(case, seed):
    """A model in float64 whose gains, biases and statistics differ for every neuron."""
    model = case.model(seed=seed).double()
    generator = torch.Generator().manual_seed(seed)
    for value in weights_of(model).values():
        if value.is_floating_point():
            value.mul_(torch.rand(value.shape, generator=generator) + 0.5)
            value.add_(torch.rand(value.shape, generator=generator) * 0.1)
    return model


def permuted(model, case, seed, groups):
    """A second model that holds the permuted weights, and the permutation."""
    permutation = Permutation.random(groups, seed=seed)
    other = case.model().double()
    load_weights_(other, permutation.apply(weights_of(model)))
    return other, permutation


def gradients(model, inputs, labels):
    loss = functional.cross_entropy(model(inputs.double()), labels)
    named = dict(model.named_parameters())
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


def assert_close(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=1e-7, atol=1e-9, msg=name)


@pytest.mark.parametrize("name", CASES)
def test_finds_the_groups_that_a_network_has(name, found):
    assert found[name].sizes() == CASES[name].groups
    assert list(found[name].sizes()) == list(CASES[name].groups)


@pytest.mark.parametrize("name", CASES)
def test_a_permuted_network_computes_the_same_function_and_gradients(name, found):
    case, groups = CASES[name], found[name]
    for seed in range(3):
        model = disturbed(case, seed).eval()
        other, permutation = permuted(model, case, seed, groups)
        other.eval()
        inputs, labels = case.batches(seed=seed)[2]
        torch.testing.assert_close(model(inputs.double()), other(inputs.double()))
        moved = permutation.apply(gradients(model, inputs, labels))
        assert_close(moved, gradients(other, inputs, labels))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_training_commutes_with_a_permutation(name, kind, found):
    case, groups = CASES[name], found[name]
    model = disturbed(case, 0)
    other, permutation = permuted(model, case, 1, groups)
    states = []
    for trained in (model, other):
        parameters = trained.parameters()
        optimizer = (
            torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-3)
            if kind == "sgd"
            else torch.optim.Adam(parameters, lr=1e-2, eps=1e-3)
        )
        trained.apply(lambda m: m.eval() if isinstance(m, nn.Dropout) else m)
        for inputs, labels in case.batches():
            optimizer.zero_grad()
            functional.cross_entropy(trained(inputs.double()), labels).backward()
            optimizer.step()
        states.append(optimizer.state_dict())
    assert_close(permutation.apply(weights_of(model)), weights_of(other))
    moved = permutation.apply_optimizer_state(states[0], model)["state"]
    for index, entry in states[1]["state"].items():
        tensors = {key: value for key, value in entry.items() if isinstance(value, torch.Tensor)}
        assert_close({key: moved[index][key] for key in tensors}, tensors)


def test_orders_inside_a_group_are_free_for_every_group(found):
    groups = found["grouped_conv"]
    assert groups["2.weight:0/inside"].parents == ("0.weight:0/groups",)
    assert {b.factors for b in groups.blocks_on("8.weight")} == set()
    assert groups.blocks_on("7.weight", 1)[0].factors == (
        "0.weight:0/groups",
        "2.weight:0/inside",
        4,
    )


class Spectrum(nn.Module):
    def forward(self, x):
        return torch.fft.fft(x, dim=1).abs()


class Sums(nn.Module):
    def forward(self, x):
        return x.cumsum(1)


class Reader(nn.Module):
    """Reads a place of its own choice from every channel."""

    def forward(self, x):
        return x.gather(1, torch.arange(5).expand(len(x), 5))


@pytest.mark.parametrize("layer", [Spectrum, Sums, Reader])
def test_an_operator_that_sees_the_order_pins_and_is_reported_with_its_place(layer):
    model = nn.Sequential(nn.Linear(6, 5), nn.Sequential(nn.ReLU(), layer()), nn.Linear(5, 2))
    groups = find_neuron_groups(model, torch.randn(4, 6))
    assert len(groups) == 0
    blamed = [pin.tensors[:2] for pin in groups.pins if pin.where == "1.1"]
    assert ("0.weight:0", "0.bias:0") in blamed


def test_what_other_places_do_is_not_pinned_by_an_unknown_operator():
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), Spectrum(), nn.Linear(4, 2))
    assert find_neuron_groups(model, torch.randn(4, 6)).sizes() == {"0.weight:0": 5}


def test_parameters_that_the_forward_pass_does_not_use_are_reported():
    class Wasteful(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare = nn.Linear(6, 2), nn.Linear(6, 3)

        def forward(self, x):
            return self.used(x)

    pins = find_neuron_groups(Wasteful(), torch.randn(4, 6)).pins
    unused = next(pin for pin in pins if pin.operator == "unused")
    assert unused.tensors == ("spare.weight:0", "spare.weight:1", "spare.bias:0")


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right, self.head = nn.Linear(6, 5), nn.Linear(3, 5), nn.Linear(5, 2)

    def forward(self, left, right=None):
        return {"logits": self.head((self.left(left) + self.right(right)).relu())}


@pytest.mark.parametrize(
    "example_input",
    [
        (torch.randn(4, 6), torch.randn(4, 3)),
        {"left": torch.randn(4, 6), "right": torch.randn(4, 3)},
    ],
    ids=["tuple", "dictionary"],
)
def test_several_inputs_and_outputs_of_any_structure(example_input):
    assert find_neuron_groups(TwoInputs(), example_input).sizes() == {"left.weight:0": 5}


def test_parameters_over_the_same_memory_move_together():
    model = nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5))
    model[2].weight.data = model[0].weight.data
    assert find_neuron_groups(model, torch.randn(4, 5)).sizes() == {}


def test_a_model_on_the_meta_device_is_traced_without_a_proof():
    with torch.device("meta"):
        model, inputs = CASES["residual"].build(), torch.empty(4, 2, 6, 6)
    groups = find_neuron_groups(model, inputs, prove=False)
    assert groups.sizes() == CASES["residual"].groups


@pytest.mark.parametrize("broken", [False, True])
def test_model_and_generator_are_as_before(broken):
    model = CASES["conv_flatten"].model()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    if broken:
        with pytest.raises(ValueError, match="does not accept"):
            find_neuron_groups(model, torch.randn(1, 9, 6, 6).zero_())
    else:
        find_neuron_groups(model, CASES["conv_flatten"].inputs())
        assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.get_default_dtype() == torch.float32


def test_an_input_that_does_not_fit_is_told_from_a_model_that_cannot_be_traced():
    with pytest.raises(ValueError, match=r"does not accept example_input \(Tensor: \(4, 7\)\)"):
        find_neuron_groups(nn.Linear(6, 2), torch.randn(4, 7))


class Moody(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 2)

    def forward(self, x):
        return self.layer(x) if x.sum() > 0 else self.layer(-x)


def test_a_branch_on_data_is_refused_with_a_way_out():
    with pytest.raises(ValueError, match=r"Moody cannot be traced: .* NeuronGroups\.load"):
        find_neuron_groups(Moody(), torch.ones(4, 6))


def test_a_model_that_refuses_to_be_copied_gets_its_modes_back():
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    model.computed = model[0].weight * 2
    assert find_neuron_groups(model, torch.randn(4, 6)).sizes() == {"0.weight:0": 5}
    assert all(module.training for module in model.modules())


def test_export_sees_what_make_fx_sees(monkeypatch, found):
    from slipstream.symmetry import capture

    def refuse(model, example_input):
        raise RuntimeError("not today")

    # make_fx refuses so few models that none of the cases reaches the second tracer.
    monkeypatch.setattr(capture, "_by_make_fx", refuse)
    for name in ("tied_autoencoder", "residual"):
        case = CASES[name]
        groups = find_neuron_groups(case.model(), case.inputs(), prove=False)
        assert groups.groups == found[name].groups
        assert set(groups.blocks) == set(found[name].blocks)


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_on_a_gpu_the_same_groups_are_proven(name):
    case = CASES[name]
    assert find_neuron_groups(case.model().cuda(), case.inputs().cuda()).sizes() == case.groups
