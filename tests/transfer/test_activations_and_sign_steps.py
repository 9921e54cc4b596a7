import pytest
import torch
from torch import nn

from oracles.plain_transfer import plain_gradient
from slipstream.evaluation import Task, classification_loss
from slipstream.matching import match_activations
from slipstream.storage.new_run import NewRun
from slipstream.symmetry.permutation import Permutation
from slipstream.symmetry.tracing import find_neuron_groups
from slipstream.trajectory import Trajectory
from slipstream.transfer import SignSteps, SignWeights, Target, TransferPlan, transfer_trajectory
from slipstream.weights import weights_of
from transfer.small_runs import batches, network, trained


@pytest.fixture(scope="module")
def run():
    return trained(network(0, batchnorm=False))


def target():
    return weights_of(network(2, batchnorm=False))


def task(seed=0):
    return Task(network(1, batchnorm=False), batches(seed=seed))


@pytest.mark.parametrize("observed", ["start", "end"])
def test_the_permutation_is_that_of_the_activations(run, observed):
    plan = TransferPlan(
        "activations", stages=2, observed=observed, activation_batches=3, matchings=1
    )
    result = transfer_trajectory(run, target(), task(), plan=plan)
    end = run[0 if observed == "start" else -1].weights
    groups = find_neuron_groups(network(1, batchnorm=False), batches()[0][0])
    first = Task(network(1, batchnorm=False), batches()[:3])
    found = match_activations(end, target(), first, groups=groups).source_to_target
    assert found.moved() > 0
    assert result.source_to_target.same_as(found)
    moved = found.apply({n: run[-1].weights[n] - run[0].weights[n] for n in target()})
    for name, value in target().items():
        torch.testing.assert_close(result.weights[name], value + moved[name])
    assert result.cost.gradient_evaluations == 0


def candidates(run, start, data, groups):
    """Both ends beside the start, then the end beside what the nearest carried, with distances."""
    model, move = network(1, batchnorm=False), {}
    for name in start:
        move[name] = run[-1].weights[name] - run[0].weights[name]

    def logits(weights):
        with torch.no_grad():
            return torch.cat(
                [torch.func.functional_call(model.eval(), weights, (batch[0],)) for batch in data]
            )

    answers = logits(run[-1].weights).softmax(-1)

    def candidate(end, beside, begun=None):
        found = match_activations(
            end.weights, beside, Task(model, data), groups=groups, start=begun
        )
        permutation = found.source_to_target
        moved = permutation.apply(move)
        carried = {name: value + moved[name] for name, value in start.items()}
        lost = answers.log() - logits(carried).log_softmax(-1)
        return float((answers * lost).sum(-1).mean()), permutation, carried

    tried = [candidate(run[-1], start), candidate(run[0], start)]
    _, permutation, carried = min(tried, key=lambda found: found[0])
    return [*tried, candidate(run[-1], carried, permutation)]


@pytest.mark.parametrize("seed", range(2, 6))
def test_of_several_permutations_the_nearest_outputs_are_taken(run, seed):
    start = weights_of(network(seed, batchnorm=False))
    groups = find_neuron_groups(network(1, batchnorm=False), batches()[0][0])
    plan = TransferPlan("activations", stages=1, activation_batches=3, matchings=3)
    result = transfer_trajectory(run, start, task(), plan=plan)
    tried = candidates(run, start, batches()[:3], groups)
    assert len({round(apart, 9) for apart, _, _ in tried}) > 1
    _, nearest, carried = min(tried, key=lambda found: found[0])
    assert result.source_to_target.same_as(nearest)
    for name, value in carried.items():
        torch.testing.assert_close(result.weights[name], value)


def test_where_outputs_cannot_be_seen_the_first_permutation_is_taken(run):
    def around(model, batch):  # the model itself is not called
        return nn.functional.cross_entropy(nn.Sequential(*model.children())(batch[0]), batch[1])

    plans = [TransferPlan("activations", stages=1, matchings=count) for count in (1, 4)]
    given = Task(network(1, batchnorm=False), batches(), around)
    first, several = (transfer_trajectory(run, target(), given, plan=plan) for plan in plans)
    assert several.source_to_target.same_as(first.source_to_target)


def test_only_what_no_gradient_corrects_is_chosen_among_several():
    assert TransferPlan("activations").permutations_tried == 6
    assert TransferPlan("activations-signed").permutations_tried == 1
    assert TransferPlan("activations-signed", matchings=3).permutations_tried == 3
    with pytest.raises(ValueError, match="matchings must be at least 1, got 0"):
        TransferPlan(matchings=0)


