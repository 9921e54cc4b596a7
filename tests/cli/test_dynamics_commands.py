"""`slipstream motion`, `curvature` and `complexity` say what the library finds."""

import json

import pytest
import torch

from commands import slipstream
from slipstream.dynamics import find_phases, measure_motion, principal_path
from slipstream.evaluation import Task
from slipstream.landscape import CurvaturePlan, curvature, measure_curvature
from slipstream.named_task import rebuild
from slipstream.trajectory import Layout, Trajectory, create_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Twelve plain steps of one example each, all kept."""
    path = tmp_path_factory.mktemp("runs") / "run"
    recipe = ("--width", 8, "--examples", 6, "--batch-size", 1, "--momentum", 0, "--epochs", 2)
    more = ("--keep", "every:1", "--schedule", "cosine", "--out", path)
    slipstream("train", "mlp", *recipe, *more)
    return path


def test_motion_says_and_draws_what_is_measured(run, tmp_path):
    figure = tmp_path / "motion.png"
    text = slipstream("motion", run, "--figure", figure).stdout
    motion = measure_motion(Trajectory.open(run))
    assert str(find_phases(motion)) in text
    for name, share in zip(motion.by_layer().names, motion.by_layer().share, strict=True):
        assert name in text
        assert f"{share:.1%}" in text
    assert figure.read_bytes()[1:4] == b"PNG"


def test_motion_for_machines(run):
    said = json.loads(slipstream("motion", run, "--tensors", "--json").stdout)
    trajectory = Trajectory.open(run)
    motion = measure_motion(trajectory)
    assert said["steps"] == trajectory.steps
    assert [part["name"] for part in said["parts"]] == list(motion.names)
    assert said["parts"][1]["speeds"] == motion.speeds[1].tolist()
    assert said["all"]["cosines"] == motion.combined().cosines[0].tolist()
    assert said["path"]["shares"] == principal_path(trajectory).shares.tolist()
    assert said["phases"][0]["start"] == 0


def test_what_is_no_number_is_null(tmp_path):
    weights = {"still": torch.ones(2), "moving": torch.zeros(1)}
    with create_run(tmp_path / "run", model=Layout.of_weights(weights)) as writer:
        for step in range(3):
            writer.append(step=step, weights=weights | {"moving": torch.ones(1) * step})
    said = json.loads(slipstream("motion", tmp_path / "run", "--json").stdout)
    assert said["parts"][0]["cosines"] == [None]
    assert said["phases"] == []  # two moves are too few
    assert "Too few snapshots" in slipstream("motion", tmp_path / "run").stdout


def test_curvature_is_that_of_the_snapshots(run, tmp_path):
    figure, out = tmp_path / "curvature.svg", tmp_path / "curvature.json"
    how = ("--step", 0, "--step", 12, "--batches", 3, "--samples", 2)
    said = json.loads(
        slipstream("curvature", run, *how, "--figure", figure, "-o", out, "--json").stdout
    )
    trajectory = Trajectory.open(run)
    experiment = rebuild(trajectory.description["configuration"])
    data = list(experiment.data)[:3]
    for row in said:
        expected = measure_curvature(
            Task(experiment.model, data, experiment.loss),
            weights=trajectory.at(row["step"]).weights,
            plan=CurvaturePlan(samples=2),
        )
        assert row["largest"] == expected.largest
        assert row["trace"] == expected.trace
        assert row["sharpness"] == expected.sharpness
    assert figure.stat().st_size
    assert json.loads(out.read_text()) == said
    text = slipstream("curvature", run, *how).stdout
    assert f"{said[1]['loss']:.4g}" in text
    unconverged = ("--iterations", 2, "--tolerance", 1e-9)
    assert "has not converged" in slipstream("curvature", run, *how, *unconverged).stdout


def test_an_interrupted_measurement_is_resumed(run, tmp_path, monkeypatch):
    out, measured = tmp_path / "curvature.json", []
    call = ("curvature", run, "--step", 0, "--step", 12, "--batches", 2, "--samples", 2, "-o", out)

    def interrupted(*arguments, **options):
        measured.append(options)
        if len(measured) == 2:
            raise KeyboardInterrupt
        return measure_curvature(*arguments, **options)

    monkeypatch.setattr(curvature, "measure_curvature", interrupted)
    slipstream(*call, code=130)
    assert [file.name for file in tmp_path.iterdir()] == ["curvature.json.unfinished"]
    slipstream(*call, "--resume")
    assert len(measured) == 3
    assert [file.name for file in tmp_path.iterdir()] == ["curvature.json"]
    assert [point["step"] for point in json.loads(out.read_text())] == [0, 12]


def test_complexity_follows_the_run_at_its_rates(run, tmp_path):
    figure = tmp_path / "complexity.png"
    said = json.loads(slipstream("complexity", run, "--figure", figure, "--json").stdout)
    assert said["violations"] == []
    assert said["steps"] == 12
    assert said["outside"] == 0
    bias = Trajectory.open(run)["hidden1.bias"].double()
    assert said["length"] == pytest.approx(float(bias.diff(dim=0).norm(dim=1).sum()))
    low, high = said["bounds"]
    assert low <= said["mean_lipschitz"] <= high
    assert figure.read_bytes()[1:4] == b"PNG"
    text = slipstream("complexity", run, "--lr", 7).stdout
    assert "violated: the bias did not move by the learning rate" in text


def test_mistakes_are_one_line(run, tmp_path):
    rare = tmp_path / "rare"
    slipstream("train", "mlp", "--width", 4, "--examples", 300, "--epochs", 1, "--out", rare)
    for arguments, message in [
        (("complexity", rare), "no snapshot between the steps 0 and 3"),
        (("curvature", run, "--step", 99), "Step 99 was not kept; the nearest is 12"),
        (("curvature", run, "--radius", 0), "--radius must be above 0"),
        (("motion", tmp_path), "run.json"),
    ]:
        result = slipstream(*arguments, code=2)
        assert message in result.stderr
        assert result.stderr.count("\n") == 1
