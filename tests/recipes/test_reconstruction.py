import pytest
import torch
from small_networks import Interrupt, same_runs
from torch import nn

from slipstream.evaluation import Task, classification_loss
from slipstream.recipes import ReconstructionPlan, likeness, reconstruct
from slipstream.recipes.reconstruction.candidates import Candidates
from slipstream.recipes.reconstruction.equation import Equation
from slipstream.recipes.reconstruction.judging import Pictures
from slipstream.report.recorded_run import RecordedRun, shown
from slipstream.report.sections import Extras, build_section
from slipstream.storage.new_run import NewRun
from slipstream.training import TrainingPlan, train
from slipstream.trajectory import Trajectory, check_run
from slipstream.weights import clone, weights_of

BRIEF = TrainingPlan.cosine(2, "adam", 0.05, weight_decay=0.0)
PLAN = ReconstructionPlan("displacement", candidates=4, attempts=2, splits=1, descent=BRIEF)


def images(count, *, seed, classes=2):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 1, 3, 3, generator=generator), torch.arange(count) % classes


def network(kind=nn.Softplus, *, bias=True, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(9, 40), kind(), nn.Linear(40, 2, bias=bias))


def trained(model, data, *, steps=1, lr=0.1):
    run = [clone(weights_of(model))]
    train(Task(model, [data]), TrainingPlan(steps, lr=lr, momentum=0.0))
    return Trajectory.from_weights([*run, clone(weights_of(model))])


def task_of(model, data, seed=9):
    return Task(model, [data], validation=[images(20, seed=seed)])


def test_a_step_of_sgd_is_the_sum_of_its_examples_gradients():
    model, data = network().double(), images(3, seed=1)
    data = (data[0].double(), data[1])
    run = trained(model, data)
    task = Task(model, [data])
    equation = Equation.of("displacement", task, weights=run[0].weights, later=run[1].weights)
    lam = torch.full((3,), 0.1 / 3, dtype=torch.float64)
    assert equation.residual(*data, lam).item() < 1e-20
    assert equation.residual(*data, 2 * lam).item() == pytest.approx(1)


def test_at_a_stationary_point_weights_are_the_sum_that_decay_says():
    model, data = (
        nn.Linear(2, 2, bias=False).double(),
        (torch.eye(2).double(), torch.tensor([0, 1])),
    )
    with torch.no_grad():  # p = softmax(+-a): the gradient of L is -(1 - p) / n, which w theta ends
        a, decay = 1.0, float((1 - torch.tensor([1.0, -1.0]).softmax(0)[0]) / 2)
        model.weight.copy_(torch.tensor([[a, -a], [-a, a]]))
    equation = Equation.of("decay", Task(model, [data]), weights=weights_of(model))
    assert equation.residual(*data, torch.full((2,), 1 / (2 * decay)).double()).item() < 1e-12


def test_the_margin_is_shared_by_the_classes_that_come_closest():
    model = nn.Linear(1, 3, bias=False)
    equation = Equation.of("margin", Task(model), weights=weights_of(model))
    found = equation.directions(
        torch.ones(1, 1), torch.tensor([0]), torch.tensor([[9.0, 2.0, 2.0]])
    )
    torch.testing.assert_close(found, torch.tensor([[1.0, -0.5, -0.5]]))


@pytest.mark.parametrize("kind", ["margin", "decay", "displacement"])
def test_gradients_by_inputs_agree_with_finite_differences(kind):
    model, (inputs, labels) = network(nn.Tanh).double(), images(2, seed=3)
    inputs, start = inputs.double(), clone(weights_of(model))
    later = {name: value + 0.01 for name, value in start.items()}
    equation = Equation.of(kind, Task(model), weights=start, later=later)
    lam = torch.tensor([0.3, 0.7], dtype=torch.float64)

    def residual(inputs, lam):
        return equation.residual(inputs, labels, lam)

    given = (inputs.requires_grad_(), lam.requires_grad_())
    assert torch.autograd.gradcheck(residual, given, atol=1e-6)


