"""A model without numbers is proven on a narrow twin, and refused where no twin is like it."""

import pytest
import torch

from oracles.network_zoo import NETWORKS
from slipstream.pretrained import example_input_for
from slipstream.symmetry.narrow_model import narrow_model, proven_alike
from slipstream.symmetry.tracing import find_neuron_groups

transformers = pytest.importorskip("transformers")


def without_numbers(name):
    with torch.device("meta"):
        return NETWORKS[name].build().eval()


@pytest.mark.parametrize("name", ["Llama, tied", "Mixtral"])
def test_a_model_without_numbers_has_the_groups_of_one_with_them(name):
    network = NETWORKS[name]
    model = network.build().eval()
    shapes = without_numbers(name)
    assert find_neuron_groups(shapes, example_input_for(shapes)) == find_neuron_groups(
        model, network.inputs(model)
    )


def test_a_twin_is_narrow_and_as_deep():
    large = transformers.LlamaConfig(num_hidden_layers=3, num_attention_heads=8, pad_token_id=31999)
    with torch.device("meta"):
        twin = narrow_model(transformers.LlamaForCausalLM(large))
    assert twin.config.num_hidden_layers == 3
    assert sum(value.numel() for value in twin.parameters()) < 100_000
    assert large.hidden_size == 4096


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (
            "OPT",
            {
                "hidden_size": 48,
                "word_embed_proj_dim": 48,
                "ffn_dim": 96,
                "num_attention_heads": 4,
                "max_position_embeddings": 64,
            },
        ),
        (
            "Mamba2",
            {
                "hidden_size": 64,
                "head_dim": 16,
                "num_heads": 8,
                "state_size": 16,
                "expand": 2,
                "n_groups": 2,
            },
        ),
    ],
)
def test_widths_that_depend_on_each_other_stay_consistent(kind, settings):
    config = getattr(transformers, f"{kind}Config")(vocab_size=200, num_hidden_layers=1, **settings)
    with torch.device("meta"):
        model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    groups = find_neuron_groups(model, example_input_for(model))
    assert len(groups)
    assert not groups.dropped


def test_only_what_is_proven_of_the_twin_is_handed_out():
    network = NETWORKS["SwiGLU"]
    groups = find_neuron_groups(network.build(), network.inputs(None))
    assert proven_alike(groups, groups, groups) == groups
    assert len(proven_alike(groups, groups, groups.keep([]))) == 0
    other = find_neuron_groups(NETWORKS["mlp"].build(), NETWORKS["mlp"].inputs(None))
    with pytest.raises(ValueError, match="a narrower model of the same configuration has other"):
        proven_alike(groups, other, other)


def test_a_model_of_ones_own_without_numbers_needs_them_for_the_proof():
    with torch.device("meta"):
        model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
    with pytest.raises(ValueError, match="cannot be proven: load its weights, or pass"):
        find_neuron_groups(model, torch.ones(2, 4))
    assert len(find_neuron_groups(model, torch.ones(2, 4), prove=False)) == 1
