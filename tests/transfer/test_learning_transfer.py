from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import pytest
import torch
from torch import nn

from oracles.plain_transfer import plain_gradient, plain_transfer
from slipstream.evaluation import (
    Task,
    accuracy,
    classification_loss,
    evaluate,
    recalibrate_batchnorm,
)
from slipstream.matching import Solver
from slipstream.symmetry.neuron_groups import NeuronGroups
from slipstream.symmetry.permutation import Permutation
from slipstream.symmetry.tracing import find_neuron_groups
from slipstream.trajectory import Trajectory
from slipstream.transfer import (
    SignWeights,
    Target,
    TransferPlan,
    transfer_to_many,
    transfer_trajectory,
)
from slipstream.transfer.transfer_state import TransferState
from slipstream.weights import weights_of
from transfer.small_runs import batches, network, trained


def transfer(run, target, model, *, trained_target=None, **options):
    pieces = ("loss", "data", "validation", "metrics", "calibration")
    task = Task(model, **{"data": batches()} | {n: options.pop(n) for n in pieces if n in options})
    if trained_target is not None:
        target = Target(target, trained_target)
    return transfer_trajectory(run, target, task, **options)


def close(first, second, **tolerance):
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], **tolerance)


@pytest.fixture(scope="module")
def run():
    return trained(network(0))


@pytest.fixture(scope="module")
def plain_run():
    return trained(network(0, batchnorm=False))


@pytest.mark.parametrize("method", ["gmt", "fgmt", "oracle"])
@pytest.mark.parametrize("path", ["line", "recorded"])
def test_a_permuted_start_is_carried_to_the_permuted_end(run, method, path):
    model = network(0)
    groups = find_neuron_groups(model, batches()[0][0])
    hidden = Permutation.random(groups, seed=5)
    target, trained_target = hidden.apply(run[0].weights), hidden.apply(run[-1].weights)
    plan = TransferPlan(method=method, stages=3, path=path)
    result = transfer(run, target, model, plan=plan, groups=groups, trained_target=trained_target)
    assert result.source_to_target.same_as(hidden)
    for name, _ in model.named_parameters():
        torch.testing.assert_close(result.weights[name], trained_target[name])


def test_naive_adds_the_displacement(run):
    model, target = network(1), weights_of(network(2))
    result = transfer(run, target, model, plan=TransferPlan(method="naive", stages=2))
    for name, _ in model.named_parameters():
        expected = target[name] + run[-1].weights[name] - run[0].weights[name]
        torch.testing.assert_close(result.weights[name], expected)
    assert result.cost.gradient_evaluations == 0
    assert result.source_to_target.moved() == 0


def test_the_random_permutation_is_the_seeds(run):
    model, target = network(1), weights_of(network(2))
    groups = find_neuron_groups(model, batches()[0][0])
    plan = TransferPlan(method="random", stages=1, seed=3)
    result = transfer(run, target, model, plan=plan, groups=groups)
    assert result.source_to_target.same_as(Permutation.random(groups, seed=3))
    several = TransferPlan(method="random", stages=1, segments=3, seed=3)
    again = transfer(run, target, model, plan=several, groups=groups)
    for name, _ in model.named_parameters():
        torch.testing.assert_close(again.weights[name], result.weights[name])


def test_the_oracle_matches_the_whole_run(run):
    model, target = network(0), weights_of(network(2))
    groups = find_neuron_groups(model, batches()[0][0])
    hidden = Permutation.random(groups, seed=5)
    move = hidden.apply({n: run[-1].weights[n] - run[0].weights[n] for n in target})
    back = {n: v - run[-1].weights[n] + run[0].weights[n] for n, v in run[0].weights.items()}
    bent = Trajectory.from_weights([run[0].weights, back, run[-1].weights])
    for segments in (1, 2):
        plan = TransferPlan("oracle", stages=1, segments=segments)
        trained_target = {name: target[name] + move[name] for name in target}
        result = transfer(
            bent, target, model, plan=plan, groups=groups, trained_target=trained_target
        )
        assert result.source_to_target.same_as(hidden)


