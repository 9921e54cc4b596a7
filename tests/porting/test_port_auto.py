"""What `auto` chooses: nothing, labels alone, or the fine-tune; and when it is sure enough."""

import json
import math
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from slipstream.evaluation import Task, evaluate, squared_loss
from slipstream.porting import FineTune, PortPlan, port_fine_tune
from slipstream.porting.choosing import Choice
from slipstream.porting.displacement import Prepared
from slipstream.porting.fitting import output_biases
from slipstream.porting.judge import Measured
from slipstream.porting.labels import within_budget
from slipstream.porting.search import Search
from slipstream.weights import clone, parameter_names, weights_of

TRUE = {"weight": torch.tensor([[1.0, -2.0, 0.5]]), "bias": torch.tensor([0.25])}


def linear_batches(seed, *, count=8, size=6):
    """Batches whose targets are what `TRUE` gives."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, size, 3, generator=generator)
    return [(x, x @ TRUE["weight"].T + TRUE["bias"]) for x in inputs]


def ported(to_base, *, moved=None, plan=None, **pieces):
    """What is made of a linear model; the fine-tune moved by `moved`, by noise if not given."""
    base = {name: torch.zeros_like(value) for name, value in TRUE.items()}
    noise = {"weight": torch.tensor([[0.3, 0.4, -0.2]]), "bias": torch.tensor([-0.3])}
    given = {"data": linear_batches(0), "validation": linear_batches(1), **pieces}
    return port_fine_tune(
        FineTune(base, moved or noise, to_base),
        Task(nn.Linear(3, 1), loss=squared_loss, **given),
        plan=plan or PortPlan(),
    )  # fmt: skip


# what is chosen


def test_a_fine_tune_that_is_noise_for_a_base_leaves_it_untouched():
    result = ported(TRUE)
    assert (result.method, result.strength) == ("untouched", 0)
    assert all(torch.equal(value, TRUE[name]) for name, value in result.weights.items())
    assert result.loss_after == result.loss_before < result.loss_identity
    assert result.reason.startswith("Nothing is changed")
    tried = {c.method for c in result.candidates}
    assert tried >= {"untouched", "output-bias", "function"}
    assert any(method.endswith("few-shot") for method in tried)


def test_a_base_that_is_off_by_a_constant_gets_its_bias_fitted():
    result = ported({**TRUE, "bias": torch.tensor([5.0])})
    assert result.method == "output-bias"
    assert torch.allclose(result.weights["bias"], TRUE["bias"], atol=1e-5)
    assert torch.equal(result.weights["weight"], TRUE["weight"])


def test_a_base_that_is_a_little_off_everywhere_is_fine_tuned():
    off = {
        "weight": TRUE["weight"] + torch.tensor([[0.06, -0.06, 0.06]]),
        "bias": TRUE["bias"] - 0.06,
    }
    result = ported(off)
    assert "output-bias+few-shot" in result.method
    assert "few-shot at rate 0.00" in result.reason
    assert result.loss_after < 0.5 * result.loss_before


class Normalised(nn.Sequential):
    """A small network, with BatchNorm or without."""

    def __init__(self, norm):
        super().__init__(nn.Linear(3, 4), norm(4), nn.ReLU(), nn.Linear(4, 1))


@pytest.mark.parametrize(("norm", "again"), [(nn.BatchNorm1d, True), (nn.Identity, False)])
def test_training_begins_before_a_fit_that_batchnorm_would_undo(norm, again):
    torch.manual_seed(0)
    bases = [clone(weights_of(Normalised(norm))) for _ in range(3)]
    bases[2]["3.bias"] += 3
    task = Task(
        Normalised(norm),
        linear_batches(0),
        squared_loss,
        validation=linear_batches(1),
        unlabelled=[x for x, _ in linear_batches(2)],
    )
    tried = {c.method for c in port_fine_tune(FineTune(*bases), task).candidates}
    trained = [m for m in tried if "distil" in m or "few-shot" in m]
    fitted = ("function", "output-bias")
    before = [m[: min(m.find(s) for s in ("distil", "few-shot") if s in m)] for m in trained]
    assert any(f in earlier for earlier in before for f in fitted) is not again
    # What is trained is fitted once more, as that takes no gradient.
    assert any(m.endswith(("distil+function", "distil-outputs+function")) for m in tried)


def test_less_of_what_training_moved_is_measured_too():
    result = ported({**TRUE, "weight": TRUE["weight"] + 0.1}, plan=PortPlan("few-shot"))
    strengths = {c.strength for c in result.candidates if c.method == "few-shot"}
    assert strengths == {0.2, 0.35, 0.6, 1.0}


def test_a_fine_tune_that_fits_is_carried():
    result = ported({n: torch.zeros_like(v) for n, v in TRUE.items()}, moved=TRUE)
    assert (result.method, result.strength) == ("identity", 1)
    assert result.loss_after == pytest.approx(0, abs=1e-10)
    assert 0 <= result.margin < result.loss_before


def test_what_needs_no_matching_is_tried_first():
    tried = [c.method for c in ported(TRUE).candidates]
    order = ["untouched", "identity", "function", "function-outputs", "output-bias"]
    assert list(dict.fromkeys(tried))[:5] == order


@pytest.mark.parametrize("seed", range(20))
def test_it_is_never_worse_than_the_untouched_base(seed):
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    base, tuned, other = (
        {n: torch.randn(v.shape, generator=generator) for n, v in weights_of(model).items()}
        for _ in range(3)
    )
    validation = linear_batches(seed + 100, count=1 + seed % 3, size=1 + seed % 5)
    result = port_fine_tune(
        FineTune(base, tuned, other),
        Task(model, linear_batches(seed, count=2), squared_loss, validation=validation),
        plan=PortPlan(stages=2),
    )  # fmt: skip
    before, after = (
        evaluate(model, {"loss": squared_loss}, weights=weights, data=validation)["loss"]
        for weights in (other, result.weights)
    )
    assert after <= before * (1 + 1e-6)
    assert (after < before) == (result.method != "untouched")


# how sure it is


def unsure(**options):
    """The loss is lower on one of two examples, and a little higher on the other."""
    zero, one = {"weight": torch.zeros(1, 2)}, {"weight": torch.tensor([[1.0, -0.1]])}
    examples = (torch.eye(2), torch.tensor([[1.0], [0.5]]))
    validation = [examples] * options.pop("copies", 1)
    return port_fine_tune(
        FineTune(zero, one, zero),
        Task(nn.Linear(2, 1, bias=False), loss=squared_loss, validation=validation),
        plan=PortPlan(strengths=(1.0,), **options),
    )  # fmt: skip


def test_two_validation_examples_are_too_few_to_be_sure():
    result = unsure()
    # Differences of the losses: -1 / 2 and (0.6 ** 2 - 0.5 ** 2) / 2; their standard error is half
    # their distance, and of two parts a margin takes three times as many.
    assert result.margin == pytest.approx(3 * (0.5 + 0.055) / 2)
    assert (result.method, result.loss_after) == ("untouched", result.loss_before)
    assert result.loss_identity < result.loss_before
    assert "not more than the margin of 0.833" in result.reason
    assert "margin of 0.833" in str(result)


def test_the_same_difference_on_many_examples_is_believed():
    assert unsure(copies=40).method == "identity"


def test_the_margin_is_chosen_by_the_plan():
    assert unsure(margin=0).method == "identity"
    with pytest.raises(ValueError, match="margin must be at least 0, got -1"):
        PortPlan(margin=-1)


def test_a_margin_weighs_parts_by_their_sizes():
    sizes = torch.tensor([1.0, 3.0], dtype=torch.float64)
    first, second = (Measured(torch.tensor(values), sizes) for values in ([0.0, 0.0], [4.0, 0.0]))
    # Differences 4 and 0, their mean 1: apart by 3/4 and -3/4 once weighted.
    assert first.margin(second, errors=1) == pytest.approx(3 * math.sqrt(2 * 2 * 0.75**2))
    assert Measured(torch.zeros(1), torch.ones(1)).margin(first, errors=1) is None


def chosen_of(untouched, free, trained):
    """Which of three candidates is taken, by their losses on each part of the validation data."""
    sizes = torch.ones(4, dtype=torch.float64)
    tried = []
    for step, losses in (("untouched", untouched), ("function", free), ("few-shot", trained)):
        narrow, wide = (
            Measured(torch.tensor(values), torch.ones(len(values), dtype=torch.float64))
            for values in (losses[:4], losses)
        )
        measured = replace(narrow, wider=wide if len(losses) > len(sizes) else None)
        tried.append(Choice(Prepared(step, "identity", {}), float(len(tried)), measured=measured))
    inputs = SimpleNamespace(plan=PortPlan(), note=None)
    return Search(inputs, None, None, tried=tried).surely_best(tried[0])[0].method


def test_between_two_that_change_something_the_lower_loss_is_taken():
    # On average the second is lower, by less than its standard error.
    assert chosen_of([9.0] * 8, [1.0, 3.0] * 4, [3.0, 0.9, 1.0, 3.0]) == "few-shot"
    assert chosen_of([9.0] * 8, [1.0, 3.0] * 4, [3.0, 1.1, 1.0, 3.0]) == "function"


def test_what_is_surely_better_than_nothing_is_taken_if_the_lowest_loss_is_not():
    # The third is lowest on the four parts that it was measured on, by luck on three of them.
    assert chosen_of([9.0] * 8, [8.0] * 8, [0.0, 0.0, 0.0, 25.0]) == "function"


def compared(model, batch):
    """The loss of an example depends on the others, so that no batch can be split."""
    outputs = model(batch[0])
    return (outputs - outputs.mean() - batch[1] + batch[1].mean()).square().mean()


@pytest.mark.parametrize(("rows", "method"), [(None, "identity"), (3, "untouched")])
def test_one_batch_that_cannot_be_split_is_warned_of_and_believed_if_it_is_large(rows, method):
    zero = {name: torch.zeros_like(value) for name, value in TRUE.items()}
    ((inputs, targets),) = linear_batches(0, count=1)
    result = port_fine_tune(
        FineTune(zero, TRUE, zero),
        Task(nn.Linear(3, 1), loss=compared, validation=[(inputs[:rows], targets[:rows])]),
    )
    assert result.method == method
    assert any("one batch that cannot be split" in warning for warning in result.warnings)


# batches of other kinds


class Tagger(nn.Module):
    """A score for each token, of sentences of unequal lengths; no tracing gets through it."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(5, 4), nn.Linear(4, 3)

    def forward(self, sentences):
        if any(float(s.sum()) < 0 for s in sentences):
            raise AssertionError
        return [self.head(self.embedding(sentence)) for sentence in sentences]


