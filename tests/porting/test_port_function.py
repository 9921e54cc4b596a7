"""Ports of the function: by the last layers in closed form, by distillation, in several steps."""

import pytest
import torch
from torch import nn

from slipstream.evaluation import Task, classification_loss, squared_loss
from slipstream.porting import FineTune, PortPlan, port_fine_tune
from slipstream.porting.outputs import are_logits
from slipstream.weights import clone, weights_of


def inputs(seed, *shape, count=8):
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randn(count, 16, *(shape or (4,)), generator=generator))


def seeded(build, seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def three(build):
    """Weights of three networks that have nothing to do with each other."""
    return FineTune(*(clone(weights_of(seeded(build, seed))) for seed in range(3)))


def outputs(build, weights, x):
    model = build()
    model.load_state_dict(dict(weights))
    with torch.no_grad():
        found = model.eval()(x)
    return found if isinstance(found, tuple) else (found,)


def distance(build, given, weights, x):
    """How far outputs are from B(x) + A*(x) - A(x), over how far those of B are."""
    first, last, own, now = (
        torch.cat([t.flatten() for t in outputs(build, w, x)])
        for w in (given.from_base, given.fine_tuned, given.to_base, weights)
    )
    return float((own + last - first - now).square().sum() / (last - first).square().sum())


def ported(build, given, method="function", *, seen=None, **options):
    task = Task(build(), (), squared_loss, unlabelled=inputs(0) if seen is None else seen)
    return port_fine_tune(given, task, plan=PortPlan(method, **options))


# the last layers


def mlp():
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))


class SumOfParts(nn.Module):
    """Two heads for two parts of the input, added up over positions: no layer makes the output."""

    def __init__(self):
        super().__init__()
        self.body, self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 1), nn.Linear(8, 1)

    def forward(self, x):
        hidden = self.body(x).tanh()
        return self.first(hidden[:, :2]).sum((1, 2)) + 2 * self.second(hidden[:, 2:]).sum((1, 2))


class TwoOutputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 1)

    def forward(self, x):
        hidden = self.body(x).tanh()
        return self.first(hidden), self.second(hidden)


class Pooled(nn.Module):
    """A 1 x 1 convolution, and the mean over positions behind it."""

    def __init__(self, *, pool=True):
        super().__init__()
        self.body, self.head = nn.Conv2d(2, 6, 3), nn.Conv2d(6, 3, 1, bias=False)
        self.pool = pool

    def forward(self, x):
        maps = self.head(self.body(x).tanh())
        return maps.mean((2, 3)) if self.pool else maps