@pytest.mark.parametrize("method", ["gmt", "fgmt"])
@pytest.mark.parametrize(("per_gradient", "pairs"), [(1, "plain"), (2, "plain"), (1, "normalised")])
def test_the_same_permutations_as_a_plain_implementation(plain_run, method, per_gradient, pairs):
    model, target = network(1, batchnorm=False), weights_of(network(2, batchnorm=False))
    groups = find_neuron_groups(model, batches()[0][0])
    data = batches(count=6)
    plan = TransferPlan(
        method=method, stages=3, schedule="uniform", batches_per_gradient=per_gradient
    )
    result = transfer(plain_run, target, model, plan=plan, groups=groups, data=data)
    line = Trajectory.line(plain_run[0], plain_run[-1], stages=3)
    parts = [data[t * per_gradient : (t + 1) * per_gradient] for t in range(3)]
    path = [dict(snapshot.weights) for snapshot in line]
    expected = plain_transfer(method, model, path, dict(target), groups, parts)
    for stage, permutation in enumerate(expected, start=1):
        assert result.permutations[stage].same_as(permutation)
    # the source's are kept, and the target's renewed, but that of the start
    evaluations = {"fgmt": 6, "gmt": 3 + 6 - 2}
    assert result.cost.gradient_evaluations == evaluations[method]


@pytest.mark.parametrize("method", ["gmt", "fgmt"])
def test_a_normalised_pair_adds_the_cosine_of_its_gradients(plain_run, method):
    model = network(0, batchnorm=False)
    target = Permutation.random(find_neuron_groups(model, batches()[0][0]), seed=3)
    plan = TransferPlan(method, stages=3, pairs="normalised")
    result = transfer(plain_run, target.apply(plain_run[0].weights), model, plan=plan)
    # The start is the source's, permuted: so are the gradients of every pair.
    objectives = [stage.objective for stage in result.stages[1:]]
    assert objectives == pytest.approx([1, 2, 3], rel=1e-5)


@pytest.mark.parametrize("method", ["gmt", "fgmt"])
@pytest.mark.parametrize("warm", [True, False])
def test_matchings_start_and_end_where_the_plan_says(plain_run, method, warm, monkeypatch):
    asked, told = [], []
    solve = Solver.solve

    def recorded(self, start, *, max_sweeps):
        asked.append((start, max_sweeps, solve(self, start, max_sweeps=max_sweeps)))
        return asked[-1][2]

    monkeypatch.setattr(Solver, "solve", recorded)
    result = transfer(
        plain_run,
        weights_of(network(2, batchnorm=False)),
        network(1, batchnorm=False),
        plan=TransferPlan(f"{method}-signed", stages=3, max_sweeps=7, warm_start=warm),
        progress=lambda done, total: told.append((done, total)),
    )
    starts, sweeps, found = zip(*asked, strict=True)
    assert set(sweeps) == {7}
    assert starts[0].moved() == 0
    for start, before in zip(starts[1:], found, strict=False):
        assert start.same_as(before.source_to_target if warm else starts[0])
    assert result.source_to_target.same_as(found[-1].source_to_target)
    assert told == [(n, 7) for n in range(1, 8)]  # matchings, the carry, sign steps
    assert result.cost.kept_bytes > 0
    assert result.cost.seconds["assignments"] > 0


@pytest.mark.parametrize(("size", "own"), [(1, True), (32, True), (32, False)])
def test_gradients_are_taken_with_statistics_of_the_batch_if_it_has_any(run, size, own):
    other = [dict(s.weights) | {"1.running_mean": s.weights["1.running_mean"] + 5} for s in run]
    model, target = network(1), weights_of(network(2))
    plan = TransferPlan("fgmt", stages=2, path="recorded", batch_statistics=own)
    data = [(x[:size], y[:size]) for x, y in batches()]
    task = {"data": data, "calibration": batches()[:2]}
    first, second = (
        transfer(r, target, model, plan=plan, **task) for r in (run, Trajectory.from_weights(other))
    )
    assert first.stages == second.stages
    slopes = []  # the first pair of gradients, by autograd
    for weights in (run[0].weights, target):
        buffers = recalibrate_batchnorm(model, weights=weights, data=batches()[:2])
        other = network(1).train(own and size > 1)
        other.load_state_dict({**weights, **buffers})
        loss = classification_loss(other, data[0])
        names = [name for name, _ in other.named_parameters()]
        slopes.append(dict(zip(names, torch.autograd.grad(loss, other.parameters()), strict=True)))
    permutation = first.permutations[1]
    moved = permutation.apply(slopes[0])
    value = sum(float((moved[n] * slopes[1][n]).sum()) for n in moved)
    assert first.stages[1].objective == pytest.approx(value)


