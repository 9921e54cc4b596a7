import copy as copying
import math

import pytest
import torch
from small_networks import Interrupt, batches, network, same, same_runs
from torch import nn

from slipstream.evaluation import (
    Task,
    accuracy,
    classification_loss,
    evaluate,
    recalibrate_batchnorm,
)
from slipstream.recipes import (
    ConditionalGenerator,
    Consistency,
    DistilPlan,
    PretrainPlan,
    PseudoPlan,
    PseudoSource,
    QualityPlan,
    SyntheticBatches,
    distil_source,
    generator_quality,
    pseudo_pretrain,
    pseudo_semi_supervised,
)
from slipstream.recipes.pseudo_transfer.other_head import under_other_head
from slipstream.storage import resumable_state as checkpoint
from slipstream.storage.new_run import NewRun
from slipstream.training import TrainingPlan, fresh_weights, trained_copy
from slipstream.trajectory import Trajectory, check_run
from slipstream.weights import clone, load_weights_, weights_of

CENTRES = 4 * torch.tensor([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]])
HOW = TrainingPlan.cosine(epochs=4, lr=0.05, seed=1)
SHORT = PseudoPlan(1.0, consistency=Consistency("entropy"), descent=HOW)
PRETRAIN = PretrainPlan(3, 16, HOW)


def sample(labels, generator):
    return labels @ CENTRES + torch.randn(len(labels), 3, generator=generator) + 3


GENERATOR = ConditionalGenerator(sample, classes=4)
CLASSIFIER = nn.Linear(3, 4)
CLASSIFIER.load_state_dict({"weight": CENTRES / 4, "bias": torch.zeros(4)})


SOURCE = PseudoSource(GENERATOR, CLASSIFIER)
BARE = PseudoSource(ConditionalGenerator(lambda labels, _: labels, 4))
NARROW = PseudoSource(GENERATOR, head=nn.Linear(8, 3))
ONCE = TrainingPlan.cosine(epochs=1)
OF_TASK = ("data", "validation", "metrics")
OF_SOURCE = ("generator", "classifier", "weak", "strong")


def semi(model=None, **given):
    """Semi-supervised training with parts of source and task as given."""
    own = {name: given.pop(name) for name in OF_SOURCE if name in given}
    known = {name: given.pop(name) for name in OF_TASK if name in given}
    task = Task(model or network(), **{"data": batches(), **known})
    source = PseudoSource(**{"generator": GENERATOR, "classifier": CLASSIFIER, **own})
    return pseudo_semi_supervised(source, task, **{"plan": SHORT, **given})


def pretrain(model=None, source=None, data=(), **given):
    task = Task(model or network(), data)
    return pseudo_pretrain(source or SOURCE, task, **{"head": "4", "plan": PRETRAIN, **given})


def buffers(weights):
    return {n: v for n, v in weights.items() if "running" in n or "tracked" in n}


def still(model, batch):
    """A loss that runs the model on the batch and teaches nothing."""
    return 0 * model(batch[0]).sum()


class OwnNorm(nn.BatchNorm1d):
    """Keeps its statistics in its own way."""

    def forward(self, x):
        if self.training:
            self.running_mean += x.detach().mean(0)
            self.num_batches_tracked += 1
        return x - x.mean(0)


def normed(norm):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 8), norm, nn.ReLU(), nn.Linear(8, 2))


# P-SSL


