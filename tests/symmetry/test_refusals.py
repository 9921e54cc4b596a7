"""What cannot be traced is refused with what to pass instead."""

import pytest
import torch
from torch import nn

from slipstream.symmetry.tracing import find_neuron_groups

INPUTS = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))


def mlp():
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))


class Routed(nn.Module):
    """A shape depends on values."""

    def __init__(self, rows):
        super().__init__()
        self.rows, self.first, self.second = rows, nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x):
        rows = self.rows(x)
        result = torch.zeros(len(x), 3)
        result[rows] = self.second(self.first(x[rows]).relu())
        return result


class Branching(nn.Module):
    def __init__(self, condition):
        super().__init__()
        self.condition, self.layers = condition, mlp()

    def forward(self, x):
        return self.layers(x if self.condition(x) else -x)


SHAPES = {
    "boolean mask": lambda x: x[:, 0] > 0,
    "nonzero": lambda x: x[:, 0].gt(0).nonzero()[:, 0],
    "where": lambda x: torch.where(x[:, 0] > 0)[0],
}
BRANCHES = {
    "sum": lambda x: x.sum() > 0,
    "item": lambda x: x.sum().item() > 0,
    "numpy": lambda x: x.detach().numpy().sum() > 0,
    "list": lambda x: x.tolist()[0][0] > 0,
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_that_depends_on_values(name):
    with pytest.raises(ValueError, match=r"Routed cannot be traced: .* NeuronGroups\.load"):
        find_neuron_groups(Routed(SHAPES[name]), INPUTS)


@pytest.mark.parametrize("name", BRANCHES)
def test_a_branch_that_depends_on_values(name):
    with pytest.raises(ValueError, match=r"Branching cannot be traced: .* NeuronGroups\.load"):
        find_neuron_groups(Branching(BRANCHES[name]), INPUTS)


WRAPPED = {
    "parallel inside": (
        lambda: nn.Sequential(nn.DataParallel(mlp()), nn.Linear(3, 2)),
        "its module '0' is wrapped in DataParallel",
    ),
    "compiled inside": (
        lambda: nn.Sequential(torch.compile(mlp()), nn.Linear(3, 2)),
        "its module '0' is compiled",
    ),
    "scripted": (lambda: torch.jit.script(mlp()), "is scripted"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 2)), "Run the model once"),
    "function": (lambda: torch.relu, "must be a torch.nn.Module, got builtin_function"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", WRAPPED)
def test_a_wrapped_model(name):
    build, message = WRAPPED[name]
    with pytest.raises(ValueError, match=message):
        find_neuron_groups(build(), INPUTS)


@pytest.mark.parametrize("empty", [INPUTS[:0], (INPUTS[:0],), {"input": INPUTS[:0]}])
def test_an_empty_batch(empty):
    with pytest.raises(ValueError, match=r"example_input is empty \(\(0, 5\)\)"):
        find_neuron_groups(mlp(), empty)


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_a_wrapper_of_the_whole_model_is_seen_through(wrap):
    assert find_neuron_groups(wrap(mlp()), INPUTS).sizes() == {"0.weight:0": 8}


def test_a_module_that_was_compiled_in_place_is_traced_as_it_is():
    model = mlp()
    model.compile()
    compiled = model._compiled_call_impl
    assert find_neuron_groups(model, INPUTS).sizes() == {"0.weight:0": 8}
    assert model._compiled_call_impl is compiled


@pytest.mark.parametrize("kind", ["T5", "SwitchTransformers"])
def test_an_encoder_without_the_input_of_its_decoder(kind):
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=2, num_experts=2
    )
    model, tokens = getattr(transformers, f"{kind}Model")(config), torch.ones(2, 5).long()
    for given in ({"input_ids": tokens}, tokens):
        with pytest.raises(ValueError, match="give a dictionary of input_ids and decoder_input_i"):
            find_neuron_groups(model, given)
    with pytest.raises(ValueError, match=r"example_input \(dict: \(2, 5\)\): .*exactly one of"):
        find_neuron_groups(model, {"input_ids": tokens})
    with pytest.raises(ValueError, match=r"as a dictionary\.$"):
        find_neuron_groups(model, {"decoder_input_ids": tokens})