@pytest.mark.parametrize("function", [False, True])
def test_relu_is_itself_once_and_smooth_twice_whether_module_or_function(function):
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([[2.0]]))

        def forward(self, x):
            z = x @ self.weight
            return nn.functional.relu(z) if function else nn.ReLU()(z)

    model = Plain()
    loss = lambda model, batch: model(batch[0]).sum()  # ruff: ignore[lambda-assignment]
    equation = Equation.of(
        "decay", Task(model, loss=loss), weights=weights_of(model), smoothness=3.0
    )
    x = torch.tensor([[0.5]], requires_grad=True)
    found = equation.sum_of_gradients(x, torch.tensor([0]), torch.ones(1))["weight"]
    gate = torch.sigmoid(torch.tensor(3.0))  # at z = 1
    torch.testing.assert_close(found, -(0.5 * gate).view(1, 1))
    (slope,) = torch.autograd.grad(found.sum(), x)
    bend = 3 * gate * (1 - gate) * 2  # of the gate in x
    torch.testing.assert_close(slope, -(gate + 0.5 * bend).view(1, 1))


def test_a_split_candidate_lowers_the_residual_where_its_gradient_is_zero():
    """f = w x^2 / 2 with two examples at +-1, one candidate at 0: no slope, but a curvature."""

    class Square(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(1))

        def forward(self, x):
            return self.w * x.square() / 2

    loss = lambda model, batch: -model(batch[0]).mean()  # ruff: ignore[lambda-assignment]
    task = Task(Square(), loss=loss)
    later = {"w": torch.tensor([2.0])}
    equation = Equation.of("displacement", task, weights=weights_of(task.model), later=later)
    found = Candidates(torch.tensor([[1e-3], [1.0]]), classes=1)
    with torch.no_grad():
        found.coefficients[1] = 0.0
    before = found.residual(equation).item()
    assert found.split_(equation, share=0.5, distance=100.0) == 1
    assert found.coefficients.tolist() == [0.5, 0.5]
    assert sorted(found.inputs.flatten().tolist()) == pytest.approx([-0.099, 0.101], abs=1e-3)
    assert found.residual(equation).item() < before


def test_likeness_is_judged_beside_held_out_inputs_and_the_common_mean_is_no_merit():
    train, held = images(5, seed=1)[0] + 7, images(30, seed=2)[0] + 7
    exact = likeness(train, train, held)
    assert exact.train.tolist() == pytest.approx([1] * 5)
    assert exact.difference > 0.3
    assert exact.held_out.median().item() == pytest.approx(exact.ceiling)
    assert exact.chance < 1e-3
    noise = likeness(images(5, seed=3)[0] + 7, train, held)
    assert abs(noise.difference) < 0.3
    assert noise.chance > 0.01


def test_images_are_read_from_a_step_and_the_run_of_an_attempt_is_shown(tmp_path):
    model, data = network(), images(2, seed=1)
    run = trained(model, data)
    plan = ReconstructionPlan(
        "displacement", candidates=4, attempts=1, splits=0,
        descent=TrainingPlan.cosine(6, "adam", 0.05, weight_decay=0.0),
    )  # fmt: skip
    found = reconstruct(run, task_of(model, data), plan=plan, run_folder=tmp_path / "out")
    assert found.steps == (0, 1)
    assert found.best.likeness.train.min() > 0.85
    assert found.best.likeness.difference > 0.25
    assert "can be read from these weights" in str(found)
    (attempt,) = (tmp_path / "out").iterdir()
    assert check_run(attempt) == []
    stored = Pictures.load(attempt)
    assert stored.train.shape == (2, 1, 3, 3)
    torch.testing.assert_close(stored.train_found, found.pictures.train_found)
    section = build_section("run", shown([RecordedRun.open(attempt)]), Extras())
    (chart,) = (item for item in section.items if getattr(item, "key", "") == "pictures")
    assert [name for name in chart.rows if name] == [
        "training data", "found", "held out", "found for it",
    ]  # fmt: skip


