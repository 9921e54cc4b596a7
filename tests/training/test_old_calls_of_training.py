"""What version 0.1 called: it gives the same as what is called now."""

import pytest
import torch

from slipstream import testbed
from slipstream.named_task import NamedTask
from slipstream.training import TrainingPlan, record_training, trained_copy
from slipstream.trajectory import Trajectory
from slipstream.weights import weights_of

SMALL = NamedTask("mlp", "digits", width=8, examples=300, batch_size=100, seed=2)


@pytest.mark.parametrize("keep", [{"keep": "every:2"}, {}])
def test_a_setup_is_trained_and_recorded(tmp_path, keep):
    with pytest.warns(DeprecationWarning, match="testbed.record_training is now"):
        record = testbed.record_training
    with pytest.warns(DeprecationWarning, match="testbed.TrainingPlan is now"):
        plan = testbed.TrainingPlan
    old = record(SMALL, plan(epochs=2, lr=0.1, **keep), path=tmp_path / "old")
    new = record_training(
        SMALL.build(), TrainingPlan(2, lr=0.1, seed=2), run_folder=tmp_path / "new", **keep
    )
    assert old.losses == new.losses
    runs = [Trajectory.open(tmp_path / name) for name in ("old", "new")]
    assert runs[0].steps == runs[1].steps
    assert runs[0].description["configuration"] == runs[1].description["configuration"]


def test_the_seventh_argument_of_a_plan_was_keep():
    from slipstream.training import old_calls

    plan = old_calls.PlanWithKeep(3, "adam", 0.1, 0.9, 0.0, "cosine", "log")
    assert (plan.schedule, plan.keep, plan.warm_up) == ("cosine", "log", 0.0)


def test_a_descent_is_a_plan_with_a_warm_up_and_a_cosine():
    from slipstream import landscape

    with pytest.warns(DeprecationWarning, match="landscape.Descent is now"):
        descent = landscape.Descent
    assert descent(7, "adamw", 0.2, 0.8, 0.1, 0.3, 5) == TrainingPlan(
        7, "adamw", 0.2, 0.8, 0.1, "cosine", 0.3, 5
    )
    assert descent() == TrainingPlan(100, "sgd", 0.1, 0.9, 1e-4, "cosine", 0.05, 0)


def test_descend_returns_a_trained_copy():
    from slipstream import recipes

    task = SMALL.build()
    with pytest.warns(DeprecationWarning, match="recipes.descend is now"):
        descend = recipes.descend
    how = TrainingPlan.cosine(2)
    old = descend(task.model, task.loss, data=task.data, descent=how)
    new = weights_of(trained_copy(task, how))
    assert all(torch.equal(new[name], value) for name, value in weights_of(old).items())


def test_weights_copy_is_clone():
    from slipstream import weights

    with pytest.warns(DeprecationWarning, match="weights.copy is now slipstream.weights.clone"):
        assert weights.copy is weights.clone
