import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrizations, prune, weight_norm

from cases import CASES
from oracles import plain_iterand
from slipstream.evaluation import classification_loss, squared_loss
from slipstream.recipes import Iterand, IterandPlan, churn, select
from slipstream.recipes.masks.random_weights import counted_generator, draw, redraw
from slipstream.trajectory import Recorder, Schedule, Trajectory
from slipstream.weights import clone, weights_of

UNTIED = [name for name in CASES if name != "tied_autoencoder"]
KINDS = ("kaiming-uniform", "signed-constant", "kaiming-normal")


def network(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def batches(count=24):
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(count, 3, generator=generator)
    return list(zip(inputs.split(8), (inputs[:, 0] > 0).long().split(8), strict=True))


def steps(model, iterand, count, *, lr=0.1):
    optimizer = torch.optim.SGD(iterand.parameters(), lr=lr, momentum=0.9)
    with iterand.attach(optimizer):
        for number in range(count):
            optimizer.zero_grad()
            classification_loss(model, batches()[number % 3]).backward()
            optimizer.step()
    return optimizer


@pytest.mark.parametrize("share", [0.0, 0.1, 0.29, 0.5, 0.999])
@pytest.mark.parametrize("ranking", ["raw", "absolute"])
def test_each_layer_loses_the_share_with_the_lowest_scores(share, ranking):
    scores = {"a": torch.randn(10, 10), "b": torch.randn(2, 3, 3)}
    masks = select(scores, {"a": share, "b": share}, ranking=ranking)
    for name, mask in masks.items():
        size, fallen = mask.numel(), int((~mask).sum())
        assert fallen == (math.floor(share * size + 1e-9) if share < 0.99 else size - 1)
        ranks = scores[name].abs() if ranking == "absolute" else scores[name]
        assert not fallen or ranks[~mask].max() < ranks[mask].min()


def test_a_global_threshold_is_one_for_all():
    scores = {"a": torch.tensor([[0.1, 0.2, 0.3, 0.4]]), "b": torch.tensor([[1.0, 0.15]])}
    masks = select(scores, {"a": 0.5, "b": 0.5}, selection="global")
    assert masks["a"].tolist() == [[False, False, True, True]]
    assert masks["b"].tolist() == [[True, False]]


def test_equal_scores_share_their_fate():
    scores = {"w": torch.tensor([[1.0, 2.0, 2.0, 2.0, 3.0]])}
    assert select(scores, {"w": 0.5})["w"].tolist() == [[False, True, True, True, True]]


@pytest.mark.parametrize("initial", KINDS)
def test_the_variance_is_two_by_fan_in(initial):
    values = draw((400, 5, 3, 3), initial, generator=counted_generator(1))
    assert values.var().item() == pytest.approx(2 / 45, rel=0.02)
    assert values.mean().item() == pytest.approx(0, abs=4 * math.sqrt(2 / 45 / values.numel()))
    kurtosis = (values.double() ** 4).mean() / (values.double() ** 2).mean() ** 2
    expected = {"kaiming-uniform": 1.8, "signed-constant": 1.0, "kaiming-normal": 3.0}[initial]
    assert kurtosis.item() == pytest.approx(expected, rel=0.1 if expected == 3 else 0.02)
    if initial == "kaiming-uniform":
        assert values.abs().max() <= math.sqrt(6 / 45)


def test_streams_are_their_own_and_repeat():
    counters = [(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 1), (0, 1, 0)]
    drawn = [torch.rand(50, generator=counted_generator(*c)).tolist() for c in counters]
    assert len({tuple(values) for values in drawn}) == len(counters)
    # Another process gives the same: files of tickets live on it.
    assert counted_generator(3, 1, 4).initial_seed() == 2426584619016011089
    model, state = nn.Linear(100, 50), torch.get_rng_state()
    iterand = Iterand(model, IterandPlan(redrawn=1.0))
    before = iterand.ticket()
    iterand.randomize()
    assert torch.equal(state, torch.get_rng_state())
    drawn = [before.random, before.scores, iterand.ticket().random]
    fallen = ~before.masks["weight"]
    related = torch.corrcoef(torch.stack([values["weight"][fallen] for values in drawn]))
    assert (related - torch.eye(3)).abs().max() < 4 / math.sqrt(int(fallen.sum()))


@pytest.mark.parametrize("name", UNTIED)
@pytest.mark.parametrize("ranking", ["raw", "absolute"])
def test_the_gradient_goes_straight_through_the_mask(name, ranking):
    case = CASES[name]
    model = case.model().double().eval()
    iterand = Iterand(model, IterandPlan(pruned=0.4, ranking=ranking))
    optimizer = torch.optim.SGD(iterand.parameters(), lr=0.0)
    batch = (case.batches()[0][0].double(), case.batches()[0][1])
    ticket = iterand.ticket()
    scores = {n: s.clone().requires_grad_() for n, s in ticket.scores.items()}
    ranked = {n: s.abs() if ranking == "absolute" else s for n, s in scores.items()}
    through = {  # its value is the mask, its derivative that of the score
        n: (ticket.masks[n].double() + r - r.detach()) * ticket.random[n] for n, r in ranked.items()
    }
    weights = {**ticket.weights, **through}
    outputs = functional_call(model, copy_of_buffers(model) | through, (batch[0],))
    nn.functional.cross_entropy(outputs, batch[1]).backward()
    assert all(torch.equal(weights[n], model.get_parameter(n)) for n in through)
    with iterand.attach(optimizer):
        classification_loss(model, batch).backward()
        for n, score in iterand.scores.items():
            torch.testing.assert_close(score.grad, scores[n].grad)
            assert model.get_parameter(n).grad is None


def copy_of_buffers(model):
    return clone(dict(model.named_buffers()))


@pytest.mark.parametrize("absolute", [False, True])
def test_training_is_that_of_a_plain_second_program(absolute):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(20, 4, generator=generator, dtype=torch.float64)
    labels = torch.randn(20, 2, generator=generator, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).double()
    ranking = "absolute" if absolute else "raw"
    plan = IterandPlan(pruned=0.5, ranking=ranking, redrawn=0.5, every=3, seed=5)
    iterand = Iterand(model, plan)
    optimizer = torch.optim.SGD(iterand.parameters(), lr=0.5, weight_decay=0.01)
    with iterand.attach(optimizer):
        for _ in range(20):
            optimizer.zero_grad()
            # squared_loss is a mean over examples of half the squared distance
            squared_loss(model, (inputs, labels)).backward()
            optimizer.step()
    weights, scores = plain_iterand.train(
        inputs.numpy(), labels.numpy(), [(6, 4), (2, 6)], steps=20, every=3, share=0.5,
        redrawn=0.5, lr=0.5, decay=0.01, absolute=absolute, seed=5,
    )  # fmt: skip
    assert iterand.rounds == 6
    for name, expected, score in zip(("0.weight", "2.weight"), weights, scores, strict=True):
        np.testing.assert_allclose(model.get_parameter(name).detach().numpy(), expected)
        np.testing.assert_allclose(iterand.scores[name].detach().numpy(), score)


@pytest.mark.parametrize("initial", KINDS)
def test_randomising_changes_fallen_values_and_no_weight(initial):
    model = nn.Linear(100, 50)
    iterand = Iterand(model, IterandPlan(pruned=0.6, redrawn=0.1, initial=initial))
    before, weights = iterand.ticket(), clone(weights_of(model))
    iterand.randomize()
    after = iterand.ticket()
    assert all(torch.equal(after.weights[n], value) for n, value in weights.items())
    assert torch.equal(model.weight, weights["weight"])
    new = after.births["weight"] == 1
    assert not (new & after.masks["weight"]).any()
    assert int(new.sum()) / 3000 == pytest.approx(0.1, abs=0.025)
    changed = after.random["weight"] != before.random["weight"]
    assert not (changed & ~new).any()
    # A sign drawn anew is the same one half of the time.
    share = 0.5 if initial == "signed-constant" else 1.0
    assert int(changed.sum()) / int(new.sum()) == pytest.approx(share, abs=0.1)


def test_approximation_by_drawing_anew():
    """n R >= (2 / eps) log(1 / delta) draws from U[-1, 1] come within eps of any target.

    Of n numbers, each drawn up to R times, one does with probability 1 - delta: what counts is the
    product of width and rounds ("Pruning Randomly Initialized Neural Networks with Iterative
    Randomization", Chijiwa et al., 2021, the lemma behind theorem A.1).
    """
    trials, width, near, failing = 4000, 6, 0.1, 0.05  # ±sqrt(6 / 6) is the range of the values
    rounds = math.ceil(2 / near * math.log(1 / failing) / width)
    for target in (0.0, 0.7, 1.0):
        values = draw((trials, width), "kaiming-uniform", generator=counted_generator(0, 9))
        shares = []
        for number in range(1, rounds + 1):
            hit = (values - target).abs() <= near
            shares.append(1 - hit.any(1).double().mean().item())
            values, _ = redraw(
                values, hit, initial="kaiming-uniform", share=1.0, seed=0, tensor=0, number=number
            )
        chance = (min(1, target + near) - max(-1, target - near)) / 2  # of one draw
        for number, share in enumerate(shares, start=1):
            exact = (1 - chance) ** (width * number)
            assert share == pytest.approx(exact, abs=4 * math.sqrt(exact / trials) + 1e-3)
        assert shares[-1] <= failing + 4 * math.sqrt(failing / trials)


@pytest.mark.parametrize("name", UNTIED)
def test_any_module_holds_the_pruned_weights(name):
    model = CASES[name].model()
    iterand = Iterand(model, IterandPlan(pruned=0.25, every=1))
    optimizer = torch.optim.SGD(iterand.parameters(), lr=30.0)
    start = clone(iterand.masks)
    with iterand.attach(optimizer):
        for batch in CASES[name].batches():
            optimizer.zero_grad()
            classification_loss(model, batch).backward()
            optimizer.step()
    ticket = iterand.ticket()
    assert churn(start, ticket.masks) > 0
    assert all(share == pytest.approx(0.25, abs=0.1) for share in ticket.pruned.values())
    assert list(ticket.weights) == list(weights_of(model))
    assert all(torch.equal(ticket.weights[n], v) for n, v in weights_of(model).items())
    for n, parameter in model.named_parameters():
        assert n in ticket.masks or n == "bias" or parameter.dim() == 1


def test_biases_are_zero_and_gains_one_or_stay():
    model = network()
    nn.init.normal_(model[1].weight)
    before = clone(weights_of(model))
    kept = Iterand(network(), IterandPlan(biases="frozen")).ticket()
    assert torch.equal(kept.others["0.bias"], before["0.bias"])
    ticket = Iterand(model, IterandPlan()).ticket()
    assert all(not ticket.others[f"{layer}.bias"].any() for layer in (0, 1, 3))
    assert torch.equal(ticket.others["1.weight"], torch.ones(8))
    left = Iterand(network(), IterandPlan(exclude=("3.*",))).ticket()
    assert torch.equal(left.others["3.bias"], before["3.bias"])
    assert torch.equal(left.others["3.weight"], before["3.weight"])


def test_what_is_excluded_may_train_beside():
    model = network()
    iterand = Iterand(model, IterandPlan(exclude=("3.*",)))
    before = clone(weights_of(model))
    optimizer = torch.optim.SGD([*iterand.parameters(), *model[3].parameters()], lr=0.1)
    with iterand.attach(optimizer):
        classification_loss(model, batches()[0]).backward()
        optimizer.step()
        assert not model[0].bias.requires_grad
    assert not torch.equal(before["3.weight"], model[3].weight)
    assert torch.equal(before["0.bias"], model[0].bias)


def test_closing_gives_gradients_back():
    model = network()
    classification_loss(model, batches()[0]).backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    iterand = Iterand(model)
    optimizer = steps(model, iterand, 2)
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    assert all(p.requires_grad for p in model.parameters())
    optimizer.step()
    assert iterand.step == 2
    with iterand.attach(optimizer), pytest.raises(RuntimeError, match="attached to an optimizer"):
        iterand.attach(optimizer)


def test_gradients_of_several_batches_add_up():
    model = network().eval()
    iterand = Iterand(model)
    optimizer = torch.optim.SGD(iterand.parameters(), lr=0.1)
    found = []
    with iterand.attach(optimizer):
        for chosen in ([0], [1], [0, 1]):
            optimizer.zero_grad()
            for number in chosen:
                classification_loss(model, batches()[number]).backward()
            found.append([p.grad.clone() for p in iterand.parameters()])
    for one, other, both in zip(*found, strict=True):
        torch.testing.assert_close(one + other, both)


def test_scores_of_coarse_weights_take_small_steps():
    model = network().to(torch.bfloat16)
    iterand = Iterand(model)
    before = [score.detach().clone() for score in iterand.parameters()]
    optimizer = torch.optim.SGD(iterand.parameters(), lr=1e-4)
    with iterand.attach(optimizer):
        classification_loss(model, (batches()[0][0].bfloat16(), batches()[0][1])).backward()
        optimizer.step()
    for score, start in zip(iterand.parameters(), before, strict=True):
        assert score.dtype == torch.float32
        moved = score.detach() != start
        assert moved.float().mean() > 0.5
        assert (score.detach().bfloat16() == start.bfloat16()).float().mean() > 0.9
    assert model[0].weight.dtype == torch.bfloat16


def test_state_goes_on_bit_for_bit():
    plan = IterandPlan(every=2, redrawn=0.5)
    model, other = network(), network(1)
    iterand, resumed = Iterand(model, plan), Iterand(other, plan)
    optimizer = steps(model, iterand, 5)
    resumed.load_state_dict(copied(iterand.state_dict()))
    again = torch.optim.SGD(resumed.parameters(), lr=0.1, momentum=0.9)
    again.load_state_dict(copied(optimizer.state_dict()))
    other.load_state_dict(clone(model.state_dict()))
    for which, one, trained in ((optimizer, iterand, model), (again, resumed, other)):
        with one.attach(which):
            for batch in batches():
                which.zero_grad()
                classification_loss(trained, batch).backward()
                which.step()
    assert resumed.rounds == iterand.rounds == 4
    assert all(torch.equal(v, weights_of(other)[n]) for n, v in weights_of(model).items())


def copied(state):
    if isinstance(state, torch.Tensor):
        return state.clone()
    if isinstance(state, dict):
        return {key: copied(value) for key, value in state.items()}
    return [copied(value) for value in state] if isinstance(state, list) else state


def test_a_recorder_beside_it_sees_the_pruned_network(tmp_path):
    model = network()
    iterand = Iterand(model, IterandPlan(pruned=0.5, every=2), steps=6)
    optimizer = torch.optim.SGD(iterand.parameters(), lr=0.5)
    seen = []
    with (
        iterand.attach(optimizer),
        Recorder(tmp_path / "run", model, schedule=Schedule.every(1)).attach(optimizer),
    ):
        seen.append(clone(weights_of(model)))
        for batch in batches():
            optimizer.zero_grad()
            classification_loss(model, batch).backward()
            optimizer.step()
            seen.append(iterand.ticket().weights)
    for snapshot, weights in zip(Trajectory.open(tmp_path / "run"), seen, strict=True):
        assert all(torch.equal(snapshot.weights[n], value) for n, value in weights.items())
        assert int((snapshot.weights["0.weight"] == 0).sum()) == 12


def test_randomisations_are_spread_over_a_known_length():
    assert Iterand(network(), steps=39100).every == 334
    assert Iterand(network(), steps=50).every == 1
    assert Iterand(network()).every == 300
    assert Iterand(network(), IterandPlan(every=7), steps=39100).every == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pruned": 1.0}, "pruned is the share of the weights to prune, .* below 1; got 1.0"),
        ({"pruned": -0.1}, "got -0.1"),
        ({"pruned": math.nan}, "got nan"),
        ({"pruned_in": {"0.*": 1.5}}, r"pruned_in\['0.\*'\] is the share .* got 1.5"),
        ({"redrawn": 1.5}, "redrawn must be a share from 0 to 1, got 1.5"),
        ({"every": 0}, "every must be at least 1 step, got 0"),
        ({"selection": "local"}, "selection must be layer or global, got 'local'"),
        ({"ranking": "abs"}, "ranking must be raw or absolute, got 'abs'"),
        ({"initial": "zeros"}, "initial must be kaiming-uniform, .* got 'zeros'"),
        ({"biases": "none"}, "biases must be zero or frozen, got 'none'"),
        ({"exclude": "head.*"}, r"write exclude=\('head.\*',\)"),
        ({"seed": -1}, "seed must not be negative, got -1"),
        ({"selection": "global", "pruned_in": {"0.*": 0.1}}, "a global one has one share"),
    ],
)
def test_plans_that_make_no_ticket(options, message):
    with pytest.raises(ValueError, match=message):
        IterandPlan(**options)