def test_signed_steps_by_their_formula(plain_run):
    model, target = network(1, batchnorm=False), weights_of(network(2, batchnorm=False))
    data = batches()
    signs = SignWeights(displacement=0.75, first=0.5, last=1.5, smoothing=0.25)
    result = transfer(
        plain_run, target, model, plan=TransferPlan("fgmt-signed", stages=2, signs=signs), data=data
    )
    line = Trajectory.line(plain_run[0], plain_run[-1], stages=2, schedule="cosine")
    permutation = result.source_to_target
    weights = dict(target)
    for stage, strength in ((1, 0.5), (2, 1.5)):
        gradient = plain_gradient(model, weights, [data[(1 + stage) % len(data)]])
        for name in weights:
            move = line[stage].weights[name] - line[stage - 1].weights[name]
            move = permutation.apply({name: move})[name]
            size = 0.75 * move.abs() + 0.25 * move.abs().mean()
            step = 0.75 * move - strength * size * gradient[name].sign()
            weights[name] = weights[name] + step
    close(weights, result.weights)
    assert result.cost.gradient_evaluations == 2 * 2 + 2


def test_constant_sign_weights_multiply_what_agrees_and_what_does_not(plain_run):
    model, target = network(1, batchnorm=False), weights_of(network(2, batchnorm=False))
    signs = SignWeights.constant(agree=2.0, disagree=0.25)
    plan = TransferPlan("naive-signed", stages=1, signs=signs)
    result = transfer(plain_run, target, model, plan=plan)
    gradient = plain_gradient(model, dict(target), batches()[:1])
    for name, value in target.items():
        move = plain_run[-1].weights[name] - plain_run[0].weights[name]
        factor = torch.where(move.sign() == -gradient[name].sign(), 2.0, 0.25)
        torch.testing.assert_close(result.weights[name], value + factor * move)


def test_signed_gradients_see_batch_statistics(run):
    model, target = network(1), weights_of(network(2))
    plan = TransferPlan("naive-signed", stages=1, signs=SignWeights(1.0, 1.0, 1.0, 0.0))
    result = transfer(run, target, model, plan=plan)
    other = network(1).train()
    other.load_state_dict(dict(target))
    slopes = torch.autograd.grad(classification_loss(other, batches()[0]), list(other.parameters()))
    for (name, _), slope in zip(other.named_parameters(), slopes, strict=True):
        move = run[-1].weights[name] - run[0].weights[name]
        step = move - move.abs() * slope.sign()
        torch.testing.assert_close(result.weights[name], target[name] + step)


@pytest.mark.parametrize("matching", ["naive", "random", "fgmt", "gmt"])
def test_without_strength_signs_change_nothing(run, matching):
    model, target = network(1), weights_of(network(2))
    plain = transfer(run, target, model, plan=TransferPlan(matching, stages=2))
    signs = SignWeights(first=0.0, last=0.0)
    plan = TransferPlan(f"{matching}-signed", stages=2, signs=signs)
    signed = transfer(run, target, model, plan=plan)
    for name, _ in model.named_parameters():
        torch.testing.assert_close(signed.weights[name], plain.weights[name])


def test_batchnorm_statistics_belong_to_the_carried_weights(run):
    model, target = network(1), weights_of(network(2))
    plan = TransferPlan(stages=2, batchnorm_batches=3)
    result = transfer(run, target, model, plan=plan)
    for snapshot in result.trajectory:
        parameters = {n: snapshot.weights[n] for n, _ in model.named_parameters()}
        again = recalibrate_batchnorm(model, weights=parameters, data=batches()[:3])
        close(again, snapshot.weights)