@pytest.mark.parametrize(
    "norm",
    [nn.BatchNorm1d(8), nn.BatchNorm1d(8, momentum=None), nn.BatchNorm1d(8, affine=False),
     nn.SyncBatchNorm(8), OwnNorm(8)],
    ids=["usual", "cumulative", "plain", "sync", "own"],
)  # fmt: skip
def test_synthetic_inputs_never_touch_batchnorm_statistics(norm):
    # The weights stay where they are, so the statistics are those of the target's inputs alone.
    model, how = normed(norm), TrainingPlan.cosine(epochs=3, lr=1e-30, weight_decay=0.0)
    for kind in ("entropy", "uda"):
        plan = PseudoPlan(consistency=Consistency(kind), descent=how)
        given = {"strong": lambda x, _: -x} if kind == "uda" else {}
        found = semi(model, plan=plan, **given)
        alone = trained_copy(Task(model, batches()), how)
        assert same(buffers(found.weights), buffers(weights_of(alone)))
        assert not same(buffers(found.weights), buffers(weights_of(model)))
        assert found.synthetic == 60


def test_without_a_weight_it_is_plain_training_to_the_bit():
    found = semi(plan=PseudoPlan(0.0, descent=HOW))
    alone = trained_copy(Task(network(), batches()), HOW)
    assert same(found.weights, weights_of(alone))
    assert found.synthetic == 0
    assert found.losses == found.supervised


def test_a_step_is_that_of_the_sum_of_both_losses():
    # A second implementation of one step, without BatchNorm and dropout.
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
    seen = []

    def spied(labels, generator):
        seen.append((labels, sample(labels, generator)))
        return seen[-1][1]

    batch = batches()[0]
    how = TrainingPlan.cosine(epochs=1, lr=0.1, momentum=0.0, weight_decay=0.0, warm_up=0.0)
    plan = PseudoPlan(0.7, Consistency("entropy"), ratio=2, descent=how)
    found = semi(model, generator=ConditionalGenerator(spied, 4), data=[batch], plan=plan)
    labels, made = seen[-1]
    torch.testing.assert_close(
        labels, CLASSIFIER(batch[0]).softmax(1).detach().repeat_interleave(2, 0)
    )
    logs = model(made).log_softmax(1)
    beside = -(logs.exp() * logs).sum(1).mean()
    whole = classification_loss(model, batch) + 0.7 * beside
    slopes = torch.autograd.grad(whole, list(model.parameters()))
    for (name, value), slope in zip(model.named_parameters(), slopes, strict=True):
        torch.testing.assert_close(found.weights[name], value - how.rate(0.5) * slope)
    assert found.losses == pytest.approx([whole.item()])
    assert found.unsupervised == pytest.approx([beside.item()])
    assert (found.synthetic, found.steps) == (16, 1)


def test_means_over_an_epoch_are_weighted_by_batch_size():
    found = semi()
    for whole, own, beside in zip(found.losses, found.supervised, found.unsupervised, strict=True):
        assert whole == pytest.approx(own + beside)
    how = TrainingPlan.cosine(epochs=1, lr=1e-30, weight_decay=0.0)
    model = nn.Linear(3, 2)
    plan = PseudoPlan(consistency=Consistency("entropy"), descent=how)
    there = evaluate(model, {"loss": classification_loss}, data=batches())["loss"]
    assert semi(model, plan=plan).supervised == pytest.approx([there])


def test_the_weight_rises():
    plan = PseudoPlan(2.0, Consistency("entropy"), rise=0.5, descent=HOW)
    found = semi(plan=plan)
    weights = [0.0, 1.0, 2.0, 2.0]
    assert [plan.weight_at(epoch) for epoch in range(4)] == weights
    for e, weight in enumerate(weights):
        assert found.losses[e] == pytest.approx(
            found.supervised[e] + weight * found.unsupervised[e]
        )
    assert found.synthetic == 60  # none in the first epoch


@pytest.mark.parametrize("kind", ["uda", "fixmatch", "pseudo-label", "entropy"])
@pytest.mark.parametrize("conditioning", ["soft", "sampled", "uniform"])
def test_every_loss_and_conditioning_trains_any_network(kind, conditioning):
    plan = PseudoPlan(consistency=Consistency(kind), conditioning=conditioning, descent=ONCE)
    found = semi(plan=plan, weak=lambda x, _: x, strong=lambda x, _: -x)
    assert found.steps == 3
    assert found.synthetic == 20


