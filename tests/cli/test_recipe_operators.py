import json

import pytest

from commands import slipstream
from slipstream.trajectory import check_run

SMALL = ("--functions", 8, "--batch-size", 4, "--width", 6, "--terms", 4, "--sensors", 16)
BRIEF = ("--functions", 8, "--batch-size", 4, "--points", 8, "--epochs", 2)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "operators"
    given = ("--source", "1,0.1", "--source", "0,0.1", "--epochs", 2)
    found = slipstream("recipe", "operators", *given, *SMALL, "--out", out)
    return out, found.stdout, given


def test_operators_are_runs_to_tune(pretrained, tmp_path):
    out, lines, given = pretrained
    assert lines.startswith("4 steps, 0.00 MB up, 0.0")
    assert "local: 8 of 16 tensors" in lines
    runs = [out / "operator-1", out / "operator-2"]
    for run in runs:
        assert check_run(run) == []
        assert "recipe: operators, operator" in slipstream("show", run).stdout
    slipstream("compare", *runs)
    slipstream("motion", runs[0])
    again = slipstream("recipe", "operators", *given, *SMALL, "--out", out, "--resume", "--json")
    assert json.loads(again.stdout)["bytes"]["up"] > 0

    tuned = tmp_path / "tuned"
    how = ("--target", "0.5,0.1", *BRIEF, "--rank", 2, "--rates", 1e-3, "--rates", 1e-2)
    said = slipstream("recipe", "tune-operator", *runs, *how, "--out", tuned).stdout
    assert "4 steps of" in said
    assert "relative error on test functions" in said
    assert "recipe: operator-tuning, rank 2" in slipstream("show", tuned).stdout
    slipstream("report", *runs, tuned, "-o", tmp_path / "page.html", "--no-landscape")
    more = (*runs, *how, "--resume", "--out", tuned, "--json")
    found = json.loads(slipstream("recipe", "tune-operator", *more).stdout)
    assert set(found["errors"]) == {"start", "tuned"}
    assert len(found["held_out"]) == 3
    alone = ("--no-match", *runs, *BRIEF, "--out", tmp_path / "plain", "--json")
    plain = json.loads(slipstream("recipe", "tune-operator", *alone).stdout)
    assert plain["held_out"][0] != found["held_out"][0]


def refused(*given):
    return slipstream("recipe", *given, code=2).stderr


def test_mistakes(pretrained, tmp_path):
    out, _, _ = pretrained
    new = ("--out", tmp_path / "new")
    told = refused("operators", *SMALL, "--source", "1", *new)
    assert "An equation is C,NU, such as 1,0.01; got '1'" in told
    told = refused("tune-operator", *BRIEF, "--initial", 0, *new)
    assert "--initial must be above 0" in told
    told = refused("tune-operator", *BRIEF, "--target", "9,0.0001", *new)
    assert "is not resolved by 256 points" in told
    slipstream("train", "mlp", "--width", 8, "--epochs", 1, "--out", tmp_path / "mlp")
    told = refused("tune-operator", tmp_path / "mlp", *BRIEF, *new)
    assert "holds no operator network" in told
    wide = ("--width", 7, "--functions", 8, "--terms", 4, "--sensors", 16, "--epochs", 1)
    slipstream("recipe", "operators", *wide, "--out", tmp_path / "wide")
    told = refused(
        "tune-operator", out / "operator-1", tmp_path / "wide" / "operator-1", *BRIEF, *new
    )
    assert "branch.0.weight" in told
    assert not (tmp_path / "new").exists()
