from dataclasses import replace

import pytest
import torch
from small_networks import Interrupt, same, same_runs
from torch import nn

from slipstream.averaging import LAWA, average_run
from slipstream.comparison import StartPlan, choose_start, compare_checkpoints
from slipstream.evaluation import Task
from slipstream.recipes import RoutedPlan, pretrain_routed
from slipstream.recipes.routed_pretraining.branches import (
    Branches,
    Learner,
    LossHead,
    feature_spread,
    hide_patches,
    masked_loss,
    simsiam_loss,
)
from slipstream.recipes.routed_pretraining.clusters import Dealt, Images, cluster
from slipstream.report.report import write_report
from slipstream.storage.new_run import NewRun
from slipstream.training import TrainingPlan
from slipstream.trajectory import Trajectory, check_run

EPOCHS = TrainingPlan(epochs=4, lr=0.05)
PLAN = RoutedPlan(clusters=2, whole=0.5, narrowing=0.25, width=8, descent=EPOCHS)


def network(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
            nn.Linear(64, 6), nn.BatchNorm1d(6),
        )  # fmt: skip


def images(count=48, seed=1):
    """Bright and dark images, half of them each."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(count, 1, 8, 8, generator=generator)
    drawn[::2] += 4.0
    return list(drawn.split(12))


def tied(branches):
    first, second = (dict(one.named_parameters()) for one in branches.networks)
    return {name for name in first if first[name] is second[name]}


def test_branches_share_what_is_not_routed_and_keep_statistics_apart():
    branches = Branches(network(), ("4.*", "5.*"), 2)
    assert tied(branches) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    assert branches.routed == ("4.weight", "4.bias", "5.weight", "5.bias")
    assert tied(Branches(network(), (), 2)) == tied(branches)  # the second half
    own = [one[1].running_mean for one in branches.networks]
    assert own[0] is not own[1]
    x = torch.randn(5, 1, 8, 8)
    found = branches.networks[0](x), network()(x)
    torch.testing.assert_close(*found)
    torch.testing.assert_close(own[1], torch.zeros(4))  # untouched by the other branch
    with pytest.raises(ValueError, match=r"routed: 'tail.\*' matches no parameter"):
        Branches(network(), ("tail.*",), 2)


def test_all_epochs_have_as_many_steps_and_images_narrow():
    held = Images.of(images())
    clusters = torch.zeros(48, dtype=torch.int64)
    clusters[:6] = 1
    dealt = Dealt(held, lambda: clusters, lambda epoch: 0.0, seed=0)
    turns = []
    for number in range(40):
        batches = list(dealt.epoch(number))
        assert len(batches) == len(dealt) == 4
        turns += [turn for turn, _ in batches]
        for turn, own in batches:
            of = (held.images[:, None] == own[None]).flatten(2).all(-1).nonzero()[:, 0]
            assert set(clusters[of].tolist()) == {turn}
    assert sum(turns) == pytest.approx(40 * 4 / 8, abs=6)  # an eighth of the images
    mixed = Dealt(held, lambda: clusters, lambda epoch: 1.0, seed=0)
    large = torch.cat([own for n in range(9) for turn, own in mixed.epoch(n) if turn == 1])
    bright = (large.mean((1, 2, 3)) > 2).float().mean()
    assert 0.3 < bright < 0.7
    alone = Dealt(held, lambda: None, lambda epoch: 1.0, seed=0)
    whole = torch.cat([own for _, own in alone])
    assert torch.equal(whole.flatten(1).sum(1).sort()[0], held.images.flatten(1).sum(1).sort()[0])


def test_the_share_of_foreign_images_falls_after_the_division():
    plan = RoutedPlan(whole=0.5, narrowing=0.4, descent=TrainingPlan(epochs=10))
    assert [round(plan.foreign(epoch), 2) for epoch in range(10)] == [
        *[1.0] * 5, 0.8, 0.6, 0.4, 0.2, 0.0
    ]  # fmt: skip


def learner(method="simsiam"):
    plan = replace(PLAN, method=method)
    torch.manual_seed(3)
    return Learner(network(), LossHead(6, 64, plan)).eval()


def test_simsiam_is_the_negative_cosine_both_ways_and_stops_at_the_projection():
    one, (a, b) = learner(), torch.randn(2, 7, 1, 8, 8)
    z = [one.projected(view) for view in (a, b)]
    p = [one.head.predict(each) for each in z]
    parts = [
        -(x / x.norm(dim=1, keepdim=True) * y / y.norm(dim=1, keepdim=True)).sum(1).mean()
        for x, y in zip(p, reversed(z), strict=True)
    ]
    torch.testing.assert_close(simsiam_loss(one, [a, b], None), sum(parts) / 2)
    stopped = simsiam_loss(one, [a, b], [each.detach() for each in z])
    parameters = list(one.parameters())
    found = torch.autograd.grad(simsiam_loss(one, [a, b], None), parameters)
    for own, other in zip(found, torch.autograd.grad(stopped, parameters), strict=True):
        torch.testing.assert_close(own, other)


def test_hidden_patches_are_whole_and_alone_in_the_masked_loss():
    x = torch.randn(6, 1, 8, 8)
    shown, mask = hide_patches(x, share=0.5, patch=4, generator=torch.Generator())
    assert mask.sum((1, 2, 3)).tolist() == [32] * 6
    blocks = mask.float().unfold(2, 4, 4).unfold(3, 4, 4).mean((-1, -2))
    assert set(blocks.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(shown[~mask], x[~mask])
    assert torch.equal(shown[mask], x.mean().expand(6 * 32))
    one = learner("masked")
    told = one.head.decode(one.features(shown)).view_as(x)
    torch.testing.assert_close(masked_loss(one, x, shown, mask), (told - x)[mask].abs().mean())
    _, most = hide_patches(x, share=0.99, patch=4, generator=torch.Generator())
    assert most.sum((1, 2, 3)).tolist() == [48] * 6  # a patch is always shown
    _, cut = hide_patches(x, share=0.5, patch=5, generator=torch.Generator())
    assert cut.shape == mask.shape


def test_clusters_are_found_and_numbered_by_size():
    rows = torch.tensor([[0.0, 1.0], [0.1, 1.0], [9.0, 1.0], [9.1, 1.0], [9.2, 1.0]])
    assert cluster(rows, 2, seed=0).tolist() == [1, 1, 0, 0, 0]
    with pytest.raises(ValueError, match="5 images with 1 different features cannot be divided"):
        cluster(torch.ones(5, 2), 2, seed=0)


def test_spread_is_one_for_even_features_and_zero_once_they_collapsed():
    torch.manual_seed(0)
    assert feature_spread(torch.randn(4000, 16)) == pytest.approx(1.0, abs=0.02)
    assert feature_spread(torch.ones(8, 1) * torch.randn(16)) < 1e-6


@pytest.mark.parametrize("method", ["simsiam", "masked"])
def test_branches_part_after_the_division_and_the_whole_is_the_teacher(tmp_path, method):
    plan = replace(PLAN, method=method)
    task = Task(network(), images())
    found = pretrain_routed(task, plan=plan, run_folder=tmp_path / "routed")
    assert same(task.model.state_dict(), network().state_dict())
    full = pretrain_routed(task, plan=replace(plan, whole=1.0), run_folder=tmp_path / "full")
    assert found.steps == full.steps == 16
    assert (full.clusters, len(full.branches)) == (None, 1)
    assert same(full.whole, full.branches[0])
    first, second = found.branches
    shared = [name for name in dict(network().named_parameters()) if name not in found.routed]
    assert all(torch.equal(first[name], second[name]) for name in shared)
    assert not any(torch.equal(first[name], second[name]) for name in ("4.weight", "5.weight"))
    assert not torch.equal(first["1.running_mean"], second["1.running_mean"])
    # Up to the division it is the training that divides nothing.
    together = Trajectory.open(tmp_path / "routed" / "together")
    alone = Trajectory.open(tmp_path / "full" / "branch-1")
    for step in (0, 4, 8):
        own = {n: together.at(step).weights[f"networks.0.{n}"] for n in found.whole}
        assert same(own, alone.at(step).weights)
    assert same(found.whole, alone.at(8).weights)
    assert len(found.spread) == len(found.losses) == 4


def test_bright_and_dark_images_are_told_apart():
    found = pretrain_routed(Task(network(), images()), plan=PLAN)
    bright = found.clusters[::2].float().mean()
    dark = found.clusters[1::2].float().mean()
    assert abs(bright - dark) > 0.8


def test_labels_are_not_looked_at():
    labelled = [(part, torch.arange(len(part))) for part in images()]
    with_labels = pretrain_routed(Task(network(), labelled), plan=PLAN)
    without = pretrain_routed(Task(network(), iter(images())), plan=PLAN)
    assert all(map(same, with_labels.branches, without.branches))


@pytest.mark.parametrize("stop_at", [3, 14])
def test_an_interrupted_training_ends_like_a_whole_one(tmp_path, stop_at):
    task = Task(network(), images())
    whole = pretrain_routed(task, plan=PLAN, run_folder=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        pretrain_routed(task, plan=PLAN, run_folder=tmp_path / "run", progress=Interrupt(stop_at))
    again = NewRun(tmp_path / "run", resume=True)
    resumed = pretrain_routed(task, plan=PLAN, run_folder=again)
    assert all(map(same, resumed.branches, whole.branches))
    assert torch.equal(resumed.clusters, whole.clusters)
    assert (resumed.losses, resumed.spread) == (whole.losses, whole.spread)
    for name in ("together", "branch-1", "branch-2"):
        assert same_runs(tmp_path / "whole" / name, tmp_path / "run" / name)
    finished = pretrain_routed(task, plan=PLAN, run_folder=again, progress=lambda *_: 1 / 0)
    assert all(map(same, finished.branches, whole.branches))
    with pytest.raises(ValueError, match="another training"):
        pretrain_routed(task, plan=replace(PLAN, clusters=3), run_folder=again)
    with pytest.raises(FileExistsError, match="branch-1 is not empty"):
        pretrain_routed(task, plan=PLAN, run_folder=tmp_path / "run")


def test_each_branch_is_a_run_like_any_other(tmp_path):
    found = pretrain_routed(Task(network(), images()), plan=PLAN, run_folder=tmp_path)
    paths = [tmp_path / "branch-1", tmp_path / "branch-2"]
    runs = [Trajectory.open(path) for path in paths]
    for path, run, weights in zip(paths, runs, found.branches, strict=True):
        assert check_run(path) == []
        assert same(run[-1].weights, weights)
        assert run[-1].metrics["feature_spread"] == found.spread[-1]
    for step in (0, 4, 8):  # they part after that
        assert same(runs[0].at(step).weights, runs[1].at(step).weights)
    averaged = average_run(runs[0], LAWA(2))
    expected = (runs[0][-1].weights["4.bias"] + runs[0][-2].weights["4.bias"]) / 2
    torch.testing.assert_close(averaged["4.bias"], expected)
    assert str(compare_checkpoints(paths))
    write_report(paths, tmp_path / "page.html")
    assert b"routed-pretraining" in (tmp_path / "page.html").read_bytes()
    classifier = nn.Sequential(*network(9), nn.Linear(6, 2))
    batches = [(part, (part.mean((1, 2, 3)) > 2).long()) for part in images(seed=5)]
    plan = StartPlan(batches=4, steps=10, rates=(0.01,))
    choice = choose_start(paths, Task(classifier, batches), plan=plan)
    assert {one.name for one in choice.candidates} == {"branch-1", "branch-2", "fresh"}
    assert choice.best.kept in ((), ("6.weight", "6.bias"))


def test_mistakes_are_named():
    task = Task(network(), images())
    for data, words in (
        ([], "data is empty: there are no images"),
        ([torch.ones(4, 3)], r"Batch 1 holds no images: .* got torch.float32 of shape \(4, 3\)"),
        ([{"text": "words"}], "Batch 1 holds no images: .* got dict"),
        ([torch.ones(4, 1, 8, 8) * torch.nan], "The images hold a NaN"),
        ([torch.rand(1, 1, 8, 8)], "1 images cannot be divided into 2 clusters"),
    ):
        with pytest.raises(ValueError, match=words):
            pretrain_routed(replace(task, data=data), plan=PLAN)
    with pytest.raises(
        ValueError, match="features collapsed in epoch 1: the deviation of the norm"
    ):
        pretrain_routed(replace(task, data=[torch.ones(8, 1, 8, 8)] * 3), plan=PLAN)
    wild = replace(PLAN, descent=TrainingPlan(epochs=4, lr=1e30))
    with pytest.raises(ValueError, match=r"loss at step|collapsed|NaN"):
        pretrain_routed(task, plan=wild)
    with pytest.raises(ValueError, match="must map images to features"):
        pretrain_routed(replace(task, model=nn.Sequential(network(), Sum())), plan=PLAN)
    for wrong, words in (
        ({"clusters": 1}, "clusters must be at least 2"),
        ({"whole": 0.0}, "whole must be above 0"),
        ({"distillation": 2.0}, "distillation must be between 0 and 1"),
        ({"hidden": 1.0}, "hidden must be above 0 and below 1"),
        ({"patch": 0}, "patch must be at least 1"),
        ({"routed": "4.*"}, "routed must be a tuple"),
        ({"method": "rotation"}, "method must be simsiam or masked"),
    ):
        with pytest.raises(ValueError, match=words):
            replace(PLAN, **wrong)


class Sum(nn.Module):
    def forward(self, x):
        return x.sum()
