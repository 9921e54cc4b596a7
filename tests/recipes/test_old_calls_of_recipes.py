"""Calls as version 0.1 took them give the same as those with a Task, and warn."""

from dataclasses import fields, is_dataclass

import pytest
import torch
from torch import nn

from recipes.small_networks import batches, network
from slipstream import recipes
from slipstream.evaluation import Task, accuracy, classification_loss
from slipstream.recipes import (
    AggregationPlan,
    ConditionalGenerator,
    Consistency,
    DistilPlan,
    IterandPlan,
    LurePlan,
    MetaPlan,
    PretrainPlan,
    PseudoPlan,
    PseudoSource,
    QualityPlan,
    SidePlan,
    SubspacePlan,
    features_of,
)
from slipstream.recipes.few_shot import Adaptation, AfterAdaptation, adapt
from slipstream.storage.new_run import NewRun
from slipstream.testbed import TaskForm, load_tasks
from slipstream.training import TrainingPlan
from slipstream.trajectory import Trajectory

HOW = TrainingPlan.cosine(epochs=2, lr=0.05)
METRICS = {"loss": classification_loss, "accuracy": accuracy}
TASK = {"metrics": {"accuracy": accuracy}, "validation": batches(seed=5)}
OLD = {"metrics": METRICS, "validation": batches(seed=5), "configuration": {"note": "mine"}}
PARTS = (batches(seed=1), batches(seed=2, along=1))
SEMI = PseudoPlan(0.5, Consistency("entropy"), descent=HOW)
LINE, MASK = SubspacePlan(descent=HOW), IterandPlan(descent=HOW)
META = MetaPlan("maml", descent=HOW)


def base():
    return features_of(network(1), head="4")


def side():
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return nn.Sequential(nn.Linear(3, 8), nn.ReLU())


def head(outputs=2):
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return nn.Linear(8, outputs)


def sample(labels, generator):
    return labels @ torch.eye(4)[:, :3] + torch.randn(len(labels), 3, generator=generator)


GENERATOR = ConditionalGenerator(sample, classes=4)
CLASSIFIER = nn.Linear(3, 4)
REAL = [(torch.eye(4)[:, :3], torch.arange(4))]
SOURCE = PseudoSource(GENERATOR, CLASSIFIER)
FEW = load_tasks("digits", TaskForm(ways=3, shots=2, tasks=2, batches=2))
JUDGE = AfterAdaptation(Adaptation(0.1), metric=accuracy)


def learner():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))


def task(model=None, data=None, **given):
    return Task(model or network(), batches() if data is None else data, **(given or TASK))


def tasks():
    model = network()
    return [task(model, part, validation=part, metrics=TASK["metrics"]) for part in PARTS]


AGAIN = {"side": side(), "head": head(), "plan": SidePlan(HOW)}
RECORDED = {  # name: as of 0.1, with a Task
    "train_subspace": (
        lambda f, **n: f(
            network(), classification_loss, data=batches(), plan=LINE, **OLD, **n
        ),
        lambda f, **n: f(task(), plan=LINE, **n),
    ),
    "train_lure": (
        lambda f, **n: f(
            network(), classification_loss, chunks=PARTS, plan=LurePlan(descent=HOW), **OLD, **n
        ),
        lambda f, **n: f(task(), chunks=PARTS, plan=LurePlan(descent=HOW), **n),
    ),
    "train_iterand": (
        lambda f, **n: f(
            network(), classification_loss, data=batches(), plan=MASK, **OLD, **n
        ),
        lambda f, **n: f(task(), plan=MASK, **n),
    ),
    "train_meta": (
        lambda f, **n: f(
            learner(), data=FEW.train, plan=META, validation=FEW.test, metrics={"a": JUDGE},
            configuration={"note": "mine"}, **n,
        ),
        lambda f, **n: f(
            Task(learner(), FEW.train, validation=FEW.test, metrics={"a": JUDGE}), plan=META, **n
        ),
    ),
    "distil_side": (
        lambda f, **n: f(
            base(), side(), data=batches(), descent=HOW, configuration={"note": "mine"}, **n
        ),
        lambda f, **n: f(side(), Task(base(), batches()), descent=HOW, **n),
    ),
    "side_tune": (
        lambda f, **n: f(base(), classification_loss, data=batches(), **AGAIN, **OLD, **n),
        lambda f, **n: f(task(base()), **AGAIN, **n),
    ),
    "train_aggregation": (
        lambda f, **n: f(
            network(), classification_loss, data=PARTS, plan=AggregationPlan(descent=HOW),
            **{**OLD, "validation": PARTS}, **n,
        ),
        lambda f, **n: f(tasks(), plan=AggregationPlan(descent=HOW), **n),
    ),
    "pseudo_pretrain": (
        lambda f, **n: f(
            network(), GENERATOR, head="4", plan=PretrainPlan(2, 8, HOW), target=batches(),
            source_head=head(4), configuration={"note": "mine"}, **n,
        ),
        lambda f, **n: f(
            PseudoSource(GENERATOR, head=head(4)), task(), head="4", plan=PretrainPlan(2, 8, HOW),
            **n,
        ),
    ),
    "pseudo_semi_supervised": (
        lambda f, **n: f(
            network(), classification_loss, generator=GENERATOR, classifier=CLASSIFIER,
            data=batches(), plan=SEMI, **OLD, **n,
        ),
        lambda f, **n: f(SOURCE, task(), plan=SEMI, **n),
    ),
}  # fmt: skip
OTHER = {
    "weight_saliency": (
        lambda f: f(network(), classification_loss, data=batches()), lambda f: f(task()),
    ),
    "aggregation_controls": (
        lambda f: f(network(), classification_loss, data=PARTS, descent=HOW),
        lambda f: f(tasks(), descent=HOW),
    ),
    "side_controls": (
        lambda f: f(
            network(), classification_loss, base=base(), weights=network(1).state_dict(), head="4",
            data=batches(), descent=HOW,
        ),
        lambda f: f(
            task(), base=base(), weights=network(1).state_dict(), head="4", descent=HOW
        ),
    ),
    "distil_source": (
        lambda f: f(
            network(), classification_loss, classifier=CLASSIFIER, classes=4, head="4",
            data=batches(), plan=DistilPlan(descent=HOW),
        ),
        lambda f: f(SOURCE, task(), head="4", plan=DistilPlan(descent=HOW)),
    ),
    "pseudo_controls": (
        lambda f: f(
            network(), classification_loss, generator=GENERATOR, classifier=CLASSIFIER, head="4",
            data=batches(), plan=SEMI,
        ),
        lambda f: f(SOURCE, task(), head="4", plan=SEMI),
    ),
    "generator_quality": (
        lambda f: f(
            CLASSIFIER, GENERATOR, real=REAL, plan=QualityPlan(2, 8, HOW), classifier=CLASSIFIER
        ),
        lambda f: f(SOURCE, Task(CLASSIFIER, REAL), plan=QualityPlan(2, 8, HOW)),
    ),
    "judge_tasks": (
        lambda f: f(learner(), JUDGE, data=FEW.test), lambda f: f(JUDGE, Task(learner(), FEW.test)),
    ),
}  # fmt: skip


