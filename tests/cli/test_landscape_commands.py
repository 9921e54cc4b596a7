"""The commands say, save and draw what the library finds."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from commands import slipstream
from slipstream.cli.output import OutputFiles
from slipstream.evaluation import Task
from slipstream.landscape import (
    AlignmentPlan,
    PlaneGrid,
    StudyPlan,
    align_then_barrier,
    landscape_study,
    loss_along,
    loss_plane,
    networks_of_transfer,
    plane_through,
    random_plane,
    trajectory_plane,
)
from slipstream.named_task import rebuild
from slipstream.symmetry.tracing import find_neuron_groups
from slipstream.trajectory import Trajectory
from slipstream.transfer import load_transfer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs")
    small = ["mlp", "--width", "8", "--examples", "300", "--epochs", "2"]
    for name, seed in (("run", 0), ("other", 1)):
        slipstream("train", *small, "--seed", seed, "--out", path / name)
    slipstream("transfer", path / "run", "--seed", 1, "--stages", 2, "--out", path / "moved")
    save_file(Trajectory.open(path / "other").resample(3)[1].weights, path / "mean.safetensors")
    return path


@pytest.fixture(scope="module")
def parts(folder):
    """What the commands measure with."""
    run = Trajectory.open(folder / "run")
    experiment = rebuild(run.description["configuration"])
    task = Task(experiment.model, list(experiment.test))
    return task, run, Trajectory.open(folder / "other")


def test_line(folder, parts, tmp_path):
    task, run, other = parts
    out = (tmp_path / "line.svg", tmp_path / "line.json")
    places = (f"{folder / 'run'}@0", f"end={folder / 'run'}", folder / "mean.safetensors")
    how = ("--points", 3, "--figure", out[0], "-o", out[1])
    told = json.loads(slipstream("landscape", "line", *places, *how, "--json").stdout)
    weights = [run[0].weights, run[-1].weights, other.resample(3)[1].weights]
    found = loss_along(weights, task, points=3)
    assert not list(tmp_path.glob("*.unfinished"))
    assert told["names"] == ["run@0", "end", "mean"]
    assert told["values"]["loss"] == found.losses.tolist()
    assert json.loads(out[1].read_text()) == told
    assert out[0].read_text().startswith("<?xml")
    text = slipstream("landscape", "line", *places, "--points", 3).stdout
    assert "test accuracy" in text
    assert f"{float(found.losses[1]):.4g}" in text


def test_barrier(folder, parts):
    task, run, other = parts
    call = ("landscape", "barrier", folder / "run", folder / "other", "--points", 5)
    told = json.loads(slipstream(*call, "--match", "weights", "--json").stdout)
    found = align_then_barrier(
        run[-1].weights,
        other[-1].weights,
        task,
        groups=find_neuron_groups(task.model, torch.zeros(1, 1, 8, 8)),
        plan=AlignmentPlan(points=5),
    )
    assert told["as they are"]["height"] == found.before.height
    assert told["matched"]["drops"]["accuracy"] == found.after.drop("accuracy")
    alone = json.loads(slipstream(*call, "--json").stdout)
    assert list(alone) == ["split", "as they are"]
    assert alone["as they are"]["height"] == pytest.approx(found.before.height)
    assert "matched" in slipstream(*call, "--match", "activations").stdout


def test_planes(folder, parts, tmp_path):
    task, run, other = parts
    middle = other.resample(3)[1].weights
    file = folder / "mean.safetensors"
    three = {"run": run[-1].weights, "other": other[-1].weights, "mean": middle}
    for words, plane in [
        ([folder / "run"], trajectory_plane(run)),
        ([folder / "run", "--random", "3"], random_plane(run[-1].weights, seed=3)),
        ([file, "--model", "mlp", "--width", "8"], random_plane(middle)),
        ([folder / "run", folder / "other", file], plane_through(three)),
    ]:
        how = ("--points", 3)
        told = json.loads(slipstream("landscape", "plane", *words, *how, "--json").stdout)
        found = loss_plane(plane, task, grid=PlaneGrid(points=3))
        assert told["values"]["loss"] == found.losses.tolist()
        assert told["labels"] == list(plane.labels)
    assert set(told["marks"]) == {"run", "other", "mean"}
    figure = tmp_path / "plane.png"
    text = slipstream(
        "landscape", "plane", folder / "run", "--points", 3, "--figure", figure
    ).stdout
    assert "first component" in text
    assert figure.read_bytes()[1:4] == b"PNG"


def test_study_of_a_transfer(folder, parts, tmp_path, monkeypatch):
    task, run, other = parts
    result = load_transfer(folder / "moved")
    networks = networks_of_transfer(
        run,
        result.trajectory,
        source_to_target=result.source_to_target,
        trained_target=other[-1].weights,
    )
    found = landscape_study(networks, task, plan=StudyPlan(points=3))
    call = ("landscape", "study", folder / "moved", "--trained-target", folder / "other")
    told = json.loads(slipstream(*call, "--points", 3, "--json").stdout)
    expected = json.loads(json.dumps(found.to_json()))
    assert told == {"split": "test", **expected}
    figure, names = tmp_path / "study.png", "source,transferred,oracle"
    text = slipstream(*call, "--corners", names, "--plane-points", 3, "--figure", figure).stdout
    assert "linear CKA of head" in text
    assert "permuted source 3" in text
    few = slipstream("landscape", "study", folder / "run", folder / "other", "--points", 2).stdout
    assert "other 1" in few


def test_the_source_of_a_transfer_is_found_from_another_folder(folder, tmp_path, monkeypatch):
    shutil.copytree(folder / "run", tmp_path / "there" / "run")
    monkeypatch.chdir(tmp_path / "there")
    slipstream("transfer", "run", "--seed", 1, "--stages", 2, "--out", "moved")
    monkeypatch.chdir(tmp_path)
    study = ("landscape", "study", Path("there", "moved"), "--points", 2)
    assert "permuted source" in slipstream(*study).stdout
    Path("there", "run").rename("elsewhere")
    assert "where there is no run now" in slipstream(*study, code=2).stderr


def test_mistakes_are_one_line(folder, tmp_path):
    run, other = folder / "run", folder / "other"
    for words, message in [
        (("line", run), "weights must be two or more"),
        (("line", run, "nowhere"), "There is no run folder or file 'nowhere'"),
        (("line", run, f"{run}@x"), "must be RUN@STEP"),
        (("line", run, f"{run}@12345"), "Step 12345 was not kept"),
        (("line", run, run), "Two networks are called run: write NAME="),
        (("line", folder / "mean.safetensors", "-o", "a.json"), "Give a run folder, or name a"),
        (("barrier", run, other, "-o", "a.txt"), "--out must end in .json, got a.txt"),
        (("barrier", run, other, "--figure", "a.txt"), "--figure must end in .png, .svg, .pdf"),
        (("barrier", run, other, "--resume"), "--resume needs --out or --figure"),
        (
            ("barrier", run, other, "--learn-steps", 3),
            "--learn-steps needs --match rotations",
        ),
        (("barrier", run, other, "-o", tmp_path / "no" / "a.json"), "there is no folder"),
        (("plane", run, other), "use `slipstream landscape line`"),
        (("study", run, "--trained-target", other), "goes with one transferred run"),
        (
            ("study", run, other, "--corners", "run,other,x"),
            "corners must be three of run",
        ),
    ]:
        result = slipstream("landscape", *words, code=2)
        assert message in result.stderr
        assert result.stderr.count("\n") == 1


def test_what_is_no_number_is_null_in_the_file(tmp_path):
    OutputFiles(tmp_path / "a.json").write_data({"losses": [1.0, float("nan")]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"losses": [1.0, None]}