KINDS = {
    "linear": (mlp, ("2.",), ()),
    "no bias": (
        lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2, bias=False)),
        ("2.",),
        (),
    ),
    "sum of parts": (SumOfParts, ("first.", "second."), (4, 4)),
    "two outputs": (TwoOutputs, ("first.", "second."), ()),
    "pooled": (Pooled, ("head.",), (2, 5, 5)),
    "maps": (lambda: Pooled(pool=False), ("head.",), (2, 5, 5)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_change_that_the_last_layers_can_make_is_found(kind):
    build, heads, shape = KINDS[kind]
    base = three(build).to_base
    tuned = {n: v + 0.3 if n.startswith(heads) else v for n, v in base.items()}
    result = ported(build, FineTune(base, tuned, base), seen=inputs(0, *shape))
    assert (result.method, result.gradient_evaluations) == ("function", 0)
    assert distance(build, FineTune(base, tuned, base), result.weights, inputs(1, *shape)[0]) < 1e-4
    assert all(torch.equal(result.weights[n], base[n]) for n in base if not n.startswith(heads))


def test_bases_that_have_nothing_in_common_are_brought_nearer_on_inputs_not_seen():
    given = three(mlp)
    result = ported(mlp, given, seen=inputs(0, count=16))
    least = torch.linalg.lstsq  # the plain regression, on the same features
    x, new = torch.cat(inputs(0, count=16)), torch.cat(inputs(1))
    hidden = [
        torch.cat(
            [torch.tanh(part @ given.to_base["0.weight"].T + given.to_base["0.bias"]), one], 1
        )
        for part, one in ((x, torch.ones(len(x), 1)), (new, torch.ones(len(new), 1)))
    ]
    change = [
        outputs(mlp, given.fine_tuned, part)[0] - outputs(mlp, given.from_base, part)[0]
        for part in (x, new)
    ]
    plain = (change[1] - hidden[1] @ least(hidden[0], change[0]).solution).square().sum()
    found = distance(mlp, given, result.weights, new)
    assert found < 0.5
    assert found == pytest.approx(float(plain / change[1].square().sum()), rel=0.05)


def test_noise_is_not_learned_by_heart():
    build = lambda: nn.Sequential(nn.Linear(4, 60), nn.ReLU(), nn.Linear(60, 1))  # ruff: ignore[lambda-assignment]
    given = three(build)
    seen = inputs(0, count=4)  # 64 examples, 61 features
    result = ported(build, given, seen=seen)
    assert distance(build, given, result.weights, torch.cat(inputs(1))) < 1


def test_what_cannot_be_solved_is_refused():
    for build, reason in (
        (lambda: nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2), nn.Softmax(-1)), "not linear in"),
        (lambda: nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8)), "there are none"),
    ):
        with pytest.raises(ValueError, match=reason):
            ported(build, three(build))
    conv = lambda: nn.Sequential(nn.Conv2d(2, 3, 3))  # ruff: ignore[lambda-assignment]
    with pytest.raises(ValueError, match=r"1 x 1 convolution.*there are none"):
        ported(conv, three(conv), seen=inputs(0, 2, 5, 5))
    with pytest.raises(ValueError, match=r"excluded by the plan.*there are none"):
        ported(mlp, three(mlp), exclude=("2.*",))
    with pytest.raises(ValueError, match="'function' needs data: give Task"):
        port_fine_tune(
            three(mlp), Task(mlp(), example_input=torch.ones(1, 4)), plan=PortPlan("function")
        )
    wide = {**three(mlp).fine_tuned, "2.weight": torch.ones(3, 8), "2.bias": torch.ones(3)}
    with pytest.raises(ValueError, match="function of fine_tuned cannot be carried"):
        ported(mlp, FineTune(three(mlp).from_base, wide, three(mlp).to_base))


def test_batches_may_be_mappings_and_hold_labels():
    class Named(nn.Sequential):
        def forward(self, *, x):
            return {"logits": super().forward(x), "loss": torch.zeros(())}

    given = three(mlp)
    model = Named(*mlp())
    task = Task(model, (), squared_loss, unlabelled=[{"x": x} for x in inputs(0)])
    result = port_fine_tune(given, task, plan=PortPlan("function"))
    plain = ported(mlp, given)
    assert torch.allclose(result.weights["2.weight"], plain.weights["2.weight"], atol=1e-6)


# distillation, and steps in turn


def test_distillation_follows_the_function_further_than_the_last_layers():
    given = three(mlp)
    found = {
        method: distance(
            mlp, given, ported(mlp, given, method, training_steps=150, rates=(0.01, 0.03)).weights,
            torch.cat(inputs(1)),
        )
        for method in ("identity", "function", "distil", "function+distil")
    }  # fmt: skip
    assert found["distil"] < found["function"] < 1 < found["identity"]
    assert found["function+distil"] < found["function"]


@pytest.mark.parametrize("method", ["function-outputs", "distil-outputs"])
def test_the_outputs_of_the_fine_tune_themselves_can_be_carried(method):
    given, x = three(mlp), torch.cat(inputs(1))
    result = ported(mlp, given, method, training_steps=100, rates=(0.03,))
    wanted = outputs(mlp, given.fine_tuned, x)[0]
    before, after = (
        float((outputs(mlp, weights, x)[0] - wanted).square().sum())
        for weights in (given.to_base, result.weights)
    )
    assert after < 0.2 * before


def test_logits_are_told_by_the_loss():
    def needs_more(model, batch):
        return model(batch[0]).sum() * model.weight.sum()

    x, labels = inputs(0)[0], torch.arange(16) % 2
    for loss, batch, expected in (
        (classification_loss, (x, labels), True),
        (squared_loss, (x, torch.ones(16, 2)), False),
        (needs_more, (x, labels), False),
    ):
        assert are_logits(Task(mlp(), [batch], loss), batch) is expected


def test_logits_are_compared_as_probabilities():
    given, x = three(mlp), inputs(0)
    data = [(part, torch.arange(16) % 2) for part in inputs(5)]
    model = mlp()
    plan = PortPlan("distil-outputs", rates=(0.03,), training_steps=150)
    result = port_fine_tune(given, Task(model, data, unlabelled=x), plan=plan)
    mine, wanted = (
        outputs(mlp, weights, torch.cat(x))[0].log_softmax(-1)
        for weights in (result.weights, given.fine_tuned)
    )
    assert torch.nn.functional.kl_div(mine, wanted, log_target=True, reduction="batchmean") < 0.01