def tagging_loss(model, batch):
    outputs = torch.cat(model(batch["sentences"]))
    return nn.functional.cross_entropy(outputs, torch.cat(batch["tags"]))


def tokens(batch):
    return sum(map(len, batch["tags"]))


def sentences(seed):
    generator = torch.Generator().manual_seed(seed)
    made = [
        [torch.randint(5, (length,), generator=generator) for length in lengths]
        for lengths in ([2, 7], [1], [3, 4, 5])
    ]
    return [{"sentences": batch, "tags": [s % 3 for s in batch]} for batch in made]


def test_ragged_batches_are_weighted_by_tokens_and_neurons_are_left_alone():
    weights = [clone(weights_of(Tagger())) for _ in range(3)]
    task = Task(Tagger(), sentences(0), tagging_loss, validation=sentences(1), batch_size=tokens)
    result = port_fine_tune(FineTune(*weights), task, plan=PortPlan(stages=4))
    losses = [
        (tokens(batch), evaluate(task.model, {"": tagging_loss}, weights=weights[2], data=[batch]))
        for batch in task.validation
    ]
    assert result.loss_before == pytest.approx(sum(n * loss[""] for n, loss in losses) / 22)
    assert any("neurons were not matched" in warning for warning in result.warnings)
    assert any("function was not tried: Tagger.forward() got" in w for w in result.warnings)
    tried = {c.method for c in result.candidates}
    assert {"output-bias", "identity-signed"} <= tried
    assert any(method.endswith("few-shot") for method in tried)
    assert not any(m.startswith(("weights", "procrustes", "activations")) for m in tried)
    assert result.loss_after <= result.loss_before