def test_segments_start_where_the_one_before_ends(run):
    model, target = network(1), weights_of(network(2))
    plan = TransferPlan("naive", stages=2, segments=3)
    result = transfer(run, target, model, plan=plan)
    assert [stage.stage for stage in result.stages] == list(range(7))
    for segment in range(4):
        for name, _ in model.named_parameters():
            move = run[2 * segment].weights[name] - run[0].weights[name]
            reached = result.trajectory[2 * segment].weights[name]
            torch.testing.assert_close(reached, target[name] + move)
    recorded = TransferPlan("naive", stages=2, segments=3, path="recorded")
    for stage, snapshot in enumerate(transfer(run, target, model, plan=recorded).trajectory):
        moved = run[stage].weights["0.weight"] - run[0].weights["0.weight"]
        torch.testing.assert_close(snapshot.weights["0.weight"], target["0.weight"] + moved)
    ends = transfer(run, target, model, plan=TransferPlan("naive", stages=1)).weights
    for name, _ in model.named_parameters():
        torch.testing.assert_close(result.weights[name], ends[name])
    matched = transfer(run, target, model, plan=TransferPlan("fgmt", stages=1, segments=2))
    assert set(matched.permutations) == {1, 2}


def test_the_best_stage_is_chosen_by_validation(run):
    model, target = network(1), weights_of(network(2))
    validation = batches(seed=9)
    plan = TransferPlan("naive", stages=4, schedule="uniform", keep="best")
    options = {"validation": validation, "metrics": {"accuracy": accuracy}, "plan": plan}
    result = transfer(run, target, model, **options)
    losses = [stage.metrics["loss"] for stage in result.stages]
    assert result.chosen == losses.index(min(losses))
    measured = evaluate(
        model, {"loss": classification_loss}, weights=result.weights, data=validation
    )
    assert measured["loss"] == pytest.approx(min(losses))
    assert set(result.stages[2].metrics) == {"loss", "accuracy"}


def test_an_excluded_head_stays_the_targets_own(run):
    model, target = network(1, classes=5), weights_of(network(2, classes=5))
    with pytest.raises(ValueError, match=r"'6.weight' .*\(3, 8\).*\(5, 8\).*exclude=\('6\.\*',\)"):
        transfer(run, target, model)
    result = transfer(run, target, model, plan=TransferPlan(stages=2, exclude=("6.*",)))
    for name in ("6.weight", "6.bias"):
        assert torch.equal(result.weights[name], target[name])
    assert not torch.equal(result.weights["4.weight"], target["4.weight"])


def test_an_excluded_layer_lies_over_the_sources_neurons(run):
    model, target = network(1), weights_of(network(2))
    groups = find_neuron_groups(model, batches()[0][0])
    hidden = Permutation.random(groups, seed=5)
    excluded = frozenset({"6.weight", "6.bias"})
    state = TransferState(Task(model, batches()), target, excluded)
    source = state.source(run, 2, hidden)
    assert torch.equal(hidden.apply(source)["6.weight"], target["6.weight"])
    assert torch.equal(source["4.weight"], run[2].weights["4.weight"])


def test_steps_too_small_for_bf16_are_summed_in_float32():
    start = {n: v.bfloat16() for n, v in weights_of(network(2, batchnorm=False)).items()}
    end = {n: v * 1.001 for n, v in weights_of(network(0, batchnorm=False)).items()}
    run = Trajectory.from_weights([weights_of(network(0, batchnorm=False)), end])
    model = network(1, batchnorm=False).bfloat16()
    data = [(inputs.bfloat16(), labels) for inputs, labels in batches()]
    result = transfer(run, start, model, data=data, plan=TransferPlan("naive", stages=1))
    for name, value in start.items():
        expected = (value.double() + end[name] - run[0].weights[name]).bfloat16()
        torch.testing.assert_close(result.weights[name], expected, rtol=0.01, atol=1e-6)


def test_tied_weights_are_carried_under_one_name():
    def tied(seed):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Linear(6, 3)).double()
        model[2].weight = model[0].weight
        return model

    run = Trajectory.from_weights([weights_of(tied(0)), weights_of(tied(1))])
    data = [(torch.randn(8, 6, dtype=torch.float64), torch.arange(8) % 3)]
    target = tied(2).state_dict()  # holds both names
    result = transfer(run, target, tied(3), data=data, plan=TransferPlan("naive", stages=1))
    moved = run[1].weights["0.weight"] - run[0].weights["0.weight"]
    torch.testing.assert_close(result.weights["0.weight"], target["0.weight"] + moved)
    assert "2.weight" not in result.weights