def test_sign_steps_by_their_formula(run):
    signs = SignSteps(size=0.3, smoothing=0.25, momentum=0.75)
    plan = TransferPlan("naive-signed", stages=2, signs=signs)
    result = transfer_trajectory(run, target(), task(), plan=plan)
    move = {n: run[-1].weights[n] - run[0].weights[n] for n in target()}
    weights = {n: value + move[n] for n, value in target().items()}
    for name, value in weights.items():
        torch.testing.assert_close(result.trajectory[1].weights[name], value)
    direction = dict.fromkeys(move, 0.0)
    for number, size in ((0, 0.3 * 0.75), (1, 0.3 * 0.25)):
        slopes = plain_gradient(network(1, batchnorm=False), weights, [batches()[number]])
        for name, value in move.items():
            each = 0.75 * value.abs() + 0.25 * value.abs().mean()
            slope = slopes[name] / slopes[name].abs().mean()
            direction[name] = 0.75 * direction[name] + slope
            weights[name] = weights[name] - size * each * direction[name].sign()
    for name, value in weights.items():
        torch.testing.assert_close(result.weights[name], value)
    assert [stage.stage for stage in result.stages] == [0, 1, 2, 3]


def test_small_sign_steps_are_summed_in_float32():
    ends = [{"weight": torch.full((1, 1), v, dtype=torch.bfloat16)} for v in (0.0, 1.0)]
    model = nn.Linear(1, 1, bias=False).bfloat16()
    ones = torch.ones(1, 1, dtype=torch.bfloat16)
    falling = Task(model, [ones], loss=lambda m, batch: m(batch).mean())
    # Eight steps of 2 ** -10 in the mean, from 1: each alone is lost in bf16.
    plan = TransferPlan("naive-signed", stages=8, signs=SignSteps(size=2**-9))
    result = transfer_trajectory(Trajectory.from_weights(ends), ends[0], falling, plan=plan)
    assert result.weights["weight"].item() == 1 - 2**-7


METHODS = ("naive", "random", "activations", "fgmt", "gmt")


@pytest.mark.parametrize("given", [{}, {"activation_weight": 1.0}, {"descent_steps": 2}])
@pytest.mark.parametrize("signs", [SignSteps(), SignWeights()])
@pytest.mark.parametrize("method", [*METHODS, *(f"{method}-signed" for method in METHODS)])
def test_a_plan_knows_how_many_gradients_it_takes(run, method, signs, given):
    plan = TransferPlan(method, stages=3, segments=2, signs=signs, **given)
    done = []
    result = transfer_trajectory(
        run, target(), task(), plan=plan, progress=lambda *now: done.append(now)
    )
    assert result.cost.gradient_evaluations == plan.gradients
    assert len(result.stages) == plan.total_stages + 1
    assert done == [(number, done[-1][1]) for number in range(1, done[-1][1] + 1)]


@pytest.mark.parametrize("method", ["activations", "fgmt", "gmt"])
def test_activations_and_gradients_are_one_sum(run, method):
    model = network(0, batchnorm=False)
    groups = find_neuron_groups(model, batches()[0][0])
    hidden = Permutation.random(groups, seed=3)
    plan = TransferPlan(method, stages=2, activation_weight=0.5, observed="start")
    given = Task(model, batches())
    result = transfer_trajectory(run, hidden.apply(run[0].weights), given, plan=plan)
    assert result.source_to_target.same_as(hidden)
    alive = transfer_trajectory(run, run[0].weights, given, plan=plan)
    # Gradients of equal networks are parallel; units that are never active have no correlation.
    correlation = result.stages[1].objective - (method != "activations")
    assert 0.25 < correlation <= 0.5 + 1e-6
    assert alive.stages[1].objective == pytest.approx(result.stages[1].objective, rel=1e-5)
    if method != "activations":
        assert result.stages[2].objective == pytest.approx(2 + correlation, rel=1e-5)


def test_sign_steps_before_the_observation_are_discarded(run):
    plain, descended = (
        transfer_trajectory(
            run,
            target(),
            task(),
            plan=TransferPlan("activations", stages=1, descent_steps=steps, matchings=1),
        )
        for steps in (0, 3)
    )
    assert (descended.plan.gradients, descended.cost.gradient_evaluations) == (3, 3)
    assert not descended.source_to_target.same_as(plain.source_to_target)
    for name, value in target().items():
        assert torch.equal(descended.trajectory[0].weights[name], value)


