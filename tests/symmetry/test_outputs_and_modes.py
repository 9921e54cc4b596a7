"""Groups hold for every output, in both modes, and what was not looked at is said."""

from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional

from slipstream.symmetry.eval_copy import traceable
from slipstream.symmetry.outputs import OutputError, output_tensors
from slipstream.symmetry.permutation import Permutation
from slipstream.symmetry.tracing import find_neuron_groups
from slipstream.weights import weights_of

INPUTS = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))


@dataclass
class Answers:
    first: torch.Tensor
    rest: dict


Pair = namedtuple("Pair", "policy value")


def largest_change(model, groups, *inputs):
    """Of all outputs, by a permutation of all groups, in float64."""
    model = model.double()
    moved = Permutation.random(groups, seed=1).apply(weights_of(model))
    inputs = tuple(value.double() for value in inputs)
    before = output_tensors(model(*inputs))
    after = output_tensors(torch.func.functional_call(model, moved, inputs))
    return max(float((after[name] - value).detach().abs().max()) for name, value in before.items())


class TwoHeads(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.wrap = wrap
        self.trunk, self.policy, self.value = nn.Linear(5, 8), nn.Linear(8, 4), nn.Linear(8, 1)

    def forward(self, x):
        hidden = self.trunk(x).relu()
        return self.wrap(self.policy(hidden), self.value(hidden))


WRAPS = {
    "dictionary with logits": lambda a, b: {"logits": a, "value": b},
    "nested": lambda a, b: {"logits": a, "more": [{"aux": (b,)}]},
    "dataclass": lambda a, b: Answers(a, {"b": b}),
    "dataclass inside": lambda a, b: (None, [Answers(a, {"b": b})], "text", 3),
    "named tuple": Pair,
}


@pytest.mark.parametrize("name", WRAPS)
def test_every_output_counts(name):
    model = TwoHeads(WRAPS[name])
    groups = find_neuron_groups(model, INPUTS)
    assert groups.sizes() == {"trunk.weight:0": 8}
    assert groups.blocks_on("value.weight", 1)
    assert groups.blocks_on("policy.weight", 1)
    assert largest_change(model, groups, INPUTS) < 1e-12


def test_hidden_states_among_the_outputs_of_an_own_dictionary_count():
    class Features(TwoHeads):
        def forward(self, x):
            hidden = self.trunk(x).relu()
            return {"logits": self.policy(hidden), "hidden_states": hidden}

    assert find_neuron_groups(Features(None), INPUTS).sizes() == {}


def test_what_transformers_returns_on_the_way_to_its_logits_is_named():
    outputs = pytest.importorskip("transformers.modeling_outputs")

    class Language(TwoHeads):
        def forward(self, x):
            hidden = self.trunk(x).relu()
            return outputs.CausalLMOutput(logits=self.policy(hidden), hidden_states=(hidden,))

    groups = find_neuron_groups(Language(None), INPUTS)
    assert groups.sizes() == {"trunk.weight:0": 8}
    assert "hidden_states are not counted as outputs" in groups.caveats[0]
    assert "note: hidden_states are not counted" in str(groups)


def test_a_cache_for_the_next_call_is_no_output():
    outputs = pytest.importorskip("transformers.modeling_outputs")

    class Decoder(TwoHeads):
        def forward(self, x):
            hidden = self.trunk(x).relu()
            cache = Hidden(hidden)
            return outputs.BaseModelOutputWithPast(self.policy(hidden), past_key_values=cache)

    groups = find_neuron_groups(Decoder(None), INPUTS)
    assert groups.sizes() == {"trunk.weight:0": 8}
    assert groups.caveats[0].startswith("past_key_values are not counted as outputs")


class Hidden:
    """A class that nobody can look into."""

    def __init__(self, value):
        self.value = value


@pytest.mark.parametrize(
    "wrap", [lambda a, b: Hidden(a), lambda a, b: {"logits": a, "b": Hidden(b)}]
)
def test_an_object_that_hides_its_tensors_is_refused(wrap):
    with pytest.raises(ValueError, match=r"class Hidden, .*register_pytree_node"):
        find_neuron_groups(TwoHeads(wrap), INPUTS)


def test_no_tensor_at_all_is_refused():
    with pytest.raises(OutputError, match="returns no tensor"):
        find_neuron_groups(TwoHeads(lambda a, b: None), INPUTS)


class Auxiliary(nn.Module):
    """A head that only training has, behind dropout and noise."""

    def __init__(self, noise):
        super().__init__()
        self.trunk, self.head, self.aux = nn.Linear(5, 8), nn.Linear(8, 3), nn.Linear(8, 3)
        self.noise, self.norm = noise, nn.BatchNorm1d(8)

    def forward(self, x):
        hidden = self.norm(self.trunk(x)).relu()
        if not self.training:
            return self.head(hidden)
        hidden = self.noise(hidden)
        return self.head(hidden), self.aux(hidden)


NOISES = {
    "none": lambda h: h,
    "dropout": lambda h: functional.dropout(h, 0.5),
    "stochastic depth": lambda h: h * torch.empty(len(h), 1).bernoulli_(0.5),
    "noise": lambda h: h + torch.randn_like(h) + torch.rand(8),
    "dropout of channels": lambda h: functional.dropout1d(h[..., None], 0.5)[..., 0],
}


@pytest.mark.parametrize("name", NOISES)
def test_a_head_of_training_moves_with_its_trunk(name):
    groups = find_neuron_groups(Auxiliary(NOISES[name]), INPUTS)
    assert groups.sizes() == {"trunk.weight:0": 8}
    assert groups.blocks_on("aux.weight", 1)
    assert (groups.dropped, groups.caveats) == ((), ())
    model = Auxiliary(lambda h: h).train()
    assert largest_change(model, groups, INPUTS) < 1e-12


def test_the_proof_knows_what_training_computes():
    from dataclasses import replace

    from slipstream.symmetry.proof import check

    model = Auxiliary(NOISES["dropout"])
    groups = find_neuron_groups(model, INPUTS)
    forgetful = replace(groups, blocks=tuple(b for b in groups.blocks if b.tensor != "aux.weight"))
    assert not len(check(model, forgetful, INPUTS))


def test_a_training_mode_that_cannot_be_traced_is_said(caplog):
    class Demanding(Auxiliary):
        def forward(self, x, target=None):
            hidden = self.trunk(x).relu()
            if self.training:
                return functional.cross_entropy(self.aux(hidden), target)
            return self.head(hidden)

    groups = find_neuron_groups(Demanding(None), INPUTS)
    assert groups.sizes() == {"trunk.weight:0": 8}
    said, unused = groups.caveats
    assert said.startswith("the groups hold in evaluation mode: training mode could not be traced")
    assert unused.startswith("aux.weight, aux.bias, norm.weight, norm.bias and 2 more take no part")
    assert "aux.weight" in caplog.text


def test_a_branch_that_the_example_does_not_take_is_said(caplog):
    class Optional(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.context, self.head = nn.Linear(5, 8), nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x, context=None):
            hidden = self.first(x)
            return self.head((hidden if context is None else hidden + self.context(context)).relu())

    groups = find_neuron_groups(Optional(), INPUTS)
    assert groups.caveats[0].startswith("context.weight, context.bias take no part in a call with")
    assert "context.weight" in caplog.text
    both = find_neuron_groups(Optional(), (INPUTS, torch.randn(4, 3)))
    assert both.caveats == ()
    assert both.blocks_on("context.weight", 0)
    assert type(both).from_json(groups.to_json()) == groups


def test_what_is_stored_and_not_returned_counts_as_an_output():
    class Storing(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk, self.head, self.aux = nn.Linear(5, 8), nn.Linear(8, 3), nn.Linear(8, 4)

        def forward(self, x):
            hidden = self.trunk(x).relu()
            self.extra = self.aux(hidden)
            return self.head(hidden)

    model = Storing()
    groups = find_neuron_groups(model, INPUTS)
    assert groups.sizes() == {"trunk.weight:0": 8}
    assert groups.blocks_on("aux.weight", 1)
    before = model(INPUTS), model.extra
    moved = Permutation.random(groups, seed=1).apply(weights_of(model))
    after = torch.func.functional_call(model, moved, (INPUTS,)), model.extra
    torch.testing.assert_close(after, before)


class Regularised(nn.Module):
    """Keeps a number that training adds to the loss."""

    def __init__(self, penalty):
        super().__init__()
        self.trunk, self.head, self.penalty = nn.Linear(5, 8), nn.Linear(8, 3), penalty

    def forward(self, x):
        hidden = self.trunk(x).relu()
        self.extra = self.penalty(hidden)
        return self.head(hidden)


def test_a_stored_loss_of_the_same_weights_counts_as_an_output():
    orders = Regularised(lambda hidden: (hidden * torch.arange(8).to(hidden)).sum())
    assert not len(find_neuron_groups(orders, INPUTS))
    for penalty in (lambda hidden: hidden.square().mean(), lambda hidden: hidden):
        assert find_neuron_groups(Regularised(penalty), INPUTS).sizes() == {"trunk.weight:0": 8}


def test_an_optional_input_of_transformers_is_tried():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=6,
        vocab_size=20,
    )

    class Typed(transformers.BertForSequenceClassification):
        """Uses the table of token types only if it is given some."""

        def forward(self, input_ids, token_type_ids=None):
            hidden = self.bert.embeddings.word_embeddings(input_ids)
            if token_type_ids is not None:
                hidden = hidden + self.bert.embeddings.token_type_embeddings(token_type_ids)
            return {"logits": self.classifier(hidden.relu())}

    tokens = {"input_ids": torch.randint(0, 20, (2, 5))}
    groups = find_neuron_groups(Typed(config), tokens)
    assert groups.blocks_on("bert.embeddings.token_type_embeddings.weight", 1)


def test_a_mask_that_only_compiled_models_demand_is_given():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(hidden_size=8, num_hidden_layers=0, vocab_size=20)

    class Masked(transformers.BertForSequenceClassification):
        """Makes its own mask, but not while it is compiled."""

        def forward(self, input_ids, attention_mask=None):
            if attention_mask is None and not torch.compiler.is_compiling():
                attention_mask = torch.ones_like(input_ids)
            hidden = self.bert.embeddings.word_embeddings(input_ids)
            return {"logits": self.classifier(hidden * attention_mask[..., None])}

    tokens = {"input_ids": torch.randint(0, 20, (2, 5))}
    assert list(find_neuron_groups(Masked(config), tokens).sizes().values()) == [8]


@pytest.mark.parametrize("kind", ["switch_transformers", "nllb_moe"])
def test_experts_that_are_modules_are_all_asked(kind):
    name = f"transformers.models.{kind}.modeling_{kind}"
    module = pytest.importorskip(name)
    torch.manual_seed(0)
    chosen = torch.tensor([[0], [2], [2], [1]])
    if kind == "nllb_moe":
        config = module.NllbMoeConfig(d_model=6, num_experts=3, moe_token_dropout=0.0)
        experts = module.NllbMoeExperts(config, ffn_dim=8)
        chosen = torch.cat([chosen, (chosen + 1) % 3], 1)
    else:
        config = module.SwitchTransformersConfig(d_model=6, d_ff=8, num_experts=3)
        experts = module.SwitchTransformersExperts(config)
        chosen = torch.nn.functional.one_hot(chosen, 3)
        chosen[3] = 0  # beyond the expert's capacity
    hidden, weights = torch.randn(4, 6), torch.rand(chosen.shape[:2])
    expected = experts.eval()(hidden, chosen, weights)
    with traceable(experts):
        torch.testing.assert_close(experts(hidden, chosen, weights), expected)
    assert "forward" not in vars(experts)