def test_nothing_given_is_changed():
    model, classifier = network(), nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 4))
    before = clone(weights_of(model)), clone(weights_of(classifier))
    state = torch.get_rng_state()
    semi(model, classifier=classifier)
    pretrain(model, data=batches())
    assert same(before[0], weights_of(model))
    assert same(before[1], weights_of(classifier))
    assert torch.equal(torch.get_rng_state(), state)


def test_it_starts_where_it_is_told():
    other = fresh_weights(network(), seed=9)
    moved = network()
    load_weights_(moved, other)
    assert same(semi(initial=other).weights, semi(moved).weights)
    assert not same(semi(initial=other).weights, semi().weights)
    first = pretrain(initial=other)
    again = pretrain(moved)
    assert same(first.weights, again.weights)


def test_the_run_is_recorded_with_its_parts(tmp_path):
    data = batches()
    found = semi(
        data=data, validation=data, metrics={"accuracy": accuracy}, run_folder=tmp_path / "run"
    )
    assert check_run(tmp_path / "run") == []
    run = Trajectory.open(tmp_path / "run")
    assert run.steps == [0, 3, 6, 9, 12]
    assert same(run[-1].weights, found.weights)
    last = run[-1].metrics
    assert (last["supervised"], last["unsupervised"]) == (
        found.supervised[-1], found.unsupervised[-1],
    )  # fmt: skip
    there = evaluate(network(), {"a": accuracy}, weights=found.weights, data=data)["a"]
    assert last["validation_accuracy"] == there


@pytest.mark.parametrize("stop_at", [1, 5, 12])
def test_an_interrupted_training_goes_on_to_the_same_bits(tmp_path, monkeypatch, stop_at):
    monkeypatch.setattr(checkpoint, "SHARE", math.inf)  # a state after every epoch
    whole = semi(run_folder=tmp_path / "whole")
    given = {"run_folder": tmp_path / "run"}
    with pytest.raises(KeyboardInterrupt):
        semi(**given, progress=Interrupt(stop_at))
    again = {"run_folder": NewRun(tmp_path / "run", resume=True)}
    resumed = semi(**again)
    assert same(resumed.weights, whole.weights)
    for name in ("losses", "supervised", "unsupervised", "confident", "synthetic", "steps"):
        assert getattr(resumed, name) == getattr(whole, name)
    assert same_runs(tmp_path / "whole", tmp_path / "run")
    semi(**again, progress=lambda *_: 1 / 0)  # nothing is left to do
    with pytest.raises(ValueError, match="another training"):
        semi(**again, plan=PseudoPlan(0.5, SHORT.consistency, descent=HOW))


def hard(labels, generator):
    return nn.functional.one_hot(labels, 4).float() @ CENTRES


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"generator": ConditionalGenerator(hard, 4, "hard")}, 'Use conditioning="sampled"'),
        ({"generator": ConditionalGenerator(hard, 4)}, 'Declare it with labels="hard"'),
        ({"generator": ConditionalGenerator(sample, 5)}, "one for each of the generator's 5"),
        ({"generator": ConditionalGenerator(lambda y, _: y, 4)}, r"shape \(4,\), those of the"),
        ({"classifier": None}, 'conditioning="soft" asks a classifier'),
        ({"classifier": lambda x: x * torch.nan}, r"logits of shape \(8, 4\).*shape \(8, 3\)"),
        ({"classifier": lambda x: torch.full((len(x), 4), torch.nan)}, "classifier gives a NaN"),
        ({"plan": PseudoPlan(consistency=Consistency("uda"))}, "Give your own as weak="),
        ({"data": [({"x": torch.zeros(2, 3)}, torch.zeros(2).long())]}, "inputs are a tensor"),
        ({"initial": {}}, "initial lacks the tensor"),
        ({"data": []}, "data is empty"),
    ],
)  # fmt: skip
def test_bad_input_is_named_before_anything_is_written(tmp_path, given, message):
    folder = tmp_path / "run"
    with pytest.raises(ValueError, match=message):
        semi(**given, run_folder=folder)
    if "data" not in given or given["data"]:
        assert not folder.exists()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PseudoPlan(-1.0), "weight must be at least 0 and finite, got -1.0"),
        (lambda: PseudoPlan(math.nan), "weight must be"),
        (lambda: PseudoPlan(ratio=0), "ratio must be at least 1, got 0"),
        (lambda: PseudoPlan(rise=2.0), "rise must be at least 0 and at most 1, got 2.0"),
        (lambda: PretrainPlan(batches=0), "batches must be at least 1, got 0"),
        (lambda: DistilPlan(temperature=0.0), "temperature must be above 0"),
        (lambda: DistilPlan(weight=-1.0), "weight must be at least 0"),
    ],
)
def test_bad_plans_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_batches_that_come_once_are_all_trained_on():
    plan = PseudoPlan(consistency=Consistency("entropy"), descent=ONCE)
    assert semi(data=iter(batches()), plan=plan).steps == 3


