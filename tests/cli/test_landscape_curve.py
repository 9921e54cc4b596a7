import json

import pytest

from commands import slipstream


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for seed, name in enumerate(("one", "two")):
        slipstream(
            *("train", "mlp", "--width", 16, "--epochs", 4, "--lr", 0.1),
            *("--seed", seed, "--out", folder / name),
        )
    return folder


def test_it_measures_the_curve_beside_the_straight_line(runs, tmp_path):
    figure, data, middle = (
        tmp_path / f"curve{ending}" for ending in (".png", ".json", ".safetensors")
    )
    how = (runs / "one", runs / "two", "--epochs", 4, "--points", 5)
    outputs = ("--figure", figure, "-o", data, "--midpoint", middle)
    said = json.loads(slipstream("landscape", "curve", *how, *outputs, "--json").stdout)
    assert said == json.loads(data.read_text())
    assert figure.read_bytes()[1:4] == b"PNG"
    straight, along = said["straight"]["line"], said["curve"]["line"]
    assert straight["values"]["accuracy"][0] == along["values"]["accuracy"][0]
    ends = json.loads(slipstream("evaluate", runs / "one", "--json").stdout)
    assert along["values"]["accuracy"][0] == pytest.approx(ends["accuracy"])
    judged = json.loads(slipstream("evaluate", runs / "one", "--weights", middle, "--json").stdout)
    assert judged["accuracy"] == pytest.approx(along["values"]["accuracy"][2])
    assert "straight" in slipstream("landscape", "curve", *how).stdout


def test_mistakes_are_one_line(runs, tmp_path):
    both = (runs / "one", runs / "two")
    for arguments, message in [
        ((runs / "one", f"same={runs / 'one'}"), "start and end are equal"),
        ((*both, "--lr", 0), "--lr must be above 0"),
        ((*both, "--figure", tmp_path / "curve.gif"), "--figure must end in"),
        ((runs / "one", tmp_path / "none"), "There is no run folder or file"),
    ]:
        result = slipstream("landscape", "curve", *arguments, code=2)
        assert message in result.stderr
        assert result.stderr.count("\n") == 1