def test_a_target_comes_in_any_precision_and_with_gradients(run, tmp_path):
    target = {
        n: v.float() if v.is_floating_point() else v for n, v in network(2).state_dict().items()
    }
    asking = {n: v.requires_grad_() if v.is_floating_point() else v for n, v in target.items()}
    result = transfer(
        run, asking, network(1), plan=TransferPlan("naive", stages=1), run_folder=tmp_path / "run"
    )
    assert result.weights["0.weight"].dtype == torch.float64  # as the model
    assert not result.trajectory[0].weights["0.weight"].requires_grad


def test_dropout_does_not_count_as_chance_and_batch_statistics_neither(run):
    class Dropping(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network(1)

        def forward(self, x):
            return nn.functional.dropout(self.inner(x), 0.5, training=self.training)

    model = Dropping().train()
    source = Trajectory.from_weights([{f"inner.{n}": v for n, v in s.weights.items()} for s in run])
    transfer(source, weights_of(Dropping()), model, plan=TransferPlan("naive", stages=1))


def test_bf16_weights_stay_bf16():
    model = network(1).bfloat16()
    run = Trajectory.from_weights(
        [{n: v.bfloat16() if v.is_floating_point() else v for n, v in s.weights.items()}
         for s in trained(network(0))]
    )  # fmt: skip
    data = [(inputs.bfloat16(), labels) for inputs, labels in batches()]
    target = weights_of(network(2).bfloat16())
    result = transfer(run, target, model, data=data, plan=TransferPlan("fgmt-signed", stages=2))
    assert {v.dtype for v in result.weights.values()} == {torch.bfloat16, torch.int64}


def test_the_model_is_left_as_it_was(run):
    model = network(1).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    transfer(run, weights_of(network(2)), model, plan=TransferPlan("fgmt-signed", stages=2))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("pool", ["none", "threads", "processes"])
def test_many_targets_at_once(run, pool):
    targets = [weights_of(network(seed)) for seed in (2, 3)]
    plan = TransferPlan(stages=2)
    one_by_one = [transfer(run, target, network(1), plan=plan) for target in targets]
    told = []
    options = {"task": Task(network(1), batches()), "plan": plan}
    options["progress"] = lambda done, total: told.append((done, total))
    if pool == "none":
        together = transfer_to_many(run, targets, **options)
    elif pool == "threads":
        with ThreadPoolExecutor(2) as executor:
            together = transfer_to_many(run, targets, executor=executor, **options)
    else:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
            together = transfer_to_many(run, targets, executor=executor, **options)
    for alone, beside in zip(one_by_one, together, strict=True):
        close(alone.weights, beside.weights)
    assert told == [(1, 2), (2, 2)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data": []}, "data is empty"),
        ({"data": iter(batches()[:1])}, "runs out"),
        ({"plan": TransferPlan("oracle")}, r"give Target\(start, trained\)"),
        ({"plan": TransferPlan(path="recorded", stages=40)}, "has 7 snapshots.*at least 41"),
        ({"plan": TransferPlan(exclude=("head.*",))}, "'head.*' matches no tensor"),
        ({"plan": TransferPlan(keep="best")}, r"give Task\(\.\.\., validation="),
        ({"validation": []}, "validation is empty"),
        ({"metrics": {"loss": accuracy}}, "another 'loss'"),
        ({"plan": TransferPlan(exclude=("*",))}, "leaves no tensor"),
        (
            {"plan": TransferPlan("oracle"), "trained_target": {}},
            "trained_target lacks .*'0.weight'",
        ),
        ({"loss": lambda m, batch: 1.5}, "0-dim tensor, got 1.5"),
        ({"loss": lambda m, batch: m(batch[0])}, r"0-dim tensor, got shape \(11, 3\)"),
        ({"groups": NeuronGroups((), (), {"0.weight": (6, 2, 3, 3)})}, "no tensor named"),
        ({"loss": lambda m, batch: m(batch[0]).sum() * torch.rand(())}, "not deterministic"),
    ],
)
def test_what_cannot_be_transferred(run, change, words):
    options = {"plan": TransferPlan(stages=2), **change}
    with pytest.raises(ValueError, match=words):
        transfer(run, weights_of(network(2)), network(1), **options)


