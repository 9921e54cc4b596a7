"""A generative model of checkpoints: tokens, noise, the transformer, and what it learns."""

import math
from dataclasses import replace

import pytest
import torch
from small_networks import Interrupt, batches, network, same, same_runs
from torch import nn

from cases import CASES
from slipstream import find_neuron_groups
from slipstream.evaluation import Task
from slipstream.recipes import GenerationPlan, PriorPlan, generate, load_prior, train_prior
from slipstream.recipes.checkpoint_prior.corpus import Corpus
from slipstream.recipes.checkpoint_prior.diffusion import Diffusion
from slipstream.recipes.checkpoint_prior.network import PriorNetwork
from slipstream.recipes.checkpoint_prior.tokens import TokenLayout
from slipstream.storage import resumable_state as checkpoint
from slipstream.storage.new_run import NewRun
from slipstream.symmetry.permutation import Permutation
from slipstream.training import TrainingPlan
from slipstream.trajectory import Layout, Recorder, Trajectory, check_run
from slipstream.weights import clone, parameter_names, weights_of

SMALL = PriorPlan(
    width=16, layers=1, heads=2, levels=5, batch_size=8, steps=4, held_out=0.2, decay=0.5,
    descent=TrainingPlan.cosine(2, "adamw", lr=3e-3),
)  # fmt: skip


def groups_and_layout(name, *, chunk=7):
    case = CASES[name]
    model = case.model()
    groups = find_neuron_groups(model, case.inputs())
    return model, groups, TokenLayout.of(groups, parameter_names(model), chunk=chunk)


@pytest.mark.parametrize("name", CASES)
def test_tokens_hold_every_number_once_and_move_with_their_neurons(name):
    model, groups, layout = groups_and_layout(name)
    flat = layout.flatten(weights_of(model))
    numbers = torch.cat([kind.flatten() for kind in layout.kinds])
    assert numbers.sort().values.tolist() == list(range(len(flat)))
    assert torch.equal(layout.join(layout.split(flat[None]))[0], flat)
    learned = {n: v for n, v in weights_of(model).items() if n in layout.shapes}
    assert same(layout.unflatten(flat), clone(learned))
    permutation = Permutation.random(groups.without_signs(), seed=1)
    places, signs = layout.moves(permutation)
    moved = flat[places] * signs
    assert torch.equal(moved, layout.flatten(permutation.apply(weights_of(model))))
    units = [group for group in groups.groups if not group.parents]
    before, after = layout.split(flat[None]), layout.split(moved[None])
    for group, old, new in zip(units, before, after, strict=False):
        order = permutation.orders[group.name]
        # What other groups list inside a token is in another order, too.
        assert torch.equal(new[0].sort(-1).values, old[0, order].sort(-1).values)


def test_tokens_of_one_hidden_layer_are_whole_neurons():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    groups = find_neuron_groups(model, torch.randn(5, 3))
    layout = TokenLayout.of(groups)
    weights = weights_of(model)
    units, rest = layout.split(layout.flatten(weights)[None])
    row = torch.cat([weights["0.weight"][2], weights["0.bias"][2:3], weights["2.weight"][:, 2]])
    assert torch.equal(units[0, 2], row)
    assert torch.equal(rest[0, 0], weights["2.bias"])
    permutation = Permutation.random(groups, seed=3)
    moved, _ = layout.split(layout.flatten(permutation.apply(weights))[None])
    assert torch.equal(moved[0], units[0, permutation.orders["0.weight:0"]])


def one_hidden_layer(**changed):
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    groups = find_neuron_groups(model, torch.randn(5, 3))
    layout = TokenLayout.of(groups, chunk=2)
    return groups, layout, PriorNetwork(layout, replace(SMALL, **changed))


def test_before_training_the_start_is_returned():
    _, layout, prior = one_hidden_layer()
    noisy, start = torch.randn(2, 6, sum(layout.sizes))
    assert torch.equal(prior(noisy, start, torch.rand(6, 3)), start)


@pytest.mark.parametrize("positions", [False, True])
def test_without_positions_the_transformer_is_equivariant(positions):
    groups, layout, prior = one_hidden_layer(positions=positions)
    for parameter in prior.parameters():
        nn.init.normal_(parameter, std=0.3)
    noisy, start = torch.randn(2, 6, sum(layout.sizes))
    scalars = torch.rand(6, 3)
    places, _ = layout.moves(Permutation.random(groups, seed=2))
    moved = prior(noisy[:, places], start[:, places], scalars)
    expected = prior(noisy, start, scalars)[:, places]
    assert torch.allclose(moved, expected, atol=1e-5) is not positions


