import json

import pytest

from commands import complaint, slipstream

RUN = ("--width", 20, "--examples", 4, "--batch-size", 4, "--epochs", 2, "--lr", 0.1)
BRIEF = ("--epochs", 1, "--attempts", 2, "--candidates", 6)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    softplus = 'activation="softplus"'
    slipstream("train", "mlp", *RUN, "--weight-decay", 0.01, "--option", softplus, "--out", folder)
    return folder


def test_a_margin_is_measured_along_a_run(run, tmp_path):
    text = slipstream("margin", run, "--figure", tmp_path / "margin.png").stdout
    assert "support vectors in the end: " in text
    assert "not homogeneous" in text
    assert (tmp_path / "margin.png").stat().st_size > 1000
    found = json.loads(slipstream("margin", run, "--step", 2, "--json").stdout)
    assert found["steps"] == [2]
    assert len(found["coefficients"][0]) == 4
    assert found["decay_residuals"][0] > 0  # the decay that the run recorded


def test_a_search_is_compared_recorded_shown_and_reported(run, tmp_path):
    out, drawn = tmp_path / "out", tmp_path / "found.png"
    given = ("recipe", "reconstruction", run, "--equation", "displacement", *BRIEF)
    text = slipstream(*given, "--out", out, "--figure", drawn).stdout
    assert "The least residual counts. Training inputs correlate" in text
    assert drawn.stat().st_size > 1000
    shown = slipstream("show", out / "2").stdout
    assert "recipe: reconstruction, equation displacement" in shown
    assert "validation correlation" in shown
    slipstream("report", out / "1", out / "2", "-o", tmp_path / "page.html", "--no-landscape")
    assert b"What was read from the weights" in (tmp_path / "page.html").read_bytes()
    again = json.loads(slipstream(*given, "--out", out, "--resume", "--json").stdout)
    assert [len(again["attempts"]), again["steps"]] == [2, [0, 1]]
    assert slipstream("average", out / "1", code=2).stderr.count("\n") == 1  # it is no network


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--equation", "margin"), "The network is not homogeneous"),
        (("--equation", "displacement", "--step", 1), "reads 2 snapshots, got 1 steps"),
        (("--data", "digits+turned", "--step", 99), "99"),
        (("--least", 2), "least must be at least 0"),
    ],
)
def test_what_cannot_be_read_is_one_line(run, given, message, tmp_path):
    told = slipstream("recipe", "reconstruction", run, *given, "--out", tmp_path / "o", code=2)
    assert message in complaint(told)