@dataclass
class Graph:
    """Nodes and edges, which no function of ours looks into."""

    nodes: torch.Tensor
    edges: torch.Tensor
    target: torch.Tensor

    def to(self, device):
        return Graph(self.nodes.to(device), self.edges.to(device), self.target.to(device))


def test_graphs_are_weighted_as_the_task_says():
    class Network(nn.Linear):
        def forward(self, graph):
            return super().forward(graph.edges @ graph.nodes)

    def loss(model, graph):
        return (model(graph) - graph.target).square().mean()

    generator = torch.Generator().manual_seed(0)
    graphs = []
    for n in (2, 5, 3, 6):
        nodes, edges = (torch.randn(n, k, generator=generator) for k in (3, n))
        graphs.append(Graph(nodes, edges, edges @ nodes @ TRUE["weight"].T + 3))
    zero = {name: torch.zeros_like(value) for name, value in TRUE.items()}
    result = port_fine_tune(
        FineTune(zero, zero, {**TRUE, "bias": torch.zeros(1)}),
        Task(Network(3, 1), graphs, loss, validation=graphs, batch_size=lambda g: len(g.nodes)),
        plan=PortPlan(stages=2),
    )  # fmt: skip
    assert result.loss_before == pytest.approx(9, rel=1e-5)
    assert result.method == "output-bias"
    assert result.weights["bias"].item() == pytest.approx(3, rel=1e-4)


# a budget of labels