# PP


def test_pretraining_learns_the_source_and_keeps_the_target_head():
    model = network()
    plan = PretrainPlan(20, 32, TrainingPlan.cosine(epochs=4, lr=0.1, seed=1))
    found = pretrain(model, plan=plan)
    assert found.losses[-1] < 0.3 < found.losses[0]
    own = weights_of(model)
    assert torch.equal(found.weights["4.weight"], own["4.weight"])
    assert not torch.equal(found.weights["0.weight"], own["0.weight"])
    assert same(buffers(found.weights), buffers(own))  # never seen a synthetic example
    assert (found.steps, found.synthetic) == (80, 2560)


def test_pretraining_is_plain_training_on_the_same_batches():
    # A second implementation, of a network whose buffers hold nothing.
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        source_head = nn.Linear(8, 4)
    found = pretrain(model, PseudoSource(GENERATOR, head=source_head), head="2")
    under = nn.Sequential(*copying.deepcopy(list(model[:2])), source_head)
    plain = trained_copy(Task(under, SyntheticBatches(GENERATOR, 16, 3, HOW.seed)), HOW)
    assert torch.equal(found.weights["0.weight"], plain[0].weight)
    assert torch.equal(found.weights["0.bias"], plain[0].bias)


def test_statistics_are_those_of_the_target(tmp_path):
    data = batches()
    found = pretrain(data=data, run_folder=tmp_path / "run")
    anew = recalibrate_batchnorm(network(), weights=found.weights, data=data)
    assert same(buffers(found.weights), anew)
    run = Trajectory.open(tmp_path / "run")
    assert run.steps == [0, 3, 6, 9, 12]
    assert same(run[-1].weights, found.weights)  # in the layout of the model
    assert check_run(tmp_path / "run") == []


@pytest.mark.parametrize("stop_at", [2, 7])
def test_an_interrupted_pretraining_goes_on_to_the_same_bits(tmp_path, monkeypatch, stop_at):
    monkeypatch.setattr(checkpoint, "SHARE", math.inf)
    given = {"data": batches()}
    whole = pretrain(**given, run_folder=tmp_path / "whole")
    given["run_folder"] = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        pretrain(**given, progress=Interrupt(stop_at))
    given["run_folder"] = NewRun(tmp_path / "run", resume=True)
    resumed = pretrain(**given)
    assert same(resumed.weights, whole.weights)
    assert resumed.losses == whole.losses
    assert same_runs(tmp_path / "whole", tmp_path / "run")


