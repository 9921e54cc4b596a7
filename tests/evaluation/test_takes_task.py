"""Calls of version 0.1, with a model, a loss and data one by one, and with loose options."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from slipstream.evaluation import Task, classification_loss, squared_loss, takes_task
from slipstream.storage.new_run import NewRun


@dataclass(frozen=True)
class Plan:
    lr: float = 0.1
    seed: int = 0
    batch_size: int | None = None


@takes_task(plan=Plan)
def fit(
    start: str,
    task: Task,
    *,
    plan: Plan | None = None,
    points: int = 3,
    run_folder: str | NewRun | None = None,
) -> dict[str, Any]:
    return {"start": start, "task": task, "plan": plan, "points": points, "folder": run_folder}


@takes_task
def measure(task: Task, *, metrics: dict[str, Any] | None = None) -> Any:
    return task, metrics


class Holder:
    @takes_task(plan=Plan)
    def __init__(self, task: Task, *, plan: Plan | None = None) -> None:
        self.task, self.plan = task, plan


MODEL, DATA = nn.Linear(2, 3), [(torch.zeros(1, 2), torch.tensor([0]))]


def test_new_calls_pass_untouched() -> None:
    task = Task(MODEL, DATA)
    found = fit("here", task, plan=Plan(lr=1.0), points=5)
    assert found["task"] is task
    assert found["plan"] == Plan(lr=1.0)
    assert found["points"] == 5
    assert fit("here", task)["plan"] is None
    assert measure(task)[0] is task


def test_an_old_call_makes_the_task_the_plan_and_the_run() -> None:
    with pytest.warns(DeprecationWarning, match="fit takes a Task and plan now"):
        found = fit(
            MODEL, squared_loss, start="here", data=DATA, recalibrate=False, lr=1.0, batch_size=4,
            run_folder="run", overwrite=True, points=5,
        )  # fmt: skip
    task = found["task"]
    assert task.model is MODEL
    assert task.loss is squared_loss
    assert task.data is DATA
    assert task.calibration == ()
    assert task.measured == {"loss": squared_loss}
    assert found["plan"] == Plan(lr=1.0, batch_size=4)
    assert found["points"] == 5
    assert found["folder"] == NewRun("run", overwrite=True)


@pytest.mark.parametrize(
    "call",
    [
        lambda: fit("here", model=MODEL, loss=squared_loss, data=DATA),
        lambda: fit(model=MODEL, loss=squared_loss, start="here", data=DATA),
        lambda: fit(MODEL, squared_loss, "here", DATA),
    ],
)
def test_an_old_call_may_name_or_place_its_arguments(call: Any) -> None:
    with pytest.warns(DeprecationWarning, match="takes a Task"):
        found = call()
    assert found["start"] == "here"
    assert found["task"].data is DATA
    assert found["task"].loss is squared_loss
    assert found["plan"] == Plan()


def test_loose_options_beside_a_task_join_its_plan() -> None:
    with pytest.warns(DeprecationWarning, match="fit takes plan now, instead of seed"):
        found = fit("here", Task(MODEL, DATA), plan=Plan(lr=1.0), seed=3)  # type: ignore[call-arg]
    assert found["plan"] == Plan(lr=1.0, seed=3)


def test_what_is_measured_stays_a_parameter_of_a_function_that_has_it() -> None:
    mine = {"accuracy": classification_loss}
    with pytest.warns(DeprecationWarning, match="takes a Task"):
        task, metrics = measure(MODEL, mine, data=DATA)
    assert metrics is mine
    assert task.measured == {"loss": classification_loss}


def test_constructors_take_old_calls_too() -> None:
    with pytest.warns(DeprecationWarning, match="takes a Task"):
        held = Holder(MODEL, squared_loss, data=DATA, seed=2)
    assert held.task.data is DATA
    assert held.plan == Plan(seed=2)


def test_an_unknown_option_is_named() -> None:
    with (
        pytest.warns(DeprecationWarning, match="takes a Task"),
        pytest.raises(TypeError, match="colour"),
    ):
        fit(MODEL, squared_loss, start="here", data=DATA, colour=1)


@takes_task
def pair(other: nn.Module, task: Task) -> Any:
    return other, task


def test_a_module_that_is_not_the_model_stays_where_it_stands():
    base, side = nn.Linear(2, 2), nn.Linear(2, 3)
    task = Task(base)
    assert pair(side, task) == pair(side, task=task) == (side, task)
    with pytest.warns(DeprecationWarning, match="takes a Task"):
        other, made = pair(base, side, data=[1])
    assert (other, made.model, made.data) == (side, base, [1])
    with pytest.warns(DeprecationWarning, match="takes a Task"):
        other, made = pair(base, squared_loss, other=side)
    assert (other, made.loss) == (side, squared_loss)


def test_a_task_has_the_training_data_under_the_name_of_0_1() -> None:
    with pytest.warns(DeprecationWarning, match=r"task.train is now task.data"):
        assert Task(MODEL, DATA).train is DATA