def test_distillation_takes_the_rate_that_does_best_on_inputs_left_out():
    given = three(mlp)
    result = ported(mlp, given, "distil", rates=(1e-6, 0.03, 1e30))
    alone = ported(mlp, given, "distil", rates=(0.03,))
    assert torch.equal(result.weights["0.weight"], alone.weights["0.weight"])
    assert (result.gradient_evaluations, alone.gradient_evaluations) == (90, 30)
    with pytest.raises(FloatingPointError, match="diverges at all rates"):
        ported(mlp, given, "distil", rates=(1e30,))


def test_each_step_begins_where_the_one_before_ended():
    given = three(mlp)
    first = ported(mlp, given, "weights", seen=inputs(0))
    both = ported(mlp, given, "weights+function", seen=inputs(0))
    assert torch.equal(both.weights["0.weight"], first.weights["0.weight"])
    # The target stays that of the base as it was given.
    x = torch.cat(inputs(1))
    assert distance(mlp, given, both.weights, x) < distance(mlp, given, first.weights, x)
    assert both.layers[0].matched == first.layers[0].matched
    assert both.layers[0].kept == pytest.approx(first.layers[0].kept)


def test_a_budget_decides_how_many_stages_there_are():
    given, data = three(mlp), [(x, x[:, :2]) for x in inputs(0)]
    task = Task(mlp(), data, squared_loss)
    plans = {"identity-signed": 7, "few-shot": 7, "distil": 7, "weights+few-shot": 7}
    for method in plans:
        plan = PortPlan(method, budget=7, rates=(0.01,))
        assert 4 <= port_fine_tune(given, task, plan=plan).gradient_evaluations <= 7, method
    with pytest.raises(ValueError, match="budget=7 is less than the 9 gradients that distil takes"):
        port_fine_tune(given, task, plan=PortPlan("distil", budget=7))


def test_auto_searches_within_its_budget_and_explains_itself():
    given = three(mlp)
    data = [(x, x[:, :2]) for x in inputs(0)]
    task = Task(mlp(), data, squared_loss, unlabelled=inputs(3), validation=data[4:])
    spent = {}
    for budget in (0, 1, 20):
        result = port_fine_tune(given, task, plan=PortPlan(budget=budget))
        spent[budget] = result.gradient_evaluations
        assert result.loss_after <= result.loss_before
        assert len(result.explanation) == 3
        assert all(line in str(result) for line in result.explanation)
    assert spent[0] == 0
    assert spent[1] <= 1 < spent[20] <= 20
    tried = {candidate.method for candidate in result.candidates}
    assert tried >= {"untouched", "identity", "weights", "activations", "procrustes", "function"}
    assert any("+" in method for method in tried)


def test_labels_that_nothing_was_learned_from_are_all_chosen_by():
    given = three(mlp)
    data = [(x[:2], x[:2, :2]) for x in inputs(0)]
    few = PortPlan(labels=16, unlabelled=16 * 4, budget=0)
    result = port_fine_tune(given, Task(mlp(), data, squared_loss), plan=few)
    assert result.loss_after <= result.loss_before


def test_a_sequence_is_checked_and_named():
    with pytest.raises(ValueError, match=r"several joined by \+.*got 'weights\+magic'"):
        PortPlan("weights+magic")
    for name, value in (("budget", -1), ("unlabelled", 0), ("training_steps", 0)):
        with pytest.raises(ValueError, match=f"{name} must be at least"):
            PortPlan(**{name: value})
    with pytest.raises(ValueError, match="unlabelled=3 is less than the first batch, 16"):
        ported(mlp, three(mlp), unlabelled=3)


@pytest.mark.parametrize("method", ["function", "distil"])
def test_an_empty_batch_is_named(method):
    model = nn.Linear(2, 2)
    weights = weights_of(model)
    task = Task(model, unlabelled=[torch.zeros(4, 2), torch.zeros(0, 2)])
    with pytest.raises(ValueError, match="An unlabelled batch holds no example"):
        port_fine_tune(FineTune(weights, weights, weights), task, plan=PortPlan(method))