def test_another_head_shares_all_other_tensors():
    model = network()
    twin = under_other_head(model, head="4", classes=7, seed=0)
    mine, other = weights_of(model), weights_of(twin)
    for name, value in mine.items():
        assert (other[name].data_ptr() == value.data_ptr()) == (not name.startswith("4."))
    assert other["4.weight"].shape == (7, 8)
    assert mine["4.weight"].shape == (2, 8)
    conv = nn.Sequential(nn.Conv2d(3, 5, 1, bias=False), nn.Flatten())
    assert under_other_head(conv, head="0", classes=7, seed=0)[0].weight.shape == (7, 3, 1, 1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"head": "top"}, "The model has no layer 'top'; its last ones are 0, 1, 2, 3, 4"),
        ({"head": "1"}, "'1' is a BatchNorm1d.*PseudoSource"),
        ({"source": BARE}, r"does not take .* shape \(4,\)"),
        ({"data": [torch.zeros(2, 5)]}, r"shape \(3,\), those of the target have shape \(5,\)"),
        ({"data": []}, "data is empty"),
        ({"source": NARROW}, "must give 4 logits, .* shape \\(8, 3\\)"),
    ],
)
def test_pretraining_names_bad_input_before_anything_is_written(tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        pretrain(**given, run_folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_source_must_hold_something():
    for given in ({}, {"classifier": CLASSIFIER}, {"classifier": CLASSIFIER, "classes": 1}):
        with pytest.raises(ValueError, match="needs a generator, or a classifier and how many"):
            PseudoSource(**given)
    with pytest.raises(ValueError, match="classes is 3, but the generator has 4"):
        PseudoSource(GENERATOR, classes=3)
    with pytest.raises(ValueError, match="The source has no generator"):
        pretrain(source=PseudoSource(classifier=CLASSIFIER, classes=4))


# controls and quality


def test_distillation_teaches_what_the_classifier_says():
    # The task's own loss teaches nothing: what is learned comes from the classifier alone.
    plan = DistilPlan(1.0, 2.0, TrainingPlan.cosine(epochs=100, lr=0.1, weight_decay=0.0))
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    data = [(inputs, labels) for inputs, labels in batches()]
    source = PseudoSource(classifier=CLASSIFIER, classes=4, head=nn.Linear(3, 4))
    found = distil_source(source, Task(model, data, still), head="1", plan=plan)
    assert found.losses[-1] < 0.01 * found.losses[0]
    assert list(found.weights) == list(weights_of(model))
    assert torch.equal(found.weights["1.weight"], model[1].weight)


def test_distillation_without_a_weight_is_plain_training():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    task, plan = Task(model, batches()), DistilPlan(0.0, descent=HOW)
    found = distil_source(SOURCE, task, head="3", plan=plan)
    alone = weights_of(trained_copy(Task(model, batches()), HOW))
    for name, value in alone.items():  # statistics among them: each batch counted once
        torch.testing.assert_close(found.weights[name], value)
    with pytest.raises(ValueError, match=r"logits of shape \(8, 5\)"):
        distil_source(PseudoSource(classifier=CLASSIFIER, classes=5), task, head="3")
    with pytest.raises(ValueError, match="The source has no classifier"):
        distil_source(PseudoSource(GENERATOR), task, head="3")


def test_quality_is_what_is_learned_from_samples():
    real = [(CENTRES + 3, torch.arange(4))]
    plan = QualityPlan(20, 32, TrainingPlan.cosine(epochs=3, lr=0.1))

    def quality(generator, classifier=None):
        source = PseudoSource(generator, classifier)
        return generator_quality(source, Task(nn.Linear(3, 4), real), plan=plan)

    good = quality(GENERATOR, shifted)
    assert good.accuracy == pytest.approx(1.0)
    assert good.agreement > 0.9
    assert (good.steps, good.synthetic) == (60, 1920)

    def swapped(labels, generator):
        return sample(labels.roll(1, 1), generator)

    bad = quality(ConditionalGenerator(swapped, 4), shifted)
    assert not bad.accuracy
    assert bad.agreement < 0.1
    assert quality(GENERATOR).agreement is None


def shifted(inputs):
    return (inputs - 3) @ CENTRES.T