def test_noise_keeps_the_variance_and_ends_in_noise():
    diffusion = Diffusion(1000)
    assert float(diffusion.betas[0]) == pytest.approx(1e-4)
    assert float(diffusion.betas[-1]) == pytest.approx(0.02)
    assert float(diffusion.signal[2]) == pytest.approx(
        math.prod(1 - float(b) for b in diffusion.betas[:3])
    )
    for levels in (20, 100, 1000):
        assert float(Diffusion(levels).signal[-1]) < 1e-4
    weights, noise = torch.randn(2, 4, 50)
    level = torch.tensor([0, 3, 500, 999])
    kept = diffusion.signal.float()[level][:, None]
    found = diffusion.noised(weights, level, noise)
    torch.testing.assert_close(found, kept.sqrt() * weights + (1 - kept).sqrt() * noise)


def test_the_way_back_is_exact_for_a_known_point_and_for_normal_weights():
    point = torch.randn(1, 9)
    made = Diffusion(30).sample(lambda noisy, level: point, point, seed=0)
    assert torch.equal(made, point)
    diffusion, deviation = Diffusion(200), 0.5

    def expected(noisy, level):
        kept = float(diffusion.signal[level])
        return noisy * kept**0.5 * deviation**2 / (kept * deviation**2 + 1 - kept)

    made = diffusion.sample(expected, torch.empty(20000, 1), seed=0)
    assert float(made.std()) == pytest.approx(deviation, rel=0.05)
    assert float(made.mean()) == pytest.approx(0, abs=0.02)


def record(folder, count=12, *, outputs=2, name="validation_loss", values=None):
    """Runs whose later weights are the first ones plus the same displacement."""
    for number in range(count):
        model = network(seed=number, outputs=outputs)
        with Recorder(folder / f"{number:02d}", model) as recorder:
            for step in range(4):
                metric = 1.0 - 0.3 * step if values is None else values[step]
                recorder.record(step=step, metrics={name: metric})
                with torch.no_grad():
                    for parameter in model.parameters():
                        parameter += 0.3
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return record(tmp_path_factory.mktemp("runs"))


def task(seed=50, **given):
    data = batches()
    return Task(network(seed=seed), data, validation=data, **given)


def test_pairs_are_of_one_run_and_in_order(runs):
    _, _, layout = (
        None,
        None,
        TokenLayout.of(find_neuron_groups(network(), batches()[0][0]), parameter_names(network())),
    )
    corpus = Corpus.read(runs, layout, Layout.of(network()), metric="validation_loss")
    assert len(corpus) == 12
    assert corpus.weights.shape[0] == 48
    early, late, before, after = corpus.take(torch.arange(5)).pairs(
        200, torch.Generator().manual_seed(0)
    )
    moved = late - early  # 0.3 in every number for each step
    assert torch.allclose(moved, (before - after)[:, None].expand_as(moved), atol=1e-5)
    assert (before >= after).all()
    assert (before == after).any()
    assert 0.3 < (before > 0.99).float().mean() < 0.6  # 7 / 16
    begun, *_ = corpus.pairs(400, torch.Generator().manual_seed(0), from_start=0.5)
    first = (begun[:, None] == corpus.weights[corpus.first]).all(2).any(1)
    assert 0.6 < first.float().mean() < 0.85  # 23 / 32
    firsts = {tuple(row.tolist()) for row in corpus.weights[::4][:5]}
    assert {tuple(row.tolist()) for row in early[before > 0.99]} <= firsts
    assert corpus.best() == pytest.approx(0.1)


@pytest.mark.parametrize("symmetry", ["augment", "align"])
def test_a_common_displacement_is_learned(runs, symmetry):
    plan = replace(SMALL, symmetry=symmetry, steps=30, levels=10, width=32, decay=0.9)
    found = train_prior(runs, task(), plan=plan)
    assert found.held_out < 0.3 * found.unmoved
    assert found.losses[-1] < found.losses[0]
    start = weights_of(network(seed=50))
    (made,) = found.update([start], metric=[1.0], wanted=0.1)
    learned = {name: value - start[name] for name, value in made.items() if value.dim() == 2}
    assert 0.5 < torch.cat([value.flatten() for value in learned.values()]).mean() < 1.2
    assert torch.equal(made["1.running_mean"], start["1.running_mean"])


def test_permuted_starts_give_permuted_weights_after_alignment(runs):
    found = train_prior(runs, task(), plan=replace(SMALL, symmetry="align", positions=True))
    start = clone(weights_of(network(seed=50)))
    permutation = Permutation.random(found.groups, seed=4)
    (made,) = found.update([start], metric=[1.0])
    (moved,) = found.update([permutation.apply(start)], metric=[1.0])
    expected = permutation.apply(made)
    assert all(torch.allclose(moved[n], expected[n], atol=1e-5) for n in moved)


