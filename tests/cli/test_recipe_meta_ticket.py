import json

import pytest
import torch

from commands import slipstream
from slipstream.recipes import load_ticket
from slipstream.testbed import load_tasks
from slipstream.testbed import tasks as testbed_tasks
from slipstream.trajectory import Trajectory

SMALL = ("--width", 0.05, "--epochs", 1, "--shots", 2, "--ways", 3)


def recipe(*options, code=0):
    return slipstream("recipe", "meta-ticket", *SMALL, *options, code=code)


@pytest.fixture(autouse=True)
def few_test_tasks(monkeypatch):
    monkeypatch.setattr(testbed_tasks, "VALIDATION_TASKS", 20)
    monkeypatch.setattr(testbed_tasks, "TEST_TASKS", 40)


def test_a_ticket_is_a_run_for_every_other_command(tmp_path):
    out = tmp_path / "run"
    said = json.loads(recipe("--out", out, "--epochs", 2, "--json").stdout)
    assert (said["steps"], said["tasks"]) == (200, 800)
    assert said["bytes"]["file"] < said["bytes"]["weights"]
    shown = json.loads(slipstream("show", out, "--json").stdout)
    last = shown["snapshots"][-1]["metrics"]
    assert last["pruned"] == said["pruned"][-1]
    assert last["churn"] == said["churn"][-1]
    evaluated = json.loads(slipstream("evaluate", out, "--json").stdout)
    assert evaluated["accuracy"] == pytest.approx(said["test"]["accuracy"]["mean"], abs=1e-6)
    assert evaluated["accuracy"] > 0.5
    ticket, weights = load_ticket(out), Trajectory.open(out)[-1].weights
    assert all(torch.equal(weights[n], value) for n, value in ticket.weights.items())
    assert "4 groups move" in slipstream("groups", out).stdout
    moved = tmp_path / "moved"
    slipstream(*("transfer", out, "--seed", 7, "--method", "fgmt", "--stages", 2, "--out", moved))
    slipstream("evaluate", moved)
    slipstream("modes", out, "--modes", 2)
    page = tmp_path / "page.html"
    slipstream("report", out, "-o", page)
    told = page.read_text(encoding="utf-8")
    assert "meta-ticket" in told
    assert "share of the masked weights that are pruned" in told


def test_people_get_lines(tmp_path):
    text = recipe("--out", tmp_path / "run").stdout
    for words in ("100 steps, ", "accuracy on 40 test tasks: ", "hidden1.weight", "bit mask: "):
        assert words in text
    text = recipe("--out", tmp_path / "maml", "--method", "maml").stdout
    assert "bit mask" not in text


def test_sinusoids_need_no_ways(tmp_path):
    options = ("--data", "sinusoid", "--option", "sizes=[8]", "--option", "batchnorm=false")
    out = ("--method", "maml", "--rate", 0.02, "--epochs", 1, "--out", tmp_path / "run", "--json")
    said = json.loads(slipstream("recipe", "meta-ticket", *options, *out).stdout)
    assert list(said["test"]) == ["loss"]


def test_it_resumes_and_refuses_other_tasks(tmp_path):
    out = tmp_path / "run"
    first = json.loads(recipe("--out", out, "--method", "maml", "--json").stdout)
    again = json.loads(recipe("--out", out, "--method", "maml", "--resume", "--json").stdout)
    assert again["losses"] == first["losses"]
    told = recipe("--out", out, "--method", "maml", "--resume", "--queries", 5, code=2).stderr
    assert "queries" in told


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--ways", 30], "ways is 30, but there are 20 classes"),
        (["--shots", 100], "100 shots + 100 queries of each class, but there are"),
        (["--data", "omniglot:nowhere"], "There is no folder 'nowhere'"),
        (["--data", "mnist:nowhere"], "data must be digits, omniglot:DIR or sinusoid"),
        (["--pruned", 1], "at least 0 and below 1; got 1.0"),
        (["--lr", 0], "lr must be above 0, got 0.0"),
        (["--head", "tail.*"], "'tail.*' matches no parameter"),
        (["--threshold", "top-k"], "needs a share to prune"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(given, message, tmp_path):
    done = recipe("--out", tmp_path / "run", *given, code=2)
    assert message in done.stderr
    assert "Traceback" not in done.output
    assert not (tmp_path / "run").exists()


def test_tasks_of_a_seed_are_the_same_as_in_python():
    form = testbed_tasks.TaskForm(3, 2)
    one, other = (load_tasks("digits", form, seed=4).train.batch(1) for _ in "ab")
    assert torch.equal(one.support[0], other.support[0])