def test_nothing_but_unlabelled_batches_is_needed(run):
    inputs = [batch[0] for batch in batches()]

    def none(*_):
        raise AssertionError("the loss was asked for")

    given = Task(network(1, batchnorm=False), loss=none, unlabelled=inputs)
    plan = TransferPlan.for_budget(0)
    result = transfer_trajectory(run, target(), given, plan=plan)
    labelled = transfer_trajectory(run, target(), task(), plan=plan)
    assert plan.needs == "unlabelled batches"
    assert result.source_to_target.same_as(labelled.source_to_target)
    with pytest.raises(ValueError, match="takes gradients, and the task has no data"):
        transfer_trajectory(run, target(), given)


def test_statistics_of_batchnorm_are_estimated_without_labels():
    run = trained(network(0))
    given = Task(network(1), unlabelled=[batch[0] for batch in batches()])
    plan = TransferPlan("activations", stages=1)
    found, other = (
        transfer_trajectory(run, weights_of(network(2)), one, plan=plan)
        for one in (given, Task(network(1), batches()))
    )
    for name, value in other.weights.items():
        torch.testing.assert_close(found.weights[name], value)


def test_observations_have_batches_of_their_own(run):
    own = [batch[0] for batch in batches(seed=9)]
    plan = TransferPlan("activations-signed", stages=1)
    found = transfer_trajectory(
        run, target(), Task(network(1, batchnorm=False), batches(), unlabelled=own), plan=plan
    )
    alone = Task(network(1, batchnorm=False), unlabelled=own)
    matched = transfer_trajectory(run, target(), alone, plan=TransferPlan.for_budget(0))
    assert found.source_to_target.same_as(matched.source_to_target)


@pytest.mark.parametrize(
    ("budget", "given", "expected"),
    [
        (0, {}, ("activations", 10)),
        (20, {}, ("activations-signed", 20)),
        (20, {"method": "fgmt-signed"}, ("fgmt-signed", 6)),
        (20, {"method": "fgmt", "segments": 2}, ("fgmt", 5)),
        (20, {"descent_steps": 5}, ("activations-signed", 15)),
        (7, {"method": "gmt"}, ("gmt", 3)),
    ],
)
def test_a_budget_makes_as_many_stages_as_it_can(budget, given, expected):
    plan = TransferPlan.for_budget(budget, **given)
    assert (plan.method, plan.stages) == expected
    assert plan.gradients <= budget


def test_a_budget_that_is_too_small_names_what_the_method_takes():
    with pytest.raises(
        ValueError, match="fgmt takes at least 2 gradients, more than the budget of 1"
    ):
        TransferPlan.for_budget(1, method="fgmt")
    with pytest.raises(ValueError, match="budget must be at least 0"):
        TransferPlan.for_budget(-1)


def test_a_resumed_transfer_refuses_other_unlabelled_batches(run, tmp_path):
    def interrupted(done, _):
        if done == 1:
            raise KeyboardInterrupt

    plan = TransferPlan("activations", stages=3)
    given = {"plan": plan, "run_folder": tmp_path / "run"}
    with pytest.raises(KeyboardInterrupt):
        transfer_trajectory(run, Target(target()), task(), **given, progress=interrupted)
    given["run_folder"] = NewRun(tmp_path / "run", resume=True)
    with pytest.raises(ValueError, match="The data gives other batches than when stage 1"):
        transfer_trajectory(run, Target(target()), task(seed=4), **given)
    transfer_trajectory(run, Target(target()), task(), **given)


def test_the_loss_of_the_default_falls(run):
    given = Task(network(1, batchnorm=False), batches(), validation=batches())
    result = transfer_trajectory(run, target(), given)
    losses = [stage.metrics["loss"] for stage in result.stages]
    assert losses[-1] < losses[1] < losses[0]
    assert classification_loss is given.loss


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"size": -1}, "size must be a number from 0 on, got -1"),
        ({"size": float("nan")}, "size must be a number from 0 on, got nan"),
        ({"smoothing": 1.5}, "smoothing must be from 0 to 1, got 1.5"),
        ({"momentum": 1}, "momentum must be at least 0 and below 1, got 1"),
    ],
)
def test_sign_steps_of_no_sense_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        SignSteps(**given)