def values(found):
    """Numbers and tensors of a result, without times and modules."""
    if is_dataclass(found):
        names = [field.name for field in fields(found)]
        return [values(getattr(found, n)) for n in names if n not in ("seconds", "span", "plan")]
    if isinstance(found, nn.Module):
        return values(found.state_dict())
    if isinstance(found, dict):
        return {name: values(value) for name, value in found.items()}
    if isinstance(found, (tuple, list)):
        return [values(value) for value in found]
    return found.tolist() if isinstance(found, torch.Tensor) else found


@pytest.mark.parametrize("name", RECORDED)
def test_a_recorded_training_of_0_1_is_that_of_a_task(name, tmp_path):
    function, (old, new) = getattr(recipes, name), RECORDED[name]
    with pytest.warns(DeprecationWarning, match=f"{name} takes a Task now"):
        before = old(function, run_folder=tmp_path / "old", overwrite=True)
    now = new(function, run_folder=NewRun(tmp_path / "new", {"note": "mine"}))
    assert values(before) == values(now)
    first, second = (Trajectory.open(tmp_path / n) for n in ("old", "new"))
    assert [s.metrics for s in first] == [s.metrics for s in second]
    assert first.description["configuration"] == second.description["configuration"]
    with pytest.warns(DeprecationWarning, match=f"{name} takes a Task now"):
        again = old(function, run_folder=tmp_path / "new", resume=True)
    assert values(again) == values(now)


@pytest.mark.parametrize("name", OTHER)
def test_another_call_of_0_1_is_that_of_a_task(name):
    function, (old, new) = getattr(recipes, name), OTHER[name]
    with pytest.warns(DeprecationWarning, match=f"{name} takes a Task now"):
        before = old(function)
    assert values(before) == values(new(function))


def test_further_calls_of_0_1(tmp_path):
    support = (torch.ones(2, 1, 8, 8), torch.tensor([0, 2]))
    with pytest.warns(DeprecationWarning, match="adapt takes a Task now"):
        before = adapt(learner(), classification_loss, support=support)
    assert values(before) == values(adapt(Task(learner()), support=support))
    with pytest.warns(DeprecationWarning, match="check_transfer takes a Task now"):
        recipes.check_transfer(
            network(), GENERATOR, classifier=CLASSIFIER, data=batches(), plan=SEMI
        )
    plan, folder = LINE, tmp_path / "run"
    line = recipes.train_subspace(task(), plan=plan, run_folder=folder)
    with pytest.warns(DeprecationWarning, match="load_subspace takes a Task now"):
        loaded = recipes.load_subspace(
            folder, model=network(), loss=classification_loss, data=batches()
        )
    assert values(loaded.at(0.3)) == values(line.at(0.3))


@pytest.mark.parametrize("name", RECORDED)
def test_a_run_declares_every_file_beside_its_snapshots(name, tmp_path):
    function, (_, new) = getattr(recipes, name), RECORDED[name]
    folder = tmp_path / "run"
    new(function, run_folder=folder)
    own = {"run.json", "snapshots.jsonl"}
    declared = Trajectory.open(folder).description["companions"]
    for file in folder.rglob("*"):
        path = file.relative_to(folder)
        if file.is_file() and path.parts[0] != "snapshots" and str(path) not in own:
            assert any(path.match(pattern) for pattern in declared), path