def test_a_nan_in_the_target_is_named(run):
    target = weights_of(network(2))
    target["4.bias"] = target["4.bias"] / 0
    with pytest.raises(ValueError, match=r"target holds a NaN or an infinity in '4.bias'"):
        transfer(run, target, network(1))


def test_a_model_without_neuron_groups_is_told(run):
    model = nn.Sequential(nn.Flatten(), nn.Linear(72, 3)).double()
    line = Trajectory.from_weights([weights_of(model), weights_of(model)])
    with pytest.raises(ValueError, match="No neurons of this model can be permuted"):
        transfer(line, weights_of(model), model)


def test_validation_batches_of_a_generator_serve_every_stage(run):
    plan = TransferPlan("naive", stages=2)
    target = weights_of(network(2))
    once = transfer(run, target, network(1), plan=plan, validation=iter(batches(seed=9)))
    often = transfer(run, target, network(1), plan=plan, validation=batches(seed=9))
    assert once.stages == often.stages


def test_a_stage_without_a_number_is_not_the_best(run):
    def loss(model, batch):  # NaN at the start, which is measured first
        return classification_loss(model, batch) * (
            torch.nan
            if torch.equal(model[0].weight, start["0.weight"]) and batch[0] is validation[0][0]
            else 1
        )

    start, validation = weights_of(network(2)), batches(seed=9)
    result = transfer(
        run,
        start,
        network(1),
        loss=loss,
        plan=TransferPlan("naive", stages=2, keep="best"),
        validation=validation,
    )
    losses = [stage.metrics["loss"] for stage in result.stages]
    assert losses[0] != losses[0]
    assert result.chosen == losses.index(min(losses[1:]))


def test_a_nan_in_the_source_is_named_with_its_step(run):
    bad = [dict(snapshot.weights) for snapshot in run]
    bad[4]["4.weight"] = bad[4]["4.weight"].clone()
    bad[4]["4.weight"][0, 0] = torch.nan
    plan = TransferPlan(stages=6, path="recorded")
    with pytest.raises(ValueError, match=r"'4.weight' at step 4"):
        transfer(Trajectory.from_weights(bad), weights_of(network(2)), network(1), plan=plan)


def test_another_architecture_is_named(run):
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.Flatten(), nn.Linear(96, 3)).double()
    with pytest.raises(ValueError, match=r"lacks the tensor '2.weight'"):
        transfer(run, weights_of(model), model)
    with pytest.raises(ValueError, match=r"target lacks the tensor '0.weight'"):
        transfer(run, {}, network(1))
    with pytest.raises(ValueError, match=r"no tensor named 'extra'"):
        transfer(run, {**weights_of(network(2)), "extra": torch.ones(1)}, network(1))


class Moody(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, inputs):
        return self.layer(inputs if inputs.sum().item() > 0 else -inputs)


def test_a_model_that_no_tracer_takes_is_told_in_our_words_only(capfd):
    model = Moody()
    run = Trajectory.from_weights([weights_of(model), weights_of(Moody())])
    with pytest.raises(ValueError, match=r"Moody cannot be traced: .* by hand"):
        transfer(run, weights_of(model), model, data=[(torch.ones(4, 6), torch.arange(4) % 3)])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"method": "magic"}, "method must be one of naive, random.*got 'magic'"),
        ({"schedule": "linear"}, "schedule must be one of"),
        ({"keep": "bets"}, "keep must be one of last, best; got 'bets'"),
        ({"stages": 0}, "stages must be at least 1, got 0"),
        ({"exclude": "head.*"}, r"write exclude=\('head.\*',\)"),
    ],
)
def test_plans_that_make_no_sense(change, words):
    with pytest.raises(ValueError, match=words):
        TransferPlan(**change)


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["fgmt", "gmt", "fgmt-signed", "activations-signed"])
def test_on_a_gpu_it_is_the_same(run, method, tmp_path):
    plan, target = TransferPlan(method=method, stages=3), weights_of(network(2))
    expected = transfer(run, target, network(1), plan=plan)
    there = Trajectory.from_weights([{n: v.cuda() for n, v in s.weights.items()} for s in run])
    for source, folder in ((run, None), (there, tmp_path / "run")):
        found = transfer(source, target, network(1).cuda(), plan=plan, run_folder=folder)
        close({name: value.cpu() for name, value in found.weights.items()}, expected.weights)