def test_a_budget_of_labels_is_learned_from_and_chosen_by():
    data = linear_batches(0, count=9)
    task = within_budget(Task(nn.Linear(3, 1), iter(data), squared_loss), 8 * 6 + 5)
    assert [id(batch) for batch in task.data] == [id(data[n]) for n in (0, 1, 2, 4, 5, 6)]
    assert [id(batch) for batch in task.validation] == [id(data[n]) for n in (3, 7)]
    given = within_budget(Task(nn.Linear(3, 1), data, squared_loss, validation=[data[8]]), 12)
    assert (len(given.data), len(given.validation)) == (2, 1)
    zero = {name: torch.zeros_like(value) for name, value in TRUE.items()}
    result = ported(zero, moved=TRUE, plan=PortPlan(labels=24), validation=None)
    assert result.candidates
    assert result.method == "identity"


def test_a_budget_that_cannot_be_spent_is_refused():
    with pytest.raises(ValueError, match="labels must be at least 1, got 0"):
        PortPlan(labels=0)
    with pytest.raises(ValueError, match="labels=5 is less than the first batch, 6"):
        ported(TRUE, plan=PortPlan(labels=5))
    with pytest.raises(ValueError, match="labels gives one batch"):
        ported(TRUE, plan=PortPlan(labels=6), validation=None)
    with pytest.raises(ValueError, match="labels=6 needs labelled data"):
        ported(TRUE, plan=PortPlan(labels=6), data=())


# what labels alone give


def test_output_biases_are_those_that_no_layer_looks_at():
    class TwoHeads(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.norm = nn.Linear(3, 4), nn.LayerNorm(4)
            self.first, self.second, self.unused = (nn.Linear(4, 1) for _ in range(3))

        def forward(self, x):
            hidden = self.norm(self.body(x).relu())
            return self.first(hidden) + self.second(hidden)

    (batch,) = linear_batches(0, count=1)
    for model, expected in (
        (TwoHeads(), ["first.bias", "second.bias"]),
        (nn.Linear(3, 1), ["bias"]),
        (nn.Sequential(nn.Linear(3, 1), nn.LayerNorm(1)), []),
        (nn.Linear(3, 1, bias=False), []),
    ):
        task = Task(model, [batch], squared_loss)
        assert output_biases(task, batch, parameter_names(model)) == expected
        assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_model_without_an_output_bias_is_ported_by_the_other_methods():
    model = nn.Linear(3, 1, bias=False)
    weights = {"weight": TRUE["weight"]}
    task = Task(model, linear_batches(0), squared_loss, validation=linear_batches(1))
    result = port_fine_tune(FineTune(weights, weights, weights), task)
    assert "output-bias" not in {c.method for c in result.candidates}
    with pytest.raises(ValueError, match="'output-bias' needs a bias behind"):
        port_fine_tune(FineTune(weights, weights, weights), task, plan=PortPlan("output-bias"))


def test_one_method_can_be_asked_for():
    zero = {name: torch.zeros_like(value) for name, value in TRUE.items()}
    assert ported(zero, moved=TRUE, plan=PortPlan("untouched")).loss_after > 0.5
    shot = ported(zero, moved=TRUE, plan=PortPlan("few-shot", rates=(0.02,)), validation=None)
    assert (shot.method, shot.gradient_evaluations) == ("few-shot", 30)
    # Every step is as long as its rate, which is half of 0.02 on average.
    assert shot.weights["weight"][0, 0] > 0 > shot.weights["weight"][0, 1]
    assert shot.weights["weight"].abs().max() == pytest.approx(0.3, rel=0.2)
    with pytest.raises(ValueError, match="'few-shot' needs validation data to choose among"):
        ported(zero, plan=PortPlan("few-shot"), validation=None)
    worse = ported(TRUE, plan=PortPlan("identity"))
    assert any("higher than that of the untouched base" in w for w in worse.warnings)
    with pytest.raises(ValueError, match="rates must be numbers above 0"):
        PortPlan(rates=(0.0,))


def test_excluded_tensors_are_not_fitted():
    zero = {name: torch.zeros_like(value) for name, value in TRUE.items()}
    plan = PortPlan("few-shot", rates=(0.01,), exclude=("bias",))
    result = ported(zero, plan=plan, validation=None)
    assert result.weights["bias"].item() == 0 != result.weights["weight"][0, 0].item()


# what is reported


def test_all_candidates_are_reported_with_a_sentence():
    result = ported({**TRUE, "bias": torch.ones(1)}, plan=PortPlan(rates=(0.01, 1e30)))
    assert any("diverges at rate 1e+30" in warning for warning in result.warnings)
    written = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert written["reason"] == result.reason
    assert len(written["candidates"]) == len(result.candidates)
    rows = str(result).splitlines()
    for candidate in result.candidates:
        name = replace(candidate, strength=1.0).name
        (row,) = [r for r in rows if r.split("  ")[0] == name]
        assert f"{candidate.loss:.4f}" in row
    assert result.reason in rows