def test_an_interrupted_search_ends_as_one_that_was_not(tmp_path, monkeypatch):
    model, data = network(nn.ReLU), images(2, seed=1)
    run, task = trained(model, data, steps=2), task_of(model, data)
    whole = reconstruct(run, task, plan=PLAN, run_folder=tmp_path / "whole")
    assert [a.plan.scale != PLAN.scale for a in whole.attempts] == [False, True]

    with pytest.raises(KeyboardInterrupt):
        reconstruct(run, task, plan=PLAN, run_folder=tmp_path / "part", progress=Interrupt(150))
    part = NewRun(tmp_path / "part", resume=True)
    again = reconstruct(run, task, plan=PLAN, run_folder=part)
    for number in ("1", "2"):
        assert same_runs(tmp_path / "whole" / number, tmp_path / "part" / number)
    assert [a.residual for a in again.attempts] == [a.residual for a in whole.attempts]


def test_what_failed_is_said():
    model, data = network(), images(2, seed=1)
    run = trained(model, data)
    plan = ReconstructionPlan(
        "displacement", candidates=1, attempts=1, scale=1e-6,
        descent=TrainingPlan.cosine(1, "adam", 1e-9, weight_decay=0.0),
    )  # fmt: skip
    found = reconstruct(run, task_of(model, data), plan=plan)
    assert "read nothing of the training data; another one might" in str(found)


def broken(**changed):
    given = {"data": [images(2, seed=1)], "validation": [images(4, seed=2)]}
    return Task(network(), **{**given, **changed})


@pytest.mark.parametrize(
    ("task", "plan", "message"),
    [
        (
            broken(data=[torch.ones(2, 9)]),
            PLAN,
            "got a Tensor: without labels there is no equation",
        ),
        (broken(data=[(torch.ones(2, 9).long(), torch.ones(2).long())]), PLAN, "such as tokens"),
        (broken(data=[(torch.ones(2, 9), torch.ones(2))]), PLAN, "they must be classes"),
        (broken(data=[]), PLAN, "The train data is empty"),
        (broken(validation=None), PLAN, "no validation data"),
        (broken(validation=[(torch.ones(2, 9), torch.ones(2).long())]), PLAN, "of the same kind"),
        (broken(), ReconstructionPlan("decay"), "trained without weight decay"),
        (broken(), ReconstructionPlan("margin"), "not homogeneous .* decay, .* and displacement"),
    ],
)
def test_what_cannot_be_read_is_told(task, plan, message):
    run = trained(network(), images(2, seed=1))
    with pytest.raises(ValueError, match=message):
        reconstruct(run, task, plan=plan)


def test_snapshots_that_are_missing_or_do_not_move_are_told():
    model, data = network(), images(2, seed=1)
    still = Trajectory.from_weights([clone(weights_of(model))] * 2)
    with pytest.raises(ValueError, match="Nothing moved"):
        reconstruct(still, task_of(model, data), plan=PLAN)
    with pytest.raises(ValueError, match="displacement reads 2 snapshots, got 1 steps"):
        reconstruct(still, task_of(model, data), plan=PLAN, steps=[0])
    with pytest.raises(ValueError, match="the run has 1"):
        reconstruct(still[:1], task_of(model, data), plan=PLAN)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"equation": "magic"}, "equation must be margin, decay or displacement"),
        ({"scale": 0.0}, "scale must be above 0"),
        ({"least": 1.0}, "least must be at least 0 and below 1"),
        ({"candidates": 0}, "candidates must be at least 1"),
    ],
)
def test_plans_that_do_not_fit_are_told(given, message):
    with pytest.raises(ValueError, match=message):
        ReconstructionPlan(**given)


def test_a_loss_that_takes_logits_of_its_own_model_is_used_as_it_is():
    model, (inputs, labels) = network(), images(2, seed=1)
    twice = lambda model, batch: 2 * classification_loss(model, batch)  # ruff: ignore[lambda-assignment]
    given = [Equation.of("decay", Task(model, loss=own), weights=weights_of(model))
             for own in (classification_loss, twice)]  # fmt: skip
    once, doubled = (e.sum_of_gradients(inputs, labels, torch.ones(2)) for e in given)
    for name, value in once.items():
        torch.testing.assert_close(doubled[name], 2 * value)