def test_an_interrupted_training_ends_the_same(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SHARE", 1.0)
    whole = train_prior(runs, task(), plan=SMALL, run_folder=tmp_path / "whole")
    new = NewRun(tmp_path / "part", resume=True)
    with pytest.raises(KeyboardInterrupt):
        train_prior(runs, task(), plan=SMALL, run_folder=new, progress=Interrupt(6))
    resumed = train_prior(runs, task(), plan=SMALL, run_folder=new)
    assert same(weights_of(resumed.network), weights_of(whole.network))
    assert resumed.losses == whole.losses
    assert same_runs(tmp_path / "part", tmp_path / "whole")
    assert check_run(tmp_path / "part") == []
    errors = {s.step: s.metrics["validation_loss"] for s in Trajectory.open(tmp_path / "part")}
    del errors[0]
    assert errors[resumed.chosen] == pytest.approx(whole.held_out)
    assert resumed.chosen == whole.chosen == min(errors, key=errors.__getitem__)
    with pytest.raises(ValueError, match=r"its checkpoint-prior\.width is 16, here it is 32"):
        train_prior(runs, task(), plan=replace(SMALL, width=32), run_folder=new)
    fewer = [runs / f"{number:02d}" for number in range(11)]
    with pytest.raises(ValueError, match="its start is another"):
        train_prior(fewer, task(), plan=SMALL, run_folder=new)


@pytest.mark.parametrize("symmetry", ["augment", "align"])
def test_what_is_read_again_generates_the_same(runs, tmp_path, symmetry):
    plan = replace(SMALL, symmetry=symmetry)
    found = train_prior(runs, task(), plan=plan, run_folder=tmp_path / "prior")
    again = load_prior(tmp_path / "prior")
    assert (again.plan, again.scales, again.losses) == (found.plan, found.scales, found.losses)
    start = weights_of(network(seed=50))
    (one,), (other,) = (prior.update([start], metric=[1.0]) for prior in (found, again))
    assert same(one, other)


def test_generating_makes_a_run(runs, tmp_path):
    prior = train_prior(runs, task(), plan=SMALL)
    given, start = task(), weights_of(network(seed=50))
    plan = GenerationPlan(wanted=0.5, updates=2)
    found = generate(prior, start, given, plan=plan, run_folder=tmp_path / "made")
    run = Trajectory.open(tmp_path / "made")
    assert run.steps == [0, 1, 2]
    assert same(run[0].weights, clone(start))
    assert same(run[-1].weights, found.weights)
    assert [dict(snapshot.metrics) for snapshot in run] == list(found.metrics)
    assert not torch.equal(found.weights["1.running_mean"], start["1.running_mean"])
    assert found.metrics[0] == given.validated(weights=start)
    assert run.description["configuration"]["recipe"]["generated"]["updates"] == 2
    assert check_run(tmp_path / "made") == []
    assert generate(prior, start, given).wanted == pytest.approx(prior.scales.best)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"metric": "test_loss"}, "recorded validation_loss: name one of these, or log it"),
        ({"symmetry": "both"}, "symmetry must be augment, align or none, got 'both'"),
        ({"heads": 3}, "width must be a multiple of heads=3, got 16"),
        ({"from_start": 1.5}, "from_start must be between 0 and 1, got 1.5"),
        ({"held_out": 1.0}, "held_out must be between 0 and 1, got 1.0"),
        ({"levels": 1}, "levels must be at least 2, got 1"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
    ],
)
def test_plans_that_do_not_fit_are_refused(runs, changed, message):
    with pytest.raises(ValueError, match=message):
        train_prior(runs, task(), plan=replace(SMALL, **changed))


def test_runs_that_do_not_fit_are_refused(runs, tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a folder: name one with run folders"):
        train_prior(tmp_path / "none", task(), plan=SMALL)
    few = [runs / f"{number:02d}" for number in range(9)]
    with pytest.raises(ValueError, match="runs must hold at least 10 runs to learn from, got 9"):
        train_prior(few, task(), plan=SMALL)
    other = record(tmp_path / "other", 1, outputs=3)
    with pytest.raises(ValueError, match=r"expected .*All runs must be of one architecture"):
        train_prior([*few, other / "00"], task(), plan=SMALL)
    bad = record(tmp_path / "nan", 1, values=[1.0, math.nan, 0.5, 0.2])
    with pytest.raises(ValueError, match="at step 1 'validation_loss' are not finite"):
        train_prior([*few, bad / "00"], task(), plan=SMALL)


def test_what_cannot_be_generated_is_refused(runs, tmp_path):
    prior = train_prior(runs, task(), plan=SMALL)
    start = weights_of(network(seed=50))
    with pytest.raises(ValueError, match=r"give Task\(validation"):
        generate(prior, start, Task(network(), batches()))
    with pytest.raises(ValueError, match=r"must have the tensor '0\.weight'"):
        prior.update([{"0.bias": start["0.bias"]}], metric=[1.0])
    with pytest.raises(ValueError, match="must be finite"):
        prior.update([start], metric=[math.nan])
    with pytest.raises(FileNotFoundError, match=r"it has no prior\.json"):
        load_prior(runs / "00")
    with pytest.raises(ValueError, match="updates must be at least 1, got 0"):
        GenerationPlan(updates=0)