def test_models_without_a_weight_to_mask():
    frozen = network().requires_grad_(requires_grad=False)
    for model in (nn.ReLU(), nn.BatchNorm1d(3), frozen):
        with pytest.raises(ValueError, match=f"{type(model).__name__} has no weight to mask"):
            Iterand(model)
    with pytest.raises(ValueError, match=r"'head.*' matches no parameter; there are 0.weight"):
        Iterand(network(), IterandPlan(exclude=("head.*",)))
    with pytest.raises(ValueError, match=r"'5.*' matches no parameter; there are 0.weight"):
        Iterand(network(), IterandPlan(pruned_in={"5.*": 0.2}))


def test_tied_weights_are_named():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    with pytest.raises(ValueError, match=r"'0.weight' and '2.weight' are one tied weight"):
        Iterand(model)
    with pytest.raises(ValueError, match="no weight to mask"):
        Iterand(model, IterandPlan(exclude=("0.weight", "2.weight")))


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize(
    ("wrap", "name"),
    [
        (parametrizations.weight_norm, "1.parametrizations.weight.original0"),
        (parametrizations.orthogonal, "1.parametrizations.weight.original"),
        (lambda layer: prune.random_unstructured(layer, "weight", 0.5), "1.weight_orig"),
        (weight_norm, "1.weight_g"),
    ],
)
def test_parametrised_weights_are_named(wrap, name):
    with pytest.raises(ValueError, match=f"'{name}' is parametrised"):
        Iterand(nn.Sequential(nn.ReLU(), wrap(nn.Linear(3, 3))))


def test_optimizers_of_the_wrong_numbers():
    model = network()
    iterand = Iterand(model)
    for wrong in (model.parameters(), [*iterand.parameters(), model[0].weight]):
        optimizer = torch.optim.SGD(wrong, lr=0.1)
        with pytest.raises(ValueError, match=r"make it of iterand.parameters\(\). See '0.weight'"):
            iterand.attach(optimizer)


def test_shares_by_pattern():
    plan = IterandPlan(pruned=0.5, pruned_in={"3.*": 0.25})
    ticket = Iterand(network(), plan).ticket()
    assert ticket.pruned == {"0.weight": 0.5, "3.weight": 0.25}
    every = Iterand(network(), replace(plan, selection="global", pruned_in={})).ticket()
    masks = torch.cat([mask.flatten() for mask in every.masks.values()])
    assert int((~masks).sum()) == 20
